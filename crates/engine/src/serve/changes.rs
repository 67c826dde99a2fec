//! Forwarded changes at the owner: executed once, in the order of their numbers, several with one
//! flush.
//!
//! Each session has a queue by number. Whatever stands there without a gap behind what was applied
//! is executed as one entry of the log with the last of its numbers, so that one flush makes many
//! requests durable. A request that came before its predecessors waits for them.

use crate::attachment::Gate;
use crate::error::{Error, Result};
use crate::message::Response;
use crate::mover::limits;
use crate::volume::Volume;
use crate::volume::log::Operation;
use pannier_core::ids::{HostId, RequestNumber, SessionId};
use pannier_core::units::BLOCK_BYTES;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use tokio::sync::{Notify, oneshot};

/// What becomes of one request.
type Reply = oneshot::Sender<Result<Response>>;

/// The queues of all sessions of a volume.
#[derive(Default)]
pub(crate) struct Changes {
    state: Mutex<State>,
    /// Told when a queue's runner has ended.
    rested: Notify,
}

#[derive(Default)]
struct State {
    queues: BTreeMap<SessionId, Queue>,
    /// Sessions that were ended here, the newest of them: none of their requests is queued any
    /// more.
    ended: BTreeSet<SessionId>,
}

struct Queue {
    attachment: HostId,
    waiting: BTreeMap<RequestNumber, Waiting>,
    running: bool,
}

/// What a runner does next.
struct Taken {
    /// Requests that were applied before, and came again.
    repeated: Vec<Waiting>,
    numbers: RangeInclusive<RequestNumber>,
    batch: Batch,
}

impl State {
    fn end(&mut self, session: SessionId) {
        self.ended.insert(session);
        // Ids grow with time: the smallest are the oldest.
        while self.ended.len() > limits::ENDED_SESSIONS_MAX {
            self.ended.pop_first();
        }
        if let Some(queue) = self.queues.get_mut(&session) {
            queue.waiting.clear();
        }
    }

    /// Whether an ended session of the attachment still executes what it had begun.
    fn outlived(&self, attachment: HostId) -> bool {
        let mut running = self.queues.iter().filter(|(_, queue)| queue.running);
        running.any(|(id, queue)| queue.attachment == attachment && self.ended.contains(id))
    }
}

struct Waiting {
    operations: Vec<Operation>,
    /// The request and those of its twins that came while it waited.
    replies: Vec<Reply>,
}

/// Requests that are executed as one, each with who waits for it.
type Batch = Vec<(RequestNumber, Waiting)>;

impl Waiting {
    /// Whether it changes whole blocks only.
    fn is_whole(&self) -> bool {
        self.operations.iter().all(|operation| {
            let (offset, length) = match operation {
                Operation::Write { offset, data } => (*offset, data.len() as u64),
                Operation::Discard { offset, length }
                | Operation::WriteZeroes { offset, length, .. } => (*offset, *length),
            };
            offset.is_multiple_of(BLOCK_BYTES) && length.is_multiple_of(BLOCK_BYTES)
        })
    }

    fn bytes(&self) -> usize {
        let length = |operation: &Operation| match operation {
            Operation::Write { data, .. } => data.len(),
            Operation::Discard { .. } | Operation::WriteZeroes { .. } => 0,
        };
        self.operations.iter().map(length).sum()
    }
}

fn applied(volume: &Volume, session: SessionId) -> RequestNumber {
    volume.sessions().get(&session).copied().unwrap_or_default()
}

fn busy(cause: &str) -> Response {
    Response::Busy { cause: cause.to_owned() }
}

fn done(volume: &Volume) -> Response {
    Response::Done { size_bytes: volume.size_bytes() }
}

fn answer(replies: Vec<Reply>, with: &Result<Response>) {
    for reply in replies {
        // Whoever has gone meanwhile will ask again.
        drop(reply.send(with.clone()));
    }
}

impl Changes {
    /// Executes a request of a session that is open here, in its turn; waits a bounded time for the
    /// turn, and for what a former session of the attachment has begun. `gate` is that of the
    /// session's attachment.
    ///
    /// # Errors
    /// As [`Volume::write_in_session`]; then it was not applied, and its number stays free.
    ///
    /// # Cancel safety
    /// A request whose future is dropped is executed in its turn or not; asked again under its
    /// number it is executed once.
    pub(crate) async fn execute(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        (attachment, gate): (HostId, Arc<Gate>),
        (session, number): (SessionId, RequestNumber),
        operations: Vec<Operation>,
    ) -> Result<Response> {
        let former = self.former_rests(attachment);
        if tokio::time::timeout(limits::BUSY_WAIT, former).await.is_err() {
            return Ok(busy("a former session of this attachment still executes a request"));
        }
        let (reply, answered) = oneshot::channel();
        let run = {
            let mut state = self.state.lock();
            if state.ended.contains(&session) {
                return Ok(busy("the session was closed"));
            }
            let queue = state.queues.entry(session).or_insert_with(|| Queue {
                attachment,
                waiting: BTreeMap::new(),
                running: false,
            });
            if queue.waiting.len() >= limits::WAITING_MAX && !queue.waiting.contains_key(&number) {
                return Ok(busy("too many requests of this session wait for their turn"));
            }
            let replies = queue.waiting.remove(&number).map(|twin| twin.replies);
            let mut replies = replies.unwrap_or_default();
            replies.push(reply);
            queue.waiting.insert(number, Waiting { operations, replies });
            !std::mem::replace(&mut queue.running, true)
        };
        if run {
            let (changes, volume) = (self.clone(), volume.clone());
            // Detached: what has begun ends, whatever becomes of the request's stream.
            drop(tokio::spawn(async move { changes.run(&volume, &gate, session).await }));
        }
        match tokio::time::timeout(limits::BUSY_WAIT, answered).await {
            Ok(Ok(response)) => response,
            Ok(Err(_ended)) => Ok(busy("the session was closed")),
            Err(_elapsed) => Ok(busy("requests before this one have not come")),
        }
    }

    /// Waits until no ended session of the attachment executes anything: what it had begun must not
    /// land on top of what the attachment's newer session is acknowledged.
    async fn former_rests(&self, attachment: HostId) {
        loop {
            let rested = self.rested.notified();
            tokio::pin!(rested);
            rested.as_mut().enable();
            if !self.state.lock().outlived(attachment) {
                return;
            }
            rested.await;
        }
    }

    /// Executes what can be, until nothing can.
    async fn run(&self, volume: &Volume, gate: &Arc<Gate>, session: SessionId) {
        while let Some(Taken { repeated, numbers, batch }) = self.take(volume, session) {
            if !repeated.is_empty() {
                let again = Self::done_before(volume).await;
                repeated.into_iter().for_each(|waiting| answer(waiting.replies, &again));
            }
            if batch.is_empty() {
                continue;
            }
            let Some(_pass) = gate.enter() else {
                let refused = Ok(busy("another attachment took the write right"));
                batch.into_iter().for_each(|(_, waiting)| answer(waiting.replies, &refused));
                continue;
            };
            let all: Vec<Operation> =
                batch.iter().flat_map(|(_, waiting)| waiting.operations.clone()).collect();
            match volume.write_in_session(session, numbers, &all).await {
                Ok(()) => {
                    let done = Ok(done(volume));
                    batch.into_iter().for_each(|(_, waiting)| answer(waiting.replies, &done));
                }
                Err(error) => Self::one_by_one(volume, session, batch, error).await,
            }
        }
        self.rested.notify_waiters();
    }

    /// The answer to requests that were applied before: applied is not yet durable, and what is
    /// acknowledged to a forwarder must be.
    async fn done_before(volume: &Volume) -> Result<Response> {
        match volume.flush_log().await {
            Ok(()) => Ok(done(volume)),
            Err(error) if volume.has_left(&error) => Ok(busy("the volume changes its owner")),
            Err(error) => Err(error),
        }
    }

    /// Executes the requests of a batch that failed, each by itself, up to the one that fails.
    async fn one_by_one(
        volume: &Volume,
        session: SessionId,
        batch: Vec<(RequestNumber, Waiting)>,
        error: Error,
    ) {
        let mut first = (batch.len() == 1).then_some(error);
        let mut requests = batch.into_iter();
        for (number, waiting) in requests.by_ref() {
            let done_alone = match first.take() {
                Some(error) => Err(error),
                None => {
                    volume.write_in_session(session, number..=number, &waiting.operations).await
                }
            };
            match done_alone {
                Ok(()) => answer(waiting.replies, &Ok(done(volume))),
                Err(error) if volume.has_left(&error) => {
                    answer(waiting.replies, &Ok(busy("the volume changes its owner")));
                    break;
                }
                Err(error) => {
                    answer(waiting.replies, &Err(error));
                    break;
                }
            }
        }
        // Nothing behind the failed one may be executed before its number is used up.
        for (_, waiting) in requests {
            answer(waiting.replies, &Ok(busy("a request before this one failed")));
        }
    }

    /// The requests that are next, without a gap, and those that were applied before; ends the
    /// runner when there are none.
    fn take(&self, volume: &Volume, session: SessionId) -> Option<Taken> {
        let mut state = self.state.lock();
        let queue = state.queues.get_mut(&session)?;
        let mut through = applied(volume, session);
        let first = RequestNumber(through.0 + 1);
        let behind = queue.waiting.split_off(&first);
        let repeated: Vec<Waiting> =
            std::mem::replace(&mut queue.waiting, behind).into_values().collect();
        if !volume.is_appending() {
            let moved = Ok(busy("the volume changes its owner"));
            repeated.into_iter().for_each(|waiting| answer(waiting.replies, &moved));
            if let Some(queue) = state.queues.remove(&session) {
                queue.waiting.into_values().for_each(|waiting| answer(waiting.replies, &moved));
            }
            return None;
        }
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(first) = queue.waiting.first_entry() {
            if first.key().0 != through.0 + 1 || bytes >= limits::BATCH_BYTES_MAX {
                break;
            }
            // A part of a block is written over what the block holds: over the requests before it.
            if !batch.is_empty() && !first.get().is_whole() {
                break;
            }
            through = *first.key();
            let waiting = first.remove();
            bytes += waiting.bytes();
            batch.push((through, waiting));
        }
        if batch.is_empty() && repeated.is_empty() {
            queue.running = false;
            if queue.waiting.is_empty() {
                state.queues.remove(&session);
            }
            return None;
        }
        Some(Taken { repeated, numbers: first..=through, batch })
    }

    /// A session is over: nothing of it is queued any more, and what waits is dropped.
    pub(crate) fn forget(&self, session: SessionId) {
        self.state.lock().end(session);
    }

    /// Ends a session: what waits is not executed, and when this returns nothing of it runs.
    pub(crate) async fn end(&self, session: SessionId) {
        loop {
            let rested = self.rested.notified();
            tokio::pin!(rested);
            rested.as_mut().enable();
            {
                let mut state = self.state.lock();
                state.end(session);
                if state.queues.get(&session).is_none_or(|queue| !queue.running) {
                    state.queues.remove(&session);
                    return;
                }
            }
            rested.await;
        }
    }
}
