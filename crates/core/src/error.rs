//! The kinds of error at every boundary: what the caller can do, not where it came from.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What the caller of a failed operation can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// Not now: something that is needed is away. Retrying later can work.
    Unavailable,
    /// Another epoch owns the volume; this one never acts again.
    Fenced,
    /// The request itself is wrong; retrying it cannot work.
    Invalid,
    /// No such thing.
    NotFound,
    /// Bytes are not what their hash or format says, and no good copy was found.
    Corrupt,
    /// No space left where it is needed.
    NoSpace,
    /// The thing is shut down or was deleted.
    Closed,
    /// A bug.
    Internal,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unavailable => "unavailable",
            Self::Fenced => "fenced",
            Self::Invalid => "invalid",
            Self::NotFound => "not found",
            Self::Corrupt => "corrupt",
            Self::NoSpace => "no space",
            Self::Closed => "closed",
            Self::Internal => "internal",
        })
    }
}
