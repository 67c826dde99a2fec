//! Explores the ownership of a volume: every state of the scenarios, with all rules on; and for every
//! rule and every promise of the neighbours, that without it a violation is found.

use pannier_core::volume::ownership::Rules;
use pannier_sim::explore::{Report, Verdict, explore};
use pannier_sim::ownership::{Contracts, Ownership, Scenario};

/// States after which an exploration is given up.
const STATES_MAX: usize = 6_000_000;

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

/// An aborted transit, a host without power, a takeover.
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

const ALL: &[Scenario] = &[
    HANDOVER,
    RETURN,
    ABORT,
    TAKEOVER,
    TAKEOVER_GUESTS,
    ABORT_TAKEOVER,
    FORWARD,
    FORWARD_MOVE,
    MIGRATION,
];

#[expect(clippy::print_stdout, reason = "a test's report")]
fn run(scenario: &Scenario) -> Report {
    let begun = std::time::Instant::now();
    let max = std::env::var("MAX").ok().and_then(|t| t.parse().ok()).unwrap_or(STATES_MAX);
    let report = explore(&Ownership(scenario.clone()), max);
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

#[test]
fn all() {
    for scenario in ALL {
        let report = run(scenario);
        match &report.verdict {
            Verdict::Violated { what, trace } => {
                println!("VIOLATED {what}\n  {}", trace.join("\n  "))
            }
            other => println!("{other:?}"),
        }
    }
}

#[test]
fn each() {
    for name in Rules::NAMES {
        let rules = Rules::without(name).unwrap();
        for scenario in ALL {
            let report = run(&Scenario { rules, ..scenario.clone() });
            if let Verdict::Violated { what, trace } = &report.verdict {
                println!("RULE {name}: {} steps in {}: {what}", trace.len(), scenario.name);
                break;
            }
        }
    }
    let _ = Contracts::ALL;
}
