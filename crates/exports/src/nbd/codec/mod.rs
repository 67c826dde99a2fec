//! The protocol's bytes, without I/O: requests and options in, replies out, both ways, so that
//! clients and tests use it as well.

pub mod handshake;
pub mod transmission;

#[cfg(test)]
mod tests;

/// Error values that may stand in a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// The export is read-only.
    Perm = 1,
    /// Input/output error.
    Io = 5,
    /// The request is wrong.
    Inval = 22,
    /// No space left, or a write beyond the end.
    NoSpc = 28,
    /// A fast zero that would not be fast.
    NotSup = 95,
    /// The server shuts down, or the device is no longer served here.
    Shutdown = 108,
}

/// Bytes that are not the protocol: the connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The magic number of a message is wrong.
    #[error("{what} has magic {found:#x}")]
    Magic {
        /// Which message.
        what: &'static str,
        /// What stood there.
        found: u64,
    },
    /// Client flags that were not offered.
    #[error("client flags {0:#x} were not offered")]
    ClientFlags(u32),
    /// A client without fixed newstyle.
    #[error("the client does not speak fixed newstyle")]
    NotFixed,
    /// An option longer than any honest one.
    #[error("option {option} has {length} bytes of data, more than any needs")]
    OptionTooLong {
        /// The option's number.
        option: u32,
        /// Its claimed length in bytes.
        length: u32,
    },
    /// More options than any client needs.
    #[error("too many options")]
    TooManyOptions,
    /// An export name that is not UTF-8 in `EXPORT_NAME`, which has no error reply.
    #[error("the export name is not UTF-8")]
    Name,
}

/// Reads a big-endian `u16` at `at`. The caller has checked the length.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a big-endian `u32` at `at`. The caller has checked the length.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Reads a big-endian `u64` at `at`. The caller has checked the length.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}
