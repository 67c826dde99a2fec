//! The range lock: what overlaps is done one at a time, in the order of arrival.
//!
//! Writes, zeroes, discards, read-modify-writes of partial blocks and the cleaner's adoption take
//! the blocks that they change. A request waits for every earlier one that it overlaps, held or
//! itself waiting, so that none is overtaken for ever; requests that overlap nothing never wait.

use std::ops::Range;

/// A request's place in the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// The answer to [`RangeLock::acquire`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquired {
    /// The range is the caller's until [`RangeLock::release`].
    Granted(Ticket),
    /// An earlier request overlaps: a later release will grant this ticket.
    Queued(Ticket),
}

impl Acquired {
    /// The ticket, granted or queued.
    #[must_use]
    pub const fn ticket(self) -> Ticket {
        match self {
            Self::Granted(ticket) | Self::Queued(ticket) => ticket,
        }
    }
}

#[derive(Debug, Clone)]
struct Place {
    ticket: Ticket,
    range: Range<u64>,
    /// How many earlier places overlap this one; granted at zero.
    waits_for: usize,
}

/// The lock over one volume's blocks.
///
/// Costs a walk over the requests in flight, whose number the engine bounds; at a depth of 128 that
/// is two cache-resident kilobytes.
#[derive(Debug, Clone, Default)]
pub struct RangeLock {
    /// In the order of arrival.
    places: Vec<Place>,
    next: u64,
}

impl RangeLock {
    /// Asks for a range of blocks. An empty range is granted at once.
    #[must_use = "a range is held, or queued, until its ticket is released"]
    pub fn acquire(&mut self, range: Range<u64>) -> Acquired {
        let ticket = Ticket(self.next);
        self.next += 1;
        let waits_for = self.places.iter().filter(|place| overlap(&place.range, &range)).count();
        self.places.push(Place { ticket, range, waits_for });
        if waits_for == 0 { Acquired::Granted(ticket) } else { Acquired::Queued(ticket) }
    }

    /// Takes a range only if that needs no waiting.
    pub fn try_acquire(&mut self, range: Range<u64>) -> Option<Ticket> {
        if self.places.iter().any(|place| overlap(&place.range, &range)) {
            return None;
        }
        Some(self.acquire(range).ticket())
    }

    /// Gives a range back, or gives a queued ticket up. Appends the tickets that are granted by
    /// this to `granted`, in the order of arrival.
    ///
    /// # Panics
    /// When the ticket was released before.
    pub fn release(&mut self, ticket: Ticket, granted: &mut Vec<Ticket>) {
        let at = self
            .places
            .binary_search_by_key(&ticket, |place| place.ticket)
            .expect("a ticket is released once");
        let gone = self.places.remove(at);
        for place in &mut self.places[at..] {
            if overlap(&place.range, &gone.range) {
                place.waits_for -= 1;
                if place.waits_for == 0 {
                    granted.push(place.ticket);
                }
            }
        }
    }

    /// How many ranges are held or waited for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether no range is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    !a.is_empty() && !b.is_empty() && a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_overlaps_waits_and_what_does_not_goes_on() {
        let mut lock = RangeLock::default();
        let a = lock.acquire(0..4);
        let b = lock.acquire(2..6);
        let c = lock.acquire(5..8);
        let d = lock.acquire(10..11);
        assert!(matches!(a, Acquired::Granted(_)));
        assert!(matches!(b, Acquired::Queued(_)));
        assert!(matches!(c, Acquired::Queued(_)), "it waits for one that itself waits");
        assert!(matches!(d, Acquired::Granted(_)));
        assert_eq!(lock.try_acquire(7..8), None);
        let mut granted = Vec::new();
        lock.release(b.ticket(), &mut granted);
        assert_eq!(granted, [c.ticket()], "a waiter that gives up lets the next pass");
        granted.clear();
        lock.release(a.ticket(), &mut granted);
        assert!(granted.is_empty());
        assert!(matches!(lock.acquire(3..3), Acquired::Granted(_)), "an empty range never waits");
    }

    #[test]
    #[should_panic(expected = "released once")]
    fn a_second_release_is_a_bug() {
        let mut lock = RangeLock::default();
        let ticket = lock.acquire(0..1).ticket();
        lock.release(ticket, &mut Vec::new());
        lock.release(ticket, &mut Vec::new());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Acquire(u64, u64),
        Release(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..32_u64, 0..12_u64).prop_map(|(start, len)| Step::Acquire(start, len)),
            (0..64_usize).prop_map(Step::Release),
        ]
    }

    proptest! {
        /// Against the definition, computed anew after each step: a request is granted when no
        /// earlier one that is still there shares a block with it.
        #[test]
        fn grants_are_as_defined(steps in proptest::collection::vec(step(), 1..80)) {
            let mut lock = RangeLock::default();
            let mut model: Vec<(Ticket, Vec<u64>)> = Vec::new();
            let mut known: std::collections::BTreeSet<Ticket> = Default::default();
            for step in steps {
                match step {
                    Step::Acquire(start, len) => {
                        let acquired = lock.acquire(start..start + len);
                        model.push((acquired.ticket(), (start..start + len).collect()));
                        if let Acquired::Granted(ticket) = acquired {
                            known.insert(ticket);
                        }
                    }
                    Step::Release(which) if !model.is_empty() => {
                        let (ticket, _) = model.remove(which % model.len());
                        let mut granted = Vec::new();
                        lock.release(ticket, &mut granted);
                        known.remove(&ticket);
                        for ticket in granted {
                            prop_assert!(known.insert(ticket), "granted twice");
                        }
                    }
                    Step::Release(_) => {}
                }
                let expect = model
                    .iter()
                    .enumerate()
                    .filter(|(at, (_, blocks))| {
                        model[..*at].iter().all(|(_, e)| e.iter().all(|b| !blocks.contains(b)))
                    })
                    .map(|(_, (ticket, _))| *ticket)
                    .collect();
                prop_assert_eq!(&known, &expect);
            }
            prop_assert_eq!(lock.len(), model.len());
        }
    }
}
