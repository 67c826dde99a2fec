//! Whether what was read and written at the same time can have happened one after the other.
//!
//! A history is linearizable when every request can be given an instant between its start and its
//! end at which it happens, so that each read returns what was written last. With values that are
//! written once each, that is decided by intervals: P. Gibbons and E. Korach, "Testing Shared
//! Memories", SIAM Journal on Computing 26(4), 1997, section 4.

use std::collections::BTreeMap;
use std::time::Instant;

/// A request to one register that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op<T = Instant> {
    /// Whether the value was written, else it was read.
    pub is_write: bool,
    /// The value; no two writes have the same.
    pub value: u64,
    /// When it was sent.
    pub start: T,
    /// When its answer was there.
    pub end: T,
}

/// The requests that a value appears in: where they force the register to have it.
#[derive(Debug, Clone, Copy)]
struct Zone<T> {
    value: u64,
    /// The first end of any of them.
    first_end: T,
    /// The last start of any of them.
    last_start: T,
    written_at: Option<T>,
}

impl<T: Copy + Ord> Zone<T> {
    /// Whether one of them ended before another began: the register had the value all the time in
    /// between.
    fn is_forward(&self) -> bool {
        self.first_end < self.last_start
    }

    fn span(&self) -> (T, T) {
        (self.first_end.min(self.last_start), self.first_end.max(self.last_start))
    }
}

/// Checks the history of one register, which held `initial` from `origin` on.
///
/// # Errors
/// What cannot have happened, in words.
///
/// # Panics
/// When a value is written twice.
pub fn check<T: Copy + Ord + std::fmt::Debug>(
    initial: u64,
    origin: T,
    ops: &[Op<T>],
) -> Result<(), String> {
    let first = Op { is_write: true, value: initial, start: origin, end: origin };
    let mut zones: BTreeMap<u64, Zone<T>> = BTreeMap::new();
    for op in std::iter::once(&first).chain(ops) {
        let zone = zones.entry(op.value).or_insert(Zone {
            value: op.value,
            first_end: op.end,
            last_start: op.start,
            written_at: None,
        });
        zone.first_end = zone.first_end.min(op.end);
        zone.last_start = zone.last_start.max(op.start);
        if op.is_write {
            assert!(zone.written_at.is_none(), "the value {} is written twice", op.value);
            zone.written_at = Some(op.start);
        }
    }
    for zone in zones.values() {
        match zone.written_at {
            None => return Err(format!("{} was read and never written", zone.value)),
            Some(at) if zone.first_end < at => {
                return Err(format!("{} was read before it was written", zone.value));
            }
            Some(_) => {}
        }
    }
    let mut forward: Vec<Zone<T>> = zones.values().copied().filter(Zone::is_forward).collect();
    forward.sort_by_key(Zone::span);
    for pair in forward.windows(2) {
        if pair[1].span().0 < pair[0].span().1 {
            let (old, new) = (pair[0], pair[1]);
            return Err(format!("{old:?} and {new:?} were both there at a time"));
        }
    }
    for zone in zones.values().filter(|zone| !zone.is_forward()) {
        let (start, end) = zone.span();
        let around = forward.partition_point(|other| other.span().0 < start);
        if let Some(other) = around.checked_sub(1).map(|before| forward[before])
            && end < other.span().1
        {
            return Err(format!("{zone:?} happened while {other:?} was there"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: u64, start: u64, end: u64) -> Op<u64> {
        Op { is_write: true, value, start, end }
    }

    fn read(value: u64, start: u64, end: u64) -> Op<u64> {
        Op { is_write: false, value, start, end }
    }

    /// Whether some order of the requests explains them: all orders are tried.
    fn explained(value: u64, left: &[Op<u64>]) -> bool {
        left.is_empty()
            || (0..left.len()).any(|next| {
                let op = left[next];
                let mut rest = left.to_vec();
                rest.remove(next);
                let is_first = rest.iter().all(|other| op.start <= other.end);
                is_first
                    && (op.is_write || op.value == value)
                    && explained(if op.is_write { op.value } else { value }, &rest)
            })
    }

    #[test]
    fn what_cannot_have_happened_is_found() {
        let stale = [write(1, 1, 2), read(0, 3, 4)];
        let back = [write(1, 1, 10), read(1, 2, 3), read(0, 4, 5)];
        let early = [read(1, 1, 2), write(1, 3, 4)];
        let never = [read(9, 1, 2)];
        let lost = [write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)];
        let two = [write(1, 1, 9), write(2, 1, 9), read(1, 2, 3), read(2, 4, 5), read(1, 6, 7)];
        for bad in [&stale[..], &back, &early, &never, &lost, &two] {
            assert!(check(0, 0, bad).is_err(), "{bad:?}");
            assert!(!explained(0, bad), "{bad:?}");
        }
        let at_once = [write(1, 1, 9), read(0, 2, 3), read(1, 4, 5), write(2, 6, 7), read(2, 8, 9)];
        assert_eq!(check(0, 0, &at_once), Ok(()));
    }

    /// Against all orders of small histories.
    #[test]
    fn the_intervals_agree_with_all_orders() {
        use rand::{Rng as _, SeedableRng as _};
        let mut random = rand::rngs::StdRng::seed_from_u64(4);
        let mut bad = 0;
        for _ in 0..20_000 {
            let mut times: Vec<u64> = (1..=12).collect();
            rand::seq::SliceRandom::shuffle(&mut times[..], &mut random);
            let ops: Vec<Op<u64>> = times
                .chunks_exact(2)
                .enumerate()
                .map(|(number, at)| {
                    let (start, end) = (at[0].min(at[1]), at[0].max(at[1]));
                    match number {
                        0..3 => write(number as u64 + 1, start, end),
                        _ => read(random.random_range(0..4), start, end),
                    }
                })
                .collect();
            let told = check(0, 0, &ops).is_ok();
            assert_eq!(told, explained(0, &ops), "{ops:?}");
            bad += u32::from(!told);
        }
        assert!((1000..19_000).contains(&bad), "{bad} bad histories test nothing");
    }
}
