//! All that is known of a sealed segment except its data, as one byte string.

use super::bytes::{get_u16, get_u32, put, put_u16, put_u32};
use super::entry::{ENTRY_BYTES, Entry, EntryKind, Link};
use super::header::{CORE_BYTES as HEADER_CORE, Header, HeaderError};
use super::seal::{CORE_BYTES as SEAL_CORE, HASH_BYTES, SealRecord};
use super::{FIRST_GROUP_PAGE, bytes, crc32c};
use crate::ids::{BlockHash, HashKey, SegmentHash, SegmentId, SegmentName};
use crate::units::PageIndex;

const MAGIC: [u8; 8] = *b"PNR-META";
const VERSION: u16 = 1;
const HEADER_AT: usize = 16;
const SEAL_AT: usize = HEADER_AT + HEADER_CORE;
const INDEX_AT: usize = SEAL_AT + SEAL_CORE;
const CRC_BYTES: usize = 4;

/// Header, seal record, index and block table of a sealed segment: enough to replay it into a map
/// and to verify any of its blocks, wherever they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentMeta {
    header: Header,
    seal: SealRecord,
    entries: Vec<Entry>,
    table: Vec<BlockHash>,
    runs: Vec<PageRun>,
}

/// A run of contiguous data pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageRun {
    page: PageIndex,
    count: u32,
    /// Index of its first page's hash in the table.
    ordinal: u32,
}

/// Why bytes are not a segment's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// Too short, no magic number, or a length that does not fit.
    #[error("it is not a segment's metadata, or it is cut off")]
    NotMeta,
    /// Written by a newer version.
    #[error("it has format version {0}, this version reads version 1; use a newer pannier")]
    Version(u16),
    /// The segment's header in it is wrong.
    #[error("the segment's header in it is wrong: {0}")]
    Header(#[from] HeaderError),
    /// A CRC, the chain or the page layout does not hold.
    #[error("it is damaged (CRC32C, entry chain or page layout do not hold)")]
    Damaged,
    /// Whole, but not the segment that its hash names, or of another cluster.
    #[error("its segment hash does not hold: it is damaged, forged or of another cluster")]
    Hash,
}

impl SegmentMeta {
    /// The metadata of a segment that is being sealed: of `entries` of the segment `header`, all of
    /// a writer's, or the prefix that counts when what lies behind it does not. `tail` is the
    /// writer's (index and table stand there, behind all groups), `durable` is how many entries are
    /// known durable.
    ///
    /// # Panics
    /// When the table's length is not the number of data pages, or the entries end in the middle of
    /// a joined request.
    pub(super) fn sealed(
        header: Header,
        link: Link,
        durable: u32,
        entries: Vec<Entry>,
        tail: PageIndex,
        table: Vec<BlockHash>,
        key: &HashKey,
    ) -> Self {
        assert!(entries.last().is_none_or(|entry| !entry.joined), "half a joined request");
        let runs = page_runs(&header, &entries, tail);
        let runs = runs.expect("a writer lays its pages out in order, before the tail");
        let data_pages = runs.last().map_or(0, |run| run.ordinal + run.count);
        assert_eq!(data_pages as usize, table.len(), "one hash per data page");
        let mut seal = SealRecord {
            nonce: header.nonce,
            entries: entries.len() as u32,
            data_pages,
            durable,
            tail,
            link,
            last_chain_crc: entries
                .last()
                .map_or_else(|| link.seed(header.nonce), |entry| entry.chain_crc),
            hash: SegmentHash([0; 32]),
        };
        seal.hash = segment_hash(&header, &seal, &entries, &table, key);
        Self { header, seal, entries, table, runs }
    }

    /// Puts the parts that a segment file holds together, if they are what the seal record's hash
    /// names.
    pub(super) fn assemble(
        header: Header,
        seal: SealRecord,
        entries: Vec<Entry>,
        table: Vec<BlockHash>,
        key: &HashKey,
    ) -> Result<Self, MetaError> {
        let mut chain = seal.link.seed(header.nonce);
        for entry in &entries {
            if !entry.follows(chain) {
                return Err(MetaError::Damaged);
            }
            chain = entry.chain_crc;
        }
        let runs = page_runs(&header, &entries, seal.tail).ok_or(MetaError::Damaged)?;
        let data_pages = runs.last().map_or(0, |run| run.ordinal + run.count);
        if chain != seal.last_chain_crc
            || entries.len() != seal.entries as usize
            || data_pages != seal.data_pages
            || table.len() != data_pages as usize
        {
            return Err(MetaError::Damaged);
        }
        if segment_hash(&header, &seal, &entries, &table, key) != seal.hash {
            return Err(MetaError::Hash);
        }
        Ok(Self { header, seal, entries, table, runs })
    }

    /// The byte string.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let length = INDEX_AT + self.seal.index_bytes() + self.seal.table_bytes() + CRC_BYTES;
        let mut out = vec![0; INDEX_AT];
        out.reserve_exact(length - INDEX_AT);
        put(&mut out, 0, &MAGIC);
        put_u16(&mut out, 8, VERSION);
        put(&mut out, HEADER_AT, &self.header.encode_core());
        put(&mut out, SEAL_AT, &self.seal.encode_core());
        out.extend(self.entries.iter().flat_map(Entry::encode));
        out.extend(self.table.iter().flat_map(|hash| hash.0));
        out.extend_from_slice(&crc32c(&out).to_le_bytes());
        out
    }

    /// Reads the byte string and verifies it against the segment hash in it; whoever asked for a
    /// certain segment compares [`Self::hash`] with the hash that it was told.
    ///
    /// # Errors
    /// [`MetaError`]. Never panics, and allocates no more than `bytes` is long, whatever `bytes`
    /// are.
    pub fn decode(bytes: &[u8], key: &HashKey) -> Result<Self, MetaError> {
        if bytes.len() < INDEX_AT + CRC_BYTES || bytes[..8] != MAGIC {
            return Err(MetaError::NotMeta);
        }
        let version = get_u16(bytes, 8);
        if version != VERSION {
            return Err(MetaError::Version(version));
        }
        let (body, crc) = bytes.split_at(bytes.len() - CRC_BYTES);
        if crc32c(body) != get_u32(crc, 0) || bytes[10..HEADER_AT].iter().any(|byte| *byte != 0) {
            return Err(MetaError::Damaged);
        }
        let header = Header::decode_core(&body[HEADER_AT..SEAL_AT])?;
        let seal =
            SealRecord::decode_core(&body[SEAL_AT..INDEX_AT], &header).ok_or(MetaError::Damaged)?;
        if body.len() != INDEX_AT + seal.index_bytes() + seal.table_bytes() {
            return Err(MetaError::NotMeta);
        }
        let (index, table) = body[INDEX_AT..].split_at(seal.index_bytes());
        let entries = decode_index(index).ok_or(MetaError::Damaged)?;
        Self::assemble(header, seal, entries, decode_table(table), key)
    }

    /// Who the segment is.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The segment's full name.
    #[must_use]
    pub fn id(&self) -> SegmentId {
        self.header.id()
    }

    /// Its name within its volume.
    #[must_use]
    pub fn name(&self) -> SegmentName {
        self.header.name
    }

    /// Where the predecessor's part of the log ends.
    #[must_use]
    pub fn link(&self) -> Link {
        self.seal.link
    }

    /// The link of a segment that follows all of its entries.
    #[must_use]
    pub fn next_link(&self) -> Link {
        self.seal.next_link()
    }

    /// Its seal record.
    #[must_use]
    pub fn seal(&self) -> &SealRecord {
        &self.seal
    }

    /// Its identity.
    #[must_use]
    pub fn hash(&self) -> SegmentHash {
        self.seal.hash
    }

    /// Its entries, in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Hashes of its data pages, in page order.
    #[must_use]
    pub fn table(&self) -> &[BlockHash] {
        &self.table
    }

    /// Number of its data pages.
    #[must_use]
    pub fn data_pages(&self) -> u32 {
        self.seal.data_pages
    }

    /// Its data pages, in order: the page with ordinal `n` is the `n`th.
    pub fn pages(&self) -> impl Iterator<Item = PageIndex> + '_ {
        self.runs.iter().flat_map(|run| (0..run.count).map(|offset| run.page.plus(offset)))
    }

    /// Which of the data pages `page` is, counted from 0; `None` when it is no data page.
    #[must_use]
    pub fn ordinal(&self, page: PageIndex) -> Option<u32> {
        let behind = self.runs.partition_point(|run| run.page <= page);
        let run = self.runs[..behind].last()?;
        let offset = page.0 - run.page.0;
        (offset < run.count).then(|| run.ordinal + offset)
    }

    /// The data page with this ordinal.
    #[must_use]
    pub fn page_at(&self, ordinal: u32) -> Option<PageIndex> {
        let behind = self.runs.partition_point(|run| run.ordinal <= ordinal);
        let run = self.runs[..behind].last()?;
        let offset = ordinal - run.ordinal;
        (offset < run.count).then(|| run.page.plus(offset))
    }

    /// The hash of a data page; `None` when `page` is no data page.
    #[must_use]
    pub fn block_hash(&self, page: PageIndex) -> Option<BlockHash> {
        self.table.get(self.ordinal(page)? as usize).copied()
    }

    /// Whether `block` is the content of data page `page`.
    #[must_use]
    pub fn verify(&self, page: PageIndex, block: &[u8], key: &HashKey) -> bool {
        self.block_hash(page).is_some_and(|hash| hash == key.block(block))
    }

    pub(super) fn index_bytes(&self) -> Vec<u8> {
        self.entries.iter().flat_map(Entry::encode).collect()
    }
}

pub(super) fn decode_index(index: &[u8]) -> Option<Vec<Entry>> {
    index.chunks_exact(ENTRY_BYTES).map(Entry::decode).collect()
}

pub(super) fn decode_table(table: &[u8]) -> Vec<BlockHash> {
    table.chunks_exact(HASH_BYTES).map(|hash| BlockHash(bytes::get(hash, 0))).collect()
}

/// Runs of data pages, `None` when entries overlap, are out of order or leave the groups' room.
fn page_runs(header: &Header, entries: &[Entry], tail: PageIndex) -> Option<Vec<PageRun>> {
    let mut runs: Vec<PageRun> = Vec::new();
    let mut end = u64::from(FIRST_GROUP_PAGE.0) + 1;
    let mut ordinal = 0;
    for entry in entries {
        let EntryKind::Data { count, page, .. } = entry.kind else { continue };
        if u64::from(page.0) < end || u64::from(page.0) + u64::from(count) > tail.0.into() {
            return None;
        }
        match runs.last_mut() {
            Some(run) if run.page.plus(run.count) == page => run.count += count,
            _ => runs.push(PageRun { page, count, ordinal }),
        }
        ordinal += count;
        end = u64::from(page.0) + u64::from(count);
    }
    (tail >= FIRST_GROUP_PAGE && tail.0 <= header.capacity_pages).then_some(runs)
}

/// The identity covers who the segment is, what it does to the volume and what its pages hold; not
/// which of them a copy has.
fn segment_hash(
    header: &Header,
    seal: &SealRecord,
    entries: &[Entry],
    table: &[BlockHash],
    key: &HashKey,
) -> SegmentHash {
    let mut hasher = blake3::Hasher::new_keyed(&key.0);
    let mut counts = [0; 24];
    put(&mut counts, 0, &MAGIC);
    put_u32(&mut counts, 8, seal.entries);
    put_u32(&mut counts, 12, seal.data_pages);
    put_u32(&mut counts, 16, seal.link.entries);
    put_u32(&mut counts, 20, seal.link.chain_crc);
    hasher.update(&counts);
    hasher.update(&header.encode_core());
    for entry in entries {
        hasher.update(&entry.encode());
    }
    for hash in table {
        hasher.update(&hash.0);
    }
    SegmentHash(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests;
