//! A segment file in bytes: header, seal record, groups, index and block table.
//!
//! Drawn byte by byte, with the reasons, in `docs/formats.md`. The rooms:
//!
//! - [`Header`] is page 0: who the segment is. Written and synced before the segment is used.
//! - [`Entry`] is one change of the volume; [`SegmentWriter`] stages entries into groups and says
//!   which pages to write.
//! - [`SealRecord`] is page 1; [`Sealing`] is what a seal writes; [`SegmentMeta`] is all that is
//!   known of a sealed segment except its data: it travels to followers and verifies every block.
//! - [`recover`] reads a segment file after a crash.
//!
//! Nothing here does I/O: pages are handed in and out.

mod bytes;
mod entry;
#[cfg(test)]
pub(crate) mod golden;
mod group;
mod header;
pub mod limits;
mod meta;
mod open;
mod recover;
mod seal;
mod writer;

pub use entry::{Entry, EntryKind, Link};
pub use group::GROUP_ENTRIES_MAX;
pub use header::{Header, HeaderError};
pub use meta::{MetaError, SegmentMeta};
pub use open::{Behind, OpenSegment};
pub use recover::{RecoverError, Recovered, SealedSegment, recover};
pub use seal::{SealRecord, Sealing};
pub use writer::{Appended, Full, SegmentWriter};

pub(crate) use bytes::{get, get_u16, get_u32, get_u64, put_u16, put_u32, put_u64};

use crate::units::{BLOCK_BYTES, PageIndex};

/// Size in bytes of a page of a segment file: one block.
pub const PAGE_BYTES: usize = BLOCK_BYTES as usize;

/// One page of a segment file.
pub type Page = [u8; PAGE_BYTES];

/// Page of the [`Header`].
pub const HEADER_PAGE: PageIndex = PageIndex(0);

/// Page of the [`SealRecord`]: all zero until the segment is sealed.
pub const SEAL_PAGE: PageIndex = PageIndex(1);

/// Page of the first group's descriptor.
pub const FIRST_GROUP_PAGE: PageIndex = PageIndex(2);

/// CRC32C (Castagnoli; CRC-32/ISCSI in the catalogue) of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// Pages that `bytes` take.
pub(crate) const fn pages_for(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_BYTES)
}
