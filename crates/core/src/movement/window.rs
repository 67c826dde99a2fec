//! The bound on bulk in flight: one bandwidth-delay product, measured.
//!
//! The method is that of TCP Vegas (Brakmo, O'Malley, Peterson 1994): the shortest time that an
//! answer ever took is the time without a queue; what the times now are longer by is the queue that
//! we make ourselves. The window grows while there is almost none and shrinks when there is more
//! than a share of it, so that a demand request finds the link nearly empty.

use super::limits::{WINDOW_BYTES_MAX, WINDOW_BYTES_MIN};
use crate::units::Time;

/// Below this share of the window in queues (per mille) it grows.
const QUEUE_LOW: u64 = 150;

/// Above this share it shrinks.
const QUEUE_HIGH: u64 = 350;

/// The base time is measured anew after this long, so that a changed route is noticed.
const BASE_NANOS_MAX: u64 = 30_000_000_000;

/// A measured bound on bytes in flight.
#[derive(Debug, Clone)]
pub struct Window {
    bytes: u64,
    /// Shortest answer time in nanoseconds, and when it was seen.
    base: Option<(u64, Time)>,
    /// Whether the first queue was met: before it the window doubles per round.
    steady: bool,
    /// Bytes answered since the last change.
    answered: u64,
    /// Shortest answer time since the last change.
    round_min: Option<u64>,
}

impl Default for Window {
    fn default() -> Self {
        Self { bytes: WINDOW_BYTES_MIN, base: None, steady: false, answered: 0, round_min: None }
    }
}

impl Window {
    /// Bytes that may be in flight.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Notes that a request of `bytes` that was sent at `sent` has been answered now.
    pub fn answered(&mut self, sent: Time, now: Time, bytes: u64) {
        let took = now.0.saturating_sub(sent.0).max(1);
        self.renew_base(now, took);
        self.answered += bytes;
        self.round_min = Some(self.round_min.map_or(took, |least| least.min(took)));
        if self.answered < self.bytes {
            return;
        }
        let round = self.round_min.take().unwrap_or(took);
        self.answered = 0;
        let base = self.base.map_or(round, |(base, _)| base);
        let queued = 1000 - 1000 * base.min(round) / round;
        if queued < QUEUE_LOW {
            let step = if self.steady { self.bytes / 8 } else { self.bytes };
            self.bytes = (self.bytes + step).min(WINDOW_BYTES_MAX);
        } else {
            self.steady = true;
            if queued > QUEUE_HIGH {
                self.bytes = (self.bytes * 3 / 4).max(WINDOW_BYTES_MIN);
            }
        }
    }

    /// Notes that a request was lost: the path may have changed, or its queue overflowed.
    pub fn lost(&mut self) {
        self.bytes = (self.bytes / 2).max(WINDOW_BYTES_MIN);
        self.answered = 0;
        self.round_min = None;
    }

    /// Keeps the shortest time. When it is old, the window is halved, so that our own queue drains
    /// and the time without one shows itself again (as BBR probes for it; Cardwell et al. 2016).
    fn renew_base(&mut self, now: Time, took: u64) {
        match self.base {
            Some((base, seen)) if took >= base => {
                if now.0 >= seen.0 + BASE_NANOS_MAX {
                    self.bytes = (self.bytes / 2).max(WINDOW_BYTES_MIN);
                    self.answered = 0;
                    self.round_min = None;
                    self.base = Some((took, now));
                }
            }
            _ => self.base = Some((took, now)),
        }
    }
}
