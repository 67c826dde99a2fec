//! The reply queue of a connection: small replies and inline reads in one buffer, queued reads in
//! buffers of their own, all in the order in which they were finished, sent by writev.

use super::queued::Charge;
use crate::nbd::codec::transmission::{Head, READ_HEAD_BYTES};
use crate::nbd::limits;
use crate::nbd::socket::Socket;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// What is to be sent, in order.
enum Segment {
    /// The inline buffer's bytes up to this position.
    Inline(usize),
    /// A buffer of its own from this position on, which keeps its charge until it is sent.
    Owned { bytes: Vec<u8>, from: usize, charge: Option<Charge> },
}

/// Replies that are not yet sent.
pub(super) struct Replies {
    inline: Box<[u8]>,
    /// End of what stands in `inline`.
    filled: usize,
    /// How much of `inline` was sent.
    sent: usize,
    segments: VecDeque<Segment>,
    /// Buffers for the next queued reads.
    spare: Vec<Vec<u8>>,
    spare_bytes: usize,
}

impl Replies {
    pub(super) fn new() -> Self {
        Self {
            inline: vec![0; limits::REPLY_BYTES].into_boxed_slice(),
            filled: 0,
            sent: 0,
            segments: VecDeque::with_capacity(limits::SLICES_MAX),
            spare: Vec::new(),
            spare_bytes: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Whether a reply with that much inline data can be taken now.
    pub(super) fn has_room(&self, data_bytes: usize) -> bool {
        self.inline.len() - self.filled >= READ_HEAD_BYTES + data_bytes
    }

    /// Room for a read's data behind where its head will stand. What is written there counts only
    /// once [`Replies::push_read`] is called with the same head.
    pub(super) fn room_for(&mut self, head: &Head, length: usize) -> &mut [u8] {
        let at = self.filled + head.as_slice().len();
        &mut self.inline[at..at + length]
    }

    /// Takes the reply whose data was written to [`Replies::room_for`].
    pub(super) fn push_read(&mut self, head: &Head, length: usize) {
        self.push_inline(head.as_slice(), length);
    }

    /// Takes a reply without data. The caller made sure of room.
    pub(super) fn push(&mut self, head: &Head) {
        self.push_inline(head.as_slice(), 0);
    }

    /// Takes a reply without data for which no room was made sure of.
    pub(super) fn push_late(&mut self, head: &Head) {
        if self.has_room(0) { self.push(head) } else { self.push_owned(head, &[]) }
    }

    fn push_inline(&mut self, head: &[u8], behind: usize) {
        let at = self.filled;
        self.inline[at..at + head.len()].copy_from_slice(head);
        self.filled = at + head.len() + behind;
        match self.segments.back_mut() {
            Some(Segment::Inline(upto)) => *upto = self.filled,
            Some(Segment::Owned { .. }) | None => {
                self.segments.push_back(Segment::Inline(self.filled));
            }
        }
    }

    /// Takes a read whose data stand in a buffer of their own, behind [`READ_HEAD_BYTES`].
    pub(super) fn push_owned_read(&mut self, head: &Head, mut bytes: Vec<u8>, charge: Charge) {
        let from = READ_HEAD_BYTES - head.as_slice().len();
        bytes[from..READ_HEAD_BYTES].copy_from_slice(head.as_slice());
        self.segments.push_back(Segment::Owned { bytes, from, charge: Some(charge) });
    }

    /// Takes a head and what follows it, in a buffer of their own.
    pub(super) fn push_owned(&mut self, head: &Head, payload: &[u8]) {
        let bytes = [head.as_slice(), payload].concat();
        self.segments.push_back(Segment::Owned { bytes, from: 0, charge: None });
    }

    /// A buffer of `length` bytes, its content arbitrary.
    pub(super) fn take_buffer(&mut self, length: usize) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        self.spare_bytes -= buffer.capacity();
        buffer.resize(length, 0);
        buffer
    }

    fn keep_buffer(&mut self, buffer: Vec<u8>) {
        if self.spare_bytes + buffer.capacity() <= limits::SPARE_BYTES_MAX {
            self.spare_bytes += buffer.capacity();
            self.spare.push(buffer);
        }
    }

    /// Sends as much as the socket takes; ready when something was sent, with the bytes of memory
    /// that this set free.
    pub(super) fn poll_send(
        &mut self,
        socket: &mut Socket,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); limits::SLICES_MAX];
        let (mut at, mut count) = (self.sent, 0);
        for (slice, segment) in slices.iter_mut().zip(&self.segments) {
            *slice = match segment {
                Segment::Inline(upto) => {
                    let part = &self.inline[at..*upto];
                    at = *upto;
                    IoSlice::new(part)
                }
                Segment::Owned { bytes, from, .. } => IoSlice::new(&bytes[*from..]),
            };
            count += 1;
        }
        let sent = ready!(Pin::new(socket).poll_write_vectored(cx, &slices[..count]))?;
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        Poll::Ready(Ok(self.forget(sent)))
    }

    /// Forgets what was sent and returns the memory that this set free, in bytes.
    fn forget(&mut self, mut sent: usize) -> usize {
        let mut freed = 0;
        while let Some(front) = self.segments.front_mut() {
            let (left, position) = match front {
                Segment::Inline(upto) => (*upto - self.sent, &mut self.sent),
                Segment::Owned { bytes, from, .. } => (bytes.len() - *from, from),
            };
            let part = left.min(sent);
            sent -= part;
            *position += part;
            if part < left {
                return freed;
            }
            if let Some(Segment::Owned { bytes, charge, .. }) = self.segments.pop_front() {
                freed += charge.map_or(0, |charge| charge.bytes);
                self.keep_buffer(bytes);
            }
        }
        (self.filled, self.sent) = (0, 0);
        freed
    }
}
