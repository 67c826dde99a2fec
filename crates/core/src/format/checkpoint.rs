//! Map pages and checkpoints in bytes. Drawn in `docs/formats.md`, section "Checkpoint".
//!
//! A checkpoint is a tree of immutable objects, each named by the keyed hash of its bytes: the root
//! names *parts*, which list the hashes of map pages and the live segments, so that neither a large
//! disk nor a long log makes the root large, and what did not change is shared with the checkpoint
//! before.
//!
//! ```text
//! root --+-- table part (1024 page hashes) --+-- map page (4096 blocks)
//!        |                                   '-- ...
//!        '-- segment part (512 live segments)
//! ```
//!
//! Encodings are canonical: equal content has equal bytes, hence equal names; a decoder refuses
//! what the encoder would not have written.

mod page;
mod root;
#[cfg(test)]
mod tests;
mod wire;

pub use page::{PageContent, decode_page, encode_page};
pub use root::{EncodedRoot, LiveSegment, Root, RootHead};

use crate::ids::ObjectHash;

/// Bytes that are not a checkpoint object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not those that the name promises.
    #[error("object {expected} has the hash {found}: its bytes are damaged; get another copy")]
    WrongHash {
        /// The name.
        expected: ObjectHash,
        /// The hash of the bytes.
        found: ObjectHash,
    },
    /// The object ends early.
    #[error("checkpoint object ends within its {0}")]
    Truncated(&'static str),
    /// The object is of another kind, or no object at all.
    #[error("not a {0}")]
    WrongMagic(&'static str),
    /// The object is of a version that this program does not read.
    #[error("checkpoint object of version {0}; this program reads version 1: upgrade it")]
    WrongVersion(u16),
    /// Something in it cannot be.
    #[error("checkpoint object is wrong: {0}")]
    Wrong(&'static str),
}

/// Checks that bytes are those that a name promises.
///
/// # Errors
/// [`DecodeError::WrongHash`].
pub fn check_hash(
    key: &crate::ids::HashKey,
    expected: ObjectHash,
    bytes: &[u8],
) -> Result<(), DecodeError> {
    let found = key.object(bytes);
    if found == expected { Ok(()) } else { Err(DecodeError::WrongHash { expected, found }) }
}
