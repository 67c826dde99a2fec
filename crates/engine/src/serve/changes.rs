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
use pannier_core::ids::{RequestNumber, SessionId};
use pannier_core::units::BLOCK_BYTES;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use tokio::sync::{Notify, oneshot};

/// What becomes of one request.
type Reply = oneshot::Sender<Result<Response>>;

/// The queues of all sessions of a volume.
#[derive(Default)]
pub(crate) struct Changes {
    queues: Mutex<BTreeMap<SessionId, Queue>>,
    /// Told when a queue's runner has ended.
    rested: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: BTreeMap<RequestNumber, Waiting>,
    running: bool,
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
    /// turn. `gate` is that of the session's attachment.
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
        gate: Arc<Gate>,
        (session, number): (SessionId, RequestNumber),
        operations: Vec<Operation>,
    ) -> Result<Response> {
        if number <= applied(volume, session) {
            return Ok(done(volume));
        }
        let (reply, answered) = oneshot::channel();
        let run = {
            let mut queues = self.queues.lock();
            let queue = queues.entry(session).or_default();
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

    /// Executes what can be, until nothing can.
    async fn run(&self, volume: &Volume, gate: &Arc<Gate>, session: SessionId) {
        while let Some((numbers, batch)) = self.take(volume, session) {
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
                Err(_moved) if !volume.is_appending() => {
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

    /// The requests that are next, without a gap, and their numbers; ends the runner when there are
    /// none.
    fn take(
        &self,
        volume: &Volume,
        session: SessionId,
    ) -> Option<(RangeInclusive<RequestNumber>, Batch)> {
        let mut queues = self.queues.lock();
        let queue = queues.get_mut(&session)?;
        let mut through = applied(volume, session);
        let first = RequestNumber(through.0 + 1);
        let behind = queue.waiting.split_off(&RequestNumber(through.0 + 1));
        for (_, waiting) in std::mem::replace(&mut queue.waiting, behind) {
            answer(waiting.replies, &Ok(done(volume)));
        }
        if !volume.is_appending() {
            let moved = Ok(busy("the volume changes its owner"));
            if let Some(queue) = queues.remove(&session) {
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
        if batch.is_empty() {
            queue.running = false;
            if queue.waiting.is_empty() {
                queues.remove(&session);
            }
            return None;
        }
        Some((first..=through, batch))
    }

    /// Drops what waits of a session that is over.
    pub(crate) fn forget(&self, session: SessionId) {
        if let Some(queue) = self.queues.lock().get_mut(&session) {
            queue.waiting.clear();
        }
    }

    /// Ends a session: what waits is not executed, and when this returns nothing of it runs.
    pub(crate) async fn end(&self, session: SessionId) {
        loop {
            let rested = self.rested.notified();
            {
                let mut queues = self.queues.lock();
                let Some(queue) = queues.get_mut(&session) else { return };
                queue.waiting.clear();
                if !queue.running {
                    queues.remove(&session);
                    return;
                }
            }
            rested.await;
        }
    }
}
