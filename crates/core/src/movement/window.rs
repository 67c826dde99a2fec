//! The bound on bulk in flight: one bandwidth-delay product, measured.
//!
//! The method is that of BBR (Cardwell et al., "BBR: Congestion-Based Congestion Control", 2016):
//! the highest rate at which answers came of late, times the shortest time that an answer took. A
//! little more than that is kept in flight, so that a rate that has grown shows itself; the surplus
//! is the only queue that a demand request can meet. A maximum and a minimum are not moved by the
//! noise of busy hosts, as an average would be.

use super::limits::{WINDOW_BYTES_MAX, WINDOW_BYTES_MIN};
use crate::units::Time;

/// In flight are this many hundredths of the product.
const GAIN: u64 = 125;

/// The highest rate is that of the last one to two such spans.
const RATE_SPAN_NANOS: u64 = 2_000_000_000;

/// The shortest time is measured anew after this long, so that a changed route is noticed.
const BASE_SPAN_NANOS: u64 = 30_000_000_000;

/// What had been answered when a request was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    at: Time,
    delivered: u64,
}

/// A measured bound on bytes in flight.
#[derive(Debug, Clone)]
pub struct Window {
    bytes: u64,
    /// The same without the gain: what fills the link and leaves hardly a queue.
    lean_bytes: u64,
    /// Bytes answered so far.
    delivered: u64,
    /// Highest rates, in bytes per second, of this span and the one before, and when this one
    /// began.
    rates: [u64; 2],
    span: Time,
    /// Shortest answer time in nanoseconds, and when it was measured.
    base: Option<(u64, Time)>,
    /// While the shortest time is measured anew: the end of that, and the shortest until now.
    probing: Option<(Time, u64)>,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            bytes: WINDOW_BYTES_MIN,
            lean_bytes: WINDOW_BYTES_MIN,
            delivered: 0,
            rates: [0; 2],
            span: Time(0),
            base: None,
            probing: None,
        }
    }
}

impl Window {
    /// Bytes that may be in flight.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        // Half of it leaves no queue behind, and so the time without one shows itself.
        let half = self.probing.is_some();
        if half { (self.bytes / 2).max(WINDOW_BYTES_MIN) } else { self.bytes }
    }

    /// Bytes that may be in flight while a guest waits for others.
    #[must_use]
    pub fn lean_bytes(&self) -> u64 {
        self.lean_bytes.min(self.bytes())
    }

    /// Notes that a request is sent.
    #[must_use]
    pub fn send(&self, now: Time) -> Sent {
        Sent { at: now, delivered: self.delivered }
    }

    /// Notes that a request of `bytes` has been answered now.
    pub fn answered(&mut self, sent: Sent, now: Time, bytes: u64) {
        let took = now.0.saturating_sub(sent.at.0).max(1);
        self.delivered += bytes;
        self.note_base(now, took);
        let delivered = u128::from(self.delivered - sent.delivered);
        let rate = u64::try_from(delivered * 1_000_000_000 / u128::from(took)).unwrap_or(u64::MAX);
        if now.0 >= self.span.0 + RATE_SPAN_NANOS {
            self.rates = [0, self.rates[0]];
            self.span = now;
        }
        self.rates[0] = self.rates[0].max(rate);
        let best = self.rates[0].max(self.rates[1]);
        let base = self.base.map_or(took, |(base, _)| base);
        let product = u128::from(best) * u128::from(base) / 1_000_000_000;
        // One request more than the gain asks for: a window of a few requests would else never hold
        // another whole one, and the rate could not be seen to grow.
        let bounded = |wanted: u128| {
            let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
            wanted.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX)
        };
        self.bytes = bounded(product * u128::from(GAIN) / 100 + u128::from(bytes));
        // Without the gain the second request is what noise may take away.
        self.lean_bytes = bounded(product + 2 * u128::from(bytes));
    }

    /// Notes that a request was lost: the path may have changed, or its queue overflowed.
    pub fn lost(&mut self) {
        self.bytes = (self.bytes / 2).max(WINDOW_BYTES_MIN);
        self.lean_bytes = (self.lean_bytes / 2).max(WINDOW_BYTES_MIN);
        self.rates = self.rates.map(|rate| rate / 2);
    }

    fn note_base(&mut self, now: Time, took: u64) {
        if let Some((end, least)) = self.probing {
            let least = least.min(took);
            self.probing = (now < end).then_some((end, least));
            if self.probing.is_none() {
                self.base = Some((least, now));
            }
            return;
        }
        match self.base {
            Some((base, _)) if took < base => self.base = Some((took, now)),
            Some((base, seen)) if now.0 >= seen.0 + BASE_SPAN_NANOS => {
                // Two rounds: one for the queue to drain, one to measure.
                self.probing = Some((Time(now.0 + 2 * base), took));
            }
            Some(_) => {}
            None => self.base = Some((took, now)),
        }
    }
}
