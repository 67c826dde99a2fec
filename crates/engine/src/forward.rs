//! Forwarding to the owner: sessions and numbered requests, each executed exactly once.
//!
//! An attachment has one session from its first forwarded change to its last disconnect. Every
//! change that is forwarded takes the session's next number, and keeps it for ever: it is repeated
//! under it at whichever host owns the volume, this one included, until it is answered. The owner
//! writes the number into the log together with what the request does, so no owner executes it
//! twice. A number that is not going to be used (its request failed, or its guest has gone) is
//! filled by a request that does nothing, so that the numbers that owners remember stay dense.

mod numbered;

use crate::attachment::{Mutation, Route, news};
use crate::error::{Error, ErrorKind, Result};
use crate::message::{ExtentKind, FORWARD_BYTES_MAX, ForwardOp, Opening, Request, Response};
use crate::mover::{Mover, Room, limits};
use crate::port::{Class, ExtentState, StatusExtent};
use bytes::Bytes;
use numbered::Numbered;
use pannier_core::ids::{Epoch, HostId, RequestNumber, SessionId};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::Semaphore;

/// What of an attachment concerns forwarding.
pub(crate) struct Forwarder {
    state: Mutex<State>,
    window: Arc<Semaphore>,
    ended: AtomicBool,
    /// Failures in a row, for the pause before the next try.
    failures: AtomicU32,
}

#[derive(Default)]
struct State {
    session: Option<Session>,
    /// The newest session id used.
    newest: u64,
    /// Epoch of the last takeover that was known when the guest connected.
    lineage: Epoch,
    /// The owner as a peer told it, newer than the route.
    hint: Option<HostId>,
    /// Why the attachment has ended.
    ended: Option<String>,
}

#[derive(Clone, Copy)]
struct Session {
    id: SessionId,
    last: RequestNumber,
    /// Where it was opened last; it was opened before when there is one.
    at: Option<HostId>,
}

impl Default for Forwarder {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            window: Arc::new(Semaphore::new(limits::FORWARDED_MAX)),
            ended: AtomicBool::new(false),
            failures: AtomicU32::new(0),
        }
    }
}

/// One try of a change at a host.
pub(crate) struct Change<'a> {
    forwarder: &'a Forwarder,
    mover: &'a Arc<Mover>,
    room: &'a Arc<Room>,
    host: HostId,
    mutation: &'a Mutation,
}

impl Mutation {
    /// As a message and its payload.
    fn forwarded(&self) -> (ForwardOp, Bytes) {
        match self {
            Self::Write { offset, data, .. } => {
                (ForwardOp::Write { offset: *offset }, data.clone())
            }
            Self::Discard { offset, length, .. } => {
                (ForwardOp::Discard { offset: *offset, length: *length }, Bytes::new())
            }
            Self::WriteZeroes { offset, length, allocate, .. } => {
                let (offset, length, allocate) = (*offset, *length, *allocate);
                (ForwardOp::WriteZeroes { offset, length, allocate }, Bytes::new())
            }
        }
    }

    /// The pieces that fit into messages, when it does not fit into one.
    pub(crate) fn pieces(&self) -> Option<Vec<Self>> {
        let Self::Write { offset, data, fua } = self else { return None };
        let piece = FORWARD_BYTES_MAX as usize;
        if data.len() <= piece {
            return None;
        }
        let starts = (0..data.len()).step_by(piece);
        Some(
            starts
                .map(|start| Self::Write {
                    offset: offset + start as u64,
                    data: data.slice(start..data.len().min(start + piece)),
                    fua: *fua,
                })
                .collect(),
        )
    }
}

impl Change<'_> {
    /// Tries once. `true`: it is done and durable. `false`: route anew and try again, with the same
    /// `numbered`.
    ///
    /// # Errors
    /// What the owner failed with, when repeating it cannot help.
    pub(crate) async fn run(&self, numbered: &mut Option<Numbered>) -> Result<bool> {
        let mut changes = self.room.changed.subscribe();
        let host = self.forwarder.target(self.host);
        if host == self.mover.host() {
            news(&mut changes, limits::RECHECK).await;
            return Ok(false);
        }
        if numbered.is_none() {
            *numbered = Some(self.forwarder.number(self.mover, self.room).await?);
        }
        let Some(current) = numbered.as_ref() else { return Ok(false) };
        let (op, payload) = self.mutation.forwarded();
        let call = self.mover.peers.call(host, Class::Demand, current.request(op, host), payload);
        let answer = tokio::select! {
            answer = call => answer,
            _ = changes.changed() => return Ok(false),
        };
        match answer {
            Ok((Response::Done { size_bytes }, _)) => {
                self.forwarder.wrote(self.room, current.session, host, size_bytes);
                if let Some(numbered) = numbered.take() {
                    numbered.answered();
                }
                Ok(true)
            }
            Ok((Response::NoSession { current: newest }, _)) => {
                let session = current.session;
                if let Some(numbered) = numbered.take() {
                    numbered.answered();
                }
                self.forwarder.refused(session, newest).map(|()| false)
            }
            other => {
                let again =
                    self.forwarder.again(&mut changes, (self.mover.host(), host), other).await;
                // The number is filled when `numbered` is dropped with the request.
                again.map(|()| false)
            }
        }
    }
}

impl Forwarder {
    /// A change, to be tried at `host`.
    pub(crate) fn change<'a>(
        &'a self,
        mover: &'a Arc<Mover>,
        room: &'a Arc<Room>,
        host: HostId,
        mutation: &'a Mutation,
    ) -> Change<'a> {
        Change { forwarder: self, mover, room, host, mutation }
    }

    /// Executes a change here, at the new owner, that may have been executed by a former one: under
    /// its number, in its turn. `false`: route anew and try again.
    ///
    /// # Errors
    /// What it failed with, when repeating it cannot help.
    pub(crate) async fn finish_here(
        &self,
        numbered: &mut Option<Numbered>,
        mutation: &Mutation,
    ) -> Result<bool> {
        let Some(current) = numbered.as_ref() else { return Ok(false) };
        let mut changes = current.room.changed.subscribe();
        let (op, payload) = mutation.forwarded();
        match current.here(op, payload).await? {
            Response::Done { .. } => {
                if let Some(numbered) = numbered.take() {
                    numbered.answered();
                }
                Ok(true)
            }
            Response::NoSession { current: newest } => {
                let session = current.session;
                if let Some(numbered) = numbered.take() {
                    numbered.answered();
                }
                self.refused(session, newest).map(|()| false)
            }
            _ => {
                news(&mut changes, limits::RETRY_FIRST).await;
                Ok(false)
            }
        }
    }

    /// Reads at `host`. `false`: route anew and try again.
    ///
    /// # Errors
    /// What the owner failed with, when repeating it cannot help.
    pub(crate) async fn read(
        &self,
        mover: &Arc<Mover>,
        room: &Arc<Room>,
        host: HostId,
        offset: u64,
        into: &mut [u8],
    ) -> Result<bool> {
        let piece = FORWARD_BYTES_MAX as usize;
        let mut start = offset;
        for group in into.chunks_mut(piece * limits::FORWARDED_PIECES_MAX) {
            let mut reads = Vec::new();
            for part in group.chunks_mut(piece) {
                let length = part.len() as u64;
                reads.push(self.read_piece(mover, room, host, start, part));
                start += length;
            }
            if !futures::future::try_join_all(reads).await?.into_iter().all(|done| done) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn read_piece(
        &self,
        mover: &Arc<Mover>,
        room: &Arc<Room>,
        host: HostId,
        offset: u64,
        into: &mut [u8],
    ) -> Result<bool> {
        let request = Request::Read { volume: room.id, offset, length: into.len() as u32 };
        match self.ask(mover, room, self.target(host), request).await? {
            Some((Response::Data { size_bytes }, bytes)) if bytes.len() == into.len() => {
                room.size_bytes.store(size_bytes, Ordering::Relaxed);
                into.copy_from_slice(&bytes);
                Ok(true)
            }
            Some(_other) => Err(unexpected(room, host, "a read")),
            None => Ok(false),
        }
    }

    /// Asks for block states at `host`: offset, length, most extents. `None`: route anew.
    ///
    /// # Errors
    /// What the owner failed with, when repeating it cannot help.
    pub(crate) async fn block_status(
        &self,
        mover: &Arc<Mover>,
        room: &Arc<Room>,
        host: HostId,
        (offset, length, extents_max): (u64, u64, usize),
    ) -> Result<Option<Vec<StatusExtent>>> {
        let extents_max = extents_max.min(limits::EXTENTS_MAX) as u32;
        let request = Request::BlockStatus { volume: room.id, offset, length, extents_max };
        let extent = |(length, kind)| StatusExtent {
            length,
            state: match kind {
                ExtentKind::Data => ExtentState::Data,
                ExtentKind::Zero => ExtentState::Zero,
                ExtentKind::Hole => ExtentState::Hole,
            },
        };
        match self.ask(mover, room, self.target(host), request).await? {
            Some((Response::Extents(runs), _)) => Ok(Some(runs.into_iter().map(extent).collect())),
            Some(_other) => Err(unexpected(room, host, "a status request")),
            None => Ok(None),
        }
    }

    /// Grows the volume at `host`. `false`: route anew.
    ///
    /// # Errors
    /// What the owner failed with, when repeating it cannot help.
    pub(crate) async fn resize(
        &self,
        mover: &Arc<Mover>,
        room: &Arc<Room>,
        host: HostId,
        size_bytes: u64,
    ) -> Result<bool> {
        let request = Request::Resize { volume: room.id, size_bytes };
        self.done(mover, room, host, request, "a resize").await
    }

    /// Flushes at `host` what any attachment has written there. This one's own changes are durable
    /// when they are acknowledged, but another may have written since. `false`: route anew.
    ///
    /// # Errors
    /// What the owner failed with, when repeating it cannot help.
    pub(crate) async fn flush(
        &self,
        mover: &Arc<Mover>,
        room: &Arc<Room>,
        host: HostId,
    ) -> Result<bool> {
        self.done(mover, room, host, Request::Flush { volume: room.id }, "a flush").await
    }

    async fn done(
        &self,
        mover: &Arc<Mover>,
        room: &Arc<Room>,
        host: HostId,
        request: Request,
        what: &str,
    ) -> Result<bool> {
        match self.ask(mover, room, self.target(host), request).await? {
            Some((Response::Done { size_bytes }, _)) => {
                room.size_bytes.store(size_bytes, Ordering::Relaxed);
                Ok(true)
            }
            Some(_other) => Err(unexpected(room, host, what)),
            None => Ok(false),
        }
    }

    /// Sends a request that may be repeated at will to exactly `host`. `None`: route anew.
    async fn ask(
        &self,
        mover: &Arc<Mover>,
        room: &Arc<Room>,
        host: HostId,
        request: Request,
    ) -> Result<Option<(Response, Bytes)>> {
        let mut changes = room.changed.subscribe();
        if host == mover.host() {
            news(&mut changes, limits::RECHECK).await;
            return Ok(None);
        }
        let call = mover.peers.call(host, Class::Demand, request, Bytes::new());
        let answer = tokio::select! {
            answer = call => answer,
            _ = changes.changed() => return Ok(None),
        };
        match answer {
            Ok((Response::Moved { .. } | Response::Busy { .. }, _)) | Err(_) => {
                self.again(&mut changes, (mover.host(), host), answer).await.map(|()| None)
            }
            Ok(answer) => {
                self.failures.store(0, Ordering::Relaxed);
                Ok(Some(answer))
            }
        }
    }

    /// What to do about an answer that is none: note where the owner is, pause, try again; or fail.
    async fn again(
        &self,
        changes: &mut tokio::sync::watch::Receiver<u64>,
        (own, host): (HostId, HostId),
        answer: Result<(Response, Bytes)>,
    ) -> Result<()> {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        match answer {
            Ok((Response::Moved { owner }, _)) => {
                tracing::debug!(%host, ?owner, "the volume has moved");
                // The target of a switch may not know yet that it owns what this host gave away: it
                // points back here, which the route knows better.
                let elsewhere = owner.filter(|owner| *owner != host && *owner != own);
                self.state.lock().hint = elsewhere;
                // The first redirection is followed at once; two hosts that point at each other
                // are waited for.
                if elsewhere.is_some() && failures == 0 {
                    return Ok(());
                }
            }
            Ok((Response::Busy { cause }, _)) => {
                tracing::debug!(%host, cause, "the owner asks to wait");
            }
            Ok(_other) => {
                let context = format!("host {host} gave an answer that does not fit a change");
                return Err(Error::new(ErrorKind::Internal, context));
            }
            Err(error) => {
                if !may_pass(error.kind()) {
                    return Err(error);
                }
                if failures >= limits::HINT_FAILURES_MAX {
                    self.state.lock().hint = None;
                }
                tracing::debug!(%host, %error, "the owner cannot be reached, will ask again");
            }
        }
        news(changes, pause(failures)).await;
        Ok(())
    }

    /// Where to send: the owner as a peer told it, else where the route says.
    fn target(&self, host: HostId) -> HostId {
        self.state.lock().hint.unwrap_or(host)
    }

    /// Whether this is the attachment's session.
    pub(crate) fn is_current(&self, session: SessionId) -> bool {
        self.state.lock().session.is_some_and(|current| current.id == session)
    }

    /// A change was executed at `host`: its session is open there.
    fn wrote(&self, room: &Room, session: SessionId, host: HostId, size_bytes: u64) {
        room.size_bytes.store(size_bytes, Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
        let mut state = self.state.lock();
        if let Some(current) = state.session.as_mut().filter(|current| current.id == session) {
            current.at = Some(host);
        }
        state.newest = state.newest.max(session.0);
    }

    /// Takes the session's next number, when the window has room.
    async fn number(&self, mover: &Arc<Mover>, room: &Arc<Room>) -> Result<Numbered> {
        let permit = self.window.clone().acquire_owned().await;
        let permit = permit.map_err(|_closed| mover.closing("forwarding"))?;
        let mut state = self.state.lock();
        let newest = state.newest;
        let session = state.session.get_or_insert_with(|| Session {
            id: draw_session(newest),
            last: RequestNumber(0),
            at: None,
        });
        session.last.0 += 1;
        Ok(Numbered {
            mover: mover.clone(),
            room: room.clone(),
            session: session.id,
            number: session.last,
            permit: Some(permit),
        })
    }

    /// What opens a session at `host`, while it is not known to be open there.
    fn opening(&self, session: SessionId, host: HostId) -> Option<Opening> {
        let state = self.state.lock();
        let current = state.session.filter(|current| current.id == session)?;
        let resumed = current.at.is_some();
        (current.at != Some(host)).then_some(Opening { resumed, lineage: state.lineage })
    }

    /// A session is not open at the owner: one that never was is drawn anew, larger; for one that
    /// was the attachment ends.
    ///
    /// # Errors
    /// `Fenced` when the attachment has ended.
    fn refused(&self, session: SessionId, newest: Option<SessionId>) -> Result<()> {
        {
            let mut state = self.state.lock();
            state.newest = state.newest.max(newest.map_or(0, |newest| newest.0));
            match state.session {
                Some(current) if current.id == session && current.at.is_none() => {
                    state.session = None;
                    return Ok(());
                }
                Some(current) if current.id == session => {}
                _ => return Ok(()),
            }
        }
        self.end("its session was ended at the owner, by a takeover");
        self.check()
    }

    /// Tells that the route has changed: what peers told about the owner is older.
    pub(crate) fn route_changed(&self) {
        self.state.lock().hint = None;
        self.failures.store(0, Ordering::Relaxed);
    }

    /// Tells that the first guest of a new attachment has connected, and the epoch of the last
    /// takeover that is known.
    pub(crate) fn attached(&self, lineage: Epoch) {
        let mut state = self.state.lock();
        state.ended = None;
        state.lineage = lineage;
        self.ended.store(false, Ordering::Release);
    }

    /// Ends the attachment: its guest must not go on.
    pub(crate) fn end(&self, cause: &str) {
        let mut state = self.state.lock();
        state.session = None;
        state.ended = Some(cause.to_owned());
        self.ended.store(true, Ordering::Release);
    }

    /// Whether the guest may go on.
    ///
    /// # Errors
    /// `Fenced` when the attachment has ended.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.ended.load(Ordering::Acquire) {
            return Ok(());
        }
        let state = self.state.lock();
        let cause = state.ended.as_deref().unwrap_or("it has ended");
        let context = format!(
            "this attachment may not go on: {cause}; stop the guest, check what it lost, and \
             connect anew"
        );
        Err(Error::new(ErrorKind::Fenced, context))
    }

    /// The last connection has ended: gives back what the attachment holds.
    pub(crate) async fn disconnected(&self, mover: &Arc<Mover>, room: &Arc<Room>) {
        let session = self.state.lock().session.take();
        for _attempt in 0..limits::RELEASE_TRIES_MAX {
            let connected = room.connections.load(Ordering::Acquire) > 0;
            if connected || mover.closed.is_cancelled() {
                return;
            }
            let mut changes = room.changed.subscribe();
            let route = room.route.load_full();
            match (&*route, session) {
                (Route::Local(_), _) => {
                    if let Ok(ownership) = mover.ownership() {
                        ownership.release_right(room.id).await;
                    }
                    return;
                }
                (Route::Forward(host), Some(session)) => {
                    let request = Request::CloseSession { volume: room.id, session: session.id };
                    let asked = self.ask(mover, room, self.target(*host), request).await;
                    if !matches!(asked, Ok(None)) {
                        return;
                    }
                }
                (Route::Switching, _) => {
                    news(&mut changes, limits::RETRY_MAX).await;
                }
                _ => return,
            }
        }
    }
}

/// Whether an error at the owner can pass by itself, so that the request is to be repeated.
fn may_pass(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::Unavailable | ErrorKind::Fenced | ErrorKind::NotFound | ErrorKind::Closed => {
            true
        }
        ErrorKind::Invalid | ErrorKind::Corrupt | ErrorKind::NoSpace | ErrorKind::Internal => false,
    }
}

fn pause(failures: u32) -> Duration {
    (limits::RETRY_FIRST * 2_u32.saturating_pow(failures.min(8))).min(limits::RETRY_MAX)
}

fn unexpected(room: &Room, host: HostId, what: &str) -> Error {
    let context = format!(
        "volume {}: host {host} answered {what} with something else; upgrade the older host",
        room.id
    );
    Error::new(ErrorKind::Internal, context)
}

/// A session id that is larger than all before it of this host, also of earlier daemons (44 bits of
/// milliseconds), and in all likelihood different from those of other hosts (20 random bits).
fn draw_session(newest: u64) -> SessionId {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let drawn = ((since.as_millis() as u64) << 20) | u64::from(rand::random::<u32>() & 0xf_ffff);
    SessionId(drawn.max(newest + 1))
}
