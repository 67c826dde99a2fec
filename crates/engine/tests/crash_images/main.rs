//! Crash images of a volume: everything that the engine writes, syncs, renames and removes is
//! recorded under a guest with a script; then, at points all over the history, the directory is
//! rebuilt as the death of the daemon or of the host's power could have left it, and opened. What
//! is then read must be a state between the last acknowledged flush (after the death of the daemon:
//! the last acknowledged request) and the last request that was sent.

#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

mod damage;
mod guest;
mod image;
mod recorder;

use async_trait::async_trait;
use bytes::Bytes;
use guest::{Expect, Op};
use image::{Crash, Disk as Image};
use pannier_core::ids::{Epoch, HashKey, HostId, Incarnation, SiteName, VolumeId};
use pannier_engine::context::{HostContext, HostOptions, LocalConfig};
use pannier_engine::disk::Disk;
use pannier_engine::error::{Error, ErrorKind, Result};
use pannier_engine::port::Objects;
use pannier_engine::volume::Volume;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use recorder::{Event, Failing, Purpose, Recorder};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const ID: VolumeId = VolumeId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

/// A site without a store: nothing is stored, so everything has to be in the local files.
struct NoStore;

fn no_store() -> Error {
    Error::new(ErrorKind::Unavailable, "this test has no store")
}

#[async_trait]
impl Objects for NoStore {
    async fn put(&self, _key: &str, _bytes: Bytes) -> Result<()> {
        Err(no_store())
    }

    async fn get(&self, _key: &str) -> Result<Bytes> {
        Err(no_store())
    }

    async fn get_range(&self, _key: &str, _range: Range<u64>) -> Result<Bytes> {
        Err(no_store())
    }

    async fn size(&self, _key: &str) -> Result<Option<u64>> {
        Err(no_store())
    }

    async fn delete(&self, _key: &str) -> Result<()> {
        Err(no_store())
    }

    async fn list(&self, _prefix: &str) -> Result<Vec<String>> {
        Err(no_store())
    }
}

fn host(dir: &Path, disk: Disk) -> Result<Arc<HostContext>> {
    HostContext::open(HostOptions {
        dir: dir.to_owned(),
        host: HostId(1),
        site: SiteName("west".to_owned()),
        key: HashKey([3; 32]),
        config: LocalConfig {
            // Small segments, so that the log crosses their borders and files are used again.
            segment_pages: 32,
            pool_bytes: 8 * 32 * 4096,
            cache_bytes: 1 << 20,
            background: false,
            ..LocalConfig::default()
        },
        objects: Arc::new(NoStore),
        disk,
    })
}

async fn start(context: &Arc<HostContext>, incarnation: u32) -> Result<Arc<Volume>> {
    let volume = Volume::recover(context, ID).await?;
    volume.begin_append(Epoch(1), Incarnation(incarnation)).await?;
    Ok(volume)
}

/// Lets go of a volume as a killed daemon does: without closing it. Waits until its threads are
/// gone.
async fn kill(volume: Arc<Volume>, context: Arc<HostContext>) {
    let gone = Arc::downgrade(&context);
    drop((volume, context));
    for _ in 0..2000 {
        if gone.strong_count() == 0 {
            // The sealer may still end its last piece of work.
            tokio::time::sleep(Duration::from_millis(20)).await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("a thread keeps the host's context for ever");
}

/// What else happens while a script is played.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trouble {
    None,
    /// Of the fdatasyncs from the operation with this number on, these fail.
    FailedSyncs {
        at: usize,
        failing: Failing,
    },
    /// Another volume has filled the pool's files before.
    UsedFiles,
}

/// Writes another volume and deletes it.
async fn use_files(context: &Arc<HostContext>) {
    let other = VolumeId(99);
    let volume = Volume::create(context, other, guest::SIZE as u64).await.unwrap();
    volume.begin_append(Epoch(1), Incarnation(1)).await.unwrap();
    for block in 0..60 {
        volume.write(block * 4096, vec![0xdd; 4096].into(), true).await.unwrap();
    }
    volume.stop_append().await.unwrap();
    drop(volume);
    Volume::delete(context, other, false).await.unwrap();
}

/// Plays a script on a recorded disk.
async fn record(live: &Path, script: &[Op], trouble: Trouble) -> Vec<Event> {
    let recorder = Arc::new(Recorder::default());
    let disk = || Disk::observed(Arc::clone(&recorder) as Arc<dyn pannier_engine::disk::Observer>);
    let mut context = host(live, disk()).unwrap();
    if trouble == Trouble::UsedFiles {
        use_files(&context).await;
    }
    Volume::create(&context, ID, guest::SIZE as u64).await.unwrap();
    let mut incarnation = 1;
    let mut volume = start(&context, incarnation).await.unwrap();
    for (number, op) in script.iter().enumerate() {
        if let Trouble::FailedSyncs { at, failing } = &trouble
            && *at == number
        {
            recorder.fail(failing);
        }
        recorder.begun(number);
        if *op == Op::Restart {
            kill(volume, context).await;
            incarnation += 1;
            context = host(live, disk()).unwrap();
            volume = start(&context, incarnation).await.unwrap();
        }
        // A checkpoint that cannot be written is tried again; nothing else may tell of a failure,
        // since another file always takes what the first one does not.
        let mut retries = match &trouble {
            Trouble::FailedSyncs { failing, .. } if *op == Op::Checkpoint => failing.nth.len(),
            _ => 0,
        };
        while let Err(error) = guest::execute(&volume, number, op).await {
            assert!(retries > 0, "{op:?}: {error}");
            retries -= 1;
        }
        recorder.acknowledged(number);
    }
    kill(volume, context).await;
    recorder.take()
}

/// Opens an image and reads the whole disk.
async fn open(dir: &Path) -> Result<Expect> {
    let context = host(dir, Disk::default())?;
    let volume = start(&context, 1000).await?;
    let mut bytes = vec![0xee; volume.size_bytes() as usize];
    volume.read(0, &mut bytes).await?;
    let request = volume.sessions().get(&guest::SESSION).map_or(0, |number| number.0);
    Ok(Expect { bytes, request })
}

/// The states of the disk after each operation of a script, the new disk first.
fn states(script: &[Op]) -> Vec<Expect> {
    let mut states = vec![Expect::new()];
    for (number, op) in script.iter().enumerate() {
        let mut steps = states[number].steps(number, op);
        states.extend(steps.pop());
    }
    states
}

/// Whether `found` is one of the states from `from` operations to `to`, or on the way.
fn is_expected(script: &[Op], states: &[Expect], found: &Expect, from: usize, to: usize) -> bool {
    states[from..=to].contains(found)
        || (from..to).any(|number| states[number].steps(number, &script[number]).contains(found))
}

/// Events behind a failed sync at half of which a crash is tried.
const EVENTS_BEHIND_A_FAILURE: usize = 8;

/// Replays the history and, at points drawn with `chance` and right behind a failed sync, opens
/// what a crash could have left.
/// Returns the number of images, or what was wrong with one.
async fn check_images(
    mut disk: Image,
    live: &Path,
    script: &[Op],
    events: &[Event],
    rng: &mut StdRng,
    chance: f64,
) -> std::result::Result<usize, String> {
    let states = states(script);
    let (mut begun, mut acknowledged, mut durable) = (0, 0, 0);
    let mut created = false;
    let mut images = 0;
    let mut soon = 0;
    for (number, event) in events.iter().enumerate() {
        disk.step(event);
        soon = match event {
            Event::SyncFailed { .. } => EVENTS_BEHIND_A_FAILURE,
            _ => soon.saturating_sub(1),
        };
        match event {
            Event::Begun(op) => (begun, created) = (op + 1, true),
            Event::Acknowledged(op) => {
                acknowledged = op + 1;
                if guest::is_durable(&script[*op]) {
                    durable = acknowledged;
                }
            }
            _ => {}
        }
        if !created || !rng.random_bool(if soon > 0 { chance.max(0.5) } else { chance }) {
            continue;
        }
        let percent = [0, 20, 50, 80, 100][rng.random_range(0..5)];
        for crash in [Crash::Process, Crash::Power(percent)] {
            let from = if crash == Crash::Process { acknowledged } else { durable };
            let dir = tempfile::tempdir().unwrap();
            disk.write_image(crash, live, dir.path(), rng).unwrap();
            let what = format!("event {number} of {}, {crash:?}", events.len());
            let last = &script[begun.saturating_sub(6)..begun];
            let found = open(dir.path()).await;
            let found = found.map_err(|error| format!("{what}: {error}; behind {last:?}"))?;
            if !is_expected(script, &states, &found, from, begun) {
                return Err(format!(
                    "{what}: none of the states {from}..={begun}; {}; behind {last:?}",
                    difference(&states[from], &found),
                ));
            }
            images += 1;
        }
    }
    Ok(images)
}

/// How what was found differs from a state.
fn difference(state: &Expect, found: &Expect) -> String {
    let sectors = state.bytes.chunks(512).zip(found.bytes.chunks(512)).enumerate();
    let differ: Vec<_> = sectors
        .filter(|(_, (expect, found))| expect != found)
        .map(|(sector, (expect, found))| (sector, expect[0], found[0]))
        .collect();
    format!(
        "{} against {} bytes, request {} against {}, {} sectors differ, (sector, expected, found): \
         {:?}",
        found.bytes.len(),
        state.bytes.len(),
        found.request,
        state.request,
        differ.len(),
        &differ[..differ.len().min(12)]
    )
}

/// Seeds of one run: fixed ones, and where `PANNIER_SEED` is set, that many behind it as well.
fn seeds(from: u64, count: u64) -> impl Iterator<Item = u64> {
    let fresh = std::env::var("PANNIER_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    (from..from + count).chain(fresh.into_iter().flat_map(move |seed| seed..seed + 10 * count))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_survives_is_between_the_last_flush_and_the_last_request() {
    // `cargo xtask soak kill9` sets it.
    let rounds = std::env::var("PANNIER_CRASH_ROUNDS").ok().and_then(|count| count.parse().ok());
    for seed in seeds(0, rounds.unwrap_or(3)) {
        let mut rng = StdRng::seed_from_u64(seed);
        let script = guest::script(&mut rng, 80);
        let live = tempfile::tempdir().unwrap();
        let events = record(live.path(), &script, Trouble::None).await;
        let disk = Image::default();
        let images = check_images(disk, live.path(), &script, &events, &mut rng, 0.08).await;
        let images = images.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(images > 20, "seed {seed}: only {images} images of {} events", events.len());
    }
}

/// The same on a disk whose syncs do nothing must find a loss, or the test above shows nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_does_not_sync_is_found_out() {
    let mut rng = StdRng::seed_from_u64(0);
    let script = guest::script(&mut rng, 80);
    let live = tempfile::tempdir().unwrap();
    let events = record(live.path(), &script, Trouble::None).await;
    let disk = Image::without_sync();
    let found = check_images(disk, live.path(), &script, &events, &mut rng, 0.2).await;
    assert!(found.is_err(), "nothing was lost without any sync");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_fdatasync_loses_nothing_that_is_acknowledged() {
    for seed in seeds(100, 3) {
        let mut rng = StdRng::seed_from_u64(seed);
        let script = guest::script(&mut rng, 60);
        let failing = Failing { purpose: None, nth: vec![1] };
        let trouble = Trouble::FailedSyncs { at: rng.random_range(5..50), failing };
        let live = tempfile::tempdir().unwrap();
        let events = record(live.path(), &script, trouble).await;
        assert!(events.iter().any(|event| matches!(event, Event::SyncFailed { .. })));
        let disk = Image::default();
        let images = check_images(disk, live.path(), &script, &events, &mut rng, 0.08).await;
        images.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// A short history with every kind of sync: of headers, of the open segment, of one that was just
/// closed, of one that was recovered, of seals, of checkpoints.
fn short_history() -> Vec<Op> {
    let write = |block: usize| Op::Write { offset: block * 4096, length: 4096, fua: false };
    let mut script = vec![
        write(1),
        Op::Flush,
        write(2),
        Op::Checkpoint,
        write(3),
        Op::Flush,
        Op::Checkpoint,
        write(4),
        Op::Restart,
        Op::Flush,
        write(5),
        Op::Flush,
        write(6),
        Op::Checkpoint,
        write(7),
        Op::Restart,
    ];
    // More than a segment, so that a restart finds two which are not durable.
    let long = |block: usize| Op::Write { offset: block * 4096, length: 4 * 4096, fua: false };
    script.extend((8..64).step_by(4).map(long));
    script.extend([Op::Restart, Op::Flush, write(1), write(64), Op::Checkpoint, write(65)]);
    script
}

/// Plays the short history with failing syncs, and checks what crashes leave. Returns how many
/// syncs have failed.
async fn check_failing(failing: Failing) -> usize {
    let script = short_history();
    let mut rng = StdRng::seed_from_u64(failing.nth.iter().sum::<usize>() as u64);
    let live = tempfile::tempdir().unwrap();
    let trouble = Trouble::FailedSyncs { at: 0, failing: failing.clone() };
    let events = record(live.path(), &script, trouble).await;
    let failed = events.iter().filter(|event| matches!(event, Event::SyncFailed { .. })).count();
    let disk = Image::default();
    let images = check_images(disk, live.path(), &script, &events, &mut rng, 0.01).await;
    images.unwrap_or_else(|error| panic!("{failing:?}: {error}"));
    failed
}

/// Each sync of the history fails once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_sync_may_fail() {
    let mut tried = 0;
    while check_failing(Failing { purpose: None, nth: vec![tried + 1] }).await > 0 {
        tried += 1;
    }
    assert!(tried >= 24, "only {tried} syncs");
}

/// Two syncs fail, so many behind each other.
async fn check_two(distance: usize) {
    let mut first = 1;
    while check_failing(Failing { purpose: None, nth: vec![first, first + distance] }).await > 0 {
        first += 1;
    }
    assert!(first > 24, "only {first} syncs");
}

/// A sync fails, and so does the next: that of the copy, of its header, of the seal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_sync_and_the_next_may_fail() {
    check_two(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_sync_and_the_one_behind_the_next_may_fail() {
    check_two(2).await;
}

/// Of the syncs for one purpose any fails, and the one for the same purpose behind it, whatever
/// stands between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_two_syncs_for_one_purpose_may_fail() {
    for (purpose, least) in
        [(Purpose::Header, 6), (Purpose::Log, 6), (Purpose::Seal, 4), (Purpose::Whole, 6)]
    {
        let nth = |first| vec![first, first + 1];
        let mut first = 1;
        while check_failing(Failing { purpose: Some(purpose), nth: nth(first) }).await > 0 {
            first += 1;
        }
        assert!(first > least, "{purpose:?}: only {first} syncs");
    }
}

/// A new volume's first segments stand in files that another volume has used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_a_deleted_volume_do_not_shine_through() {
    for seed in seeds(200, 2) {
        let mut rng = StdRng::seed_from_u64(seed);
        let script = guest::script(&mut rng, 12);
        let live = tempfile::tempdir().unwrap();
        let events = record(live.path(), &script, Trouble::UsedFiles).await;
        let disk = Image::default();
        let images = check_images(disk, live.path(), &script, &events, &mut rng, 0.6).await;
        images.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}
