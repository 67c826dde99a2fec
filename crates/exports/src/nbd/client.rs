//! A small client: one request at a time on one connection. For the command line, the demo and
//! tests; guests bring their own.

use super::codec::handshake::{
    ALLOCATION, GREETING_BYTES, InfoRequest, REPLY_BYTES, Reply, encode_option, info, option,
    parse_greeting, parse_reply,
};
use super::codec::transmission::{
    CHUNK_DONE, CHUNK_MAGIC, Command, Cookie, Request, SIMPLE_MAGIC, chunk, flag,
};
use std::io;
use std::path::Path;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// Longest message that a server may attach to a refusal, in bytes; also bounds what is read of it.
const MESSAGE_BYTES_MAX: u32 = 4096;

/// A byte stream to a server.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection in transmission phase.
pub struct Client {
    stream: Box<dyn Stream>,
    size_bytes: u64,
    cookie: u64,
}

/// A run of one state, from [`Client::block_status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub length: u32,
    /// Whether it reads as zero.
    pub zero: bool,
}

fn protocol(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("NBD server: {what}"))
}

impl Client {
    /// Connects to an export over a unix socket.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses; the refusal's text is the error's.
    pub async fn connect_unix(socket: &Path, export: &str) -> io::Result<Self> {
        Self::connect(Box::new(UnixStream::connect(socket).await?), export).await
    }

    /// Connects to an export over TCP.
    ///
    /// # Errors
    /// As [`Client::connect_unix`].
    pub async fn connect_tcp(address: &str, export: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Self::connect(Box::new(stream), export).await
    }

    async fn connect(stream: Box<dyn Stream>, export: &str) -> io::Result<Self> {
        let mut client = Self { stream, size_bytes: 0, cookie: 0 };
        let mut greeting = [0; GREETING_BYTES];
        client.stream.read_exact(&mut greeting).await?;
        parse_greeting(&greeting).map_err(protocol)?;
        client.stream.write_all(&3u32.to_be_bytes()).await?;
        client.option(option::STRUCTURED_REPLY, &[]).await?;
        let mut context = Vec::new();
        for text in [export, ALLOCATION] {
            if text == ALLOCATION {
                context.extend_from_slice(&1u32.to_be_bytes());
            }
            context.extend_from_slice(&(text.len() as u32).to_be_bytes());
            context.extend_from_slice(text.as_bytes());
        }
        client.option(option::SET_META_CONTEXT, &context).await?;
        client.option(option::GO, &InfoRequest::encode(export)).await?;
        Ok(client)
    }

    /// Sends an option and takes its replies up to the acknowledgement.
    async fn option(&mut self, number: u32, data: &[u8]) -> io::Result<()> {
        self.stream.write_all(&encode_option(number, data)).await?;
        loop {
            let mut header = [0; REPLY_BYTES];
            self.stream.read_exact(&mut header).await?;
            let (reply, length) = parse_reply(&header).map_err(protocol)?;
            if length > MESSAGE_BYTES_MAX {
                return Err(protocol("an option reply is too long"));
            }
            let mut data = vec![0; length as usize];
            self.stream.read_exact(&mut data).await?;
            if reply == Reply::Ack as u32 {
                return Ok(());
            }
            if reply & 1 << 31 != 0 {
                let text = String::from_utf8_lossy(&data).into_owned();
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, text));
            }
            if let Some((kind, rest)) = data.split_first_chunk::<2>()
                && reply == Reply::Info as u32
                && u16::from_be_bytes(*kind) == info::EXPORT
                && let Some(size) = rest.first_chunk::<8>()
            {
                self.size_bytes = u64::from_be_bytes(*size);
            }
        }
    }

    /// Size of the export in bytes when it was opened.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    async fn send(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u32,
    ) -> io::Result<()> {
        self.cookie += 1;
        let request = Request { flags, command, cookie: Cookie(self.cookie), offset, length };
        self.stream.write_all(&request.encode()).await
    }

    /// Takes the reply to the one request in flight. Data chunks go to `into`, extents are
    /// returned.
    async fn reply(&mut self, offset: u64, into: &mut [u8]) -> io::Result<Vec<Extent>> {
        let mut extents = Vec::new();
        let mut failed = Ok(());
        loop {
            let magic = self.stream.read_u32().await?;
            if magic == SIMPLE_MAGIC {
                let error = self.stream.read_u32().await?;
                self.check_cookie().await?;
                return if error == 0 { Ok(extents) } else { Err(from_errno(error)) };
            }
            if magic != CHUNK_MAGIC {
                return Err(protocol(format_args!("a reply has magic {magic:#x}")));
            }
            let flags = self.stream.read_u16().await?;
            let kind = self.stream.read_u16().await?;
            self.check_cookie().await?;
            let length = self.stream.read_u32().await?;
            match kind {
                chunk::NONE if length == 0 => {}
                chunk::OFFSET_DATA if length > 8 => {
                    let at = self.stream.read_u64().await?;
                    let part = place(into, offset, at, length - 8)?;
                    self.stream.read_exact(part).await?;
                }
                chunk::OFFSET_HOLE if length == 12 => {
                    let at = self.stream.read_u64().await?;
                    let hole = self.stream.read_u32().await?;
                    place(into, offset, at, hole)?.fill(0);
                }
                chunk::BLOCK_STATUS if length % 8 == 4 => {
                    self.stream.read_u32().await?;
                    for _ in 0..length / 8 {
                        let length = self.stream.read_u32().await?;
                        let zero = self.stream.read_u32().await? & 2 != 0;
                        extents.push(Extent { length, zero });
                    }
                }
                chunk::ERROR if (6..=6 + MESSAGE_BYTES_MAX).contains(&length) => {
                    failed = Err(from_errno(self.stream.read_u32().await?));
                    let mut message = vec![0; length as usize - 4];
                    self.stream.read_exact(&mut message).await?;
                }
                _ => return Err(protocol(format_args!("chunk type {kind}, {length} bytes"))),
            }
            if flags & CHUNK_DONE != 0 {
                return failed.map(|()| extents);
            }
        }
    }

    async fn check_cookie(&mut self) -> io::Result<()> {
        let cookie = self.stream.read_u64().await?;
        if cookie == self.cookie { Ok(()) } else { Err(protocol("reply to no request")) }
    }

    /// Reads `into.len()` bytes.
    ///
    /// # Errors
    /// When the connection breaks (`UnexpectedEof`, `BrokenPipe`, ...), or what the server refused
    /// the request with.
    pub async fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.send(Command::Read, 0, offset, into.len() as u32).await?;
        self.reply(offset, into).await.map(drop)
    }

    /// Writes; with `fua` durably.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub async fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        let flags = if fua { flag::FUA } else { 0 };
        self.send(Command::Write, flags, offset, data.len() as u32).await?;
        self.stream.write_all(data).await?;
        self.reply(offset, &mut []).await.map(drop)
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub async fn flush(&mut self) -> io::Result<()> {
        self.send(Command::Flush, 0, 0, 0).await?;
        self.reply(0, &mut []).await.map(drop)
    }

    /// Gives a range's space back.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub async fn trim(&mut self, offset: u64, length: u32) -> io::Result<()> {
        self.send(Command::Trim, 0, offset, length).await?;
        self.reply(0, &mut []).await.map(drop)
    }

    /// Zeroes a range, which may become a hole.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub async fn write_zeroes(&mut self, offset: u64, length: u32) -> io::Result<()> {
        self.send(Command::WriteZeroes, 0, offset, length).await?;
        self.reply(0, &mut []).await.map(drop)
    }

    /// Which parts of the range read as zero; the runs may end early.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub async fn block_status(&mut self, offset: u64, length: u32) -> io::Result<Vec<Extent>> {
        self.send(Command::BlockStatus, 0, offset, length).await?;
        self.reply(0, &mut []).await
    }

    /// Says goodbye.
    ///
    /// # Errors
    /// When the connection is broken already.
    pub async fn disconnect(mut self) -> io::Result<()> {
        self.send(Command::Disconnect, 0, 0, 0).await?;
        self.stream.shutdown().await
    }
}

/// The part of `into`, which stands for the bytes from `offset` on, at `at`.
fn place(into: &mut [u8], offset: u64, at: u64, length: u32) -> io::Result<&mut [u8]> {
    let from = at.checked_sub(offset).and_then(|from| usize::try_from(from).ok());
    from.and_then(|from| into.get_mut(from..from.checked_add(length as usize)?))
        .ok_or_else(|| protocol("data outside of what was asked for"))
}

fn from_errno(error: u32) -> io::Error {
    io::Error::from_raw_os_error(error.min(i32::MAX as u32) as i32)
}
