//! Hosts with drivers that are real, over a registry, a network, disks and volumes that are not.
//!
//! # Fault model
//! A host dies at its `n`th effect: from then on whatever its driver waits for never comes, and its
//! volume appends no more. What was persisted or appended before stays. Calls between hosts are
//! delayed, and lost with a given chance, before or after they were taken.

use crate::directory::Directory;
use crate::directory::tests::Memory;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Request, Response};
use crate::ownership::{Hands, Owners, Part, View};
use crate::port::{Class, Peers};
use async_trait::async_trait;
use bytes::Bytes;
use pannier_core::ids::{Epoch, HostId, Incarnation, SessionId, VolumeId};
use pannier_core::record::{VolumePath, VolumeRecord};
use pannier_core::volume::Position;
use pannier_core::volume::ownership::{BootId, LocalState, Route};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub(super) const VOLUME: VolumeId = VolumeId(7);
pub(super) const A: HostId = HostId(1);
pub(super) const B: HostId = HostId(2);

/// What a host's death leaves.
#[derive(Default)]
struct Disk {
    state: Option<Vec<u8>>,
    log: Vec<u64>,
    /// The volume's files are gone.
    lost: bool,
    /// How often a start was tried.
    starts: u32,
}

/// The network between the hosts, and the seed of its faults.
pub(super) struct Network {
    hosts: Mutex<HashMap<HostId, Arc<Owners>>>,
    bodies: Mutex<HashMap<HostId, Arc<Body>>>,
    /// Calls lost of 256, and the state of a linear congruential generator.
    faults: Mutex<(u8, u64)>,
}

impl Network {
    fn draw(&self) -> (bool, bool, u64) {
        let mut faults = self.faults.lock();
        let mut next = || {
            faults.1 = faults.1.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            faults.1 >> 33
        };
        let (before, after, delay) = (next() % 256, next() % 256, next() % 40);
        let lost = u64::from(faults.0);
        (before < lost, after < lost, delay)
    }
}

struct Link {
    me: HostId,
    network: Arc<Network>,
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
        let (before, after, delay) = self.network.draw();
        tokio::time::sleep(Duration::from_millis(delay)).await;
        let lost = || Error::new(ErrorKind::Unavailable, "lost");
        let target = self.network.hosts.lock().get(&host).cloned();
        let body = self.network.bodies.lock().get(&host).cloned();
        let alive = body.is_some_and(|body| !body.dead.is_cancelled());
        match (request, target) {
            (Request::Ownership { volume, message }, Some(target)) if !before && alive => {
                target.peer(self.me, volume, &message, payload).await?;
            }
            _ => return Err(lost()),
        }
        if after { Err(lost()) } else { Ok((Response::Pong, Bytes::new())) }
    }

    fn learn(&self, _host: HostId, _address: &str) {}

    fn rtt(&self, _host: HostId) -> Option<Duration> {
        None
    }
}

/// A host's hands: one life of a daemon.
pub(super) struct Body {
    me: HostId,
    disk: Arc<Mutex<Disk>>,
    network: Arc<Network>,
    /// Effects until it dies.
    fuse: Mutex<Option<u32>>,
    pub(super) dead: CancellationToken,
    appending: Mutex<bool>,
    route: Mutex<Route>,
    pub(super) holder: Mutex<Option<HostId>>,
}

impl Body {
    /// A point where the host can die.
    async fn point(&self) {
        let dies = {
            let mut fuse = self.fuse.lock();
            match fuse.as_mut() {
                Some(0) => true,
                Some(left) => {
                    *left -= 1;
                    false
                }
                None => false,
            }
        };
        if dies {
            *self.appending.lock() = false;
            self.dead.cancel();
        }
        if self.dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }

    /// A guest's write, if it is executed here.
    pub(super) fn append(&self, value: u64) -> bool {
        let appending = self.appending.lock();
        let here = matches!(*self.route.lock(), Route::Here { .. });
        let executes = *appending && here && !self.dead.is_cancelled();
        if executes {
            self.disk.lock().log.push(value);
        }
        executes
    }

    pub(super) fn log(&self) -> Vec<u64> {
        self.disk.lock().log.clone()
    }

    fn end(&self) -> Position {
        let log = &self.disk.lock().log;
        let chain_crc =
            log.iter().fold(1_u32, |crc, value| crc.wrapping_mul(31).wrapping_add(*value as u32));
        Position { segment: None, entries: log.len() as u32, chain_crc }
    }

    fn take_log(&self, log: Vec<u64>, position: Position) -> Result<()> {
        self.disk.lock().log = log;
        if self.end() == position {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unavailable, "the log is not there yet"))
    }
}

#[async_trait]
impl Hands for Body {
    fn load(&self, _volume: VolumeId) -> Result<Option<LocalState>> {
        let bytes = self.disk.lock().state.clone();
        Ok(bytes.map(|bytes| LocalState::decode(&bytes).unwrap()))
    }

    async fn persist(&self, state: LocalState) -> Result<()> {
        self.point().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.disk.lock().state = Some(state.encode());
        self.point().await;
        Ok(())
    }

    async fn start(
        &self,
        _volume: VolumeId,
        _epoch: Epoch,
        _incarnation: Incarnation,
        at: Option<Position>,
        _sessions: BTreeSet<SessionId>,
    ) -> Result<()> {
        self.point().await;
        let files = {
            let mut disk = self.disk.lock();
            disk.starts += 1;
            !disk.lost
        };
        if !files {
            return Err(Error::new(ErrorKind::NotFound, "nothing is here"));
        }
        assert!(at.is_none_or(|at| at == Position::START || at == self.end()));
        for (host, body) in self.network.bodies.lock().iter() {
            let writes = *host != self.me && *body.appending.lock();
            assert!(!writes, "host {host} appends while {} starts", self.me);
        }
        *self.appending.lock() = true;
        self.point().await;
        Ok(())
    }

    async fn stop(&self, _volume: VolumeId) -> Result<(Position, u64)> {
        self.point().await;
        *self.appending.lock() = false;
        tokio::time::sleep(Duration::from_millis(2)).await;
        self.point().await;
        Ok((self.end(), 4096))
    }

    async fn tail(&self, _volume: VolumeId, _to: HostId) -> Bytes {
        self.point().await;
        Bytes::from(postcard::to_stdvec(&self.disk.lock().log).unwrap())
    }

    async fn catch_up(
        &self,
        _volume: VolumeId,
        from: HostId,
        position: Position,
        tail: Bytes,
    ) -> Result<()> {
        self.point().await;
        if let Ok(log) = postcard::from_bytes::<Vec<u64>>(&tail) {
            return self.take_log(log, position);
        }
        let source = self.network.bodies.lock().get(&from).cloned();
        match source.filter(|source| !source.dead.is_cancelled()) {
            Some(source) => self.take_log(source.log(), position),
            None => Err(Error::new(ErrorKind::Unavailable, "its source is away")),
        }
    }

    async fn position(&self, _volume: VolumeId) -> Result<Position> {
        Ok(self.end())
    }

    async fn end_following(&self, _volume: VolumeId) -> Result<Position> {
        self.point().await;
        Ok(self.end())
    }

    fn follow(&self, _volume: VolumeId, _from: HostId) {}

    fn unfollow(&self, _volume: VolumeId) {}

    async fn caught_up(&self, _volume: VolumeId) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    fn route(&self, _volume: VolumeId, route: Route) {
        *self.route.lock() = route;
    }

    fn right_held(&self, _volume: VolumeId, holder: Option<HostId>, _shared: bool) {
        *self.holder.lock() = holder;
    }

    async fn withdraw_right(&self, _volume: VolumeId, _attachment: HostId) {
        self.point().await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }

    fn session_ended(&self, _volume: VolumeId, _session: SessionId) {}

    async fn set_tail_aside(
        &self,
        _volume: VolumeId,
        _ended: Epoch,
        end: Option<Position>,
    ) -> Result<()> {
        let keep = end.map_or(0, |end| end.entries) as usize;
        self.disk.lock().log.truncate(keep);
        Ok(())
    }
}

/// Two hosts and their registry.
pub(super) struct World {
    pub(super) registry: Arc<Memory>,
    pub(super) network: Arc<Network>,
    directories: HashMap<HostId, Arc<Directory>>,
    disks: HashMap<HostId, Arc<Mutex<Disk>>>,
    boots: HashMap<HostId, u128>,
    dirs: HashMap<HostId, tempfile::TempDir>,
    watching: CancellationToken,
    _stop: tokio_util::sync::DropGuard,
}

impl World {
    /// Hosts A and B; A owns the volume. `lost`: calls lost of 256.
    pub(super) async fn new(lost: u8, seed: u64) -> Self {
        let registry = Arc::new(Memory::default());
        let stop = CancellationToken::new();
        let network = Arc::new(Network {
            hosts: Mutex::new(HashMap::new()),
            bodies: Mutex::new(HashMap::new()),
            faults: Mutex::new((lost, seed)),
        });
        let (mut dirs, mut directories, mut disks) =
            (HashMap::new(), HashMap::new(), HashMap::new());
        for host in [A, B] {
            let dir = tempfile::tempdir().unwrap();
            let directory = Arc::new(Directory::open(dir.path(), registry.clone(), "boot"));
            dirs.insert(host, dir);
            directories.insert(host, directory);
            disks.insert(host, Arc::default());
        }
        let boots = HashMap::from([(A, 1), (B, 1)]);
        // An empty registry answers at once, always: it is watched once it has the volume.
        let watching = stop.clone();
        let _stop = stop.drop_guard();
        let world = Self { registry, network, directories, disks, boots, dirs, watching, _stop };
        world.start(A, None);
        world.start(B, None);
        world.owners(A).create(VOLUME).await.unwrap();
        world.directory(A).create_volume(&record()).await.unwrap();
        for host in [A, B] {
            tokio::spawn(world.directory(host).clone().watch(world.watching.clone()));
        }
        world.until(A, |view| view.part == Part::Owner).await;
        world
    }

    pub(super) fn directory(&self, host: HostId) -> &Arc<Directory> {
        &self.directories[&host]
    }

    pub(super) fn owners(&self, host: HostId) -> Arc<Owners> {
        self.network.hosts.lock()[&host].clone()
    }

    pub(super) fn body(&self, host: HostId) -> Arc<Body> {
        self.network.bodies.lock()[&host].clone()
    }

    /// Starts a host's daemon, which dies at its `fuse`th effect.
    pub(super) fn start(&self, host: HostId, fuse: Option<u32>) {
        let body = Arc::new(Body {
            me: host,
            disk: self.disks[&host].clone(),
            network: self.network.clone(),
            fuse: Mutex::new(fuse),
            dead: CancellationToken::new(),
            appending: Mutex::new(false),
            route: Mutex::new(Route::Wait),
            holder: Mutex::new(None),
        });
        let peers = Arc::new(Link { me: host, network: self.network.clone() });
        let directory = self.directory(host).clone();
        let boot = BootId(self.boots[&host]);
        self.network.bodies.lock().insert(host, body.clone());
        let owners = Owners::new(host, boot, body, directory, peers);
        self.network.hosts.lock().insert(host, owners);
    }

    /// Lets a running host die at its `fuse`th effect from now.
    pub(super) fn light(&self, host: HostId, fuse: u32) {
        *self.body(host).fuse.lock() = Some(fuse);
    }

    /// Takes a volume's files away, all but its state, or brings them back.
    pub(super) fn lose(&self, host: HostId, lost: bool) {
        self.disks[&host].lock().lost = lost;
    }

    /// Takes the state away.
    pub(super) fn lose_state(&self, host: HostId) {
        self.disks[&host].lock().state = None;
    }

    /// How often the volume's start was tried on a host.
    pub(super) fn starts(&self, host: HostId) -> u32 {
        self.disks[&host].lock().starts
    }

    /// Ends a host's daemon at once, as `kill -9` does.
    pub(super) async fn kill(&self, host: HostId) {
        let body = self.body(host);
        *body.appending.lock() = false;
        body.dead.cancel();
        let owners = self.owners(host);
        owners.close_all().await;
    }

    /// Starts dead hosts again.
    pub(super) async fn revive(&self) {
        for host in [A, B] {
            if self.body(host).dead.is_cancelled() {
                self.owners(host).close_all().await;
                self.start(host, None);
                self.owners(host).open(VOLUME).unwrap();
            }
        }
    }

    /// Another boot of a host: what its directory has read before does not count.
    pub(super) fn reboot(&mut self, host: HostId) {
        let boot = self.boots.get_mut(&host).unwrap();
        *boot += 1;
        let (dir, registry) = (self.dirs[&host].path(), self.registry.clone());
        let directory = Arc::new(Directory::open(dir, registry, &format!("boot {boot}")));
        tokio::spawn(directory.clone().watch(self.watching.clone()));
        self.directories.insert(host, directory);
    }

    pub(super) fn view(&self, host: HostId) -> View {
        self.owners(host).view(VOLUME).unwrap_or_default()
    }

    /// Waits until a host's view is so, and revives what dies meanwhile.
    pub(super) async fn until(&self, host: HostId, holds: impl Fn(&View) -> bool) {
        for _ in 0..5_000 {
            self.revive().await;
            if holds(&self.view(host)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it did not come to hold: {:?} and {:?}", self.view(A), self.view(B));
    }

    /// Waits until the registry has the owner, and no transit.
    pub(super) async fn settled(&self, owner: HostId) -> VolumeRecord {
        for _ in 0..5_000 {
            self.revive().await;
            if let Ok(found) = self.directory(A).fresh_volume(VOLUME).await
                && found.record.owner == owner
                && found.record.transit.is_none()
            {
                return found.record;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the registry does not name {owner}: {:?} and {:?}", self.view(A), self.view(B));
    }
}

fn record() -> VolumeRecord {
    VolumeRecord::new(VOLUME, VolumePath::parse("/v").unwrap(), 4096, A)
}
