//! Following an owner's log, as the target of a move does before the switch.
//!
//! A host that has nothing of the volume takes the owner's newest checkpoint first: its root, and
//! those of the map's pages that are not here by their hash. From then on it asks for the log
//! behind its own position, again and again; after a break or a restart, of either side, it goes on
//! from there.

use crate::error::{Error, ErrorKind, Result};
use crate::message::{PAYLOAD_BYTES_MAX, Request, Response};
use crate::mover::{Mover, Room, limits};
use crate::port::Class;
use crate::serve::unpack;
use crate::volume::Volume;
use crate::volume::log::{LogBatch, Position};
use bytes::Bytes;
use futures::StreamExt;
use pannier_core::format::checkpoint::{DecodeError, RootHead};
use pannier_core::ids::{HostId, ObjectHash};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

/// How far following is.
#[derive(Clone, Default)]
pub(crate) struct Reached {
    /// The local side, once there is one.
    pub(crate) volume: Option<Arc<Volume>>,
    /// Whether the end of the owner's sealed log was reached since following began.
    pub(crate) caught_up: bool,
}

/// Following, until it is dropped.
pub(crate) struct Follower {
    from: HostId,
    reached: watch::Receiver<Reached>,
    lag_bytes: Arc<AtomicU64>,
    _running: DropGuard,
}

/// One run of following.
struct Task {
    mover: Arc<Mover>,
    room: Arc<Room>,
    from: HostId,
    reached: watch::Sender<Reached>,
    lag_bytes: Arc<AtomicU64>,
}

/// What the owner answered to a request for the log.
enum News {
    Batch(LogBatch, Position),
    Gone,
}

impl Follower {
    pub(crate) fn start(mover: Arc<Mover>, room: Arc<Room>, from: HostId) -> Self {
        let (sender, reached) = watch::channel(Reached::default());
        let lag_bytes = Arc::new(AtomicU64::new(0));
        let running = CancellationToken::new();
        let ended = running.clone();
        let run = room.follower_runs.token();
        let task = Task { mover, room, from, reached: sender, lag_bytes: lag_bytes.clone() };
        // Detached: it ends with the handle's guard.
        drop(tokio::spawn(async move {
            let _run = run;
            tokio::select! {
                () = task.run() => {}
                () = ended.cancelled() => {}
            }
        }));
        Self { from, reached, lag_bytes, _running: running.drop_guard() }
    }

    /// The owner that is followed.
    pub(crate) fn from(&self) -> HostId {
        self.from
    }

    pub(crate) fn reached(&self) -> watch::Receiver<Reached> {
        self.reached.clone()
    }

    /// Bytes of the owner's sealed log that are not here, about.
    pub(crate) fn lag_bytes(&self) -> u64 {
        self.lag_bytes.load(Ordering::Relaxed)
    }
}

impl Task {
    async fn run(&self) {
        let mut pause = limits::SOURCE_RETRY_FIRST;
        loop {
            let Err(error) = self.follow(&mut pause).await else { continue };
            tracing::debug!(
                volume = %self.room.id, owner = %self.from, %error,
                "following pauses and goes on from where it is"
            );
            tokio::time::sleep(pause).await;
            let contradicts = error.kind() == ErrorKind::Invalid;
            let pause_max =
                if contradicts { limits::FOLLOW_ANEW_MAX } else { limits::SOURCE_RETRY_MAX };
            pause = (pause * 2).min(pause_max);
        }
    }

    /// Follows until something is in the way.
    async fn follow(&self, pause: &mut std::time::Duration) -> Result<()> {
        let mut volume = match self.mover.ownership()?.volume(self.room.id) {
            Some(volume) => volume,
            None => self.begin_at_checkpoint(None, *pause).await?,
        };
        let mut ahead = None;
        let mut begun = None;
        loop {
            self.reached.send_modify(|reached| reached.volume = Some(volume.clone()));
            if self.reached.borrow().caught_up && ahead.is_none() {
                ahead = Some(AbortOnDropHandle::new(tokio::spawn(get_metas(volume.clone()))));
            }
            match self.ask_log(&volume).await? {
                News::Batch(batch, end) => {
                    if !batch.segments.is_empty() {
                        volume.apply_log(&batch).await?;
                    }
                    self.note(&volume, batch.end, end);
                    *pause = limits::SOURCE_RETRY_FIRST;
                }
                News::Gone if begun == Some(volume.position()) => {
                    let context = format!(
                        "host {} has no log behind its own checkpoint, {begun:?}",
                        self.from
                    );
                    return Err(Error::new(ErrorKind::Invalid, context));
                }
                News::Gone => {
                    ahead = None;
                    volume = self.begin_at_checkpoint(Some(volume), *pause).await?;
                    begun = Some(volume.position());
                }
            }
        }
    }

    fn note(&self, volume: &Volume, at_end: bool, end: Position) {
        let position = volume.position();
        let segments = end.sequence().0.saturating_sub(position.sequence().0);
        let bytes = segments
            * u64::from(pannier_core::format::segment::limits::DATA_PAGES_MAX)
            * pannier_core::units::BLOCK_BYTES;
        self.lag_bytes.store(bytes, Ordering::Relaxed);
        let caught_up = at_end || position == end || end.is_behind(&position);
        self.reached.send_modify(|reached| reached.caught_up |= caught_up);
    }

    async fn ask_log(&self, volume: &Volume) -> Result<News> {
        // Until it is known that nothing is missing, nobody waits for news.
        let caught_up = self.reached.borrow().caught_up;
        let request = Request::Log {
            volume: self.room.id,
            after: volume.position(),
            wait_ms: if caught_up { limits::LOG_WAIT.as_millis() as u32 } else { 0 },
        };
        match self.call(request).await? {
            (Response::Log { encoding, end }, payload) => {
                let bytes = unpack(encoding, payload, limits::LOG_ANSWER_BYTES_MAX)?;
                let batch = postcard::from_bytes(&bytes).map_err(|error| {
                    let context = format!("host {} sent a damaged piece of the log", self.from);
                    Error::new(ErrorKind::Corrupt, context).with_source(error)
                })?;
                Ok(News::Batch(batch, end))
            }
            (Response::LogGone, _) => Ok(News::Gone),
            _ => Err(self.unexpected("a request for the log")),
        }
    }

    /// Makes the local side anew from the owner's newest checkpoint, `pause` after it was last
    /// tried in vain.
    async fn begin_at_checkpoint(
        &self,
        former: Option<Arc<Volume>>,
        pause: std::time::Duration,
    ) -> Result<Arc<Volume>> {
        let id = self.room.id;
        let (Response::Checkpoint { object, bytes }, _) =
            self.call(Request::Checkpoint { volume: id }).await?
        else {
            return Err(self.unexpected("a request for the checkpoint"));
        };
        let root = self.object(object, bytes).await?;
        let head = RootHead::decode(&root).map_err(|error| self.bad(&error))?;
        let parts = self.objects(head.parts(), former.as_deref()).await?;
        let table: HashMap<ObjectHash, Bytes> = parts.iter().cloned().collect();
        let key = &self.mover.context.key;
        let assembled = head.assemble(key, |part| match table.get(&part) {
            Some(bytes) => Ok(bytes.to_vec()),
            None => Err(DecodeError::Wrong("a part is missing")),
        });
        let named = assembled.map_err(|error| self.bad(&error))?;
        let pages = self.objects(named.page_objects().collect(), former.as_deref()).await?;
        let all = parts.into_iter().chain(pages).map(|(_, bytes)| bytes).collect();
        let run = self.room.follower_runs.token();
        let (context, ownership) = (self.mover.context.clone(), self.mover.ownership()?.clone());
        // A task of its own, which goes on when this one is cancelled: half of it would leave a
        // closed volume, or a checkpoint on the disk that this host does not know of. Whoever ends
        // the following waits for it.
        let begun = tokio::spawn(async move {
            let _run = run;
            if let Some(former) = former {
                former.close().await?;
            }
            let volume = Volume::follower(&context, id, root, all).await?;
            ownership.opened(volume.clone());
            Ok(volume)
        });
        let volume: Arc<Volume> = match begun.await {
            Ok(begun) => begun?,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_stopped) => return Err(self.mover.closing("following")),
        };
        let (owner, position) = (self.from, volume.position());
        if pause == limits::SOURCE_RETRY_FIRST {
            tracing::info!(volume = %id, %owner, ?position, "follows from the owner's checkpoint");
        } else {
            tracing::debug!(volume = %id, %owner, ?position, "follows from it once more");
        }
        Ok(volume)
    }

    /// One object, in parts.
    async fn object(&self, object: ObjectHash, bytes: u64) -> Result<Bytes> {
        if bytes > limits::ROOT_BYTES_MAX {
            let context = format!("host {} has a checkpoint of {bytes} bytes", self.from);
            return Err(Error::new(ErrorKind::Corrupt, context));
        }
        let mut whole = Vec::new();
        while (whole.len() as u64) < bytes {
            let offset = whole.len() as u64;
            let request = Request::Object { volume: self.room.id, object, offset };
            let (Response::Object { bytes: _ }, part) = self.call(request).await? else {
                return Err(self.unexpected("a request for an object"));
            };
            if part.is_empty() || part.len() as u64 > bytes - offset {
                return Err(self.unexpected("a request for the rest of an object"));
            }
            whole.extend_from_slice(&part);
        }
        if self.mover.context.key.object(&whole) != object {
            let context = format!("host {} sent a damaged checkpoint {object}", self.from);
            return Err(Error::new(ErrorKind::Corrupt, context));
        }
        Ok(whole.into())
    }

    /// Objects by hash: from the former local side where it has them, else from the owner.
    async fn objects(
        &self,
        wanted: Vec<ObjectHash>,
        former: Option<&Volume>,
    ) -> Result<Vec<(ObjectHash, Bytes)>> {
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for object in wanted {
            let here = match former {
                Some(volume) => volume.checkpoint_page(object).await.ok(),
                None => None,
            };
            match here {
                Some(bytes) => found.push((object, bytes)),
                None => missing.push(object),
            }
        }
        let mut rest = missing.as_slice();
        while !rest.is_empty() {
            let pages = rest[..rest.len().min(limits::RUNS_MAX)].to_vec();
            let request = Request::MapPages { volume: self.room.id, pages };
            let (Response::MapPages { encoding, lengths }, payload) = self.call(request).await?
            else {
                return Err(self.unexpected("a request for map pages"));
            };
            let mut bytes = unpack(encoding, payload, 4 * PAYLOAD_BYTES_MAX)?;
            if lengths.is_empty() || lengths.len() > rest.len() {
                return Err(self.unexpected("a request for map pages"));
            }
            for (object, length) in rest.iter().zip(&lengths) {
                if bytes.len() < *length as usize {
                    return Err(self.unexpected("a request for map pages"));
                }
                let page = bytes.split_to(*length as usize);
                if self.mover.context.key.object(&page) != *object {
                    let context = format!("host {} sent a damaged page {object}", self.from);
                    return Err(Error::new(ErrorKind::Corrupt, context));
                }
                found.push((*object, page));
            }
            rest = &rest[lengths.len()..];
        }
        Ok(found)
    }

    async fn call(&self, request: Request) -> Result<(Response, Bytes)> {
        let (response, payload) =
            self.mover.peers.call(self.from, Class::Control, request, Bytes::new()).await?;
        self.room.wire_bytes.fetch_add(payload.len() as u64, Ordering::Relaxed);
        Ok((response, payload))
    }

    fn bad(&self, error: &DecodeError) -> Error {
        let context = format!("the checkpoint from host {} is bad: {error}", self.from);
        Error::new(ErrorKind::Corrupt, context)
    }

    fn unexpected(&self, what: &str) -> Error {
        let context = format!("host {} answered {what} with something else", self.from);
        Error::new(ErrorKind::Corrupt, context)
    }
}

/// Gets the metadata of all live segments, so that a read after the switch asks for its pages at
/// once. What cannot be had now is asked for when it is needed.
async fn get_metas(volume: Arc<Volume>) {
    let gets = volume.live_segments().into_iter().map(|segment| {
        let volume = volume.clone();
        async move {
            let Ok(known) = volume.known(segment.name) else { return };
            if let Err(error) = volume.meta_of(&known).await {
                let (volume, segment) = (volume.id(), segment.name);
                tracing::debug!(%volume, %segment, %error, "no metadata");
            }
        }
    });
    futures::stream::iter(gets).buffer_unordered(limits::METAS_AT_ONCE).collect::<()>().await;
}
