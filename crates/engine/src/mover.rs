//! The mover of a host: attachments of guests, forwarding, following, fetching, hydration and
//! proof.
//!
//! One [`Mover`] per host. The ownership driver tells it where each volume's requests go
//! ([`Mover::set_route`]) and who may write; it asks the driver through [`Ownership`]. Exports meet
//! it through [`Connection`], peers through [`Mover::serve`], local volumes through
//! [`crate::context::Fetch`].

pub(crate) mod frames;
pub mod limits;

use crate::attachment::{Connection, Gate, Route};
use crate::context::HostContext;
use crate::directory::Directory;
use crate::error::{Error, ErrorKind, Result};
use crate::fetch::Fetcher;
use crate::follow::Follower;
use crate::forward::Forwarder;
use crate::hydrate::Hydration;
use crate::message::{MoveProgress, Phase};
use crate::port::Peers;
use crate::serve::Changes;
use crate::volume::Volume;
use crate::volume::log::Position;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use pannier_core::ids::{Epoch, HostId, SessionId, VolumeId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What the mover asks of the ownership driver.
#[async_trait]
pub trait Ownership: Send + Sync + 'static {
    /// The volume's local side, whatever its state; `None` when this host has nothing of it.
    fn volume(&self, volume: VolumeId) -> Option<Arc<Volume>>;

    /// Takes note of a local side that following has made or made anew.
    fn opened(&self, volume: Arc<Volume>);

    /// The session that an attachment has open at this host, the owner.
    fn session(&self, volume: VolumeId, attachment: HostId) -> Option<SessionId>;

    /// Epoch of the last takeover of the volume that is known here.
    fn lineage(&self, volume: VolumeId) -> Epoch;

    /// Opens a session, which ends the attachment's former one; durable when it returns. `lineage`
    /// is the epoch of the last takeover that the attachment knew.
    ///
    /// # Errors
    /// `Fenced` when the session may not be opened: it is not larger than the former one, or its
    /// attachment is from before a takeover.
    /// `Unavailable` when this host is not (or no longer) the owner.
    async fn open_session(
        &self,
        volume: VolumeId,
        attachment: HostId,
        session: SessionId,
        lineage: Epoch,
    ) -> Result<()>;

    /// Ends a session and gives back the write right that its attachment holds.
    ///
    /// # Errors
    /// `Unavailable` when this host is not the owner.
    async fn close_session(
        &self,
        volume: VolumeId,
        attachment: HostId,
        session: SessionId,
    ) -> Result<()>;

    /// Asks for the write right; it is granted by [`Mover::right_held`] before or after this
    /// returns. Waits a bounded time while another attachment holds it.
    ///
    /// # Errors
    /// `Unavailable` when it cannot be had now; ask again.
    async fn ask_right(&self, volume: VolumeId, attachment: HostId) -> Result<()>;

    /// Gives back the write right of this host's attachment, whose last connection has ended.
    async fn release_right(&self, volume: VolumeId);
}

/// What the mover keeps of one volume.
pub(crate) struct Room {
    pub(crate) id: VolumeId,
    pub(crate) route: ArcSwap<Route>,
    /// Counts changes of the route and of the write right.
    pub(crate) changed: watch::Sender<u64>,
    /// The write gate of this host's own attachment.
    pub(crate) gate: Arc<Gate>,
    /// The write gates of all attachments that have written here, this host's included.
    gates: Mutex<BTreeMap<HostId, Arc<Gate>>>,
    /// Who may write; counts while the route is local.
    right: Mutex<Right>,
    /// The size as last seen, for when the volume is elsewhere.
    pub(crate) size_bytes: AtomicU64,
    pub(crate) connections: AtomicUsize,
    pub(crate) forwarder: Forwarder,
    pub(crate) changes: Arc<Changes>,
    /// The position that each follower has asked for last.
    pub(crate) followers: Mutex<BTreeMap<HostId, Position>>,
    follower: Mutex<Option<Follower>>,
    /// Followers, ended ones until nothing of them runs.
    pub(crate) follower_runs: TaskTracker,
    hydration: Mutex<Option<Hydration>>,
    pub(crate) progress: Mutex<MoveProgress>,
    /// Why the last round of hydration came to no end.
    pub(crate) hydration_failure: Mutex<Option<Error>>,
    pub(crate) demand_fetches: AtomicU64,
    pub(crate) wire_bytes: AtomicU64,
    pub(crate) resent_bytes: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Right {
    holder: Option<HostId>,
    shared: bool,
}

impl Room {
    fn new(id: VolumeId, host: HostId) -> Self {
        let gate = Arc::new(Gate::default());
        Self {
            id,
            route: ArcSwap::from_pointee(Route::Switching),
            changed: watch::Sender::new(0),
            gates: Mutex::new(BTreeMap::from([(host, gate.clone())])),
            gate,
            right: Mutex::new(Right::default()),
            size_bytes: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            forwarder: Forwarder::default(),
            changes: Arc::default(),
            followers: Mutex::default(),
            follower: Mutex::new(None),
            follower_runs: TaskTracker::new(),
            hydration: Mutex::new(None),
            progress: Mutex::new(MoveProgress::default()),
            hydration_failure: Mutex::default(),
            demand_fetches: AtomicU64::new(0),
            wire_bytes: AtomicU64::new(0),
            resent_bytes: AtomicU64::new(0),
        }
    }

    /// The write gate of an attachment, opened or closed as the right is now.
    pub(crate) fn gate_of(&self, attachment: HostId) -> Arc<Gate> {
        let mut gates = self.gates.lock();
        let right = *self.right.lock();
        gates
            .entry(attachment)
            .or_insert_with(|| {
                let gate = Gate::default();
                if right.shared || right.holder == Some(attachment) {
                    gate.open();
                }
                Arc::new(gate)
            })
            .clone()
    }

    /// The local side that follows the owner, once it has a map.
    pub(crate) fn followed(&self) -> Option<Arc<Volume>> {
        self.follower.lock().as_ref()?.reached().borrow().volume.clone()
    }

    /// Returns when requests are executed by this local volume no more.
    pub(crate) async fn left(&self, volume: &Arc<Volume>) {
        let mut changes = self.changed.subscribe();
        loop {
            let here = matches!(
                &**self.route.load(),
                Route::Local(local) if Arc::ptr_eq(local, volume)
            );
            if !here || changes.changed().await.is_err() {
                return;
            }
        }
    }

    pub(crate) fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

/// The mover of a host.
pub struct Mover {
    pub(crate) context: Arc<HostContext>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) closed: CancellationToken,
    ownership: OnceLock<Arc<dyn Ownership>>,
    rooms: Mutex<HashMap<VolumeId, Arc<Room>>>,
}

impl Mover {
    /// The mover of the host whose context this is; connects itself as what fetches. Runs inside a
    /// tokio runtime.
    #[must_use]
    pub fn new(
        context: Arc<HostContext>,
        directory: Arc<Directory>,
        peers: Arc<dyn Peers>,
    ) -> Arc<Self> {
        let mover = Arc::new_cyclic(|mover| Self {
            context,
            directory,
            peers,
            fetcher: Arc::new(Fetcher::new(mover.clone())),
            closed: CancellationToken::new(),
            ownership: OnceLock::new(),
            rooms: Mutex::new(HashMap::new()),
        });
        mover.context.set_fetch(mover.fetcher.clone());
        mover
    }

    /// Connects the ownership driver; once, before anything is attached or served.
    pub fn set_ownership(&self, ownership: Arc<dyn Ownership>) {
        assert!(self.ownership.set(ownership).is_ok(), "the ownership driver is set once");
    }

    /// This host.
    #[must_use]
    pub fn host(&self) -> HostId {
        self.context.host
    }

    /// A new connection of a guest to a volume. All connections to one volume on this host are one
    /// attachment. `size_bytes` is the registered size, used until the owner's is known.
    #[must_use]
    pub fn connect(self: &Arc<Self>, volume: VolumeId, size_bytes: u64) -> Connection {
        let room = self.room(volume);
        room.size_bytes.fetch_max(size_bytes, Ordering::Relaxed);
        Connection::new(self.clone(), room)
    }

    /// Guests' connections to a volume on this host.
    #[must_use]
    pub fn connections(&self, volume: VolumeId) -> usize {
        self.known(volume).map_or(0, |room| room.connections.load(Ordering::Relaxed))
    }

    /// Tells where a volume's requests go from now on. A local route also starts what makes this
    /// site independent of others ([`crate::hydrate`]); any other ends it.
    pub fn set_route(self: &Arc<Self>, volume: VolumeId, route: Route) {
        let room = self.room(volume);
        let local = match &route {
            Route::Local(volume) => Some(volume.clone()),
            Route::Forward(_) | Route::Switching | Route::Ended(_) => None,
        };
        if let Some(local) = &local {
            room.size_bytes.store(local.size_bytes(), Ordering::Relaxed);
        }
        room.forwarder.route_changed();
        room.route.store(Arc::new(route));
        room.tell();
        let hydration = local.map(|local| Hydration::start(self.clone(), room.clone(), local));
        let former = std::mem::replace(&mut *room.hydration.lock(), hydration);
        drop(former);
    }

    /// Tells who holds the write right at this host, the owner; with `shared` everybody does.
    /// The former holder's right was withdrawn before ([`Mover::withdraw_right`]).
    pub fn right_held(&self, volume: VolumeId, holder: Option<HostId>, shared: bool) {
        let room = self.room(volume);
        let gates = room.gates.lock();
        *room.right.lock() = Right { holder, shared };
        for (attachment, gate) in gates.iter() {
            if shared || holder == Some(*attachment) {
                gate.open();
            } else {
                gate.shut();
            }
        }
        drop(gates);
        room.tell();
    }

    /// Lets an attachment's admitted writes finish and admits no more of them; returns when that is
    /// so.
    pub async fn withdraw_right(&self, volume: VolumeId, attachment: HostId) {
        let gate = {
            let room = self.room(volume);
            let mut right = room.right.lock();
            if right.holder == Some(attachment) {
                right.holder = None;
            }
            drop(right);
            room.gate_of(attachment)
        };
        gate.shut();
        gate.idle().await;
        // Whoever writes next may flush before it has written anything, and that flush is to cover
        // what the former holder wrote.
        let route = self.room(volume).route.load_full();
        if let Route::Local(local) = &*route
            && let Err(error) = local.flush().await
        {
            tracing::warn!(%volume, %error, "the writes of the former holder are not durable yet");
        }
    }

    /// The position from which a follower has asked for the log last: it has everything before.
    #[must_use]
    pub fn followed_to(&self, volume: VolumeId, follower: HostId) -> Option<Position> {
        self.known(volume)?.followers.lock().get(&follower).copied()
    }

    /// Tells that a newer session of the same attachment has ended this one: it executes nothing
    /// more here. The attachment itself goes on, under the newer session.
    pub fn session_ended(&self, volume: VolumeId, session: SessionId) {
        let changes = self.room(volume).changes.clone();
        changes.forget(session);
        let Ok(local) = self.local(volume) else { return };
        // Detached: what it has applied stays known until nothing of it runs.
        drop(tokio::spawn(async move {
            changes.end(session).await;
            local.end_session(session);
        }));
    }

    /// Begins to follow a volume's owner, or goes on with another.
    pub fn follow(self: &Arc<Self>, volume: VolumeId, from: HostId) {
        let room = self.room(volume);
        let mut follower = room.follower.lock();
        if follower.as_ref().is_some_and(|follower| follower.from() == from) {
            return;
        }
        *follower = Some(Follower::start(self.clone(), room.clone(), from));
    }

    /// Follows no more; when it returns nothing of it runs, save a batch of the log that is being
    /// applied.
    pub(crate) async fn end_following(&self, volume: VolumeId) {
        let Some(room) = self.known(volume) else { return };
        drop(room.follower.lock().take());
        room.follower_runs.close();
        room.follower_runs.wait().await;
        room.follower_runs.reopen();
    }

    /// Follows no more.
    pub fn unfollow(&self, volume: VolumeId) {
        if let Some(room) = self.known(volume) {
            drop(room.follower.lock().take());
        }
    }

    /// Brings the local side up to a position that `from` has, as long as that takes, and returns
    /// it.
    ///
    /// # Errors
    /// `Closed` when the host shuts down or following ends.
    ///
    /// # Cancel safety
    /// Following goes on when the future is dropped.
    pub async fn catch_up(
        self: &Arc<Self>,
        volume: VolumeId,
        from: HostId,
        position: Position,
    ) -> Result<Arc<Volume>> {
        self.follow(volume, from);
        let mut reached = {
            let room = self.room(volume);
            let follower = room.follower.lock();
            follower.as_ref().map(Follower::reached).ok_or_else(|| self.closing("following"))?
        };
        loop {
            let now = reached.borrow_and_update().volume.clone();
            if let Some(local) = now
                && (local.position() == position || position.is_behind(&local.position()))
            {
                return Ok(local);
            }
            reached.changed().await.map_err(|_ended| self.closing("following"))?;
        }
    }

    /// Returns when following has once reached the end of the owner's sealed log.
    ///
    /// # Errors
    /// `Closed` when following ends.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn caught_up(&self, volume: VolumeId) -> Result<Arc<Volume>> {
        let reached = {
            let room = self.room(volume);
            let follower = room.follower.lock();
            follower.as_ref().map(Follower::reached)
        };
        let mut reached = reached.ok_or_else(|| self.closing("following"))?;
        loop {
            let now = reached.borrow_and_update().clone();
            if let Some(local) = now.volume.filter(|_| now.caught_up) {
                return Ok(local);
            }
            reached.changed().await.map_err(|_ended| self.closing("following"))?;
        }
    }

    /// Why the move of a volume to this host does not get on, after the switch.
    #[must_use]
    pub fn obstacle(&self, volume: VolumeId) -> Option<String> {
        let room = self.known(volume)?;
        if room.progress.lock().phase == Phase::Hydrating && self.fetcher.full_until().is_some() {
            let name = self.directory.host_name(self.host());
            return Some(format!(
                "room on the disk of host {name}, which is full: make room there, lower its \
                 `cache.size`, or move the volume on"
            ));
        }
        room.hydration_failure.lock().as_ref().map(ToString::to_string)
    }

    /// How far the move of a volume to this host is.
    #[must_use]
    pub fn progress(&self, volume: VolumeId) -> MoveProgress {
        let Some(room) = self.known(volume) else { return MoveProgress::default() };
        let mut progress = *room.progress.lock();
        if let Some(follower) = &*room.follower.lock()
            && progress.phase < Phase::Hydrating
        {
            progress.phase = Phase::Following;
            progress.lag_bytes = follower.lag_bytes();
        }
        progress.wire_bytes = room.wire_bytes.load(Ordering::Relaxed);
        progress.resent_bytes = room.resent_bytes.load(Ordering::Relaxed);
        progress.demand_fetches = room.demand_fetches.load(Ordering::Relaxed);
        progress
    }

    /// Forgets a volume that was deleted; its guests get `Closed`.
    pub fn forget(&self, volume: VolumeId) {
        let Some(room) = self.rooms.lock().remove(&volume) else { return };
        let cause = format!("volume {volume} was deleted");
        room.route.store(Arc::new(Route::Ended(Error::new(ErrorKind::Closed, cause))));
        room.tell();
        drop(room.follower.lock().take());
        drop(room.hydration.lock().take());
    }

    /// Ends all work; what waits gets `Closed`.
    pub fn close(&self) {
        self.closed.cancel();
        for room in self.rooms.lock().values() {
            drop(room.follower.lock().take());
            drop(room.hydration.lock().take());
            room.tell();
        }
    }

    pub(crate) fn ownership(&self) -> Result<&Arc<dyn Ownership>> {
        self.ownership.get().ok_or_else(|| self.closing("the ownership driver"))
    }

    pub(crate) fn room(&self, volume: VolumeId) -> Arc<Room> {
        let host = self.host();
        let mut rooms = self.rooms.lock();
        rooms.entry(volume).or_insert_with(|| Arc::new(Room::new(volume, host))).clone()
    }

    pub(crate) fn known(&self, volume: VolumeId) -> Option<Arc<Room>> {
        self.rooms.lock().get(&volume).cloned()
    }

    pub(crate) fn closing(&self, what: &str) -> Error {
        Error::new(ErrorKind::Closed, format!("{what} on host {} has ended", self.host()))
    }
}
