//! A cluster in one process: hosts with real directories, a registry and stores in memory, and a
//! network between them that delays, loses and cuts.

use async_trait::async_trait;
use bytes::Bytes;
use pannier_core::ids::{HashKey, HostId, ObjectHash, SiteName};
use pannier_core::record::{HostRecord, VolumePath, VolumeRecord};
use pannier_engine::context::LocalConfig;
use pannier_engine::directory::decode_record;
use pannier_engine::error::{Error, ErrorKind, Result};
use pannier_engine::host::{Destination, Host, NewVolume, Setup, SwitchAt};
use pannier_engine::message::{Request, Response};
use pannier_engine::port::{
    Changes, Class, Commit, Objects, PeerService, Peers, Registry, Revision, Transaction, Versioned,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A registry in memory.
pub(crate) struct MemoryRegistry {
    entries: Mutex<(u64, BTreeMap<String, Option<Versioned>>)>,
    newest: watch::Sender<u64>,
    /// How long it takes until a new owner of a volume is registered.
    pub(crate) settle_delay: Mutex<Duration>,
    /// The next commit happens; its answer is lost, and the registry is away from then on.
    pub(crate) loses_answer: AtomicBool,
    /// Nothing is answered.
    pub(crate) away: AtomicBool,
}

impl MemoryRegistry {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            entries: Mutex::default(),
            newest: watch::Sender::new(0),
            settle_delay: Mutex::default(),
            loses_answer: AtomicBool::new(false),
            away: AtomicBool::new(false),
        })
    }

    fn check(&self) -> Result<()> {
        if self.away.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "switched off"));
        }
        Ok(())
    }

    /// Whether a transaction gives a volume another owner.
    fn settles(&self, transaction: &Transaction) -> bool {
        let entries = self.entries.lock();
        let owner = |key: &str, value: &Bytes| {
            decode_record::<VolumeRecord>(key, value).map(|record| record.owner).ok()
        };
        transaction.changes.iter().filter(|change| change.key.starts_with("volume/")).any(
            |change| {
                let before = entries.1.get(&change.key).and_then(Option::as_ref);
                let before = before.and_then(|before| owner(&change.key, &before.value));
                let after = change.value.as_ref().and_then(|value| owner(&change.key, value));
                before.is_some() && after.is_some() && before != after
            },
        )
    }
}

#[async_trait]
impl Registry for MemoryRegistry {
    async fn get(&self, key: &str) -> Result<Option<Versioned>> {
        self.check()?;
        Ok(self.entries.lock().1.get(key).cloned().flatten())
    }

    async fn list(&self, prefix: &str) -> Result<(Vec<(String, Versioned)>, Revision)> {
        self.check()?;
        let entries = self.entries.lock();
        let listed = entries.1.iter().filter(|(key, _)| key.starts_with(prefix));
        let listed = listed.filter_map(|(key, value)| Some((key.clone(), value.clone()?)));
        Ok((listed.collect(), Revision(entries.0)))
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit> {
        self.check()?;
        if self.settles(&transaction) {
            let delay = *self.settle_delay.lock();
            tokio::time::sleep(delay).await;
        }
        let mut entries = self.entries.lock();
        for (key, expect) in &transaction.expect {
            let found = entries.1.get(key).and_then(|value| value.as_ref());
            if found.map_or(Revision(0), |value| value.revision) != *expect {
                return Ok(Commit::Conflict);
            }
        }
        entries.0 += 1;
        let revision = Revision(entries.0);
        for change in transaction.changes {
            let value = change.value.map(|value| Versioned { revision, value });
            entries.1.insert(change.key, value);
        }
        self.newest.send_replace(revision.0);
        if self.loses_answer.swap(false, Ordering::SeqCst) {
            self.away.store(true, Ordering::SeqCst);
            self.check()?;
        }
        Ok(Commit::Done(revision))
    }

    async fn changes(&self, after: Revision) -> Result<Changes> {
        let mut newest = self.newest.subscribe();
        let waited = newest.wait_for(|newest| *newest > after.0);
        drop(tokio::time::timeout(Duration::from_millis(500), waited).await);
        self.check()?;
        let entries = self.entries.lock();
        let all = entries.1.iter().map(|(key, value)| (key.clone(), value.clone()));
        Ok(Changes { entries: all.collect(), through: Revision(entries.0), complete: false })
    }
}

/// A store in memory.
#[derive(Default)]
pub(crate) struct MemoryObjects {
    /// The objects, by key.
    pub(crate) all: Mutex<BTreeMap<String, Bytes>>,
    /// It does not answer.
    pub(crate) away: AtomicBool,
    /// The next segment that is stored has a bit flipped.
    pub(crate) damages: AtomicBool,
}

impl MemoryObjects {
    fn check(&self) -> Result<()> {
        match self.away.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Unavailable, "the store is away")),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Objects for MemoryObjects {
    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.check()?;
        let mut bytes = bytes.to_vec();
        if key.contains("/segments/") && self.damages.swap(false, Ordering::Relaxed) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        let mut all = self.all.lock();
        let there = all.entry(key.to_owned()).or_insert_with(|| bytes.clone().into());
        if there.len() != bytes.len() {
            let context = format!("object {key} is there, and another one");
            return Err(Error::new(ErrorKind::Corrupt, context));
        }
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.check()?;
        let found = self.all.lock().get(key).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no object {key}")))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        Ok(self.get(key).await?.slice(range.start as usize..range.end as usize))
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        self.check()?;
        Ok(self.all.lock().get(key).map(|bytes| bytes.len() as u64))
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.all.lock().remove(key);
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let all = self.all.lock();
        Ok(all.keys().filter(|key| key.starts_with(prefix)).cloned().collect())
    }
}

/// The network.
pub(crate) struct Net {
    services: Mutex<HashMap<HostId, Arc<Host>>>,
    /// One way.
    pub(crate) delay: Mutex<Duration>,
    /// Of a thousand forwarded requests, how many are executed and their answer is lost.
    pub(crate) answers_lost: AtomicU64,
    /// Flips a bit in pages that this host sends.
    pub(crate) corrupts: Mutex<Option<HostId>>,
    /// Who is asked for a checkpoint says that it has no end.
    pub(crate) endless_roots: AtomicBool,
    /// Who is asked for the log says that it is gone.
    pub(crate) forgets_log: AtomicBool,
    /// How often a checkpoint was asked for.
    pub(crate) roots_asked: AtomicU64,
    cut: watch::Sender<bool>,
    /// Pages asked for, by segment and page, and how often each was answered.
    pub(crate) pages: Mutex<BTreeMap<(String, u32), u32>>,
    /// Flushes that were sent.
    pub(crate) flushes: AtomicU64,
    /// Bytes of pages per second that all links together carry.
    pub(crate) rate: AtomicU64,
    /// When the links are free again.
    free: Mutex<Option<Instant>>,
    draw: AtomicU64,
}

impl Net {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            services: Mutex::default(),
            delay: Mutex::new(Duration::from_millis(1)),
            answers_lost: AtomicU64::new(0),
            corrupts: Mutex::new(None),
            endless_roots: AtomicBool::new(false),
            forgets_log: AtomicBool::new(false),
            roots_asked: AtomicU64::new(0),
            cut: watch::Sender::new(false),
            pages: Mutex::default(),
            flushes: AtomicU64::new(0),
            rate: AtomicU64::new(1 << 40),
            free: Mutex::new(None),
            draw: AtomicU64::new(1),
        })
    }

    /// Cuts every link, or mends them. What is under way is lost.
    pub(crate) fn set_cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    /// How long an answer of so many bytes takes, behind those before it.
    fn queued(&self, bytes: usize) -> Duration {
        let nanos = bytes as u64 * 1_000_000_000 / self.rate.load(Ordering::Relaxed);
        let now = Instant::now();
        let mut free = self.free.lock();
        let end = free.map_or(now, |free| free.max(now)) + Duration::from_nanos(nanos);
        *free = Some(end);
        end - now
    }

    fn chance(&self, of_thousand: u64) -> bool {
        let drawn = self.draw.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        (drawn ^ (drawn >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32 & 1023 < of_thousand
    }

    /// What a host answers that gives checkpoints without end, or has lost the log behind them.
    fn lie(&self, request: &Request) -> Option<(Response, Bytes)> {
        let asked = matches!(request, Request::Checkpoint { .. });
        self.roots_asked.fetch_add(asked.into(), Ordering::Relaxed);
        if matches!(request, Request::Log { .. }) && self.forgets_log.load(Ordering::Relaxed) {
            return Some((Response::LogGone, Bytes::new()));
        }
        if !self.endless_roots.load(Ordering::Relaxed) {
            return None;
        }
        match request {
            Request::Checkpoint { .. } => {
                let root = Response::Checkpoint { object: ObjectHash([0; 32]), bytes: u64::MAX };
                Some((root, Bytes::new()))
            }
            Request::Object { .. } => {
                Some((Response::Object { bytes: u64::MAX }, Bytes::from_static(&[0; 4096])))
            }
            _ => None,
        }
    }

    /// Pages that were sent more than once, and pages in all.
    pub(crate) fn repeated(&self) -> (usize, usize) {
        let pages = self.pages.lock();
        (pages.values().filter(|count| **count > 1).count(), pages.len())
    }

    fn note(&self, request: &Request, response: &Response) {
        let (Request::Pages { segment, .. }, Response::Pages { frames, .. }) = (request, response)
        else {
            return;
        };
        let mut pages = self.pages.lock();
        for frame in frames {
            for bit in (0..16).filter(|bit| (frame.data | frame.zero) & (1 << bit) != 0) {
                *pages.entry((segment.to_string(), frame.first.0 + bit)).or_default() += 1;
            }
        }
    }
}

struct Link {
    net: Arc<Net>,
    from: HostId,
}

#[async_trait]
impl Peers for Link {
    async fn call(
        &self,
        host: HostId,
        _class: Class,
        request: Request,
        payload: Bytes,
    ) -> Result<(Response, Bytes)> {
        let away = |why: &str| Error::new(ErrorKind::Unavailable, format!("host {host}: {why}"));
        let mut cut = self.net.cut.subscribe();
        let delay = *self.net.delay.lock();
        let exchange = async {
            tokio::time::sleep(delay).await;
            if let Some(lie) = self.net.lie(&request) {
                return Ok(lie);
            }
            let service = self.net.services.lock().get(&host).cloned();
            let service = service.ok_or_else(|| away("it is down"))?;
            let forwarded = matches!(request, Request::Forward { .. });
            let flushes = u64::from(matches!(request, Request::Flush { .. }));
            self.net.flushes.fetch_add(flushes, Ordering::Relaxed);
            let (response, mut payload) =
                service.serve(self.from, request.clone(), payload).await?;
            if matches!(response, Response::Pages { .. })
                && *self.net.corrupts.lock() == Some(host)
                && !payload.is_empty()
            {
                let mut bytes = payload.to_vec();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                payload = bytes.into();
            } else {
                self.net.note(&request, &response);
            }
            tokio::time::sleep(delay + self.net.queued(payload.len())).await;
            if forwarded && self.net.chance(self.net.answers_lost.load(Ordering::Relaxed)) {
                return Err(away("its answer was lost"));
            }
            Ok((response, payload))
        };
        tokio::select! {
            biased;
            () = async { drop(cut.wait_for(|cut| *cut).await) } => {
                tokio::time::sleep(delay).await;
                Err(away("the link is cut"))
            }
            done = exchange => done,
        }
    }

    fn learn(&self, _host: HostId, _address: &str) {}

    fn rtt(&self, _host: HostId) -> Option<Duration> {
        Some(2 * *self.net.delay.lock())
    }
}

/// Hosts of one cluster.
pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    pub(crate) registry: Arc<MemoryRegistry>,
    /// The network between them.
    pub(crate) net: Arc<Net>,
    stores: Mutex<HashMap<String, Arc<MemoryObjects>>>,
    /// Of the hosts that are started from now on.
    pub(crate) config: Mutex<LocalConfig>,
}

/// The volume that tests use.
pub(crate) const PATH: &str = "/vms/web/disk0";

impl Cluster {
    /// A cluster without hosts.
    pub(crate) fn new() -> Self {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        // Another test of this process may have set it up.
        log.try_init().ok();
        Self {
            dir: tempfile::tempdir().unwrap(),
            registry: MemoryRegistry::new(),
            net: Net::new(),
            stores: Mutex::default(),
            config: Mutex::default(),
        }
    }

    /// The store of a site.
    pub(crate) fn store(&self, site: &str) -> Arc<MemoryObjects> {
        self.stores.lock().entry(site.to_owned()).or_default().clone()
    }

    /// The directory of the host with this number.
    pub(crate) fn host_dir(&self, number: u64) -> std::path::PathBuf {
        self.dir.path().join(format!("host{number}"))
    }

    /// Starts the host with this number; its name and site are given.
    pub(crate) async fn start(&self, number: u64, site: &str) -> Arc<Host> {
        let dir = self.host_dir(number);
        std::fs::create_dir_all(dir.join("volumes")).unwrap();
        let id = HostId(number);
        let setup = Setup {
            dir,
            id,
            site: SiteName(site.to_owned()),
            key: HashKey([7; 32]),
            config: self.config.lock().clone(),
            registry: self.registry.clone(),
            objects: self.store(site),
            peers: Arc::new(Link { net: self.net.clone(), from: id }),
        };
        let host = Host::start(setup).await.unwrap();
        let record = HostRecord {
            id,
            name: format!("h{number}"),
            site: SiteName(site.to_owned()),
            address: String::new(),
        };
        host.directory().put_host(&record).await.unwrap();
        self.net.services.lock().insert(id, host.clone());
        host.recovered().await;
        host
    }

    /// Takes a host off the network and stops it.
    pub(crate) async fn stop(&self, host: Arc<Host>) {
        self.net.services.lock().remove(&host.id());
        host.stop().await.unwrap();
    }
}

/// The path of the tests' volume.
pub(crate) fn path() -> VolumePath {
    VolumePath::parse(PATH).unwrap()
}

/// Makes the tests' volume on a host.
pub(crate) async fn create(host: &Host, size_bytes: u64) {
    let new = NewVolume { path: path(), size_bytes, shared: false };
    host.create_volume(new).await.unwrap();
}

/// Moves the tests' volume, from any host of the cluster.
pub(crate) async fn move_to(host: &Host, site: &str) {
    let to = Destination { site: SiteName(site.to_owned()), host: None };
    host.move_volume(&path(), &to, SwitchAt::Once).await.unwrap();
}

/// Waits until `done`, and panics with `what` when that takes too long.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1200 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} did not happen within a minute");
}

/// Whether the registry has the proof that a site depends on no other, under its present owner.
pub(crate) fn independent(host: &Host, site: &str) -> bool {
    let Some(found) = host.directory().volume_at(&path()) else { return false };
    found.record.is_independent_at(&SiteName(site.to_owned()))
}

/// The host that owns the volume as registered.
pub(crate) fn owner(host: &Host) -> Option<HostId> {
    host.directory().volume_at(&path()).map(|found| found.record.owner)
}
