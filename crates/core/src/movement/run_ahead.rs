//! Detection of sequential readers.
//!
//! As in a kernel's read-ahead: a reader that continues where it stopped is sequential, its window
//! doubles with every step, and the next piece is asked for when half of the last one is consumed,
//! so that the link never waits for the reader.

use super::limits::{RUN_AHEAD_BYTES_MAX, RUN_AHEAD_BYTES_MIN};
use std::ops::Range;

/// Reads out of order by no more than this still count as one stream: guests and exports with
/// several queues send the pieces of one read in parallel.
const SLACK_BYTES: u64 = 1 << 20;

/// Reads in sequence before anything is read ahead.
const STREAK_MIN: u32 = 2;

/// One reader's position and window. Offsets and lengths in bytes.
#[derive(Debug, Clone, Default)]
pub struct RunAhead {
    /// End of the furthest read of the stream.
    next: u64,
    /// Reads that continued the stream.
    streak: u32,
    /// Up to here everything was asked for.
    ahead: u64,
    window: u64,
}

impl RunAhead {
    /// A reader that has read nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a read of `length` bytes at `offset`, and returns the range to get ahead of it, if
    /// any: never beyond `size_bytes`, never a byte that was returned before in the same stream.
    pub fn read(&mut self, offset: u64, length: u64, size_bytes: u64) -> Option<Range<u64>> {
        let end = offset.saturating_add(length);
        let continues = self.streak > 0
            && offset <= self.next.saturating_add(SLACK_BYTES)
            && end.saturating_add(SLACK_BYTES) > self.next;
        if !continues {
            *self = Self { next: end, streak: 1, ahead: end, window: 0 };
            return None;
        }
        if end <= self.next {
            return None;
        }
        self.next = end;
        self.streak = self.streak.saturating_add(1);
        if self.streak <= STREAK_MIN {
            self.ahead = self.ahead.max(end);
            return None;
        }
        let left = self.ahead.saturating_sub(end);
        if self.window > 0 && left > self.window / 2 {
            return None;
        }
        self.window = (self.window * 2).clamp(RUN_AHEAD_BYTES_MIN, RUN_AHEAD_BYTES_MAX);
        let first = self.ahead.max(end);
        let last = end.saturating_add(self.window).min(size_bytes);
        if last <= first {
            return None;
        }
        self.ahead = last;
        Some(first..last)
    }

    /// The offset from which the next read of this stream asks for more: reads that end before it
    /// need not be noted. `u64::MAX` while no stream is running.
    #[must_use]
    pub fn trigger(&self) -> u64 {
        if self.window == 0 { u64::MAX } else { self.ahead.saturating_sub(self.window / 2) }
    }
}
