//! A small NBD client, written from the protocol's document and sharing nothing with the server:
//! blocking, over unix and TCP sockets, with simple and structured replies, requests in flight as
//! the caller likes.

use crate::nbd_options::{Agreed, handshake, read_array, wrong};
use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
const FLAG_DONE: u16 = 1;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_OFFSET_HOLE: u16 = 2;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_ERROR_BIT: u16 = 1 << 15;

/// Command flag: durable before the reply.
pub const FUA: u16 = 1;
/// Command flag: zeroes must not become a hole.
pub const NO_HOLE: u16 = 2;

/// Where a server listens.
#[derive(Debug, Clone)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// Read.
    Read = 0,
    /// Write; its data follow.
    Write = 1,
    /// Disconnect.
    Disconnect = 2,
    /// Flush.
    Flush = 3,
    /// Discard.
    Trim = 4,
    /// Read ahead.
    Cache = 5,
    /// Write zeroes.
    WriteZeroes = 6,
    /// What the blocks are.
    BlockStatus = 7,
}

/// The answer to a request.
#[derive(Debug)]
pub struct Reply {
    /// The cookie of the request.
    pub cookie: u64,
    /// 0, or the protocol's error.
    pub error: u32,
    /// What a read returned.
    pub data: Vec<u8>,
    /// What a block status returned: (length, flags).
    pub extents: Vec<(u32, u32)>,
}

trait Stream: Read + Write + Send {}
impl Stream for UnixStream {}
impl Stream for TcpStream {}

struct Pending {
    offset: u64,
    reply: Reply,
}

/// A connection to an export.
pub struct Client {
    stream: BufReader<Box<dyn Stream>>,
    /// What the handshake agreed on.
    pub agreed: Agreed,
    pending: BTreeMap<u64, Pending>,
    next: u64,
}

impl Client {
    /// Connects to an export. No read or write on the connection takes longer than `patience`.
    ///
    /// # Errors
    /// See [`handshake`]; `TimedOut` or `WouldBlock` when the patience is over.
    pub fn connect(
        address: &Address,
        export: &str,
        structured: bool,
        patience: Duration,
    ) -> io::Result<Self> {
        let mut stream: Box<dyn Stream> = match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))?;
                Box::new(stream)
            }
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))?;
                Box::new(stream)
            }
        };
        let agreed = handshake(&mut stream, export, structured)?;
        let stream = BufReader::with_capacity(256 << 10, stream);
        Ok(Self { stream, agreed, pending: BTreeMap::new(), next: 1 })
    }

    /// How many requests have no reply yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Sends a request and returns its cookie. `data` is empty for all but writes.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn send(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next;
        self.next += 1;
        let mut bytes = Vec::with_capacity(28 + data.len());
        bytes.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&(command as u16).to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(data);
        self.stream.get_mut().write_all(&bytes)?;
        if command != Command::Disconnect {
            let data = if command == Command::Read { vec![0; length as usize] } else { Vec::new() };
            let reply = Reply { cookie, error: 0, data, extents: Vec::new() };
            self.pending.insert(cookie, Pending { offset, reply });
        }
        Ok(cookie)
    }

    /// Waits for the next reply, in whatever order the server gives them.
    ///
    /// # Errors
    /// When the connection fails, or the server breaks the protocol.
    pub fn receive(&mut self) -> io::Result<Reply> {
        loop {
            let magic = read_array(&mut self.stream).map(u32::from_be_bytes)?;
            let done = match magic {
                SIMPLE_REPLY_MAGIC if !self.agreed.structured => self.simple_reply()?,
                SIMPLE_REPLY_MAGIC => self.simple_reply_among_structured()?,
                STRUCTURED_REPLY_MAGIC if self.agreed.structured => self.chunk()?,
                magic => return Err(wrong(format!("a reply begins with {magic:#x}"))),
            };
            if let Some(cookie) = done {
                let pending = self.pending.remove(&cookie).expect("found by its cookie before");
                return Ok(pending.reply);
            }
        }
    }

    fn pending(&mut self, cookie: u64) -> io::Result<&mut Pending> {
        self.pending.get_mut(&cookie).ok_or_else(|| wrong("a reply to a request never sent"))
    }

    fn simple_reply(&mut self) -> io::Result<Option<u64>> {
        let error = u32::from_be_bytes(read_array(&mut self.stream)?);
        let cookie = u64::from_be_bytes(read_array(&mut self.stream)?);
        let mut data = std::mem::take(&mut self.pending(cookie)?.reply.data);
        if error == 0 {
            self.stream.read_exact(&mut data)?;
        } else {
            data.clear();
        }
        let reply = &mut self.pending(cookie)?.reply;
        (reply.error, reply.data) = (error, data);
        Ok(Some(cookie))
    }

    fn simple_reply_among_structured(&mut self) -> io::Result<Option<u64>> {
        let error = u32::from_be_bytes(read_array(&mut self.stream)?);
        let cookie = u64::from_be_bytes(read_array(&mut self.stream)?);
        let reply = &mut self.pending(cookie)?.reply;
        if error == 0 && !reply.data.is_empty() {
            return Err(wrong("a simple reply to a read although structured was agreed on"));
        }
        reply.error = error;
        Ok(Some(cookie))
    }

    fn chunk(&mut self) -> io::Result<Option<u64>> {
        let flags = u16::from_be_bytes(read_array(&mut self.stream)?);
        let kind = u16::from_be_bytes(read_array(&mut self.stream)?);
        let cookie = u64::from_be_bytes(read_array(&mut self.stream)?);
        let length = u32::from_be_bytes(read_array(&mut self.stream)?) as usize;
        if length > 64 << 20 {
            return Err(wrong("a chunk is too long"));
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        let pending = self.pending(cookie)?;
        match kind {
            CHUNK_OFFSET_DATA if length >= 8 => {
                let at = chunk_offset(&body, pending.offset)?;
                let into = pending.reply.data.get_mut(at..at + length - 8);
                into.ok_or_else(|| wrong("data beyond the read"))?.copy_from_slice(&body[8..]);
            }
            CHUNK_OFFSET_HOLE if length == 12 => {
                let at = chunk_offset(&body, pending.offset)?;
                let count = u32::from_be_bytes([body[8], body[9], body[10], body[11]]) as usize;
                let into = pending.reply.data.get_mut(at..at + count);
                into.ok_or_else(|| wrong("a hole beyond the read"))?.fill(0);
            }
            CHUNK_BLOCK_STATUS if length >= 12 && length % 8 == 4 => {
                for extent in body[4..].chunks_exact(8) {
                    let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|k| extent[at + k]));
                    pending.reply.extents.push((word(0), word(4)));
                }
            }
            0 if length == 0 => {}
            kind if kind & CHUNK_ERROR_BIT != 0 && length >= 6 => {
                pending.reply.error = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
            }
            kind => return Err(wrong(format!("a chunk of kind {kind} and {length} bytes"))),
        }
        Ok((flags & FLAG_DONE != 0).then_some(cookie))
    }

    /// Sends one request and waits for its reply; nothing else is in flight.
    ///
    /// # Errors
    /// As [`Client::receive`]; an error of the protocol is `Other` with its number.
    pub fn call(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> io::Result<Reply> {
        assert_eq!(self.in_flight(), 0, "other requests are in flight");
        self.send(command, flags, offset, length, data)?;
        let reply = self.receive()?;
        if reply.error != 0 {
            return Err(io::Error::other(format!("{command:?} failed with {}", reply.error)));
        }
        Ok(reply)
    }

    /// Reads.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn read(&mut self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        self.call(Command::Read, 0, offset, length, &[]).map(|reply| reply.data)
    }

    /// Writes.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call(Command::Write, 0, offset, data.len() as u32, data).map(drop)
    }

    /// Flushes.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.call(Command::Flush, 0, 0, 0, &[]).map(drop)
    }

    /// Says goodbye.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.send(Command::Disconnect, 0, 0, 0, &[]).map(drop)
    }

    /// Writes bytes as they are, to see what a server makes of nonsense.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }
}

fn chunk_offset(body: &[u8], base: u64) -> io::Result<usize> {
    let mut offset = [0; 8];
    offset.copy_from_slice(&body[..8]);
    u64::from_be_bytes(offset)
        .checked_sub(base)
        .and_then(|offset| usize::try_from(offset).ok())
        .ok_or_else(|| wrong("a chunk before the read"))
}
