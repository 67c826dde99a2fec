//! A position in a volume's log.

use crate::ids::{SegmentName, Sequence};
use serde::{Deserialize, Serialize};

/// A position in a volume's log: everything up to and including one entry.
///
/// The chain CRC covers every entry before it in its segment and, through the segment's link, the
/// segments before: two logs that agree in a position agree in what lies before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// The last segment, `None` before the first.
    pub segment: Option<SegmentName>,
    /// Entries of it that count.
    pub entries: u32,
    /// Chain CRC32C of the last of them, 0 when there is none.
    pub chain_crc: u32,
}

impl Position {
    /// The position before the first segment.
    pub const START: Self = Self { segment: None, entries: 0, chain_crc: 0 };

    /// Sequence of the last segment, 0 before the first.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.segment.map_or(Sequence(0), |name| name.sequence)
    }

    /// Whether this position lies behind `other` in one and the same log.
    #[must_use]
    pub fn is_behind(&self, other: &Self) -> bool {
        (self.sequence(), self.entries) < (other.sequence(), other.entries)
    }
}
