//! Bounds of a segment file, each with its reason.

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

/// Pages that recovery reads at once: 256 KiB, near the knee of sequential reads.
pub(crate) const READ_PAGES: u32 = 64;
