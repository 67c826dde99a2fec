//! Bounds of a segment file, each with its reason.

use super::PAGE_BYTES;
use super::entry::ENTRY_BYTES;
use super::seal::HASH_BYTES;

/// Pages of a segment file by default: 17 MiB. Holds [`DATA_PAGES_MAX`] data pages written in full
/// groups (33 descriptors), header and seal record, and index and block table (48 pages), with
/// room for about 160 more descriptors, so that a flush every 100 KiB still fills the data room.
pub const CAPACITY_PAGES_DEFAULT: u32 = 4352;

/// Largest capacity that a reader accepts: 256 MiB, far above what is ever written, so that a
/// hostile header cannot make it allocate without bound.
pub const CAPACITY_PAGES_MAX: u32 = 1 << 16;

/// Smallest capacity: header, seal record, one descriptor, one data page, index and block table.
pub const CAPACITY_PAGES_MIN: u32 = 6;

/// Most data pages of one segment: 16 MiB. Large enough that index, table, object and file handling
/// vanish against the data, small enough that storing or sending one takes well under a second.
pub const DATA_PAGES_MAX: u32 = 4096;

/// Most entries that a writer puts into one segment: 512 KiB of index, so that the metadata fits
/// into one message to a follower whatever the entries are. Discards and zeroes have no data pages:
/// without this bound a stream of small ones fills a file with a quarter of a million entries.
pub const ENTRIES_MAX: u32 = 16_384;

/// Largest encoding of the metadata of a segment as it is written now: at most a page for what
/// stands before the index and behind the table, every entry, and a hash for every data page.
pub const META_BYTES_MAX: usize =
    PAGE_BYTES + ENTRIES_MAX as usize * ENTRY_BYTES + DATA_PAGES_MAX as usize * HASH_BYTES;

/// Largest metadata that a reader has to expect: versions without [`ENTRIES_MAX`] filled the whole
/// capacity, where every page of the index needs more than a page of descriptors before it.
pub const META_BYTES_READ_MAX: usize = CAPACITY_PAGES_DEFAULT as usize / 2 * PAGE_BYTES;

/// Pages that recovery reads at once: 256 KiB, near the knee of sequential reads.
pub(crate) const READ_PAGES: u32 = 64;
