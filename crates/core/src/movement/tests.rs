//! The planner against a model of a link, and the detectors by cases.

use super::limits::{
    ASK_PAGES_MAX, RUN_AHEAD_BYTES_MAX, RUN_AHEAD_BYTES_MIN, WINDOW_BYTES_MAX, WINDOW_BYTES_MIN,
};
use super::window::Sent;
use super::{Ask, Class, Outcome, Planner, RunAhead, Token, Window};
use crate::units::{BLOCK_BYTES, Time};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

fn pages(ask: &Ask<u8>) -> Vec<u32> {
    ask.runs.iter().flat_map(Clone::clone).collect()
}

fn runs(pages: impl Into<Vec<Range<u32>>>) -> Vec<Range<u32>> {
    pages.into()
}

#[test]
fn demand_goes_first() {
    let mut planner = Planner::default();
    planner.want(1, &runs([0..4096]), Class::Bulk);
    planner.want(1, &runs([5000..5008]), Class::RunAhead);
    let demand = planner.want(1, &runs([300..301]), Class::Demand);
    let ask = planner.poll_ask(Time(0)).unwrap();
    assert_eq!((ask.class, pages(&ask)), (Class::Demand, vec![300]));
    let ahead = planner.poll_ask(Time(0)).unwrap();
    assert_eq!((ahead.class, ahead.runs.clone()), (Class::RunAhead, runs([5000..5008])));
    // Behind demand and run-ahead, one bulk request fits into the smallest window.
    let bulk = planner.poll_ask(Time(0)).unwrap();
    assert_eq!((bulk.class, pages(&bulk).len()), (Class::Bulk, ASK_PAGES_MAX as usize));
    assert_eq!(planner.poll_ask(Time(0)), None);
    planner.answered(ask.id, &ask.runs, Time(1));
    assert_eq!(planner.poll_done(), Some((demand, Outcome::Arrived)));
}

#[test]
fn what_is_held_back_lets_demand_pass() {
    let mut planner = Planner::default();
    planner.want(7, &runs([0..8]), Class::Bulk);
    planner.want(8, &runs([0..8]), Class::RunAhead);
    let sent = planner.poll_ask(Time(0)).unwrap();
    assert_eq!((sent.key, sent.class), (8, Class::RunAhead));
    planner.hold_back(true);
    assert_eq!(planner.poll_ask(Time(0)), None);
    planner.want(7, &runs([3..4]), Class::Demand);
    planner.want(8, &runs([5..6]), Class::Demand);
    let raised = planner.poll_ask(Time(0)).unwrap();
    assert_eq!((raised.key, raised.class, pages(&raised)), (7, Class::Demand, vec![3]));
    assert_eq!(planner.poll_ask(Time(0)), None, "page 5 of the other is in flight");
    // It brings nothing that could be kept: what a guest waits for is sent for again.
    planner.answered(sent.id, &[], Time(1));
    let again = planner.poll_ask(Time(1)).unwrap();
    assert_eq!((again.key, again.class, pages(&again)), (8, Class::Demand, vec![5]));
    assert_eq!(planner.poll_ask(Time(1)), None);
    planner.hold_back(false);
    assert_eq!(planner.poll_ask(Time(1)).unwrap().key, 8);
    assert_eq!(planner.poll_ask(Time(1)).unwrap().key, 7);
}

#[test]
fn what_is_in_flight_is_joined() {
    let mut planner = Planner::default();
    let bulk = planner.want(7, &runs([0..8]), Class::Bulk);
    let ask = planner.poll_ask(Time(0)).unwrap();
    let demand = planner.want(7, &runs([3..4]), Class::Demand);
    assert_eq!(planner.poll_ask(Time(0)), None, "page 3 is in flight");
    planner.answered(ask.id, &ask.runs, Time(1));
    let done: BTreeSet<Token> = std::iter::from_fn(|| planner.poll_done()).map(|d| d.0).collect();
    assert_eq!(done, BTreeSet::from([bulk, demand]));
}

#[test]
fn what_waits_is_raised_and_not_asked_twice() {
    let mut planner = Planner::default();
    planner.want(7, &runs([0..64]), Class::Bulk);
    planner.want(7, &runs([40..42]), Class::Demand);
    let mut asked: Vec<u32> = Vec::new();
    while let Some(ask) = planner.poll_ask(Time(0)) {
        asked.extend(pages(&ask));
        planner.answered(ask.id, &ask.runs, Time(1));
    }
    assert_eq!(asked[..2], [40, 41]);
    asked.sort_unstable();
    assert_eq!(asked, (0..64).collect::<Vec<_>>());
}

#[test]
fn lost_and_short_answers_are_asked_again() {
    let mut planner = Planner::default();
    let token = planner.want(7, &runs([0..4]), Class::Demand);
    let first = planner.poll_ask(Time(0)).unwrap();
    planner.lost(first.id);
    let again = planner.poll_ask(Time(0)).unwrap();
    assert_eq!(pages(&again), [0, 1, 2, 3]);
    planner.answered(first.id, &first.runs, Time(1));
    assert_eq!(planner.poll_done(), None, "an answer to a lost request counts nothing");
    planner.answered(again.id, &runs([0..3]), Time(2));
    let rest = planner.poll_ask(Time(2)).unwrap();
    assert_eq!(pages(&rest), [3]);
    planner.answered(rest.id, &rest.runs, Time(3));
    assert_eq!(planner.poll_done(), Some((token, Outcome::Arrived)));
}

#[test]
fn failure_reaches_every_want_of_the_page_and_no_other() {
    let mut planner = Planner::default();
    let bulk = planner.want(7, &runs([0..2]), Class::Bulk);
    let ask = planner.poll_ask(Time(0)).unwrap();
    let demand = planner.want(7, &runs([1..3]), Class::Demand);
    let other = planner.want(7, &runs([9..10]), Class::Demand);
    planner.failed(ask.id);
    let done: BTreeSet<_> = std::iter::from_fn(|| planner.poll_done())
        .collect::<Vec<_>>()
        .into_iter()
        .map(|(token, outcome)| {
            assert_eq!(outcome, Outcome::Failed);
            token
        })
        .collect();
    assert_eq!(done, BTreeSet::from([bulk, demand]));
    let ask = planner.poll_ask(Time(0)).unwrap();
    assert_eq!(pages(&ask), [9], "pages that nobody wants any more are not asked for");
    planner.answered(ask.id, &ask.runs, Time(1));
    assert_eq!(planner.poll_done(), Some((other, Outcome::Arrived)));
}

/// What a random run does next.
#[derive(Debug, Clone)]
enum Step {
    Want(u8, u32, u32, Class),
    Cancel(usize),
    Answer(usize),
    AnswerHalf(usize),
    Lose(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let class = prop_oneof![Just(Class::Bulk), Just(Class::RunAhead), Just(Class::Demand)];
    prop_oneof![
        4 => (0..2_u8, 0..300_u32, 1..80_u32, class)
            .prop_map(|(key, first, count, class)| Step::Want(key, first, count, class)),
        1 => any::<usize>().prop_map(Step::Cancel),
        4 => any::<usize>().prop_map(Step::Answer),
        1 => any::<usize>().prop_map(Step::AnswerHalf),
        1 => any::<usize>().prop_map(Step::Lose),
    ]
}

/// What is true of the world outside the planner.
#[derive(Default)]
struct Model {
    /// Pages that each live want still misses.
    wants: BTreeMap<Token, (u8, BTreeSet<u32>, Class)>,
    flights: Vec<Ask<u8>>,
}

impl Model {
    fn flying(&self) -> BTreeSet<(u8, u32)> {
        let of = |ask: &Ask<u8>| pages(ask).into_iter().map(|page| (ask.key, page)).collect();
        self.flights.iter().map(of).fold(BTreeSet::new(), |all: BTreeSet<_>, some: BTreeSet<_>| {
            all.union(&some).copied().collect()
        })
    }

    /// Takes everything that the planner hands out, and checks each against what may be.
    fn drain(&mut self, planner: &mut Planner<u8>) {
        let bulk_before = self.bulk_bytes();
        while let Some(ask) = planner.poll_ask(Time(0)) {
            let flying = self.flying();
            for page in pages(&ask) {
                assert!(!flying.contains(&(ask.key, page)), "a page is in flight twice");
                let wanted = |(key, missing, _): &(u8, BTreeSet<u32>, Class)| {
                    *key == ask.key && missing.contains(&page)
                };
                assert!(self.wants.values().any(wanted), "nobody wants the page");
            }
            assert!(pages(&ask).len() <= ASK_PAGES_MAX as usize);
            self.flights.push(ask);
        }
        let flying = self.flying();
        for (key, missing, class) in self.wants.values() {
            let waits = missing.iter().any(|page| !flying.contains(&(*key, *page)));
            assert!(!waits || *class != Class::Demand, "demand waits behind something");
        }
        assert!(self.bulk_bytes() <= planner.window_bytes().max(bulk_before), "bulk without bound");
    }

    fn bulk_bytes(&self) -> u64 {
        let bulk = self.flights.iter().filter(|ask| ask.class == Class::Bulk);
        bulk.map(|ask| pages(ask).len() as u64 * BLOCK_BYTES).sum()
    }

    fn arrived(&mut self, planner: &mut Planner<u8>, ask: &Ask<u8>, got: &[Range<u32>]) {
        planner.answered(ask.id, got, Time(1));
        for (key, missing, _) in self.wants.values_mut() {
            if *key == ask.key {
                missing.retain(|page| !got.iter().any(|run| run.contains(page)));
            }
        }
        let mut done: BTreeSet<Token> = BTreeSet::new();
        while let Some((token, outcome)) = planner.poll_done() {
            assert_eq!(outcome, Outcome::Arrived);
            assert!(done.insert(token), "a want ends twice");
        }
        let complete: BTreeSet<Token> =
            self.wants.iter().filter(|(_, want)| want.1.is_empty()).map(|(t, _)| *t).collect();
        assert_eq!(done, complete, "wants end when their pages are there");
        self.wants.retain(|token, _| !done.contains(token));
    }
}

proptest! {
    /// Whatever is wanted, cancelled, answered, half answered and lost: no page is in flight twice,
    /// none is asked for that nobody wants, demand never waits, and every want ends exactly when
    /// its pages have come.
    #[test]
    fn planner_against_model(steps in prop::collection::vec(step(), 1..120)) {
        let mut planner = Planner::default();
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Want(key, first, count, class) => {
                    let token = planner.want(key, &[first..first + count], class);
                    model.wants.insert(token, (key, (first..first + count).collect(), class));
                }
                Step::Cancel(index) if !model.wants.is_empty() => {
                    let token = *model.wants.keys().nth(index % model.wants.len()).unwrap();
                    planner.cancel(token);
                    model.wants.remove(&token);
                }
                Step::Answer(index) if !model.flights.is_empty() => {
                    let ask = model.flights.swap_remove(index % model.flights.len());
                    let got = ask.runs.clone();
                    if index % 2 == 0 {
                        planner.received(ask.id, Time(1));
                    }
                    model.arrived(&mut planner, &ask, &got);
                }
                Step::AnswerHalf(index) if !model.flights.is_empty() => {
                    let ask = model.flights.swap_remove(index % model.flights.len());
                    let got: Vec<Range<u32>> =
                        pages(&ask).into_iter().step_by(2).map(|page| page..page + 1).collect();
                    model.arrived(&mut planner, &ask, &got);
                }
                Step::Lose(index) if !model.flights.is_empty() => {
                    let ask = model.flights.swap_remove(index % model.flights.len());
                    planner.lost(ask.id);
                }
                Step::Cancel(_) | Step::Answer(_) | Step::AnswerHalf(_) | Step::Lose(_) => {}
            }
            model.drain(&mut planner);
        }
        // Everything ends when every request is answered.
        while let Some(ask) = model.flights.pop() {
            let got = ask.runs.clone();
            model.arrived(&mut planner, &ask, &got);
            model.drain(&mut planner);
        }
        prop_assert!(model.wants.is_empty(), "a want never ends");
        prop_assert_eq!(planner.in_flight_bytes(Class::Bulk), 0);
    }
}

/// Drives a window against a link of a rate and a round trip, both constant, and returns where it
/// settles.
fn settle(rate_bytes_per_s: u64, rtt_ms: u64) -> u64 {
    let request = u64::from(ASK_PAGES_MAX) * BLOCK_BYTES;
    let service = request * 1_000_000_000 / rate_bytes_per_s;
    let mut window = Window::default();
    let (mut now, mut link_free) = (0_u64, 0_u64);
    let mut flights: std::collections::VecDeque<(Sent, u64)> = std::collections::VecDeque::new();
    for _ in 0..20_000 {
        while (flights.len() as u64 + 1) * request <= window.bytes() {
            link_free = link_free.max(now) + service;
            flights.push_back((window.send(Time(now)), link_free + rtt_ms * 1_000_000));
        }
        let (sent, answered) = flights.pop_front().unwrap();
        now = now.max(answered);
        window.answered(sent, Time(now), request);
    }
    window.bytes()
}

#[test]
fn window_settles_near_the_product() {
    for (rate_mbit, rtt_ms) in [(200, 40), (200, 20), (100, 100), (500, 60)] {
        let rate = rate_mbit * 125_000;
        let product = (rate * rtt_ms / 1000).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        let window = settle(rate, rtt_ms);
        assert!(
            window >= product * 9 / 10 && window <= product * 5 / 2,
            "{rate_mbit} Mbit/s, {rtt_ms} ms: {window} bytes against a product of {product}"
        );
    }
    assert_eq!(settle(1_250_000_000, 100), WINDOW_BYTES_MAX, "a fast long link fills the bound");
}

/// A guest that reads all the time, one page at a time: its reads meet hardly a queue, and bulk
/// still fills most of the link.
#[test]
fn bulk_keeps_its_share_beside_demand() {
    const RATE: u64 = 25_000_000;
    const RTT: u64 = 40_000_000;
    let mut planner = Planner::default();
    for key in 0..64 {
        planner.want(key, &runs([0..4096]), Class::Bulk);
    }
    let mut reads = 0;
    let mut bulk_bytes = 0;
    let mut slowest = 0;
    let (mut now, mut link_free) = (0_u64, 0_u64);
    // Answers by the time they come: the request's number, and when it was sent.
    let mut flights: BTreeMap<(u64, u64), (Ask<u8>, u64)> = BTreeMap::new();
    planner.want(200, &runs([0..1]), Class::Demand);
    while now < 10_000_000_000 {
        while let Some(ask) = planner.poll_ask(Time(now)) {
            let bytes = pages(&ask).len() as u64 * BLOCK_BYTES;
            let service = bytes * 1_000_000_000 / RATE;
            // Demand passes by what the sender has queued, not by what is on the link.
            link_free = link_free.max(now) + service;
            flights.insert((link_free + RTT, flights.len() as u64), (ask, now));
        }
        let Some(((at, _), (ask, sent))) = flights.pop_first() else { break };
        now = now.max(at);
        planner.answered(ask.id, &ask.runs, Time(now));
        while planner.poll_done().is_some() {}
        if ask.class == Class::Demand {
            slowest = slowest.max(if now > 2_000_000_000 { now - sent } else { 0 });
            reads += 1;
            planner.want(200, &runs([reads..reads + 1]), Class::Demand);
        } else {
            bulk_bytes += pages(&ask).len() as u64 * BLOCK_BYTES;
        }
    }
    let share = bulk_bytes * 100 / (RATE * 10);
    assert!(share >= 70, "bulk has {share} % of the link");
    assert!(slowest <= RTT * 3 / 2, "a read took {slowest} ns of a round trip of {RTT} ns");
}

#[test]
fn window_shrinks_when_something_is_lost() {
    let mut window = Window::default();
    for round in 0..40 {
        let sent = window.send(Time(round * 1_000_000));
        window.answered(sent, Time(round * 1_000_000 + 900_000), 1 << 20);
    }
    let before = window.bytes();
    window.lost();
    assert_eq!(window.bytes(), (before / 2).max(WINDOW_BYTES_MIN));
    assert!(before > WINDOW_BYTES_MIN);
    (0..20).for_each(|_| window.lost());
    assert_eq!(window.bytes(), WINDOW_BYTES_MIN);
}

#[test]
fn sequential_readers_are_seen() {
    let size = 1 << 30;
    let read = 64 << 10;
    let mut reader = RunAhead::new();
    let mut ahead_of = 0;
    let mut longest = 0;
    for step in 0..400_u64 {
        let end = (step + 1) * read;
        if let Some(range) = reader.read(step * read, read, size) {
            assert!(range.start >= ahead_of && range.start >= end, "asked twice: {range:?}");
            longest = longest.max(range.end - end);
            ahead_of = range.end;
        }
        if step > 4 {
            assert!(ahead_of > end, "the reader caught up at {end}");
        }
    }
    assert!(longest > RUN_AHEAD_BYTES_MIN && longest <= RUN_AHEAD_BYTES_MAX, "{longest}");
    assert!(reader.trigger() < ahead_of);
}

#[test]
fn random_readers_get_nothing_ahead() {
    let mut reader = RunAhead::new();
    let mut at = 1_u64;
    for _ in 0..1000 {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (at >> 33) % (1 << 40) / 4096 * 4096;
        assert_eq!(reader.read(offset, 4096, 1 << 40), None);
    }
    assert_eq!(reader.trigger(), u64::MAX);
}

#[test]
fn run_ahead_ends_with_the_disk() {
    let size = 1 << 20;
    let mut reader = RunAhead::new();
    for step in 0..16_u64 {
        if let Some(range) = reader.read(step << 16, 1 << 16, size) {
            assert!(range.end <= size && range.start < range.end);
        }
    }
    assert_eq!(reader.read(u64::MAX - 512, 512, size), None, "no overflow at the far end");
}
