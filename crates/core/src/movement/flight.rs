//! One flight per page, demand before everything else.
//!
//! A *want* asks for pages of a thing (a segment); a *ask* is a request to send. A page that is in
//! flight is never asked for again: later wants join it. A page that waits in a lower class is
//! raised by a want of a higher one.

use super::limits::{ASK_PAGES_MAX, BULK_LINES_MAX, LINE_PAGES, WINDOW_BYTES_MAX};
use super::window::{Sent, Window};
use crate::units::{BLOCK_BYTES, Time};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// What a fetch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Filling a copy in the background.
    Bulk,
    /// Ahead of a sequential reader.
    RunAhead,
    /// A guest waits.
    Demand,
}

/// Classes in the order in which they are served.
const ORDER: [Class; 3] = [Class::Demand, Class::RunAhead, Class::Bulk];

/// Names a want.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u64);

/// Names a request that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(u64);

/// A request to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask<K> {
    /// Its name, to be given back with the answer.
    pub id: AskId,
    /// The thing.
    pub key: K,
    /// Its pages: ascending, disjoint, at most [`ASK_PAGES_MAX`] in all.
    pub runs: Vec<Range<u32>>,
    /// What they are for.
    pub class: Class,
}

/// How a want ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// All its pages have arrived.
    Arrived,
    /// No good copy of at least one of them exists.
    Failed,
}

#[derive(Debug)]
struct Want<K> {
    key: K,
    lines: Range<u32>,
    missing: u32,
}

#[derive(Debug)]
struct Flight<K> {
    key: K,
    lines: Vec<(u32, u16)>,
    class: Class,
    bytes: u64,
    sent: Sent,
    /// Its answer has come and is being made resident.
    received: bool,
}

#[derive(Debug, Default)]
struct Line {
    asked: u16,
    /// Pages that wait to be asked for, by class (index as in `ORDER` reversed: Bulk 0).
    queued: [u16; 3],
    waiters: Vec<(Token, u16, Class)>,
}

impl Line {
    fn idle(&self) -> bool {
        self.asked == 0 && self.queued == [0; 3] && self.waiters.is_empty()
    }
}

/// Plans what to ask for. `K` names a thing that has pages.
#[derive(Debug)]
pub struct Planner<K> {
    wants: BTreeMap<Token, Want<K>>,
    lines: BTreeMap<(K, u32), Line>,
    queues: [VecDeque<(K, u32)>; 3],
    flights: BTreeMap<AskId, Flight<K>>,
    /// Bytes in flight by class.
    in_flight: [u64; 3],
    /// Bytes that have come and are being made resident, demand apart.
    received: u64,
    done: VecDeque<(Token, Outcome)>,
    window: Window,
    /// What comes has no place: only what a guest waits for is sent for.
    held_back: bool,
    next: u64,
}

impl<K: Copy + Ord> Default for Planner<K> {
    fn default() -> Self {
        Self {
            wants: BTreeMap::new(),
            lines: BTreeMap::new(),
            queues: Default::default(),
            flights: BTreeMap::new(),
            in_flight: [0; 3],
            received: 0,
            done: VecDeque::new(),
            window: Window::default(),
            held_back: false,
            next: 0,
        }
    }
}

/// The lines that `runs` touch, each with the mask of its touched pages.
fn lines_of(runs: &[Range<u32>]) -> BTreeMap<u32, u16> {
    let mut lines = BTreeMap::new();
    for run in runs {
        let mut page = run.start;
        while page < run.end {
            let line = page / LINE_PAGES;
            let end = run.end.min((line + 1).saturating_mul(LINE_PAGES));
            let bits = (1_u32 << (end - page)) - 1;
            let mask = (bits << (page % LINE_PAGES)) as u16;
            *lines.entry(line).or_insert(0) |= mask;
            page = end;
        }
    }
    lines
}

fn bytes_of(mask: u16) -> u64 {
    u64::from(mask.count_ones()) * BLOCK_BYTES
}

/// The lowest `count` pages of a mask.
fn lowest(mask: u16, count: u32) -> u16 {
    let mut rest = mask;
    for _ in 0..count {
        rest &= rest.wrapping_sub(1);
    }
    mask & !rest
}

fn runs_of(lines: &[(u32, u16)]) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for (line, mask) in lines {
        for bit in (0..LINE_PAGES).filter(|bit| mask & (1 << bit) != 0) {
            let page = line * LINE_PAGES + bit;
            match runs.last_mut() {
                Some(run) if run.end == page => run.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
    }
    runs
}

impl<K: Copy + Ord> Planner<K> {
    /// Wants pages. Those in flight are joined, those that wait in a lower class are raised.
    /// The want ends by [`Planner::poll_done`].
    pub fn want(&mut self, key: K, runs: &[Range<u32>], class: Class) -> Token {
        let token = Token(self.number());
        let lines = lines_of(runs);
        let missing = lines.values().map(|mask| mask.count_ones()).sum();
        if missing == 0 {
            self.done.push_back((token, Outcome::Arrived));
            return token;
        }
        let first = lines.keys().next().copied().unwrap_or(0);
        let last = lines.keys().next_back().copied().unwrap_or(0);
        self.wants.insert(token, Want { key, lines: first..last + 1, missing });
        for (line, mask) in lines {
            let entry = self.lines.entry((key, line)).or_default();
            entry.waiters.push((token, mask, class));
            let asked = entry.asked;
            self.enqueue(key, line, mask & !asked, class, false);
        }
        token
    }

    /// The next request to send now, if any. Demand is handed out at once; the rest as the window
    /// allows, which is narrower while demand is outstanding.
    pub fn poll_ask(&mut self, now: Time) -> Option<Ask<K>> {
        for class in ORDER {
            while self.may_send(class) {
                let Some((key, line)) = self.queues[class as usize].pop_front() else { break };
                if let Some(ask) = self.take_ask(key, line, class, now) {
                    return Some(ask);
                }
            }
        }
        None
    }

    /// Sends for nothing but demand from now on, or for everything again. What is in flight goes
    /// on.
    pub fn hold_back(&mut self, on: bool) {
        self.held_back = on;
    }

    /// A want that has ended, if any.
    pub fn poll_done(&mut self) -> Option<(Token, Outcome)> {
        self.done.pop_front()
    }

    /// The answer to a request has come; it is being checked and made resident. Others may be sent
    /// in its place already.
    pub fn received(&mut self, id: AskId, now: Time) {
        let Some(flight) = self.flights.get_mut(&id).filter(|flight| !flight.received) else {
            return;
        };
        flight.received = true;
        self.in_flight[flight.class as usize] -= flight.bytes;
        if flight.class != Class::Demand {
            self.received += flight.bytes;
            self.window.answered(flight.sent, now, flight.bytes);
        }
    }

    /// Pages of a request that have arrived and are resident. What the request did not bring is
    /// asked for again.
    pub fn answered(&mut self, id: AskId, got: &[Range<u32>], now: Time) {
        self.received(id, now);
        let Some(flight) = self.land(id) else { return };
        let got = lines_of(got);
        for (line, mask) in flight.lines {
            let here = mask & got.get(&line).copied().unwrap_or(0);
            self.arrive(flight.key, line, here);
            self.again(flight.key, line, mask & !here);
            self.tidy(flight.key, line);
        }
    }

    /// A request that was lost: its pages are asked for again.
    pub fn lost(&mut self, id: AskId) {
        let Some(flight) = self.land(id) else { return };
        if flight.class != Class::Demand && !flight.received {
            self.window.lost();
        }
        for (line, mask) in flight.lines.into_iter().rev() {
            self.again(flight.key, line, mask);
            self.tidy(flight.key, line);
        }
    }

    /// A request whose pages cannot be had: every want of one of them fails.
    pub fn failed(&mut self, id: AskId) {
        let Some(flight) = self.land(id) else { return };
        for (line, mask) in flight.lines {
            let waiters = self.lines.get(&(flight.key, line)).map(|entry| entry.waiters.clone());
            for (token, ..) in waiters.unwrap_or_default().iter().filter(|(_, m, _)| m & mask != 0)
            {
                if self.forget(*token) {
                    self.done.push_back((*token, Outcome::Failed));
                }
            }
            self.tidy(flight.key, line);
        }
    }

    /// Forgets a want that nobody waits for any more. What is in flight for it goes on.
    pub fn cancel(&mut self, token: Token) {
        self.forget(token);
    }

    /// Whether background work should wait before it wants more.
    #[must_use]
    pub fn bulk_full(&self) -> bool {
        self.queues[Class::Bulk as usize].len() >= BULK_LINES_MAX
    }

    /// The bound on bulk in flight, in bytes.
    #[must_use]
    pub fn window_bytes(&self) -> u64 {
        self.window.bytes()
    }

    /// Bytes in flight in a class.
    #[must_use]
    pub fn in_flight_bytes(&self, class: Class) -> u64 {
        self.in_flight[class as usize]
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn may_send(&self, class: Class) -> bool {
        let [bulk, run_ahead, demand] = self.in_flight;
        let request = u64::from(ASK_PAGES_MAX) * BLOCK_BYTES;
        match class {
            Class::Demand => true,
            _ if self.held_back => false,
            // What comes in faster than it can be kept would fill the memory.
            _ if self.received >= WINDOW_BYTES_MAX => false,
            Class::RunAhead => run_ahead + bulk < self.window.bytes(),
            // Bulk keeps its share while guests wait, or a guest that reads all the time would hold
            // up its own volume for ever; but it leaves no queue for demand to stand in.
            Class::Bulk if demand > 0 || run_ahead > 0 => {
                bulk == 0 || run_ahead + bulk + request <= self.window.lean_bytes()
            }
            Class::Bulk => bulk + request <= self.window.bytes(),
        }
    }

    /// Queues pages that a request did not bring, each in the highest class that waits for it,
    /// before all others.
    fn again(&mut self, key: K, line: u32, mask: u16) {
        for class in ORDER.into_iter().rev() {
            let Some(entry) = self.lines.get(&(key, line)) else { return };
            let waiting = entry.waiters.iter().filter(|(_, _, waits)| *waits == class);
            let wanted = waiting.fold(0, |all, (_, mask, _)| all | mask);
            self.enqueue(key, line, mask & wanted, class, true);
        }
    }

    /// Queues pages of a line, unless they wait in a class at least as high.
    fn enqueue(&mut self, key: K, line: u32, mask: u16, class: Class, front: bool) {
        let Some(entry) = self.lines.get_mut(&(key, line)) else { return };
        let wanted = entry.waiters.iter().fold(0, |all, (_, mask, _)| all | mask);
        let higher = entry.queued[class as usize + 1..].iter().fold(0, |all, mask| all | mask);
        let new = mask & wanted & !higher;
        if new == 0 {
            return;
        }
        for lower in &mut entry.queued[..class as usize] {
            *lower &= !new;
        }
        let queued = &mut entry.queued[class as usize];
        let listed = *queued != 0;
        *queued |= new;
        if !listed {
            let queue = &mut self.queues[class as usize];
            if front { queue.push_front((key, line)) } else { queue.push_back((key, line)) }
        }
    }

    /// Makes a request that begins with a line's queued pages and takes the following lines of the
    /// same thing from the head of the queue while they fit.
    fn take_ask(&mut self, key: K, line: u32, class: Class, now: Time) -> Option<Ask<K>> {
        let mut lines = Vec::new();
        let mut room = ASK_PAGES_MAX;
        let mut next = Some(line);
        while let Some(line) = next.take() {
            let Some(entry) = self.lines.get_mut(&(key, line)) else { continue };
            let queued = entry.queued[class as usize];
            let mask = lowest(queued, room);
            entry.queued[class as usize] &= !mask;
            entry.asked |= mask;
            room -= mask.count_ones();
            if mask != 0 {
                lines.push((line, mask));
            }
            if queued != mask {
                self.queues[class as usize].push_front((key, line));
            }
            let last = line;
            if room > 0
                && let Some((following, line)) = self.queues[class as usize].front().copied()
                && following == key
                && line > last
            {
                self.queues[class as usize].pop_front();
                next = Some(line);
            }
        }
        if lines.is_empty() {
            return None;
        }
        let id = AskId(self.number());
        let runs = runs_of(&lines);
        let bytes = lines.iter().map(|(_, mask)| bytes_of(*mask)).sum();
        self.in_flight[class as usize] += bytes;
        let sent = self.window.send(now);
        self.flights.insert(id, Flight { key, lines, class, bytes, sent, received: false });
        Some(Ask { id, key, runs, class })
    }

    /// Takes a request out of flight.
    fn land(&mut self, id: AskId) -> Option<Flight<K>> {
        let flight = self.flights.remove(&id)?;
        if !flight.received {
            self.in_flight[flight.class as usize] -= flight.bytes;
        } else if flight.class != Class::Demand {
            self.received -= flight.bytes;
        }
        for (line, mask) in &flight.lines {
            if let Some(entry) = self.lines.get_mut(&(flight.key, *line)) {
                entry.asked &= !mask;
            }
        }
        Some(flight)
    }

    fn arrive(&mut self, key: K, line: u32, mask: u16) {
        let Some(entry) = self.lines.get_mut(&(key, line)) else { return };
        let mut ended = Vec::new();
        for (token, waits, _) in &mut entry.waiters {
            let here = *waits & mask;
            *waits &= !mask;
            if let Some(want) = self.wants.get_mut(token) {
                want.missing -= here.count_ones();
                if want.missing == 0 {
                    ended.push(*token);
                }
            }
        }
        entry.waiters.retain(|(_, waits, _)| *waits != 0);
        for token in ended {
            self.wants.remove(&token);
            self.done.push_back((token, Outcome::Arrived));
        }
    }

    /// Removes a want; pages that only it waited for leave the queues.
    fn forget(&mut self, token: Token) -> bool {
        let Some(want) = self.wants.remove(&token) else { return false };
        let range = (want.key, want.lines.start)..(want.key, want.lines.end);
        let mut idle = Vec::new();
        for (at, entry) in self.lines.range_mut(range) {
            entry.waiters.retain(|(waiter, ..)| *waiter != token);
            let wanted = entry.waiters.iter().fold(0, |all, (_, mask, _)| all | mask);
            for queued in &mut entry.queued {
                *queued &= wanted;
            }
            if entry.idle() {
                idle.push(*at);
            }
        }
        for at in idle {
            self.lines.remove(&at);
        }
        true
    }

    fn tidy(&mut self, key: K, line: u32) {
        if self.lines.get(&(key, line)).is_some_and(Line::idle) {
            self.lines.remove(&(key, line));
        }
    }
}
