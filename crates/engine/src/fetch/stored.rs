//! Pages from the own site's store, by ranged reads of a segment's object.

use crate::error::{Error, ErrorKind, Result};
use crate::mover::limits;
use crate::port::Class;
use crate::volume::Volume;
use crate::volume::log::PageRuns;
use bytes::Bytes;
use pannier_core::format::segment::{PAGE_BYTES, SegmentMeta};
use pannier_core::format::stored::{FOOTER_BYTES_MAX, Footer, FrameRef, decode_frame};
use pannier_core::ids::{HashKey, SegmentName};
use pannier_core::units::PageIndex;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// What is known of an object: where its frames are, and how its pages are checked.
struct Object {
    footer: Footer,
    meta: SegmentMeta,
}

/// Objects that were read of late, so that a miss is one ranged read.
#[derive(Default)]
pub(super) struct Stored {
    known: Mutex<VecDeque<(String, Arc<Object>)>>,
}

fn damaged(key: &str, cause: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("object {key} in this site's store: {cause}"))
}

impl Stored {
    /// Makes pages resident from the object `key` of the segment, or has them held for whoever
    /// waits, as [`Volume::take_pages`], and returns what that returned last.
    ///
    /// # Errors
    /// `Corrupt` or `NotFound` when the object does not give them, `Unavailable` when the store is
    /// away, or as [`Volume::take_pages`].
    pub(super) async fn pages(
        &self,
        volume: &Arc<Volume>,
        segment: SegmentName,
        key: &str,
        runs: &[Range<u32>],
        class: Class,
    ) -> Result<Option<Error>> {
        let object = self.object(volume, key).await?;
        let mut frames: Vec<FrameRef> = Vec::new();
        for page in runs.iter().flat_map(Clone::clone) {
            let frame =
                object.footer.frame_for(&object.meta, PageIndex(page)).ok_or_else(|| {
                    let cause = format!("it does not have page {page}");
                    Error::new(ErrorKind::NotFound, damaged(key, cause).context().to_owned())
                })?;
            if frames.last().is_none_or(|last| last.index != frame.index) {
                frames.push(frame);
            }
        }
        let mut refused = None;
        for frame in frames {
            let bytes = volume.context().objects.get_range(key, frame.range()).await?;
            let (object, hash_key) = (object.clone(), volume.context().key);
            let decode =
                tokio::task::spawn_blocking(move || unpack(&object, &frame, &bytes, &hash_key));
            let decoded = decode
                .await
                .map_err(|_ended| Error::new(ErrorKind::Closed, "the host shuts down"))?;
            let (pages, content) = decoded.map_err(|cause| damaged(key, cause))?;
            let taken = volume.take_pages(segment, &pages, &content, class).await?;
            refused = taken.or(refused);
        }
        Ok(refused)
    }

    /// The encoded metadata within the object `key`.
    ///
    /// # Errors
    /// As [`Stored::pages`].
    pub(super) async fn meta(&self, volume: &Volume, key: &str) -> Result<Bytes> {
        Ok(self.object(volume, key).await?.meta.encode().into())
    }

    async fn object(&self, volume: &Volume, key: &str) -> Result<Arc<Object>> {
        if let Some((_, object)) = self.known.lock().iter().find(|(known, _)| known == key) {
            return Ok(object.clone());
        }
        let objects = &volume.context().objects;
        let length = objects.size(key).await?.ok_or_else(|| {
            let context = format!("object {key} is not in this site's store");
            Error::new(ErrorKind::NotFound, context)
        })?;
        let tail_start = length.saturating_sub(FOOTER_BYTES_MAX);
        let tail = objects.get_range(key, tail_start..length).await?;
        let footer = Footer::decode_tail(&tail, length).map_err(|error| damaged(key, error))?;
        let meta: Bytes = objects.get_range(key, footer.meta_range()).await?;
        let meta = SegmentMeta::decode(&meta, &volume.context().key);
        let meta = meta.map_err(|error| damaged(key, error))?;
        let object = Arc::new(Object { footer, meta });
        let mut known = self.known.lock();
        if known.len() >= limits::STORED_OBJECTS_MAX {
            known.pop_front();
        }
        known.push_back((key.to_owned(), object.clone()));
        Ok(object)
    }
}

/// The pages of a frame, and their bytes, one behind the other.
fn unpack(
    object: &Object,
    frame: &FrameRef,
    bytes: &[u8],
    key: &HashKey,
) -> std::result::Result<(PageRuns, Vec<u8>), String> {
    let mut buffer = Vec::new();
    let found = decode_frame(frame, bytes, &object.meta, key, &mut buffer);
    let found = found.map_err(|error| error.to_string())?;
    let (mut runs, mut content) = (PageRuns::new(), Vec::with_capacity(found.len() * PAGE_BYTES));
    for page in found {
        match runs.last_mut() {
            Some(run) if run.end == page.page.0 => run.end += 1,
            _ => runs.push(page.page.0..page.page.0 + 1),
        }
        content.extend_from_slice(page.bytes);
    }
    Ok((runs, content))
}
