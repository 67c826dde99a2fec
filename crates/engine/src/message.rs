//! What hosts say to each other: requests and answers, without their encoding on the wire.
//!
//! Bulk bytes travel beside a message as its payload, at most [`PAYLOAD_BYTES_MAX`]. What a request
//! asks for may be more than one answer can carry; then the answer is a prefix and the asker goes
//! on from there. Every request may be repeated: it is either idempotent or numbered.

use pannier_core::format::segment::limits::META_BYTES_MAX;
use pannier_core::ids::{Epoch, HostId, ObjectHash, RequestNumber, SegmentId, SessionId, VolumeId};
use pannier_core::units::PageIndex;
use pannier_core::volume::Position;
use serde::{Deserialize, Serialize};

/// Largest payload of a request or an answer: one segment's metadata fits, however the segment was
/// filled, and a stalled peer holds little memory.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

const _: () = assert!(META_BYTES_MAX <= PAYLOAD_BYTES_MAX, "metadata goes in one message");

/// Largest piece of a guest's read, write or status request in one message. Longer ones are split.
pub const FORWARD_BYTES_MAX: u64 = 256 << 10;

/// Consecutive pages of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageRun {
    /// The first page.
    pub first: PageIndex,
    /// How many.
    pub count: u32,
}

/// A request to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Are you there?
    Ping,
    /// A message of the ownership protocol; encoded by the ownership driver.
    Ownership {
        /// The volume it is about.
        volume: VolumeId,
        /// The message.
        message: Vec<u8>,
    },
    /// A request to the registry that this peer serves.
    Registry(RegistryRequest),
    /// Ends a session and releases the write right that it held.
    CloseSession {
        /// The volume.
        volume: VolumeId,
        /// The session.
        session: SessionId,
    },
    /// A numbered, mutating guest request: executed once, in the order of the numbers, and durable
    /// before it is answered. Bytes to write are the payload.
    Forward {
        /// The volume.
        volume: VolumeId,
        /// The session.
        session: SessionId,
        /// Its number there.
        number: RequestNumber,
        /// Set until the session is known to be open at the asked host: opens it, if it is not, and
        /// so ends the asking host's earlier one, of which nothing is executed any more.
        open: Option<Opening>,
        /// What to do.
        op: ForwardOp,
    },
    /// Reads the owner's current state; the bytes are the answer's payload.
    Read {
        /// The volume.
        volume: VolumeId,
        /// First byte, a multiple of 512.
        offset: u64,
        /// Bytes, a multiple of 512, at most [`FORWARD_BYTES_MAX`].
        length: u32,
    },
    /// Makes durable at the owner what was written before, by whomever.
    Flush {
        /// The volume.
        volume: VolumeId,
    },
    /// Asks for the states of a range at the owner.
    BlockStatus {
        /// The volume.
        volume: VolumeId,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Most runs in the answer.
        extents_max: u32,
    },
    /// Asks for the volume's newest local checkpoint root at its owner.
    Checkpoint {
        /// The volume.
        volume: VolumeId,
    },
    /// Asks for a part of an immutable object (checkpoint root or map page).
    Object {
        /// The volume it belongs to.
        volume: VolumeId,
        /// Its hash.
        object: ObjectHash,
        /// First byte of the part.
        offset: u64,
    },
    /// Asks for map pages by hash. As many as fit are answered, in order, at least one.
    MapPages {
        /// The volume.
        volume: VolumeId,
        /// The pages' hashes, at most 256.
        pages: Vec<ObjectHash>,
    },
    /// Asks for the sealed segments of the log behind a position; waits for news a bounded time.
    Log {
        /// The volume.
        volume: VolumeId,
        /// The asker has everything before it.
        after: Position,
        /// Longest wait for news.
        wait_ms: u32,
    },
    /// Asks for a sealed segment's metadata (header, seal record, index, block table).
    SegmentMeta {
        /// The segment.
        segment: SegmentId,
    },
    /// Asks for pages of a sealed segment.
    Pages {
        /// The segment.
        segment: SegmentId,
        /// Wanted pages, ascending, at most 256 runs.
        runs: Vec<PageRun>,
    },
    /// Asks how far this host's move of a volume is.
    Progress {
        /// The volume.
        volume: VolumeId,
    },
    /// An operator's request that concerns another host; encoded by [`crate::host`].
    Host {
        /// The request.
        request: Vec<u8>,
    },
    /// Grows a volume at its owner. Idempotent.
    Resize {
        /// The volume.
        volume: VolumeId,
        /// The size that it shall have at least.
        size_bytes: u64,
    },
}

/// The opening of a forwarding session. A session is larger than every earlier one of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// Whether it was opened before, at this or at a former owner: then it is never opened anew.
    pub resumed: bool,
    /// Epoch of the last takeover that was known when the attachment was made: an attachment made
    /// before a takeover is refused.
    pub lineage: Epoch,
}

/// A mutating guest request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ForwardOp {
    /// Writes the payload.
    Write {
        /// First byte.
        offset: u64,
    },
    /// Makes a range read as zero and gives its space back.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Makes a range read as zero.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Whether the range must not become a hole.
        allocate: bool,
    },
    /// Does nothing: takes the number of a request that failed.
    Skip,
}

/// A request to the embedded registry. Revisions are plain numbers here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegistryRequest {
    /// The value of one key.
    Get {
        /// The key.
        key: String,
    },
    /// All keys with a prefix.
    List {
        /// The prefix.
        prefix: String,
    },
    /// A transaction.
    Commit {
        /// Keys and the revisions that they must have.
        expect: Vec<(String, u64)>,
        /// Keys and their new values (`None` deletes).
        changes: Vec<(String, Option<Vec<u8>>)>,
    },
    /// Waits for changes behind a revision.
    Changes {
        /// The revision.
        after: u64,
    },
}

/// A registry entry on the wire: key, and value with the revision that wrote it.
pub type RegistryEntry = (String, Option<(u64, Vec<u8>)>);

/// An answer of the embedded registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegistryResponse {
    /// Answer to [`RegistryRequest::Get`].
    Value(Option<(u64, Vec<u8>)>),
    /// Answer to [`RegistryRequest::List`] and [`RegistryRequest::Changes`].
    Entries {
        /// The entries.
        entries: Vec<RegistryEntry>,
        /// The registry's revision that they show.
        through: u64,
        /// Whether they are the whole registry.
        complete: bool,
    },
    /// Answer to [`RegistryRequest::Commit`]: the revision, or `None` on a conflict.
    Committed(Option<u64>),
}

/// How pages of an answer are encoded in its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoding {
    /// As they are.
    Raw,
    /// zstd.
    Zstd,
}

/// Up to 16 consecutive pages in an answer. Bit `n` of a mask stands for page `first + n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageFrame {
    /// The first page.
    pub first: PageIndex,
    /// Pages that are in the payload, in order.
    pub data: u16,
    /// Pages that are all zero and not in the payload.
    pub zero: u16,
    /// How the pages are encoded.
    pub encoding: Encoding,
    /// Bytes that they take in the payload.
    pub bytes: u32,
}

/// A peer's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// Answer to [`Request::Ping`].
    Pong,
    /// Answer to [`Request::Ownership`]; encoded by the ownership driver, may be empty.
    Ownership {
        /// The message.
        message: Vec<u8>,
    },
    /// Answer to [`Request::Registry`].
    Registry(RegistryResponse),
    /// This host does not own the volume (any more). Nothing was executed, or all of it before.
    Moved {
        /// The owner as far as this host knows.
        owner: Option<HostId>,
    },
    /// Not now: the volume is being switched, or another attachment holds the write right. Ask
    /// again.
    Busy {
        /// Why, for people.
        cause: String,
    },
    /// The session is not the asking host's current one, which is given.
    NoSession {
        /// The current one.
        current: Option<SessionId>,
    },
    /// Done: answer to [`Request::CloseSession`], [`Request::Forward`],
    /// [`Request::Flush`] and [`Request::Resize`].
    Done {
        /// The volume's size.
        size_bytes: u64,
    },
    /// Answer to [`Request::Read`]; the payload are the bytes.
    Data {
        /// The volume's size.
        size_bytes: u64,
    },
    /// Answer to [`Request::BlockStatus`]: length in bytes and state of each run.
    Extents(Vec<(u64, ExtentKind)>),
    /// Answer to [`Request::Checkpoint`].
    Checkpoint {
        /// Hash of the root, to be asked for by [`Request::Object`].
        object: ObjectHash,
        /// Its size in bytes.
        bytes: u64,
    },
    /// Answer to [`Request::Object`]; the payload is the part.
    Object {
        /// The object's size in bytes.
        bytes: u64,
    },
    /// Answer to [`Request::MapPages`]; the payload are the pages, one behind the other.
    MapPages {
        /// How the payload is encoded, as a whole.
        encoding: Encoding,
        /// Length of each answered page.
        lengths: Vec<u32>,
    },
    /// Answer to [`Request::Log`]; the payload is the batch.
    Log {
        /// How the payload is encoded.
        encoding: Encoding,
        /// The end of the asked host's sealed log.
        end: Position,
    },
    /// The position is not (any more) in this log: start from the checkpoint.
    LogGone,
    /// Answer to [`Request::SegmentMeta`]; the payload is the metadata.
    SegmentMeta {
        /// How the payload is encoded.
        encoding: Encoding,
    },
    /// Answer to [`Request::Pages`].
    Pages {
        /// What the payload holds, in order.
        frames: Vec<PageFrame>,
        /// Whether this host does not hold some of the asked pages at all (as against an answer
        /// that ends early because it is full).
        incomplete: bool,
    },
    /// Answer to [`Request::Progress`].
    Progress(MoveProgress),
    /// Answer to [`Request::Host`]; encoded by [`crate::host`] in the payload.
    Host,
}

/// State of a run of a device's bytes, on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExtentKind {
    /// Written data.
    Data,
    /// Reads as zero, allocated.
    Zero,
    /// Reads as zero, takes no space.
    Hole,
}

/// Where a move stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum Phase {
    /// No move of this volume is known here.
    #[default]
    None,
    /// The target follows the owner's log.
    Following,
    /// The owner hands over.
    Switching,
    /// The target owns the volume and pulls what it lacks.
    Hydrating,
    /// Everything is here; the checkpoint goes to the site's store.
    Publishing,
    /// The site's store is read back and checked.
    Verifying,
    /// Nothing depends on another site, and that is proven.
    Independent,
}

/// How far a move is, at its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MoveProgress {
    /// What is being done.
    pub phase: Phase,
    /// Live bytes that the site must hold in the end.
    pub bytes_total: u64,
    /// How many of them are in the site's store or wholly resident.
    pub bytes_done: u64,
    /// Bytes received from peers for it, as encoded on the wire.
    pub wire_bytes: u64,
    /// Page bytes that were asked for again because an answer was lost.
    pub resent_bytes: u64,
    /// Live segments in all.
    pub segments_total: u64,
    /// Live segments in the site's store.
    pub segments_stored: u64,
    /// Live segments verified there.
    pub segments_verified: u64,
    /// Received bytes per second of late.
    pub rate_bytes: u64,
    /// Expected milliseconds until everything is here.
    pub eta_ms: Option<u64>,
    /// Guest reads that had to wait for another site since the switch.
    pub demand_fetches: u64,
    /// Bytes of log by which the follower is behind.
    pub lag_bytes: u64,
}
