//! The proof that a site depends on no other: everything that the newest checkpoint names is read
//! back from the site's own store and checked by its hash.
//!
//! The checkpoint is read from the store as well, root, parts and map pages; what its map names is
//! what is checked, not what this host believes to have stored. The proof is for that checkpoint;
//! segments written after it are stored by this site itself, which is the owner's.

use crate::error::{Error, ErrorKind, Result};
use crate::message::MoveProgress;
use crate::mover::{Mover, Room};
use crate::volume::Volume;
use crate::volume::log::object_key;
use bytes::Bytes;
use futures::StreamExt;
use pannier_core::format::checkpoint::{DecodeError, Root, RootHead, decode_page};
use pannier_core::format::segment::SegmentMeta;
use pannier_core::format::segment::limits::CAPACITY_PAGES_MAX;
use pannier_core::format::stored::{self, FOOTER_BYTES_MAX, Footer, decode_frame};
use pannier_core::ids::{
    HashKey, ObjectHash, SegmentHash, SegmentId, SegmentName, Sequence, VolumeId,
};
use pannier_core::map::{LoadTarget, PageSet};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Segments that are read back at once.
const SEGMENTS_AT_ONCE: usize = 2;

/// A proof in the making: what was checked stays checked, since objects never change.
#[derive(Default)]
pub(crate) struct Proof {
    checked: BTreeMap<SegmentName, Checked>,
}

/// A segment's object that was checked, and the pages of it that were asked for.
struct Checked {
    key: String,
    pages: PageSet,
}

/// What a checkpoint names of one segment.
struct Named {
    hash: SegmentHash,
    /// Of its object, under the generation that the checkpoint says.
    key: String,
    pages: PageSet,
}

impl Proof {
    /// Checks everything that the checkpoint with this root names, and records the outcome in the
    /// registry. `false` when the registry does not have this checkpoint or a newer one.
    ///
    /// # Errors
    /// `Corrupt` when something in the store is not what its hash says, `NotFound` when it is not
    /// there: segments of which this is so then count as not stored. `Unavailable` when the store
    /// or the registry is away, `Fenced` when another host owns the volume.
    pub(crate) async fn prove(
        &mut self,
        mover: &Arc<Mover>,
        room: &Room,
        volume: &Arc<Volume>,
        root: ObjectHash,
    ) -> Result<bool> {
        let (through, named) = Checkpoint { mover, volume: volume.id() }.read(root).await?;
        self.note(room, named.len(), 0);
        let mut open = Vec::new();
        let mut verified = 0;
        for (name, named) in named {
            let known = self.checked.get(&name).filter(|known| known.key == named.key);
            if known.is_some_and(|known| covers(&known.pages, &named.pages)) {
                verified += 1;
            } else {
                open.push((name, named));
            }
        }
        let total = verified + open.len();
        self.note(room, total, verified);
        let mut checks = futures::stream::iter(open)
            .map(|(name, named)| check_segment(mover, volume, name, named))
            .buffer_unordered(SEGMENTS_AT_ONCE);
        let mut damaged = None;
        while let Some((name, checked)) = checks.next().await {
            match checked {
                Ok(checked) => _ = self.checked.insert(name, checked),
                Err(error) if is_damage(&error) => {
                    damaged.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error),
            }
            verified += 1;
            self.note(room, total, verified);
        }
        drop(checks);
        if let Some(error) = damaged {
            return Err(error);
        }
        record(mover, volume.id(), through).await
    }

    fn note(&self, room: &Room, total: usize, verified: usize) {
        let mut progress: parking_lot::MutexGuard<'_, MoveProgress> = room.progress.lock();
        progress.segments_total = total as u64;
        progress.segments_stored = total as u64;
        progress.segments_verified = verified as u64;
    }
}

fn covers(known: &PageSet, pages: &PageSet) -> bool {
    pages.iter().all(|page| known.contains(page))
}

/// Whether an object does not have what it should.
fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound)
}

/// A checkpoint in the site's own store.
struct Checkpoint<'a> {
    mover: &'a Arc<Mover>,
    volume: VolumeId,
}

impl Checkpoint<'_> {
    /// Every page that the checkpoint's map names, by segment; all its objects are checked on the
    /// way.
    async fn read(&self, root: ObjectHash) -> Result<(Sequence, BTreeMap<SegmentName, Named>)> {
        let root = self.root(root).await?;
        let mut named = BTreeMap::new();
        for segment in &root.segments {
            let hash = segment.hash.ok_or_else(|| {
                self.bad(&DecodeError::Wrong("a stored checkpoint names an open segment"))
            })?;
            let id = SegmentId { volume: self.volume, name: segment.name };
            let key = stored::key(id, segment.generation, hash);
            named.insert(segment.name, Named { hash, key, pages: PageSet::default() });
        }
        for object in root.page_objects() {
            let bytes = self.object(object).await?;
            let content = decode_page(&bytes).map_err(|error| self.bad(&error))?;
            for (count, target) in content.runs {
                let LoadTarget::Data(name, first) = target else { continue };
                let Some(named) = named.get_mut(&name) else {
                    let cause = DecodeError::Wrong("its map names a segment that is not listed");
                    return Err(self.bad(&cause));
                };
                if first.0.saturating_add(count) > CAPACITY_PAGES_MAX {
                    let cause = DecodeError::Wrong("its map names a page that no segment has");
                    return Err(self.bad(&cause));
                }
                named.pages.insert(first, count);
            }
        }
        Ok((root.through.sequence(), named))
    }

    async fn root(&self, root: ObjectHash) -> Result<Root> {
        let head = RootHead::decode(&self.object(root).await?).map_err(|error| self.bad(&error))?;
        let mut parts = BTreeMap::new();
        for part in head.parts() {
            parts.insert(part, self.object(part).await?);
        }
        let assembled = head.assemble(&self.mover.context.key, |part| match parts.get(&part) {
            Some(bytes) => Ok(bytes.to_vec()),
            None => Err(DecodeError::Wrong("a part is missing")),
        });
        let assembled = assembled.map_err(|error| self.bad(&error))?;
        if assembled.volume != self.volume {
            return Err(self.bad(&DecodeError::Wrong("it is of another volume")));
        }
        Ok(assembled)
    }

    async fn object(&self, object: ObjectHash) -> Result<Bytes> {
        let key = object_key(self.volume, object);
        let bytes = self.mover.context.objects.get(&key).await?;
        if self.mover.context.key.object(&bytes) != object {
            let context = format!("object {key} in this site's store is damaged");
            return Err(Error::new(ErrorKind::Corrupt, context));
        }
        Ok(bytes)
    }

    fn bad(&self, error: &DecodeError) -> Error {
        let context =
            format!("volume {}: its checkpoint in this site's store: {error}", self.volume);
        Error::new(ErrorKind::Corrupt, context)
    }
}

/// Reads one segment's object back and checks every page that is named. A segment whose object does
/// not have them counts as not stored from then on.
async fn check_segment(
    mover: &Arc<Mover>,
    volume: &Arc<Volume>,
    name: SegmentName,
    named: Named,
) -> (SegmentName, Result<Checked>) {
    let key = named.key.clone();
    let mut checked = check_stored(mover, volume.id(), name, named).await;
    if checked.as_ref().is_err_and(is_damage)
        && let Err(error) = volume.note_damaged(name, key).await
    {
        checked = Err(error);
    }
    (name, checked)
}

async fn check_stored(
    mover: &Arc<Mover>,
    volume: VolumeId,
    name: SegmentName,
    Named { hash, key, pages }: Named,
) -> Result<Checked> {
    let bytes = mover.context.objects.get(&key).await?;
    let (hash_key, object) = (mover.context.key, key.clone());
    let check = tokio::task::spawn_blocking(move || {
        check_object(&bytes, hash, &pages, &hash_key).map(|()| pages).map_err(|cause| {
            let context =
                format!("volume {volume}: segment {name} in this site's store ({object}): {cause}");
            Error::new(ErrorKind::Corrupt, context)
        })
    });
    let pages = check.await.map_err(|_ended| mover.closing("the proof"))??;
    Ok(Checked { key, pages })
}

/// Checks a stored segment: its metadata by the segment's hash, and every named page by the block
/// table in it.
fn check_object(
    bytes: &[u8],
    hash: SegmentHash,
    pages: &PageSet,
    key: &HashKey,
) -> Result<(), String> {
    let length = bytes.len() as u64;
    let tail = &bytes[bytes.len().saturating_sub(FOOTER_BYTES_MAX as usize)..];
    let footer = Footer::decode_tail(tail, length).map_err(|error| error.to_string())?;
    let part = |range: std::ops::Range<u64>| {
        bytes.get(range.start as usize..range.end as usize).ok_or("it is cut off")
    };
    let meta = SegmentMeta::decode(part(footer.meta_range())?, key);
    let meta = meta.map_err(|error| error.to_string())?;
    if meta.hash() != hash {
        return Err("it is not the segment that the checkpoint names".to_owned());
    }
    let mut good = PageSet::default();
    let mut buffer = Vec::new();
    for frame in footer.frames() {
        let found = decode_frame(&frame, part(frame.range())?, &meta, key, &mut buffer);
        for page in found.map_err(|error| error.to_string())? {
            good.insert(page.page, 1);
        }
    }
    if covers(&good, pages) {
        return Ok(());
    }
    Err("it lacks pages that the volume's map names".to_owned())
}

/// Records in the registry that this site holds everything, if this host is still the owner and the
/// newest checkpoint there contains what was proven.
async fn record(mover: &Arc<Mover>, volume: VolumeId, through: Sequence) -> Result<bool> {
    let (host, site) = (mover.host(), mover.context.site.clone());
    let recorded = mover.directory.update_volume(volume, |record| {
        if record.owner != host {
            let context = format!("volume {volume} is owned by host {}", record.owner);
            return Err(Error::new(ErrorKind::Fenced, context));
        }
        let epoch = record.epoch;
        let Some(home) = record.homes.get_mut(&site) else { return Ok(false) };
        let newest = home.checkpoint.as_ref();
        let holds = newest.is_some_and(|now| now.epoch == epoch && now.through >= through);
        home.independent |= holds;
        Ok(holds)
    });
    let (recorded, _) = recorded.await?;
    if recorded {
        tracing::info!(
            %volume, %site, through = through.0,
            "the site depends on no other for this volume"
        );
    }
    Ok(recorded)
}
