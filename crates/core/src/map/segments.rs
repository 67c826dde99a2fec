//! The segments that a map names: name to index and back, with live page counts.

use crate::ids::SegmentName;
use std::collections::BTreeMap;

/// Short name of a segment within one map in memory. Given out once, never reused: after the
/// segment is retired it means nothing. It does not outlive the process and is never stored or
/// sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentIndex(pub(super) u32);

impl SegmentIndex {
    /// The index as a number, counted from 0 in the order in which the map met the segments.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// What the table knows of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentState {
    /// Its name.
    pub name: SegmentName,
    /// How many of its pages the map names.
    pub live_pages: u32,
}

const CHUNK: usize = 64;

#[derive(Debug, Clone)]
struct Chunk {
    known: usize,
    states: [Option<SegmentState>; CHUNK],
}

/// The segments that a map names.
///
/// Looking an index up is two array accesses. Memory follows the number of segments known, not the
/// number ever known: a chunk whose segments are all retired is freed.
#[derive(Debug, Clone, Default)]
pub struct SegmentTable {
    chunks: Vec<Option<Box<Chunk>>>,
    next: u32,
    by_name: BTreeMap<SegmentName, SegmentIndex>,
}

impl SegmentTable {
    /// The state of a segment, `None` when it was retired.
    #[must_use]
    pub fn get(&self, segment: SegmentIndex) -> Option<&SegmentState> {
        let chunk = self.chunks.get(segment.0 as usize / CHUNK)?.as_ref()?;
        chunk.states[segment.0 as usize % CHUNK].as_ref()
    }

    /// The name of a segment, `None` when it was retired.
    #[must_use]
    pub fn name(&self, segment: SegmentIndex) -> Option<SegmentName> {
        self.get(segment).map(|state| state.name)
    }

    /// The index of a segment, `None` when the map does not know it.
    #[must_use]
    pub fn index(&self, name: SegmentName) -> Option<SegmentIndex> {
        self.by_name.get(&name).copied()
    }

    /// All segments in the order of their names, which is the order of the log.
    pub fn iter(&self) -> impl Iterator<Item = (SegmentIndex, SegmentState)> + '_ {
        self.by_name.values().filter_map(|index| self.get(*index).map(|state| (*index, *state)))
    }

    /// Segments that no block names, in the order of the log. The open segment is among them until
    /// its first block.
    pub fn dead(&self) -> impl Iterator<Item = (SegmentIndex, SegmentName)> + '_ {
        self.iter()
            .filter(|(_, state)| state.live_pages == 0)
            .map(|(index, state)| (index, state.name))
    }

    /// How many segments there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub(super) fn intern(&mut self, name: SegmentName) -> SegmentIndex {
        if let Some(index) = self.by_name.get(&name) {
            return *index;
        }
        let index = SegmentIndex(self.next);
        // At one segment per millisecond this is reached after 49 days of nothing but sealing, and
        // a restart counts anew. The highest index is taken: it says hole or zero in a page.
        assert!(self.next < u32::MAX - 1, "segment indices are used up; restart the daemon");
        self.next += 1;
        let (chunk, within) = (index.0 as usize / CHUNK, index.0 as usize % CHUNK);
        if self.chunks.len() <= chunk {
            self.chunks.resize_with(chunk + 1, || None);
        }
        let chunk = self.chunks[chunk]
            .get_or_insert_with(|| Box::new(Chunk { known: 0, states: [None; CHUNK] }));
        chunk.states[within] = Some(SegmentState { name, live_pages: 0 });
        chunk.known += 1;
        self.by_name.insert(name, index);
        index
    }

    pub(super) fn retire(&mut self, segment: SegmentIndex) {
        let slot = &mut self.chunks[segment.0 as usize / CHUNK];
        let chunk = slot.as_mut().expect("a segment is retired once");
        let state =
            chunk.states[segment.0 as usize % CHUNK].take().expect("a segment is retired once");
        assert_eq!(state.live_pages, 0, "segment {} is retired while blocks name it", state.name);
        chunk.known -= 1;
        if chunk.known == 0 {
            *slot = None;
        }
        self.by_name.remove(&state.name);
    }

    pub(super) fn add_live(&mut self, segment: SegmentIndex, pages: u32) {
        let state = self.state_mut(segment);
        state.live_pages =
            state.live_pages.checked_add(pages).expect("a segment has fewer than 2^32 live pages");
    }

    pub(super) fn sub_live(&mut self, segment: SegmentIndex, pages: u32) {
        let state = self.state_mut(segment);
        state.live_pages =
            state.live_pages.checked_sub(pages).expect("a live count is never below zero");
    }

    fn state_mut(&mut self, segment: SegmentIndex) -> &mut SegmentState {
        self.chunks[segment.0 as usize / CHUNK]
            .as_mut()
            .and_then(|chunk| chunk.states[segment.0 as usize % CHUNK].as_mut())
            .expect("a segment that a block names is in the table")
    }
}
