//! Page 0 of a segment file: who the segment is.

use super::bytes::{
    core_of, core_page, get, get_u16, get_u32, get_u64, put, put_u16, put_u32, put_u64,
};
use super::limits::{CAPACITY_PAGES_MAX, CAPACITY_PAGES_MIN};
use super::{PAGE_BYTES, Page};
use crate::ids::{Epoch, Incarnation, SegmentId, SegmentName, Sequence, VolumeId};

const MAGIC: [u8; 8] = *b"PNR-SEGM";
const VERSION: u16 = 1;
const HAS_PREDECESSOR: u32 = 1;

/// Bytes of the header that carry something; the rest of its page is zero up to the CRC.
pub(super) const CORE_BYTES: usize = 96;

/// Who a segment is. Page 0 of its file, written and synced, together with the directory entry and
/// a zeroed seal record, before the first append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The volume whose log the segment is part of.
    pub volume: VolumeId,
    /// The segment's name in that log.
    pub name: SegmentName,
    /// Random, drawn for this use of the file: what an earlier use left behind does not carry it.
    pub nonce: u64,
    /// The segment before it in the log, `None` for a volume's first. How many of its entries
    /// precede this segment stands in the groups ([`super::Link`]), because a header is written
    /// ahead, while the predecessor still grows.
    pub predecessor: Option<SegmentName>,
    /// Fixed size of the file in pages.
    pub capacity_pages: u32,
}

/// Why a page is not a segment's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Shorter than a page, or no magic number: never a segment's header.
    #[error("it is not a Pannier segment")]
    NotASegment,
    /// Written by a newer version.
    #[error("it has format version {0}, this version reads version 1; use a newer pannier")]
    Version(u16),
    /// Torn or damaged.
    #[error("its header is damaged (CRC32C or a field does not hold)")]
    Damaged,
}

impl Header {
    /// The segment's full name.
    #[must_use]
    pub fn id(&self) -> SegmentId {
        SegmentId { volume: self.volume, name: self.name }
    }

    /// The header's page.
    #[must_use]
    pub fn encode(&self) -> Box<Page> {
        core_page(&self.encode_core())
    }

    pub(super) fn encode_core(&self) -> [u8; CORE_BYTES] {
        let mut core = [0; CORE_BYTES];
        put(&mut core, 0, &MAGIC);
        put_u16(&mut core, 8, VERSION);
        put_u32(&mut core, 12, self.capacity_pages);
        put(&mut core, 16, &self.volume.0.to_be_bytes());
        put_name(&mut core, 32, self.name);
        put_u64(&mut core, 56, self.nonce);
        if let Some(predecessor) = self.predecessor {
            put_u32(&mut core, 52, HAS_PREDECESSOR);
            put_name(&mut core, 64, predecessor);
        }
        core
    }

    /// Reads a header's page.
    ///
    /// # Errors
    /// [`HeaderError`]: all of them mean that the file is not a segment that was ever used, unless
    /// its medium is damaged: a header is synced before use.
    pub fn decode(page: &[u8]) -> Result<Self, HeaderError> {
        if page.len() < PAGE_BYTES || page[..8] != MAGIC {
            return Err(HeaderError::NotASegment);
        }
        let (core, rest_is_zero) =
            core_of(&page[..PAGE_BYTES], CORE_BYTES).ok_or(HeaderError::Damaged)?;
        let header = Self::decode_core(core)?;
        if rest_is_zero { Ok(header) } else { Err(HeaderError::Damaged) }
    }

    /// Reads the core of a header whose integrity is proven elsewhere (CRC or segment hash).
    pub(super) fn decode_core(core: &[u8]) -> Result<Self, HeaderError> {
        if core.len() != CORE_BYTES || core[..8] != MAGIC {
            return Err(HeaderError::NotASegment);
        }
        let version = get_u16(core, 8);
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let header = Self {
            volume: VolumeId(u128::from_be_bytes(get(core, 16))),
            name: get_name(core, 32),
            nonce: get_u64(core, 56),
            predecessor: (get_u32(core, 52) == HAS_PREDECESSOR).then(|| get_name(core, 64)),
            capacity_pages: get_u32(core, 12),
        };
        let in_bounds = (CAPACITY_PAGES_MIN..=CAPACITY_PAGES_MAX).contains(&header.capacity_pages);
        // One encoding only: reserved bytes are zero and unknown flags are refused.
        if in_bounds && header.encode_core() == core {
            Ok(header)
        } else {
            Err(HeaderError::Damaged)
        }
    }
}

fn put_name(into: &mut [u8], at: usize, name: SegmentName) {
    put_u64(into, at, name.sequence.0);
    put_u64(into, at + 8, name.epoch.0);
    put_u32(into, at + 16, name.incarnation.0);
}

fn get_name(from: &[u8], at: usize) -> SegmentName {
    SegmentName {
        sequence: Sequence(get_u64(from, at)),
        epoch: Epoch(get_u64(from, at + 8)),
        incarnation: Incarnation(get_u32(from, at + 16)),
    }
}
