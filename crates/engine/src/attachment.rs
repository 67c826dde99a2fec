//! A guest's view of a volume on this host, whoever owns it.
//!
//! Requests go where the route says: to the local volume, inline, or to the owner, or they wait. A
//! guest sees slow I/O, never an error, while the owner is away or changes: whatever is answered by
//! "not here any more" is routed anew.

mod gate;

pub(crate) use gate::Gate;

use crate::error::{Error, Result};
use crate::mover::{Mover, Room, limits};
use crate::port::{BlockDevice, Class, StatusExtent, WriteRequest};
use crate::volume::Volume;
use bytes::Bytes;
use futures::future::BoxFuture;
use pannier_core::ids::HostId;
use pannier_core::movement::RunAhead;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// Where a volume's requests on this host go.
pub enum Route {
    /// They are executed here.
    Local(Arc<Volume>),
    /// They are forwarded to this host, the owner as far as is known.
    Forward(HostId),
    /// They wait: a change of owner is under way, or nothing is known yet.
    Switching,
    /// They fail with this error: the volume is gone.
    Ended(Error),
}

/// Where a request goes now.
enum Way {
    /// To the local volume.
    Here(Arc<Volume>),
    /// To the owner.
    There(HostId),
}

/// A change that a guest asks for.
#[derive(Debug, Clone)]
pub(crate) enum Mutation {
    /// Write bytes.
    Write { offset: u64, data: Bytes, fua: bool },
    /// Give space back.
    Discard { offset: u64, length: u64, fua: bool },
    /// Make zero.
    WriteZeroes { offset: u64, length: u64, allocate: bool, fua: bool },
}

impl Mutation {
    /// Executes it on the local volume.
    pub(crate) async fn apply(&self, volume: &Volume) -> Result<()> {
        match self {
            Self::Write { offset, data, fua } => volume.write(*offset, data.clone(), *fua).await,
            Self::Discard { offset, length, fua } => volume.discard(*offset, *length, *fua).await,
            Self::WriteZeroes { offset, length, allocate, fua } => {
                volume.write_zeroes(*offset, *length, *allocate, *fua).await
            }
        }
    }
}

/// Waits for news of the route, but not for long: what is waited for may also end without any.
pub(crate) async fn news(changes: &mut watch::Receiver<u64>, longest: Duration) {
    // Both outcomes lead to the same: the caller looks again.
    drop(tokio::time::timeout(longest, changes.changed()).await);
}

/// One connection of a guest to a volume. Dropping it is the disconnect; when it was the last on
/// this host, the write right is given back.
pub struct Connection {
    mover: Arc<Mover>,
    room: Arc<Room>,
    reader: Mutex<RunAhead>,
    /// Reads that end before this offset need not be shown to `reader`.
    trigger: AtomicU64,
}

impl Connection {
    pub(crate) fn new(mover: Arc<Mover>, room: Arc<Room>) -> Self {
        let others = room.connections.fetch_add(1, Ordering::AcqRel);
        if others == 0 {
            let lineage = mover.ownership().map(|ownership| ownership.lineage(room.id));
            room.forwarder.attached(lineage.unwrap_or_default());
        }
        Self { mover, room, reader: Mutex::new(RunAhead::new()), trigger: AtomicU64::new(u64::MAX) }
    }

    /// The local volume, when requests are executed here.
    fn local(&self) -> Option<arc_swap::Guard<Arc<Route>>> {
        let route = self.room.route.load();
        matches!(&**route, Route::Local(_)).then_some(route)
    }

    /// Shows a read to the detector of sequential readers, and gets what lies ahead.
    fn note_read(&self, volume: &Arc<Volume>, offset: u64, length: u64) {
        let ahead = {
            let mut reader = self.reader.lock();
            let ahead = reader.read(offset, length, volume.size_bytes());
            self.trigger.store(reader.trigger(), Ordering::Relaxed);
            ahead
        };
        if let Some(range) = ahead {
            self.get_ahead(volume, range.start, range.end - range.start);
        }
    }

    fn get_ahead(&self, volume: &Arc<Volume>, offset: u64, length: u64) {
        for (segment, runs) in volume.missing_in_range(offset, length) {
            let (fetcher, volume) = (self.mover.fetcher.clone(), volume.clone());
            // Detached: a reader never waits for what lies ahead of it, and a failure will be met
            // again by the read itself.
            drop(tokio::spawn(async move {
                drop(fetcher.fetch(&volume, segment, &runs, Class::RunAhead).await);
            }));
        }
    }

    /// A read that goes to the owner while the volume is about to come here: what it needs is also
    /// got by name, as far as the followed map knows. A read that the switch overtakes then finds
    /// it here, and does not wait for a second round trip.
    fn get_early(&self, offset: u64, length: u64) {
        if let Some(volume) = self.room.followed() {
            self.get_ahead(&volume, offset, length);
        }
    }

    /// Executes something on the local volume. `None`: the volume went elsewhere, route anew. What
    /// had begun is then not acknowledged and, done twice, changes nothing: this volume has
    /// stopped.
    async fn here<T>(
        &self,
        volume: &Arc<Volume>,
        work: impl Future<Output = Result<T>>,
    ) -> Option<Result<T>> {
        tokio::select! {
            biased;
            done = work => match done {
                Err(error) if volume.has_left(&error) => {
                    tokio::time::sleep(limits::RECHECK).await;
                    None
                }
                done => Some(done),
            },
            () = self.room.left(volume) => None,
        }
    }

    /// Waits until the attachment may write here, asking for the right.
    async fn ask_right(&self) {
        let mut changes = self.room.changed.subscribe();
        if self.room.gate.is_open() {
            return;
        }
        let asked = match self.mover.ownership() {
            Ok(ownership) => {
                let ask = ownership.ask_right(self.room.id, self.mover.host());
                tokio::select! {
                    asked = ask => asked,
                    _ = changes.changed() => return,
                }
            }
            Err(error) => Err(error),
        };
        if let Err(error) = asked {
            tracing::debug!(volume = %self.room.id, %error, "waits for the write right");
        }
        if !self.room.gate.is_open() {
            news(&mut changes, limits::RETRY_FIRST).await;
        }
    }

    /// Executes a change, wherever the volume is.
    async fn change(&self, mutation: Mutation) -> Result<()> {
        let forwarder = &self.room.forwarder;
        let mut numbered = None;
        loop {
            match self.way().await? {
                Way::Here(_) if numbered.is_some() => {
                    if forwarder.finish_here(&mut numbered, &mutation).await? {
                        return Ok(());
                    }
                }
                Way::Here(volume) => {
                    let Some(_pass) = self.room.gate.enter() else {
                        self.ask_right().await;
                        continue;
                    };
                    if let Some(done) = self.here(&volume, mutation.apply(&volume)).await {
                        return done;
                    }
                }
                Way::There(host) => {
                    if let Some(pieces) = mutation.pieces() {
                        return self.change_all(pieces).await;
                    }
                    let change = forwarder.change(&self.mover, &self.room, host, &mutation);
                    if change.run(&mut numbered).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Executes the pieces of a large change, some at a time. As with any device, a large write is
    /// not atomic. Boxed, because `change` comes here and goes back, one level deep.
    fn change_all(&self, pieces: Vec<Mutation>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            for group in pieces.chunks(limits::FORWARDED_PIECES_MAX) {
                let group = group.iter().map(|piece| self.change(piece.clone()));
                futures::future::try_join_all(group).await?;
            }
            Ok(())
        })
    }

    fn check_open(&self) -> Result<()> {
        if self.mover.closed.is_cancelled() {
            return Err(self.mover.closing("the attachment"));
        }
        self.room.forwarder.check()
    }

    /// Grows the volume, wherever it is.
    ///
    /// # Errors
    /// `Invalid` when the size is smaller, `Closed`, `NoSpace`.
    pub async fn resize(&self, size_bytes: u64) -> Result<()> {
        loop {
            match self.way().await? {
                Way::Here(volume) => {
                    if let Some(done) = self.here(&volume, volume.resize(size_bytes)).await {
                        return done;
                    }
                }
                Way::There(host) => {
                    let forwarder = &self.room.forwarder;
                    if forwarder.resize(&self.mover, &self.room, host, size_bytes).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Where a request goes now; waits while a change of owner is under way.
    async fn way(&self) -> Result<Way> {
        loop {
            self.check_open()?;
            let mut changes = self.room.changed.subscribe();
            match &*self.room.route.load_full() {
                Route::Local(volume) => return Ok(Way::Here(volume.clone())),
                Route::Forward(host) => return Ok(Way::There(*host)),
                Route::Switching => news(&mut changes, limits::WAIT_MAX).await,
                Route::Ended(error) => return Err(error.clone()),
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.room.connections.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let (mover, room) = (self.mover.clone(), self.room.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Detached: nobody waits for a disconnect, and what it gives back is also given back
            // when the next attachment opens its session.
            drop(runtime.spawn(async move { room.forwarder.disconnected(&mover, &room).await }));
        }
    }
}

impl BlockDevice for Connection {
    fn size_bytes(&self) -> u64 {
        match &**self.room.route.load() {
            Route::Local(volume) => volume.size_bytes(),
            Route::Forward(_) | Route::Switching | Route::Ended(_) => {
                self.room.size_bytes.load(Ordering::Relaxed)
            }
        }
    }

    fn read_only(&self) -> bool {
        false
    }

    #[inline]
    fn try_read(&self, offset: u64, into: &mut [u8]) -> Result<bool> {
        let route = self.room.route.load();
        let Route::Local(volume) = &**route else { return Ok(false) };
        match volume.try_read(offset, into) {
            Ok(true) => {
                let length = into.len() as u64;
                if offset.saturating_add(length) >= self.trigger.load(Ordering::Relaxed) {
                    self.note_read(volume, offset, length);
                }
                Ok(true)
            }
            Err(error) if !volume.has_left(&error) => Err(error),
            Ok(false) | Err(_) => Ok(false),
        }
    }

    #[inline]
    fn try_write(&self, writes: &[WriteRequest<'_>]) -> Result<usize> {
        let route = self.room.route.load();
        let Route::Local(volume) = &**route else { return Ok(0) };
        let Some(_pass) = self.room.gate.enter_inline() else { return Ok(0) };
        match volume.try_write(writes) {
            Err(error) if !volume.has_left(&error) => Err(error),
            Err(_moved) => Ok(0),
            done => done,
        }
    }

    async fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        loop {
            match self.way().await? {
                Way::Here(volume) => {
                    self.note_read(&volume, offset, into.len() as u64);
                    if let Some(done) = self.here(&volume, volume.read(offset, into)).await {
                        return done;
                    }
                }
                Way::There(host) => {
                    self.get_early(offset, into.len() as u64);
                    let forwarder = &self.room.forwarder;
                    if forwarder.read(&self.mover, &self.room, host, offset, into).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<()> {
        self.change(Mutation::Write { offset, data, fua }).await
    }

    async fn flush(&self) -> Result<()> {
        loop {
            match self.way().await? {
                Way::Here(volume) => {
                    if let Some(done) = self.here(&volume, volume.flush()).await {
                        return done;
                    }
                }
                Way::There(host) => {
                    if self.room.forwarder.flush(&self.mover, &self.room, host).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn discard(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        self.change(Mutation::Discard { offset, length, fua }).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        allocate: bool,
        fua: bool,
    ) -> Result<()> {
        self.change(Mutation::WriteZeroes { offset, length, allocate, fua }).await
    }

    async fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<StatusExtent>> {
        let asked = (offset, length, extents_max);
        loop {
            match self.way().await? {
                Way::Here(volume) => {
                    let status = volume.block_status(offset, length, extents_max);
                    if let Some(done) = self.here(&volume, status).await {
                        return done;
                    }
                }
                Way::There(host) => {
                    let forwarder = &self.room.forwarder;
                    let found =
                        forwarder.block_status(&self.mover, &self.room, host, asked).await?;
                    if let Some(extents) = found {
                        return Ok(extents);
                    }
                }
            }
        }
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<()> {
        if let Some(route) = self.local()
            && let Route::Local(volume) = &**route
        {
            self.get_ahead(volume, offset, length);
        }
        Ok(())
    }
}
