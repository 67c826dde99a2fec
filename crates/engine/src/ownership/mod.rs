//! The ownership driver: one task per volume that owns the machine of
//! [`pannier_core::volume::ownership`] and executes its effects against the registry, the peers,
//! the local volume, the guests' routes and the state file.
//!
//! The critical path of a handover is one message (GRANT, with the log's tail as its payload) and
//! one durable write on each side. The giver's drain waits for its own disk only, never for the
//! network.

mod driver;
mod effects;
mod hands;
mod view;

pub use hands::Hands;
pub use view::{Part, View};

use crate::directory::{Directory, News};
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::port::Peers;
use bytes::Bytes;
use driver::{Driver, Input, Tools};
use pannier_core::ids::{Epoch, HostId, SessionId, VolumeId};
use pannier_core::volume::ownership::transaction::Plan;
use pannier_core::volume::ownership::{BootId, Command, Event, LocalState, Machine, Outcome};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Handle {
    inputs: mpsc::Sender<Input>,
    news: Arc<Notify>,
    view: watch::Receiver<View>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// The ownership of all volumes of a host.
pub struct Owners {
    me: HostId,
    boot: BootId,
    hands: Arc<dyn Hands>,
    directory: Arc<Directory>,
    peers: Arc<dyn Peers>,
    drivers: Mutex<HashMap<VolumeId, Handle>>,
    stop: CancellationToken,
}

impl Owners {
    /// The ownership of host `me` in boot `boot`. Runs inside a tokio runtime; volumes are added by
    /// [`Owners::open`], [`Owners::create`], or when the registry or a peer says that this host has
    /// a part in them.
    #[must_use]
    pub fn new(
        me: HostId,
        boot: BootId,
        hands: Arc<dyn Hands>,
        directory: Arc<Directory>,
        peers: Arc<dyn Peers>,
    ) -> Arc<Self> {
        let owners = Arc::new(Self {
            me,
            boot,
            hands,
            directory,
            peers,
            drivers: Mutex::new(HashMap::new()),
            stop: CancellationToken::new(),
        });
        tokio::spawn(watch_directory(owners.clone(), owners.directory.subscribe()));
        owners
    }

    /// Opens a volume with the state found on disk, or as a host that has no part in it. Opened
    /// already, nothing happens.
    ///
    /// # Errors
    /// `Corrupt` when the state file is damaged: the host must not act on the volume.
    pub fn open(&self, volume: VolumeId) -> Result<()> {
        let mut drivers = self.drivers.lock();
        if drivers.contains_key(&volume) || self.stop.is_cancelled() {
            return Ok(());
        }
        let found = self.hands.load(volume)?;
        let handle = self.start(volume, found);
        drivers.insert(volume, handle);
        Ok(())
    }

    /// Prepares a new, empty volume, whose local side exists: this host becomes its owner when the
    /// registry says so. To be called before the record is created.
    ///
    /// # Errors
    /// `NoSpace`, `Unavailable` when the state cannot be written, `Invalid` when the volume is
    /// open.
    pub async fn create(&self, volume: VolumeId) -> Result<()> {
        let state = LocalState::creating(volume, self.boot);
        self.hands.persist(state.clone()).await?;
        let mut drivers = self.drivers.lock();
        if drivers.contains_key(&volume) {
            let context = format!("volume {volume} is open already and cannot be created");
            return Err(Error::new(ErrorKind::Invalid, context));
        }
        let handle = self.start(volume, Some(state));
        drivers.insert(volume, handle);
        Ok(())
    }

    fn start(&self, volume: VolumeId, found: Option<LocalState>) -> Handle {
        let machine = Machine::open(self.me, self.boot, volume, found);
        let (inputs, receiver) = mpsc::channel(limits::OWNERSHIP_QUEUE);
        let news = Arc::new(Notify::new());
        let (sender, view) = watch::channel(View::of(&machine, self.me));
        let tools = Arc::new(Tools {
            me: self.me,
            volume,
            hands: self.hands.clone(),
            directory: self.directory.clone(),
            peers: self.peers.clone(),
        });
        let stop = self.stop.child_token();
        let driver = Driver::new(tools, machine, (receiver, news.clone()), sender);
        let task = tokio::spawn(driver.run(stop.clone()));
        Handle { inputs, news, view, stop, task }
    }

    /// Ends a volume's driver, as when the volume is deleted.
    pub async fn close(&self, volume: VolumeId) {
        let handle = self.drivers.lock().remove(&volume);
        if let Some(handle) = handle {
            handle.stop.cancel();
            // A driver that panicked has ended as well.
            drop(handle.task.await);
        }
    }

    /// Ends all drivers, at the daemon's end. Every volume keeps its state.
    pub async fn close_all(&self) {
        self.stop.cancel();
        let handles: Vec<Handle> = self.drivers.lock().drain().map(|(_, handle)| handle).collect();
        for handle in handles {
            drop(handle.task.await);
        }
    }

    /// What this host is to a volume; `None` when it is not open here.
    #[must_use]
    pub fn view(&self, volume: VolumeId) -> Option<View> {
        self.drivers.lock().get(&volume).map(|handle| handle.view.borrow().clone())
    }

    /// The views of an open volume as they change.
    #[must_use]
    pub fn watch(&self, volume: VolumeId) -> Option<watch::Receiver<View>> {
        self.drivers.lock().get(&volume).map(|handle| handle.view.clone())
    }

    /// The session that an attachment has open here, while this host is the owner.
    #[must_use]
    pub fn session_of(&self, volume: VolumeId, attachment: HostId) -> Option<SessionId> {
        let drivers = self.drivers.lock();
        let view = drivers.get(&volume)?.view.borrow();
        view.sessions.get(&attachment).copied()
    }

    fn inputs(&self, volume: VolumeId) -> Result<mpsc::Sender<Input>> {
        self.open(volume)?;
        let drivers = self.drivers.lock();
        drivers.get(&volume).map(|handle| handle.inputs.clone()).ok_or_else(|| closing(volume))
    }

    /// Takes a message of another host's driver; `payload` is what came with it. It may be dropped
    /// when too many wait: whatever matters is repeated.
    ///
    /// # Errors
    /// `Invalid` when it is not a message, `NotFound` when there is no such volume, `Unavailable`
    /// while the registry is away and nothing is known of one here, `Corrupt` when the volume's
    /// state is damaged, `Closed`.
    pub async fn peer(
        &self,
        from: HostId,
        volume: VolumeId,
        message: &[u8],
        payload: Bytes,
    ) -> Result<()> {
        let message = effects::decode(message)?;
        // A driver stays: none is made on a peer's word alone.
        if self.watch(volume).is_none() {
            self.directory.check_exists(volume).await?;
        }
        let input = Input::Peer { from, message, payload };
        if let Err(error) = self.inputs(volume)?.try_send(input) {
            tracing::debug!(%volume, %error, "an ownership message is dropped");
        }
        Ok(())
    }

    async fn ask<T>(
        &self,
        volume: VolumeId,
        input: impl FnOnce(oneshot::Sender<Result<T>>) -> Input,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.tell(volume, input(reply)).await?;
        match answer.await {
            Ok(answer) => answer,
            Err(_ended) => Err(closing(volume)),
        }
    }

    async fn tell(&self, volume: VolumeId, input: Input) -> Result<()> {
        let inputs = self.inputs(volume)?;
        match inputs.send(input).await {
            Ok(()) => Ok(()),
            Err(_ended) => Err(closing(volume)),
        }
    }

    async fn command(&self, volume: VolumeId, command: Command) -> Result<Outcome> {
        let outcome = self.ask(volume, |reply| Input::Command { command, reply }).await?;
        match outcome {
            Outcome::Refused(refusal) => {
                let context = format!("volume {volume}: {refusal}");
                Err(Error::new(ErrorKind::Invalid, context).with_source(refusal))
            }
            Outcome::RegistryAway => {
                let context = format!(
                    "volume {volume}: the registry is away, and this needs it; start what keeps \
                     it, or mend the link to it, and repeat the command"
                );
                Err(Error::new(ErrorKind::Unavailable, context))
            }
            Outcome::Prepared { .. }
            | Outcome::Switched { .. }
            | Outcome::Aborted { .. }
            | Outcome::Owner { .. }
            | Outcome::Fenced { .. } => Ok(outcome),
        }
    }

    /// Registers a transit from this host, the owner, and returns once it is known here. Any host
    /// can register one through the directory instead.
    ///
    /// # Errors
    /// `Invalid` when this host is not the owner or a transit is under way, `Unavailable` while the
    /// registry is away.
    pub async fn prepare(&self, volume: VolumeId, to: HostId, plan: Plan) -> Result<Outcome> {
        self.command(volume, Command::Prepare { to, plan }).await
    }

    /// Hands over now; returns when the taker has answered.
    ///
    /// # Errors
    /// `Invalid` when this host is not a giver.
    pub async fn switch(&self, volume: VolumeId) -> Result<Outcome> {
        self.command(volume, Command::Switch).await
    }

    /// Ends a transit before the handover; returns when that is durable here.
    ///
    /// # Errors
    /// `Invalid` when this host is not its giver, or has handed over already.
    pub async fn abort(&self, volume: VolumeId) -> Result<Outcome> {
        self.command(volume, Command::Abort).await
    }

    /// Makes this host the owner without a GRANT. `fenced`: hosts that are out for certain.
    ///
    /// # Errors
    /// `Invalid` when a host that may own the volume is not named, or this host owns it;
    /// `Unavailable` while the registry is away (the claim goes on).
    pub async fn take_over(&self, volume: VolumeId, fenced: BTreeSet<HostId>) -> Result<Outcome> {
        // Of a host that has nothing of it nothing is asked.
        self.hands.position(volume).await?;
        self.command(volume, Command::Takeover { fenced }).await
    }

    /// Opens an attachment's session here, at the owner; durable when it returns. `lineage` is the
    /// epoch of the last takeover known when the guest was attached.
    ///
    /// # Errors
    /// `Fenced` when the session is not larger than the attachment's last, or the attachment was
    /// made before a takeover; `Unavailable` when this
    /// host does not serve the volume now.
    pub async fn open_session(
        &self,
        volume: VolumeId,
        attachment: HostId,
        session: SessionId,
        lineage: Epoch,
    ) -> Result<()> {
        let open = |reply| Input::OpenSession { attachment, session, lineage, reply };
        self.ask(volume, open).await
    }

    /// Ends an attachment's session, and frees the write right that it holds.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn close_session(
        &self,
        volume: VolumeId,
        attachment: HostId,
        session: SessionId,
    ) -> Result<()> {
        self.tell(volume, Input::Event(Event::CloseSession { attachment, session })).await
    }

    /// Asks for the write right and waits a bounded time for it.
    ///
    /// # Errors
    /// `Unavailable` when another attachment keeps it, or this host does not serve the volume now.
    pub async fn ask_right(&self, volume: VolumeId, attachment: HostId) -> Result<()> {
        let ask = self.ask(volume, |reply| Input::AskRight { attachment, reply });
        match tokio::time::timeout(limits::OWNERSHIP_RIGHT_WAIT, ask).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                let context =
                    format!("another attachment of volume {volume} holds the write right");
                Err(Error::new(ErrorKind::Unavailable, context))
            }
        }
    }

    /// Frees the write right that an attachment holds. Its admitted writes were let finish before
    /// ([`crate::mover::Mover::withdraw_right`]), or it has no guest any more.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn release_right(&self, volume: VolumeId, attachment: HostId) -> Result<()> {
        self.tell(volume, Input::Event(Event::ReleaseRight { attachment })).await
    }

    /// The directory has news of a volume: its driver looks; a volume in which this host has got a
    /// part is opened.
    fn news(&self, volume: VolumeId) {
        let found = self.directory.volume(volume);
        let part = found.is_some_and(|found| {
            let taker = found.record.transit.as_ref().is_some_and(|t| t.to == self.me);
            taker || found.record.owner == self.me
        });
        if part && let Err(error) = self.open(volume) {
            tracing::error!(%volume, %error, "the volume cannot be opened");
        }
        if let Some(handle) = self.drivers.lock().get(&volume) {
            handle.news.notify_one();
        }
    }

    fn news_of_all(&self) {
        for found in self.directory.volumes() {
            self.news(found.record.id);
        }
    }
}

fn closing(volume: VolumeId) -> Error {
    Error::new(ErrorKind::Closed, format!("the ownership of volume {volume} is closed here"))
}

/// Passes the directory's news on to the drivers.
async fn watch_directory(owners: Arc<Owners>, mut news: broadcast::Receiver<News>) {
    let stop = owners.stop.clone();
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => return,
            next = news.recv() => next,
        };
        match next {
            Ok(News::Volume(volume)) => owners.news(volume),
            Ok(News::Deleted(_) | News::Host(_)) => {}
            Err(broadcast::error::RecvError::Lagged(_)) => owners.news_of_all(),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests;
