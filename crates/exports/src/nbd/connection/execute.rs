//! Executes what has been received: inline as far as nothing has to be waited for, the rest queued.

use super::Counters;
use super::queued::{Finished, Outcome, Queued, Quota, Stall, Work};
use super::receive::Receive;
use super::replies::Replies;
use crate::nbd::codec::transmission::{
    Command, Cookie, Head, READ_HEAD_BYTES, REQUEST_BYTES, Request, Terms, admit, descriptors, flag,
};
use crate::nbd::codec::{Errno, Malformed};
use crate::nbd::errno::errno;
use crate::nbd::handshake::ALLOCATION_ID;
use crate::nbd::limits;
use bytes::Bytes;
use pannier_core::units::BLOCK_BYTES;
use pannier_engine::error::Error;
use pannier_engine::port::{BlockDevice, WriteRequest};
use std::sync::Arc;

/// Why execution paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// The next message is not complete; it is this long as far as is known.
    Incomplete(usize),
    /// The reply buffer is full.
    Replies,
    /// A bound on queued requests is reached.
    Stalled(Stall),
    /// The client has said goodbye.
    Disconnect,
}

/// A WRITE whose data are too long to be awaited as a whole, or are skipped.
enum Body {
    /// No such write is under way.
    None,
    /// Executed inline, piece by piece.
    Pieces { cookie: Cookie, offset: u64, left: u32, fua: bool },
    /// Collected, because the device could not take a piece without waiting.
    Collect { queued: Queued, data: Vec<u8>, left: u32 },
    /// Thrown away; then the error is the reply.
    Skip { cookie: Cookie, left: u32, error: Errno },
}

/// Writes that are complete in the receive buffer and not yet handed to the device.
struct Batch<'a> {
    writes: [WriteRequest<'a>; limits::WRITE_BATCH_MAX],
    requests: [(Cookie, bool, usize); limits::WRITE_BATCH_MAX],
    count: usize,
}

impl<'a> Batch<'a> {
    fn new() -> Self {
        Self {
            writes: [WriteRequest { offset: 0, data: &[] }; limits::WRITE_BATCH_MAX],
            requests: [(Cookie(0), false, 0); limits::WRITE_BATCH_MAX],
            count: 0,
        }
    }

    /// Adds a write whose request stands at `at` in the receive buffer.
    fn push(&mut self, request: &Request, data: &'a [u8], at: usize) {
        self.writes[self.count] = WriteRequest { offset: request.offset, data };
        self.requests[self.count] = (request.cookie, request.flags & flag::FUA != 0, at);
        self.count += 1;
    }

    fn is_full(&self) -> bool {
        self.count == limits::WRITE_BATCH_MAX
    }
}

/// One connection's requests between socket and device.
pub(super) struct Desk<D> {
    device: Arc<D>,
    structured: bool,
    allocation: bool,
    pub(super) replies: Replies,
    pub(super) quota: Quota,
    /// Newly queued requests, for the connection to start.
    pub(super) starting: Vec<Queued>,
    body: Body,
    failed: bool,
    counters: Counters,
}

impl<D: BlockDevice> Desk<D> {
    pub(super) fn new(
        device: Arc<D>,
        structured: bool,
        allocation: bool,
        quota: Quota,
        counters: Counters,
    ) -> Self {
        Self {
            device,
            structured,
            allocation,
            replies: Replies::new(),
            quota,
            starting: Vec::with_capacity(limits::QUEUED_REQUESTS_MAX),
            body: Body::None,
            failed: false,
            counters,
        }
    }

    /// Executes all that is complete, consumes it and says why there is no more.
    ///
    /// # Errors
    /// When the bytes are not the protocol.
    pub(super) fn execute(&mut self, receive: &mut Receive) -> Result<Pause, Malformed> {
        let data = receive.filled();
        let mut at = 0;
        let pause = loop {
            if !matches!(self.body, Body::None) {
                match self.continue_body(&data[at..]) {
                    Ok(taken) => at += taken,
                    Err((taken, pause)) => {
                        at += taken;
                        break pause;
                    }
                }
                continue;
            }
            match self.execute_requests(data, &mut at)? {
                Some(pause) => break pause,
                None => continue,
            }
        };
        if !matches!(pause, Pause::Stalled(_)) {
            self.quota.release();
        }
        receive.consume(at);
        if let Pause::Incomplete(wanted) = pause {
            receive.make_room(wanted);
        }
        Ok(pause)
    }

    /// Executes requests from `at` on, up to a pause or a long write's begin (`None`).
    fn execute_requests(
        &mut self,
        data: &[u8],
        at: &mut usize,
    ) -> Result<Option<Pause>, Malformed> {
        let mut batch = Batch::new();
        let stop = loop {
            // Every request can be answered with a head, whatever becomes of it.
            if !self.replies.has_room(READ_HEAD_BYTES * batch.count) {
                break Some(Pause::Replies);
            }
            let Some(head) = data[*at..].first_chunk::<REQUEST_BYTES>() else {
                break Some(Pause::Incomplete(REQUEST_BYTES));
            };
            let request = Request::parse(head)?;
            let terms = Terms {
                size_bytes: self.device.size_bytes(),
                read_only: self.device.read_only(),
                structured: self.structured,
                allocation: self.allocation,
            };
            let admitted = admit(&request, &terms);
            let payload = &data[*at + REQUEST_BYTES..];
            let length = request.data_bytes() as usize;
            match (admitted, request.command) {
                (Ok(()), Command::Write) if request.length <= limits::WHOLE_WRITE_BYTES_MAX => {
                    if payload.len() < length {
                        break Some(Pause::Incomplete(REQUEST_BYTES + length));
                    }
                    batch.push(&request, &payload[..length], *at);
                    *at += REQUEST_BYTES + length;
                    if !batch.is_full() {
                        continue;
                    }
                }
                (_, Command::Write) => {
                    self.body = self.begin_body(&request, admitted);
                    *at += REQUEST_BYTES;
                    break None;
                }
                _ => {}
            }
            if let Err((from, stall)) = self.run_writes(&mut batch) {
                *at = from;
                return Ok(Some(Pause::Stalled(stall)));
            }
            match (admitted, request.command) {
                (_, Command::Write) => continue,
                (Ok(()), Command::Disconnect) => break Some(Pause::Disconnect),
                (Ok(()), _) => {
                    if let Err(pause) = self.execute_request(&request) {
                        break Some(pause);
                    }
                }
                (Err(error), _) => self.push_error(request.command, request.cookie, error),
            }
            *at += REQUEST_BYTES;
        };
        match self.run_writes(&mut batch) {
            Ok(()) => Ok(stop),
            Err((from, stall)) => {
                self.body = Body::None;
                *at = from;
                Ok(Some(Pause::Stalled(stall)))
            }
        }
    }

    /// Hands the batch to the device. What it cannot take is queued; where a bound forbids that,
    /// the position of the first request that has to be executed again is returned.
    fn run_writes(&mut self, batch: &mut Batch<'_>) -> Result<(), (usize, Stall)> {
        let count = std::mem::take(&mut batch.count);
        let writes = &batch.writes[..count];
        if count == 0 {
            return Ok(());
        }
        let written = match self.device.try_write(writes) {
            Ok(written) => written,
            // Which one failed is not known. Unanswered writes may be executed again.
            Err(_of_one) => return self.run_writes_singly(batch, count),
        };
        for (write, &(cookie, fua, at)) in writes[..written].iter().zip(&batch.requests) {
            self.counters.write_bytes.increment(write.data.len() as u64);
            self.finish_inline_write(cookie, fua).map_err(|stall| (at, stall))?;
        }
        for (write, &request) in writes.iter().zip(&batch.requests).skip(written) {
            self.queue_write(write, request)?;
        }
        Ok(())
    }

    fn run_writes_singly(&mut self, batch: &Batch<'_>, count: usize) -> Result<(), (usize, Stall)> {
        for (write, &request) in batch.writes[..count].iter().zip(&batch.requests) {
            let (cookie, fua, at) = request;
            match self.device.try_write(std::slice::from_ref(write)) {
                Ok(0) => self.queue_write(write, request)?,
                Ok(_) => self.finish_inline_write(cookie, fua).map_err(|stall| (at, stall))?,
                Err(error) => self.fail(Command::Write, cookie, &error),
            }
        }
        Ok(())
    }

    fn queue_write(
        &mut self,
        write: &WriteRequest<'_>,
        (cookie, fua, at): (Cookie, bool, usize),
    ) -> Result<(), (usize, Stall)> {
        let bytes = write.data.len();
        let charge = self.quota.enter(bytes).map_err(|stall| (at, stall))?;
        self.counters.write_bytes.increment(bytes as u64);
        let data = Bytes::copy_from_slice(write.data);
        let work = Work::Write { offset: write.offset, data, fua };
        self.starting.push(Queued { cookie, work, charge });
        Ok(())
    }

    /// Answers a write that the device has taken; with FUA only after a flush.
    fn finish_inline_write(&mut self, cookie: Cookie, fua: bool) -> Result<(), Stall> {
        if fua {
            self.queue(cookie, Work::FlushWrite)
        } else {
            self.replies.push(&Head::simple(cookie));
            Ok(())
        }
    }

    /// Queues a request that holds no data.
    fn queue(&mut self, cookie: Cookie, work: Work) -> Result<(), Stall> {
        let charge = self.quota.enter(0)?;
        self.starting.push(Queued { cookie, work, charge });
        Ok(())
    }

    /// Executes an admitted request other than WRITE and DISC.
    fn execute_request(&mut self, request: &Request) -> Result<(), Pause> {
        let Request { flags, cookie, offset, length, .. } = *request;
        let fua = flags & flag::FUA != 0;
        let work = match request.command {
            Command::Read => return self.read(cookie, offset, length),
            Command::Flush => Work::Flush,
            Command::Trim => Work::Discard { offset, length, fua },
            Command::Cache => Work::Cache { offset, length },
            Command::WriteZeroes => {
                // Zeroing writes an entry of the log and no data: it is always the faster way, so a
                // request for FAST_ZERO never has to be refused.
                let allocate = flags & flag::NO_HOLE != 0;
                Work::WriteZeroes { offset, length, allocate, fua }
            }
            Command::BlockStatus => {
                Work::BlockStatus { offset, length, one: flags & flag::REQ_ONE != 0 }
            }
            Command::Write | Command::Disconnect | Command::Unknown(_) => {
                unreachable!("handled before, or not admitted")
            }
        };
        self.queue(cookie, work).map_err(Pause::Stalled)
    }

    fn read(&mut self, cookie: Cookie, offset: u64, length: u32) -> Result<(), Pause> {
        let bytes = length as usize;
        if length <= limits::INLINE_READ_BYTES_MAX {
            if !self.replies.has_room(bytes) {
                return Err(Pause::Replies);
            }
            let head = Head::read(self.structured, cookie, offset, length);
            match self.device.try_read(offset, self.replies.room_for(&head, bytes)) {
                Ok(true) => {
                    self.counters.read_bytes.increment(length.into());
                    self.replies.push_read(&head, bytes);
                    return Ok(());
                }
                Ok(false) => {}
                Err(error) => {
                    self.fail(Command::Read, cookie, &error);
                    return Ok(());
                }
            }
        }
        let charge = self.quota.enter(bytes).map_err(Pause::Stalled)?;
        self.counters.read_bytes.increment(length.into());
        let buffer = self.replies.take_buffer(READ_HEAD_BYTES + bytes);
        let work = Work::Read { offset, buffer };
        self.starting.push(Queued { cookie, work, charge });
        Ok(())
    }

    fn begin_body(&self, request: &Request, admitted: Result<(), Errno>) -> Body {
        let Request { cookie, offset, length: left, .. } = *request;
        match admitted {
            Ok(()) => Body::Pieces { cookie, offset, left, fua: request.flags & flag::FUA != 0 },
            Err(error) => Body::Skip { cookie, left, error },
        }
    }

    /// Takes what there is of a long write's data. `Ok` when that ended the write, else how much
    /// was taken and why there is no more; what was taken is consumed either way.
    fn continue_body(&mut self, data: &[u8]) -> Result<usize, (usize, Pause)> {
        let mut at = 0;
        loop {
            if !self.replies.has_room(0) {
                return Err((at, Pause::Replies));
            }
            at += match std::mem::replace(&mut self.body, Body::None) {
                Body::None => return Ok(at),
                Body::Skip { cookie, left, error } => {
                    let taken = (data.len() - at).min(left as usize);
                    if taken == left as usize {
                        self.push_error(Command::Write, cookie, error);
                        return Ok(at + taken);
                    }
                    self.body = Body::Skip { cookie, left: left - taken as u32, error };
                    return Err((at + taken, Pause::Incomplete(1)));
                }
                Body::Collect { mut queued, data: mut held, left } => {
                    let taken = (data.len() - at).min(left as usize);
                    held.extend_from_slice(&data[at..at + taken]);
                    if taken == left as usize {
                        if let Work::WriteRest { data, .. } = &mut queued.work {
                            *data = held.into();
                        }
                        self.starting.push(queued);
                        return Ok(at + taken);
                    }
                    self.body = Body::Collect { queued, data: held, left: left - taken as u32 };
                    return Err((at + taken, Pause::Incomplete(1)));
                }
                Body::Pieces { cookie, offset, left, fua } => {
                    match self.write_piece((cookie, offset, left, fua), &data[at..]) {
                        Ok(taken) => taken,
                        Err(pause) => {
                            self.body = Body::Pieces { cookie, offset, left, fua };
                            return Err((at, pause));
                        }
                    }
                }
            }
        }
    }

    /// Writes the next piece of a long write and sets what is left of it.
    fn write_piece(
        &mut self,
        (cookie, offset, left, fua): (Cookie, u64, u32, bool),
        data: &[u8],
    ) -> Result<usize, Pause> {
        // All pieces but the first begin at a block's boundary.
        let whole = limits::WHOLE_WRITE_BYTES_MAX - (offset % BLOCK_BYTES) as u32;
        let piece = left.min(whole);
        let Some(bytes) = data.get(..piece as usize) else {
            return Err(Pause::Incomplete(piece as usize));
        };
        match self.device.try_write(&[WriteRequest { offset, data: bytes }]) {
            Ok(0) => {
                let rest = left as usize;
                let charge = self.quota.enter(rest).map_err(Pause::Stalled)?;
                self.counters.write_bytes.increment(left.into());
                let work = Work::WriteRest { offset, data: Bytes::new(), fua };
                let queued = Queued { cookie, work, charge };
                self.body = Body::Collect { queued, data: Vec::new(), left };
                Ok(0)
            }
            Ok(_) => {
                if left == piece {
                    self.finish_inline_write(cookie, fua).map_err(Pause::Stalled)?;
                } else {
                    let (offset, left) = (offset + u64::from(piece), left - piece);
                    self.body = Body::Pieces { cookie, offset, left, fua };
                }
                self.counters.write_bytes.increment(piece.into());
                Ok(piece as usize)
            }
            Err(error) => {
                let error = self.report(Command::Write, &error);
                self.body = Body::Skip { cookie, left, error };
                Ok(0)
            }
        }
    }

    /// Whether the client is in the middle of a message.
    pub(super) fn is_amid(&self, receive: &Receive) -> bool {
        !receive.filled().is_empty() || !matches!(self.body, Body::None)
    }

    /// Takes a queued request's result.
    pub(super) fn finish(&mut self, finished: Finished) {
        let Finished { cookie, command, charge, result } = finished;
        self.quota.finish();
        if !matches!(result, Ok(Outcome::Data { .. })) {
            self.quota.free(charge.bytes);
        }
        match result {
            Ok(Outcome::Plain) => self.replies.push_late(&Head::simple(cookie)),
            Ok(Outcome::Data { offset, buffer }) => {
                let length = (buffer.len() - READ_HEAD_BYTES) as u32;
                let head = Head::read(self.structured, cookie, offset, length);
                self.replies.push_owned_read(&head, buffer, charge);
            }
            Ok(Outcome::Extents { extents, length, one }) => {
                let descriptors = descriptors(&extents, length, one);
                if descriptors.is_empty() {
                    // A device that says nothing about a range has broken its contract; "data" is
                    // what the protocol document allows to say of anything.
                    let data = [length.to_be_bytes(), [0; 4]];
                    let head = Head::block_status(cookie, ALLOCATION_ID, 1);
                    self.replies.push_owned(&head, data.as_flattened());
                } else {
                    let head = Head::block_status(cookie, ALLOCATION_ID, descriptors.len() / 8);
                    self.replies.push_owned(&head, &descriptors);
                }
            }
            Err(error) => {
                let error = self.report(command, &error);
                let head = Head::error(self.structured, command, cookie, error);
                self.replies.push_late(&head);
            }
        }
    }

    fn fail(&mut self, command: Command, cookie: Cookie, error: &Error) {
        let error = self.report(command, error);
        self.push_error(command, cookie, error);
    }

    fn push_error(&mut self, command: Command, cookie: Cookie, error: Errno) {
        self.counters.errors.increment(1);
        self.replies.push(&Head::error(self.structured, command, cookie, error));
    }

    /// Logs an error of the device, the first of a connection loudly, and says what the client
    /// gets.
    fn report(&mut self, command: Command, error: &Error) -> Errno {
        if std::mem::replace(&mut self.failed, true) {
            tracing::debug!(?command, kind = %error.kind(), %error, "NBD request failed");
        } else {
            tracing::warn!(
                ?command, kind = %error.kind(), %error,
                "NBD request failed; more failures of this connection are logged at debug level"
            );
        }
        errno(error.kind())
    }
}
