//! The world's state.

use crate::explore::StateHasher;
use pannier_core::ids::{Epoch, HostId, Incarnation, SessionId, VolumeId};
use pannier_core::record::{VolumePath, VolumeRecord};
use pannier_core::volume::Position;
use pannier_core::volume::ownership::transaction::{Change, Refusal};
use pannier_core::volume::ownership::{BootId, LocalState, Machine, Message, Rules};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::hash::Hash;
use std::rc::Rc;

/// Hosts of the world.
pub(super) const HOSTS: usize = 3;

/// The volume.
pub(super) const VOLUME: VolumeId = VolumeId(7);

/// What the machine's neighbours promise. All kept in production; the explorer breaks one at a time
/// to show that the machine's safety rests on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contracts {
    /// A volume has stopped only when all admitted requests are done and everything is durable.
    pub drained_before_stopped: bool,
    /// A forwarded request is durable before it is acknowledged.
    pub durable_before_forward_ack: bool,
    /// Which requests of a session were applied is written into the log with them.
    pub marks_in_log: bool,
    /// The registry applies a transaction only at the revision that it expects.
    pub conditional_transactions: bool,
    /// A forwarded request that arrives at a host that does not execute it is not sent on.
    pub forwarded_once: bool,
}

impl Contracts {
    /// All kept.
    pub const ALL: Self = Self {
        drained_before_stopped: true,
        durable_before_forward_ack: true,
        marks_in_log: true,
        conditional_transactions: true,
        forwarded_once: true,
    };
}

/// What is explored: who does what, how often.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// For people.
    pub name: &'static str,
    /// The machine's rules.
    pub rules: Rules,
    /// The neighbours' promises.
    pub contracts: Contracts,
    /// Writes that the guest at each host issues; `None`: no guest there.
    pub writes: [Option<u8>; HOSTS],
    /// How often guests may connect anew, in all.
    pub attaches: u8,
    /// How often guests may disconnect, in all.
    pub closes: u8,
    /// How often a daemon may die.
    pub kills: u8,
    /// How often a host may lose power.
    pub power_losses: u8,
    /// Transits that may be begun, in order: from and to.
    pub transits: &'static [(usize, usize)],
    /// Whether they are declared migrations.
    pub declared: bool,
    /// Whether the switch may come.
    pub switches: bool,
    /// How often a giver may abort.
    pub aborts: u8,
    /// How often somebody other than the giver may try to take a transit out of the registry.
    pub foreign_aborts: u8,
    /// How often a host may try to take over.
    pub takeovers: u8,
    /// How often a registry call may be told to have failed.
    pub registry_failures: u8,
    /// Hosts that take part, the first ones.
    pub hosts: usize,
    /// Whether only what a guest can notice counts as a violation: so every counterexample is one
    /// that hurts. Otherwise what leads there counts as well.
    pub guests_only: bool,
    /// Whether followers copy the owner's log before GRANT.
    pub following: bool,
    /// Whether no guest comes or writes yet: for the way to a state.
    pub guests_wait: bool,
}

impl Scenario {
    /// Nothing happens in it.
    pub const QUIET: Self = Self {
        name: "quiet",
        rules: Rules::ALL,
        contracts: Contracts::ALL,
        writes: [Some(1), None, None],
        attaches: 1,
        closes: 0,
        kills: 0,
        power_losses: 0,
        transits: &[],
        declared: false,
        switches: true,
        aborts: 0,
        foreign_aborts: 0,
        takeovers: 0,
        registry_failures: 0,
        hosts: 2,
        guests_only: false,
        following: false,
        guests_wait: false,
    };
}

/// A guest's operation, in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) operation: u8,
    pub(super) attachment: u8,
    pub(super) session: u8,
}

/// A registry call, as its caller knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Call {
    Read,
    /// A transaction at this revision.
    Change(u64),
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Host {
    pub(super) powered: bool,
    pub(super) boot: u8,
    /// Counts daemons, so that answers to a dead one do not reach the next.
    pub(super) life: u8,
    pub(super) machine: Option<Machine>,
    /// The oldest revision that this daemon may be shown.
    pub(super) revision_min: usize,
    pub(super) disk: Option<LocalState>,
    pub(super) persisting: Option<LocalState>,
    /// The registry call under way.
    pub(super) call: Option<Call>,
    pub(super) log: Vec<Entry>,
    pub(super) synced: usize,
    pub(super) stopping: bool,
    pub(super) catching: Option<(usize, Position)>,
    pub(super) following: Option<usize>,
    /// The local guest's write that is admitted and not done.
    pub(super) admitted: Option<Entry>,
    pub(super) withdrawing: bool,
    /// Whether requests are executed here, as the machine has said last.
    pub(super) here: bool,
    /// The attachment that may write here, as the machine has said last; and whether all may.
    pub(super) right: (Option<HostId>, bool),
    /// What appends: the epoch and incarnation that were started last.
    pub(super) appends: (Epoch, Incarnation),
}

/// A message on its way. Never taken away: it can be delivered again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Packet {
    Machine { from: usize, to: usize, message: Message },
    Transaction { from: usize, life: u8, expect: u64, change: Change },
    Refused { to: usize, life: u8, at: u64, refusal: Refusal },
    Write(Entry),
    Acknowledged(Entry),
    Open { attachment: u8, session: u8, lineage: Epoch },
    Opened { attachment: u8, session: u8 },
    Ended { attachment: u8, session: u8 },
    Close { attachment: u8, session: u8 },
}

/// Where a guest's connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    /// Not connected.
    Away,
    /// Its session is not open yet (again).
    Opening,
    /// It is served.
    Open,
}

/// The guest of a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Guest {
    pub(super) phase: Phase,
    /// Its newest session, 0 before the first.
    pub(super) session: u8,
    /// The last takeover known when it was attached.
    pub(super) lineage: Epoch,
    /// The operation that waits to be acknowledged.
    pub(super) waits: Option<u8>,
    pub(super) writes_left: u8,
    /// Operations that it was acknowledged since it was attached, a bit each.
    pub(super) acknowledged: u16,
}

/// What only an observer knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Truth {
    /// Operations that were ever acknowledged, a bit each.
    pub(super) acknowledged: u16,
    /// Of these, what no log may lack that is served from.
    pub(super) kept: u16,
    /// Operations that a takeover has lost, on the operator's word.
    pub(super) lost: u16,
    /// Next operation.
    pub(super) operations: u8,
    /// The attachment that may write.
    pub(super) writer: Option<u8>,
    /// Targets of declared migrations that have not written yet.
    pub(super) declared: Vec<u8>,
    /// Operations executed for an attachment while another one had the write right, a bit each.
    pub(super) intruded: u16,
    /// Starts of owners.
    pub(super) starts: Vec<(Epoch, Incarnation)>,
    /// What each address of the log was used for: an acknowledged write has been read there.
    pub(super) addresses: BTreeMap<Address, u8>,
}

/// Where an entry is: the names of segments are made of the first two, the third is its place.
pub(super) type Address = (Epoch, Incarnation, u8);

/// What may still happen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    pub(super) attaches: u8,
    pub(super) closes: u8,
    pub(super) kills: u8,
    pub(super) power_losses: u8,
    pub(super) transits: u8,
    pub(super) aborts: u8,
    pub(super) foreign_aborts: u8,
    pub(super) takeovers: u8,
    pub(super) registry_failures: u8,
}

/// A value that knows its hash and is shared until it changes.
#[derive(Debug, Clone)]
pub(super) struct Shared<T> {
    value: Rc<T>,
    /// Zero until it is asked for.
    hash: Cell<u64>,
}

impl<T: Clone + Hash> Shared<T> {
    pub(super) fn new(value: T) -> Self {
        Self { value: Rc::new(value), hash: Cell::new(0) }
    }

    pub(super) fn get(&self) -> &T {
        &self.value
    }

    pub(super) fn change<R>(&mut self, change: impl FnOnce(&mut T) -> R) -> R {
        self.hash.set(0);
        change(Rc::make_mut(&mut self.value))
    }

    fn hash(&self) -> u64 {
        if self.hash.get() == 0 {
            self.hash.set(StateHasher::of(&*self.value));
        }
        self.hash.get()
    }
}

/// Everything.
#[derive(Debug, Clone)]
pub struct World {
    pub(super) hosts: [Shared<Host>; HOSTS],
    /// The record at every revision, from 1.
    pub(super) history: Shared<Vec<Rc<Registered>>>,
    pub(super) packets: Vec<Shared<Packet>>,
    packets_hash: u64,
    pub(super) guests: Shared<[Guest; HOSTS]>,
    pub(super) truth: Shared<Truth>,
    pub(super) budget: Shared<Budget>,
}

/// A record that can be hashed: the parts that ownership is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registered(pub(super) VolumeRecord);

impl Hash for Registered {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let record = &self.0;
        (record.owner, record.epoch, record.reserved, &record.transit, record.ended).hash(state);
    }
}

pub(super) fn host_id(host: usize) -> HostId {
    HostId(host as u64)
}

pub(super) fn host_index(id: HostId) -> usize {
    id.0 as usize
}

pub(super) fn session_id(session: u8) -> SessionId {
    SessionId(u64::from(session))
}

impl Host {
    fn new() -> Self {
        Self {
            powered: true,
            boot: 1,
            life: 0,
            machine: None,
            revision_min: 1,
            disk: None,
            persisting: None,
            call: None,
            log: Vec::new(),
            synced: 0,
            stopping: false,
            catching: None,
            following: None,
            admitted: None,
            withdrawing: false,
            here: false,
            right: (None, false),
            appends: (Epoch(0), Incarnation(0)),
        }
    }

    /// Whether requests of an attachment's session are served here.
    pub(super) fn session_counts(&self, attachment: u8, session: u8) -> bool {
        let open = self.machine.as_ref().map(Machine::open_sessions).unwrap_or_default();
        open.get(&host_id(usize::from(attachment))) == Some(&session_id(session))
    }

    /// The end of the log, or of its first `entries` entries.
    pub(super) fn position(&self, entries: usize) -> Position {
        let chain_crc = StateHasher::of(&&self.log[..entries]) as u32;
        Position { segment: None, entries: entries as u32, chain_crc }
    }

    /// Whether the log has this position.
    pub(super) fn has(&self, at: &Position) -> bool {
        let entries = at.entries as usize;
        entries <= self.log.len() && (*at == Position::START || self.position(entries) == *at)
    }

    /// The operations in the log, a bit each.
    pub(super) fn operations(&self) -> u16 {
        self.log.iter().fold(0, |bits, entry| bits | 1 << entry.operation)
    }

    pub(super) fn boot_id(&self) -> BootId {
        BootId(u128::from(self.boot))
    }
}

impl World {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let path = VolumePath::parse("/v").expect("a path");
        let record = VolumeRecord::new(VOLUME, path, 4096, host_id(0));
        let mut hosts = [Host::new(), Host::new(), Host::new()];
        hosts[0].disk = Some(LocalState::creating(VOLUME, BootId(1)));
        let guest = |host: usize| Guest {
            phase: Phase::Away,
            session: 0,
            lineage: Epoch(0),
            waits: None,
            writes_left: scenario.writes[host].unwrap_or(0),
            acknowledged: 0,
        };
        Self {
            hosts: hosts.map(Shared::new),
            history: Shared::new(vec![Rc::new(Registered(record))]),
            packets: Vec::new(),
            packets_hash: 0,
            guests: Shared::new([guest(0), guest(1), guest(2)]),
            truth: Shared::new(Truth::default()),
            budget: Shared::new(Budget {
                attaches: scenario.attaches,
                closes: scenario.closes,
                kills: scenario.kills,
                power_losses: scenario.power_losses,
                transits: 0,
                aborts: scenario.aborts,
                foreign_aborts: scenario.foreign_aborts,
                takeovers: scenario.takeovers,
                registry_failures: scenario.registry_failures,
            }),
        }
    }

    /// Hosts that execute requests, by number.
    #[must_use]
    pub fn executing(&self) -> Vec<usize> {
        (0..HOSTS).filter(|host| self.hosts[*host].get().here).collect()
    }

    /// The owner by the registry.
    #[must_use]
    pub fn registered_owner(&self) -> usize {
        host_index(self.record().owner)
    }

    /// How many writes the guest of a host was acknowledged since it was attached.
    #[must_use]
    pub fn acknowledged(&self, host: usize) -> u32 {
        self.guests.get()[host].acknowledged.count_ones()
    }

    pub(super) fn send(&mut self, packet: Packet) {
        let packet = Shared::new(packet);
        if self.packets.iter().any(|sent| sent.hash() == packet.hash()) {
            return;
        }
        self.packets_hash = self.packets_hash.wrapping_add(packet.hash());
        self.packets.push(packet);
    }

    /// Takes away what can do nothing any more, whatever happens, so that states which differ in
    /// nothing else are one: answers to daemons and sessions that are no more, and transactions on
    /// a revision that is no longer the newest.
    pub(super) fn forget_packets(&mut self, contracts: &Contracts) {
        let revision = self.revision() as u64;
        let newest = |attachment: &u8, session: &u8| {
            self.guests.get()[usize::from(*attachment)].session == *session
        };
        let counts = |packet: &Packet| match packet {
            Packet::Transaction { expect, .. } => {
                *expect == revision || !contracts.conditional_transactions
            }
            Packet::Refused { to, life, .. } => self.hosts[*to].get().life == *life,
            Packet::Acknowledged(entry) => {
                let guest = &self.guests.get()[usize::from(entry.attachment)];
                newest(&entry.attachment, &entry.session) && guest.waits == Some(entry.operation)
            }
            Packet::Opened { attachment, session } | Packet::Ended { attachment, session } => {
                newest(attachment, session)
            }
            // What is late or sent twice can do harm.
            Packet::Machine { .. }
            | Packet::Write(_)
            | Packet::Open { .. }
            | Packet::Close { .. } => true,
        };
        if self.packets.iter().all(|packet| counts(packet.get())) {
            return;
        }
        let kept: Vec<_> =
            self.packets.iter().filter(|packet| counts(packet.get())).cloned().collect();
        self.packets_hash = kept.iter().fold(0, |sum, packet| sum.wrapping_add(packet.hash()));
        self.packets = kept;
    }

    pub(super) fn record(&self) -> &VolumeRecord {
        &self.history.get().last().expect("the history has a first record").0
    }

    pub(super) fn revision(&self) -> usize {
        self.history.get().len()
    }

    pub(super) fn hash(&self) -> u64 {
        let hosts = [self.hosts[0].hash(), self.hosts[1].hash(), self.hosts[2].hash()];
        let rest = [self.guests.hash(), self.truth.hash(), self.budget.hash()];
        StateHasher::of(&(hosts, self.history.hash(), self.packets_hash, rest))
    }
}
