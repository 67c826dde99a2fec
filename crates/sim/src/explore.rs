//! Exhaustive exploration: breadth first over all states of a model, each visited once.
//!
//! A state is known by a 64-bit hash (as in "Design and Validation of Computer Protocols", Holzmann
//! 1991, hash compaction): with `n` states a collision hides one with a probability of about
//! `n^2 / 2^65`, which is 3e-6 for ten million. Breadth first, so that a counterexample is a
//! shortest one.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// A model to explore.
pub trait Model {
    /// A state, cheap to clone.
    type State: Clone;
    /// A step from one state to another.
    type Action: Copy;

    /// Where it begins.
    fn start(&self) -> Self::State;

    /// What can happen in a state.
    fn actions(&self, state: &Self::State, into: &mut Vec<Self::Action>);

    /// The state after an action.
    ///
    /// # Errors
    /// What invariant it violates, in words.
    fn step(&self, state: &Self::State, action: Self::Action) -> Result<Self::State, String>;

    /// The state's identity.
    fn hash(&self, state: &Self::State) -> u64;

    /// The action in words, in the state where it happens.
    fn describe(&self, state: &Self::State, action: Self::Action) -> String;
}

/// How an exploration ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every state was visited and none violates an invariant.
    Holds,
    /// The bound on states was reached before.
    Unfinished,
    /// A shortest way to a goal.
    Reached {
        /// The steps to it.
        trace: Vec<String>,
    },
    /// A shortest way to a violation.
    Violated {
        /// The invariant, in words.
        what: String,
        /// The steps to it.
        trace: Vec<String>,
    },
}

/// What an exploration found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// States visited.
    pub states: usize,
    /// Steps taken.
    pub steps: u64,
    /// Longest shortest way from the start.
    pub depth: usize,
    /// How it ended.
    pub verdict: Verdict,
}

/// Hashes that are used as keys are good already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {}

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// A fast hash of good quality for states: multiply and fold, as wyhash does.
#[derive(Debug, Clone)]
pub struct StateHasher(u64);

impl Default for StateHasher {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl StateHasher {
    /// The hash of a value.
    pub fn of(value: &impl Hash) -> u64 {
        let mut hasher = Self::default();
        value.hash(&mut hasher);
        hasher.finish()
    }

    fn mix(&mut self, value: u64) {
        let product =
            u128::from(self.0 ^ value ^ 0xa076_1d64_78bd_642f) * 0xe703_7ed1_a0b4_28db_u128;
        self.0 = (product as u64) ^ ((product >> 64) as u64) ^ value.rotate_left(29);
    }
}

impl Hasher for StateHasher {
    fn finish(&self) -> u64 {
        let mut end = self.clone();
        end.mix(0x8ebc_6af0_9c88_c6e3);
        end.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
        self.mix(bytes.len() as u64);
    }

    fn write_u8(&mut self, value: u8) {
        self.mix(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.mix(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }
}

/// Where a state was first reached from.
struct Origin<A> {
    parent: u32,
    action: Option<A>,
}

/// Visits all states of `model`, at most `states_max`.
pub fn explore<M: Model>(model: &M, states_max: usize) -> Report {
    search(model, model.start(), |_| false, states_max).0
}

/// Visits states from `start` on until one is a `goal`, which is returned, or as [`explore`].
/// Goals one after the other lead to a violation that is too far for a search breadth first; what
/// they lead to is one, although perhaps not a shortest.
pub fn search<M: Model>(
    model: &M,
    start: M::State,
    goal: impl Fn(&M::State) -> bool,
    states_max: usize,
) -> (Report, Option<M::State>) {
    let mut known: HashMap<u64, u32, BuildHasherDefault<Identity>> = HashMap::default();
    let mut origins: Vec<Origin<M::Action>> = Vec::new();
    known.insert(model.hash(&start), 0);
    origins.push(Origin { parent: 0, action: None });
    let mut layer = vec![(0_u32, start.clone())];
    let (mut steps, mut depth) = (0_u64, 0);
    let mut actions = Vec::new();
    while !layer.is_empty() {
        let mut next = Vec::new();
        for (id, state) in layer {
            actions.clear();
            model.actions(&state, &mut actions);
            for &action in &actions {
                steps += 1;
                let words = |what| (what, trace(model, start.clone(), &origins, id, action));
                let report = |verdict| Report { states: origins.len(), steps, depth, verdict };
                let reached = match model.step(&state, action) {
                    Ok(reached) => reached,
                    Err(what) => {
                        let (what, trace) = words(what);
                        return (report(Verdict::Violated { what, trace }), None);
                    }
                };
                if goal(&reached) {
                    let (_, trace) = words(String::new());
                    return (report(Verdict::Reached { trace }), Some(reached));
                }
                let fresh = origins.len() as u32;
                if let std::collections::hash_map::Entry::Vacant(entry) =
                    known.entry(model.hash(&reached))
                {
                    entry.insert(fresh);
                    origins.push(Origin { parent: id, action: Some(action) });
                    next.push((fresh, reached));
                }
            }
            if origins.len() >= states_max {
                let verdict = Verdict::Unfinished;
                return (Report { states: origins.len(), steps, depth, verdict }, None);
            }
        }
        layer = next;
        depth += 1;
    }
    (Report { states: origins.len(), steps, depth, verdict: Verdict::Holds }, None)
}

/// Walks at random, `walks` times at most `steps_max` steps: to states that are too far for
/// [`explore`]. The same seed takes the same ways. Answers the steps taken.
///
/// # Errors
/// The invariant that is violated, and the way there.
pub fn walk<M: Model>(
    model: &M,
    seed: u64,
    walks: usize,
    steps_max: usize,
) -> Result<u64, (String, Vec<String>)> {
    let (mut draw, mut steps) = (seed, 0);
    let mut actions = Vec::new();
    for _walk in 0..walks {
        let (mut state, mut words) = (model.start(), Vec::new());
        for _step in 0..steps_max {
            actions.clear();
            model.actions(&state, &mut actions);
            if actions.is_empty() {
                break;
            }
            draw = StateHasher::of(&draw);
            let action = actions[(draw % actions.len() as u64) as usize];
            words.push((state.clone(), action));
            steps += 1;
            state = model.step(&state, action).map_err(|what| {
                let words = words.iter().map(|(state, action)| model.describe(state, *action));
                (what, words.collect())
            })?;
        }
    }
    Ok(steps)
}

/// The steps to a state and one more, in words.
fn trace<M: Model>(
    model: &M,
    start: M::State,
    origins: &[Origin<M::Action>],
    mut id: u32,
    last: M::Action,
) -> Vec<String> {
    let mut actions = vec![last];
    while let Origin { parent, action: Some(action) } = origins[id as usize] {
        actions.push(action);
        id = parent;
    }
    actions.reverse();
    let mut state = start;
    let mut words = Vec::new();
    for action in actions {
        words.push(model.describe(&state, action));
        match model.step(&state, action) {
            Ok(reached) => state = reached,
            Err(_violation) => break,
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two counters up to a bound; a violation where both are `bad`.
    struct Counters {
        bad: Option<u8>,
    }

    impl Model for Counters {
        type State = (u8, u8);
        type Action = bool;

        fn start(&self) -> (u8, u8) {
            (0, 0)
        }

        fn actions(&self, state: &(u8, u8), into: &mut Vec<bool>) {
            into.extend((state.0 < 9).then_some(false));
            into.extend((state.1 < 9).then_some(true));
        }

        fn step(&self, state: &(u8, u8), second: bool) -> Result<(u8, u8), String> {
            let next = if second { (state.0, state.1 + 1) } else { (state.0 + 1, state.1) };
            if self.bad == Some(next.0) && next.0 == next.1 {
                return Err("both are bad".to_owned());
            }
            Ok(next)
        }

        fn hash(&self, state: &(u8, u8)) -> u64 {
            StateHasher::of(state)
        }

        fn describe(&self, _state: &(u8, u8), second: bool) -> String {
            format!("count {}", u8::from(second))
        }
    }

    #[test]
    fn visits_every_state_once() {
        let report = explore(&Counters { bad: None }, 1000);
        assert_eq!((report.states, report.steps, report.depth), (100, 180, 19));
        assert_eq!(report.verdict, Verdict::Holds);
        assert_eq!(explore(&Counters { bad: None }, 50).verdict, Verdict::Unfinished);
    }

    #[test]
    fn walks_find_a_violation_and_repeat_themselves() {
        let found = walk(&Counters { bad: Some(3) }, 1, 1000, 18);
        assert!(found.is_err());
        assert_eq!(found, walk(&Counters { bad: Some(3) }, 1, 1000, 18));
        assert_eq!(walk(&Counters { bad: None }, 1, 10, 100), Ok(180));
    }

    #[test]
    fn goes_on_from_a_goal() {
        let model = Counters { bad: Some(3) };
        let (report, state) = search(&model, (0, 0), |state| state.1 == 2, 1000);
        assert!(matches!(report.verdict, Verdict::Reached { ref trace } if trace.len() == 2));
        let (report, _) = search(&model, state.unwrap(), |_| false, 1000);
        assert!(matches!(report.verdict, Verdict::Violated { ref trace, .. } if trace.len() == 4));
    }

    #[test]
    fn finds_a_shortest_violation() {
        let Verdict::Violated { trace, .. } = explore(&Counters { bad: Some(3) }, 1000).verdict
        else {
            panic!("there is a violation");
        };
        assert_eq!(trace.len(), 6);
    }
}
