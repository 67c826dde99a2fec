//! Forwarding sessions: which requests of a session were applied.
//!
//! A forwarded request carries its session and its number there. The owner writes both into the log
//! together with what the request does, so this record survives what the data survives and is known
//! to the next owner as soon as it has the log. Which session an attachment has *open* is part of
//! the ownership state ([`crate::volume::ownership::LocalState::sessions`]).

use crate::ids::RequestNumber;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Most requests of one session that may be in flight: bounds [`Applied`]. A forwarder never sends
/// number `n` before `n - IN_FLIGHT_MAX` was answered.
pub const IN_FLIGHT_MAX: u64 = 1024;

/// The requests of one session that were applied.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Applied {
    through: RequestNumber,
    beyond: BTreeSet<RequestNumber>,
}

/// A request number that no honest forwarder sends: 0, or too far ahead of what was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("request {0:?} is outside its session's window; open a new session")]
pub struct OutsideWindow(pub RequestNumber);

impl Applied {
    /// Whether the request was applied.
    #[must_use]
    pub fn contains(&self, number: RequestNumber) -> bool {
        number <= self.through || self.beyond.contains(&number)
    }

    /// Whether a request of this number may be executed or answered at all.
    ///
    /// # Errors
    /// [`OutsideWindow`].
    pub fn check(&self, number: RequestNumber) -> Result<(), OutsideWindow> {
        let window_end = self.through.0.saturating_add(2 * IN_FLIGHT_MAX);
        if number.0 == 0 || number.0 > window_end {
            return Err(OutsideWindow(number));
        }
        Ok(())
    }

    /// Records that the request was applied.
    pub fn insert(&mut self, number: RequestNumber) {
        if number <= self.through {
            return;
        }
        self.beyond.insert(number);
        while self.beyond.remove(&RequestNumber(self.through.0 + 1)) {
            self.through.0 += 1;
        }
    }

    /// The number up to which all requests were applied.
    #[must_use]
    pub fn through(&self) -> RequestNumber {
        self.through
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applied_in_any_order() {
        for order in [[1, 2, 3], [3, 2, 1], [2, 1, 3], [2, 3, 1]] {
            let mut applied = Applied::default();
            for number in order {
                assert!(!applied.contains(RequestNumber(number)));
                applied.insert(RequestNumber(number));
                assert!(applied.contains(RequestNumber(number)));
            }
            assert_eq!(applied.through(), RequestNumber(3));
            assert!(applied.beyond.is_empty());
        }
    }

    #[test]
    fn the_window_is_bounded() {
        let applied = Applied::default();
        assert!(applied.check(RequestNumber(0)).is_err());
        assert!(applied.check(RequestNumber(1)).is_ok());
        assert!(applied.check(RequestNumber(2 * IN_FLIGHT_MAX)).is_ok());
        assert!(applied.check(RequestNumber(2 * IN_FLIGHT_MAX + 1)).is_err());
        assert!(applied.check(RequestNumber(u64::MAX)).is_err());
    }
}
