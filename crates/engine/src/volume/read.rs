//! The guest's reads: a short look at the map, then the page cache; waiting only where that misses.
//!
//! A page's address never means other bytes, so nothing is held while bytes are read: at worst the
//! address is gone (overwritten and recycled meanwhile), and then the map is asked again.

use super::Volume;
use super::data::normal;
use super::journal::stopped;
use super::log::PageRuns;
use super::segment::{Segment, blocking};
use super::unsealed::EntryReader;
use crate::error::{Error, ErrorKind, Result};
use crate::port::{Class, ExtentState, StatusExtent};
use futures::future::try_join_all;
use pannier_core::format::segment::{PAGE_BYTES, SegmentMeta};
use pannier_core::ids::SegmentId;
use pannier_core::map::Target;
use pannier_core::units::{BLOCK_BYTES, BlockIndex, PageIndex};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Runs that one look at the map takes; a more fragmented range takes several.
const PIECES_MAX: usize = 16;

/// Times that a read asks the map and the fetcher again before it gives up.
const ROUNDS_MAX: usize = 8;

/// A part of a read that is zero, or lies in one piece in one segment.
struct Piece {
    /// Where it goes in the reader's buffer.
    into: Range<usize>,
    /// The segment and the byte in its file; `None` reads as zero.
    from: Option<(Arc<Segment>, u64)>,
}

/// What one attempt to load pages has come to.
struct Loading {
    /// Whether the segment was sealed when its metadata was looked for.
    sealed: bool,
    meta: Option<Arc<SegmentMeta>>,
    absent: Vec<Range<u32>>,
    damaged: Vec<Range<u32>>,
    damaged_in_cache: Vec<Range<u32>>,
    unreadable: Option<std::io::Error>,
    /// Whether the segment was sealed meanwhile: then it is looked at again.
    overtaken: bool,
}

/// A few pieces, without allocation.
#[derive(Default)]
struct Pieces {
    pieces: [Option<Piece>; PIECES_MAX],
    count: usize,
}

impl Volume {
    /// As [`crate::port::BlockDevice::try_read`].
    ///
    /// # Errors
    /// As [`Volume::read`].
    pub fn try_read(&self, offset: u64, into: &mut [u8]) -> Result<bool> {
        if !self.is_appending() {
            return Err(stopped());
        }
        self.touched.store(true, Ordering::Relaxed);
        Ok(self.read_inline(offset, into))
    }

    /// Reads `into.len()` bytes.
    ///
    /// # Errors
    /// `Corrupt`, `Closed`, `Unavailable` when nothing can fetch.
    pub async fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        if self.try_read(offset, into)? {
            return Ok(());
        }
        self.counters.reads_waited.increment(1);
        self.read_waiting(offset, into, Class::Demand).await
    }

    /// Reads what needs no waiting; `false` when something would.
    pub(crate) fn read_inline(&self, offset: u64, into: &mut [u8]) -> bool {
        let mut at = 0;
        while at < into.len() {
            let mut found = Pieces::default();
            at = self.look_up(offset, at, into.len(), &mut found);
            for piece in found.pieces.iter().take(found.count).flatten() {
                let into = &mut into[piece.into.clone()];
                let read = match &piece.from {
                    None => {
                        into.fill(0);
                        true
                    }
                    Some((segment, byte)) => self.read_piece_inline(segment, *byte, into),
                };
                if !read {
                    return false;
                }
            }
        }
        true
    }

    fn read_piece_inline(&self, segment: &Arc<Segment>, byte: u64, into: &mut [u8]) -> bool {
        let Some(file) = &*segment.file() else {
            return self.context.cache.read_cached(self.segment_id(segment), byte, into);
        };
        let pages = pages_of(byte, into.len());
        let (first, count) = (PageIndex(pages.start), pages.end - pages.start);
        if !segment.is_trusted(first, count) {
            return false;
        }
        // What is not cached is suspect before anything can bring it into the cache.
        let length = into.len() as u64;
        let read = file.is_cached(byte, length)
            && file.read_cached(into, byte).is_ok_and(|read| read as u64 == length);
        if !read {
            segment.suspect(first, count);
        }
        read
    }

    pub(crate) fn segment_id(&self, segment: &Segment) -> SegmentId {
        SegmentId { volume: self.id, name: segment.name }
    }

    /// Finds pieces of the range from `at` on, and returns how far they reach. Positions count from
    /// `offset`.
    fn look_up(&self, offset: u64, at: usize, length: usize, found: &mut Pieces) -> usize {
        let (start, end) = (offset + at as u64, offset + length as u64);
        let first = start / BLOCK_BYTES;
        let count = (end.div_ceil(BLOCK_BYTES) - first).min(u64::from(u32::MAX)) as u32;
        let mut reached = start;
        let state = self.map.read();
        for run in state.map.lookup(BlockIndex(first), count) {
            if found.count == PIECES_MAX {
                break;
            }
            let run_start = run.first_block.byte_offset();
            let run_end = (run_start + u64::from(run.count) * BLOCK_BYTES).min(end);
            let from = match run.target {
                Target::Data(index, page) => {
                    // A checkpoint whose map names an unknown segment is not opened.
                    let Some(segment) = state.segment(index) else {
                        unreachable!("volume {} maps {run:?} to an unknown segment", self.id);
                    };
                    Some((Arc::clone(segment), page.byte_offset() + reached - run_start))
                }
                Target::Zero | Target::Hole => None,
            };
            let into = (reached - offset) as usize..(run_end - offset) as usize;
            found.pieces[found.count] = Some(Piece { into, from });
            found.count += 1;
            reached = run_end;
        }
        drop(state);
        if found.count < PIECES_MAX && reached < end {
            // Behind the volume's end there is nothing.
            let into = (reached - offset) as usize..length;
            found.pieces[found.count] = Some(Piece { into, from: None });
            found.count += 1;
            reached = end;
        }
        (reached - offset) as usize
    }

    /// Reads, waiting for the disk and for other hosts where that is needed.
    pub(crate) async fn read_waiting(
        &self,
        offset: u64,
        into: &mut [u8],
        class: Class,
    ) -> Result<()> {
        let mut pending: Vec<Range<usize>> = std::iter::once(0..into.len()).collect();
        for _ in 0..ROUNDS_MAX {
            let mut missing = Vec::new();
            let mut again = Vec::new();
            for range in pending {
                let mut at = range.start;
                while at < range.end {
                    let mut found = Pieces::default();
                    at = self.look_up(offset, at, range.end, &mut found);
                    for piece in found.pieces.into_iter().flatten() {
                        let Some((segment, byte)) = piece.from else {
                            into[piece.into].fill(0);
                            continue;
                        };
                        let buffer = &mut into[piece.into.clone()];
                        let absent = self.read_piece(&segment, byte, buffer).await?;
                        if !absent.is_empty() {
                            missing.push((segment, absent));
                            again.push(piece.into);
                        }
                    }
                }
            }
            if missing.is_empty() {
                return Ok(());
            }
            self.fetch_all(missing, class).await?;
            pending = again;
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "volume {}: bytes {offset}+{} were fetched and are not here; is the cache's bound \
                 too small?",
                self.id,
                into.len()
            ),
        ))
    }

    /// Fetches what is missing, all at once.
    pub(crate) async fn fetch_all(
        &self,
        missing: Vec<(Arc<Segment>, Vec<Range<u32>>)>,
        class: Class,
    ) -> Result<()> {
        let fetch = self.context.fetch()?;
        let this = self.this()?;
        let mut wanted: std::collections::BTreeMap<_, Vec<Range<u32>>> = Default::default();
        for (segment, runs) in missing {
            wanted.entry(segment.name).or_default().extend(runs);
        }
        let fetches = wanted.into_iter().map(|(name, runs)| {
            let runs = normal(runs);
            self.counters.pages_missed.increment(super::log::pages_in(&runs).into());
            fetch.pages(&this, name, runs, class)
        });
        try_join_all(fetches).await.map(|_all| ())
    }

    /// Reads a piece; returns the pages that are not here, or not as their hash says.
    async fn read_piece(
        &self,
        segment: &Arc<Segment>,
        byte: u64,
        into: &mut [u8],
    ) -> Result<Vec<Range<u32>>> {
        let pages = pages_of(byte, into.len());
        let (this, wanted, run) = (self.this()?, Arc::clone(segment), pages.clone());
        let (bytes, absent) = blocking(move || this.load_runs(&wanted, &vec![run])).await?;
        if absent.is_empty() {
            let skip = (byte - PageIndex(pages.start).byte_offset()) as usize;
            into.copy_from_slice(&bytes[skip..skip + into.len()]);
        }
        Ok(absent)
    }

    /// Reads runs of pages from the segment's file, else from the line cache, and verifies them;
    /// blocks. Returns them, and which of them are not here or not good: their bytes mean nothing.
    /// However many are damaged, that is one line in the log.
    pub(crate) fn load_runs(
        &self,
        segment: &Arc<Segment>,
        runs: &PageRuns,
    ) -> Result<(Vec<u8>, PageRuns)> {
        let (bytes, loading) = loop {
            let (bytes, loading) = self.try_load_runs(segment, runs)?;
            if !loading.overtaken {
                break (bytes, loading);
            }
        };
        let Loading { absent, damaged, damaged_in_cache, unreadable, .. } = loading;
        let id = self.segment_id(segment);
        if let Some(error) = unreadable {
            tracing::warn!(segment = %id, %error, "a segment file cannot be read");
        }
        if !(damaged.is_empty() && damaged_in_cache.is_empty()) {
            let (on_disk, in_cache) = (normal(damaged), normal(damaged_in_cache));
            tracing::warn!(segment = %id, ?on_disk, ?in_cache, "pages are damaged");
        }
        Ok((bytes, normal(absent)))
    }

    fn try_load_runs(&self, segment: &Arc<Segment>, runs: &PageRuns) -> Result<(Vec<u8>, Loading)> {
        // Before the metadata is looked for: a segment may be sealed in between.
        let sealed = segment.sealed().is_some();
        let mut loading = Loading {
            sealed,
            meta: self.local_meta(segment)?,
            absent: Vec::new(),
            damaged: Vec::new(),
            damaged_in_cache: Vec::new(),
            unreadable: None,
            overtaken: false,
        };
        let mut bytes = Vec::with_capacity(super::log::pages_in(runs) as usize * PAGE_BYTES);
        for run in runs {
            bytes.extend_from_slice(&self.load_run(segment, run.clone(), &mut loading));
        }
        Ok((bytes, loading))
    }

    fn load_run(
        &self,
        segment: &Arc<Segment>,
        pages: Range<u32>,
        loading: &mut Loading,
    ) -> Vec<u8> {
        let count = (pages.end - pages.start) as usize;
        let mut bytes = vec![0; count * PAGE_BYTES];
        // `None`: no hash of the page is known.
        let verify = |page: PageIndex, block: &[u8]| match &loading.meta {
            Some(meta) => Some(meta.verify(page, block, &self.context.key)),
            None if loading.sealed => Some(false),
            None => segment.early_hash(page).map(|hash| hash == self.context.key.block(block)),
        };
        let id = self.segment_id(segment);
        let file = segment.file().clone();
        if let Some(file) = &file
            && !file.is_cached(PageIndex(pages.start).byte_offset(), bytes.len() as u64)
        {
            segment.suspect(PageIndex(pages.start), pages.end - pages.start);
        }
        if let Some(file) = &file
            && let Err(error) = file.read_at(&mut bytes, PageIndex(pages.start).byte_offset())
        {
            loading.unreadable.get_or_insert(error);
            bytes.fill(0);
        }
        let mut entries = file.as_ref().map(|file| EntryReader::new(self, segment, file));
        for (page, block) in pages.map(PageIndex).zip(bytes.chunks_exact_mut(PAGE_BYTES)) {
            let this = page.0..page.0 + 1;
            if let (Some(file), Some(entries)) = (&file, &mut entries)
                && !segment.is_bad(page)
            {
                let good = verify(page, block).or_else(|| entries.read(page, block));
                if good == Some(true) {
                    segment.checked(page, true);
                    continue;
                }
                if good.is_none() && segment.sealed().is_some() {
                    loading.overtaken = true;
                    return bytes;
                }
                if !segment.has_file() {
                    // The file was given away meanwhile.
                    loading.absent.push(this);
                    continue;
                }
                loading.damaged.push(this.clone());
                segment.checked(page, false);
                file.forget_cached(page.byte_offset(), PAGE_BYTES as u64);
            }
            if self.context.cache.read(id, page, block) {
                // What the owner has sent of a segment that is open there has no hash yet.
                if verify(page, block).unwrap_or(true) {
                    self.context.cache.trust_page(id, page);
                    continue;
                }
                loading.damaged_in_cache.push(this.clone());
                self.context.cache.remove_page(id, page);
            }
            loading.absent.push(this);
        }
        bytes
    }

    /// States of a range.
    ///
    /// # Errors
    /// As [`Volume::read`].
    pub async fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<StatusExtent>> {
        if !self.is_appending() {
            return Err(stopped());
        }
        let end = offset + length;
        let mut extents: Vec<StatusExtent> = Vec::new();
        let mut at = offset;
        while at < end {
            let first = at / BLOCK_BYTES;
            let count = (end.div_ceil(BLOCK_BYTES) - first).min(u64::from(u32::MAX >> 1)) as u32;
            let before = at;
            let state = self.map.read();
            for run in state.map.lookup(BlockIndex(first), count) {
                let run_end = run.first_block.byte_offset() + u64::from(run.count) * BLOCK_BYTES;
                let kind = match run.target {
                    Target::Data(..) => ExtentState::Data,
                    Target::Zero => ExtentState::Zero,
                    Target::Hole => ExtentState::Hole,
                };
                let length = run_end.min(end) - at;
                at += length;
                let full = extents.len() == extents_max;
                match extents.last_mut() {
                    Some(last) if last.state == kind => last.length += length,
                    _ if full => return Ok(extents),
                    _ => extents.push(StatusExtent { length, state: kind }),
                }
            }
            if at == before {
                break;
            }
        }
        Ok(extents)
    }

    /// Asks that a range become resident; returns when it is.
    ///
    /// # Errors
    /// As [`Volume::read`].
    pub async fn cache(&self, offset: u64, length: u64) -> Result<()> {
        if !self.is_appending() {
            return Err(stopped());
        }
        let missing: Vec<_> = {
            let named = self.missing_in_range(offset, length);
            let state = self.map.read();
            let known = named.into_iter();
            known.filter_map(|(name, runs)| Some((Arc::clone(state.named(name)?), runs))).collect()
        };
        if missing.is_empty() {
            return Ok(());
        }
        self.fetch_all(missing, Class::RunAhead).await
    }
}

/// The pages that bytes of a segment file lie in.
fn pages_of(byte: u64, length: usize) -> Range<u32> {
    let end = byte + length as u64;
    (byte / BLOCK_BYTES) as u32..end.div_ceil(BLOCK_BYTES) as u32
}
