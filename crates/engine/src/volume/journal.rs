//! The journal: the open segment, the one prepared behind it, what is not synced yet.
//!
//! One mutex per volume is the sequencer: under it entries are staged, written and put into the
//! map (`append`), so the order of the log is the order of the map. Nothing under it waits for the
//! disk (the page cache takes the writes), except the rescue after a failed fdatasync.

use super::Volume;
use super::log::{Position, SessionTable};
use super::segment::Segment;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::PoolFile;
use pannier_core::format::segment::{Header, Link, OpenSegment, SegmentWriter};
use pannier_core::ids::{
    Epoch, Incarnation, RequestNumber, SegmentName, Sequence, SessionId, VolumeId,
};
use pannier_core::map::SegmentIndex;
use parking_lot::MutexGuard;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Whether the volume appends.
#[derive(Debug, Clone)]
pub(crate) enum Mode {
    /// It stands still or follows.
    Stopped,
    /// It serves guests.
    Appending,
    /// Its disk failed; nothing is acknowledged any more.
    Failed(Error),
}

/// The state under the volume's mutex.
pub(crate) struct Journal {
    pub(crate) mode: Mode,
    pub(crate) epoch: Epoch,
    pub(crate) incarnation: Incarnation,
    /// The segment that is appended to.
    pub(crate) open: Option<Open>,
    /// The one behind it.
    pub(crate) next: Option<Prepared>,
    /// Whether one is being prepared.
    pub(crate) preparing: bool,
    /// Why none could be prepared, for the next writer to be told.
    pub(crate) prepare_error: Option<Error>,
    /// Whether the last one could not be.
    unprepared: bool,
    /// The highest sequence ever used here, so that no name is used twice.
    pub(crate) last_sequence: Sequence,
    /// End of the log without the open segment.
    pub(crate) end: Position,
    /// The log behind the newest checkpoint, open segment excluded, with the entries of each.
    pub(crate) log: BTreeMap<Sequence, LogSegment>,
    /// Where the end is noted for the next start in this boot.
    pub(crate) mark: Option<super::mark::Mark>,
    /// Closed segments that are not synced yet, in order.
    pub(crate) closed: VecDeque<Arc<Closed>>,
    /// Closed segments that are not sealed yet.
    pub(crate) unsealed: usize,
    /// Entries appended since the start.
    pub(crate) tick: u64,
    /// Bytes written and not synced.
    pub(crate) unsynced_bytes: u64,
    /// Whether a sync runs, and through which tick somebody waits.
    pub(crate) syncing: bool,
    pub(crate) sync_wanted: u64,
    /// How often a failed fdatasync has moved entries to other segments: what was taken of log and
    /// map before, and was not durable then, names segments that the log no longer has.
    pub(crate) rescues: u64,
    /// What forwarding sessions have applied.
    pub(crate) sessions: SessionTable,
    /// The follower that asked last.
    pub(crate) followed: Option<super::follow::Followed>,
    /// Where the log began before the newest checkpoint, while that follower is still there: no
    /// entry of the log says so.
    pub(crate) former_base: Option<Position>,
}

/// A segment of the log that is not open any more.
#[derive(Clone)]
pub(crate) struct LogSegment {
    pub(crate) segment: Arc<Segment>,
    pub(crate) entries: u32,
    pub(crate) chain_crc: u32,
}

/// The open segment.
pub(crate) struct Open {
    pub(crate) segment: Arc<Segment>,
    pub(crate) index: SegmentIndex,
    pub(crate) file: Arc<PoolFile>,
    pub(crate) writer: SegmentWriter,
}

/// A segment whose header is synced, ready for use.
pub(crate) struct Prepared {
    pub(crate) header: Header,
    pub(crate) file: Arc<PoolFile>,
}

/// A segment that takes no more entries and is not sealed yet.
pub(crate) struct Closed {
    pub(crate) segment: Arc<Segment>,
    pub(crate) file: Arc<PoolFile>,
    pub(crate) source: parking_lot::Mutex<SealSource>,
    /// Whether an fdatasync of the file has failed: it is not synced again, so the seal goes into a
    /// copy.
    pub(crate) failed: bool,
}

/// What a closed segment is sealed from.
pub(crate) enum SealSource {
    /// Its writer.
    Writer(Box<SegmentWriter>),
    /// What recovery found; the number of its entries that count.
    Recovered(Box<OpenSegment>),
    /// It is sealed.
    Taken,
}

impl Journal {
    /// Tells when segment files can no longer be prepared, and when they can again: a guest may
    /// try a write many times a second.
    pub(crate) fn note_prepared(&mut self, volume: VolumeId, error: Option<&Error>) {
        match (std::mem::replace(&mut self.unprepared, error.is_some()), error) {
            (false, Some(error)) => {
                tracing::warn!(%volume, %error, "no segment file can be prepared");
            }
            (true, None) => tracing::info!(%volume, "segment files can be prepared again"),
            (false, None) | (true, Some(_)) => {}
        }
    }

    pub(crate) fn new(end: Position, last_sequence: Sequence, sessions: SessionTable) -> Self {
        Self {
            mode: Mode::Stopped,
            epoch: Epoch(0),
            incarnation: Incarnation(0),
            open: None,
            next: None,
            preparing: false,
            prepare_error: None,
            unprepared: false,
            last_sequence,
            end,
            log: BTreeMap::new(),
            mark: None,
            closed: VecDeque::new(),
            unsealed: 0,
            tick: 0,
            unsynced_bytes: 0,
            syncing: false,
            sync_wanted: 0,
            rescues: 0,
            sessions,
            followed: None,
            former_base: None,
        }
    }

    /// Fails unless the volume appends.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.mode {
            Mode::Appending => Ok(()),
            Mode::Stopped => Err(stopped()),
            Mode::Failed(error) => Err(error.clone()),
        }
    }

    /// End of the log.
    pub(crate) fn position(&self) -> Position {
        match &self.open {
            Some(open) if open.writer.entries() > 0 => Position {
                segment: Some(open.segment.name),
                entries: open.writer.entries(),
                chain_crc: open.writer.last_chain_crc(),
            },
            _ => self.end,
        }
    }

    /// The segment that another one would follow.
    pub(crate) fn last_name(&self) -> Option<SegmentName> {
        self.open.as_ref().map_or(self.end.segment, |open| Some(open.segment.name))
    }

    /// Whether a segment that was prepared meanwhile is still the one that comes next.
    pub(crate) fn wants(&self, header: &Header) -> bool {
        matches!(self.mode, Mode::Appending)
            && self.next.is_none()
            && (header.name.epoch, header.name.incarnation) == (self.epoch, self.incarnation)
            && header.predecessor == self.last_name()
    }

    /// How the segment behind the end starts.
    pub(crate) fn link(&self) -> Link {
        Link { entries: self.end.entries, chain_crc: self.end.chain_crc }
    }
}

/// The source of errors of requests that came while the volume was stopped.
#[derive(Debug, thiserror::Error)]
#[error("it is stopped")]
struct Stopped;

/// The volume does not append.
pub(crate) fn stopped() -> Error {
    let context = "the volume is not appended to on this host; ask its owner";
    Error::new(ErrorKind::Closed, context).with_source(Stopped)
}

/// Whether a request has failed only since the volume was stopped.
pub(super) fn is_stopped(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<Stopped>())
}

impl Volume {
    /// Stops acknowledging for good.
    pub(crate) fn fail(&self, journal: &mut MutexGuard<'_, Journal>, error: Error) {
        if matches!(journal.mode, Mode::Failed(_)) {
            return;
        }
        tracing::error!(volume = %self.id, %error, "the volume takes no more writes");
        journal.mode = Mode::Failed(error);
        self.room.notify_waiters();
        self.synced.notify_waiters();
        self.news.notify_waiters();
    }
}

/// Notes what a session has applied. Those that are over leave the table as they end, and at the
/// next start ([`Volume::keep_sessions`]): a volume that only follows does not know which are.
pub(crate) fn note_session(
    sessions: &mut SessionTable,
    session: SessionId,
    request: RequestNumber,
) {
    let known = sessions.entry(session).or_default();
    *known = (*known).max(request);
}
