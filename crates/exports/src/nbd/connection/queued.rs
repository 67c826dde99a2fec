//! Requests that could not be executed inline: what they do while they wait, and the bounds on how
//! many wait.

use crate::nbd::codec::transmission::{Command, Cookie, READ_HEAD_BYTES};
use crate::nbd::limits;
use bytes::Bytes;
use pannier_engine::error::Error;
use pannier_engine::port::{BlockDevice, StatusExtent};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The memory that a queued request holds, until its reply is sent.
pub(super) struct Charge {
    /// Bytes, counted against the connection's bound.
    pub(super) bytes: usize,
    /// The share of the server's bound; `None` for requests without data, and within the reserve.
    _server: Option<OwnedSemaphorePermit>,
}

/// What a queued request does.
pub(super) enum Work {
    /// Reads into a buffer, behind room for the reply's head.
    Read {
        offset: u64,
        buffer: Vec<u8>,
    },
    Write {
        offset: u64,
        data: Bytes,
        fua: bool,
    },
    /// The rest of a write whose first part was executed inline: with `fua` both have to be
    /// durable.
    WriteRest {
        offset: u64,
        data: Bytes,
        fua: bool,
    },
    Flush,
    /// The flush that a write with FUA, executed inline, still needs.
    FlushWrite,
    Discard {
        offset: u64,
        length: u32,
        fua: bool,
    },
    WriteZeroes {
        offset: u64,
        length: u32,
        allocate: bool,
        fua: bool,
    },
    BlockStatus {
        offset: u64,
        length: u32,
        one: bool,
    },
    Cache {
        offset: u64,
        length: u32,
    },
}

/// A queued request.
pub(super) struct Queued {
    pub(super) cookie: Cookie,
    pub(super) work: Work,
    pub(super) charge: Charge,
}

/// What a successful one brought.
pub(super) enum Outcome {
    Plain,
    Data { offset: u64, buffer: Vec<u8> },
    Extents { extents: Vec<StatusExtent>, length: u32, one: bool },
}

/// A queued request that is finished.
pub(super) struct Finished {
    pub(super) cookie: Cookie,
    pub(super) command: Command,
    pub(super) charge: Charge,
    pub(super) result: Result<Outcome, Error>,
}

/// Executes a queued request.
pub(super) async fn perform<D: BlockDevice>(device: Arc<D>, queued: Queued) -> Finished {
    let Queued { cookie, work, charge } = queued;
    let plain = |()| Outcome::Plain;
    let (command, result) = match work {
        Work::Read { offset, mut buffer } => {
            let read = device.read(offset, &mut buffer[READ_HEAD_BYTES..]).await;
            (Command::Read, read.map(|()| Outcome::Data { offset, buffer }))
        }
        Work::Write { offset, data, fua } => {
            (Command::Write, device.write(offset, data, fua).await.map(plain))
        }
        Work::WriteRest { offset, data, fua } => {
            let mut written = device.write(offset, data, false).await;
            if fua && written.is_ok() {
                written = device.flush().await;
            }
            (Command::Write, written.map(plain))
        }
        Work::Flush => (Command::Flush, device.flush().await.map(plain)),
        Work::FlushWrite => (Command::Write, device.flush().await.map(plain)),
        Work::Discard { offset, length, fua } => {
            (Command::Trim, device.discard(offset, length.into(), fua).await.map(plain))
        }
        Work::WriteZeroes { offset, length, allocate, fua } => {
            let zeroed = device.write_zeroes(offset, length.into(), allocate, fua).await;
            (Command::WriteZeroes, zeroed.map(plain))
        }
        Work::BlockStatus { offset, length, one } => {
            let extents_max = if one { 1 } else { limits::EXTENTS_MAX };
            let extents = device.block_status(offset, length.into(), extents_max).await;
            let found = extents.map(|extents| Outcome::Extents { extents, length, one });
            (Command::BlockStatus, found)
        }
        Work::Cache { offset, length } => {
            (Command::Cache, device.cache(offset, length.into()).await.map(plain))
        }
    };
    Finished { cookie, command, charge, result }
}

/// Why a request cannot be queued now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stall {
    /// The connection has as much in flight as it may: one of its own must finish.
    Connection,
    /// All connections together have: this many units of the server's memory must become free.
    Server(u32),
}

/// What a connection has in flight, against what it may.
pub(super) struct Quota {
    server: Arc<Semaphore>,
    granted: Option<OwnedSemaphorePermit>,
    requests: usize,
    bytes: usize,
}

impl Quota {
    pub(super) fn new(server: Arc<Semaphore>) -> Self {
        Self { server, granted: None, requests: 0, bytes: 0 }
    }

    /// Counts a request with that many bytes of data in.
    pub(super) fn enter(&mut self, bytes: usize) -> Result<Charge, Stall> {
        let free = self.server.available_permits() * limits::CHARGE_UNIT_BYTES;
        let bytes_max = limits::QUEUED_BYTES_MAX.min(free / limits::SHARE_OF_FREE);
        let full = self.requests >= limits::QUEUED_REQUESTS_MAX
            || (bytes > 0 && self.bytes > 0 && self.bytes + bytes > bytes_max);
        if full {
            return Err(Stall::Connection);
        }
        let reserved = self.bytes == 0 && bytes <= limits::RESERVE_BYTES;
        let permit = if reserved {
            None
        } else {
            let units = bytes.div_ceil(limits::CHARGE_UNIT_BYTES) as u32;
            match self.granted.take() {
                Some(granted) if granted.num_permits() >= units as usize => Some(granted),
                _ => match Arc::clone(&self.server).try_acquire_many_owned(units) {
                    Ok(permit) => Some(permit),
                    Err(_full) => return Err(Stall::Server(units)),
                },
            }
        };
        self.requests += 1;
        self.bytes += bytes;
        Ok(Charge { bytes, _server: permit })
    }

    /// Keeps what [`Stall::Server`] asked for until the request is tried again.
    pub(super) fn grant(&mut self, permit: OwnedSemaphorePermit) {
        self.granted = Some(permit);
    }

    /// Gives back what was granted and is no longer needed.
    pub(super) fn release(&mut self) {
        self.granted = None;
    }

    /// Counts a finished request out; its memory stays counted until [`Quota::free`].
    pub(super) fn finish(&mut self) {
        self.requests -= 1;
    }

    /// Gives memory back.
    pub(super) fn free(&mut self, bytes: usize) {
        self.bytes -= bytes;
    }

    /// Whether this connection holds memory of the server.
    pub(super) fn holds_memory(&self) -> bool {
        self.bytes > 0
    }

    /// Whether this connection holds memory that others may be waiting for.
    pub(super) fn is_in_the_way(&self) -> bool {
        let largest = limits::REQUEST_BYTES_MAX as usize / limits::CHARGE_UNIT_BYTES;
        self.bytes > 0 && self.server.available_permits() < largest
    }
}
