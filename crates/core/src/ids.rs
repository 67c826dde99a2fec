//! Names of things: volumes, hosts, sites, epochs, segments, hashes.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A volume's identity: random, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeId(pub u128);

/// A host's identity: random, drawn when the host joins, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostId(pub u64);

/// A site's name, such as `west`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SiteName(pub String);

/// The right to append to a volume is held under an epoch. Epochs of a volume only grow; a reserved
/// one is never used again, even when its transit is aborted. The high 16 bits are the cluster's
/// generation.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The next epoch of the same cluster generation.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Every start of an owner within an epoch is a new incarnation.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Incarnation(pub u32);

/// Position of a segment in its volume's log: grows by one from segment to segment, across
/// incarnations and epochs. The first segment of a volume is 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Sequence(pub u64);

/// A segment's name within its volume: `<epoch>.<incarnation>-<sequence>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SegmentName {
    /// Position in the log. First, so that names order as the log does.
    pub sequence: Sequence,
    /// Epoch of the owner that wrote it.
    pub epoch: Epoch,
    /// Incarnation of the owner that wrote it.
    pub incarnation: Incarnation,
}

/// A segment's full name: `<volume-uuid>/<epoch>.<incarnation>-<sequence>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SegmentId {
    /// The volume whose log the segment is part of.
    pub volume: VolumeId,
    /// Its name there.
    pub name: SegmentName,
}

/// Identity of one block: BLAKE3 keyed with the cluster's key, first 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockHash(pub [u8; 16]);

/// Identity of a sealed segment: keyed BLAKE3 over header, index and block table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SegmentHash(pub [u8; 32]);

/// Identity of an immutable object (map page, checkpoint): keyed BLAKE3 over its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectHash(pub [u8; 32]);

/// The cluster's key for all keyed hashes.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashKey(pub [u8; 32]);

/// A forwarding session: random, one per attachment and start of the forwarding daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// Number of a request within its forwarding session, counted from 1 without gaps.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct RequestNumber(pub u64);

/// A text that is not a name of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseIdError {
    text: String,
    expected: &'static str,
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", self.0);
        write!(f, "{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

impl FromStr for VolumeId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex: String = text.chars().filter(|c| *c != '-').collect();
        let fail = || ParseIdError { text: text.to_owned(), expected: "a volume id (a UUID)" };
        if hex.len() != 32 {
            return Err(fail());
        }
        u128::from_str_radix(&hex, 16).map(Self).map_err(|_not_hex| fail())
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for HostId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || ParseIdError { text: text.to_owned(), expected: "a host id (16 hex digits)" };
        if text.len() != 16 {
            return Err(fail());
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_not_hex| fail())
    }
}

impl fmt::Display for SiteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}-{}", self.epoch.0, self.incarnation.0, self.sequence.0)
    }
}

impl FromStr for SegmentName {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (owner, sequence) = text.split_once('-')?;
            let (epoch, incarnation) = owner.split_once('.')?;
            Some(Self {
                sequence: Sequence(sequence.parse().ok()?),
                epoch: Epoch(epoch.parse().ok()?),
                incarnation: Incarnation(incarnation.parse().ok()?),
            })
        };
        parse().ok_or_else(|| ParseIdError {
            text: text.to_owned(),
            expected: "a segment name (<epoch>.<incarnation>-<sequence>)",
        })
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.volume, self.name)
    }
}

macro_rules! debug_as_display {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    )*};
}
debug_as_display!(VolumeId, HostId, SegmentName, SegmentId, BlockHash, SegmentHash, ObjectHash);

macro_rules! display_as_hex {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }
    )*};
}
display_as_hex!(BlockHash, SegmentHash, ObjectHash);

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(..)")
    }
}

impl HashKey {
    /// Identity of one block's bytes.
    #[must_use]
    pub fn block(&self, block: &[u8]) -> BlockHash {
        let full = blake3::keyed_hash(&self.0, block);
        let mut hash = [0; 16];
        hash.copy_from_slice(&full.as_bytes()[..16]);
        BlockHash(hash)
    }

    /// Identity of an immutable object's bytes.
    #[must_use]
    pub fn object(&self, bytes: &[u8]) -> ObjectHash {
        ObjectHash(*blake3::keyed_hash(&self.0, bytes).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_text() {
        let name =
            SegmentName { sequence: Sequence(17), epoch: Epoch(3), incarnation: Incarnation(2) };
        assert_eq!(name.to_string(), "3.2-17");
        assert_eq!("3.2-17".parse(), Ok(name));
        let volume = VolumeId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(volume.to_string(), "01234567-89ab-cdef-0123-456789abcdef");
        assert_eq!(volume.to_string().parse(), Ok(volume));
        assert!("3-17".parse::<SegmentName>().is_err());
        assert!("zz".parse::<VolumeId>().is_err());
    }
}
