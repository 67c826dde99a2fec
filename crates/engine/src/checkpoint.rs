//! Checkpoints: the map and the live segments as immutable objects, locally and in the site's
//! store.
//!
//! A checkpoint is taken at the border between two segments: the open one is sealed on purpose. The
//! snapshot of the map is one pointer per dirty page; encoding, writing and storing go on behind
//! it. The root is replaced atomically after all that it names is durable, and published
//! (`publish`) after all that it names is in the site's store. Segments without live blocks are
//! recycled when a durable checkpoint no longer names them.

use crate::context::HostContext;
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::publish::StoreSide;
use crate::volume::Volume;
use crate::volume::journal::Mode;
use crate::volume::log::SessionTable;
use crate::volume::segment::{Segment, blocking};
use bytes::Bytes;
use pannier_core::format::checkpoint::{
    DecodeError, LiveSegment, Root, RootHead, check_hash, encode_page,
};
use pannier_core::ids::{
    Epoch, HashKey, Incarnation, ObjectHash, SegmentId, SegmentName, Sequence, VolumeId,
};
use pannier_core::map::{MapPageIndex, Snapshot};
use pannier_core::volume::Position;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A checkpoint with its name.
pub(crate) struct Saved {
    pub(crate) root: Root,
    pub(crate) hash: ObjectHash,
    pub(crate) bytes: Vec<u8>,
    parts: BTreeMap<ObjectHash, Vec<u8>>,
}

/// What a volume knows of its checkpoints.
pub(crate) struct Checkpointer {
    pub(crate) saved: Saved,
    /// What of checkpoints is in the site's store.
    pub(crate) store: StoreSide,
    /// Local objects that the newest checkpoint does not name; gone at the next one, so that a
    /// follower that copies the one before can finish.
    garbage: BTreeSet<ObjectHash>,
}

impl Checkpointer {
    pub(crate) fn new(saved: Saved) -> Self {
        let store = StoreSide::new(&saved);
        Self { saved, store, garbage: BTreeSet::new() }
    }
}

impl Saved {
    fn new(root: Root, key: &HashKey) -> Self {
        let encoded = root.encode(key);
        let parts = encoded.parts.into_iter().collect();
        Self { root, hash: encoded.hash, bytes: encoded.bytes, parts }
    }

    /// The checkpoint of a volume that was never written.
    pub(crate) fn empty(volume: VolumeId, size_bytes: u64, key: &HashKey) -> Self {
        let root = Root {
            volume,
            size_bytes,
            epoch: Epoch(0),
            incarnation: Incarnation(0),
            through: Position::START,
            pages: vec![None; page_count(size_bytes)],
            segments: Vec::new(),
            sessions: SessionTable::new(),
            condemned: Vec::new(),
            condemned_objects: Vec::new(),
        };
        Self::new(root, key)
    }

    /// Reads a root with the parts that `part` returns.
    pub(crate) fn decode(
        bytes: &[u8],
        key: &HashKey,
        mut part: impl FnMut(ObjectHash) -> Result<Vec<u8>>,
    ) -> Result<Self> {
        let head = RootHead::decode(bytes).map_err(damaged)?;
        let mut parts = BTreeMap::new();
        let root = head.assemble::<PartError>(key, |hash| {
            let bytes = part(hash).map_err(PartError::Read)?;
            parts.insert(hash, bytes.clone());
            Ok(bytes)
        });
        let root = root.map_err(|error| match error {
            PartError::Read(error) => error,
            PartError::Decode(error) => damaged(error),
        })?;
        Ok(Self { root, hash: key.object(bytes), bytes: bytes.to_vec(), parts })
    }

    /// The parts that a root object names.
    pub(crate) fn parts_of(bytes: &[u8]) -> Result<Vec<ObjectHash>> {
        let head = RootHead::decode(bytes).map_err(damaged)?;
        Ok(head.parts())
    }

    /// Reads a volume's newest local checkpoint.
    pub(crate) fn read_local(context: &HostContext, dir: &Path, id: VolumeId) -> Result<Self> {
        let path = dir.join("checkpoint");
        let bytes = context.disk.read_file(&path)?.ok_or_else(|| {
            let text = format!("volume {id} is not on this host: there is no {}", path.display());
            Error::new(ErrorKind::NotFound, text)
        })?;
        let (hash, root) = bytes.split_at(bytes.len().min(32));
        if hash != context.key.object(root).0 {
            let text = format!("{} is damaged; restore it from another copy", path.display());
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        let saved = Self::decode(root, &context.key, |hash| read_object(context, dir, hash))?;
        if saved.root.volume != id {
            let text = format!("{} is of volume {}", path.display(), saved.root.volume);
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        Ok(saved)
    }

    /// Writes map pages, parts, and then the root, each durable before what names it.
    pub(crate) fn write_local(
        &self,
        context: &HostContext,
        dir: &Path,
        pages: Vec<(ObjectHash, Vec<u8>)>,
    ) -> Result<()> {
        let mut written = false;
        let parts = self.parts.iter().map(|(hash, bytes)| (*hash, bytes));
        for (hash, bytes) in pages.iter().map(|(hash, bytes)| (*hash, bytes)).chain(parts) {
            let path = object_path(dir, hash);
            if !path.exists() {
                context.with_reserve(|| context.disk.write_named(&path, bytes))?;
                written = true;
            }
        }
        if written {
            context.disk.sync_dir(&dir.join("pages"))?;
        }
        let file = [&self.hash.0[..], &self.bytes].concat();
        context.replace_file(&dir.join("checkpoint"), &file)
    }

    /// Every object that the root names.
    pub(crate) fn objects(&self) -> BTreeSet<ObjectHash> {
        self.root.page_objects().chain(self.parts.keys().copied()).collect()
    }
}

fn damaged(error: DecodeError) -> Error {
    Error::new(ErrorKind::Corrupt, format!("checkpoint: {error}")).with_source(error)
}

enum PartError {
    Read(Error),
    Decode(DecodeError),
}

impl From<DecodeError> for PartError {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

fn page_count(size_bytes: u64) -> usize {
    let blocks = size_bytes.div_ceil(pannier_core::units::BLOCK_BYTES);
    blocks.div_ceil(u64::from(pannier_core::map::PAGE_BLOCKS)) as usize
}

fn object_path(dir: &Path, hash: ObjectHash) -> PathBuf {
    dir.join("pages").join(hash.to_string())
}

/// Reads a checkpoint object that is here and checks it.
pub(crate) fn read_object(context: &HostContext, dir: &Path, hash: ObjectHash) -> Result<Vec<u8>> {
    let path = object_path(dir, hash);
    let bytes = context.disk.read_file(&path)?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("checkpoint object {} is gone", path.display()))
    })?;
    check_hash(&context.key, hash, &bytes).map_err(|e| {
        let text = format!("{}: {e}", path.display());
        Error::new(ErrorKind::Corrupt, text).with_source(e)
    })?;
    Ok(bytes)
}

/// What a checkpoint is made from, taken in one instant.
struct Taken {
    snapshot: Snapshot,
    segments: Vec<(Arc<Segment>, u32)>,
    dead: Vec<SegmentName>,
    size_bytes: u64,
    position: Position,
    sessions: SessionTable,
    epoch: Epoch,
    incarnation: Incarnation,
    kept: Option<Sequence>,
    /// [`Journal::rescues`](crate::volume::journal::Journal) then.
    rescues: u64,
}

impl Taken {
    fn pages(&self) -> Vec<MapPageIndex> {
        self.snapshot.pages.iter().map(|(index, _)| *index).collect()
    }
}

impl Volume {
    /// The newest local checkpoint's root object. What it names is [`Volume::checkpoint_page`].
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn checkpoint_root(&self) -> Result<Bytes> {
        Ok(self.checkpointer.lock().await.saved.bytes.clone().into())
    }

    /// A part or map page of the newest local checkpoint, or of the one before.
    ///
    /// # Errors
    /// `NotFound` when newer checkpoints have replaced it: begin again.
    pub async fn checkpoint_page(&self, hash: ObjectHash) -> Result<Bytes> {
        let this = self.this()?;
        let bytes = blocking(move || read_object(&this.context, &this.dir, hash)).await?;
        Ok(bytes.into())
    }

    /// Writes a checkpoint: pages and root locally, durable; then, once every segment it names is
    /// stored, to the site's store, and publishes it. Returns the root's hash, and whether it is
    /// published.
    ///
    /// # Errors
    /// `NoSpace`, `Unavailable`; the former checkpoint stays.
    pub async fn checkpoint(&self) -> Result<(ObjectHash, bool)> {
        let hash = self.checkpoint_local().await?;
        let published = self.publish_checkpoint().await?;
        Ok((hash, published == Some(hash)))
    }

    /// Whether the log behind the newest checkpoint is long enough for another one.
    pub(crate) fn checkpoint_is_due(&self, idle: bool) -> bool {
        let base = self.map.read().base;
        let behind = Sequence(base.sequence().0 + 1)..;
        let segments = self.journal.lock().log.range(behind).count();
        let dirty = self.map.read().map.dirty_count() as u64;
        let log_bytes = segments as u64 * u64::from(self.context.config.segment_pages) * 4096;
        segments > 0
            && (idle
                || segments >= limits::LOG_SEGMENTS_MAX
                || segments >= limits::LOG_SEGMENTS_MIN
                    && log_bytes > limits::LOG_PER_DIRTY * dirty * limits::MAP_PAGE_BYTES)
    }

    /// Writes a checkpoint locally.
    ///
    /// # Cancel safety
    /// What has begun ends, in a task of its own: files are written by threads that nobody can
    /// stop, and an older checkpoint must not take the place of one that was made after it.
    pub(crate) async fn checkpoint_local(&self) -> Result<ObjectHash> {
        let this = self.this()?;
        let done = self.context.runtime.spawn(async move { this.checkpoint_whole().await });
        done.await.map_err(|ended| {
            Error::new(ErrorKind::Closed, "the host is shutting down").with_source(ended)
        })?
    }

    async fn checkpoint_whole(&self) -> Result<ObjectHash> {
        let mut checkpointer = self.checkpointer.lock().await;
        let taken = self.take_durable().await?;
        let pages = taken.pages();
        let kept = taken.kept;
        let (dead, position) = (taken.dead.clone(), taken.position);
        let written = self.write_taken(&mut checkpointer, taken).await;
        match written {
            Ok(hash) => {
                let former = std::mem::replace(&mut self.map.write().base, position);
                self.recycle_dead(dead, kept);
                self.journal.lock().trim(former, position, kept);
                Ok(hash)
            }
            Err(error) => {
                self.take_back(pages);
                Err(error)
            }
        }
    }

    /// Takes what a checkpoint is made from, and makes it durable and sealed. When an fdatasync
    /// fails on the way, entries go to other segments than those that were taken: a map that names
    /// the former ones would name bytes that no disk has, so everything is taken anew.
    async fn take_durable(&self) -> Result<Taken> {
        loop {
            let taken = self.take();
            let sealed = async {
                self.flush_log().await?;
                self.wait_sealed_through(taken.position.sequence()).await
            };
            let sealed = sealed.await;
            let holds = self.journal.lock().rescues == taken.rescues;
            if sealed.is_ok() && holds {
                return Ok(taken);
            }
            self.take_back(taken.pages());
            sealed?;
        }
    }

    /// The next checkpoint writes pages that were taken for one that did not come about.
    fn take_back(&self, pages: Vec<MapPageIndex>) {
        let mut state = self.map.write();
        pages.into_iter().for_each(|page| state.map.mark_dirty(page));
    }

    /// Closes the open segment and takes what the log has made of the map.
    fn take(&self) -> Taken {
        let mut journal = self.journal.lock();
        if journal.next.is_some() && matches!(journal.mode, Mode::Appending) {
            if journal.open.as_ref().is_some_and(|open| open.writer.entries() > 0) {
                self.roll(&mut journal);
            }
        } else {
            self.close_open(&mut journal);
        }
        let mut state = self.map.write();
        let snapshot = state.map.snapshot_dirty();
        let segments = state.live().map(|(segment, pages)| (Arc::clone(segment), pages)).collect();
        let last = journal.end.sequence();
        let dead = state.map.segments().dead().map(|(_, name)| name);
        let dead = dead.filter(|name| name.sequence <= last).collect();
        Taken {
            snapshot,
            segments,
            dead,
            size_bytes: self.size_bytes(),
            position: journal.end,
            sessions: journal.sessions.clone(),
            epoch: journal.epoch,
            incarnation: journal.incarnation,
            kept: journal.kept_for_follower(),
            rescues: journal.rescues,
        }
    }

    async fn write_taken(
        &self,
        checkpointer: &mut Checkpointer,
        taken: Taken,
    ) -> Result<ObjectHash> {
        let this = self.this()?;
        let old = &checkpointer.saved;
        let mut pages = old.root.pages.clone();
        let old_objects = old.objects();
        let stored_dead = self.stored_dead(taken.position.sequence());
        let stored_objects = checkpointer.store.objects.clone();
        let garbage = std::mem::take(&mut checkpointer.garbage);
        let saved = blocking(move || {
            pages.resize(page_count(taken.size_bytes), None);
            let mut objects = Vec::new();
            for (index, page) in &taken.snapshot.pages {
                pages[index.0 as usize] = page.as_ref().map(|page| {
                    let bytes = encode_page(page, &taken.snapshot.segments);
                    let hash = this.context.key.object(&bytes);
                    objects.push((hash, bytes));
                    hash
                });
            }
            let segments = taken.segments.iter().map(|(segment, live_pages)| {
                let sealed = segment.sealed();
                LiveSegment {
                    name: segment.name,
                    hash: sealed.map(|sealed| sealed.hash),
                    entries: sealed.map_or(0, |sealed| sealed.entries),
                    live_pages: *live_pages,
                    generation: segment.generation(),
                }
            });
            let mut root = Root {
                volume: this.id,
                size_bytes: taken.size_bytes,
                epoch: taken.epoch,
                incarnation: taken.incarnation,
                through: taken.position,
                pages,
                segments: segments.collect(),
                sessions: taken.sessions,
                condemned: stored_dead,
                condemned_objects: Vec::new(),
            };
            let mut saved = Saved::new(root.clone(), &this.context.key);
            let named = saved.objects();
            root.condemned_objects = stored_objects.difference(&named).copied().collect();
            if !root.condemned_objects.is_empty() {
                saved = Saved::new(root, &this.context.key);
            }
            saved.write_local(&this.context, &this.dir, objects)?;
            for hash in garbage.difference(&named) {
                this.context.disk.remove(&object_path(&this.dir, *hash))?;
            }
            Ok(saved)
        })
        .await?;
        let named = saved.objects();
        checkpointer.garbage = old_objects.difference(&named).copied().collect();
        let hash = saved.hash;
        checkpointer.saved = saved;
        Ok(hash)
    }

    /// Recycles segments that no block names and the durable checkpoint does not either.
    fn recycle_dead(&self, dead: Vec<SegmentName>, kept: Option<Sequence>) {
        for name in dead {
            if kept.is_some_and(|kept| name.sequence > kept) {
                continue;
            }
            let segment = {
                let mut state = self.map.write();
                let index = state.map.segments().index(name);
                let state_of = index.and_then(|index| state.map.segments().get(index));
                let (Some(index), Some(0)) = (index, state_of.map(|known| known.live_pages)) else {
                    continue;
                };
                let segment = state.segment(index).cloned();
                state.forget(index);
                segment
            };
            if let Some(segment) = segment {
                self.drop_local(&segment);
            }
        }
    }

    /// Gives up everything that is here of a dead segment.
    fn drop_local(&self, segment: &Segment) {
        let id = SegmentId { volume: self.id, name: segment.name };
        self.context.residency.forget(id);
        if let Some(file) = segment.set_file(None) {
            self.give_back(&file);
        }
        self.context.cache.remove_segment(id);
        self.metas.lock().forget(segment.name);
        if let Err(error) = self.context.disk.remove(&self.index_path(segment.name)) {
            tracing::warn!(volume = %self.id, %error, "a dead segment's metadata stays");
        }
    }
}
