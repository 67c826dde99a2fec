//! Reading and writing of little-endian fields, with every length checked before it is used.

use super::DecodeError;
use crate::ids::{Epoch, Incarnation, SegmentName, Sequence};

/// First version of all checkpoint objects, and the only one of most.
pub(super) const VERSION: u16 = 1;

/// Bytes of a segment name.
pub(super) const NAME_BYTES: usize = 20;

pub(super) fn put_head(into: &mut Vec<u8>, magic: &[u8; 8], version: u16) {
    into.extend_from_slice(magic);
    into.extend_from_slice(&version.to_le_bytes());
}

pub(super) fn put_name(into: &mut Vec<u8>, name: SegmentName) {
    into.extend_from_slice(&name.sequence.0.to_le_bytes());
    into.extend_from_slice(&name.epoch.0.to_le_bytes());
    into.extend_from_slice(&name.incarnation.0.to_le_bytes());
}

pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// What is being read, for the error.
    part: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads the magic and the version.
    pub(super) fn open(
        bytes: &'a [u8],
        magic: &[u8; 8],
        what: &'static str,
    ) -> Result<Self, DecodeError> {
        Self::open_up_to(VERSION, bytes, magic, what).map(|(reader, _version)| reader)
    }

    /// Reads the magic and a version, which is not above `newest`.
    pub(super) fn open_up_to(
        newest: u16,
        bytes: &'a [u8],
        magic: &[u8; 8],
        what: &'static str,
    ) -> Result<(Self, u16), DecodeError> {
        let mut reader = Self { rest: bytes, part: "header" };
        if reader.take(8)? != magic {
            return Err(DecodeError::WrongMagic(what));
        }
        match reader.u16()? {
            version if (VERSION..=newest).contains(&version) => Ok((reader, version)),
            version => Err(DecodeError::WrongVersion(version)),
        }
    }

    /// Names what comes next, and checks that `count` of `bytes_each` are there, so that no count
    /// can make the caller allocate more than the object is long.
    pub(super) fn part(
        &mut self,
        part: &'static str,
        count: u32,
        bytes_each: usize,
    ) -> Result<(), DecodeError> {
        self.part = part;
        let needed = u64::from(count) * bytes_each as u64;
        if (self.rest.len() as u64) < needed {
            return Err(DecodeError::Truncated(part));
        }
        Ok(())
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) =
            self.rest.split_at_checked(count).ok_or(DecodeError::Truncated(self.part))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn name(&mut self) -> Result<SegmentName, DecodeError> {
        Ok(SegmentName {
            sequence: Sequence(self.u64()?),
            epoch: Epoch(self.u64()?),
            incarnation: Incarnation(self.u32()?),
        })
    }

    /// Everything must have been read.
    pub(super) fn end(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Wrong("bytes behind its end")) }
    }
}

/// Passes when the items strictly ascend.
pub(super) fn check_ascending<T: Ord>(items: &[T], wrong: &'static str) -> Result<(), DecodeError> {
    if items.is_sorted_by(|a, b| a < b) { Ok(()) } else { Err(DecodeError::Wrong(wrong)) }
}
