//! Cache policy: which line leaves next. Mechanism (slab, slots, files) is the engine's.

mod fifo;

pub use fifo::Fifo;

use crate::ids::SegmentId;
use crate::units::PageIndex;

/// Pages of a cache line: 64 KiB, the same cut as the frames of a stored segment.
pub const LINE_PAGES: u32 = 16;

/// A line of a segment: its pages `16 * line .. 16 * line + 16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineKey {
    /// The segment.
    pub segment: SegmentId,
    /// Which line of it, counted from page 0 on.
    pub line: u32,
}

impl LineKey {
    /// The line that holds a page.
    #[must_use]
    pub const fn of(segment: SegmentId, page: PageIndex) -> Self {
        Self { segment, line: page.0 / LINE_PAGES }
    }

    /// The first page of the line.
    #[must_use]
    pub const fn first_page(&self) -> PageIndex {
        PageIndex(self.line * LINE_PAGES)
    }
}

/// Decides which key leaves a full cache. Keys are [`LineKey`]s of fetched data, or the ids of
/// whole segments that were written here.
pub trait Policy<K>: Send {
    /// A key has come in. One that is already in counts as touched.
    fn insert(&mut self, key: K);

    /// A key was used. One that is not in is ignored.
    fn touch(&mut self, key: &K);

    /// A key has left by other means. One that is not in is ignored.
    fn remove(&mut self, key: &K);

    /// Chooses the next key to leave among those that `may_leave` (stored, not in use), takes it
    /// out and returns it. `None` when nothing may leave. A key that may not leave keeps its place,
    /// and at most [`ASK_MAX`] are asked about per call.
    fn evict(&mut self, may_leave: &mut dyn FnMut(&K) -> bool) -> Option<K>;

    /// How many keys are in.
    fn len(&self) -> usize;

    /// Whether none is in.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How many keys [`Policy::evict`] asks about before it gives up: a cache full of lines that may
/// not leave must not cost a walk over all of them at each insertion.
pub const ASK_MAX: usize = 64;
