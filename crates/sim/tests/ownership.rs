//! Explores the ownership of a volume: every state of the scenarios, with all rules on; and for the
//! rules, that without one of them a violation is found.
//!
//! `cargo nextest run -p pannier-sim --no-capture` prints states, and the counterexamples as
//! traces.

use pannier_core::volume::ownership::Rules;
use pannier_sim::explore::{Report, Verdict, explore};
use pannier_sim::ownership::{Ownership, Scenario};

/// States after which an exploration is given up.
const STATES_MAX: usize = 4_000_000;

/// A handover, with a daemon that dies on either side at any moment.
const HANDOVER: Scenario =
    Scenario { name: "handover", kills: 1, transits: &[(0, 1)], ..Scenario::QUIET };

/// There and back.
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

/// A host loses power in the middle of a handover, and one of the others takes over.
const TAKEOVER: Scenario = Scenario {
    name: "takeover",
    hosts: 3,
    power_losses: 2,
    takeovers: 1,
    transits: &[(0, 1)],
    writes: [None; 3],
    ..Scenario::QUIET
};

/// A host loses power, another takes over; guests on both.
const TAKEOVER_GUESTS: Scenario = Scenario {
    name: "takeover with guests",
    power_losses: 1,
    takeovers: 1,
    attaches: 2,
    writes: [Some(1), Some(2), None],
    ..Scenario::QUIET
};

/// An aborted transit, a daemon that dies, a host without power, a takeover. Too large to be
/// visited whole; it is where the counterexamples of two rules lie.
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

/// Guests on both hosts; the owner's and the forwarder's daemon die.
const FORWARD: Scenario = Scenario {
    name: "forwarding",
    kills: 1,
    attaches: 3,
    closes: 1,
    writes: [Some(1), Some(2), None],
    ..Scenario::QUIET
};

/// The guest at the target writes through the owner, and its host becomes the owner meanwhile.
const FORWARD_MOVE: Scenario = Scenario {
    name: "forwarding through a handover",
    kills: 1,
    transits: &[(0, 1)],
    writes: [None, Some(2), None],
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

#[expect(clippy::print_stdout, reason = "the report of a test")]
fn run(scenario: &Scenario) -> Report {
    let begun = std::time::Instant::now();
    let report = explore(&Ownership(scenario.clone()), STATES_MAX);
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
    let report = run(scenario);
    if let Verdict::Violated { what, trace } = &report.verdict {
        panic!("{what}\n  {}", trace.join("\n  "));
    }
    assert_eq!(report.verdict, Verdict::Holds, "every state is visited");
}

/// Explores to a shortest violation and prints it.
#[expect(clippy::print_stdout, reason = "the report of a test")]
#[track_caller]
fn falls(without: &str, scenario: &Scenario) {
    let Verdict::Violated { what, trace } = run(scenario).verdict else {
        panic!("nothing happens without {without}: it is no rule, or the scenario is too small");
    };
    println!("without {without}, in {} steps: {what}\n  {}", trace.len(), trace.join("\n  "));
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
    holds_there_and_back: RETURN;
    holds_through_an_abort: ABORT;
    holds_through_a_takeover: TAKEOVER;
    holds_for_guests_of_a_takeover: TAKEOVER_GUESTS;
    holds_when_forwarding: FORWARD;
    holds_when_forwarding_through_a_handover: FORWARD_MOVE;
    holds_in_a_declared_migration: MIGRATION;
}

/// For every rule the scenario in which it is missed.
macro_rules! rules {
    ($($rule:ident: $scenario:expr;)*) => {$(
        #[test]
        fn $rule() {
            let rules = Rules::without(stringify!($rule)).unwrap();
            falls(stringify!($rule), &Scenario { rules, ..$scenario });
        }
    )*};
}

rules! {
    epochs_never_reused: TAKEOVER;
    granted_before_grant: HANDOVER;
    granted_is_silent: HANDOVER;
    accepted_before_reply: HANDOVER;
    refuse_known_epochs: RETURN;
    transit_read_in_this_boot: TAKEOVER;
    caught_up_before_accepted: HANDOVER;
    no_abort_after_granted: ABORT;
    abort_before_registered: ABORT_TAKEOVER;
    only_giver_aborts: ABORT_TAKEOVER;
    reboot_needs_registry: TAKEOVER;
    new_incarnation: HANDOVER;
    transit_counts_both: TAKEOVER;
    takeover_registered_first: TAKEOVER;
    takeover_ends_sessions: TAKEOVER_GUESTS;
    new_session_ends_old: HANDOVER;
    sessions_are_durable: FORWARD;
}
