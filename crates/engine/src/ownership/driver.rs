//! One volume's driver: a task that owns the machine and executes its effects.

use super::hands::Hands;
use super::view::View;
use crate::directory::{Directory, Registered};
use crate::error::{Error, ErrorKind, Result};
use crate::port::Peers;
use bytes::Bytes;
use pannier_core::ids::{Epoch, HostId, SessionId, VolumeId};
use pannier_core::record::VolumeRecord;
use pannier_core::units::Time;
use pannier_core::volume::Position;
use pannier_core::volume::ownership::{Command, Effect, Event, Machine, Message, Outcome, Role};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// An answer that somebody waits for.
pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// What reaches a driver from outside.
pub(super) enum Input {
    /// Another host's machine says something; GRANT comes with the log's tail.
    Peer { from: HostId, message: Message, payload: Bytes },
    /// Somebody asks for a change of ownership.
    Command { command: Command, reply: Reply<Outcome> },
    /// An attachment opens a session.
    OpenSession { attachment: HostId, session: SessionId, lineage: Epoch, reply: Reply<()> },
    /// An attachment wants to write.
    AskRight { attachment: HostId, reply: Reply<()> },
    /// Anything else that needs no answer.
    Event(Event),
}

/// How a task of the driver ended.
pub(super) enum Ended {
    /// It reports.
    Event(Event),
    /// The registry was asked; the record as it is, if it answered, and how it went.
    Registry { found: Option<Box<Registered<VolumeRecord>>>, end: Event },
    /// A GRANT was sent, or failed to be.
    GrantSent,
    /// The volume cannot be started.
    NotStarted(Error),
    /// Nothing to tell.
    Quiet,
}

/// What a driver works with.
pub(super) struct Tools {
    pub(super) me: HostId,
    pub(super) volume: VolumeId,
    pub(super) hands: Arc<dyn Hands>,
    pub(super) directory: Arc<Directory>,
    pub(super) peers: Arc<dyn Peers>,
}

/// The task's state.
pub(super) struct Driver {
    pub(super) tools: Arc<Tools>,
    pub(super) machine: Machine,
    started: Instant,
    inputs: mpsc::Receiver<Input>,
    news: Arc<Notify>,
    view: watch::Sender<View>,
    pub(super) tasks: JoinSet<Ended>,
    /// The record that the machine saw last.
    pub(super) base: Option<Registered<VolumeRecord>>,
    /// What came with the GRANT for this position.
    pub(super) tail: Option<(Position, Bytes)>,
    pub(super) sending_grant: bool,
    pub(super) catching: Option<AbortHandle>,
    /// Tasks that catch up, aborted ones until they have ended.
    pub(super) catching_runs: TaskTracker,
    pub(super) asking_switch: Option<AbortHandle>,
    /// Why the last start failed.
    start_failure: Option<Error>,
    commands: Vec<(Asked, Reply<Outcome>)>,
    openers: Vec<(HostId, SessionId, Reply<()>)>,
    writers: Vec<(HostId, Reply<()>)>,
    /// Outcomes of the event at hand.
    outcomes: Vec<Outcome>,
}

/// Which outcomes a waiting command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Prepare,
    Switch,
    Abort,
    Takeover,
}

impl Asked {
    fn of(command: &Command) -> Self {
        match command {
            Command::Prepare { .. } => Self::Prepare,
            Command::Switch => Self::Switch,
            Command::Abort => Self::Abort,
            Command::Takeover { .. } => Self::Takeover,
        }
    }

    /// Whether an outcome that came later than the command's own event answers it.
    fn answered_by(self, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Prepared { .. } => self == Self::Prepare,
            Outcome::Switched { .. } => self == Self::Switch,
            Outcome::Aborted { .. } => matches!(self, Self::Abort | Self::Switch | Self::Prepare),
            Outcome::Owner { .. } => self == Self::Takeover,
            Outcome::Fenced { .. } => true,
            Outcome::Refused(_) | Outcome::RegistryAway => {
                matches!(self, Self::Prepare | Self::Takeover | Self::Switch)
            }
        }
    }
}

impl Driver {
    pub(super) fn new(
        tools: Arc<Tools>,
        machine: Machine,
        (inputs, news): (mpsc::Receiver<Input>, Arc<Notify>),
        view: watch::Sender<View>,
    ) -> Self {
        Self {
            tools,
            machine,
            started: Instant::now(),
            inputs,
            news,
            view,
            tasks: JoinSet::new(),
            base: None,
            tail: None,
            sending_grant: false,
            catching: None,
            catching_runs: TaskTracker::new(),
            asking_switch: None,
            start_failure: None,
            commands: Vec::new(),
            openers: Vec::new(),
            writers: Vec::new(),
            outcomes: Vec::new(),
        }
    }

    /// Runs until `stop`, or until nobody can reach the driver any more. What is under way is then
    /// dropped, as by a crash: every effect can be repeated.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        self.look();
        self.handle(Event::Timer);
        loop {
            let deadline = self.machine.poll_deadline().map(|at| self.instant(at));
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                input = self.inputs.recv() => match input {
                    Some(input) => self.take(input),
                    None => return,
                },
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok(ended) => self.ended(ended),
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_aborted) => {}
                },
                () = self.news.notified() => self.look(),
                () = timer => self.handle(Event::Timer),
            }
        }
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn instant(&self, at: Time) -> Instant {
        self.started + Duration::from_nanos(at.0)
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Peer { from, message, payload } => {
                if let Message::Grant(grant) = &message {
                    self.tail = Some((grant.position, payload));
                }
                self.handle(Event::Peer { from, message });
            }
            Input::Command { command, reply } => self.command(command, reply),
            Input::OpenSession { attachment, session, lineage, reply } => {
                self.openers.push((attachment, session, reply));
                self.handle(Event::OpenSession { attachment, session, lineage });
            }
            Input::AskRight { attachment, reply } => {
                self.writers.retain(|(_, reply)| !reply.is_closed());
                self.writers.push((attachment, reply));
                self.handle(Event::AskRight { attachment });
            }
            Input::Event(event) => self.handle(event),
        }
    }

    fn command(&mut self, command: Command, reply: Reply<Outcome>) {
        let asked = Asked::of(&command);
        self.outcomes.clear();
        self.handle(Event::Command(command));
        match self.outcomes.pop() {
            // The receiver may be gone: it does not matter any more.
            Some(outcome) => drop(reply.send(Ok(outcome))),
            None => self.commands.push((asked, reply)),
        }
        self.outcomes.clear();
    }

    /// Shows the machine the record, if it was read from the registry in this boot and is news.
    fn look(&mut self) {
        let Tools { directory, volume, .. } = &*self.tools;
        if !directory.seen_in_this_boot(*volume) {
            return;
        }
        if let Some(found) = directory.volume(*volume) {
            self.show(found);
        }
    }

    fn show(&mut self, found: Registered<VolumeRecord>) {
        if self.base.as_ref().is_some_and(|base| base.revision >= found.revision) {
            return;
        }
        let (revision, record) = (found.revision.0, Box::new(found.record.clone()));
        self.base = Some(found);
        self.handle(Event::Record { revision, record });
    }

    fn ended(&mut self, ended: Ended) {
        match ended {
            Ended::Event(event) => self.handle(event),
            Ended::Registry { found, end } => {
                if let Some(found) = found {
                    self.show(*found);
                }
                self.handle(end);
            }
            Ended::GrantSent => self.sending_grant = false,
            Ended::NotStarted(error) => {
                tracing::debug!(volume = %self.tools.volume, %error, "not started");
                self.start_failure = Some(error);
                self.handle(Event::Failed);
            }
            Ended::Quiet => {}
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.now();
        tracing::trace!(volume = %self.tools.volume, ?event, "ownership event");
        if matches!(event, Event::Started) {
            self.start_failure = None;
        }
        self.machine.handle(now, event);
        while let Some(effect) = self.machine.poll_effect() {
            self.execute(effect);
        }
        self.serve_writers();
        self.forsake();
        let mut view = View::of(&self.machine, self.tools.me);
        view.obstacle = self.obstacle();
        self.tell(view.obstacle.as_deref());
        self.view.send_if_modified(|old| {
            let changed = *old != view;
            *old = view;
            changed
        });
    }

    /// What keeps this host, the owner, from serving the volume until somebody does something.
    fn obstacle(&self) -> Option<String> {
        let cause = if self.machine.has_lost_state() {
            "it owns the volume, and the volume's `state` is not in its directory".to_owned()
        } else if self.machine.appends_under().is_some() {
            return None;
        } else if let Role::Owner { .. } = self.machine.state().role {
            self.start_failure.as_ref()?.to_string()
        } else {
            return None;
        };
        let Tools { me, volume, directory, .. } = &*self.tools;
        let (name, path) = (directory.host_name(*me), self.base.as_ref().map(|it| &it.record.path));
        let path = path.map_or_else(|| volume.to_string(), ToString::to_string);
        Some(format!(
            "host {name} cannot serve it: {cause}. Restore the directory `volumes/{volume}` and \
             start the daemon again, or take the volume over on a host that has a copy: `pannier \
             takeover {path} --fenced {name}`"
        ))
    }

    /// Tells of an obstacle once, and of its end.
    fn tell(&self, obstacle: Option<&str>) {
        let volume = self.tools.volume;
        match (self.view.borrow().obstacle.is_some(), obstacle) {
            (false, Some(obstacle)) => {
                tracing::error!(%volume, "guests of the volume wait: {obstacle}");
            }
            (true, None) => tracing::info!(%volume, "guests of the volume wait no more"),
            (false, None) | (true, Some(_)) => {}
        }
    }

    /// Answers the openers of a session.
    pub(super) fn session_answer(
        &mut self,
        attachment: HostId,
        session: SessionId,
        answer: &Result<()>,
    ) {
        let asked = |(a, s, _): &(HostId, SessionId, Reply<()>)| (*a, *s) == (attachment, session);
        for (_, _, reply) in self.openers.extract_if(.., |opener| asked(opener)) {
            drop(reply.send(answer.clone()));
        }
    }

    /// Answers the writers that may write now.
    pub(super) fn right_answer(&mut self, holder: Option<HostId>, shared: bool) {
        let may = |attachment: HostId| shared || holder == Some(attachment);
        for (_, reply) in self.writers.extract_if(.., |(attachment, _)| may(*attachment)) {
            drop(reply.send(Ok(())));
        }
    }

    /// The right is free and somebody waits for it.
    fn serve_writers(&mut self) {
        self.writers.retain(|(_, reply)| !reply.is_closed());
        let free =
            self.machine.appends_under().is_some() && self.machine.state().right.holder.is_none();
        if let (true, Some((attachment, _))) = (free, self.writers.first()) {
            let event = Event::AskRight { attachment: *attachment };
            self.machine.handle(self.now(), event);
            while let Some(effect) = self.machine.poll_effect() {
                self.execute(effect);
            }
        }
    }

    /// Whoever waits for something that only an appending owner gives is told to route anew.
    fn forsake(&mut self) {
        if self.machine.appends_under().is_some() {
            return;
        }
        let volume = self.tools.volume;
        let moved = || {
            let context = format!("volume {volume} is not served by this host now; route anew");
            Err(Error::new(ErrorKind::Unavailable, context))
        };
        for (_, _, reply) in self.openers.drain(..) {
            drop(reply.send(moved()));
        }
        for (_, reply) in self.writers.drain(..) {
            drop(reply.send(moved()));
        }
    }

    pub(super) fn outcome(&mut self, outcome: Outcome) {
        let volume = self.tools.volume;
        match &outcome {
            Outcome::Prepared { epoch } => tracing::info!(%volume, %epoch, "transit registered"),
            Outcome::Switched { epoch } => tracing::info!(%volume, %epoch, "given away"),
            Outcome::Aborted { epoch } => tracing::info!(%volume, %epoch, "transit aborted"),
            Outcome::Owner { epoch } => tracing::info!(%volume, %epoch, "this host is the owner"),
            Outcome::Fenced { by } => {
                tracing::warn!(%volume, %by, "fenced; what was not taken over is set aside");
            }
            Outcome::Refused(refusal) => tracing::info!(%volume, %refusal, "refused"),
            Outcome::RegistryAway => tracing::info!(%volume, "the registry is away"),
        }
        let answers = |(asked, _): &mut (Asked, Reply<Outcome>)| asked.answered_by(&outcome);
        for (_, reply) in self.commands.extract_if(.., answers) {
            drop(reply.send(Ok(outcome.clone())));
        }
        self.outcomes.push(outcome);
    }

    /// The epoch that this host lost.
    pub(super) fn ended_epoch(&self) -> Epoch {
        match &self.machine.state().role {
            Role::Fenced { epoch, .. } => *epoch,
            Role::Owner { .. }
            | Role::Follower { .. }
            | Role::Creating
            | Role::Claiming { .. }
            | Role::Granted { .. } => self.machine.state().known,
        }
    }

    pub(super) fn spawn_event(&mut self, task: impl Future<Output = Event> + Send + 'static) {
        self.tasks.spawn(async move { Ended::Event(task.await) });
    }

    /// Executes an effect; see [`super::effects`].
    fn execute(&mut self, effect: Effect) {
        tracing::trace!(volume = %self.tools.volume, ?effect, "ownership effect");
        super::effects::execute(self, effect);
    }
}
