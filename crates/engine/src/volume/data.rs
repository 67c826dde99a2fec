//! A volume's segments and pages for those who copy them: what is live, what is here, and its
//! bytes.

use super::Volume;
use super::log::{LiveSegment, PageRuns};
use super::segment::{Segment, blocking};
use crate::error::{Error, ErrorKind, Result};
use crate::port::Class;
use bytes::Bytes;
use pannier_core::format::segment::{EntryKind, PAGE_BYTES};
use pannier_core::format::stored;
use pannier_core::ids::{SegmentId, SegmentName};
use pannier_core::map::{PageSet, Target};
use pannier_core::units::{BLOCK_BYTES, BlockIndex, PageIndex};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

impl Volume {
    /// Segments that the map names, in the order of the log.
    #[must_use]
    pub fn live_segments(&self) -> Vec<LiveSegment> {
        let state = self.map.read();
        let live = state.live().map(|(segment, pages_live)| LiveSegment {
            name: segment.name,
            hash: segment.sealed().map(|sealed| sealed.hash),
            pages_live,
            file_here: segment.has_file(),
            stored_here: segment.is_stored(),
        });
        live.collect()
    }

    /// Pages of a segment that the map names. May read the segment's index from the disk.
    #[must_use]
    pub fn live_pages(&self, segment: SegmentName) -> PageRuns {
        runs_of(&self.live_set(segment))
    }

    pub(crate) fn live_set(&self, name: SegmentName) -> PageSet {
        let Some(segment) = self.map.read().named(name).cloned() else {
            return PageSet::default();
        };
        let meta = self.local_meta(&segment).ok().flatten();
        let state = self.map.read();
        let Some(index) = state.map.segments().index(name) else { return PageSet::default() };
        match meta {
            Some(meta) => state.map.live_among(
                index,
                meta.entries().iter().filter_map(|entry| match entry.kind {
                    EntryKind::Data { first_block, count, page, .. } => {
                        Some((first_block, count, page))
                    }
                    _ => None,
                }),
            ),
            None => state.map.live_pages().remove(&index).unwrap_or_default(),
        }
    }

    /// Pages of a segment that the map names and that are not resident here.
    #[must_use]
    pub fn missing_pages(&self, segment: SegmentName) -> PageRuns {
        let mut missing = self.live_set(segment);
        let known = self.map.read().named(segment).cloned();
        if let Some(known) = known {
            self.take_resident(&known, &mut missing);
        }
        runs_of(&missing)
    }

    /// Those of a segment's pages that are not resident here.
    pub(crate) fn absent_pages(&self, segment: SegmentName, pages: &[Range<u32>]) -> PageRuns {
        let mut absent = PageSet::default();
        for run in pages {
            absent.insert(PageIndex(run.start), run.end - run.start);
        }
        let known = self.map.read().named(segment).cloned();
        if let Some(known) = known {
            self.take_resident(&known, &mut absent);
        }
        runs_of(&absent)
    }

    /// Takes what is here out of a set of a segment's pages.
    fn take_resident(&self, segment: &Segment, pages: &mut PageSet) {
        if segment.has_file() {
            let good: Vec<_> = pages.iter().filter(|page| !segment.is_bad(*page)).collect();
            good.into_iter().for_each(|page| pages.remove(page, 1));
        }
        if !pages.is_empty() {
            pages.subtract(&self.context.cache.pages_of(self.segment_id(segment)));
        }
    }

    /// Pages that the range of the disk needs and that are not resident here, per segment, in disk
    /// order: what run-ahead fetches.
    #[must_use]
    pub fn missing_in_range(&self, offset: u64, length: u64) -> Vec<(SegmentName, PageRuns)> {
        let first = offset / BLOCK_BYTES;
        let end = offset.saturating_add(length).div_ceil(BLOCK_BYTES);
        let count = (end - first).min(u64::from(u32::MAX)) as u32;
        let mut order: Vec<Arc<Segment>> = Vec::new();
        let mut wanted: BTreeMap<SegmentName, PageSet> = BTreeMap::new();
        let state = self.map.read();
        for run in state.map.lookup(BlockIndex(first), count) {
            let Target::Data(index, page) = run.target else { continue };
            let Some(segment) = state.segment(index) else { continue };
            let pages = wanted.entry(segment.name).or_insert_with(|| {
                order.push(Arc::clone(segment));
                PageSet::default()
            });
            pages.insert(page, run.count);
        }
        drop(state);
        let mut missing = Vec::new();
        for segment in order {
            let Some(mut pages) = wanted.remove(&segment.name) else { continue };
            self.take_resident(&segment, &mut pages);
            if !pages.is_empty() {
                missing.push((segment.name, runs_of(&pages)));
            }
        }
        missing
    }

    /// A segment that the map or the log knows.
    pub(crate) fn known(&self, name: SegmentName) -> Result<Arc<Segment>> {
        let named = self.map.read().named(name).cloned();
        named.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("volume {} knows no segment {name} on this host", self.id),
            )
        })
    }

    /// Bytes of pages, one behind the other, verified: from the segment's file, the line cache or
    /// the own site's store, never from a peer. Only sealed segments have pages for others.
    ///
    /// # Errors
    /// `NotFound` when they are not here, `Corrupt`.
    pub async fn read_pages(&self, segment: SegmentName, pages: &PageRuns) -> Result<Bytes> {
        let known = self.known(segment)?;
        if known.sealed().is_none() {
            let text = format!("segment {}/{segment} is not sealed", self.id);
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        for attempt in 0..2 {
            let (this, wanted, runs) = (self.this()?, Arc::clone(&known), pages.clone());
            let (bytes, absent) = blocking(move || this.load_runs(&wanted, &runs)).await?;
            if absent.is_empty() {
                return Ok(bytes.into());
            }
            if attempt > 0 || !known.is_stored() {
                break;
            }
            let this = self.this()?;
            self.context.fetch()?.pages(&this, segment, absent, Class::Demand).await?;
        }
        let text = format!("pages of segment {}/{segment} are not here", self.id);
        Err(Error::new(ErrorKind::NotFound, text))
    }

    /// Verifies pages against the segment's block table and keeps them in the line cache.
    ///
    /// # Errors
    /// `Corrupt` when a page is not what the table says (none is then kept), `NoSpace`, or as
    /// [`Volume::segment_meta`].
    pub async fn insert_pages(
        &self,
        segment: SegmentName,
        pages: &PageRuns,
        bytes: &[u8],
    ) -> Result<()> {
        let known = self.known(segment)?;
        let meta = self.meta_of(&known).await?;
        if bytes.len() != super::log::pages_in(pages) as usize * PAGE_BYTES {
            let text = format!("pages of segment {segment} have the wrong length");
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        let (this, pages, bytes) = (self.this()?, pages.clone(), bytes.to_vec());
        blocking(move || {
            let blocks = bytes.chunks_exact(PAGE_BYTES);
            for (page, block) in super::log::pages_of(&pages).zip(blocks) {
                if !meta.verify(page, block, &this.context.key) {
                    let text =
                        format!("page {} of segment {}/{segment} is damaged", page.0, this.id);
                    return Err(Error::new(ErrorKind::Corrupt, text));
                }
            }
            let mut rest = bytes.as_slice();
            for run in &pages {
                let (part, behind) = rest.split_at((run.end - run.start) as usize * PAGE_BYTES);
                let id = this.segment_id(&known);
                this.context.cache.insert(id, PageIndex(run.start), part)?;
                rest = behind;
            }
            Ok(())
        })
        .await
    }

    /// As [`Volume::insert_pages`]; what a guest waits for is held in memory when the disk has no
    /// space for it. The disk's refusal is returned then.
    pub(crate) async fn take_pages(
        &self,
        segment: SegmentName,
        pages: &PageRuns,
        bytes: &[u8],
        class: Class,
    ) -> Result<Option<Error>> {
        match self.insert_pages(segment, pages, bytes).await {
            // They were verified first.
            Err(full) if full.kind() == ErrorKind::NoSpace && class == Class::Demand => {
                let id = SegmentId { volume: self.id, name: segment };
                let blocks = bytes.chunks_exact(PAGE_BYTES);
                for (page, block) in super::log::pages_of(pages).zip(blocks) {
                    self.context.cache.hold(id, page, block);
                }
                Ok(Some(full))
            }
            kept => kept.map(|()| None),
        }
    }

    /// The encoded `SegmentMeta` of a sealed segment that is here.
    ///
    /// # Errors
    /// `NotFound` when it is not here or not sealed.
    pub async fn segment_meta(&self, segment: SegmentName) -> Result<Bytes> {
        let known = self.known(segment)?;
        let this = self.this()?;
        let meta = blocking(move || this.local_meta(&known)).await?.ok_or_else(|| {
            let text = format!("metadata of segment {}/{segment} is not here", self.id);
            Error::new(ErrorKind::NotFound, text)
        })?;
        Ok(meta.encode().into())
    }

    /// Key of the segment's object in the site's store, when it is stored there.
    #[must_use]
    pub fn stored_key(&self, segment: SegmentName) -> Option<String> {
        let known = self.map.read().named(segment).cloned()?;
        known.is_stored().then(|| self.object_key_of(&known)).flatten()
    }

    /// Key under which the own site's store has a sealed segment, or will.
    pub(crate) fn object_key_of(&self, segment: &Segment) -> Option<String> {
        let sealed = segment.sealed()?;
        Some(stored::key(self.segment_id(segment), segment.generation(), sealed.hash))
    }
}

/// Runs in order, disjoint, not adjacent.
pub(crate) fn normal(mut runs: Vec<Range<u32>>) -> PageRuns {
    runs.sort_unstable_by_key(|run| run.start);
    let mut merged: PageRuns = Vec::with_capacity(runs.len());
    for run in runs {
        match merged.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => merged.push(run),
        }
    }
    merged
}

/// A set's pages as runs.
fn runs_of(pages: &PageSet) -> PageRuns {
    pages.runs().map(|(first, count)| first.0..first.0 + count).collect()
}
