//! The guest: what a virtual machine's disk would see. One writer of numbered, checksummed records
//! with flushes, and readers that compare random pieces with the image, all without pause.

use crate::output::Failure;
use pannier_core::units::BLOCK_BYTES;
use pannier_engine::error::ErrorKind;
use pannier_exports::nbd::client::Client;
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Blocks of the ring of records, behind the image.
pub(super) const RECORD_SLOTS: u64 = 2048;

/// Records between two flushes.
const FLUSH_EVERY: u64 = 4;

/// Readers at once.
const READERS: u64 = 2;

/// Time between a writer's and a reader's requests: a busy guest that leaves the machine's cores to
/// the daemons.
const WRITE_PAUSE: Duration = Duration::from_millis(5);
const READ_PAUSE: Duration = Duration::from_millis(4);

/// What a request was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
}

/// One request of the guest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// When it was made, in seconds since the demo's clock began.
    pub(super) at: f64,
    /// How long it took, in milliseconds.
    pub(super) millis: f64,
    pub(super) kind: Kind,
    /// Whether it was made at the target.
    pub(super) at_target: bool,
}

/// Where the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Source,
    /// Still at the source; the target's connections are being opened, as a hypervisor does.
    Opening,
    Target,
    Stopped,
}

/// What the guest did and knows.
struct Diary {
    clock: Instant,
    samples: Mutex<Vec<Sample>>,
    /// The newest acknowledged record of each slot, 0 for none.
    records: Mutex<Vec<u64>>,
    written: Mutex<u64>,
    broken: AtomicBool,
}

/// What remains of the guest when it is stopped.
pub(super) struct Story {
    pub(super) samples: Vec<Sample>,
    pub(super) records: Vec<u64>,
    pub(super) written: u64,
}

/// A running guest.
pub(super) struct Guest {
    diary: Arc<Diary>,
    stage: watch::Sender<Stage>,
    workers: JoinSet<Result<(), Failure>>,
}

/// The sockets, the export and the image that all of a guest's workers use.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) source: PathBuf,
    pub(super) target: PathBuf,
    pub(super) export: &'static str,
    pub(super) image: PathBuf,
    pub(super) image_bytes: u64,
}

impl Disk {
    /// First byte of the ring of records.
    pub(super) fn ring(&self) -> u64 {
        self.image_bytes.next_multiple_of(BLOCK_BYTES)
    }

    /// Size of the volume: image and ring.
    pub(super) fn volume_bytes(&self) -> u64 {
        self.ring() + RECORD_SLOTS * BLOCK_BYTES
    }
}

/// The bytes of a record: number, filler that follows from it, and a hash over both.
pub(super) fn record(number: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES as usize];
    SmallRng::seed_from_u64(number).fill(&mut block[8..]);
    block[..8].copy_from_slice(&number.to_le_bytes());
    let body = BLOCK_BYTES as usize - 32;
    let hash = blake3::hash(&block[..body]);
    block[body..].copy_from_slice(hash.as_bytes());
    block
}

impl Guest {
    /// Starts the guest at the source.
    pub(super) fn start(disk: &Disk, clock: Instant) -> Self {
        let diary = Arc::new(Diary {
            clock,
            samples: Mutex::new(Vec::new()),
            records: Mutex::new(vec![0; RECORD_SLOTS as usize]),
            written: Mutex::new(0),
            broken: AtomicBool::new(false),
        });
        let (stage, _) = watch::channel(Stage::Source);
        let mut workers = JoinSet::new();
        let worker =
            || Worker { disk: disk.clone(), diary: Arc::clone(&diary), stage: stage.subscribe() };
        workers.spawn(worker().run(Role::Writer));
        for number in 0..READERS {
            workers.spawn(worker().run(Role::Reader(number)));
        }
        Self { diary, stage, workers }
    }

    /// Opens the target's connections, while the guest goes on at the source.
    pub(super) fn open_target(&self) {
        self.stage.send_replace(Stage::Opening);
    }

    /// Goes on at the target: the next request of each worker is made there.
    pub(super) fn go_to_target(&self) {
        self.stage.send_replace(Stage::Target);
    }

    /// Whether a worker has ended with an error, which [`Guest::stop`] tells.
    pub(super) fn is_broken(&self) -> bool {
        self.diary.broken.load(Ordering::Relaxed)
    }

    /// The longest request that was made at or after `since` and before `until`, in milliseconds.
    pub(super) fn longest(&self, since: f64, until: f64) -> f64 {
        let samples = self.diary.samples.lock();
        let within = samples.iter().filter(|s| s.at + s.millis / 1000.0 >= since && s.at < until);
        within.map(|sample| sample.millis).fold(0.0, f64::max)
    }

    /// When the first write at the target was answered, on the demo's clock.
    pub(super) fn first_write_at_target(&self) -> Option<f64> {
        let samples = self.diary.samples.lock();
        let first = samples.iter().find(|s| s.at_target && s.kind == Kind::Write)?;
        Some(first.at + first.millis / 1000.0)
    }

    /// Stops the guest; what it has written is flushed.
    pub(super) async fn stop(mut self) -> Result<Story, Failure> {
        self.stage.send_replace(Stage::Stopped);
        while let Some(ended) = self.workers.join_next().await {
            ended.map_err(|error| Failure::new(ErrorKind::Internal, error.to_string()))??;
        }
        let mut samples = std::mem::take(&mut *self.diary.samples.lock());
        samples.sort_by(|one, other| one.at.total_cmp(&other.at));
        let records = std::mem::take(&mut *self.diary.records.lock());
        let written = *self.diary.written.lock();
        Ok(Story { samples, records, written })
    }
}

enum Role {
    Writer,
    Reader(u64),
}

struct Worker {
    disk: Disk,
    diary: Arc<Diary>,
    stage: watch::Receiver<Stage>,
}

impl Worker {
    async fn run(self, role: Role) -> Result<(), Failure> {
        let diary = Arc::clone(&self.diary);
        let ended = match role {
            Role::Writer => self.write().await,
            Role::Reader(number) => self.read(number).await,
        };
        if ended.is_err() {
            diary.broken.store(true, Ordering::Relaxed);
        }
        ended
    }

    fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    async fn connect(&self, socket: &Path) -> Result<Client, Failure> {
        Client::connect_unix(socket, self.disk.export).await.map_err(|error| {
            Failure::io(format!("the guest cannot connect to {}", socket.display()), error)
        })
    }

    fn note(&self, kind: Kind, begun: Instant, at_target: bool) {
        let at = begun.duration_since(self.diary.clock).as_secs_f64();
        let millis = begun.elapsed().as_secs_f64() * 1000.0;
        self.diary.samples.lock().push(Sample { at, millis, kind, at_target });
    }

    async fn write(self) -> Result<(), Failure> {
        let mut source = self.connect(&self.disk.source).await?;
        let mut target = None;
        let mut random = SmallRng::seed_from_u64(0x5eed);
        let mut number = 0;
        let mut tick = tokio::time::interval(WRITE_PAUSE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let stage = self.stage();
            let client = self.client(stage, &mut source, &mut target).await?;
            if stage == Stage::Stopped {
                client.flush().await.map_err(|error| broken("flush", error))?;
                return Ok(());
            }
            let at_target = stage == Stage::Target;
            number += 1;
            let slot = number % RECORD_SLOTS;
            let offset = self.disk.ring() + slot * BLOCK_BYTES;
            let begun = Instant::now();
            client
                .write(offset, &record(number), false)
                .await
                .map_err(|error| broken("write", error))?;
            self.note(Kind::Write, begun, at_target);
            self.diary.records.lock()[slot as usize] = number;
            *self.diary.written.lock() = number;
            if number.is_multiple_of(FLUSH_EVERY) {
                let begun = Instant::now();
                client.flush().await.map_err(|error| broken("flush", error))?;
                self.note(Kind::Flush, begun, at_target);
                self.check_record(client, &mut random, number, at_target).await?;
            }
        }
    }

    /// Reads one of the records that still stand in the ring.
    async fn check_record(
        &self,
        client: &mut Client,
        random: &mut SmallRng,
        newest: u64,
        at_target: bool,
    ) -> Result<(), Failure> {
        let number = newest - random.random_range(0..newest.min(RECORD_SLOTS));
        let offset = self.disk.ring() + number % RECORD_SLOTS * BLOCK_BYTES;
        let mut block = vec![0; BLOCK_BYTES as usize];
        let begun = Instant::now();
        client.read(offset, &mut block).await.map_err(|error| broken("read", error))?;
        self.note(Kind::Read, begun, at_target);
        if block == record(number) {
            return Ok(());
        }
        Err(Failure::new(ErrorKind::Corrupt, format!("record {number} reads differently")))
    }

    async fn read(self, seed: u64) -> Result<(), Failure> {
        let image = File::open(&self.disk.image)
            .map_err(|error| Failure::io("cannot open the image", error))?;
        let mut source = self.connect(&self.disk.source).await?;
        let mut target = None;
        let mut random = SmallRng::seed_from_u64(seed);
        let blocks = self.disk.image_bytes / BLOCK_BYTES;
        let mut tick = tokio::time::interval(READ_PAUSE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let stage = self.stage();
            if stage == Stage::Stopped {
                return Ok(());
            }
            let client = self.client(stage, &mut source, &mut target).await?;
            let count = random.random_range(1..=8.min(blocks));
            let offset = random.random_range(0..=blocks - count) * BLOCK_BYTES;
            let mut piece = vec![0; (count * BLOCK_BYTES) as usize];
            let begun = Instant::now();
            client.read(offset, &mut piece).await.map_err(|error| broken("read", error))?;
            self.note(Kind::Read, begun, stage == Stage::Target);
            let mut expected = vec![0; piece.len()];
            image
                .read_exact_at(&mut expected, offset)
                .map_err(|error| Failure::io("cannot read the image", error))?;
            if piece != expected {
                return Err(Failure::new(
                    ErrorKind::Corrupt,
                    format!("the guest read other bytes than the image's at byte {offset}"),
                ));
            }
        }
    }

    /// The connection of a stage. The source's stays open after the guest has left it, as QEMU's
    /// does until the migration is completed.
    async fn client<'a>(
        &self,
        stage: Stage,
        source: &'a mut Client,
        target: &'a mut Option<Client>,
    ) -> Result<&'a mut Client, Failure> {
        if matches!(stage, Stage::Opening | Stage::Target) && target.is_none() {
            *target = Some(self.connect(&self.disk.target).await?);
        }
        Ok(match target {
            Some(target) if stage != Stage::Opening => target,
            Some(_) | None => source,
        })
    }
}

fn broken(what: &str, error: io::Error) -> Failure {
    Failure::new(ErrorKind::Unavailable, format!("the guest's {what} failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_differ_and_carry_their_hash() {
        let (one, two) = (record(1), record(2));
        assert_ne!(one[8..4064], two[8..4064]);
        assert_eq!(one, record(1));
        assert_eq!(blake3::hash(&one[..4064]).as_bytes(), &one[4064..]);
    }
}
