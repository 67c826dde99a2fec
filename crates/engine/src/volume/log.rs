//! The log as followers and peers see it: positions, batches, live segments, sessions.

use bytes::Bytes;
use pannier_core::ids::{RequestNumber, SegmentHash, SegmentName, Sequence, SessionId};
use pannier_core::units::PageIndex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A point between two entries of a volume's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// The last segment that has entries before this point; `None` at the log's very start.
    pub segment: Option<SegmentName>,
    /// How many of its entries lie before this point.
    pub entries: u32,
    /// Chain CRC of the last of them: two logs that agree in it agree in all that lies before.
    pub chain_crc: u32,
    /// Whether the segment is sealed with exactly these entries.
    pub sealed: bool,
}

impl Position {
    /// Sequence of the last segment, 0 at the log's start.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.segment.map_or(Sequence(0), |name| name.sequence)
    }
}

/// A piece of the log on its way to a follower.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogItem {
    /// A sealed segment, whole: its encoded `SegmentMeta`.
    Sealed {
        /// Its name.
        name: SegmentName,
        /// Header, seal record, index and block table, as `SegmentMeta::encode` gives them.
        meta: Vec<u8>,
    },
    /// Durable entries of the open segment.
    Open {
        /// Its name.
        name: SegmentName,
        /// Index of the first entry in `entries`.
        first: u32,
        /// The entries, 32 bytes each, as a descriptor page has them.
        entries: Vec<u8>,
    },
}

/// What [`super::Volume::log_since`] answers: durable entries only, in order, without gaps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBatch {
    /// The position that the batch continues.
    pub from: Position,
    /// The pieces.
    pub items: Vec<LogItem>,
    /// The position behind the last piece.
    pub through: Position,
    /// Whether `through` was the end of the durable log when the batch was made.
    pub end: bool,
}

/// A segment that the map names, as [`super::Volume::live_segments`] reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveSegment {
    /// Its name.
    pub name: SegmentName,
    /// Its hash once it is sealed.
    pub hash: Option<SegmentHash>,
    /// How many of its pages the map names.
    pub pages_live: u32,
    /// Whether a file of this host holds it whole.
    pub file_here: bool,
    /// Whether this site's store holds every page of it that the map names.
    pub stored_here: bool,
}

/// Runs of pages of one segment, ascending, disjoint and not adjacent.
pub type PageRuns = Vec<Range<u32>>;

/// Number of pages in `runs`.
#[must_use]
pub fn pages_in(runs: &[Range<u32>]) -> u32 {
    runs.iter().map(|run| run.end - run.start).sum()
}

/// The pages of `runs`, one by one.
pub fn pages_of(runs: &[Range<u32>]) -> impl Iterator<Item = PageIndex> + '_ {
    runs.iter().flat_map(|run| run.clone().map(PageIndex))
}

/// One change that a forwarded request asks for. Offsets and lengths in bytes, multiples of 512.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Write `data` at `offset`.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Give the range's space back.
    Discard {
        /// First byte.
        offset: u64,
        /// Length.
        length: u64,
    },
    /// Make the range read as zero.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Length.
        length: u64,
        /// Whether it must not become a hole.
        allocate: bool,
    },
}

/// What of a session's requests was applied: all through a number, and some beyond it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SessionState {
    /// Every request up to this one was applied.
    pub through: RequestNumber,
    /// Applied requests beyond it.
    pub beyond: BTreeSet<RequestNumber>,
}

impl SessionState {
    /// Whether the request was applied.
    #[must_use]
    pub fn applied(&self, number: RequestNumber) -> bool {
        number <= self.through || self.beyond.contains(&number)
    }

    /// Notes that the request was applied.
    pub fn apply(&mut self, number: RequestNumber) {
        if number <= self.through {
            return;
        }
        self.beyond.insert(number);
        while self.beyond.remove(&RequestNumber(self.through.0 + 1)) {
            self.through.0 += 1;
        }
    }
}

/// All forwarding sessions of a volume.
pub type SessionTable = BTreeMap<SessionId, SessionState>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_know_what_was_applied() {
        let mut state = SessionState::default();
        for number in [1, 2, 4, 6, 5] {
            state.apply(RequestNumber(number));
        }
        assert_eq!(state.through, RequestNumber(2));
        for (number, expect) in [(1, true), (2, true), (3, false), (4, true), (6, true), (7, false)]
        {
            assert_eq!(state.applied(RequestNumber(number)), expect, "{number}");
        }
        state.apply(RequestNumber(3));
        assert_eq!(state, SessionState { through: RequestNumber(6), beyond: BTreeSet::new() });
    }
}
