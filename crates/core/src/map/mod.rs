//! The map of a volume: `block -> (segment, page)`.
//!
//! The map is cut into [`MapPage`]s of [`PAGE_BLOCKS`] blocks each. A page is shared by reference
//! until it is written, so that a checkpoint takes a [`Snapshot`] in the time it takes to copy one
//! pointer per dirty page, and encodes it while the guest goes on. Lookups allocate nothing.
//!
//! Segments are named in the map by a [`SegmentIndex`], which [`SegmentTable`] gives out and never
//! reuses: an index that was copied out of the map before its segment was retired is then gone, and
//! never means another segment. The table counts live pages per segment, so that a wholly dead
//! segment is known the moment its last block is overwritten.

mod page;
mod page_set;
mod segments;

#[cfg(test)]
mod tests;

pub use page::{MapPage, PAGE_BLOCKS, PageRuns};
pub use page_set::PageSet;
pub use segments::{SegmentIndex, SegmentState, SegmentTable};

use crate::ids::SegmentName;
use crate::units::{BlockIndex, PageIndex};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Index of a page of the map: block index divided by [`PAGE_BLOCKS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MapPageIndex(pub u32);

impl MapPageIndex {
    /// The page that covers a block.
    ///
    /// # Panics
    /// When the block is beyond [`SIZE_BLOCKS_MAX`].
    #[must_use]
    pub fn of(block: BlockIndex) -> Self {
        Self(u32::try_from(block.0 / u64::from(PAGE_BLOCKS)).expect("block beyond SIZE_BLOCKS_MAX"))
    }

    /// The first block that the page covers.
    #[must_use]
    pub const fn first_block(self) -> BlockIndex {
        BlockIndex(self.0 as u64 * PAGE_BLOCKS as u64)
    }
}

/// Largest size of a volume in blocks: 256 TiB. It bounds what a hostile size in a log entry or a
/// checkpoint can make this host allocate: 128 MiB of page pointers.
pub const SIZE_BLOCKS_MAX: u64 = 1 << 36;

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// Data in a page of a segment. For a run of blocks, the pages follow each other.
    Data(SegmentIndex, PageIndex),
    /// Written as zero: reads as zero and counts as allocated.
    Zero,
    /// Never written, or discarded: reads as zero and takes no space.
    Hole,
}

impl Target {
    /// The target `count` blocks further on in the same run.
    #[must_use]
    pub fn plus(self, count: u32) -> Self {
        match self {
            Self::Data(segment, page) => Self::Data(segment, page.plus(count)),
            Self::Zero | Self::Hole => self,
        }
    }
}

/// A run of blocks with one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// Its first block.
    pub first_block: BlockIndex,
    /// How many blocks.
    pub count: u32,
    /// Target of the first block; see [`Target::plus`] for the others.
    pub target: Target,
}

/// A change of the map that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Blocks at or beyond the volume's end.
    #[error("blocks {first}+{count} are beyond the volume's end at block {size_blocks}")]
    BeyondEnd {
        /// First block of the range.
        first: u64,
        /// Its length in blocks.
        count: u32,
        /// The volume's size in blocks.
        size_blocks: u64,
    },
    /// Pages beyond what a segment can have.
    #[error("pages {first}+{count} are beyond what a segment can have")]
    BeyondSegment {
        /// First page of the range.
        first: u32,
        /// Its length in pages.
        count: u32,
    },
    /// A volume larger than [`SIZE_BLOCKS_MAX`].
    #[error("a volume of {size_blocks} blocks is larger than the limit of {SIZE_BLOCKS_MAX}")]
    TooLarge {
        /// The size asked for in blocks.
        size_blocks: u64,
    },
}

/// The map of a volume.
#[derive(Debug, Clone)]
pub struct Map {
    size_blocks: u64,
    /// One per [`PAGE_BLOCKS`] blocks; `None` is all hole.
    pages: Vec<Option<Arc<MapPage>>>,
    /// Pages changed since the last [`Map::snapshot_dirty`], one bit each.
    dirty: Vec<u64>,
    dirty_count: usize,
    /// How many pages there were at the last snapshot: a page that is cut off and comes back since
    /// then is a change.
    pages_at_snapshot: usize,
    segments: SegmentTable,
}

/// A consistent view of what changed in the map since the snapshot before it. Taking one is cheap;
/// it stays as it is while the map goes on.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The volume's size in blocks.
    pub size_blocks: u64,
    /// Every page that changed, in order; `None` when it is now all hole.
    pub pages: Vec<(MapPageIndex, Option<Arc<MapPage>>)>,
    /// All segments with their live counts at this moment.
    pub segments: SegmentTable,
}

impl Map {
    /// The map of a volume of `size_blocks` blocks, all hole.
    ///
    /// # Errors
    /// [`MapError::TooLarge`].
    pub fn new(size_blocks: u64) -> Result<Self, MapError> {
        let mut map = Self {
            size_blocks: 0,
            pages: Vec::new(),
            dirty: Vec::new(),
            dirty_count: 0,
            pages_at_snapshot: 0,
            segments: SegmentTable::default(),
        };
        map.resize(size_blocks)?;
        Ok(map)
    }

    /// The volume's size in blocks.
    #[must_use]
    pub fn size_blocks(&self) -> u64 {
        self.size_blocks
    }

    /// The segments that the map knows.
    #[must_use]
    pub fn segments(&self) -> &SegmentTable {
        &self.segments
    }

    /// The index of a segment, given out now if it has none yet.
    pub fn intern(&mut self, name: SegmentName) -> SegmentIndex {
        self.segments.intern(name)
    }

    /// Forgets a segment without live pages; its index never means anything again.
    ///
    /// # Panics
    /// When a block still names it.
    pub fn retire(&mut self, segment: SegmentIndex) {
        self.segments.retire(segment);
    }

    /// Changes the volume's size. New blocks are holes; blocks cut off no longer count as live.
    ///
    /// # Errors
    /// [`MapError::TooLarge`].
    pub fn resize(&mut self, size_blocks: u64) -> Result<(), MapError> {
        if size_blocks > SIZE_BLOCKS_MAX {
            return Err(MapError::TooLarge { size_blocks });
        }
        let mut first = size_blocks;
        while first < self.size_blocks {
            let count = (self.size_blocks - first).min(u64::from(PAGE_BLOCKS)) as u32;
            self.assign(BlockIndex(first), count, Target::Hole)?;
            first += u64::from(count);
        }
        let pages = size_blocks.div_ceil(u64::from(PAGE_BLOCKS)) as usize;
        for page in pages..self.pages.len() {
            self.clear_dirty(page);
        }
        let came_back = self.pages.len()..pages.min(self.pages_at_snapshot);
        self.pages.resize(pages, None);
        self.dirty.resize(pages.div_ceil(64), 0);
        self.size_blocks = size_blocks;
        came_back.for_each(|page| self.set_dirty(page));
        Ok(())
    }

    /// Says what `count` blocks from `first_block` on now are. For data, the pages follow each
    /// other from the target's page on.
    ///
    /// # Errors
    /// [`MapError`] when blocks or pages are out of range; nothing has changed then.
    ///
    /// # Panics
    /// When the target's segment is not in the table.
    pub fn assign(
        &mut self,
        first_block: BlockIndex,
        count: u32,
        target: Target,
    ) -> Result<(), MapError> {
        let first = first_block.0;
        let end = first.checked_add(u64::from(count)).filter(|end| *end <= self.size_blocks);
        let Some(end) = end else {
            return Err(MapError::BeyondEnd { first, count, size_blocks: self.size_blocks });
        };
        if let Target::Data(segment, page) = target {
            if page.0.checked_add(count).is_none() {
                return Err(MapError::BeyondSegment { first: page.0, count });
            }
            assert!(self.segments.get(segment).is_some(), "{segment:?} is not in the table");
        }
        let mut block = first;
        while block < end {
            let index = MapPageIndex::of(BlockIndex(block));
            let within = (block % u64::from(PAGE_BLOCKS)) as u32;
            let part = (end - block).min(u64::from(PAGE_BLOCKS - within)) as u32;
            let done = (block - first) as u32;
            self.assign_in_page(index, within, part, target.plus(done));
            block += u64::from(part);
        }
        Ok(())
    }

    fn assign_in_page(&mut self, index: MapPageIndex, within: u32, count: u32, target: Target) {
        let slot = &mut self.pages[index.0 as usize];
        if slot.is_none() && target == Target::Hole {
            return;
        }
        let page = Arc::make_mut(slot.get_or_insert_with(|| Arc::new(MapPage::hole())));
        let segments = &mut self.segments;
        page.assign(within, count, target, |dead, pages| segments.sub_live(dead, pages));
        if let Target::Data(segment, _) = target {
            self.segments.add_live(segment, count);
        }
        if page.is_hole() {
            *slot = None;
        }
        self.set_dirty(index.0 as usize);
    }

    /// What the blocks of a range are, in order, without allocating. Runs end at the borders of map
    /// pages; the part of the range beyond the volume's end is left out.
    pub fn lookup(&self, first_block: BlockIndex, count: u32) -> Runs<'_> {
        let end = first_block.0.saturating_add(u64::from(count)).min(self.size_blocks);
        Runs { map: self, next: first_block.0, end, page: None }
    }

    /// What one block is. Blocks beyond the volume's end are holes.
    #[must_use]
    pub fn target(&self, block: BlockIndex) -> Target {
        if block.0 >= self.size_blocks {
            return Target::Hole;
        }
        let within = (block.0 % u64::from(PAGE_BLOCKS)) as u32;
        match &self.pages[MapPageIndex::of(block).0 as usize] {
            None => Target::Hole,
            Some(page) => page.target(within),
        }
    }

    /// How many pages the map has.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        self.pages.len() as u32
    }

    /// A page, `None` when it is all hole or beyond the end.
    #[must_use]
    pub fn page(&self, index: MapPageIndex) -> Option<&Arc<MapPage>> {
        self.pages.get(index.0 as usize).and_then(Option::as_ref)
    }

    /// How many pages changed since the last snapshot.
    #[must_use]
    pub fn dirty_count(&self) -> usize {
        self.dirty_count
    }

    /// Takes what changed since the last call, and counts changes anew from here. When the caller
    /// fails to store it, [`Map::mark_dirty`] puts the pages back.
    #[must_use]
    pub fn snapshot_dirty(&mut self) -> Snapshot {
        let mut pages = Vec::with_capacity(self.dirty_count);
        for (word_index, word) in self.dirty.iter_mut().enumerate() {
            while *word != 0 {
                let bit = word.trailing_zeros() as usize;
                *word &= *word - 1;
                let index = word_index * 64 + bit;
                pages.push((MapPageIndex(index as u32), self.pages[index].clone()));
            }
        }
        self.dirty_count = 0;
        self.pages_at_snapshot = self.pages.len();
        Snapshot { size_blocks: self.size_blocks, pages, segments: self.segments.clone() }
    }

    /// Marks a page as changed. One beyond the end is ignored: it was cut off since.
    pub fn mark_dirty(&mut self, index: MapPageIndex) {
        if (index.0 as usize) < self.pages.len() {
            self.set_dirty(index.0 as usize);
        }
    }

    /// Puts a page in place of whatever is there, as loaded from a checkpoint: it does not count as
    /// changed. `runs` are (count of blocks, target), in order and gapless.
    ///
    /// # Errors
    /// [`MapError::BeyondEnd`] when the runs are not exactly one page, when the page is beyond the
    /// volume's end, or names blocks there; [`MapError::BeyondSegment`]. Nothing has changed then.
    pub fn load_page(
        &mut self,
        index: MapPageIndex,
        runs: &[(u32, LoadTarget)],
    ) -> Result<(), MapError> {
        let first = index.first_block().0;
        let limit = self.size_blocks.saturating_sub(first).min(u64::from(PAGE_BLOCKS));
        let mut at = 0_u64;
        for (count, target) in runs {
            at += u64::from(*count);
            if *target != LoadTarget::Hole && at > limit {
                let count = *count;
                return Err(MapError::BeyondEnd { first, count, size_blocks: self.size_blocks });
            }
            if let LoadTarget::Data(_, page) = target
                && page.0.checked_add(*count).is_none()
            {
                return Err(MapError::BeyondSegment { first: page.0, count: *count });
            }
        }
        if at != u64::from(PAGE_BLOCKS) || limit == 0 {
            let count = at.min(u64::from(u32::MAX)) as u32;
            return Err(MapError::BeyondEnd { first, count, size_blocks: self.size_blocks });
        }
        let was_dirty = self.is_dirty(index.0 as usize);
        self.assign_in_page(index, 0, PAGE_BLOCKS, Target::Hole);
        let mut within = 0;
        for (count, target) in runs {
            let target = match target {
                LoadTarget::Hole => Target::Hole,
                LoadTarget::Zero => Target::Zero,
                LoadTarget::Data(name, page) => Target::Data(self.intern(*name), *page),
            };
            self.assign_in_page(index, within, *count, target);
            within += count;
        }
        if !was_dirty {
            self.clear_dirty(index.0 as usize);
        }
        Ok(())
    }

    /// The live pages of every segment, by one walk over the whole map. For one segment whose index
    /// of entries is at hand, [`Map::live_among`] costs far less.
    #[must_use]
    pub fn live_pages(&self) -> BTreeMap<SegmentIndex, PageSet> {
        let mut live: BTreeMap<SegmentIndex, PageSet> = BTreeMap::new();
        for page in self.pages.iter().flatten() {
            for (_, count, target) in page.runs() {
                if let Target::Data(segment, first) = target {
                    live.entry(segment).or_default().insert(first, count);
                }
            }
        }
        live
    }

    /// The live pages of one segment among what it wrote: (first block, count, first page) of its
    /// data entries. Entries out of the volume's range are dead.
    #[must_use]
    pub fn live_among(
        &self,
        segment: SegmentIndex,
        wrote: impl IntoIterator<Item = (BlockIndex, u32, PageIndex)>,
    ) -> PageSet {
        let mut live = PageSet::default();
        for (first_block, count, _) in wrote {
            for run in self.lookup(first_block, count) {
                if let Target::Data(named, page) = run.target
                    && named == segment
                {
                    live.insert(page, run.count);
                }
            }
        }
        live
    }

    fn is_dirty(&self, page: usize) -> bool {
        self.dirty[page / 64] >> (page % 64) & 1 == 1
    }

    fn set_dirty(&mut self, page: usize) {
        if !self.is_dirty(page) {
            self.dirty[page / 64] |= 1 << (page % 64);
            self.dirty_count += 1;
        }
    }

    fn clear_dirty(&mut self, page: usize) {
        if self.is_dirty(page) {
            self.dirty[page / 64] &= !(1 << (page % 64));
            self.dirty_count -= 1;
        }
    }
}

/// What a block is, with the segment by name: as a checkpoint's page says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadTarget {
    /// See [`Target::Data`].
    Data(SegmentName, PageIndex),
    /// See [`Target::Zero`].
    Zero,
    /// See [`Target::Hole`].
    Hole,
}

/// The runs of a range; see [`Map::lookup`].
#[derive(Debug, Clone)]
pub struct Runs<'a> {
    map: &'a Map,
    next: u64,
    end: u64,
    page: Option<PageRuns<'a>>,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        loop {
            if let Some(runs) = &mut self.page
                && let Some((_, count, target)) = runs.next()
            {
                let first_block = BlockIndex(self.next);
                self.next += u64::from(count);
                return Some(Run { first_block, count, target });
            }
            self.page = None;
            if self.next >= self.end {
                return None;
            }
            let within = (self.next % u64::from(PAGE_BLOCKS)) as u32;
            let count = (self.end - self.next).min(u64::from(PAGE_BLOCKS - within)) as u32;
            let index = MapPageIndex::of(BlockIndex(self.next)).0 as usize;
            match &self.map.pages[index] {
                Some(page) => self.page = Some(page.range(within, count)),
                None => {
                    let first_block = BlockIndex(self.next);
                    self.next += u64::from(count);
                    return Some(Run { first_block, count, target: Target::Hole });
                }
            }
        }
    }
}
