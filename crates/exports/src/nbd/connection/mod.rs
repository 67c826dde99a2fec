//! One connection in transmission phase.
//!
//! The socket is read into one buffer. All complete requests in it are executed in a batch:
//! consecutive writes as one call, reads straight into the reply buffer; all their replies go out
//! in one `writev`. What would have to wait is queued, runs concurrently within bounds, and its
//! replies join as they come. All of it is one task without locks.

mod execute;
mod queued;
mod receive;
mod replies;

use super::codec::Malformed;
use super::handshake::Session;
use super::limits;
use super::socket::Socket;
use execute::{Desk, Pause};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use metrics::Counter;
use pannier_engine::error::Error;
use pannier_engine::port::BlockDevice;
use queued::{Finished, Queued, Quota, Stall, perform};
use receive::Receive;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, PollSemaphore};

/// Why a connection ended before the client had said goodbye.
#[derive(Debug, thiserror::Error)]
pub(super) enum Break {
    /// The socket failed, or ended in the middle of a message.
    #[error("connection lost: {0}")]
    Lost(#[source] io::Error),
    /// What the client sent is not the protocol.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The client took too long in the handshake.
    #[error("it did not choose an export in time")]
    Slow,
    /// The client does not read its replies while others wait for the memory they take.
    #[error("it reads none of its replies, and the memory they take is needed")]
    Unread,
    /// `EXPORT_NAME` has no error reply: the connection is all that can be refused.
    #[error("{0}")]
    Refused(#[source] Error),
}

/// What all connections count together.
#[derive(Clone)]
pub(super) struct Counters {
    read_bytes: Counter,
    write_bytes: Counter,
    errors: Counter,
}

impl Counters {
    pub(super) fn new() -> Self {
        Self {
            read_bytes: metrics::counter!("pannier_nbd_read_bytes_total"),
            write_bytes: metrics::counter!("pannier_nbd_written_bytes_total"),
            errors: metrics::counter!("pannier_nbd_refused_requests_total"),
        }
    }
}

/// What the connections of a server share.
#[derive(Clone)]
pub(super) struct Shared {
    /// Memory for queued requests, in units of [`limits::CHARGE_UNIT_BYTES`].
    pub(super) memory: Arc<Semaphore>,
    pub(super) counters: Counters,
    pub(super) shutdown: CancellationToken,
}

/// Serves a connection until the client disconnects, breaks, or the server shuts down; then lets
/// queued requests end, for a bounded time, before it drops the device.
///
/// # Errors
/// When the client did not end the session itself.
pub(super) async fn serve<D: BlockDevice>(
    socket: Socket,
    session: Session<D>,
    shared: &Shared,
) -> Result<(), Break> {
    let device = Arc::new(session.device);
    let quota = Quota::new(Arc::clone(&shared.memory));
    let counters = shared.counters.clone();
    let desk =
        Desk::new(Arc::clone(&device), session.structured, session.allocation, quota, counters);
    let mut connection = Connection {
        socket,
        receive: Receive::new(),
        desk,
        memory: PollSemaphore::new(Arc::clone(&shared.memory)),
        reading: true,
        ended: false,
        unread: None,
    };
    let mut queue = FuturesUnordered::new();
    let start = |queued| perform(Arc::clone(&device), queued);
    let ended = connection.run(&mut queue, start, &shared.shutdown).await;
    drop(connection);
    let linger = async { while queue.next().await.is_some() {} };
    if tokio::time::timeout(limits::LINGER_TIME_MAX, linger).await.is_err() {
        tracing::info!(abandoned = queue.len(), "NBD requests of a closed connection abandoned");
    }
    ended
}

struct Connection<D> {
    socket: Socket,
    receive: Receive,
    desk: Desk<D>,
    memory: PollSemaphore,
    /// Whether more is taken from the socket.
    reading: bool,
    /// Whether the client has closed its side.
    ended: bool,
    /// Runs while replies in memory that is shared wait for the client to read.
    unread: Option<Pin<Box<Sleep>>>,
}

impl<D: BlockDevice> Connection<D> {
    async fn run<F: Future<Output = Finished>>(
        &mut self,
        queue: &mut FuturesUnordered<F>,
        start: impl Fn(Queued) -> F,
        shutdown: &CancellationToken,
    ) -> Result<(), Break> {
        let mut stop = pin!(shutdown.cancelled());
        loop {
            let pause = self.desk.execute(&mut self.receive)?;
            queue.extend(self.desk.starting.drain(..).map(&start));
            if pause == Pause::Disconnect {
                self.reading = false;
            }
            let exhausted = matches!(pause, Pause::Disconnect | Pause::Incomplete(_));
            let idle = queue.is_empty() && self.desk.replies.is_empty();
            if !self.reading && exhausted && idle {
                let cut = self.ended && self.desk.is_amid(&self.receive);
                let lost = || Break::Lost(io::ErrorKind::UnexpectedEof.into());
                return if cut { Err(lost()) } else { Ok(()) };
            }
            poll_fn(|cx| self.step(cx, queue, pause, stop.as_mut())).await?;
        }
    }

    /// Drops a client that takes none of its replies while they fill the memory that all share.
    fn check_unread(&mut self, cx: &mut Context<'_>) -> Result<(), Break> {
        if self.desk.replies.is_empty() || !self.desk.quota.holds_memory() {
            self.unread = None;
            return Ok(());
        }
        let patience = || Box::pin(tokio::time::sleep(limits::UNREAD_TIME_MAX));
        while self.unread.get_or_insert_with(patience).as_mut().poll(cx).is_ready() {
            if self.desk.quota.is_in_the_way() {
                return Err(Break::Unread);
            }
            self.unread = None;
        }
        Ok(())
    }

    /// Does what can be done on the socket and the queue; ready when anything was.
    fn step<F: Future<Output = Finished>>(
        &mut self,
        cx: &mut Context<'_>,
        queue: &mut FuturesUnordered<F>,
        pause: Pause,
        stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<Result<(), Break>> {
        let mut progress = false;
        if !self.desk.replies.is_empty()
            && let Poll::Ready(sent) = self.desk.replies.poll_send(&mut self.socket, cx)
        {
            self.desk.quota.free(sent.map_err(Break::Lost)?);
            self.unread = None;
            progress = true;
        }
        self.check_unread(cx)?;
        for _ in 0..limits::QUEUED_REQUESTS_MAX {
            let Poll::Ready(Some(finished)) = queue.poll_next_unpin(cx) else { break };
            self.desk.finish(finished);
            progress = true;
        }
        if self.reading && stop.poll(cx).is_ready() {
            self.reading = false;
            progress = true;
        }
        if self.reading
            && self.receive.has_room()
            && let Poll::Ready(count) = self.receive.poll_fill(&mut self.socket, cx)
        {
            self.ended = count.map_err(Break::Lost)? == 0;
            self.reading = !self.ended;
            progress = true;
        }
        if let Pause::Stalled(Stall::Server(units)) = pause
            && let Poll::Ready(Some(permit)) = self.memory.poll_acquire_many(cx, units)
        {
            self.desk.quota.grant(permit);
            progress = true;
        }
        if progress { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}
