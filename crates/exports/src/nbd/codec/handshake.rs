//! Handshake phase: greeting, options, replies to options.
//!
//! ```text
//! greeting      "NBDMAGIC" | "IHAVEOPT" | handshake flags 2        client: flags 4
//! option        "IHAVEOPT" | option 4 | length 4 | data
//! option reply  magic 8 | option 4 | type 4 | length 4 | data
//! ```

use super::{Malformed, u16_at, u32_at, u64_at};
use crate::nbd::limits;

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Size in bytes of the greeting.
pub const GREETING_BYTES: usize = 18;

/// Size in bytes of an option without its data.
pub const OPTION_BYTES: usize = 16;

/// Size in bytes of an option reply without its data.
pub const REPLY_BYTES: usize = 20;

/// Handshake flag, both ways: options may be refused and the session goes on.
pub const FIXED_NEWSTYLE: u16 = 1;

/// Handshake flag, both ways: `EXPORT_NAME` is answered without 124 zeroes.
pub const NO_ZEROES: u16 = 2;

/// Option numbers.
pub mod option {
    /// Choose an export, the old way: no error reply.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// List exports.
    pub const LIST: u32 = 3;
    /// Ask about an export.
    pub const INFO: u32 = 6;
    /// Choose an export.
    pub const GO: u32 = 7;
    /// Ask for structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Which meta contexts there are.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select meta contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of option replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Reply {
    /// Done.
    Ack = 1,
    /// One export of a listing.
    Server = 2,
    /// One piece of information about an export.
    Info = 3,
    /// One meta context.
    MetaContext = 4,
    /// The option is not known here.
    ErrUnsup = 1 << 31 | 1,
    /// The export cannot be served now.
    ErrPolicy = 1 << 31 | 2,
    /// The option is malformed.
    ErrInvalid = 1 << 31 | 3,
    /// There is no such export.
    ErrUnknown = 1 << 31 | 6,
    /// The server shuts down.
    ErrShutdown = 1 << 31 | 7,
    /// More than the server is willing to handle.
    ErrTooBig = 1 << 31 | 9,
}

/// Types of information in [`Reply::Info`].
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The export's canonical name.
    pub const NAME: u16 = 1;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// The one meta context.
pub const ALLOCATION: &str = "base:allocation";

/// What the server says first.
#[must_use]
pub fn greeting() -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..8].copy_from_slice(&NBD_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    bytes
}

/// Checks a server's greeting, for clients.
///
/// # Errors
/// When it is not that of a fixed newstyle server.
pub fn parse_greeting(bytes: &[u8; GREETING_BYTES]) -> Result<(), Malformed> {
    for (at, magic) in [(0, NBD_MAGIC), (8, OPTION_MAGIC)] {
        let found = u64_at(bytes, at);
        if found != magic {
            return Err(Malformed::Magic { what: "the greeting", found });
        }
    }
    if u16_at(bytes, 16) & FIXED_NEWSTYLE == 0 { Err(Malformed::NotFixed) } else { Ok(()) }
}

/// What the client's flags say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientFlags {
    /// `EXPORT_NAME` is answered without padding.
    pub no_zeroes: bool,
}

impl ClientFlags {
    /// Parses the client's answer to the greeting.
    ///
    /// # Errors
    /// On flags that were not offered, and without fixed newstyle.
    pub fn parse(bytes: [u8; 4]) -> Result<Self, Malformed> {
        let flags = u32::from_be_bytes(bytes);
        let (fixed, no_zeroes) = (u32::from(FIXED_NEWSTYLE), u32::from(NO_ZEROES));
        if flags & !(fixed | no_zeroes) != 0 {
            return Err(Malformed::ClientFlags(flags));
        }
        if flags & fixed == 0 {
            return Err(Malformed::NotFixed);
        }
        Ok(Self { no_zeroes: flags & no_zeroes != 0 })
    }
}

/// An option without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// Its number, see [`option`].
    pub option: u32,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionHeader {
    /// Parses an option's header.
    ///
    /// # Errors
    /// When the magic is wrong or the data would be longer than any honest option's.
    pub fn parse(bytes: &[u8; OPTION_BYTES]) -> Result<Self, Malformed> {
        let magic = u64_at(bytes, 0);
        if magic != OPTION_MAGIC {
            return Err(Malformed::Magic { what: "an option", found: magic });
        }
        let (option, length) = (u32_at(bytes, 8), u32_at(bytes, 12));
        if length > limits::OPTION_BYTES_MAX {
            return Err(Malformed::OptionTooLong { option, length });
        }
        Ok(Self { option, length })
    }
}

/// An option with its data, for clients.
#[must_use]
pub fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(OPTION_BYTES + data.len());
    bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// Appends a reply to an option.
pub fn push_reply(out: &mut Vec<u8>, option: u32, reply: Reply, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&(reply as u32).to_be_bytes());
    out.extend_from_slice(&(length as u32).to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// A reply's type and length of data, for clients.
///
/// # Errors
/// When the magic is wrong.
pub fn parse_reply(bytes: &[u8; REPLY_BYTES]) -> Result<(u32, u32), Malformed> {
    let magic = u64_at(bytes, 0);
    if magic != REPLY_MAGIC {
        return Err(Malformed::Magic { what: "an option reply", found: magic });
    }
    Ok((u32_at(bytes, 12), u32_at(bytes, 16)))
}

/// Transmission flags of an export.
#[must_use]
pub fn transmission_flags(read_only: bool, structured: bool) -> u16 {
    const HAS_FLAGS: u16 = 1;
    const READ_ONLY: u16 = 1 << 1;
    const SEND_FLUSH: u16 = 1 << 2;
    const SEND_FUA: u16 = 1 << 3;
    const SEND_TRIM: u16 = 1 << 5;
    const SEND_WRITE_ZEROES: u16 = 1 << 6;
    const SEND_DF: u16 = 1 << 7;
    const CAN_MULTI_CONN: u16 = 1 << 8;
    const SEND_CACHE: u16 = 1 << 10;
    const SEND_FAST_ZERO: u16 = 1 << 11;
    let mut flags = HAS_FLAGS
        | SEND_FLUSH
        | SEND_FUA
        | SEND_TRIM
        | SEND_WRITE_ZEROES
        | CAN_MULTI_CONN
        | SEND_CACHE
        | SEND_FAST_ZERO;
    if read_only {
        flags |= READ_ONLY;
    }
    if structured {
        flags |= SEND_DF;
    }
    flags
}

/// Data of an `INFO` or `GO` option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// The export's name as the client gave it.
    pub name: &'a str,
    /// Whether its canonical name is asked for.
    pub wants_name: bool,
}

impl<'a> InfoRequest<'a> {
    /// Parses the data; `None` when they are malformed.
    #[must_use]
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let (name, rest) = take_string(data)?;
        let (count, wishes) = rest.split_first_chunk::<2>()?;
        if wishes.len() != 2 * usize::from(u16::from_be_bytes(*count)) {
            return None;
        }
        let wants_name = wishes.chunks_exact(2).any(|wish| u16_at(wish, 0) == info::NAME);
        Some(Self { name, wants_name })
    }

    /// Data of an `INFO` or `GO` option, for clients: asks for the block size.
    #[must_use]
    pub fn encode(name: &str) -> Vec<u8> {
        let mut data = Vec::with_capacity(8 + name.len());
        data.extend_from_slice(&(name.len() as u32).to_be_bytes());
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&1u16.to_be_bytes());
        data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        data
    }
}

/// Data of a meta context option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaRequest<'a> {
    /// The export's name as the client gave it.
    pub name: &'a str,
    /// The queries.
    pub queries: Vec<&'a str>,
}

/// Why a meta context option is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaError {
    /// It is malformed.
    Invalid,
    /// It has too many queries.
    TooBig,
}

impl<'a> MetaRequest<'a> {
    /// Parses the data.
    ///
    /// # Errors
    /// When they are malformed or have more than [`limits::QUERIES_MAX`] queries.
    pub fn parse(data: &'a [u8]) -> Result<Self, MetaError> {
        let (name, rest) = take_string(data).ok_or(MetaError::Invalid)?;
        let (count, mut rest) = rest.split_first_chunk::<4>().ok_or(MetaError::Invalid)?;
        let count = u32::from_be_bytes(*count) as usize;
        if count > limits::QUERIES_MAX {
            return Err(MetaError::TooBig);
        }
        let mut queries = Vec::with_capacity(count);
        for _ in 0..count {
            let (query, behind) = take_string(rest).ok_or(MetaError::Invalid)?;
            queries.push(query);
            rest = behind;
        }
        if rest.is_empty() { Ok(Self { name, queries }) } else { Err(MetaError::Invalid) }
    }

    /// Whether a listing for these queries names `base:allocation`: without queries everything is
    /// listed, and `base:` is a wildcard.
    #[must_use]
    pub fn lists_allocation(&self) -> bool {
        self.queries.is_empty() || self.queries.iter().any(|q| *q == ALLOCATION || *q == "base:")
    }

    /// Whether these queries select `base:allocation`: no wildcards.
    #[must_use]
    pub fn selects_allocation(&self) -> bool {
        self.queries.contains(&ALLOCATION)
    }
}

/// A string behind its length, and what follows it.
fn take_string(data: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    let (text, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}
