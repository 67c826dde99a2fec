//! Page 1 of a segment file, and what a seal writes.

use super::bytes::{
    core_of, core_page, get, get_u16, get_u32, get_u64, put, put_u16, put_u32, put_u64,
};
use super::entry::{ENTRY_BYTES, Link};
use super::header::Header;
use super::meta::SegmentMeta;
use super::{PAGE_BYTES, Page, pages_for};
use crate::ids::SegmentHash;
use crate::units::PageIndex;

const MAGIC: [u8; 8] = *b"PNR-SEAL";
const VERSION: u16 = 1;

/// Bytes of the seal record that carry something.
pub(super) const CORE_BYTES: usize = 96;

/// Bytes of one hash in the block table.
pub(super) const HASH_BYTES: usize = 16;

/// What page 1 says of a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealRecord {
    /// The header's nonce: an earlier use's seal record does not pass.
    pub nonce: u64,
    /// Entries of the segment.
    pub entries: u32,
    /// Data pages of the segment, and hashes in its block table.
    pub data_pages: u32,
    /// Entries that were durable when the record was written: a reader checks the data of the
    /// others before it believes the seal.
    pub durable: u32,
    /// First page behind the groups. The index begins there, the block table at the page after it.
    pub tail: PageIndex,
    /// Where the predecessor's part of the log ends.
    pub link: Link,
    /// Chain CRC of the last entry; of an empty segment, its seed.
    pub last_chain_crc: u32,
    /// The segment's identity.
    pub hash: SegmentHash,
}

impl SealRecord {
    /// The link of a segment that follows this one.
    #[must_use]
    pub fn next_link(&self) -> Link {
        Link { entries: self.entries, chain_crc: self.last_chain_crc }
    }

    /// First page of the index.
    #[must_use]
    pub fn index_page(&self) -> PageIndex {
        self.tail
    }

    /// First page of the block table.
    #[must_use]
    pub fn table_page(&self) -> PageIndex {
        self.tail.plus(pages_for(self.index_bytes()) as u32)
    }

    /// Bytes of the index.
    pub(super) fn index_bytes(&self) -> usize {
        self.entries as usize * ENTRY_BYTES
    }

    /// Bytes of the block table.
    pub(super) fn table_bytes(&self) -> usize {
        self.data_pages as usize * HASH_BYTES
    }

    pub(super) fn encode_core(&self) -> [u8; CORE_BYTES] {
        let mut core = [0; CORE_BYTES];
        put(&mut core, 0, &MAGIC);
        put_u16(&mut core, 8, VERSION);
        put_u32(&mut core, 12, self.entries);
        put_u64(&mut core, 16, self.nonce);
        put_u32(&mut core, 24, self.data_pages);
        put_u32(&mut core, 28, self.durable);
        put_u32(&mut core, 32, self.tail.0);
        put_u32(&mut core, 36, self.link.entries);
        put_u32(&mut core, 40, self.link.chain_crc);
        put_u32(&mut core, 44, self.last_chain_crc);
        put(&mut core, 64, &self.hash.0);
        core
    }

    /// The record's page.
    #[must_use]
    pub fn encode(&self) -> Box<Page> {
        core_page(&self.encode_core())
    }

    /// The record in `page`, if this use of the file wrote it and it is whole.
    pub(super) fn decode(page: &[u8], header: &Header) -> Option<Self> {
        let (core, rest_is_zero) = core_of(page, CORE_BYTES)?;
        Self::decode_core(core, header).filter(|_record| rest_is_zero)
    }

    /// Reads the core of a record and checks that it fits the segment of `header`.
    pub(super) fn decode_core(core: &[u8], header: &Header) -> Option<Self> {
        if core.len() != CORE_BYTES || core[..8] != MAGIC || get_u16(core, 8) != VERSION {
            return None;
        }
        let record = Self {
            nonce: get_u64(core, 16),
            entries: get_u32(core, 12),
            data_pages: get_u32(core, 24),
            durable: get_u32(core, 28),
            tail: PageIndex(get_u32(core, 32)),
            link: Link { entries: get_u32(core, 36), chain_crc: get_u32(core, 40) },
            last_chain_crc: get_u32(core, 44),
            hash: SegmentHash(get(core, 64)),
        };
        let end = u64::from(record.tail.0)
            + index_and_table_pages(record.entries.into(), record.data_pages.into());
        let fits = record.nonce == header.nonce
            && end <= header.capacity_pages.into()
            && record.encode_core() == core;
        fits.then_some(record)
    }
}

/// Pages that the index of `entries` and the table of `data_pages` take.
pub(super) fn index_and_table_pages(entries: u64, data_pages: u64) -> u64 {
    let page = PAGE_BYTES as u64;
    (entries * ENTRY_BYTES as u64).div_ceil(page) + (data_pages * HASH_BYTES as u64).div_ceil(page)
}

/// What a seal writes: [`bytes`](Self::bytes) at [`page`](Self::page) and [`record`](Self::record)
/// at page 1, then `fdatasync`. Neither their order nor that of the groups' data before them
/// matters: a record counts only with the segment hash, and with the data that its `durable` does
/// not cover.
#[derive(Debug)]
pub struct Sealing {
    page: PageIndex,
    bytes: Vec<u8>,
    meta: SegmentMeta,
}

impl Sealing {
    /// What writes the seal of a segment with this metadata: for the first time, as a
    /// repair, or in a copy.
    #[must_use]
    pub fn of(meta: SegmentMeta) -> Self {
        let index = meta.index_bytes();
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&index);
        bytes.resize(pages_for(index.len()) * PAGE_BYTES, 0);
        bytes.extend(meta.table().iter().flat_map(|hash| hash.0));
        bytes.resize(pages_for(bytes.len()) * PAGE_BYTES, 0);
        Self { page: meta.seal().tail, bytes, meta }
    }

    /// Where [`Self::bytes`] go.
    #[must_use]
    pub fn page(&self) -> PageIndex {
        self.page
    }

    /// Index and block table, whole pages.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Page 1.
    #[must_use]
    pub fn record(&self) -> Box<Page> {
        self.meta.seal().encode()
    }

    /// The segment's identity.
    #[must_use]
    pub fn hash(&self) -> SegmentHash {
        self.meta.hash()
    }

    /// All that is known of the sealed segment except its data.
    #[must_use]
    pub fn meta(&self) -> &SegmentMeta {
        &self.meta
    }

    /// All that is known of the sealed segment except its data.
    #[must_use]
    pub fn into_meta(self) -> SegmentMeta {
        self.meta
    }
}
