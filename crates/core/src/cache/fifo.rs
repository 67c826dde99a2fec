//! First in, first out: the plain policy.

use super::{ASK_MAX, Policy};
use std::collections::BTreeMap;

/// First in, first out. Uses do not count.
#[derive(Debug, Clone)]
pub struct Fifo<K> {
    order: BTreeMap<u64, K>,
    turns: BTreeMap<K, u64>,
    next: u64,
    /// Where the next search starts: keys before it may not leave, as of the last time each was
    /// asked about. Wraps to the oldest at the end.
    hand: u64,
}

impl<K> Default for Fifo<K> {
    fn default() -> Self {
        Self { order: BTreeMap::new(), turns: BTreeMap::new(), next: 0, hand: 0 }
    }
}

impl<K: Copy + Ord + Send> Policy<K> for Fifo<K> {
    fn insert(&mut self, key: K) {
        if self.turns.contains_key(&key) {
            return;
        }
        self.order.insert(self.next, key);
        self.turns.insert(key, self.next);
        self.next += 1;
    }

    fn touch(&mut self, _key: &K) {}

    fn remove(&mut self, key: &K) {
        if let Some(turn) = self.turns.remove(key) {
            self.order.remove(&turn);
        }
    }

    fn evict(&mut self, may_leave: &mut dyn FnMut(&K) -> bool) -> Option<K> {
        for _ in 0..ASK_MAX.min(self.order.len()) {
            let at = self.order.range(self.hand..).next().or_else(|| self.order.iter().next());
            let (turn, key) = at.map(|(turn, key)| (*turn, *key))?;
            if may_leave(&key) {
                self.order.remove(&turn);
                self.turns.remove(&key);
                // What could not leave when it was asked may be able to now: the oldest first.
                self.hand = 0;
                return Some(key);
            }
            self.hand = turn + 1;
        }
        None
    }

    fn len(&self) -> usize {
        self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fifo(keys: impl IntoIterator<Item = u32>) -> Fifo<u32> {
        let mut fifo = Fifo::default();
        keys.into_iter().for_each(|key| fifo.insert(key));
        fifo
    }

    #[test]
    fn leaves_in_the_order_of_arrival() {
        let mut fifo = fifo([5, 3, 9, 3]);
        fifo.touch(&5);
        fifo.remove(&9);
        fifo.remove(&77);
        assert_eq!(fifo.len(), 2);
        assert_eq!(fifo.evict(&mut |_| true), Some(5));
        assert_eq!(fifo.evict(&mut |_| true), Some(3));
        assert_eq!(fifo.evict(&mut |_| true), None);
        assert!(fifo.is_empty());
    }

    #[test]
    fn what_may_not_leave_keeps_its_place() {
        let mut fifo = fifo(0..10);
        assert_eq!(fifo.evict(&mut |key| *key >= 4), Some(4));
        assert_eq!(fifo.evict(&mut |_| true), Some(0));
        assert_eq!(fifo.evict(&mut |_| false), None);
        assert_eq!(fifo.len(), 8);
    }

    #[test]
    fn a_call_asks_a_bounded_number_and_the_next_goes_on() {
        let mut fifo = fifo(0..1000);
        let mut asked = 0;
        let mut found = None;
        for _ in 0..10 {
            found = fifo.evict(&mut |key| {
                asked += 1;
                *key == 500
            });
            assert!(asked <= ASK_MAX * 10);
            if found.is_some() {
                break;
            }
        }
        assert_eq!(found, Some(500));
        assert_eq!(asked, 501);
    }
}
