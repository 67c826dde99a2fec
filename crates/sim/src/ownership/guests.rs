//! The local volume and the guests.

use super::check::check_write;
use super::step::Action;
use super::world::{Call, Entry, Guest, Packet, Phase, Scenario, World};
use super::world::{host_id, host_index, session_id};
use pannier_core::ids::{Epoch, HostId, Incarnation, SessionId};
use pannier_core::volume::Position;
use pannier_core::volume::ownership::Event;

type Checked = Result<(), String>;

/// What a host does with a write.
enum Admission {
    Execute,
    AskRight,
    NoSession,
    Elsewhere,
}

impl Guest {
    /// It is gone; whatever is attached next knows nothing of what it was acknowledged.
    pub(super) fn reset(&mut self) {
        self.phase = Phase::Away;
        self.waits = None;
        self.acknowledged = 0;
    }
}

impl World {
    pub(super) fn guest_actions(&self, host: u8, into: &mut Vec<Action>) {
        let index = usize::from(host);
        let it = self.hosts[index].get();
        let guest = &self.guests.get()[index];
        let budget = self.budget.get();
        if it.machine.is_none() {
            return;
        }
        let idle = guest.waits.is_none();
        match guest.phase {
            Phase::Away if budget.attaches > 0 && guest.writes_left > 0 => {
                into.push(Action::Attach(host));
            }
            Phase::Away => {}
            Phase::Opening => into.push(Action::Open(host)),
            Phase::Open if idle => {
                if guest.writes_left > 0 {
                    into.push(Action::Issue(host));
                }
                if budget.closes > 0 {
                    into.push(Action::Close(host));
                }
            }
            Phase::Open => {
                if it.admitted.is_none() && !it.stopping && !it.withdrawing {
                    into.push(Action::Run(host));
                }
            }
        }
        if it.admitted.is_some() {
            into.push(Action::Complete(host));
        }
    }

    pub(super) fn guest_acts(&mut self, scenario: &Scenario, action: Action) -> Checked {
        match action {
            Action::Attach(host) => {
                let host = usize::from(host);
                let machine = self.hosts[host].get().machine.as_ref();
                let lineage = machine.map_or(Epoch(0), |machine| machine.lineage());
                self.budget.change(|budget| budget.attaches -= 1);
                self.guests.change(|guests| {
                    let guest = &mut guests[host];
                    guest.phase = Phase::Opening;
                    guest.session += 1;
                    guest.lineage = lineage;
                });
                Ok(())
            }
            Action::Open(host) => self.open(scenario, usize::from(host)),
            Action::Issue(host) => {
                let operation = self.truth.change(|truth| {
                    truth.operations += 1;
                    truth.operations - 1
                });
                self.guests.change(|guests| {
                    let guest = &mut guests[usize::from(host)];
                    guest.waits = Some(operation);
                    guest.writes_left -= 1;
                });
                Ok(())
            }
            Action::Run(host) => self.run(scenario, usize::from(host)),
            Action::Complete(host) => self.complete(scenario, usize::from(host)),
            Action::Close(host) => self.close(scenario, usize::from(host)),
            _ => Ok(()),
        }
    }

    fn executes(&self, host: usize) -> bool {
        self.hosts[host].get().here
    }

    fn open(&mut self, scenario: &Scenario, host: usize) -> Checked {
        let Guest { session, lineage, .. } = self.guests.get()[host];
        let attachment = host as u8;
        if self.executes(host) {
            return self.open_here(scenario, host, (attachment, session, lineage));
        }
        self.send(Packet::Open { attachment, session, lineage });
        Ok(())
    }

    fn open_here(
        &mut self,
        scenario: &Scenario,
        host: usize,
        (attachment, session, lineage): (u8, u8, Epoch),
    ) -> Checked {
        let attachment = host_id(usize::from(attachment));
        let session = session_id(session);
        self.feed(scenario, host, Event::OpenSession { attachment, session, lineage })
    }

    fn close(&mut self, scenario: &Scenario, host: usize) -> Checked {
        let session = self.guests.get()[host].session;
        let attachment = host as u8;
        self.budget.change(|budget| budget.closes -= 1);
        self.guests.change(|guests| guests[host].reset());
        self.truth.change(|truth| {
            if truth.writer == Some(attachment) {
                truth.writer = None;
            }
        });
        if self.executes(host) {
            let (attachment, session) = (host_id(host), session_id(session));
            return self.feed(scenario, host, Event::CloseSession { attachment, session });
        }
        self.send(Packet::Close { attachment, session });
        Ok(())
    }

    /// Whether a host does anything with a packet.
    pub(super) fn takes(&self, host: usize, packet: &Packet) -> bool {
        let it = self.hosts[host].get();
        let guest = &self.guests.get()[host];
        if it.machine.is_none() {
            return false;
        }
        match packet {
            Packet::Machine { to, .. } => *to == host,
            Packet::Transaction { .. } => false,
            Packet::Refused { to, life, at, .. } => {
                *to == host && *life == it.life && it.call == Some(Call::Change(*at))
            }
            // A host that executes nothing answers `moved`; it matters only if it forwards.
            Packet::Write(entry) => usize::from(entry.attachment) != host && !it.stopping,
            Packet::Acknowledged(entry) => {
                usize::from(entry.attachment) == host
                    && (guest.session, guest.waits) == (entry.session, Some(entry.operation))
                    && it.admitted.is_none()
            }
            Packet::Open { attachment, .. } | Packet::Close { attachment, .. } => {
                usize::from(*attachment) != host && self.executes(host)
            }
            Packet::Opened { attachment, session } => {
                usize::from(*attachment) == host
                    && (guest.phase, guest.session) == (Phase::Opening, *session)
            }
            Packet::Ended { attachment, session } => {
                usize::from(*attachment) == host
                    && guest.phase != Phase::Away
                    && guest.session == *session
            }
        }
    }

    pub(super) fn deliver(&mut self, scenario: &Scenario, host: usize, packet: Packet) -> Checked {
        match packet {
            Packet::Machine { from, message, .. } => {
                let from = host_id(from);
                self.feed(scenario, host, Event::Peer { from, message })
            }
            Packet::Refused { refusal, .. } => {
                self.hosts[host].change(|host| host.call = None);
                self.feed(scenario, host, Event::Refused(refusal))
            }
            Packet::Write(entry) => self.forwarded(scenario, host, entry),
            Packet::Acknowledged(entry) => {
                self.acknowledge(host, entry);
                Ok(())
            }
            Packet::Open { attachment, session, lineage } => {
                self.open_here(scenario, host, (attachment, session, lineage))
            }
            Packet::Close { attachment, session } => {
                let attachment = host_id(usize::from(attachment));
                let session = session_id(session);
                self.feed(scenario, host, Event::CloseSession { attachment, session })
            }
            Packet::Opened { .. } => {
                self.guests.change(|guests| guests[host].phase = Phase::Open);
                Ok(())
            }
            Packet::Ended { .. } => {
                self.guests.change(|guests| guests[host].reset());
                Ok(())
            }
            Packet::Transaction { .. } => Ok(()),
        }
    }

    pub(super) fn session_opened(&mut self, host: usize, attachment: HostId, session: SessionId) {
        let owner = host_index(attachment);
        let number = session.0 as u8;
        if owner != host {
            self.send(Packet::Opened { attachment: owner as u8, session: number });
            return;
        }
        let guest = &self.guests.get()[host];
        if (guest.phase, guest.session) == (Phase::Opening, number) {
            self.guests.change(|guests| guests[host].phase = Phase::Open);
        }
    }

    pub(super) fn session_ended(&mut self, host: usize, attachment: HostId, session: SessionId) {
        let owner = host_index(attachment);
        let number = session.0 as u8;
        if owner != host {
            self.send(Packet::Ended { attachment: owner as u8, session: number });
        } else if self.guests.get()[host].session == number {
            self.guests.change(|guests| guests[host].reset());
        }
    }

    fn entry(&self, host: usize) -> Option<Entry> {
        let guest = &self.guests.get()[host];
        guest.waits.map(|operation| Entry {
            operation,
            attachment: host as u8,
            session: guest.session,
        })
    }

    /// What a host does with a write, by what its machine has said: the route, the sessions that
    /// count, the holder of the write right. As the engine's attachment and its server of peers do.
    fn admit(&self, host: usize, entry: Entry) -> Admission {
        let it = self.hosts[host].get();
        if !it.here {
            return Admission::Elsewhere;
        }
        if !it.session_counts(entry.attachment, entry.session) {
            return Admission::NoSession;
        }
        let (holder, shared) = it.right;
        if shared || holder == Some(host_id(usize::from(entry.attachment))) {
            return Admission::Execute;
        }
        Admission::AskRight
    }

    /// The guest's write is executed here, or forwarded.
    fn run(&mut self, scenario: &Scenario, host: usize) -> Checked {
        let Some(entry) = self.entry(host) else { return Ok(()) };
        let applied =
            scenario.contracts.marks_in_log && self.hosts[host].get().log.contains(&entry);
        match self.admit(host, entry) {
            Admission::Execute | Admission::AskRight if applied => {
                self.acknowledge(host, entry);
                Ok(())
            }
            Admission::Execute => {
                self.hosts[host].change(|host| host.admitted = Some(entry));
                Ok(())
            }
            Admission::AskRight => {
                self.feed(scenario, host, Event::AskRight { attachment: host_id(host) })
            }
            Admission::NoSession => {
                self.guests.change(|guests| guests[host].reset());
                Ok(())
            }
            Admission::Elsewhere => {
                self.send(Packet::Write(entry));
                Ok(())
            }
        }
    }

    /// A forwarded write arrives.
    fn forwarded(&mut self, scenario: &Scenario, host: usize, entry: Entry) -> Checked {
        let applied =
            scenario.contracts.marks_in_log && self.hosts[host].get().log.contains(&entry);
        match self.admit(host, entry) {
            Admission::Execute | Admission::AskRight if applied => {
                self.send(Packet::Acknowledged(entry));
                Ok(())
            }
            Admission::Execute => {
                check_write(self, scenario, host, entry)?;
                self.hosts[host].change(|host| {
                    host.log.push(entry);
                    if scenario.contracts.durable_before_forward_ack {
                        host.synced = host.log.len();
                    }
                });
                self.send(Packet::Acknowledged(entry));
                Ok(())
            }
            Admission::AskRight => {
                let attachment = host_id(usize::from(entry.attachment));
                self.feed(scenario, host, Event::AskRight { attachment })
            }
            Admission::NoSession => {
                let Entry { attachment, session, .. } = entry;
                self.send(Packet::Ended { attachment, session });
                Ok(())
            }
            // It is answered `moved`, which tells the sender nothing that it does not find out.
            Admission::Elsewhere if scenario.contracts.forwarded_once => Ok(()),
            Admission::Elsewhere => {
                // As a request of this host, which is what its peers authenticate.
                let guest = &self.guests.get()[host];
                if guest.phase == Phase::Open {
                    let session = guest.session;
                    self.send(Packet::Write(Entry { attachment: host as u8, session, ..entry }));
                }
                Ok(())
            }
        }
    }

    fn acknowledge(&mut self, host: usize, entry: Entry) {
        let bit = 1 << entry.operation;
        self.guests.change(|guests| {
            guests[host].waits = None;
            guests[host].acknowledged |= bit;
        });
        self.truth.change(|truth| {
            truth.acknowledged |= bit;
            truth.kept |= bit & !truth.lost;
        });
    }

    /// A local write that was admitted is done.
    fn complete(&mut self, scenario: &Scenario, host: usize) -> Checked {
        let Some(entry) = self.hosts[host].change(|host| host.admitted.take()) else {
            return Ok(());
        };
        check_write(self, scenario, host, entry)?;
        self.hosts[host].change(|host| host.log.push(entry));
        self.acknowledge(host, entry);
        if self.hosts[host].change(|host| std::mem::take(&mut host.withdrawing)) {
            let attachment = host_id(host);
            self.feed(scenario, host, Event::RightWithdrawn { attachment })?;
        }
        match self.stopped(scenario, host) {
            Some(event) => self.feed(scenario, host, event),
            None => Ok(()),
        }
    }

    /// The volume has stopped, if it shall and nothing is under way.
    pub(super) fn stopped(&mut self, scenario: &Scenario, host: usize) -> Option<Event> {
        let it = self.hosts[host].get();
        let waits = it.admitted.is_some() && scenario.contracts.drained_before_stopped;
        if !it.stopping || waits {
            return None;
        }
        self.hosts[host].change(|host| {
            host.stopping = false;
            host.synced = host.log.len();
        });
        let it = self.hosts[host].get();
        Some(Event::Stopped { position: it.position(it.log.len()), size_bytes: 4096 })
    }

    pub(super) fn start_volume(
        &mut self,
        scenario: &Scenario,
        host: usize,
        (epoch, incarnation): (Epoch, Incarnation),
        at: Option<Position>,
    ) -> Result<Event, String> {
        if !scenario.guests_only && self.truth.get().starts.contains(&(epoch, incarnation)) {
            return Err(format!("host {host} starts {epoch:?}, {incarnation:?} a second time"));
        }
        self.truth.change(|truth| truth.starts.push((epoch, incarnation)));
        if let Some(at) = at {
            let has = self.hosts[host].get().has(&at);
            if !has && scenario.rules == pannier_core::volume::ownership::Rules::ALL {
                return Err(format!("host {host} starts with a log that does not reach {at:?}"));
            }
            self.hosts[host].change(|host| host.log.truncate(at.entries as usize));
        }
        self.hosts[host].change(|host| {
            host.synced = host.log.len();
            host.appends = (epoch, incarnation);
        });
        Ok(Event::Started)
    }
}
