//! What can happen, and what then does.

use super::check::check;
use super::world::{Call, HOSTS, Host, Packet, Phase, Scenario, Shared, VOLUME, World};
use super::world::{host_id, host_index};
use crate::explore::Model;
use pannier_core::ids::HostId;
use pannier_core::units::Time;
use pannier_core::volume::ownership::transaction::{self, Change, Plan};
use pannier_core::volume::ownership::{Command, Effect, Event, Machine, Outcome, Role, Route};
use std::collections::BTreeSet;

/// A step of the world. Hosts, guests (by their host), packets and revisions by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A host gets power and starts its daemon.
    Boot(u8),
    /// A daemon dies and the next one starts; whether the write under way had reached the disk.
    Kill(u8, bool),
    /// A host loses power: whether the write under way had reached the disk, whether what was not
    /// synced is lost.
    PowerLoss(u8, bool, bool),
    /// A write of a state has become durable.
    Persisted(u8),
    /// A host is shown the record of a revision.
    Show(u8, u8),
    /// A host's registry call fails.
    CallFails(u8),
    /// A host's deadline comes.
    Timer(u8),
    /// A transaction arrives at the registry.
    Commit(u8),
    /// A packet arrives at a host.
    Deliver(u8, u8),
    /// A taker gets the log that it catches up with.
    CaughtUp(u8),
    /// A follower copies the owner's log.
    Copy(u8),
    /// The next transit is begun.
    Begin(u8),
    /// A giver is told to switch.
    Switch(u8),
    /// A giver is told to abort.
    Abort(u8),
    /// Somebody other than the giver takes a transit out of the registry.
    ForeignAbort,
    /// A host is told to take over from all that have no power.
    Takeover(u8),
    /// A guest is started.
    Attach(u8),
    /// A guest's host asks for its session to be opened.
    Open(u8),
    /// A guest issues a write.
    Issue(u8),
    /// A guest's write goes where it goes from its host.
    Run(u8),
    /// A write that was admitted locally is done.
    Complete(u8),
    /// A guest disconnects.
    Close(u8),
}

/// The model: a scenario.
#[derive(Debug, Clone)]
pub struct Ownership(pub Scenario);

type Checked = Result<(), String>;

impl Model for Ownership {
    type State = World;
    type Action = Action;

    fn start(&self) -> World {
        let mut world = World::new(&self.0);
        let mut run = || -> Checked {
            for host in 0..HOSTS {
                world.start_daemon(&self.0, host)?;
                world.show(&self.0, host, 1)?;
                while world.hosts[host].get().persisting.is_some() {
                    world.persisted(&self.0, host)?;
                }
            }
            Ok(())
        };
        run().expect("the volume's creation violates nothing");
        world
    }

    fn actions(&self, world: &World, into: &mut Vec<Action>) {
        for host in 0..self.0.hosts as u8 {
            self.host_actions(world, host, into);
            if !self.0.guests_wait {
                world.guest_actions(host, into);
            }
        }
        for index in 0..world.packets.len() as u8 {
            if let Packet::Transaction { .. } = world.packet(index) {
                into.push(Action::Commit(index));
                continue;
            }
            for host in 0..self.0.hosts as u8 {
                if world.takes(usize::from(host), world.packet(index)) {
                    into.push(Action::Deliver(index, host));
                }
            }
        }
        if world.budget.get().foreign_aborts > 0 && world.record().transit.is_some() {
            into.push(Action::ForeignAbort);
        }
    }

    fn step(&self, world: &World, action: Action) -> Result<World, String> {
        let mut next = world.clone();
        next.act(&self.0, action)?;
        next.forget_packets(&self.0.contracts);
        check(&next, self.0.guests_only)?;
        Ok(next)
    }

    fn hash(&self, world: &World) -> u64 {
        world.hash()
    }

    fn describe(&self, world: &World, action: Action) -> String {
        match action {
            Action::Commit(index) => format!("Commit {:?}", world.packet(index)),
            Action::Deliver(index, host) => format!("to {host}: {:?}", world.packet(index)),
            Action::Boot(_)
            | Action::Kill(..)
            | Action::PowerLoss(..)
            | Action::Persisted(_)
            | Action::Show(..)
            | Action::CallFails(_)
            | Action::Timer(_)
            | Action::CaughtUp(_)
            | Action::Copy(_)
            | Action::Begin(_)
            | Action::Switch(_)
            | Action::Abort(_)
            | Action::ForeignAbort
            | Action::Takeover(_)
            | Action::Attach(_)
            | Action::Open(_)
            | Action::Issue(_)
            | Action::Run(_)
            | Action::Complete(_)
            | Action::Close(_) => format!("{action:?}"),
        }
    }
}

impl Ownership {
    fn host_actions(&self, world: &World, host: u8, into: &mut Vec<Action>) {
        let index = usize::from(host);
        let it = world.hosts[index].get();
        let budget = world.budget.get();
        if !it.powered {
            if !world.held_off(index) {
                into.push(Action::Boot(host));
            }
            return;
        }
        let Some(machine) = &it.machine else { return };
        faults(it, host, (budget.kills > 0, budget.power_losses > 0), into);
        if it.persisting.is_some() {
            into.push(Action::Persisted(host));
        }
        let seen = machine.revision().unwrap_or(0) as usize;
        let first = it.revision_min.max(if it.call == Some(Call::Read) { seen } else { seen + 1 });
        into.extend((first..=world.revision()).map(|rev| Action::Show(host, rev as u8)));
        if it.call.is_some() && budget.registry_failures > 0 {
            into.push(Action::CallFails(host));
        }
        if machine.poll_deadline().is_some() {
            into.push(Action::Timer(host));
        }
        if let Some((from, at)) = &it.catching
            && world.hosts[*from].get().powered
            && world.hosts[*from].get().has(at)
        {
            into.push(Action::CaughtUp(host));
        }
        if let Some(from) = it.following
            && self.0.following
            && world.hosts[from].get().powered
            && world.hosts[from].get().synced > it.log.len()
        {
            into.push(Action::Copy(host));
        }
        self.command_actions(world, host, machine, into);
    }

    fn command_actions(&self, world: &World, host: u8, machine: &Machine, into: &mut Vec<Action>) {
        let budget = world.budget.get();
        let next = self.0.transits.get(usize::from(budget.transits));
        let owner = matches!(machine.state().role, Role::Owner { .. });
        if next.is_some_and(|(from, _)| *from == usize::from(host)) && owner {
            into.push(Action::Begin(host));
        }
        let giver = matches!(machine.state().role, Role::Owner { transit: Some(_), .. });
        let granted = matches!(machine.state().role, Role::Granted { .. });
        if giver && self.0.switches {
            into.push(Action::Switch(host));
        }
        if (giver || granted) && budget.aborts > 0 {
            into.push(Action::Abort(host));
        }
        let idle = granted || matches!(machine.state().role, Role::Follower { .. });
        let out = world.hosts.iter().any(|other| !other.get().powered);
        if idle && out && budget.takeovers > 0 {
            into.push(Action::Takeover(host));
        }
    }
}

fn faults(host: &Host, index: u8, (kill, power): (bool, bool), into: &mut Vec<Action>) {
    let writes: &[bool] = if host.persisting.is_some() { &[false, true] } else { &[false] };
    let losses: &[bool] = if host.synced < host.log.len() { &[false, true] } else { &[false] };
    for &landed in writes {
        if kill {
            into.push(Action::Kill(index, landed));
        }
        if power {
            into.extend(losses.iter().map(|&lost| Action::PowerLoss(index, landed, lost)));
        }
    }
}

impl World {
    fn act(&mut self, scenario: &Scenario, action: Action) -> Checked {
        match action {
            Action::Boot(host) => {
                let host = usize::from(host);
                self.hosts[host].change(|host| {
                    host.powered = true;
                    host.boot += 1;
                });
                self.start_daemon(scenario, host)
            }
            Action::Kill(host, landed) => {
                self.budget.change(|budget| budget.kills -= 1);
                self.end_daemon(usize::from(host), landed);
                self.start_daemon(scenario, usize::from(host))
            }
            Action::PowerLoss(host, landed, lost) => {
                self.lose_power(usize::from(host), landed, lost);
                Ok(())
            }
            Action::Persisted(host) => self.persisted(scenario, usize::from(host)),
            Action::Show(host, revision) => {
                self.show(scenario, usize::from(host), usize::from(revision))
            }
            Action::CallFails(host) => {
                self.budget.change(|budget| budget.registry_failures -= 1);
                self.hosts[usize::from(host)].change(|host| host.call = None);
                self.feed(scenario, usize::from(host), Event::RegistryAway)
            }
            Action::Timer(host) => self.feed(scenario, usize::from(host), Event::Timer),
            Action::Commit(index) => {
                if let Packet::Transaction { from, life, expect, change } =
                    self.packet(index).clone()
                {
                    self.commit(scenario, (from, life), expect, &change);
                }
                Ok(())
            }
            Action::Deliver(index, host) => {
                let packet = self.packet(index).clone();
                self.deliver(scenario, usize::from(host), packet)
            }
            Action::CaughtUp(host) => self.caught_up(scenario, usize::from(host)),
            Action::Copy(host) => {
                self.copy(usize::from(host));
                Ok(())
            }
            Action::Begin(_)
            | Action::Switch(_)
            | Action::Abort(_)
            | Action::ForeignAbort
            | Action::Takeover(_) => self.command(scenario, action),
            Action::Attach(_)
            | Action::Open(_)
            | Action::Issue(_)
            | Action::Run(_)
            | Action::Complete(_)
            | Action::Close(_) => self.guest_acts(scenario, action),
        }
    }

    fn command(&mut self, scenario: &Scenario, action: Action) -> Checked {
        match action {
            Action::Begin(host) => {
                let (_, to) = scenario.transits[usize::from(self.budget.get().transits)];
                self.budget.change(|budget| budget.transits += 1);
                let plan = Plan { declared: scenario.declared, waits_for_write: false };
                let command = Command::Prepare { to: host_id(to), plan };
                self.feed(scenario, usize::from(host), Event::Command(command))
            }
            Action::Switch(host) => {
                self.feed(scenario, usize::from(host), Event::Command(Command::Switch))
            }
            Action::Abort(host) => {
                self.budget.change(|budget| budget.aborts -= 1);
                self.feed(scenario, usize::from(host), Event::Command(Command::Abort))
            }
            Action::ForeignAbort => {
                self.budget.change(|budget| budget.foreign_aborts -= 1);
                let Some(transit) = self.record().transit.clone() else { return Ok(()) };
                let change = Change::Abort { by: transit.to, epoch: transit.epoch };
                // The registry refuses it, unless the rule is off.
                if transaction::apply(self.record(), &change, &scenario.rules).is_ok() {
                    let revision = self.revision() as u64;
                    self.commit(scenario, (host_index(transit.to), u8::MAX), revision, &change);
                }
                Ok(())
            }
            Action::Takeover(host) => {
                let host = usize::from(host);
                self.budget.change(|budget| budget.takeovers -= 1);
                let out = |other: &usize| !self.hosts[*other].get().powered;
                let fenced: BTreeSet<HostId> = (0..HOSTS).filter(out).map(host_id).collect();
                self.feed(scenario, host, Event::Command(Command::Takeover { fenced }))
            }
            _ => Ok(()),
        }
    }

    /// Whether a takeover that goes on has the operator's word that this host is out.
    fn held_off(&self, host: usize) -> bool {
        let id = host_id(host);
        let claims =
            |role: &Role| matches!(role, Role::Claiming { fenced, .. } if fenced.contains(&id));
        self.hosts.iter().map(Shared::get).any(|other| {
            other.machine.as_ref().is_some_and(|machine| claims(&machine.state().role))
                || other.disk.as_ref().is_some_and(|state| claims(&state.role))
                || other.persisting.as_ref().is_some_and(|state| claims(&state.role))
        })
    }

    pub(super) fn start_daemon(&mut self, scenario: &Scenario, host: usize) -> Checked {
        let revision = self.revision();
        self.hosts[host].change(|it| {
            it.life += 1;
            it.revision_min = revision;
            it.synced = it.log.len();
            let (boot, found) = (it.boot_id(), it.disk.clone());
            let machine = Machine::open_with(host_id(host), boot, VOLUME, found, scenario.rules);
            it.machine = Some(machine);
        });
        self.feed(scenario, host, Event::Timer)
    }

    fn end_daemon(&mut self, host: usize, landed: bool) {
        self.hosts[host].change(|host| {
            let written = host.persisting.take();
            if landed {
                host.disk = written;
            }
            host.machine = None;
            host.call = None;
            host.stopping = false;
            host.catching = None;
            host.following = None;
            host.admitted = None;
            host.withdrawing = false;
            host.here = false;
            host.right = (None, false);
        });
        // The guest waits and connects again, to the next daemon, with a new session; what was not
        // answered is sent anew.
        self.guests.change(|guests| {
            let guest = &mut guests[host];
            if guest.phase != Phase::Away {
                guest.phase = Phase::Opening;
                guest.session += 1;
            }
        });
    }

    fn lose_power(&mut self, host: usize, landed: bool, lost: bool) {
        self.budget.change(|budget| budget.power_losses -= 1);
        self.end_daemon(host, landed);
        let tail = self.hosts[host].change(|host| {
            host.powered = false;
            let synced = if lost { host.synced } else { host.log.len() };
            host.log.split_off(synced)
        });
        self.lost(host, &tail);
        self.guests.change(|guests| guests[host].reset());
    }

    pub(super) fn persisted(&mut self, scenario: &Scenario, host: usize) -> Checked {
        self.hosts[host].change(|host| host.disk = host.persisting.take());
        self.feed(scenario, host, Event::Persisted)
    }

    pub(super) fn show(&mut self, scenario: &Scenario, host: usize, revision: usize) -> Checked {
        let record = Box::new(self.history.get()[revision - 1].0.clone());
        let revision = revision as u64;
        let ends = match self.hosts[host].get().call {
            Some(Call::Read) => true,
            Some(Call::Change(expect)) => revision > expect,
            None => false,
        };
        self.feed(scenario, host, Event::Record { revision, record })?;
        if ends {
            self.hosts[host].change(|host| host.call = None);
            self.feed(scenario, host, Event::Committed)?;
        }
        Ok(())
    }

    fn caught_up(&mut self, scenario: &Scenario, host: usize) -> Checked {
        let Some((from, position)) = self.hosts[host].get().catching else { return Ok(()) };
        let log = self.hosts[from].get().log[..position.entries as usize].to_vec();
        self.hosts[host].change(|host| {
            host.catching = None;
            host.synced = log.len();
            host.log = log;
        });
        self.feed(scenario, host, Event::CaughtUp { position })
    }

    fn copy(&mut self, host: usize) {
        let Some(from) = self.hosts[host].get().following else { return };
        let source = self.hosts[from].get();
        let log = source.log[..source.synced].to_vec();
        self.hosts[host].change(|host| {
            host.synced = log.len();
            host.log = log;
        });
    }

    /// Gives an event to a host's machine and executes what it asks for.
    pub(super) fn feed(&mut self, scenario: &Scenario, host: usize, event: Event) -> Checked {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let effects = self.hosts[host].change(|host| {
                let mut effects = Vec::new();
                if let Some(machine) = &mut host.machine {
                    machine.handle(Time(0), event);
                    while let Some(effect) = machine.poll_effect() {
                        effects.push(effect);
                    }
                }
                effects
            });
            for effect in effects {
                if let Some(event) = self.execute(scenario, host, effect)? {
                    events.insert(0, event);
                }
            }
        }
        Ok(())
    }

    /// The owner has learnt of a transit: from now on its declaration counts.
    fn declared(&mut self, host: usize) {
        let machine = self.hosts[host].get().machine.as_ref();
        let Some(transit) = machine.and_then(Machine::transit).filter(|t| t.declared) else {
            return;
        };
        let target = host_index(transit.to) as u8;
        let truth = self.truth.get();
        if truth.writer != Some(target) && !truth.declared.contains(&target) {
            self.truth.change(|truth| truth.declared.push(target));
        }
    }

    /// The attachment may not write any more; told once what was admitted is done.
    fn withdraw(&mut self, host: usize, attachment: HostId) -> Option<Event> {
        let own = host_index(attachment) == host;
        self.hosts[host].change(|host| {
            host.right.0.take_if(|holder| *holder == attachment);
            host.withdrawing = own && host.admitted.is_some();
            (!host.withdrawing).then_some(Event::RightWithdrawn { attachment })
        })
    }

    fn log_ends(&mut self, host: usize) -> Event {
        self.hosts[host].change(|host| host.synced = host.log.len());
        let it = self.hosts[host].get();
        Event::LogEnds { position: it.position(it.log.len()) }
    }

    /// Executes an effect. What is done at once is reported at once.
    fn execute(
        &mut self,
        scenario: &Scenario,
        host: usize,
        effect: Effect,
    ) -> Result<Option<Event>, String> {
        match effect {
            Effect::Persist(state) => {
                self.hosts[host].change(|host| host.persisting = Some(*state));
            }
            Effect::Registry(change) => {
                let it = self.hosts[host].get();
                let life = it.life;
                let expect = it.machine.as_ref().and_then(Machine::revision).unwrap_or(0);
                self.hosts[host].change(|host| host.call = Some(Call::Change(expect)));
                self.send(Packet::Transaction { from: host, life, expect, change });
            }
            Effect::Read => self.hosts[host].change(|host| host.call = Some(Call::Read)),
            Effect::Send { to, message } => {
                self.send(Packet::Machine { from: host, to: host_index(to), message });
            }
            Effect::Start { epoch, incarnation, at } => {
                return self.start_volume(scenario, host, (epoch, incarnation), at).map(Some);
            }
            Effect::Stop => {
                self.hosts[host].change(|host| host.stopping = true);
                return Ok(self.stopped(scenario, host));
            }
            Effect::Follow { from } => {
                self.hosts[host].change(|host| host.following = Some(host_index(from)));
            }
            Effect::Unfollow => self.hosts[host].change(|host| {
                host.following = None;
                host.catching = None;
            }),
            Effect::FindEnd => return Ok(Some(self.log_ends(host))),
            Effect::CatchUp { from, position } => {
                let catching = Some((host_index(from), position));
                self.hosts[host].change(|host| host.catching = catching);
            }
            Effect::SessionOpened { attachment, session, ended: _ } => {
                self.session_opened(host, attachment, session);
            }
            Effect::SessionEnded { attachment, session } => {
                self.session_ended(host, attachment, session);
            }
            Effect::SessionRefused { .. } => unreachable!("a handful of hosts"),
            Effect::WithdrawRight { attachment } => return Ok(self.withdraw(host, attachment)),
            Effect::SetTailAside { end } => {
                self.hosts[host].change(|host| {
                    let keep = end.filter(|end| host.has(end)).map_or(0, |end| end.entries);
                    host.log.truncate(keep as usize);
                    host.synced = host.log.len();
                });
                return Ok(Some(Event::TailAside));
            }
            Effect::Done(Outcome::Prepared { .. }) => self.declared(host),
            Effect::Route(route) => {
                self.hosts[host].change(|host| host.here = matches!(route, Route::Here { .. }));
            }
            Effect::RightHeld { holder, shared } => {
                self.hosts[host].change(|host| host.right = (holder, shared));
            }
            Effect::Done(_) => {}
        }
        Ok(None)
    }
}
