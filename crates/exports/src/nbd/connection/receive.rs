//! The receive buffer of a connection: one allocation for its life.

use crate::nbd::limits;
use crate::nbd::socket::Socket;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes received and not yet consumed.
pub(super) struct Receive {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Receive {
    pub(super) fn new() -> Self {
        // Zeroed by the kernel, page by page as it is touched.
        Self { bytes: vec![0; limits::RECEIVE_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// What has been received.
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Forgets the first `count` bytes.
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        assert!(self.start <= self.end, "consumed more than was received");
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Makes room so that the unconsumed message can grow to `wanted` bytes. Moves what there is of
    /// it only when it would not fit behind what was consumed.
    pub(super) fn make_room(&mut self, wanted: usize) {
        assert!(wanted <= self.bytes.len(), "a message larger than the buffer");
        if self.start + wanted > self.bytes.len() || self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }

    /// Whether there is room behind what was received.
    pub(super) fn has_room(&self) -> bool {
        self.end < self.bytes.len()
    }

    /// Reads what the socket has, as far as there is room; 0 is the end of the stream.
    pub(super) fn poll_fill(
        &mut self,
        socket: &mut Socket,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut room = ReadBuf::new(&mut self.bytes[self.end..]);
        ready!(Pin::new(socket).poll_read(cx, &mut room))?;
        let count = room.filled().len();
        self.end += count;
        Poll::Ready(Ok(count))
    }
}
