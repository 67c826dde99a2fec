//! The machine: state, events in, effects out.
//!
//! It is level-triggered. Handlers change the *intended* state; [`Machine::advance`] then compares
//! intended, durable and volatile state and hands out what is due. What depends on durability looks
//! at `durable`, so no order of events can act on a record that is not on disk.

use super::message::{Command, Effect, Event, Outcome, Route};
use super::rules::Rules;
use super::state::{BootId, LocalState, Role};
use super::transaction::{Change, Plan, Refusal};
use crate::ids::{Epoch, HostId, Incarnation, SessionId, VolumeId};
use crate::record::{EpochEnd, Transit, VolumeRecord};
use crate::units::Time;
use crate::volume::Position;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Time after which an unanswered GRANT or a failed registry call is tried again, and the first
/// start that failed.
const RETRY_MS: u64 = 200;

/// Longest time between two starts that fail: what fails again and again waits for a person.
const START_RETRY_MAX_MS: u64 = 30_000;

/// What the machine keeps of the registry's record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    pub(super) revision: u64,
    pub(super) owner: HostId,
    pub(super) epoch: Epoch,
    pub(super) transit: Option<Transit>,
    pub(super) ended: Option<EpochEnd>,
    pub(super) shared: bool,
}

/// Whether the volume appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Appending {
    No,
    Starting,
    Yes,
    Stopping,
}

/// Where the one registry call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Registry {
    Idle,
    Busy,
    /// Until the next [`Event::Timer`].
    Waiting,
}

/// A GRANT that waits for the log that it ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Catching {
    pub(super) grant: super::message::Grant,
}

/// Ownership of one volume as one host sees it. See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Machine {
    pub(super) rules: Rules,
    pub(super) me: HostId,
    pub(super) boot: BootId,
    /// What shall be.
    pub(super) state: LocalState,
    /// What is on disk for certain.
    pub(super) durable: LocalState,
    /// What is being written.
    pub(super) writing: Option<LocalState>,
    /// Whether local ownership counts: the boot is the same, or the registry has confirmed it.
    pub(super) confirmed: bool,
    /// Whether the incarnation in `state` has appended, so that the next start needs a new one.
    pub(super) incarnation_used: bool,
    /// Where the log must end at the next start.
    pub(super) start_at: Option<Position>,
    pub(super) appending: Appending,
    /// A start failed: the next one waits until then.
    pub(super) start_held: Option<Time>,
    /// Starts in a row that failed.
    pub(super) start_failures: u32,
    pub(super) seen: Option<Seen>,
    pub(super) registry: Registry,
    pub(super) asked: Option<Change>,
    pub(super) read_wanted: bool,
    pub(super) begin_wanted: Option<(HostId, Plan)>,
    pub(super) switch_wanted: bool,
    pub(super) abort_told: Option<Epoch>,
    pub(super) catching: Option<Catching>,
    /// A takeover that waits to know where the log ends, with the hosts that are out.
    pub(super) taking_over: Option<BTreeSet<HostId>>,
    /// Whom to tell, once it is durable, that the GRANT was accepted.
    pub(super) answer_to: Option<(HostId, Epoch)>,
    pub(super) grant_sent: bool,
    pub(super) aside: bool,
    pub(super) following: Option<HostId>,
    /// Sessions to be answered once durable, with the one that each ended.
    pub(super) opening: BTreeMap<HostId, (SessionId, Option<SessionId>)>,
    /// The write right on its way, from one attachment to another.
    pub(super) passing: Option<(HostId, HostId)>,
    pub(super) right_told: Option<(Option<HostId>, bool)>,
    pub(super) route: Option<Route>,
    pub(super) deadline: Option<Time>,
    pub(super) effects: VecDeque<Effect>,
}

impl Machine {
    /// The machine of host `me` in boot `boot`, as its daemon starts, with the state found on disk.
    /// The volume does not append. Call [`Machine::handle`] with [`Event::Timer`] to set it going.
    #[must_use]
    pub fn open(me: HostId, boot: BootId, volume: VolumeId, found: Option<LocalState>) -> Self {
        Self::open_with(me, boot, volume, found, Rules::ALL)
    }

    /// The same under a set of rules, for the explorer.
    #[must_use]
    pub fn open_with(
        me: HostId,
        boot: BootId,
        volume: VolumeId,
        found: Option<LocalState>,
        rules: Rules,
    ) -> Self {
        let durable = found.unwrap_or_else(|| LocalState::follower(volume, boot));
        assert_eq!(durable.volume, volume, "a state file lies in its own volume's directory");
        let mut state = durable.clone();
        let same_boot = state.boot == boot;
        if !same_boot && rules.transit_read_in_this_boot {
            state.transit_read = None;
        }
        let owner = matches!(state.role, Role::Owner { .. });
        let confirmed = !owner || same_boot || !rules.reboot_needs_registry;
        if confirmed {
            state.boot = boot;
        }
        Self {
            rules,
            me,
            boot,
            state,
            durable,
            writing: None,
            confirmed,
            incarnation_used: true,
            start_at: None,
            appending: Appending::No,
            start_held: None,
            start_failures: 0,
            seen: None,
            registry: Registry::Idle,
            asked: None,
            read_wanted: true,
            begin_wanted: None,
            switch_wanted: false,
            abort_told: None,
            catching: None,
            taking_over: None,
            answer_to: None,
            grant_sent: false,
            aside: false,
            following: None,
            opening: BTreeMap::new(),
            passing: None,
            right_told: None,
            route: None,
            deadline: None,
            effects: VecDeque::new(),
        }
    }

    /// Takes an event in.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Command(command) => self.handle_command(command),
            Event::Record { revision, record } => self.handle_record(revision, &record),
            Event::Committed => self.registry_ended(),
            Event::Refused(refusal) => self.handle_refused(refusal),
            Event::RegistryAway => self.handle_registry_away(),
            Event::Persisted => {
                if let Some(written) = self.writing.take() {
                    self.durable = written;
                }
            }
            Event::Started => {
                if self.appending == Appending::Starting {
                    self.appending = Appending::Yes;
                    self.incarnation_used = true;
                    self.start_at = None;
                    self.start_failures = 0;
                    self.right_told = None;
                }
            }
            Event::Stopped { position, size_bytes } => self.handle_stopped(position, size_bytes),
            Event::Failed => self.handle_failed(now),
            Event::StopFailed => self.handle_stop_failed(now),
            Event::CaughtUp { position } => self.handle_caught_up(position),
            Event::LogEnds { position } => self.handle_log_ends(position),
            Event::Peer { from, message } => self.handle_peer(from, message),
            Event::Timer => {
                self.deadline = None;
                self.grant_sent = false;
                self.start_held = self.start_held.filter(|until| now < *until);
                if self.registry == Registry::Waiting {
                    self.registry = Registry::Idle;
                }
            }
            Event::OpenSession { attachment, session, lineage } => {
                self.handle_open_session(attachment, session, lineage);
            }
            Event::CloseSession { attachment, session } => {
                self.handle_close_session(attachment, session);
            }
            Event::ReleaseRight { attachment } => self.handle_release_right(attachment),
            Event::AskRight { attachment } => self.handle_ask_right(attachment),
            Event::RightWithdrawn { attachment } => self.handle_right_withdrawn(attachment),
            Event::TailAside => self.handle_tail_aside(),
        }
        self.advance(now);
    }

    /// The next thing to do, in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call with [`Event::Timer`]; an earlier call does no harm.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Time> {
        self.deadline
    }

    /// What shall be durable; what is may lag behind.
    #[must_use]
    pub fn state(&self) -> &LocalState {
        &self.state
    }

    /// Whether this host executes requests now, with the epoch that acknowledges them.
    #[must_use]
    pub fn appends_under(&self) -> Option<(Epoch, Incarnation)> {
        match &self.state.role {
            Role::Owner { epoch, incarnation, .. } if self.appending == Appending::Yes => {
                Some((*epoch, *incarnation))
            }
            Role::Owner { .. }
            | Role::Follower { .. }
            | Role::Creating
            | Role::Claiming { .. }
            | Role::Granted { .. }
            | Role::Fenced { .. } => None,
        }
    }

    /// Whether this host executes requests: what [`Route::Here`] tells its guests and peers.
    pub(super) fn executes(&self) -> bool {
        let granted = matches!(self.state.role, Role::Granted { .. });
        self.appends_under().is_some() || (granted && !self.rules.granted_is_silent)
    }

    /// Whether the registry says that this host owns the volume, under an epoch of which it has
    /// not kept that it ever did: its state is gone.
    #[must_use]
    pub fn has_lost_state(&self) -> bool {
        let follower =
            matches!(self.state.role, Role::Follower { .. }) && self.taking_over.is_none();
        let owns = |seen: &Seen| seen.owner == self.me && seen.epoch >= self.state.known;
        follower && self.seen.as_ref().is_some_and(owns)
    }

    /// The change of owner known here, as giver or taker.
    #[must_use]
    pub fn transit(&self) -> Option<&Transit> {
        match &self.state.role {
            Role::Owner { transit, .. } => transit.as_ref(),
            Role::Follower { .. }
            | Role::Creating
            | Role::Claiming { .. }
            | Role::Granted { .. }
            | Role::Fenced { .. } => self.seen.as_ref().and_then(|seen| seen.transit.as_ref()),
        }
    }

    /// The epoch of the last takeover known here: what an attachment made now is made under.
    #[must_use]
    pub fn lineage(&self) -> Epoch {
        let seen = self.seen.as_ref().and_then(|seen| seen.ended).map_or(Epoch(0), |end| end.by);
        self.state.lineage.max(seen)
    }

    /// Revision of the record known here: what a transaction is conditional on.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        self.seen.as_ref().map(|seen| seen.revision)
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Prepare { to, plan } => self.command_prepare(to, plan),
            Command::Switch => self.command_switch(),
            Command::Abort => self.command_abort(),
            Command::Takeover { fenced } => self.command_takeover(fenced),
        }
    }

    fn handle_record(&mut self, revision: u64, record: &VolumeRecord) {
        if self.seen.as_ref().is_some_and(|seen| seen.revision >= revision) {
            return;
        }
        let seen = Seen {
            revision,
            owner: record.owner,
            epoch: record.epoch,
            transit: record.transit.clone(),
            ended: record.ended,
            shared: record.shared,
        };
        self.read_wanted = false;
        self.confirm(&seen);
        self.adopt_ownership(&seen);
        self.check_fenced(&seen);
        self.adopt_transit(&seen);
        if matches!(&self.state.role, Role::Owner { epoch, .. } if *epoch == seen.epoch) {
            self.state.right.shared = seen.shared;
        }
        self.state.known = self.state.known.max(seen.epoch);
        self.seen = Some(seen);
    }

    /// After a reboot: local ownership counts once the registry shows it.
    fn confirm(&mut self, seen: &Seen) {
        let Role::Owner { epoch, .. } = &self.state.role else { return };
        let registered = seen.owner == self.me && seen.epoch == *epoch;
        let taker = seen.transit.as_ref().is_some_and(|t| t.to == self.me && t.epoch == *epoch);
        if !self.confirmed && (registered || taker) {
            self.confirmed = true;
            self.state.boot = self.boot;
        }
    }

    /// A higher epoch of another host ends this one's. It stops at once; its tail goes aside.
    fn check_fenced(&mut self, seen: &Seen) {
        match &self.state.role {
            Role::Owner { epoch, .. } if seen.epoch > *epoch => {
                let end = seen.ended.filter(|end| end.by > *epoch).map(|end| end.position);
                self.state.role = Role::Fenced { epoch: *epoch, end };
                self.state.boot = self.boot;
                self.state.sessions.clear();
                self.confirmed = true;
                self.switch_wanted = false;
                self.passing = None;
                self.opening.clear();
            }
            Role::Granted { grant, .. } if seen.epoch >= grant.epoch => self.grant_is_final(),
            Role::Owner { .. }
            | Role::Granted { .. }
            | Role::Follower { .. }
            | Role::Creating
            | Role::Claiming { .. }
            | Role::Fenced { .. } => {}
        }
    }

    fn handle_tail_aside(&mut self) {
        if let Role::Fenced { .. } = self.state.role {
            self.aside = false;
            self.state.role = Role::Follower { gave_to: None };
            self.done(Outcome::Fenced { by: self.state.known });
        }
    }

    fn handle_refused(&mut self, refusal: Refusal) {
        let asked = self.asked.take();
        self.registry = Registry::Waiting;
        match asked {
            Some(Change::Begin { .. }) => self.done(Outcome::Refused(refusal)),
            Some(Change::Takeover { .. }) => self.claim_failed(refusal),
            // The record that came before this says why; it is tried again if it still applies.
            Some(Change::Settle { .. } | Change::Abort { .. }) | None => {}
        }
    }

    fn handle_registry_away(&mut self) {
        let asked = self.asked.take();
        self.registry = Registry::Waiting;
        match asked {
            Some(Change::Begin { .. } | Change::Takeover { .. }) => {
                self.done(Outcome::RegistryAway)
            }
            Some(Change::Settle { .. } | Change::Abort { .. }) | None => {}
        }
    }

    fn registry_ended(&mut self) {
        let begun = matches!(self.state.role, Role::Owner { transit: Some(_), .. });
        if let Some(Change::Begin { to, plan, .. }) = self.asked.take()
            && !begun
        {
            // Something else changed the record first.
            self.begin_wanted = Some((to, plan));
        }
        self.read_wanted = false;
        if self.registry == Registry::Busy {
            self.registry = Registry::Idle;
        }
    }

    pub(super) fn done(&mut self, outcome: Outcome) {
        self.effects.push_back(Effect::Done(outcome));
    }

    /// Hands out everything that is due.
    fn advance(&mut self, now: Time) {
        self.renew_incarnation();
        self.advance_volume();
        self.persist();
        self.advance_giver();
        self.advance_taker();
        self.advance_attachments();
        self.advance_registry();
        self.advance_route();
        let granted = matches!(self.durable.role, Role::Granted { .. });
        let waits = self.registry == Registry::Waiting || granted;
        let retry = waits.then(|| now.plus_millis(RETRY_MS));
        self.deadline = self.deadline.into_iter().chain(retry).chain(self.start_held).min();
    }

    /// Every start needs an incarnation that never appended.
    fn renew_incarnation(&mut self) {
        let starts = self.confirmed && self.appending == Appending::No;
        let wanted = starts && self.incarnation_used && !self.switching();
        if let Role::Owner { incarnation, .. } = &mut self.state.role
            && wanted
        {
            if self.rules.new_incarnation {
                incarnation.0 += 1;
            }
            self.incarnation_used = false;
        }
    }

    fn advance_volume(&mut self) {
        let same_start = match (&self.state.role, &self.durable.role) {
            (
                Role::Owner { epoch, incarnation, .. },
                Role::Owner { epoch: durable_epoch, incarnation: durable_incarnation, .. },
            ) if (epoch, incarnation) == (durable_epoch, durable_incarnation) => {
                Some((*epoch, *incarnation))
            }
            _ => None,
        };
        match (self.appending, &self.state.role) {
            (Appending::No, Role::Owner { .. }) if self.may_start() => {
                if let Some((epoch, incarnation)) = same_start {
                    self.appending = Appending::Starting;
                    let at = self.start_at;
                    self.effects.push_back(Effect::Start { epoch, incarnation, at });
                }
            }
            (Appending::Yes, Role::Owner { .. }) if self.switching() => self.stop(),
            (Appending::Yes, Role::Fenced { .. }) => self.stop(),
            (
                Appending::No | Appending::Starting | Appending::Yes | Appending::Stopping,
                Role::Owner { .. }
                | Role::Follower { .. }
                | Role::Creating
                | Role::Claiming { .. }
                | Role::Granted { .. }
                | Role::Fenced { .. },
            ) => {}
        }
        self.advance_fenced();
    }

    fn may_start(&self) -> bool {
        self.confirmed && !self.incarnation_used && self.start_held.is_none() && !self.switching()
    }

    pub(super) fn handle_failed(&mut self, now: Time) {
        self.appending = Appending::No;
        let pause = RETRY_MS << self.start_failures.min(8);
        self.start_held = Some(now.plus_millis(pause.min(START_RETRY_MAX_MS)));
        self.start_failures += 1;
        if self.switch_wanted {
            self.switch_wanted = false;
            self.done(Outcome::Refused(Refusal::Busy));
        }
    }

    fn advance_fenced(&mut self) {
        let Role::Fenced { end, .. } = &self.durable.role else { return };
        let still = self.state.role == self.durable.role;
        if still && self.appending == Appending::No && !self.aside {
            self.aside = true;
            let end = *end;
            self.effects.push_back(Effect::SetTailAside { end });
        }
    }

    fn stop(&mut self) {
        self.appending = Appending::Stopping;
        self.effects.push_back(Effect::Stop);
    }

    fn persist(&mut self) {
        // While the volume stops for a switch, its outcome is to be written soon: one durable write
        // on the critical path, not two. Nothing acts on a state before it is durable.
        let stopping = self.appending == Appending::Stopping && self.switching();
        // Nothing is put in the place of what a person is to bring back.
        let waits = stopping || self.has_lost_state();
        if self.writing.is_none() && self.state != self.durable && !waits {
            self.writing = Some(self.state.clone());
            self.effects.push_back(Effect::Persist(Box::new(self.state.clone())));
        }
    }

    fn advance_registry(&mut self) {
        if self.registry != Registry::Idle {
            return;
        }
        let Some(seen) = &self.seen else {
            if self.read_wanted {
                self.ask(None);
            }
            return;
        };
        let change = self.due_change(seen);
        if change.is_some() || self.read_wanted {
            self.ask(change);
        }
    }

    fn ask(&mut self, change: Option<Change>) {
        self.registry = Registry::Busy;
        if let Some(Change::Begin { .. }) = change {
            self.begin_wanted = None;
        }
        self.asked = change.clone();
        self.effects.push_back(change.map_or(Effect::Read, Effect::Registry));
    }

    /// The transaction that is due, if one is.
    fn due_change(&self, seen: &Seen) -> Option<Change> {
        if let Some((to, plan)) = self.begin_wanted {
            return Some(Change::Begin { from: self.me, to, plan });
        }
        self.due_abort(seen).or_else(|| self.due_claim()).or_else(|| self.due_settle(seen))
    }

    fn advance_route(&mut self) {
        let route = self.current_route();
        if self.route != Some(route) {
            self.route = Some(route);
            self.effects.push_back(Effect::Route(route));
        }
    }

    fn current_route(&self) -> Route {
        if self.executes() {
            let epoch = self.appends_under().map_or(self.state.known, |(epoch, _)| epoch);
            return Route::Here { epoch };
        }
        let registered =
            self.seen.as_ref().map(|seen| seen.owner).filter(|owner| *owner != self.me);
        let to = match &self.state.role {
            Role::Granted { grant, .. } if self.durable.role == self.state.role => Some(grant.to),
            Role::Follower { .. } if self.catching.is_some() || self.taking_over.is_some() => None,
            Role::Follower { gave_to } => registered.or(*gave_to),
            Role::Granted { .. }
            | Role::Owner { .. }
            | Role::Creating
            | Role::Claiming { .. }
            | Role::Fenced { .. } => None,
        };
        to.map_or(Route::Wait, |to| Route::Forward { to })
    }
}
