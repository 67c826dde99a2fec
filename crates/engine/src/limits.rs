//! Every bound of the engine's local storage, with its reason.

/// Pages that are held in memory while the disk has no space for them: 32 MiB, the largest read of
/// a guest.
pub const HELD_PAGES_MAX: usize = 8192;

/// Pages of a segment file: 17 MiB, of which at most 16 MiB are data; large enough that a flush
/// rarely meets a change of segment, small enough that sealing, storing and sending one is short.
pub const SEGMENT_PAGES: u32 = pannier_core::format::segment::limits::CAPACITY_PAGES_DEFAULT;

/// Bytes of one volume that are written and not synced before its writers wait: a flush at a
/// handover then takes as long as 32 MiB take.
pub const UNSYNCED_BYTES_MAX: u64 = 32 << 20;

/// Unsynced bytes of one volume at which a background sync begins: early enough that a sequential
/// writer never meets the bound while the disk keeps up.
pub const UNSYNCED_BYTES_KICK: u64 = 4 << 20;

/// The same bound for all volumes of a host: below the kernel's own throttle on small hosts.
pub const HOST_UNSYNCED_BYTES_MAX: u64 = 256 << 20;

/// Full segments that wait to be hashed and sealed before writers of the volume wait: 1 GiB, which
/// recovery reads in about a second.
pub const UNSEALED_SEGMENTS_MAX: usize = 64;

/// Files that are taken one after the other when the disk fails to sync what is written to them,
/// before the volume gives up: a medium that loses sectors has others, one that is gone has none.
pub const FAILED_FILES_MAX: usize = 3;

/// Bytes of what recovery sets aside of one volume before the oldest goes: 16 segment files, so
/// that a daemon which dies again and again keeps the last tails and does not fill the disk.
pub const ASIDE_BYTES_MAX: u64 = 16 * SEGMENT_PAGES as u64 * 4096;

/// Data pages of one log entry: 1 MiB, so that recovery checks an entry in one read.
pub const ENTRY_PAGES_MAX: u32 = 256;

/// Default bound on stored segments and fetched data kept by a host.
pub const CACHE_BYTES_DEFAULT: u64 = 32 << 30;

/// Default bound on segment files that wait in the pool.
pub const POOL_BYTES_DEFAULT: u64 = 1 << 30;

/// Space kept back for seals, checkpoints and GRANT on a full disk.
pub const RESERVE_BYTES: u64 = 16 << 20;

/// Segments in the log behind the newest checkpoint that force another one.
pub const LOG_SEGMENTS_MAX: usize = 4096;

/// Metadata of sealed segments that one volume keeps decoded: about 200 KiB each.
pub const METAS_MAX: usize = 64;

/// Milliseconds that [`crate::volume::Volume::log_since`] waits for news before it answers that
/// there is none.
pub const LOG_WAIT_MS: u64 = 1000;

/// First and longest pause in milliseconds before a failed upload is tried again.
pub const RETRY_MS: (u64, u64) = (200, 30_000);

/// Inputs that may wait for one volume's ownership driver: a few per attachment and peer. Messages
/// of peers beyond it are dropped, and repeated by their senders.
pub const OWNERSHIP_QUEUE: usize = 256;

/// How long an answer of the registry is good for all who ask for what the local copy does not
/// have: whoever asks for names that do not exist costs it four reads a second. What does come to
/// exist the copy is told by itself.
pub const MISS_KEPT: std::time::Duration = std::time::Duration::from_millis(250);

/// Pause before an effect of the ownership driver that failed is tried again.
pub const OWNERSHIP_RETRY: std::time::Duration = std::time::Duration::from_millis(100);

/// Longest wait for a peer to take an ownership message; it is then sent anew.
pub const OWNERSHIP_CALL: std::time::Duration = std::time::Duration::from_secs(2);

/// Time between a taker's requests for the switch.
pub const OWNERSHIP_ASK_SWITCH: std::time::Duration = std::time::Duration::from_millis(500);

/// Longest wait for the write right in one request.
pub const OWNERSHIP_RIGHT_WAIT: std::time::Duration = std::time::Duration::from_secs(2);

/// Milliseconds that a forwarded request waits for those before it in its session: they are on the
/// wire, or their forwarder is gone.
pub const SESSION_WAIT_MS: u64 = 10_000;

/// Bytes of writes that are appended under one hold of the sequencer: about a millisecond.
pub const BATCH_BYTES_MAX: usize = 2 << 20;

/// Durable data pages of the open segment that are worth a round of the sealer: 1 MiB, which is
/// also what is left to hash at a seal.
pub const HASH_AHEAD_PAGES: u32 = 256;

/// Nice value of background threads: they yield to whoever serves guests.
pub const WORKER_NICE: i32 = 10;

/// Pause after a segment was stored while guests are busy, in multiples of the time that it took: a
/// quarter of a core remains for storing.
pub const STORE_PAUSE: u32 = 3;

/// Segments of one answer to a follower; the answer is bounded in bytes too.
pub const LOG_BATCH_SEGMENTS_MAX: usize = 64;

/// Seconds of silence after which the log is no longer kept for a follower.
pub const FOLLOWER_SILENCE_S: u64 = 60;

/// Longest log in segments that is kept for a follower: 8 GiB; one that is further behind begins
/// again from a checkpoint.
pub const FOLLOWED_SEGMENTS_MAX: usize = 512;

/// Fewest segments of log behind a checkpoint that make another one worth its while.
pub const LOG_SEGMENTS_MIN: usize = 4;

/// The log may be so many times as long as the map pages that a checkpoint would write.
pub const LOG_PER_DIRTY: u64 = 8;

/// Bytes of a map page, at most, for that comparison.
pub const MAP_PAGE_BYTES: u64 = 32 << 10;

/// Milliseconds between looks at whether background work is due.
pub const WORK_TICK_MS: u64 = 2_000;

/// Milliseconds without a write after which the open segment is sealed and stored: what the site
/// holds is then complete.
pub const IDLE_MS: u64 = 10_000;
