//! The log as followers and peers see it: positions, batches, live segments, sessions.

use bytes::Bytes;
use pannier_core::ids::{ObjectHash, RequestNumber, SegmentHash, SegmentName, SessionId, VolumeId};
use pannier_core::units::PageIndex;
pub use pannier_core::volume::Position;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// What [`super::Volume::log_since`] answers: sealed segments, whole, in order and without gaps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBatch {
    /// The position that the batch continues.
    pub from: Position,
    /// The segments: name, and `SegmentMeta` as it encodes itself.
    pub segments: Vec<(SegmentName, Vec<u8>)>,
    /// The position behind the last segment.
    pub through: Position,
    /// Whether nothing sealed lay behind `through` when the batch was made.
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

/// All forwarding sessions of a volume, with the highest request that each has applied: a session's
/// requests are applied in the order of their numbers.
pub type SessionTable = BTreeMap<SessionId, RequestNumber>;

/// Key in a site's store of a checkpoint object: root, part or map page.
#[must_use]
pub fn object_key(volume: VolumeId, object: ObjectHash) -> String {
    format!("volumes/{volume}/checkpoints/{object}")
}
