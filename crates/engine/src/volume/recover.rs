//! Making a volume, and opening what is here of one: newest local checkpoint, then the log behind
//! it.
//!
//! The log is followed by name: from the checkpoint's position on, each segment names its
//! predecessor and says, by link, how many of its entries precede. Where an unsealed segment has
//! more entries than its successor's link says, the link holds (the rest was copied there by a
//! rescue). Whatever is here and not part of that chain is set aside by name, or recycled when it
//! has no entry.

use super::Volume;
use super::counters::Counters;
use super::journal::{Closed, Journal, SealSource};
use super::log::Position;
use super::mark;
use super::segment::{Metas, Sealed, Segment, blocking, read_segment};
use super::state::MapState;
use super::write::check_size;
use crate::checkpoint::{Checkpointer, Saved};
use crate::context::HostContext;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::PoolFile;
use crate::stored::{self, StoredList};
use bytes::Bytes;
use pannier_core::format::checkpoint::{DecodeError, Root, decode_page};
use pannier_core::format::segment::{
    Entry, Header, Link, OpenSegment, PAGE_BYTES, Recovered, SEAL_PAGE, SealedSegment, SegmentMeta,
};
use pannier_core::ids::{HashKey, SegmentId, SegmentName, VolumeId};
use pannier_core::map::{LoadTarget, Map, MapPageIndex};
use pannier_core::units::{BLOCK_BYTES, PageIndex};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Notify;

/// Life: create, recover, follow, delete.
impl Volume {
    /// Makes a new volume: all hole, with an empty log and a first local checkpoint. It does not
    /// append yet.
    ///
    /// # Errors
    /// `NoSpace`, `Invalid` for a size that is no multiple of 512 or an id that is used here.
    pub async fn create(
        context: &Arc<HostContext>,
        id: VolumeId,
        size_bytes: u64,
    ) -> Result<Arc<Self>> {
        check_size(size_bytes)?;
        let context = Arc::clone(context);
        let volume = blocking(move || {
            let dir = context.volume_dir(id);
            if dir.join("checkpoint").exists() {
                let text = format!("volume {id} is on this host already");
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            let saved = Saved::empty(id, size_bytes, &context.key);
            make_dirs(&context, &dir)?;
            saved.write_local(&context, &dir, Vec::new())?;
            open(&context, id)
        });
        Ok(started(volume.await?))
    }

    /// Opens a volume whose files are here: newest local checkpoint, index sections of sealed
    /// segments behind it, recovery of the open one (which is sealed; what lies behind a break is
    /// set aside). It does not append yet. Also opens a follower's volume.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt` with the file's name, `Unavailable`.
    pub async fn recover(context: &Arc<HostContext>, id: VolumeId) -> Result<Arc<Self>> {
        let context = Arc::clone(context);
        Ok(started(blocking(move || open(&context, id)).await?))
    }

    /// Makes a follower from a checkpoint of another host: the root object, and the parts and map
    /// pages that it names, in any order. Durable when it returns. An older local side is replaced,
    /// after its `close`; its files that the new map names are used.
    ///
    /// # Errors
    /// `Corrupt` when an object is missing or not what its hash says, `NoSpace`.
    pub async fn follower(
        context: &Arc<HostContext>,
        id: VolumeId,
        root: Bytes,
        objects: Vec<Bytes>,
    ) -> Result<Arc<Self>> {
        let context = Arc::clone(context);
        let volume = blocking(move || {
            let dir = context.volume_dir(id);
            make_dirs(&context, &dir)?;
            let named = objects.iter().map(|object| (context.key.object(object), object.as_ref()));
            let named: BTreeMap<_, _> = named.collect();
            let root = Saved::decode(&root, &context.key, |hash| {
                named.get(&hash).map(|bytes| bytes.to_vec()).ok_or_else(|| {
                    let text = format!("checkpoint object {hash} of volume {id} is missing");
                    Error::new(ErrorKind::Corrupt, text)
                })
            })?;
            if root.root.volume != id {
                let text = format!("a checkpoint of volume {} for volume {id}", root.root.volume);
                return Err(Error::new(ErrorKind::Corrupt, text));
            }
            let objects = named.into_iter().map(|(hash, bytes)| (hash, bytes.to_vec()));
            mark::remove(&dir)?;
            root.write_local(&context, &dir, objects.collect())?;
            let volume = open(&context, id)?;
            volume.followed.store(true, Ordering::Release);
            Ok(volume)
        });
        Ok(started(volume.await?))
    }

    /// Removes every local file of a volume; with `in_store` also its objects in the site's store.
    ///
    /// # Errors
    /// `Unavailable`; it can be called again.
    pub async fn delete(context: &Arc<HostContext>, id: VolumeId, in_store: bool) -> Result<()> {
        if in_store {
            for key in context.objects.list(&format!("volumes/{id}/")).await? {
                context.objects.delete(&key).await?;
            }
        }
        let context = Arc::clone(context);
        blocking(move || {
            let dir = context.volume_dir(id);
            for path in context.disk.list(&dir.join("segments"))? {
                context.pool.recycle(&context.pool.open_file(&path)?)?;
            }
            context.residency.forget_volume(id);
            context.cache.remove_volume(id);
            match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::io(format!("remove {}", dir.display()), error))
                }
                _ => Ok(()),
            }
        })
        .await
    }

    /// Sets everything aside that the log has beyond a position, by renaming: the stale tail of a
    /// host whose epoch a takeover has ended. Called while the volume is not open here; a volume
    /// whose checkpoint lies beyond the position is set aside whole and has to follow from a
    /// checkpoint.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub async fn set_aside_beyond(
        context: &Arc<HostContext>,
        id: VolumeId,
        position: Position,
    ) -> Result<()> {
        let volume = Self::recover(context, id).await?;
        if volume.position() == position {
            return Ok(());
        }
        let base = volume.map.read().base;
        blocking(move || {
            mark::remove(&volume.dir)?;
            if base.sequence() > position.sequence() {
                volume.set_tail_aside(position, &volume.dir.join("checkpoint"))?;
            }
            for kind in ["segments", "index"] {
                for path in volume.context.disk.list(&volume.dir.join(kind))? {
                    if name_of(&path).is_some_and(|name| name.sequence > position.sequence()) {
                        volume.set_tail_aside(position, &path)?;
                    }
                }
                volume.context.disk.sync_dir(&volume.dir.join(kind))?;
            }
            volume.context.disk.sync_dir(&volume.dir)
        })
        .await
    }
}

fn make_dirs(context: &HostContext, dir: &Path) -> Result<()> {
    for kind in ["segments", "index", "pages"] {
        context.disk.create_dir(&dir.join(kind))?;
    }
    context.disk.sync_dir(dir)?;
    dir.parent().map_or(Ok(()), |volumes| context.disk.sync_dir(volumes))
}

/// Begins a volume's background work.
fn started(volume: Arc<Volume>) -> Arc<Volume> {
    volume.context.residency.add_volume(&volume);
    {
        let mut journal = volume.journal.lock();
        if !journal.closed.is_empty() {
            volume.start_sync(&mut journal);
        }
    }
    crate::upload::start(&volume);
    volume
}

/// Why a file is not the segment whose name it has, in words; `None` when it is. It has the name
/// only since its header is durable, and its whole length since it was made.
fn damage_of(file: &PoolFile, id: SegmentId) -> Option<String> {
    let path = file.path();
    let path = path.display();
    let mut page = vec![0; PAGE_BYTES];
    match file.read_at(&mut page, 0) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => page.fill(0),
        Err(error) => return Some(format!("segment file {path} cannot be read: {error}")),
        Ok(()) => {}
    }
    let header = match Header::decode(&page) {
        Err(error) => return Some(format!("segment file {path} is damaged: {error}")),
        Ok(header) if header.id() != id => {
            return Some(format!("segment file {path} has segment {} in it", header.id()));
        }
        Ok(header) => header,
    };
    let (length, whole) = (file.length().unwrap_or(0), u64::from(header.capacity_pages) * 4096);
    (length < whole).then(|| format!("segment file {path} has {length} of {whole} bytes"))
}

/// Whether a file has entries of the segment that its header names.
fn has_entries(file: &PoolFile, key: &HashKey) -> bool {
    match read_segment(file, key) {
        Ok(Recovered::Sealed(_)) => true,
        Ok(Recovered::Open(open)) => !open.entries().is_empty() || open.behind().is_some(),
        Err(_) => false,
    }
}

fn name_of(path: &Path) -> Option<SegmentName> {
    path.file_name()?.to_str()?.parse().ok()
}

/// What is here of a segment behind the checkpoint.
struct Candidate {
    name: SegmentName,
    path: PathBuf,
    found: Found,
}

enum Found {
    Sealed(Box<SegmentMeta>, Option<Arc<PoolFile>>),
    Open(Box<OpenSegment>, Arc<PoolFile>),
}

impl Found {
    fn predecessor(&self) -> Option<SegmentName> {
        match self {
            Self::Sealed(meta, _) => meta.header().predecessor,
            Self::Open(open, _) => open.header().predecessor,
        }
    }

    fn link(&self) -> Option<Link> {
        match self {
            Self::Sealed(meta, _) => Some(meta.link()),
            Self::Open(open, _) => open.link(),
        }
    }

    fn entries(&self) -> &[Entry] {
        match self {
            Self::Sealed(meta, _) => meta.entries(),
            Self::Open(open, _) => open.entries(),
        }
    }

    /// Whether a segment with this link follows.
    fn precedes(&self, link: Link) -> bool {
        match self {
            Self::Sealed(meta, _) => meta.next_link() == link,
            Self::Open(open, _) => open.precedes(link),
        }
    }
}

/// Opens a volume from its local files; blocks.
fn open(context: &Arc<HostContext>, id: VolumeId) -> Result<Arc<Volume>> {
    let dir = context.volume_dir(id);
    let saved = Saved::read_local(context, &dir, id)?;
    let root = &saved.root;
    let map = load_map(context, &dir, root)?;
    let stored = stored::read(&context.disk, &dir)?;
    let base = root.through;
    let mut state = MapState::new(map, base);
    let segment_dir = dir.join("segments");
    let mut files: BTreeMap<SegmentName, PathBuf> = BTreeMap::new();
    for path in context.disk.list(&segment_dir)? {
        match name_of(&path) {
            Some(name) => _ = files.insert(name, path),
            None => context.disk.remove(&path)?,
        }
    }
    for live in &root.segments {
        let path = files.remove(&live.name);
        let file = path.map(|path| context.pool.open_file(&path)).transpose()?.map(Arc::new);
        let this = SegmentId { volume: id, name: live.name };
        let damage = file.as_ref().and_then(|file| damage_of(file, this));
        let segment = Segment::new(live.name, file);
        if let Some(damage) = damage {
            tracing::error!(volume = %id, "{damage}: read from other copies where there are any");
            segment.suspect(PageIndex(0), context.config.segment_pages);
        }
        if let Some(hash) = live.hash {
            segment.set_sealed(Sealed { hash, entries: live.entries });
        }
        segment.set_listed(&stored);
        state.add(&segment);
    }
    let size = AtomicU64::new(root.size_bytes);
    let journal = Journal::new(base, base.sequence(), root.sessions.clone());
    let volume = Arc::new_cyclic(|this| Volume {
        id,
        context: Arc::clone(context),
        dir: dir.clone(),
        this: this.clone(),
        size,
        touched: AtomicBool::new(false),
        followed: AtomicBool::new(false),
        appending: AtomicBool::new(false),
        journal: Mutex::new(journal),
        map: RwLock::new(state),
        metas: Mutex::new(Metas::default()),
        room: Notify::new(),
        synced: Notify::new(),
        synced_tick: AtomicU64::new(0),
        news: Notify::new(),
        work_due: Arc::new(Notify::new()),
        stored_list: Mutex::new(stored.clone()),
        session_news: Notify::new(),
        closing: AtomicBool::new(false),
        following: Arc::default(),
        checkpointer: tokio::sync::Mutex::new(Checkpointer::new(saved)),
        counters: Counters::new(),
    });
    let noted = mark::Noted::read(&dir)?;
    let (candidates, dead) = volume.candidates(files, base, noted.is_some())?;
    let rest = volume.replay_chain(candidates, base, &stored, noted.is_some())?;
    if let Some(noted) = noted {
        noted.check(&volume)?;
    }
    volume.put_away(rest)?;
    // Last: what was found damaged or missing may have changed places with one of these.
    dead.iter().for_each(|file| volume.give_back(file));
    Ok(volume)
}

/// The checkpoint's map. One that names a segment which the checkpoint does not list is refused:
/// its blocks would have no bytes.
pub(super) fn load_map(context: &HostContext, dir: &Path, root: &Root) -> Result<Map> {
    let corrupt = |what: &str, error: &dyn std::error::Error| {
        let text = format!("{} of volume {}: {error}; restore it", what, root.volume);
        Error::new(ErrorKind::Corrupt, text)
    };
    let blocks = root.size_bytes.div_ceil(BLOCK_BYTES);
    let mut map = Map::new(blocks).map_err(|e| corrupt("the checkpoint", &e))?;
    let listed: BTreeSet<_> = root.segments.iter().map(|segment| segment.name).collect();
    for (number, hash) in root.pages.iter().enumerate() {
        let Some(hash) = hash else { continue };
        let bytes = crate::checkpoint::read_object(context, dir, *hash)?;
        let page = decode_page(&bytes).map_err(|e| corrupt("a map page", &e))?;
        let index = MapPageIndex(number as u32);
        let unlisted = page.runs.iter().any(
            |(_, target)| matches!(target, LoadTarget::Data(name, _) if !listed.contains(name)),
        );
        if unlisted {
            let error = DecodeError::Wrong("it names a segment that is not listed");
            return Err(corrupt("a map page", &error));
        }
        map.load_page(index, &page.runs).map_err(|e| corrupt("a map page", &e))?;
    }
    Ok(map)
}

impl Volume {
    /// Reads what is here behind the checkpoint, and names the files that it has left dead.
    ///
    /// A power loss may bring back the name of a file that was recycled and has another segment's
    /// header by now, or half of one: no entry of that other segment is in it, since its own name
    /// is durable before. In the same boot there is nothing of the kind.
    fn candidates(
        &self,
        files: BTreeMap<SegmentName, PathBuf>,
        base: Position,
        is_same_boot: bool,
    ) -> Result<(Vec<Candidate>, Vec<Arc<PoolFile>>)> {
        let (mut candidates, mut dead) = (Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        for (name, path) in files {
            let file = Arc::new(self.context.pool.open_file(&path)?);
            if name.sequence <= base.sequence() {
                dead.push(file);
                continue;
            }
            let damage = damage_of(&file, SegmentId { volume: self.id, name });
            if let Some(damage) = damage {
                if is_same_boot || has_entries(&file, &self.context.key) {
                    let text = format!(
                        "{damage}; what it had may be nowhere else: put the file back, or take the \
                         volume over from another copy"
                    );
                    return Err(Error::new(ErrorKind::Corrupt, text));
                }
                tracing::warn!(volume = %self.id, "{damage}; it is set aside");
                self.set_damaged_aside(&path)?;
                continue;
            }
            match read_segment(&file, &self.context.key) {
                Ok(Recovered::Sealed(SealedSegment { meta, repair })) => {
                    if let Some(repair) = repair {
                        let record = repair.record();
                        file.write_at(repair.bytes(), repair.page().byte_offset())
                            .and_then(|()| file.sync())
                            .and_then(|()| file.write_at(&record[..], SEAL_PAGE.byte_offset()))
                            .and_then(|()| file.sync())
                            .map_err(|e| Error::io(format!("repair {}", path.display()), e))?;
                    }
                    seen.insert(name);
                    let found = Found::Sealed(Box::new(meta), Some(file));
                    candidates.push(Candidate { name, path, found });
                }
                Ok(Recovered::Open(open)) => {
                    let found = Found::Open(Box::new(open), file);
                    candidates.push(Candidate { name, path, found });
                }
                Err(error) => return Err(error),
            }
        }
        self.add_without_file(&mut candidates, &seen, base)?;
        candidates.sort_by_key(|candidate| candidate.name);
        Ok((candidates, dead))
    }

    /// Adds segments behind the checkpoint that have no file here, by their metadata.
    fn add_without_file(
        &self,
        candidates: &mut Vec<Candidate>,
        seen: &BTreeSet<SegmentName>,
        base: Position,
    ) -> Result<()> {
        for path in self.context.disk.list(&self.dir.join("index"))? {
            let Some(name) = name_of(&path) else {
                self.context.disk.remove(&path)?;
                continue;
            };
            if name.sequence <= base.sequence() {
                if self.map.read().named(name).is_none() {
                    self.context.disk.remove(&path)?;
                }
                continue;
            }
            if seen.contains(&name) {
                continue;
            }
            let bytes = self.context.disk.read_file(&path)?.unwrap_or_default();
            match SegmentMeta::decode(&bytes, &self.context.key) {
                Ok(meta) if meta.id().volume == self.id && meta.name() == name => {
                    let found = Found::Sealed(Box::new(meta), None);
                    candidates.push(Candidate { name, path, found });
                }
                Ok(_) | Err(_) => self.set_damaged_aside(&path)?,
            }
        }
        Ok(())
    }

    /// Follows the chain from the checkpoint on; returns what is no part of it.
    fn replay_chain(
        &self,
        mut candidates: Vec<Candidate>,
        base: Position,
        stored: &StoredList,
        is_same_boot: bool,
    ) -> Result<Vec<Candidate>> {
        let mut last: Option<Candidate> = None;
        loop {
            let follows = |candidate: &Candidate| {
                let found = &candidate.found;
                let Some(link) = found.link() else { return false };
                let fits = match &last {
                    Some(last) => {
                        found.predecessor() == Some(last.name) && last.found.precedes(link)
                    }
                    None => {
                        let ended = Link { entries: base.entries, chain_crc: base.chain_crc };
                        found.predecessor() == base.segment && link == ended
                    }
                };
                fits && !found.entries().is_empty()
            };
            // The newest wins: a rescue has copied into it what an older one has behind its link.
            let next = candidates.iter().rposition(follows).map(|at| candidates.remove(at));
            let link = next.as_ref().and_then(|next| next.found.link());
            if let Some(last) = last.take() {
                self.replay_one(last, link, stored, is_same_boot)?;
            }
            if next.is_none() {
                return Ok(candidates);
            }
            last = next;
        }
    }

    fn replay_one(
        &self,
        candidate: Candidate,
        successor: Option<Link>,
        stored: &StoredList,
        is_same_boot: bool,
    ) -> Result<()> {
        let Candidate { name, path, found } = candidate;
        match found {
            Found::Sealed(meta, file) => {
                let segment = Segment::new(name, file);
                let entries = meta.entries().len() as u32;
                segment.set_sealed(Sealed { hash: meta.hash(), entries });
                segment.set_listed(stored);
                self.replay(&segment, meta.entries())?;
                self.metas.lock().put(name, Arc::from(meta));
            }
            Found::Open(mut open, file) => {
                if open.is_damaged() {
                    let text = format!(
                        "segment file {} has lost entries that a flush had made durable: its disk \
                         is damaged; take the volume over from another copy",
                        path.display()
                    );
                    return Err(Error::new(ErrorKind::Corrupt, text));
                }
                if let Some(behind) = open.behind() {
                    let (file, entries) = (path.display(), behind.entries);
                    let what = "what lies behind a break in the log is kept aside";
                    // A daemon that was killed leaves half a write; the mark says what it was told.
                    if is_same_boot {
                        tracing::info!(%file, entries, "{what}");
                    } else {
                        tracing::warn!(%file, entries, "{what}");
                    }
                    self.copy_aside(&path)?;
                }
                if let Some(link) = successor {
                    open.cut(link.entries);
                }
                let segment = Segment::new(name, Some(Arc::clone(&file)));
                // What is known durable was not checked just now.
                segment.suspect(PageIndex(0), open.tail().0);
                segment.set_entries(open.entries());
                self.replay(&segment, open.entries())?;
                let mut journal = self.journal.lock();
                // Acknowledged, and not known durable: the next flush covers them.
                journal.tick += open.entries().len().max(1) as u64;
                let source = Mutex::new(SealSource::Recovered(open));
                journal.closed.push_back(Arc::new(Closed { segment, file, source, failed: false }));
                journal.unsealed += 1;
            }
        }
        Ok(())
    }

    /// What is no part of the log: empty segments go to the pool, others aside. None of them may be
    /// durable: a flush that covers a segment has covered all before it.
    fn put_away(&self, rest: Vec<Candidate>) -> Result<()> {
        let end = self.journal.lock().end;
        let durable = |candidate: &&Candidate| {
            let durable = match &candidate.found {
                Found::Sealed(meta, _) => !meta.entries().is_empty(),
                Found::Open(open, _) => open.durable() > 0,
            };
            durable && candidate.name.sequence > end.sequence()
        };
        if let Some(behind) = rest.iter().find(durable) {
            let text = format!(
                "the log of volume {} breaks behind position {end:?}, but {} has flushed data: a \
                 segment between is missing or damaged; restore it or take the volume over from \
                 another copy",
                self.id,
                behind.path.display()
            );
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        for Candidate { path, found, .. } in rest {
            match found {
                Found::Open(open, file) if open.entries().is_empty() && open.behind().is_none() => {
                    self.give_back(&file);
                }
                Found::Open(..) | Found::Sealed(..) => {
                    tracing::warn!(file = %path.display(), "not part of the log, set aside");
                    self.set_aside(&path)?;
                }
            }
        }
        Ok(())
    }
}
