//! Transmission phase: requests, and simple and structured replies.
//!
//! ```text
//! request     magic 4 | flags 2 | command 2 | cookie 8 | offset 8 | length 4 | data (WRITE)
//! simple      magic 4 | error 4 | cookie 8 | data (READ)
//! structured  magic 4 | flags 2 | type 2 | cookie 8 | length 4 | payload
//! ```

use super::{Errno, Malformed, u16_at, u32_at, u64_at};
use crate::nbd::limits;
use pannier_core::units::SECTOR_BYTES;
use pannier_engine::port::{ExtentState, StatusExtent};

/// Size in bytes of a request without its data.
pub const REQUEST_BYTES: usize = 28;

/// Size in bytes of a simple reply without data.
pub const SIMPLE_BYTES: usize = 16;

/// Size in bytes of a structured reply chunk's header.
pub const CHUNK_BYTES: usize = 20;

/// Largest head in bytes of a reply to READ: chunk header and offset.
pub const READ_HEAD_BYTES: usize = CHUNK_BYTES + 8;

const REQUEST_MAGIC: u32 = 0x2560_9513;

/// First four bytes of a simple reply.
pub const SIMPLE_MAGIC: u32 = 0x6744_6698;

/// First four bytes of a structured reply chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Chunk flag: the last chunk of its reply.
pub const CHUNK_DONE: u16 = 1;

/// Chunk types.
pub mod chunk {
    /// Success without content.
    pub const NONE: u16 = 0;
    /// Offset and data.
    pub const OFFSET_DATA: u16 = 1;
    /// Offset and length of zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// Context id and extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// Error and message.
    pub const ERROR: u16 = 1 << 15 | 1;
}

/// Command flags.
pub mod flag {
    /// Reply only when durable.
    pub const FUA: u16 = 1;
    /// WRITE_ZEROES: keep space for the range.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ: one chunk.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS: one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES: fail if not faster than a write.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Read a range.
    Read,
    /// Write a range; its data follow.
    Write,
    /// End of the session.
    Disconnect,
    /// Make completed writes durable.
    Flush,
    /// Give a range's space back.
    Trim,
    /// Make a range resident.
    Cache,
    /// Zero a range.
    WriteZeroes,
    /// Which parts of a range are allocated.
    BlockStatus,
    /// A command that this server does not know.
    Unknown(u16),
}

impl Command {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Unknown(number) => number,
        }
    }

    /// The command with that number.
    #[must_use]
    pub const fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            other => Self::Unknown(other),
        }
    }
}

/// The client's name for a request, repeated in every reply to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cookie(pub u64);

/// A request without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Command flags, see [`flag`].
    pub flags: u16,
    /// What is asked for.
    pub command: Command,
    /// The client's name for it.
    pub cookie: Cookie,
    /// First byte on the device.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
}

impl Request {
    /// Parses a request.
    ///
    /// # Errors
    /// When the magic is wrong: where the next request begins is then unknown.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, Malformed> {
        let magic = u32_at(bytes, 0);
        if magic != REQUEST_MAGIC {
            return Err(Malformed::Magic { what: "a request", found: magic.into() });
        }
        Ok(Self {
            flags: u16_at(bytes, 4),
            command: Command::from_number(u16_at(bytes, 6)),
            cookie: Cookie(u64_at(bytes, 8)),
            offset: u64_at(bytes, 16),
            length: u32_at(bytes, 24),
        })
    }

    /// The request's bytes, for clients.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.number().to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.0.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Bytes of data that follow the request on the wire.
    #[must_use]
    pub fn data_bytes(&self) -> u32 {
        if self.command == Command::Write { self.length } else { 0 }
    }
}

/// What was negotiated and what the device is: all that a request is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Size of the device in bytes, now.
    pub size_bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether structured replies were negotiated.
    pub structured: bool,
    /// Whether `base:allocation` was selected.
    pub allocation: bool,
}

/// Judges a request: `Ok` when it can be handed to the device as it is.
///
/// # Errors
/// The error that the reply carries, chosen as the protocol document says: `Inval` for unknown
/// commands and flags, for unaligned, empty and overlong ranges and for reads beyond the end,
/// `NoSpc` for writes beyond the end, `Perm` for changes of a read-only export.
pub fn admit(request: &Request, terms: &Terms) -> Result<(), Errno> {
    let known = match request.command {
        Command::Read if terms.structured => flag::FUA | flag::DF,
        Command::WriteZeroes => flag::FUA | flag::NO_HOLE | flag::FAST_ZERO,
        Command::BlockStatus => flag::FUA | flag::REQ_ONE,
        Command::Read
        | Command::Write
        | Command::Disconnect
        | Command::Flush
        | Command::Trim
        | Command::Cache => flag::FUA,
        Command::Unknown(_) => return Err(Errno::Inval),
    };
    if request.flags & !known != 0 {
        return Err(Errno::Inval);
    }
    let changes = matches!(request.command, Command::Write | Command::Trim | Command::WriteZeroes);
    if changes && terms.read_only {
        return Err(Errno::Perm);
    }
    match request.command {
        Command::Disconnect => return Ok(()),
        Command::Flush if request.offset == 0 && request.length == 0 => return Ok(()),
        Command::Flush => return Err(Errno::Inval),
        Command::BlockStatus if !terms.allocation => return Err(Errno::Inval),
        Command::Read | Command::Write if request.length > limits::REQUEST_BYTES_MAX => {
            return Err(Errno::Inval);
        }
        _ => {}
    }
    let aligned = request.offset.is_multiple_of(SECTOR_BYTES)
        && u64::from(request.length).is_multiple_of(SECTOR_BYTES);
    if request.length == 0 || !aligned {
        return Err(Errno::Inval);
    }
    match request.offset.checked_add(request.length.into()) {
        Some(end) if end <= terms.size_bytes => Ok(()),
        Some(_) | None => match request.command {
            Command::Write | Command::WriteZeroes => Err(Errno::NoSpc),
            _ => Err(Errno::Inval),
        },
    }
}

/// A simple reply; after one without error to READ its data follow.
#[must_use]
pub fn simple(cookie: Cookie, error: Option<Errno>) -> [u8; SIMPLE_BYTES] {
    let mut bytes = [0; SIMPLE_BYTES];
    bytes[..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.map_or(0, |error| error as u32).to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.0.to_be_bytes());
    bytes
}

/// The header of a chunk that is its reply's only one.
fn chunk_header(kind: u16, cookie: Cookie, length: u32) -> [u8; CHUNK_BYTES] {
    let mut bytes = [0; CHUNK_BYTES];
    bytes[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&CHUNK_DONE.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.0.to_be_bytes());
    bytes[16..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// The first bytes of a reply: at most [`READ_HEAD_BYTES`].
#[derive(Debug, Clone, Copy)]
pub struct Head {
    bytes: [u8; READ_HEAD_BYTES],
    length: u8,
}

impl Head {
    fn new(parts: [&[u8]; 2]) -> Self {
        let mut head = Self { bytes: [0; READ_HEAD_BYTES], length: 0 };
        for part in parts {
            let at = usize::from(head.length);
            head.bytes[at..at + part.len()].copy_from_slice(part);
            head.length += part.len() as u8;
        }
        head
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The whole reply to a request that succeeded and has no data.
    #[must_use]
    pub fn simple(cookie: Cookie) -> Self {
        Self::new([&simple(cookie, None), &[]])
    }

    /// What precedes the data of a successful READ.
    #[must_use]
    pub fn read(structured: bool, cookie: Cookie, offset: u64, length: u32) -> Self {
        if structured {
            let header = chunk_header(chunk::OFFSET_DATA, cookie, length + 8);
            Self::new([&header, &offset.to_be_bytes()])
        } else {
            Self::new([&simple(cookie, None), &[]])
        }
    }

    /// The whole reply to a request that failed. READ and BLOCK_STATUS need a chunk once structured
    /// replies are negotiated; all others are answered simply.
    #[must_use]
    pub fn error(structured: bool, command: Command, cookie: Cookie, error: Errno) -> Self {
        if structured && matches!(command, Command::Read | Command::BlockStatus) {
            let mut payload = [0; 6];
            payload[..4].copy_from_slice(&(error as u32).to_be_bytes());
            Self::new([&chunk_header(chunk::ERROR, cookie, 6), &payload])
        } else {
            Self::new([&simple(cookie, Some(error)), &[]])
        }
    }

    /// What precedes the extents of a block status reply.
    #[must_use]
    pub fn block_status(cookie: Cookie, context: u32, extents: usize) -> Self {
        let header = chunk_header(chunk::BLOCK_STATUS, cookie, 4 + 8 * extents as u32);
        Self::new([&header, &context.to_be_bytes()])
    }
}

/// Encodes extents as `base:allocation` descriptors: neighbours in one state are joined, nothing
/// reaches beyond `length`, and with `one` only the first is kept.
#[must_use]
pub fn descriptors(extents: &[StatusExtent], length: u32, one: bool) -> Vec<u8> {
    const HOLE: u32 = 1;
    const ZERO: u32 = 2;
    let mut runs: Vec<(u64, u32)> = Vec::with_capacity(extents.len());
    let mut left = u64::from(length);
    for extent in extents {
        let part = extent.length.min(left);
        let state = match extent.state {
            ExtentState::Data => 0,
            ExtentState::Zero => ZERO,
            ExtentState::Hole => HOLE | ZERO,
        };
        left -= part;
        match runs.last_mut() {
            Some((run, of)) if *of == state => *run += part,
            _ if part > 0 => runs.push((part, state)),
            _ => {}
        }
    }
    runs.truncate(if one { 1 } else { limits::EXTENTS_MAX });
    let mut bytes = Vec::with_capacity(8 * runs.len());
    for (run, state) in runs {
        bytes.extend_from_slice(&(run as u32).to_be_bytes());
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes
}
