//! Bounds of movement, with their reasons.

/// Pages of a line: what one frame of the stored form, one slot of the line cache and one frame on
/// the wire hold (64 KiB).
pub const LINE_PAGES: u32 = 16;

/// Most pages of one request to a peer: 128 KiB, so that a demand request on the same link waits
/// for little behind one of them (5 ms at 200 Mbit/s), and a lost one is cheap.
pub const ASK_PAGES_MAX: u32 = 32;

/// Fewest bytes of bulk in flight: two requests, so that a link is never idle between them.
pub const WINDOW_BYTES_MIN: u64 = 256 << 10;

/// Most bytes of bulk in flight: the product of 1 Gbit/s and 67 ms; more would sit in the sender's
/// buffers, where priorities mean nothing.
pub const WINDOW_BYTES_MAX: u64 = 8 << 20;

/// Lines that may be queued by background work before it is told to wait: twice the largest window.
pub const BULK_LINES_MAX: usize = 256;

/// First window of a sequential reader in bytes: two lines.
pub const RUN_AHEAD_BYTES_MIN: u64 = 128 << 10;

/// Largest window of a sequential reader in bytes: hides 100 ms at 300 Mbit/s, and costs little
/// when the reader stops.
pub const RUN_AHEAD_BYTES_MAX: u64 = 4 << 20;
