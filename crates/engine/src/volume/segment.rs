//! One segment of a volume as this host has it: its file, its seal, what is known of its blocks.

use super::Volume;
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::pool::PoolFile;
use arc_swap::{ArcSwapOption, Guard};
use pannier_core::format::segment::{Entry, Recovered, SegmentMeta, recover};
use pannier_core::ids::{BlockHash, HashKey, SegmentHash, SegmentName};
use pannier_core::map::PageSet;
use pannier_core::units::PageIndex;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// What a seal says of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sealed {
    /// Its identity.
    pub(crate) hash: SegmentHash,
    /// Its entries.
    pub(crate) entries: u32,
}

/// Hashes of an unsealed segment's data pages, as far as they are computed, in page order.
#[derive(Debug, Default)]
pub(crate) struct Hashed {
    /// Entries whose data is hashed.
    pub(crate) entries: u32,
    /// Pages and their hashes.
    pub(crate) pages: Vec<(PageIndex, BlockHash)>,
}

/// One segment of a volume as this host has it.
pub(crate) struct Segment {
    /// Its name.
    pub(crate) name: SegmentName,
    file: ArcSwapOption<PoolFile>,
    sealed: OnceLock<Sealed>,
    stored: AtomicBool,
    generation: AtomicU32,
    /// Held while it is stored: background work and hydration may both want to.
    pub(crate) storing: tokio::sync::Mutex<()>,
    /// While it is not sealed.
    pub(crate) hashed: Mutex<Hashed>,
    /// Between its last entry and its seal: what its data are checked by where they are not hashed.
    entries: Mutex<Arc<[Entry]>>,
    doubt: Mutex<Doubt>,
    has_doubt: AtomicBool,
}

/// Pages of a segment's file that may not be read straight from the page cache.
#[derive(Default)]
struct Doubt {
    /// Not what the block table says.
    bad: PageSet,
    /// They were not in the page cache when they were wanted: what turns up there is from the disk
    /// and has to be checked first.
    suspect: PageSet,
}

impl Segment {
    /// A segment with a file, or without.
    pub(crate) fn new(name: SegmentName, file: Option<Arc<PoolFile>>) -> Arc<Self> {
        Arc::new(Self {
            name,
            file: ArcSwapOption::from(file),
            sealed: OnceLock::new(),
            stored: AtomicBool::new(false),
            generation: AtomicU32::new(1),
            storing: tokio::sync::Mutex::new(()),
            hashed: Mutex::default(),
            entries: Mutex::default(),
            doubt: Mutex::default(),
            has_doubt: AtomicBool::new(false),
        })
    }

    /// Its file, when it is here whole.
    pub(crate) fn file(&self) -> Guard<Option<Arc<PoolFile>>> {
        self.file.load()
    }

    /// Gives it a file, or takes it away.
    pub(crate) fn set_file(&self, file: Option<Arc<PoolFile>>) -> Option<Arc<PoolFile>> {
        self.file.swap(file)
    }

    /// Whether a file holds it whole.
    pub(crate) fn has_file(&self) -> bool {
        self.file.load().is_some()
    }

    /// What its seal says, once it is sealed.
    pub(crate) fn sealed(&self) -> Option<Sealed> {
        self.sealed.get().copied()
    }

    /// Notes its seal. Sealing again with the same hash is the same seal.
    pub(crate) fn set_sealed(&self, sealed: Sealed) {
        let known = *self.sealed.get_or_init(|| sealed);
        assert_eq!(known.hash, sealed.hash, "segment {} has one seal", self.name);
        *self.hashed.lock() = Hashed::default();
        *self.entries.lock() = Arc::default();
    }

    /// Notes the entries of a segment that takes no more and is not sealed yet.
    pub(crate) fn set_entries(&self, entries: &[Entry]) {
        *self.entries.lock() = entries.into();
    }

    /// The entries of a segment that takes no more, until it is sealed.
    pub(crate) fn entries(&self) -> Arc<[Entry]> {
        Arc::clone(&self.entries.lock())
    }

    /// Whether the site's store has every page of it that is live.
    pub(crate) fn is_stored(&self) -> bool {
        self.stored.load(Ordering::Acquire)
    }

    /// Notes whether the site's store has it.
    pub(crate) fn set_stored(&self, stored: bool) {
        self.stored.store(stored, Ordering::Release);
    }

    /// The generation under which the site's store has it, or will.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Sets the generation.
    pub(crate) fn set_generation(&self, generation: u32) {
        self.generation.store(generation, Ordering::Release);
    }

    /// Whether what the page cache has of a run of pages is known to be good.
    pub(crate) fn is_trusted(&self, first: PageIndex, count: u32) -> bool {
        !self.has_doubt.load(Ordering::Acquire) || {
            let doubt = self.doubt.lock();
            let doubted = |page| doubt.bad.contains(page) || doubt.suspect.contains(page);
            !(0..count).any(|n| doubted(first.plus(n)))
        }
    }

    /// Whether the file's copy of a page was found damaged.
    pub(crate) fn is_bad(&self, page: PageIndex) -> bool {
        self.has_doubt.load(Ordering::Acquire) && self.doubt.lock().bad.contains(page)
    }

    /// Notes that pages are not in the page cache: they are checked before they are used.
    pub(crate) fn suspect(&self, first: PageIndex, count: u32) {
        self.doubt.lock().suspect.insert(first, count);
        self.has_doubt.store(true, Ordering::Release);
    }

    /// Notes that a page was checked: it is good, or it is not.
    pub(crate) fn checked(&self, page: PageIndex, good: bool) {
        if good && !self.has_doubt.load(Ordering::Acquire) {
            return;
        }
        let mut doubt = self.doubt.lock();
        doubt.suspect.remove(page, 1);
        if !good {
            doubt.bad.insert(page, 1);
        }
        self.has_doubt.store(!doubt.bad.is_empty() || !doubt.suspect.is_empty(), Ordering::Release);
    }

    /// Hash of a page of an unsealed segment, when it is computed.
    pub(crate) fn early_hash(&self, page: PageIndex) -> Option<BlockHash> {
        let hashed = self.hashed.lock();
        let at = hashed.pages.binary_search_by_key(&page, |(page, _)| *page).ok()?;
        Some(hashed.pages[at].1)
    }
}

/// Decoded metadata of a few sealed segments: the latest used.
#[derive(Default)]
pub(crate) struct Metas {
    recent: VecDeque<(SegmentName, Arc<SegmentMeta>)>,
}

impl Metas {
    fn get(&mut self, name: SegmentName) -> Option<Arc<SegmentMeta>> {
        let at = self.recent.iter().position(|(known, _)| *known == name)?;
        let found = self.recent.remove(at)?;
        let meta = Arc::clone(&found.1);
        self.recent.push_back(found);
        Some(meta)
    }

    pub(crate) fn put(&mut self, name: SegmentName, meta: Arc<SegmentMeta>) {
        self.recent.retain(|(known, _)| *known != name);
        if self.recent.len() >= limits::METAS_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((name, meta));
    }

    pub(crate) fn forget(&mut self, name: SegmentName) {
        self.recent.retain(|(known, _)| *known != name);
    }
}

/// Reads a segment file as recovery does.
pub(crate) fn read_segment(file: &PoolFile, key: &HashKey) -> Result<Recovered> {
    let mut header = vec![0; 4096];
    let what = || format!("read segment file {}", file.path().display());
    file.read_at(&mut header, 0).map_err(|e| Error::io(what(), e))?;
    recover::<io::Error>(&header, key, |page, into| read_or_zero(file, into, page))
        .map_err(|e| Error::new(ErrorKind::Corrupt, format!("{}: {e}", what())).with_source(e))
}

/// Fills a buffer from a page on; what lies behind the end of a file that was cut off is zero.
fn read_or_zero(file: &PoolFile, into: &mut [u8], page: PageIndex) -> io::Result<()> {
    let length = file.length()?;
    let offset = page.byte_offset();
    let there = length.saturating_sub(offset).min(into.len() as u64) as usize;
    into[there..].fill(0);
    file.read_at(&mut into[..there], offset)
}

impl Volume {
    /// Where a segment's file is.
    pub(crate) fn segment_path(&self, name: SegmentName) -> PathBuf {
        self.dir.join("segments").join(name.to_string())
    }

    /// Where the metadata of a segment without file is.
    pub(crate) fn index_path(&self, name: SegmentName) -> PathBuf {
        self.dir.join("index").join(name.to_string())
    }

    /// A sealed segment's metadata from this host's files; blocks.
    ///
    /// # Errors
    /// `Corrupt`, `Unavailable`. `None` when it is not here.
    pub(crate) fn local_meta(&self, segment: &Segment) -> Result<Option<Arc<SegmentMeta>>> {
        if let Some(meta) = self.metas.lock().get(segment.name) {
            return Ok(Some(meta));
        }
        let Some(sealed) = segment.sealed() else { return Ok(None) };
        let key = &self.context.key;
        let file = segment.file().clone();
        let meta = match file.map(|file| read_segment(&file, key)).transpose() {
            Ok(Some(Recovered::Sealed(found))) if found.meta.hash() == sealed.hash => found.meta,
            Ok(_) | Err(_) => {
                let path = self.index_path(segment.name);
                let Some(bytes) = self.context.disk.read_file(&path)? else { return Ok(None) };
                match SegmentMeta::decode(&bytes, key) {
                    Ok(meta) => meta,
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "index section set aside");
                        self.set_damaged_aside(&path)?;
                        return Ok(None);
                    }
                }
            }
        };
        if meta.hash() != sealed.hash {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "segment {}/{} has hash {}, its checkpoint names {}; restore its file or let \
                     it be fetched again",
                    self.id,
                    segment.name,
                    meta.hash(),
                    sealed.hash
                ),
            ));
        }
        let meta = Arc::new(meta);
        self.metas.lock().put(segment.name, Arc::clone(&meta));
        Ok(Some(meta))
    }

    /// A sealed segment's metadata, from here or fetched; then it is kept here.
    ///
    /// # Errors
    /// As [`Volume::local_meta`] and the fetch hook.
    pub(crate) async fn meta_of(&self, segment: &Arc<Segment>) -> Result<Arc<SegmentMeta>> {
        let (this, wanted) = (self.this()?, Arc::clone(segment));
        if let Some(meta) = self.metas.lock().get(segment.name) {
            return Ok(meta);
        }
        if let Some(meta) = blocking(move || this.local_meta(&wanted)).await? {
            return Ok(meta);
        }
        let Some(sealed) = segment.sealed() else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("segment {}/{} is not sealed yet", self.id, segment.name),
            ));
        };
        let bytes = self.context.fetch()?.meta(self.id, segment.name).await?;
        let meta = SegmentMeta::decode(&bytes, &self.context.key);
        let meta = meta.ok().filter(|meta| meta.hash() == sealed.hash).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!("fetched metadata of segment {}/{} is damaged", self.id, segment.name),
            )
        })?;
        let (this, path) = (self.this()?, self.index_path(segment.name));
        match blocking(move || this.context.replace_file(&path, &bytes)).await {
            Err(full) if full.kind() == ErrorKind::NoSpace => {
                tracing::debug!(segment = %segment.name, %full, "metadata is kept in memory only");
            }
            kept => kept?,
        }
        let meta = Arc::new(meta);
        self.metas.lock().put(segment.name, Arc::clone(&meta));
        Ok(meta)
    }
}

/// Runs what waits for the disk on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => {
            Err(Error::new(ErrorKind::Closed, "the daemon is shutting down").with_source(error))
        }
    }
}
