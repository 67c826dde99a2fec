//! A record of the slot table.
//!
//! ```text
//! byte  0  8  magic "PNR-SLOT"
//!       8 16  volume id (big endian)
//!      24  8  sequence     32  8  epoch     40  4  incarnation
//!      44  4  line         48  2  mask: bit n says that page n of the line is here
//!      50 10  zero         60  4  CRC32C of bytes 0..60
//! ```
//! Numbers are little endian but for the volume id.

use pannier_core::cache::LineKey;
use pannier_core::format::segment::crc32c;
use pannier_core::ids::{Epoch, Incarnation, SegmentId, SegmentName, Sequence, VolumeId};

pub(super) const RECORD_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"PNR-SLOT";

/// What a slot has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) key: LineKey,
    pub(super) mask: u16,
}

impl Record {
    pub(super) fn encode(&self) -> [u8; RECORD_BYTES] {
        let SegmentId { volume, name } = self.key.segment;
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..24].copy_from_slice(&volume.0.to_be_bytes());
        bytes[24..32].copy_from_slice(&name.sequence.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&name.epoch.0.to_le_bytes());
        bytes[40..44].copy_from_slice(&name.incarnation.0.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.key.line.to_le_bytes());
        bytes[48..50].copy_from_slice(&self.mask.to_le_bytes());
        let crc = crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The record in a slot; `None` when it is free, torn or empty.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let crc = u32::from_le_bytes(bytes.get(60..64)?.try_into().ok()?);
        if &bytes[..8] != MAGIC || crc != crc32c(&bytes[..60]) {
            return None;
        }
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes[at..at + 4].try_into().ok()?));
        let volume = VolumeId(u128::from_be_bytes(bytes[8..24].try_into().ok()?));
        let name = SegmentName {
            sequence: Sequence(u64_at(24)?),
            epoch: Epoch(u64_at(32)?),
            incarnation: Incarnation(u32_at(40)?),
        };
        let mask = u16::from_le_bytes([bytes[48], bytes[49]]);
        let key = LineKey { segment: SegmentId { volume, name }, line: u32_at(44)? };
        (mask != 0).then_some(Self { key, mask })
    }
}
