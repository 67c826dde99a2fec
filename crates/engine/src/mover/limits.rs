//! Every bound of the mover, with its reason.

use pannier_core::format::segment::limits::META_BYTES_READ_MAX;
use std::time::Duration;

/// Forwarded changes of one attachment that are outstanding: with at most 256 KiB each, 32 MiB, and
/// a tenth of what owners remember of a session ([`pannier_core::volume::session::IN_FLIGHT_MAX`]).
pub const FORWARDED_MAX: usize = 128;

/// Pieces of one large read or write that are under way at once: 4 MiB.
pub const FORWARDED_PIECES_MAX: usize = 16;

/// Most block states in one answer: 40 KiB.
pub const EXTENTS_MAX: usize = 4096;

/// Pause before a request is routed anew when the route is about to change.
pub const RECHECK: Duration = Duration::from_millis(5);

/// First pause before a request is repeated at a host that could not answer it.
pub const RETRY_FIRST: Duration = Duration::from_millis(10);

/// Longest such pause: what a guest waits beyond the owner's return.
pub const RETRY_MAX: Duration = Duration::from_secs(1);

/// Longest wait for a change of the route before it is looked at again.
pub const WAIT_MAX: Duration = Duration::from_secs(1);

/// Failures in a row after which what a peer said about the owner counts no more.
pub const HINT_FAILURES_MAX: u32 = 3;

/// Tries to give the write right back after a disconnect; the next attachment takes it otherwise.
pub const RELEASE_TRIES_MAX: u32 = 30;

/// Longest wait of a forwarded request at the owner, for a switch to end or for the write right,
/// before it is told to ask again: short against a stream's idle time.
pub const BUSY_WAIT: Duration = Duration::from_secs(2);

/// Runs of pages in one request.
pub const RUNS_MAX: usize = 256;

/// Bytes of log in one answer, about: several fit into the window of a WAN.
pub const LOG_BYTES_MAX: usize = 256 << 10;

/// Largest answer with a piece of the log that is taken: [`LOG_BYTES_MAX`] of metadata or one
/// segment's, whichever is more, and names and positions, which take less than 64 bytes each.
pub const LOG_ANSWER_BYTES_MAX: usize =
    META_BYTES_READ_MAX + 64 * (crate::limits::LOG_BATCH_SEGMENTS_MAX + 2);

/// Largest root of a checkpoint that is taken from an owner: the parts of the largest volume take
/// half a MiB, the rest is two million names of what is condemned.
pub const ROOT_BYTES_MAX: u64 = 64 << 20;

/// Longest wait for news of the log at the owner.
pub const LOG_WAIT: Duration = Duration::from_secs(1);

/// Pause of a source hunt that found nothing; grows to [`SOURCE_RETRY_MAX`].
pub const SOURCE_RETRY_FIRST: Duration = Duration::from_millis(50);

/// Longest such pause: a source that comes back is found within it.
pub const SOURCE_RETRY_MAX: Duration = Duration::from_millis(500);

/// Longest pause before an owner whose answers contradict each other is followed anew: each time
/// costs a checkpoint.
pub const FOLLOW_ANEW_MAX: Duration = Duration::from_secs(30);

/// Pause of all fetching but demand when this host's disk has no space for what arrives: long,
/// because each try sends the same pages over the WAN again.
pub const FULL_PAUSE: Duration = Duration::from_secs(15);

/// How long all sources must be reachable and without a good copy before a page counts as lost: a
/// source that restarts answers before it has opened its volumes.
pub const LOST_AFTER: Duration = Duration::from_secs(10);

/// Segments that hydration has in work at once, pulled or being stored: enough that the window
/// stays full across their ends and while others are compressed.
pub const HYDRATED_SEGMENTS_MAX: usize = 12;

/// Segments that hydration stores at once: one core compresses.
pub const STORED_SEGMENTS_MAX: usize = 2;

/// Length in bytes of the pieces of the disk in whose order hydration looks for what is missing.
pub const HYDRATION_STEP_BYTES: u64 = 64 << 20;

/// Pause of hydration and proof when nothing can be done just now.
pub const IDLE: Duration = Duration::from_millis(200);

/// How often progress is written down.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// Forwarded changes of one session that wait for their turn: twice what one forwarder sends, so
/// that the requests of a restarted one fit beside those of its predecessor.
pub const WAITING_MAX: usize = 2 * FORWARDED_MAX;

/// Ended sessions of a volume that are remembered, so that a late request of one is not executed
/// anew: far more than hosts can open within the life of a request.
pub const ENDED_SESSIONS_MAX: usize = 1024;

/// Bytes of forwarded changes that are made durable together.
pub const BATCH_BYTES_MAX: usize = 1 << 20;

/// Longest pause of hydration after a failure, such as a registry or a store that is away.
pub const HYDRATION_RETRY_MAX: Duration = Duration::from_secs(5);

/// Objects of the own store whose footers and block tables are kept: about 200 KiB each.
pub const STORED_OBJECTS_MAX: usize = 32;

/// Metadata of segments that a follower gets at once: about 1 MiB.
pub const METAS_AT_ONCE: usize = 8;
