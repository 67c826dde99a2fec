//! Quantities: blocks, bytes, time. Newtypes, so that an index is never taken for a count.

use serde::{Deserialize, Serialize};

/// Size in bytes of a block, the unit of the map.
pub const BLOCK_BYTES: u64 = 4096;

/// Size in bytes of a sector, the smallest unit that a guest may address.
pub const SECTOR_BYTES: u64 = 512;

/// Index of a block of a volume, counted from its start.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct BlockIndex(pub u64);

impl BlockIndex {
    /// First byte of the block within its volume.
    #[must_use]
    pub const fn byte_offset(self) -> u64 {
        self.0 * BLOCK_BYTES
    }

    /// The block `count` further on.
    #[must_use]
    pub const fn plus(self, count: u32) -> Self {
        Self(self.0 + count as u64)
    }
}

/// Index of a 4 KiB page within a segment file. Page 0 is the header, page 1 the seal record.
///
/// `(SegmentName, PageIndex)` is the address of a stored block and means the same bytes everywhere,
/// for ever.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct PageIndex(pub u32);

impl PageIndex {
    /// First byte of the page within its segment file.
    #[must_use]
    pub const fn byte_offset(self) -> u64 {
        self.0 as u64 * BLOCK_BYTES
    }

    /// The page `count` further on.
    #[must_use]
    pub const fn plus(self, count: u32) -> Self {
        Self(self.0 + count)
    }
}

/// A point in time in nanoseconds, on whatever clock the caller of a machine keeps.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Time(pub u64);

impl Time {
    /// This time and `millis` milliseconds more.
    #[must_use]
    pub const fn plus_millis(self, millis: u64) -> Self {
        Self(self.0 + millis * 1_000_000)
    }
}
