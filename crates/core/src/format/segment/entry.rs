//! An entry of a segment's log: one change of the volume, chained to the entry before it.

use super::bytes::{get_u16, get_u32, get_u64, put, put_u32, put_u64};
use super::{PAGE_BYTES, crc32c};
use crate::ids::{RequestNumber, SessionId};
use crate::units::{BlockIndex, PageIndex};
use serde::{Deserialize, Serialize};

/// Bytes of an entry, in a descriptor and in the index.
pub(super) const ENTRY_BYTES: usize = 32;
const CHAIN_AT: usize = 28;

/// Blocks of the largest volume: 2^52 blocks are 2^64 bytes.
const BLOCKS_MAX: u64 = 1 << 52;

const DATA: u8 = 1;
const ZERO: u8 = 2;
const DISCARD: u8 = 3;
const RESIZE: u8 = 4;
const SESSION_MARK: u8 = 5;
const JOINED: u8 = 1;

/// Where the predecessor's part of the log ends: with the segment's nonce, the seed of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Link {
    /// Entries of the predecessor that precede this segment.
    pub entries: u32,
    /// Chain CRC of the last of them, or the predecessor's seed when it has none; 0 without a
    /// predecessor.
    pub chain_crc: u32,
}

impl Link {
    /// The chain CRC that a segment's first entry is seeded with.
    #[must_use]
    pub fn seed(self, nonce: u64) -> u32 {
        let mut bytes = [0; 16];
        put_u64(&mut bytes, 0, nonce);
        put_u32(&mut bytes, 8, self.entries);
        put_u32(&mut bytes, 12, self.chain_crc);
        crc32c(&bytes)
    }
}

/// What an entry does to the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EntryKind {
    /// `count` blocks from `first_block` on are the `count` pages from `page` on.
    Data {
        /// First block written.
        first_block: BlockIndex,
        /// Blocks, and pages, of it.
        count: u32,
        /// First of its contiguous pages in the file.
        page: PageIndex,
        /// CRC32C of the pages' bytes.
        data_crc: u32,
    },
    /// The blocks read as zero and stay allocated as far as the guest can tell.
    Zero {
        /// First block zeroed.
        first_block: BlockIndex,
        /// Blocks zeroed.
        count: u32,
    },
    /// The blocks read as zero and take no space.
    Discard {
        /// First block discarded.
        first_block: BlockIndex,
        /// Blocks discarded.
        count: u32,
    },
    /// The volume has a new size.
    Resize {
        /// The size in bytes.
        size_bytes: u64,
    },
    /// A forwarding session's requests are executed up to this one.
    SessionMark {
        /// The session.
        session: SessionId,
        /// Its newest executed request.
        request: RequestNumber,
    },
}

/// One entry of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// What it does.
    pub kind: EntryKind,
    /// Whether it counts only together with the entry that follows: a request of several entries
    /// survives a crash whole or not at all. The last entry of a request is not joined.
    pub joined: bool,
    /// CRC32C over the previous entry's chain CRC and this entry, its data CRC included.
    pub chain_crc: u32,
}

impl EntryKind {
    /// Data pages of the entry.
    #[must_use]
    pub fn data_pages(&self) -> u32 {
        match *self {
            Self::Data { count, .. } => count,
            Self::Zero { .. }
            | Self::Discard { .. }
            | Self::Resize { .. }
            | Self::SessionMark { .. } => 0,
        }
    }

    fn body(&self, joined: bool) -> [u8; CHAIN_AT] {
        let mut body = [0; CHAIN_AT];
        let kind = match *self {
            Self::Data { first_block, count, page, data_crc } => {
                put_u64(&mut body, 0, first_block.0);
                put_u32(&mut body, 8, count);
                put_u32(&mut body, 16, page.0);
                put_u32(&mut body, 20, data_crc);
                DATA
            }
            Self::Zero { first_block, count } => {
                put_u64(&mut body, 0, first_block.0);
                put_u32(&mut body, 8, count);
                ZERO
            }
            Self::Discard { first_block, count } => {
                put_u64(&mut body, 0, first_block.0);
                put_u32(&mut body, 8, count);
                DISCARD
            }
            Self::Resize { size_bytes } => {
                put_u64(&mut body, 0, size_bytes);
                RESIZE
            }
            Self::SessionMark { session, request } => {
                put_u64(&mut body, 0, session.0);
                put_u64(&mut body, 8, request.0);
                SESSION_MARK
            }
        };
        body[24] = kind;
        body[25] = if joined { JOINED } else { 0 };
        body
    }
}

impl Entry {
    /// Whether `data` is the data that the entry was written with; an entry without data matches
    /// only no bytes.
    #[must_use]
    pub fn data_matches(&self, data: &[u8]) -> bool {
        match self.kind {
            EntryKind::Data { count, data_crc, .. } => {
                data.len() == count as usize * PAGE_BYTES && crc32c(data) == data_crc
            }
            EntryKind::Zero { .. }
            | EntryKind::Discard { .. }
            | EntryKind::Resize { .. }
            | EntryKind::SessionMark { .. } => data.is_empty(),
        }
    }

    /// The entry that follows one with chain CRC `chain_before`.
    pub(super) fn chained(kind: EntryKind, joined: bool, chain_before: u32) -> Self {
        let chain_crc = chain(chain_before, &kind.body(joined));
        Self { kind, joined, chain_crc }
    }

    pub(super) fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        put(&mut bytes, 0, &self.kind.body(self.joined));
        put_u32(&mut bytes, CHAIN_AT, self.chain_crc);
        bytes
    }

    /// Reads an entry's fields; the caller checks the chain. `None` for anything that no writer
    /// writes.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != ENTRY_BYTES || get_u16(bytes, 26) != 0 || bytes[25] & !JOINED != 0 {
            return None;
        }
        let first_block = BlockIndex(get_u64(bytes, 0));
        let count = get_u32(bytes, 8);
        let range_fits = || {
            count > 0 && first_block.0.checked_add(count.into()).is_some_and(|e| e <= BLOCKS_MAX)
        };
        let kind = match bytes[24] {
            DATA if range_fits() => EntryKind::Data {
                first_block,
                count,
                page: PageIndex(get_u32(bytes, 16)),
                data_crc: get_u32(bytes, 20),
            },
            ZERO if range_fits() => EntryKind::Zero { first_block, count },
            DISCARD if range_fits() => EntryKind::Discard { first_block, count },
            RESIZE => EntryKind::Resize { size_bytes: get_u64(bytes, 0) },
            SESSION_MARK => EntryKind::SessionMark {
                session: SessionId(get_u64(bytes, 0)),
                request: RequestNumber(get_u64(bytes, 8)),
            },
            _ => return None,
        };
        let entry = Self { kind, joined: bytes[25] == JOINED, chain_crc: get_u32(bytes, CHAIN_AT) };
        // One encoding only: bytes that the kind does not use are zero.
        (entry.encode() == bytes).then_some(entry)
    }

    /// Whether the entry follows one with chain CRC `chain_before`.
    pub(super) fn follows(&self, chain_before: u32) -> bool {
        chain(chain_before, &self.kind.body(self.joined)) == self.chain_crc
    }
}

/// A CRC with another value before the same bytes is always another CRC, so an entry passes only
/// behind the very entry that it was written behind.
fn chain(chain_before: u32, body: &[u8; CHAIN_AT]) -> u32 {
    let mut bytes = [0; 4 + CHAIN_AT];
    put_u32(&mut bytes, 0, chain_before);
    put(&mut bytes, 4, body);
    crc32c(&bytes)
}
