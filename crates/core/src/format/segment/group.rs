//! A group's descriptor page: a header, then the entries.

use super::bytes::{get_u16, get_u32, get_u64, put, put_u16, put_u32, put_u64};
use super::entry::{ENTRY_BYTES, Entry, Link};
use super::{PAGE_BYTES, crc32c};
use crate::units::PageIndex;

const MAGIC: [u8; 8] = *b"PNR-GROU";
const VERSION: u16 = 1;
const CRC_AT: usize = GROUP_HEADER_BYTES - 4;

/// Bytes of a descriptor's header.
pub(super) const GROUP_HEADER_BYTES: usize = 64;

/// Most entries of one group: what a descriptor page holds.
pub const GROUP_ENTRIES_MAX: u32 = ((PAGE_BYTES - GROUP_HEADER_BYTES) / ENTRY_BYTES) as u32;

/// The first 64 bytes of a descriptor page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupHeader {
    /// Where the descriptor stands: a copy of it elsewhere does not pass.
    pub(super) page: PageIndex,
    /// The segment's nonce: what another use of the file left does not pass.
    pub(super) nonce: u64,
    /// Index of the group in the segment.
    pub(super) number: u32,
    /// Index of its first entry in the segment.
    pub(super) first_entry: u32,
    /// Entries of the segment that a flush had covered when this was written: recovery reads only
    /// the data behind them.
    pub(super) durable: u32,
    /// Where the predecessor's part of the log ends.
    pub(super) link: Link,
    /// Chain CRC before its first entry.
    pub(super) chain_before: u32,
}

impl GroupHeader {
    pub(super) fn encode(&self) -> [u8; GROUP_HEADER_BYTES] {
        let mut bytes = [0; GROUP_HEADER_BYTES];
        let page = &mut bytes;
        put(page, 0, &MAGIC);
        put_u16(page, 8, VERSION);
        put_u32(page, 12, self.page.0);
        put_u64(page, 16, self.nonce);
        put_u32(page, 24, self.number);
        put_u32(page, 28, self.first_entry);
        put_u32(page, 32, self.durable);
        put_u32(page, 36, self.link.entries);
        put_u32(page, 40, self.link.chain_crc);
        put_u32(page, 44, self.chain_before);
        let crc = crc32c(&page[..CRC_AT]);
        put_u32(page, CRC_AT, crc);
        bytes
    }

    /// Reads the descriptor header at `at`, if this use of the file wrote it.
    pub(super) fn decode(page: &[u8], at: PageIndex, nonce: u64) -> Option<Self> {
        if page[..8] != MAGIC || get_u16(page, 8) != VERSION {
            return None;
        }
        let header = Self {
            page: PageIndex(get_u32(page, 12)),
            nonce: get_u64(page, 16),
            number: get_u32(page, 24),
            first_entry: get_u32(page, 28),
            durable: get_u32(page, 32),
            link: Link { entries: get_u32(page, 36), chain_crc: get_u32(page, 40) },
            chain_before: get_u32(page, 44),
        };
        // Compares the CRC and the reserved bytes, too.
        let whole = header.encode() == page[..GROUP_HEADER_BYTES];
        (whole && header.page == at && header.nonce == nonce).then_some(header)
    }
}

/// Byte offset of a group's entry in its descriptor page.
pub(super) fn slot(index: u32) -> usize {
    GROUP_HEADER_BYTES + index as usize * ENTRY_BYTES
}

/// The bytes of a group's entries, slot by slot, whatever is in them.
pub(super) fn slots(page: &[u8]) -> impl Iterator<Item = Option<Entry>> + '_ {
    page[GROUP_HEADER_BYTES..PAGE_BYTES].chunks_exact(ENTRY_BYTES).map(Entry::decode)
}

/// Entries at the start of a descriptor page that are chained to `chain_before`.
pub(super) fn chained_entries(page: &[u8], chain_before: u32) -> u32 {
    let mut chain = chain_before;
    let chained = slots(page).map_while(|entry| {
        let entry = entry.filter(|entry| entry.follows(chain))?;
        chain = entry.chain_crc;
        Some(())
    });
    chained.count() as u32
}
