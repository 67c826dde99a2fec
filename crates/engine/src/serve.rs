//! Peers' requests that concern data: forwarded I/O at the owner, the log and the checkpoint for
//! followers, segments for whoever lacks them.

mod changes;

pub(crate) use changes::Changes;

use crate::attachment::{Route, news};
use crate::error::{Error, ErrorKind, Result};
use crate::message::{
    Encoding, ExtentKind, FORWARD_BYTES_MAX, ForwardOp, Opening, PAYLOAD_BYTES_MAX, PageRun,
    Request, Response,
};
use crate::mover::frames::{self, ZSTD_LEVEL};
use crate::mover::{Mover, Room, limits};
use crate::port::ExtentState;
use crate::volume::Volume;
use crate::volume::log::{LogBatch, Operation, PageRuns, Position, pages_in, pages_of};
use bytes::Bytes;
use pannier_core::ids::{
    HostId, ObjectHash, RequestNumber, SegmentId, SegmentName, SessionId, VolumeId,
};
use pannier_core::movement::limits::ASK_PAGES_MAX;
use pannier_core::units::SECTOR_BYTES;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

type Answer = Result<(Response, Bytes)>;

fn plain(response: Response) -> Answer {
    Ok((response, Bytes::new()))
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, what)
}

/// The volume to execute on, or the answer that says why not.
enum Here {
    Yes(Arc<Volume>),
    No(Response),
}

impl Mover {
    /// Answers a peer's request, all but ownership and registry.
    ///
    /// # Errors
    /// Any kind; it reaches the asker with its kind and context. `Invalid` for a request that no
    /// honest peer sends, or that is for another part of the host.
    pub async fn serve(
        self: &Arc<Self>,
        from: HostId,
        request: Request,
        payload: Bytes,
    ) -> Result<(Response, Bytes)> {
        match request {
            Request::Ping => plain(Response::Pong),
            Request::CloseSession { volume, session } => {
                self.serve_close(from, volume, session).await
            }
            Request::Forward { volume, session, number, open, op } => {
                self.serve_change(from, volume, (session, number), (open, op), payload).await
            }
            Request::Read { volume, offset, length } => {
                self.serve_read(volume, offset, length).await
            }
            Request::Flush { volume } => {
                self.serve_done(volume, async |local| local.flush().await).await
            }
            Request::Resize { volume, size_bytes } => {
                let grow = async |local: &Volume| {
                    if local.size_bytes() < size_bytes {
                        local.resize(size_bytes).await?;
                    }
                    Ok(())
                };
                self.serve_done(volume, grow).await
            }
            Request::BlockStatus { volume, offset, length, extents_max } => {
                self.serve_status(volume, offset, length, extents_max).await
            }
            Request::Checkpoint { volume } => self.serve_checkpoint(volume).await,
            Request::Object { volume, object, offset } => {
                self.serve_object(volume, object, offset).await
            }
            Request::MapPages { volume, pages } => self.serve_map_pages(volume, pages).await,
            Request::Log { volume, after, wait_ms } => {
                self.serve_log(from, volume, after, wait_ms).await
            }
            Request::SegmentMeta { segment } => {
                let meta = self.local(segment.volume)?.segment_meta(segment.name).await?;
                let (encoding, payload) = pack(meta).await?;
                Ok((Response::SegmentMeta { encoding }, payload))
            }
            Request::Pages { segment, runs } => self.serve_pages(segment, &runs).await,
            Request::Progress { volume } => plain(Response::Progress(self.progress(volume))),
            Request::Ownership { .. } | Request::Registry(_) | Request::Host { .. } => Err(
                invalid("this request is not for the mover; a bug of its sender or of this host"),
            ),
        }
    }

    /// The local side of a volume.
    ///
    /// # Errors
    /// `NotFound` when this host has nothing of it, which counts as one copy less; `Unavailable`
    /// when it has and cannot say what: it is being recovered, or that has failed.
    pub(crate) fn local(&self, volume: VolumeId) -> Result<Arc<Volume>> {
        self.ownership()?.volume(volume).ok_or_else(|| {
            let host = self.host();
            if self.context.volume_dir(volume).join("checkpoint").exists() {
                let context = format!(
                    "volume {volume} is on host {host} and not open yet; if this lasts, its log \
                     says why it cannot be recovered"
                );
                return Error::new(ErrorKind::Unavailable, context);
            }
            let context = format!("nothing of volume {volume} is on host {host}");
            Error::new(ErrorKind::NotFound, context)
        })
    }

    /// The volume, when requests are executed here; waits a bounded time while it is switched.
    ///
    /// # Errors
    /// `NotFound` when there is no such volume, `Unavailable` while the registry is away and
    /// nothing is known of one here.
    async fn here(&self, volume: VolumeId) -> Result<Here> {
        // A room stays: none is made on a peer's word alone.
        if self.known(volume).is_none() {
            self.directory.check_exists(volume).await?;
        }
        let room = self.room(volume);
        let until = Instant::now() + limits::BUSY_WAIT;
        let mut changes = room.changed.subscribe();
        loop {
            match &*room.route.load_full() {
                Route::Local(local) if local.is_appending() => return Ok(Here::Yes(local.clone())),
                Route::Forward(owner) => {
                    return Ok(Here::No(Response::Moved { owner: Some(*owner) }));
                }
                Route::Ended(_) => return Ok(Here::No(Response::Moved { owner: None })),
                Route::Local(_) | Route::Switching => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let cause = format!("volume {volume} changes its owner");
                return Ok(Here::No(Response::Busy { cause }));
            }
            // What stops appending is routed anew soon; only that is not told by a change.
            news(&mut changes, left.min(limits::WAIT_MAX)).await;
        }
    }

    async fn serve_done(
        &self,
        volume: VolumeId,
        execute: impl AsyncFnOnce(&Volume) -> Result<()>,
    ) -> Answer {
        match self.here(volume).await? {
            Here::Yes(local) => {
                let done = self.until_left(&local, execute(&local)).await;
                self.answer_after(&local, done.map(|()| Bytes::new()))
            }
            Here::No(response) => plain(response),
        }
    }

    /// Executes something on the local volume, but no longer than requests are executed there.
    async fn until_left<T>(
        &self,
        local: &Arc<Volume>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let room = self.room(local.id());
        tokio::select! {
            biased;
            done = work => done,
            () = room.left(local) => {
                Err(Error::new(ErrorKind::Unavailable, "the volume was given away"))
            }
        }
    }

    /// The answer to something that the volume has done; when it stopped to be here meanwhile, the
    /// request is to be sent again.
    fn answer_after(&self, local: &Volume, done: Result<Bytes>) -> Answer {
        match done {
            Ok(bytes) => Ok((Response::Done { size_bytes: local.size_bytes() }, bytes)),
            Err(error) if local.has_left(&error) => {
                let cause = format!("volume {} changes its owner", local.id());
                plain(Response::Busy { cause })
            }
            Err(error) => Err(error),
        }
    }

    async fn serve_read(&self, volume: VolumeId, offset: u64, length: u32) -> Answer {
        let local = match self.here(volume).await? {
            Here::Yes(local) => local,
            Here::No(response) => return plain(response),
        };
        check_range(&local, offset, u64::from(length))?;
        if u64::from(length) > FORWARD_BYTES_MAX {
            return Err(invalid(format!("a forwarded read of {length} bytes is too long")));
        }
        let mut bytes = vec![0; length as usize];
        let ready = local.try_read(offset, &mut bytes);
        let done = match ready {
            Ok(true) => Ok(()),
            Ok(false) => self.until_left(&local, local.read(offset, &mut bytes)).await,
            Err(error) => Err(error),
        };
        // What was read before the volume stopped appending is still the truth: the answer was
        // made before anything could be acknowledged elsewhere. What is answered after it may not
        // be.
        if local.is_appending() && done.is_ok() {
            return Ok((Response::Data { size_bytes: local.size_bytes() }, bytes.into()));
        }
        self.answer_after(
            &local,
            done.and_then(|()| {
                let cause = "the volume was given away during the read";
                Err(Error::new(ErrorKind::Unavailable, cause))
            }),
        )
    }

    async fn serve_status(
        &self,
        volume: VolumeId,
        offset: u64,
        length: u64,
        extents_max: u32,
    ) -> Answer {
        let local = match self.here(volume).await? {
            Here::Yes(local) => local,
            Here::No(response) => return plain(response),
        };
        check_range(&local, offset, length)?;
        let extents_max = (extents_max as usize).clamp(1, limits::EXTENTS_MAX);
        let status = local.block_status(offset, length, extents_max);
        let extents = match self.until_left(&local, status).await {
            Ok(extents) => extents,
            Err(error) => return self.answer_after(&local, Err(error)),
        };
        let kind = |state| match state {
            ExtentState::Data => ExtentKind::Data,
            ExtentState::Zero => ExtentKind::Zero,
            ExtentState::Hole => ExtentKind::Hole,
        };
        let runs = extents.into_iter().map(|extent| (extent.length, kind(extent.state)));
        plain(Response::Extents(runs.collect()))
    }

    /// Opens a session of `from`, if it is not open; what is answered when it may not be.
    async fn open(
        &self,
        from: HostId,
        local: &Volume,
        session: SessionId,
        Opening { resumed, lineage }: Opening,
    ) -> Result<Option<Response>> {
        let (ownership, volume) = (self.ownership()?, local.id());
        let former = ownership.session(volume, from);
        if former == Some(session) {
            return Ok(None);
        }
        if resumed || former.is_some_and(|former| former > session) {
            return Ok(Some(Response::NoSession { current: former }));
        }
        let opened = ownership.open_session(volume, from, session, lineage);
        let Ok(opened) = tokio::time::timeout(limits::BUSY_WAIT, opened).await else {
            let cause = format!("the session is not open yet at the owner of volume {volume}");
            return Ok(Some(Response::Busy { cause }));
        };
        match opened {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Fenced => {
                let current = ownership.session(volume, from);
                // Another request of the session may have opened it at the same time.
                let opened = current == Some(session);
                return Ok((!opened).then_some(Response::NoSession { current }));
            }
            Err(error) => return Err(error),
        }
        if let Some(former) = former {
            self.room(volume).changes.end(former).await;
        }
        Ok(None)
    }

    async fn serve_close(&self, from: HostId, volume: VolumeId, session: SessionId) -> Answer {
        let local = match self.here(volume).await? {
            Here::Yes(local) => local,
            Here::No(response) => return plain(response),
        };
        let ownership = self.ownership()?;
        if ownership.session(volume, from) == Some(session) {
            self.room(volume).changes.end(session).await;
            ownership.close_session(volume, from, session).await?;
            local.end_session(session);
        }
        plain(Response::Done { size_bytes: local.size_bytes() })
    }

    pub(crate) async fn serve_change(
        &self,
        from: HostId,
        volume: VolumeId,
        (session, number): (SessionId, RequestNumber),
        (open, op): (Option<Opening>, ForwardOp),
        payload: Bytes,
    ) -> Answer {
        let local = match self.here(volume).await? {
            Here::Yes(local) => local,
            Here::No(response) => return plain(response),
        };
        let operations = operations(&local, op, payload)?;
        let room = self.room(volume);
        if let Some(open) = open
            && let Some(refused) = self.open(from, &local, session, open).await?
        {
            return plain(refused);
        }
        if !self.may_write(&room, &local, from).await? {
            let cause = if local.is_appending() {
                format!("another attachment holds the write right of volume {volume}")
            } else {
                format!("volume {volume} changes its owner")
            };
            return plain(Response::Busy { cause });
        }
        let current = self.ownership()?.session(volume, from);
        if current != Some(session) {
            return plain(Response::NoSession { current });
        }
        let attachment = (from, room.gate_of(from));
        let done = room.changes.execute(&local, attachment, (session, number), operations).await;
        done.and_then(plain)
    }

    /// Whether a forwarded change is admitted by the write right; waits for it a bounded time, and
    /// only while the volume appends here.
    async fn may_write(&self, room: &Arc<Room>, local: &Volume, from: HostId) -> Result<bool> {
        let gate = room.gate_of(from);
        let until = Instant::now() + limits::BUSY_WAIT;
        loop {
            let mut changes = room.changed.subscribe();
            if gate.is_open() {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !local.is_appending() {
                return Ok(false);
            }
            let asked = self.ownership()?.ask_right(room.id, from);
            match tokio::time::timeout(left, asked).await {
                Ok(Ok(())) if gate.is_open() => {}
                Ok(Ok(())) => news(&mut changes, left.min(limits::RETRY_FIRST)).await,
                Ok(Err(error)) if error.kind() == ErrorKind::Unavailable => {
                    news(&mut changes, left.min(limits::RETRY_FIRST)).await;
                }
                Ok(Err(error)) => return Err(error),
                Err(_elapsed) => return Ok(false),
            }
        }
    }

    async fn serve_pages(&self, segment: SegmentId, runs: &[PageRun]) -> Answer {
        let local = self.local(segment.volume)?;
        let mut wanted = PageRuns::new();
        for run in runs.iter().take(limits::RUNS_MAX) {
            let behind = wanted.last().map_or(0, |last: &Range<u32>| last.end);
            let end = run.first.0.checked_add(run.count);
            match end {
                Some(end) if run.first.0 >= behind && end > run.first.0 => {
                    wanted.push(run.first.0..end);
                }
                _ => return Err(invalid("pages are asked for out of order")),
            }
        }
        if pages_in(&wanted) > ASK_PAGES_MAX {
            return Err(invalid("too many pages are asked for at once"));
        }
        let (here, bytes) = match local.read_pages(segment.name, &wanted).await {
            Ok(bytes) => (wanted.clone(), bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                one_by_one(&local, segment.name, &wanted).await?
            }
            Err(error) => return Err(error),
        };
        let incomplete = here != wanted;
        let encoded = tokio::task::spawn_blocking(move || frames::encode(&here, &bytes)).await;
        let (frames, payload) = encoded.map_err(|_ended| self.closing("a request for pages"))?;
        Ok((Response::Pages { frames, incomplete }, payload.into()))
    }

    async fn serve_checkpoint(&self, volume: VolumeId) -> Answer {
        let root = self.local(volume)?.checkpoint_root().await?;
        let object = self.context.key.object(&root);
        plain(Response::Checkpoint { object, bytes: root.len() as u64 })
    }

    async fn serve_object(&self, volume: VolumeId, object: ObjectHash, offset: u64) -> Answer {
        let local = self.local(volume)?;
        let root = local.checkpoint_root().await?;
        let bytes = if self.context.key.object(&root) == object {
            root
        } else {
            local.checkpoint_page(object).await?
        };
        let start = (offset as usize).min(bytes.len());
        let end = bytes.len().min(start + PAYLOAD_BYTES_MAX);
        Ok((Response::Object { bytes: bytes.len() as u64 }, bytes.slice(start..end)))
    }

    async fn serve_map_pages(&self, volume: VolumeId, pages: Vec<ObjectHash>) -> Answer {
        let local = self.local(volume)?;
        let (mut lengths, mut all) = (Vec::new(), Vec::new());
        for page in pages.into_iter().take(limits::RUNS_MAX) {
            let bytes = local.checkpoint_page(page).await?;
            if !lengths.is_empty() && all.len() + bytes.len() > PAYLOAD_BYTES_MAX {
                break;
            }
            lengths.push(bytes.len() as u32);
            all.extend_from_slice(&bytes);
        }
        let (encoding, payload) = pack(all.into()).await?;
        Ok((Response::MapPages { encoding, lengths }, payload))
    }

    async fn serve_log(
        &self,
        from: HostId,
        volume: VolumeId,
        after: Position,
        wait_ms: u32,
    ) -> Answer {
        let local = self.local(volume)?;
        self.room(volume).followers.lock().insert(from, after);
        let wait = Duration::from_millis(wait_ms.into()).min(limits::LOG_WAIT);
        let until = Instant::now() + wait;
        loop {
            if wait.is_zero() && after == local.sealed_position() {
                // The local log would wait for news first.
                let (from, through) = (after, after);
                let none = LogBatch { from, segments: Vec::new(), through, end: true };
                return log_answer(&local, &none).await;
            }
            let batch = match local.log_since(after, limits::LOG_BYTES_MAX).await {
                Ok(batch) => batch,
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Invalid) => {
                    return plain(Response::LogGone);
                }
                Err(error) => return Err(error),
            };
            if batch.segments.is_empty() && Instant::now() < until {
                continue;
            }
            return log_answer(&local, &batch).await;
        }
    }
}

async fn log_answer(local: &Volume, batch: &LogBatch) -> Answer {
    let bytes = postcard::to_stdvec(batch).map_err(|error| {
        Error::new(ErrorKind::Internal, "a batch of the log does not encode").with_source(error)
    })?;
    let (encoding, payload) = pack(bytes.into()).await?;
    Ok((Response::Log { encoding, end: local.sealed_position() }, payload))
}

/// Those of the pages that are here, and their bytes.
async fn one_by_one(
    local: &Volume,
    segment: SegmentName,
    wanted: &PageRuns,
) -> Result<(PageRuns, Bytes)> {
    let (mut here, mut bytes) = (PageRuns::new(), Vec::new());
    for page in pages_of(wanted).map(|page| page.0) {
        let run = page..page + 1;
        match local.read_pages(segment, &vec![run.clone()]).await {
            Ok(content) => {
                bytes.extend_from_slice(&content);
                here.push(run);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok((here, bytes.into()))
}

fn check_range(local: &Volume, offset: u64, length: u64) -> Result<()> {
    let size = local.size_bytes();
    let inside = offset.checked_add(length).is_some_and(|end| end <= size);
    if inside && offset.is_multiple_of(SECTOR_BYTES) && length.is_multiple_of(SECTOR_BYTES) {
        return Ok(());
    }
    Err(invalid(format!(
        "volume {}: {length} bytes at {offset} do not lie within its {size} bytes, in sectors",
        local.id()
    )))
}

fn operations(local: &Volume, op: ForwardOp, payload: Bytes) -> Result<Vec<Operation>> {
    let operation = match op {
        ForwardOp::Write { offset } => {
            if payload.len() as u64 > FORWARD_BYTES_MAX {
                let length = payload.len();
                return Err(invalid(format!("a forwarded write of {length} bytes is too long")));
            }
            check_range(local, offset, payload.len() as u64)?;
            Operation::Write { offset, data: payload }
        }
        ForwardOp::Discard { offset, length } => {
            check_range(local, offset, length)?;
            Operation::Discard { offset, length }
        }
        ForwardOp::WriteZeroes { offset, length, allocate } => {
            check_range(local, offset, length)?;
            Operation::WriteZeroes { offset, length, allocate }
        }
        ForwardOp::Skip => return Ok(Vec::new()),
    };
    Ok(vec![operation])
}

/// Compresses a payload where that makes it smaller, away from the guests' threads.
pub(crate) async fn pack(bytes: Bytes) -> Result<(Encoding, Bytes)> {
    if bytes.len() < 256 {
        return Ok((Encoding::Raw, bytes));
    }
    let packed =
        tokio::task::spawn_blocking(move || match zstd::bulk::compress(&bytes, ZSTD_LEVEL) {
            Ok(packed) if packed.len() < bytes.len() => (Encoding::Zstd, Bytes::from(packed)),
            Ok(_) | Err(_) => (Encoding::Raw, bytes),
        });
    packed.await.map_err(|_ended| Error::new(ErrorKind::Closed, "the host shuts down"))
}

/// Undoes [`pack`], up to `bytes_max` bytes.
pub(crate) fn unpack(encoding: Encoding, payload: Bytes, bytes_max: usize) -> Result<Bytes> {
    match encoding {
        Encoding::Raw => Ok(payload),
        Encoding::Zstd => {
            zstd::bulk::decompress(&payload, bytes_max).map(Bytes::from).map_err(|error| {
                Error::new(ErrorKind::Corrupt, "a peer's payload does not decompress")
                    .with_source(error)
            })
        }
    }
}
