//! Explores the ownership of a volume: every state of the scenarios, with all rules on; and for
//! every rule and every promise of the neighbours, that without it guests notice.
//!
//! `cargo nextest run -p pannier-sim --no-capture` prints states, and the counterexamples as
//! traces. What is too large to be visited whole is explored further with larger values of
//! `PANNIER_EXPLORE_STATES` and `PANNIER_EXPLORE_WALKS`, or another `PANNIER_EXPLORE_SEED`.

use pannier_core::volume::ownership::Rules;
use pannier_sim::explore::{Model, Report, Verdict, explore, search, walk};
use pannier_sim::ownership::{Contracts, Ownership, Scenario, World};

/// States after which an exploration is given up.
const STATES_MAX: usize = 4_000_000;

/// A handover under a writing guest, with a daemon that dies on either side at any moment.
const HANDOVER: Scenario =
    Scenario { name: "handover", kills: 1, transits: &[(0, 1)], ..Scenario::QUIET };

/// A handover while the registry fails.
const REGISTRY_FAILS: Scenario = Scenario {
    name: "handover, registry fails",
    registry_failures: 2,
    transits: &[(0, 1)],
    ..Scenario::QUIET
};

/// There and back, with a guest that forwards first.
const RETURN: Scenario = Scenario {
    name: "there and back",
    writes: [None, Some(1), None],
    transits: &[(0, 1), (1, 0)],
    ..Scenario::QUIET
};

/// A handover that is aborted, and then done after all.
const ABORT: Scenario = Scenario {
    name: "abort",
    kills: 1,
    aborts: 1,
    transits: &[(0, 1), (0, 1)],
    writes: [None; 3],
    ..Scenario::QUIET
};

/// A host loses power in the middle of a handover, another later, and one of them takes over.
const TAKEOVER: Scenario = Scenario {
    name: "takeover",
    hosts: 3,
    power_losses: 2,
    takeovers: 1,
    transits: &[(0, 1)],
    writes: [None; 3],
    ..Scenario::QUIET
};

/// The owner loses power, the other host takes over; guests on both.
const TAKEOVER_GUESTS: Scenario = Scenario {
    name: "takeover with guests",
    power_losses: 1,
    takeovers: 1,
    attaches: 2,
    writes: [Some(1), Some(2), None],
    ..Scenario::QUIET
};

/// An aborted transit, a daemon that dies, a host without power, a takeover. Too large to be
/// visited whole; it is where the counterexample of one rule lies.
const ABORT_TAKEOVER: Scenario = Scenario {
    name: "abort and takeover",
    hosts: 3,
    kills: 1,
    aborts: 1,
    power_losses: 1,
    takeovers: 1,
    transits: &[(0, 1)],
    writes: [None; 3],
    ..Scenario::QUIET
};

/// A transit that somebody else wants out of the registry.
const FOREIGN_ABORT: Scenario = Scenario {
    name: "foreign abort",
    hosts: 3,
    foreign_aborts: 1,
    power_losses: 1,
    takeovers: 1,
    transits: &[(0, 1)],
    writes: [None; 3],
    ..Scenario::QUIET
};

/// A guest that forwards; it connects again, its daemon or the owner's dies.
const FORWARD: Scenario = Scenario {
    name: "forwarding",
    kills: 1,
    attaches: 2,
    closes: 1,
    writes: [None, Some(2), None],
    ..Scenario::QUIET
};

/// Guests on both hosts, one after the other.
const TWO_GUESTS: Scenario = Scenario {
    name: "two guests",
    kills: 1,
    attaches: 2,
    writes: [Some(1), Some(1), None],
    ..Scenario::QUIET
};

/// The guest at the target writes through the owner, and its host becomes the owner meanwhile.
const FORWARD_MOVE: Scenario = Scenario {
    name: "forwarding through a handover",
    transits: &[(0, 1)],
    writes: [None, Some(2), None],
    ..Scenario::QUIET
};

/// The same, with a daemon that dies.
const FORWARD_MOVE_KILL: Scenario = Scenario {
    name: "forwarding through a handover, a daemon dies",
    kills: 1,
    transits: &[(0, 1)],
    writes: [None, Some(1), None],
    ..Scenario::QUIET
};

/// A declared migration: guests at source and target.
const MIGRATION: Scenario = Scenario {
    name: "declared migration",
    attaches: 2,
    declared: true,
    transits: &[(0, 1)],
    writes: [Some(1), Some(1), None],
    ..Scenario::QUIET
};

/// The same; the target's guest comes back later and does not take the right again.
const MIGRATION_TWICE: Scenario = Scenario {
    name: "declared migration, a guest comes twice",
    attaches: 3,
    closes: 1,
    declared: true,
    switches: false,
    transits: &[(0, 1)],
    writes: [Some(1), Some(2), None],
    ..Scenario::QUIET
};

/// The owner loses power with writes that were not flushed; another host's guest goes on.
const POWER: Scenario = Scenario {
    name: "loss of power",
    power_losses: 1,
    writes: [None, Some(2), None],
    ..Scenario::QUIET
};

/// A guest on every host, each with one write.
const ONE_EACH: [Option<u8>; 3] = [Some(1), Some(1), Some(1)];

/// The owner loses power with writes of its own guest, which comes back.
const POWER_TWICE: Scenario = Scenario {
    name: "loss of power, the guest comes back",
    attaches: 2,
    power_losses: 1,
    writes: [Some(2), None, None],
    ..Scenario::QUIET
};

/// The taker loses power before it has settled, the giver takes over.
const REUSE: Scenario = Scenario {
    name: "a taker without power",
    attaches: 2,
    power_losses: 1,
    takeovers: 1,
    transits: &[(0, 1)],
    writes: [Some(1), Some(1), None],
    ..Scenario::QUIET
};

/// A forwarding guest whose daemon dies; then the owner's.
const RECONNECT: Scenario =
    Scenario { name: "reconnecting", kills: 2, writes: [None, Some(1), None], ..Scenario::QUIET };

/// A guest of a third host reconnects, and the volume moves.
const RECONNECT_MOVE: Scenario = Scenario {
    name: "reconnecting through a handover",
    hosts: 3,
    kills: 1,
    transits: &[(0, 1)],
    writes: [None, None, Some(1)],
    ..Scenario::QUIET
};

/// The owner loses power, the host of a forwarding guest takes over, and the guest reconnects.
const TAKEOVER_RECONNECT: Scenario = Scenario {
    name: "takeover by the host of a guest that reconnects",
    kills: 1,
    power_losses: 1,
    takeovers: 1,
    writes: [None, Some(1), None],
    ..Scenario::QUIET
};

/// Guests of two hosts that forward to a third; one gives the right back.
const RELAY: Scenario = Scenario {
    name: "two forwarding guests",
    hosts: 3,
    attaches: 2,
    closes: 1,
    writes: [None, Some(1), Some(1)],
    ..Scenario::QUIET
};

/// Everything at once, too much to be visited whole: walked through at random.
const EVERYTHING: Scenario = Scenario {
    name: "everything",
    writes: [Some(3), Some(3), Some(3)],
    attaches: 6,
    closes: 3,
    kills: 3,
    power_losses: 3,
    transits: &[(0, 1), (1, 2), (2, 0)],
    declared: true,
    aborts: 1,
    foreign_aborts: 1,
    takeovers: 2,
    registry_failures: 2,
    hosts: 3,
    following: true,
    ..Scenario::QUIET
};

/// A daemon that dies, a loss of power, a takeover and a handover, in every order; three hosts
/// without guests.
const EACH_FAULT: Scenario = Scenario {
    name: "each fault once",
    hosts: 3,
    kills: 1,
    power_losses: 1,
    takeovers: 1,
    transits: &[(0, 1)],
    writes: [None; 3],
    ..Scenario::QUIET
};

/// The same on two hosts, with a guest that forwards first.
const EACH_FAULT_TARGET: Scenario = Scenario {
    name: "each fault once, a guest at the target",
    hosts: 2,
    writes: [None, Some(1), None],
    ..EACH_FAULT
};

/// The same on two hosts, with a guest that forwards afterwards.
const EACH_FAULT_SOURCE: Scenario = Scenario {
    name: "each fault once, a guest at the source",
    hosts: 2,
    writes: [Some(1), None, None],
    ..EACH_FAULT
};

/// Three hosts and a guest: too large to be visited whole.
const EACH_FAULT_THREE: Scenario = Scenario {
    name: "each fault once, three hosts and a guest",
    writes: [None, Some(1), None],
    ..EACH_FAULT
};

#[expect(clippy::print_stdout, reason = "the report of a test")]
fn run_to(scenario: &Scenario, states_max: usize) -> Report {
    let begun = std::time::Instant::now();
    let report = explore(&Ownership(scenario.clone()), states_max);
    println!(
        "{}: {} states, {} steps, depth {}, {:.1} s",
        scenario.name,
        report.states,
        report.steps,
        report.depth,
        begun.elapsed().as_secs_f64()
    );
    report
}

#[track_caller]
fn holds(scenario: &Scenario) {
    let report = run_to(scenario, STATES_MAX);
    if let Verdict::Violated { what, trace } = &report.verdict {
        panic!("{what}\n  {}", trace.join("\n  "));
    }
    assert_eq!(report.verdict, Verdict::Holds, "every state is visited");
}

/// A state on the way to a violation that is too far for a search breadth first; and whether no
/// guest comes until then, which only makes the way there wider.
struct Milestone {
    guests_wait: bool,
    reached: fn(&World) -> bool,
}

/// A guest was acknowledged a write.
const A_WRITE: Milestone = Milestone {
    guests_wait: false,
    reached: |world| (0..3).any(|host| world.acknowledged(host) > 0),
};

/// Two hosts execute requests; then a guest writes at one of them.
const DUEL: &[Milestone] = &[
    Milestone { guests_wait: true, reached: |world| world.executing().len() > 1 },
    Milestone {
        guests_wait: false,
        reached: |world| world.executing().len() > 1 && (A_WRITE.reached)(world),
    },
];

/// The second host owns the volume by GRANT and has not settled; its guest is acknowledged a write.
const TAKER_WRITES: &[Milestone] = &[
    Milestone { guests_wait: true, reached: |world| taker_owns(world) },
    Milestone {
        guests_wait: false,
        reached: |world| taker_owns(world) && world.acknowledged(1) > 0,
    },
];

fn taker_owns(world: &World) -> bool {
    world.executing() == [1] && world.registered_owner() == 0
}

/// Explores to a violation that guests notice, by way of the milestones, and prints it.
#[expect(clippy::print_stdout, reason = "the report of a test")]
#[track_caller]
fn falls(without: &str, scenario: &Scenario, milestones: &[Milestone]) {
    let begun = std::time::Instant::now();
    let (mut states, mut way) = (0, Vec::new());
    let mut world = Ownership(scenario.clone()).start();
    let never = Milestone { guests_wait: false, reached: |_| false };
    for milestone in milestones.iter().chain([&never]) {
        let guests_wait = milestone.guests_wait;
        let model = Ownership(Scenario { guests_only: true, guests_wait, ..scenario.clone() });
        let (report, reached) = search(&model, world, milestone.reached, STATES_MAX);
        states += report.states;
        match report.verdict {
            Verdict::Violated { what, trace } => {
                way.extend(trace);
                let (name, steps) = (scenario.name, way.len());
                let seconds = begun.elapsed().as_secs_f64();
                println!(
                    "without {without}: {what}; {name}, {states} states, {steps} steps, \
                     {seconds:.1} s\n  {}",
                    way.join("\n  ")
                );
                return;
            }
            Verdict::Reached { trace } => way.extend(trace),
            Verdict::Holds | Verdict::Unfinished => break,
        }
        world = reached.expect("a goal that is reached is a state");
    }
    panic!(
        "nothing happens without {without} ({states} states, after {} steps): it is no rule, or \
         the scenario is too small",
        way.len()
    );
}

macro_rules! scenarios {
    ($($test:ident: $scenario:expr;)*) => {$(
        #[test]
        fn $test() {
            holds(&$scenario);
        }
    )*};
}

scenarios! {
    holds_in_a_handover: HANDOVER;
    holds_when_the_registry_fails: REGISTRY_FAILS;
    holds_there_and_back: RETURN;
    holds_through_an_abort: ABORT;
    holds_through_a_takeover: TAKEOVER;
    holds_for_guests_of_a_takeover: TAKEOVER_GUESTS;
    holds_through_a_foreign_abort: FOREIGN_ABORT;
    holds_when_forwarding: FORWARD;
    holds_for_two_guests: TWO_GUESTS;
    holds_when_forwarding_through_a_handover: FORWARD_MOVE;
    holds_when_forwarding_through_a_handover_and_a_kill: FORWARD_MOVE_KILL;
    holds_in_a_declared_migration: MIGRATION;
    holds_when_a_guest_of_a_migration_comes_twice: MIGRATION_TWICE;
    holds_at_a_loss_of_power: POWER;
    holds_for_two_forwarding_guests: RELAY;
    holds_when_the_guest_comes_back_after_a_loss_of_power: POWER_TWICE;
    holds_when_a_taker_loses_power: Scenario { attaches: 1, ..REUSE };
    holds_when_a_guest_reconnects: RECONNECT;
    holds_when_a_guest_reconnects_through_a_handover: RECONNECT_MOVE;
    holds_when_a_guest_reconnects_after_a_takeover: TAKEOVER_RECONNECT;
    holds_with_each_fault: EACH_FAULT;
    holds_with_each_fault_and_a_guest_at_the_target: EACH_FAULT_TARGET;
    holds_with_each_fault_and_a_guest_at_the_source: EACH_FAULT_SOURCE;
}

/// The value of a variable that makes a test larger.
fn larger(variable: &str, usual: usize) -> usize {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
}

/// As far as the bound goes: `PANNIER_EXPLORE_STATES`.
#[test]
fn holds_with_each_fault_as_far_as_explored() {
    let states_max = larger("PANNIER_EXPLORE_STATES", 400_000);
    let report = run_to(&EACH_FAULT_THREE, states_max);
    if let Verdict::Violated { what, trace } = &report.verdict {
        panic!("{what}\n  {}", trace.join("\n  "));
    }
}

/// As many walks as `PANNIER_EXPLORE_WALKS`, from the seed `PANNIER_EXPLORE_SEED`.
#[test]
fn holds_on_walks_through_everything() {
    let walks = larger("PANNIER_EXPLORE_WALKS", 20_000);
    let seed = larger("PANNIER_EXPLORE_SEED", 1) as u64;
    match walk(&Ownership(EVERYTHING), seed, walks, 150) {
        Ok(steps) => println!("{walks} walks from seed {seed}: {steps} steps"),
        Err((what, trace)) => panic!("seed {seed}: {what}\n  {}", trace.join("\n  ")),
    }
}

/// For every rule the scenario in which it is missed, and the way there.
macro_rules! rules {
    ($($rule:ident: $scenario:expr, $milestones:expr;)*) => {
        mod without {
            use super::*;

            $(
                #[test]
                fn $rule() {
                    let rules = Rules::without(stringify!($rule)).unwrap();
                    falls(stringify!($rule), &Scenario { rules, ..$scenario }, $milestones);
                }
            )*
        }

        #[test]
        fn every_rule_has_a_counterexample() {
            let mut tried = vec![$(stringify!($rule)),*];
            let mut rules = Rules::NAMES.to_vec();
            tried.sort_unstable();
            rules.sort_unstable();
            assert_eq!(tried, rules, "the rules of the machine, and those left out in a test");
        }
    };
}

rules! {
    epochs_never_reused: REUSE, TAKER_WRITES;
    granted_before_grant: Scenario { writes: ONE_EACH, attaches: 2, ..HANDOVER }, DUEL;
    granted_is_silent: HANDOVER, &[];
    accepted_before_reply: Scenario { writes: [Some(2), None, None], ..HANDOVER }, &[];
    refuse_known_epochs: RETURN, &[];
    transit_read_in_this_boot: Scenario { writes: ONE_EACH, attaches: 2, ..TAKEOVER }, DUEL;
    caught_up_before_accepted: HANDOVER, &[];
    no_abort_after_granted: Scenario { writes: ONE_EACH, attaches: 2, ..ABORT }, DUEL;
    abort_before_registered: Scenario { writes: ONE_EACH, attaches: 2, ..ABORT_TAKEOVER }, DUEL;
    only_giver_aborts: Scenario { writes: ONE_EACH, attaches: 2, ..FOREIGN_ABORT }, DUEL;
    reboot_needs_registry: Scenario { writes: ONE_EACH, attaches: 2, ..TAKEOVER }, DUEL;
    new_incarnation: POWER_TWICE, &[];
    transit_counts_both: Scenario { writes: ONE_EACH, attaches: 2, ..TAKEOVER }, DUEL;
    takeover_registered_first: Scenario { writes: ONE_EACH, attaches: 2, ..TAKEOVER }, DUEL;
    takeover_ends_sessions: TAKEOVER_RECONNECT, &[];
    new_session_ends_old: FORWARD, &[];
    sessions_are_durable: RECONNECT, &[];
    sessions_travel: RECONNECT_MOVE, &[];
    one_writer: TWO_GUESTS, &[];
    right_is_durable: TWO_GUESTS, &[];
    right_travels: Scenario { declared: false, ..MIGRATION }, &[];
    right_withdrawn_first: MIGRATION, &[];
    declared_once: MIGRATION_TWICE, &[];
}

/// The same for every promise of the machine's neighbours.
mod broken {
    use super::*;

    #[test]
    fn drained_before_stopped() {
        let contracts = Contracts { drained_before_stopped: false, ..Contracts::ALL };
        falls("drained_before_stopped", &Scenario { contracts, ..HANDOVER }, &[]);
    }

    #[test]
    fn durable_before_forward_ack() {
        let contracts = Contracts { durable_before_forward_ack: false, ..Contracts::ALL };
        falls("durable_before_forward_ack", &Scenario { contracts, ..POWER }, &[]);
    }

    #[test]
    fn marks_in_log() {
        let contracts = Contracts { marks_in_log: false, ..Contracts::ALL };
        falls("marks_in_log", &Scenario { contracts, ..FORWARD }, &[]);
    }

    #[test]
    fn forwarded_once() {
        let contracts = Contracts { forwarded_once: false, ..Contracts::ALL };
        falls("forwarded_once", &Scenario { contracts, ..RELAY }, &[]);
    }
}
