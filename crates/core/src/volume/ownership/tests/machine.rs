use super::super::{BootId, Effect, Event, LocalState, Machine, Outcome, Role};
use super::super::{Command, transaction::Refusal};
use super::super::{Grant, Message, Right, Route, SESSIONS_MAX};
use crate::ids::{Epoch, HostId, Incarnation, SessionId, VolumeId};
use crate::record::{Transit, VolumePath, VolumeRecord};
use crate::units::Time;
use crate::volume::Position;

const VOLUME: VolumeId = VolumeId(7);

fn owner(boot: u128) -> LocalState {
    let role = Role::Owner { epoch: Epoch(3), incarnation: Incarnation(4), transit: None };
    LocalState { role, known: Epoch(3), ..LocalState::follower(VOLUME, BootId(boot)) }
}

fn effects(machine: &mut Machine, event: Event) -> Vec<Effect> {
    effects_at(machine, Time(0), event)
}

fn effects_at(machine: &mut Machine, now: Time, event: Event) -> Vec<Effect> {
    machine.handle(now, event);
    std::iter::from_fn(|| machine.poll_effect()).collect()
}

fn started(effects: &[Effect]) -> Option<(Epoch, Incarnation)> {
    effects.iter().find_map(|effect| {
        let Effect::Start { epoch, incarnation, .. } = effect else { return None };
        Some((*epoch, *incarnation))
    })
}

/// A daemon that restarts in the boot of its state, up to where it appends.
fn running() -> Machine {
    let mut machine = Machine::open(HostId(1), BootId(1), VOLUME, Some(owner(1)));
    assert_eq!(started(&effects(&mut machine, Event::Timer)), None, "it is not durable yet");
    let start = effects(&mut machine, Event::Persisted);
    assert_eq!(started(&start), Some((Epoch(3), Incarnation(5))));
    effects(&mut machine, Event::Started);
    assert_eq!(machine.appends_under(), Some((Epoch(3), Incarnation(5))));
    machine
}

#[test]
fn a_restart_in_the_same_boot_is_a_new_incarnation() {
    running();
}

#[test]
fn after_a_reboot_nothing_starts_or_is_written() {
    let mut machine = Machine::open(HostId(1), BootId(2), VOLUME, Some(owner(1)));
    assert_eq!(effects(&mut machine, Event::Timer).first(), Some(&Effect::Read));
    assert!(effects(&mut machine, Event::RegistryAway).is_empty());
    assert_eq!(effects(&mut machine, Event::Timer), [Effect::Read]);
    assert_eq!(machine.state().boot, BootId(1), "a restart now would find the old boot still");
}

#[test]
fn a_start_that_fails_is_tried_again_later() {
    let mut machine = Machine::open(HostId(1), BootId(1), VOLUME, Some(owner(1)));
    effects(&mut machine, Event::Timer);
    assert!(started(&effects(&mut machine, Event::Persisted)).is_some());
    assert_eq!(started(&effects(&mut machine, Event::Failed)), None);
    let mut pauses = Vec::new();
    let mut now = Time(0);
    for _ in 0..10 {
        let early = effects_at(&mut machine, now, Event::Timer);
        assert_eq!(started(&early), None, "it waits for its time");
        let next = machine.poll_deadline().unwrap();
        pauses.push((next.0 - now.0) / 1_000_000);
        now = next;
        let again = effects_at(&mut machine, now, Event::Timer);
        assert_eq!(started(&again), Some((Epoch(3), Incarnation(5))), "it has not appended");
        assert_eq!(started(&effects_at(&mut machine, now, Event::Failed)), None);
    }
    assert_eq!(pauses, [200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
}

#[test]
fn an_owner_by_the_registry_that_knows_of_nothing_has_lost_its_state() {
    let record = |owner: u64, epoch: u64, revision: u64| {
        let path = VolumePath::parse("/v").unwrap();
        let record = VolumeRecord {
            epoch: Epoch(epoch),
            reserved: Epoch(epoch),
            ..VolumeRecord::new(VOLUME, path, 4096, HostId(owner))
        };
        Event::Record { revision, record: Box::new(record) }
    };
    let mut lost = Machine::open(HostId(1), BootId(1), VOLUME, None);
    effects(&mut lost, Event::Timer);
    assert!(!lost.has_lost_state());
    effects(&mut lost, record(1, 3, 9));
    assert!(lost.has_lost_state());
    effects(&mut lost, record(2, 4, 10));
    assert!(!lost.has_lost_state(), "it was taken over");
    // A giver whose taker has not registered itself yet.
    let gave = LocalState { known: Epoch(4), ..LocalState::follower(VOLUME, BootId(1)) };
    let mut giver = Machine::open(HostId(1), BootId(1), VOLUME, Some(gave));
    effects(&mut giver, record(1, 3, 9));
    assert!(!giver.has_lost_state());
    let creating = LocalState::creating(VOLUME, BootId(1));
    let mut creating = Machine::open(HostId(1), BootId(1), VOLUME, Some(creating));
    effects(&mut creating, record(1, 3, 9));
    assert!(!creating.has_lost_state());
    assert!(!running().has_lost_state());
}

/// The record of the machine's volume, with a transit of host 1 to host 2.
fn moving(waits_for_write: bool) -> Event {
    let (from, to, epoch) = (HostId(1), HostId(2), Epoch(4));
    let path = VolumePath::parse("/v").unwrap();
    let record = VolumeRecord {
        epoch: Epoch(3),
        reserved: epoch,
        transit: Some(Transit { from, to, epoch, declared: true, waits_for_write }),
        ..VolumeRecord::new(VOLUME, path, 4096, from)
    };
    Event::Record { revision: 9, record: Box::new(record) }
}

/// Host 2 has an open session at the machine and holds the write right, durably.
fn held_by_another() -> Machine {
    let (mut machine, attachment) = (running(), HostId(2));
    let open = Event::OpenSession { attachment, session: SessionId(1), lineage: Epoch(0) };
    for event in [open, Event::Persisted, Event::AskRight { attachment }] {
        effects(&mut machine, event);
    }
    let held = Effect::RightHeld { holder: Some(attachment), shared: false };
    assert!(effects(&mut machine, Event::Persisted).contains(&held));
    machine
}

#[test]
fn a_right_that_is_freed_is_withdrawn_at_once() {
    let mut machine = held_by_another();
    let close = Event::CloseSession { attachment: HostId(2), session: SessionId(1) };
    let free = Effect::RightHeld { holder: None, shared: false };
    assert!(effects(&mut machine, close).contains(&free), "before it is durable");
}

#[test]
fn a_declared_target_that_holds_the_right_already_is_not_waited_for() {
    let mut machine = held_by_another();
    assert!(effects(&mut machine, moving(true)).contains(&Effect::Stop));
    let mut machine = held_by_another();
    assert!(!effects(&mut machine, moving(false)).contains(&Effect::Stop));
    assert_eq!(machine.state().right.declared, None, "there is nothing to take");
}

#[test]
fn a_takeover_ends_catching_up() {
    let mut machine = Machine::open(HostId(2), BootId(1), VOLUME, None);
    effects(&mut machine, moving(false));
    effects(&mut machine, Event::Persisted);
    let (from, to, epoch) = (HostId(1), HostId(2), Epoch(4));
    let grant = Grant {
        from,
        to,
        epoch,
        position: Position { segment: None, entries: 5, chain_crc: 1 },
        size_bytes: 4096,
        right: Right::default(),
        lineage: Epoch(0),
        sessions: [].into(),
    };
    let position = grant.position;
    let message = Message::Grant(grant);
    let granted = effects(&mut machine, Event::Peer { from, message });
    assert_eq!(granted.first(), Some(&Effect::CatchUp { from, position }));
    let takeover = Event::Command(Command::Takeover { fenced: [from].into() });
    assert_eq!(effects(&mut machine, takeover), [Effect::Unfollow, Effect::FindEnd]);
    // Until it is known where the log ends there is nothing to claim, and nothing to follow.
    let message = Message::AskSwitch { epoch };
    for late in [Event::CaughtUp { position }, Event::Timer, Event::Peer { from, message }] {
        assert!(effects(&mut machine, late).is_empty());
    }
    let at = Position::START;
    effects(&mut machine, Event::LogEnds { position: at });
    let Role::Claiming { at: claimed, .. } = machine.state().role else { panic!("no claim") };
    assert_eq!(claimed, at);
}

#[test]
fn one_session_too_many_is_refused_and_ends_no_other() {
    let mut machine = running();
    let open = |machine: &mut Machine, host: u64, session| {
        let (attachment, session) = (HostId(host), SessionId(session));
        let open = Event::OpenSession { attachment, session, lineage: Epoch(0) };
        let refused = Effect::SessionRefused { attachment, session };
        effects(machine, open).contains(&refused)
    };
    let max = SESSIONS_MAX as u64;
    assert!((0..max).all(|host| !open(&mut machine, host, 7)));
    assert!(open(&mut machine, max, 1), "it is refused");
    assert!(machine.state().sessions.values().all(|session| session.open));
    assert!(!open(&mut machine, 3, 8), "it takes the place of its attachment's former one");
    effects(&mut machine, Event::CloseSession { attachment: HostId(5), session: SessionId(7) });
    assert!(!open(&mut machine, max, 1), "there is room again");
}

#[test]
fn a_volume_that_cannot_be_stopped_serves_reads_and_its_transit_ends() {
    let mut machine = running();
    effects(&mut machine, moving(false));
    effects(&mut machine, Event::Persisted);
    let asked = effects(&mut machine, Event::Command(Command::Switch));
    assert!(asked.contains(&Effect::Stop), "{asked:?}");
    let failed = effects(&mut machine, Event::StopFailed);
    assert!(failed.contains(&Effect::Done(Outcome::Refused(Refusal::DiskFailed))), "{failed:?}");
    assert!(failed.contains(&Effect::Route(Route::Here { epoch: Epoch(3) })), "{failed:?}");
    assert_eq!(started(&failed), None, "it has not ended");
    let over = effects(&mut machine, Event::Persisted);
    assert!(over.contains(&Effect::Done(Outcome::Aborted { epoch: Epoch(4) })), "{over:?}");
    let again = Message::AskSwitch { epoch: Epoch(4) };
    let again = effects(&mut machine, Event::Peer { from: HostId(2), message: again });
    assert!(again.is_empty(), "{again:?}");
}

#[test]
fn commands_that_do_not_fit_are_refused() {
    for (command, refusal) in [
        (Command::Switch, Refusal::NoTransit),
        (Command::Abort, Refusal::NoTransit),
        (Command::Takeover { fenced: [].into() }, Refusal::AlreadyThere(HostId(1))),
    ] {
        let mut machine = running();
        let done = effects(&mut machine, Event::Command(command));
        assert_eq!(done, [Effect::Done(Outcome::Refused(refusal))]);
    }
}

#[test]
fn stray_events_change_nothing() {
    let strays = [
        Event::Persisted,
        Event::Started,
        Event::Stopped { position: Position::START, size_bytes: 0 },
        Event::CaughtUp { position: Position::START },
        Event::RightWithdrawn { attachment: HostId(2) },
        Event::TailAside,
        Event::LogEnds { position: Position::START },
        Event::StopFailed,
        Event::Timer,
    ];
    for event in strays {
        let mut machine = running();
        let before = machine.clone();
        assert!(effects(&mut machine, event.clone()).is_empty(), "{event:?}");
        assert_eq!(machine, before, "{event:?}");
    }
}
