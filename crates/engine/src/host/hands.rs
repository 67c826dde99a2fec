//! The local side of a host's volumes, as the ownership driver and the mover act on it.

use crate::attachment;
use crate::context::{HostContext, Publication, Publish};
use crate::directory::Directory;
use crate::error::{Error, ErrorKind, Result};
use crate::message::PAYLOAD_BYTES_MAX;
use crate::mover::{Mover, Ownership};
use crate::ownership::{Hands, Owners};
use crate::volume::Volume;
use crate::volume::log::LogBatch;
use async_trait::async_trait;
use bytes::Bytes;
use pannier_core::ids::{Epoch, HostId, Incarnation, SessionId, VolumeId};
use pannier_core::record::PublishedCheckpoint;
use pannier_core::volume::Position;
use pannier_core::volume::ownership::transaction::publish_checkpoint;
use pannier_core::volume::ownership::{LocalState, Route};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock, Weak};
use tokio::sync::OnceCell;

/// Name of the ownership state's file in a volume's directory.
const STATE_FILE: &str = "state";

/// File whose presence says that a volume's data is here.
const CHECKPOINT_FILE: &str = "checkpoint";

/// About how many bytes of the log's tail go with GRANT: the metadata of the one or two segments
/// that the switch itself has sealed.
const TAIL_BYTES_MAX: usize = PAYLOAD_BYTES_MAX / 2;

/// A volume's local side: recovered once, by whoever needs it first.
type Slot = Arc<OnceCell<Arc<Volume>>>;

/// The local sides of a host's volumes.
pub(super) struct Locals {
    context: Arc<HostContext>,
    directory: Arc<Directory>,
    mover: OnceLock<Arc<Mover>>,
    owners: OnceLock<Weak<Owners>>,
    slots: Mutex<HashMap<VolumeId, Slot>>,
}

impl Locals {
    pub(super) fn new(context: Arc<HostContext>, directory: Arc<Directory>) -> Arc<Self> {
        Arc::new(Self {
            context,
            directory,
            mover: OnceLock::new(),
            owners: OnceLock::new(),
            slots: Mutex::new(HashMap::new()),
        })
    }

    /// Connects what acts on them; once.
    pub(super) fn connect(&self, mover: Arc<Mover>, owners: &Arc<Owners>) {
        let first =
            self.mover.set(mover).is_ok() && self.owners.set(Arc::downgrade(owners)).is_ok();
        assert!(first, "the local volumes are connected once");
    }

    fn mover(&self) -> &Arc<Mover> {
        #[expect(clippy::expect_used, reason = "connected before anything is opened")]
        self.mover.get().expect("the mover is connected")
    }

    fn owners(&self) -> Result<Arc<Owners>> {
        self.owners
            .get()
            .and_then(Weak::upgrade)
            .ok_or_else(|| Error::new(ErrorKind::Closed, "the host is shutting down"))
    }

    fn slot(&self, volume: VolumeId) -> Slot {
        self.slots.lock().entry(volume).or_default().clone()
    }

    /// The volume's local side, recovered now if it has not been. `None`: nothing of it is here.
    ///
    /// # Errors
    /// `Corrupt`, `Unavailable`; it is tried again at the next call.
    pub(super) async fn local(&self, volume: VolumeId) -> Result<Option<Arc<Volume>>> {
        let slot = self.slot(volume);
        // What is not here may yet be brought, by a move or by a person.
        if !slot.initialized() && !self.context.volume_dir(volume).join(CHECKPOINT_FILE).exists() {
            return Ok(None);
        }
        let recover = || Volume::recover(&self.context, volume);
        slot.get_or_try_init(recover).await.cloned().map(Some)
    }

    /// The volume's local side, if it was recovered.
    pub(super) fn known(&self, volume: VolumeId) -> Option<Arc<Volume>> {
        self.slots.lock().get(&volume)?.get().cloned()
    }

    /// All local sides.
    pub(super) fn all(&self) -> Vec<Arc<Volume>> {
        self.slots.lock().values().filter_map(|slot| slot.get().cloned()).collect()
    }

    /// Takes note of a local side.
    pub(super) fn put(&self, volume: Arc<Volume>) {
        let slot = OnceCell::new_with(Some(volume.clone()));
        self.slots.lock().insert(volume.id(), Arc::new(slot));
    }

    /// Forgets a local side and returns it.
    pub(super) fn take(&self, volume: VolumeId) -> Option<Arc<Volume>> {
        self.slots.lock().remove(&volume)?.get().cloned()
    }

    /// The sealed log behind what `to` has asked for last, if it is small enough to go with GRANT.
    async fn encode_tail(&self, volume: VolumeId, to: HostId) -> Result<Bytes> {
        let local = self.here(volume).await?;
        let Some(after) = self.mover().followed_to(volume, to) else { return Ok(Bytes::new()) };
        if after == local.position() {
            return Ok(Bytes::new());
        }
        let batch = local.log_since(after, TAIL_BYTES_MAX).await?;
        let bytes = postcard::to_stdvec(&batch).map_err(|error| {
            Error::new(ErrorKind::Internal, format!("the log's tail does not encode: {error}"))
        })?;
        Ok(if bytes.len() > PAYLOAD_BYTES_MAX { Bytes::new() } else { bytes.into() })
    }

    /// Applies what came with GRANT; tells whether the log then ends at `position`.
    async fn apply_tail(&self, volume: VolumeId, position: Position, tail: &[u8]) -> bool {
        let Some(local) = self.known(volume) else { return false };
        let applied = match postcard::from_bytes::<LogBatch>(tail) {
            Ok(batch) => local.apply_log(&batch).await,
            Err(error) => {
                let context = format!("it does not decode: {error}");
                Err(Error::new(ErrorKind::Invalid, context).with_source(error))
            }
        };
        if let Err(error) = applied {
            tracing::debug!(%volume, %error, "the tail that came with GRANT is not used");
        }
        local.position() == position
    }

    async fn here(&self, volume: VolumeId) -> Result<Arc<Volume>> {
        self.local(volume).await?.ok_or_else(|| {
            let context = format!(
                "nothing of volume {volume} is on this host: its directory has no `checkpoint`"
            );
            Error::new(ErrorKind::NotFound, context)
        })
    }
}

#[async_trait]
impl Hands for Locals {
    fn load(&self, volume: VolumeId) -> Result<Option<LocalState>> {
        let path = self.context.volume_dir(volume).join(STATE_FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("cannot read {}", path.display()), error)),
        };
        LocalState::decode(&bytes).map(Some).map_err(|error| {
            let context = format!(
                "the ownership state {}: {error}; this host does not act on the volume. Restore \
                 the file, or take the volume over on another host",
                path.display()
            );
            Error::new(ErrorKind::Corrupt, context).with_source(error)
        })
    }

    async fn persist(&self, state: LocalState) -> Result<()> {
        let context = self.context.clone();
        let write = move || {
            let dir = context.volume_dir(state.volume);
            if !dir.exists() {
                std::fs::create_dir_all(&dir)
                    .map_err(|error| Error::io(format!("cannot make {}", dir.display()), error))?;
                context.disk.sync_dir(&context.dir.join("volumes"))?;
            }
            context.replace_file(&dir.join(STATE_FILE), &state.encode())
        };
        tokio::task::spawn_blocking(write).await.map_err(|_ended| shutting_down())?
    }

    async fn start(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        incarnation: Incarnation,
        at: Option<Position>,
        sessions: BTreeSet<SessionId>,
    ) -> Result<()> {
        let local = self.here(volume).await?;
        if let Some(at) = at
            && local.position() != at
        {
            let context = format!(
                "the log of volume {volume} ends at {:?} here and should end at {at:?}",
                local.position()
            );
            return Err(Error::new(ErrorKind::Corrupt, context));
        }
        local.keep_sessions(&sessions);
        local.begin_append(epoch, incarnation).await
    }

    async fn stop(&self, volume: VolumeId) -> Result<(Position, u64)> {
        let local = self.here(volume).await?;
        let position = local.stop_append().await?;
        Ok((position, local.size_bytes()))
    }

    async fn tail(&self, volume: VolumeId, to: HostId) -> Bytes {
        match self.encode_tail(volume, to).await {
            Ok(tail) => tail,
            Err(error) => {
                // The taker asks for what it lacks.
                tracing::debug!(%volume, %error, "GRANT goes without the log's tail");
                Bytes::new()
            }
        }
    }

    async fn catch_up(
        &self,
        volume: VolumeId,
        from: HostId,
        position: Position,
        tail: Bytes,
    ) -> Result<()> {
        if !tail.is_empty() && self.apply_tail(volume, position, &tail).await {
            return Ok(());
        }
        let local = self.mover().catch_up(volume, from, position).await?;
        self.put(local);
        Ok(())
    }

    async fn position(&self, volume: VolumeId) -> Result<Position> {
        Ok(self.here(volume).await?.position())
    }

    async fn end_following(&self, volume: VolumeId) -> Result<Position> {
        self.mover().end_following(volume).await;
        Ok(self.here(volume).await?.followed_end().await)
    }

    fn follow(&self, volume: VolumeId, from: HostId) {
        self.mover().follow(volume, from);
    }

    fn unfollow(&self, volume: VolumeId) {
        self.mover().unfollow(volume);
    }

    async fn caught_up(&self, volume: VolumeId) {
        if let Err(error) = self.mover().caught_up(volume).await {
            // Following has ended: nobody waits for this any more.
            tracing::debug!(%volume, %error, "not caught up");
            std::future::pending::<()>().await;
        }
    }

    fn route(&self, volume: VolumeId, route: Route) {
        let route = match route {
            Route::Here { .. } => match self.known(volume) {
                Some(local) => attachment::Route::Local(local),
                None => attachment::Route::Switching,
            },
            Route::Forward { to } => attachment::Route::Forward(to),
            Route::Wait => attachment::Route::Switching,
        };
        self.mover().set_route(volume, route);
    }

    fn right_held(&self, volume: VolumeId, holder: Option<HostId>, shared: bool) {
        self.mover().right_held(volume, holder, shared);
    }

    async fn withdraw_right(&self, volume: VolumeId, attachment: HostId) {
        self.mover().withdraw_right(volume, attachment).await;
    }

    fn session_ended(&self, volume: VolumeId, session: SessionId) {
        // What it has applied stays known until nothing of it runs.
        self.mover().session_ended(volume, session);
    }

    async fn set_tail_aside(
        &self,
        volume: VolumeId,
        ended: Epoch,
        end: Option<Position>,
    ) -> Result<()> {
        if let Some(local) = self.take(volume) {
            local.close().await?;
        }
        if !self.context.volume_dir(volume).join(CHECKPOINT_FILE).exists() {
            return Ok(());
        }
        match end {
            Some(end) => Volume::set_aside_beyond(&self.context, volume, end).await,
            None => {
                let context = self.context.clone();
                let aside = move || set_all_aside(&context, volume, ended);
                tokio::task::spawn_blocking(aside).await.map_err(|_ended| shutting_down())?
            }
        }
    }
}

/// Sets aside, by name, all that is here of a volume but its ownership state: where the ended
/// epoch's log ends is not known, so nothing of it can be trusted to be part of the log.
fn set_all_aside(context: &HostContext, volume: VolumeId, ended: Epoch) -> Result<()> {
    let dir = context.volume_dir(volume);
    let aside = dir.join("aside").join(format!("epoch-{ended}"));
    let fail = |error| Error::io(format!("cannot set {} aside", dir.display()), error);
    std::fs::create_dir_all(&aside).map_err(fail)?;
    for entry in std::fs::read_dir(&dir).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        if name != STATE_FILE && name != "aside" {
            std::fs::rename(dir.join(&name), aside.join(&name)).map_err(fail)?;
        }
    }
    context.disk.sync_dir(&aside)?;
    context.disk.sync_dir(&dir)
}

fn shutting_down() -> Error {
    Error::new(ErrorKind::Closed, "the host is shutting down")
}

#[async_trait]
impl Ownership for Locals {
    fn volume(&self, volume: VolumeId) -> Option<Arc<Volume>> {
        self.known(volume)
    }

    fn opened(&self, volume: Arc<Volume>) {
        self.put(volume);
    }

    fn session(&self, volume: VolumeId, attachment: HostId) -> Option<SessionId> {
        self.owners().ok()?.session_of(volume, attachment)
    }

    fn lineage(&self, volume: VolumeId) -> Epoch {
        let view = self.owners().ok().and_then(|owners| owners.view(volume));
        view.map_or(Epoch(0), |view| view.lineage)
    }

    async fn open_session(
        &self,
        volume: VolumeId,
        attachment: HostId,
        session: SessionId,
        lineage: Epoch,
    ) -> Result<()> {
        self.owners()?.open_session(volume, attachment, session, lineage).await
    }

    async fn close_session(
        &self,
        volume: VolumeId,
        attachment: HostId,
        session: SessionId,
    ) -> Result<()> {
        self.owners()?.close_session(volume, attachment, session).await
    }

    async fn ask_right(&self, volume: VolumeId, attachment: HostId) -> Result<()> {
        self.owners()?.ask_right(volume, attachment).await
    }

    async fn release_right(&self, volume: VolumeId) {
        let released = match self.owners() {
            Ok(owners) => owners.release_right(volume, self.context.host).await,
            Err(error) => Err(error),
        };
        if let Err(error) = released {
            tracing::debug!(%volume, %error, "the write right is released with the host");
        }
    }
}

#[async_trait]
impl Publish for Locals {
    async fn publish(&self, publication: Publication) -> Result<()> {
        let Publication { volume, checkpoint, size_bytes, .. } = publication;
        let (host, site) = (self.context.host, &self.context.site);
        self.directory
            .update_volume(volume, |record| {
                // A checkpoint is published only when all that it names is in the site's store.
                // What this epoch's owner has put there itself needs no second look; what a move
                // has brought does.
                let before = record.homes.get(site).and_then(|home| home.checkpoint.as_ref());
                let complete = before.is_some_and(|before| before.epoch == checkpoint.epoch);
                let published =
                    publish_checkpoint(record, host, site, checkpoint.clone(), complete);
                *record = published.map_err(|refusal| {
                    let context = format!("a checkpoint of volume {volume}: {refusal}");
                    Error::new(ErrorKind::Fenced, context).with_source(refusal)
                })?;
                record.size_bytes = record.size_bytes.max(size_bytes);
                Ok(())
            })
            .await
            .map(|_| ())
    }

    async fn published(&self, volume: VolumeId) -> Result<Option<PublishedCheckpoint>> {
        let record = self.directory.volume(volume);
        let home = record.and_then(|known| known.record.homes.get(&self.context.site).cloned());
        Ok(home.and_then(|home| home.checkpoint))
    }
}
