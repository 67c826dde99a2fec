//! A volume on this host: its log, its map, and what of its segments is here.
//!
//! While it appends (between [`Volume::begin_append`] and [`Volume::stop_append`]) it serves guests;
//! otherwise it is a follower that applies another host's log, or stands still.

pub mod log;

use crate::context::HostContext;
use crate::error::{Error, ErrorKind, Result};
use crate::port::{StatusExtent, WriteRequest};
use bytes::Bytes;
use log::{LiveSegment, LogBatch, Operation, PageRuns, Position, SessionTable};
use pannier_core::ids::{
    Epoch, Incarnation, ObjectHash, RequestNumber, SegmentName, SessionId, VolumeId,
};
use std::sync::Arc;

/// A volume on this host.
pub struct Volume {
    id: VolumeId,
    context: Arc<HostContext>,
}

fn unbuilt<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Internal, "the local volume does not do this"))
}

/// Life: create, recover, follow, append, stop, delete.
impl Volume {
    /// Makes a new volume: all hole, with an empty log and a first local checkpoint. It does not
    /// append yet.
    ///
    /// # Errors
    /// `NoSpace`, `Invalid` for a size that is no multiple of 512.
    pub async fn create(
        context: &Arc<HostContext>,
        id: VolumeId,
        size_bytes: u64,
    ) -> Result<Arc<Self>> {
        let _ = (context, id, size_bytes);
        unbuilt()
    }

    /// Opens a volume whose files are here: newest local checkpoint, index sections of sealed
    /// segments behind it, recovery of the open one (which is sealed; what lies behind a break is set
    /// aside). It does not append yet. Also opens a follower's volume.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt` with the file's name, `Unavailable`.
    pub async fn recover(context: &Arc<HostContext>, id: VolumeId) -> Result<Arc<Self>> {
        let _ = (context, id);
        unbuilt()
    }

    /// Makes a follower from a checkpoint of another host: the root object and the map pages that it
    /// names, in any order. Durable when it returns.
    ///
    /// # Errors
    /// `Corrupt` when a page is missing or not what its hash says, `NoSpace`.
    pub async fn follower(
        context: &Arc<HostContext>,
        id: VolumeId,
        root: Bytes,
        pages: Vec<Bytes>,
    ) -> Result<Arc<Self>> {
        let _ = (context, id, root, pages);
        unbuilt()
    }

    /// Removes every local file of a volume; with `in_store` also its objects in the site's store.
    ///
    /// # Errors
    /// `Unavailable`; it can be called again.
    pub async fn delete(context: &Arc<HostContext>, id: VolumeId, in_store: bool) -> Result<()> {
        let _ = (context, id, in_store);
        unbuilt()
    }

    /// Begins to append under an epoch: the caller has made its right to do so durable. `incarnation`
    /// was never used before with `epoch`.
    ///
    /// # Errors
    /// `Internal` when it already appends.
    pub async fn begin_append(&self, epoch: Epoch, incarnation: Incarnation) -> Result<()> {
        let _ = (epoch, incarnation);
        unbuilt()
    }

    /// Ends appending: refuses new requests, drains the running ones, syncs and seals. Nothing is
    /// appended, acknowledged or read for a guest after it returns, until another
    /// [`Volume::begin_append`]. Idempotent: a stopped volume answers its position.
    ///
    /// # Errors
    /// `Unavailable` when the log cannot be made durable; the volume has then failed.
    pub async fn stop_append(&self) -> Result<Position> {
        unbuilt()
    }

    /// Ends background work and writes a last checkpoint; called when the daemon stops.
    ///
    /// # Errors
    /// As [`Volume::stop_append`].
    pub async fn close(&self) -> Result<()> {
        unbuilt()
    }
}

/// What it is.
impl Volume {
    /// Its identity.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// The host's context.
    #[must_use]
    pub fn context(&self) -> &Arc<HostContext> {
        &self.context
    }

    /// Whether it appends, and so serves guests. When a request fails and this is false, the volume
    /// has moved: route anew.
    #[must_use]
    pub fn is_appending(&self) -> bool {
        false
    }

    /// The end of the log here.
    #[must_use]
    pub fn position(&self) -> Position {
        Position::default()
    }

    /// The end of the durable log here.
    #[must_use]
    pub fn durable_position(&self) -> Position {
        Position::default()
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        0
    }

    /// What forwarding sessions have applied.
    #[must_use]
    pub fn sessions(&self) -> SessionTable {
        SessionTable::new()
    }

    /// Figures for status.
    #[must_use]
    pub fn stats(&self) -> VolumeStats {
        VolumeStats::default()
    }
}

/// Figures of a volume on this host, in bytes unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VolumeStats {
    /// Live data that the map names.
    pub live_bytes: u64,
    /// Of these, what is here.
    pub resident_bytes: u64,
    /// Of these, what the site's store holds.
    pub stored_bytes: u64,
    /// Written and not yet synced.
    pub unsynced_bytes: u64,
    /// Number of segments with live data.
    pub segments: u64,
}

/// The guest's path: as [`crate::port::BlockDevice`], while it appends. Every method fails with
/// `Closed` when the volume does not append.
impl Volume {
    /// As [`crate::port::BlockDevice::try_read`].
    ///
    /// # Errors
    /// As [`Volume::read`].
    pub fn try_read(&self, offset: u64, into: &mut [u8]) -> Result<bool> {
        let _ = (offset, into);
        unbuilt()
    }

    /// As [`crate::port::BlockDevice::try_write`].
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub fn try_write(&self, writes: &[WriteRequest<'_>]) -> Result<usize> {
        let _ = writes;
        unbuilt()
    }

    /// Reads `into.len()` bytes.
    ///
    /// # Errors
    /// `Corrupt`, `Closed`, `Unavailable` when nothing can fetch.
    pub async fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let _ = (offset, into);
        unbuilt()
    }

    /// Writes; with `fua` durable.
    ///
    /// # Errors
    /// `NoSpace`, `Closed`, `Unavailable` when the disk failed.
    pub async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<()> {
        let _ = (offset, data, fua);
        unbuilt()
    }

    /// Makes every write that returned before durable.
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub async fn flush(&self) -> Result<()> {
        unbuilt()
    }

    /// Discards a range.
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub async fn discard(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        let _ = (offset, length, fua);
        unbuilt()
    }

    /// Zeroes a range.
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        allocate: bool,
        fua: bool,
    ) -> Result<()> {
        let _ = (offset, length, allocate, fua);
        unbuilt()
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
        let _ = (offset, length, extents_max);
        unbuilt()
    }

    /// Asks that a range become resident; returns when it is.
    ///
    /// # Errors
    /// As [`Volume::read`].
    pub async fn cache(&self, offset: u64, length: u64) -> Result<()> {
        let _ = (offset, length);
        unbuilt()
    }

    /// Changes the size; a multiple of 512. Only growth is for guests, but shrinking is recorded
    /// alike.
    ///
    /// # Errors
    /// `Invalid`, or as [`Volume::write`].
    pub async fn resize(&self, size_bytes: u64) -> Result<()> {
        let _ = size_bytes;
        unbuilt()
    }

    /// Applies a forwarded request once: the changes and the mark of `(session, number)` go into the
    /// log together, and are durable when this returns. A request that was applied before (also at a
    /// former owner) is not applied again.
    ///
    /// # Errors
    /// As [`Volume::write`]; then it was not applied.
    pub async fn write_in_session(
        &self,
        session: SessionId,
        number: RequestNumber,
        operations: &[Operation],
    ) -> Result<()> {
        let _ = (session, number, operations);
        unbuilt()
    }

    /// Forgets a session that has ended: its late requests are refused with `Closed`.
    pub fn end_session(&self, session: SessionId) {
        let _ = session;
    }
}

/// The log for followers, the data for peers.
impl Volume {
    /// Durable entries behind `position`, about `bytes_max` of them at most; waits up to
    /// [`crate::limits::LOG_WAIT_MS`] when there are none.
    ///
    /// # Errors
    /// `NotFound` when the log no longer reaches back to `position`: begin again from
    /// [`Volume::checkpoint_root`]. `Invalid` when `position` is of another log.
    pub async fn log_since(&self, position: Position, bytes_max: usize) -> Result<LogBatch> {
        let _ = (position, bytes_max);
        unbuilt()
    }

    /// Applies a batch on a follower; sealed segments' metadata is durable when it returns, so that a
    /// crash right behind GRANT recovers. Items that lie before the own position are skipped.
    ///
    /// # Errors
    /// `Invalid` when the batch does not continue the own log, `Corrupt`, `NoSpace`.
    pub async fn apply_log(&self, batch: &LogBatch) -> Result<Position> {
        let _ = batch;
        unbuilt()
    }

    /// The newest local checkpoint's root object. Its pages are [`Volume::checkpoint_page`].
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn checkpoint_root(&self) -> Result<Bytes> {
        unbuilt()
    }

    /// A map page of the newest local checkpoint.
    ///
    /// # Errors
    /// `NotFound` when a newer checkpoint has replaced it: begin again.
    pub async fn checkpoint_page(&self, hash: ObjectHash) -> Result<Bytes> {
        let _ = hash;
        unbuilt()
    }

    /// Segments that the map names, in the order of the log.
    #[must_use]
    pub fn live_segments(&self) -> Vec<LiveSegment> {
        Vec::new()
    }

    /// Pages of a segment that the map names.
    #[must_use]
    pub fn live_pages(&self, segment: SegmentName) -> PageRuns {
        let _ = segment;
        PageRuns::new()
    }

    /// Pages of a segment that the map names and that are not resident here.
    #[must_use]
    pub fn missing_pages(&self, segment: SegmentName) -> PageRuns {
        let _ = segment;
        PageRuns::new()
    }

    /// Pages that the range of the disk needs and that are not resident here, per segment, in disk
    /// order: what run-ahead fetches.
    #[must_use]
    pub fn missing_in_range(&self, offset: u64, length: u64) -> Vec<(SegmentName, PageRuns)> {
        let _ = (offset, length);
        Vec::new()
    }

    /// Bytes of pages, one behind the other, verified: from the segment's file, the line cache or the
    /// own site's store, never from a peer. Bytes of an open segment are served only when durable.
    ///
    /// # Errors
    /// `NotFound` when they are not here, `Corrupt`.
    pub async fn read_pages(&self, segment: SegmentName, pages: &PageRuns) -> Result<Bytes> {
        let _ = (segment, pages);
        unbuilt()
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
        let _ = (segment, pages, bytes);
        unbuilt()
    }

    /// The encoded `SegmentMeta` of a sealed segment that is here.
    ///
    /// # Errors
    /// `NotFound` when it is not here or not sealed.
    pub async fn segment_meta(&self, segment: SegmentName) -> Result<Bytes> {
        let _ = segment;
        unbuilt()
    }

    /// Key of the segment's object in the site's store, when it is stored there.
    #[must_use]
    pub fn stored_key(&self, segment: SegmentName) -> Option<String> {
        let _ = segment;
        None
    }

    /// Encodes a sealed segment's live pages and stores the object in the site's store, durably; they
    /// all are resident here. Nothing is done when it is stored already. Returns the bytes sent.
    ///
    /// # Errors
    /// `NotFound` when a page is not resident, `Unavailable` or `NoSpace` of the store.
    pub async fn store_segment(&self, segment: SegmentName) -> Result<u64> {
        let _ = segment;
        unbuilt()
    }

    /// Writes a checkpoint: pages and root locally, durable; then, once every segment it names is
    /// stored, to the site's store, and publishes it. Returns the root's hash, and whether it is
    /// published.
    ///
    /// # Errors
    /// `NoSpace`, `Unavailable`; the former checkpoint stays.
    pub async fn checkpoint(&self) -> Result<(ObjectHash, bool)> {
        unbuilt()
    }
}
