//! The map with the segments that it names.

use super::log::Position;
use super::segment::Segment;
use pannier_core::format::segment::EntryKind;
use pannier_core::ids::SegmentName;
use pannier_core::map::{Map, MapError, SegmentIndex, Target};
use pannier_core::units::{BLOCK_BYTES, BlockIndex};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The map with the segments that it names.
pub(crate) struct MapState {
    pub(crate) map: Map,
    /// By [`SegmentIndex`].
    segments: Vec<Option<Arc<Segment>>>,
    /// Where the newest checkpoint ends: the log is known from here on.
    pub(crate) base: Position,
}

impl MapState {
    pub(crate) fn new(map: Map, base: Position) -> Self {
        Self { map, segments: Vec::new(), base }
    }

    /// Makes a segment known.
    pub(crate) fn add(&mut self, segment: &Arc<Segment>) -> SegmentIndex {
        let index = self.map.intern(segment.name);
        let at = index.number() as usize;
        if self.segments.len() <= at {
            self.segments.resize(at + 1, None);
        }
        self.segments[at] = Some(Arc::clone(segment));
        index
    }

    /// Forgets a segment that no block names.
    pub(crate) fn forget(&mut self, index: SegmentIndex) {
        self.map.retire(index);
        self.segments[index.number() as usize] = None;
    }

    /// The segment behind an index of the map.
    pub(crate) fn segment(&self, index: SegmentIndex) -> Option<&Arc<Segment>> {
        self.segments.get(index.number() as usize)?.as_ref()
    }

    /// A segment by name.
    pub(crate) fn named(&self, name: SegmentName) -> Option<&Arc<Segment>> {
        self.segment(self.map.segments().index(name)?)
    }

    /// Segments with live pages, in the order of the log.
    pub(crate) fn live(&self) -> impl Iterator<Item = (&Arc<Segment>, u32)> {
        let known = self.map.segments().iter();
        known
            .filter(|(_, state)| state.live_pages > 0)
            .filter_map(|(index, state)| Some((self.segment(index)?, state.live_pages)))
    }

    /// Does to the map what a log entry says.
    pub(crate) fn apply(
        &mut self,
        index: SegmentIndex,
        kind: &EntryKind,
        size: &AtomicU64,
    ) -> Result<(), MapError> {
        if let EntryKind::Resize { size_bytes } = *kind {
            self.map.resize(size_bytes.div_ceil(BLOCK_BYTES))?;
            size.store(size_bytes, Ordering::Release);
        }
        match target_of(index, kind) {
            Some((first_block, count, target)) => self.map.assign(first_block, count, target),
            None => Ok(()),
        }
    }
}

/// What an entry makes of the blocks it names, as the map says it.
fn target_of(index: SegmentIndex, kind: &EntryKind) -> Option<(BlockIndex, u32, Target)> {
    match *kind {
        EntryKind::Data { first_block, count, page, .. } => {
            Some((first_block, count, Target::Data(index, page)))
        }
        EntryKind::Zero { first_block, count } => Some((first_block, count, Target::Zero)),
        EntryKind::Discard { first_block, count } => Some((first_block, count, Target::Hole)),
        EntryKind::Resize { .. } | EntryKind::SessionMark { .. } => None,
    }
}
