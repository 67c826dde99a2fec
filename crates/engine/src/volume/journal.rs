//! The journal: the open segment, the one prepared behind it, what is not synced yet.
//!
//! One mutex per volume is the sequencer: under it entries are staged, written and put into the
//! map, so the order of the log is the order of the map. Nothing under it waits for the disk (the
//! page cache takes the writes), except the rescue after a failed fdatasync.

use super::Volume;
use super::log::{Position, SessionTable};
use super::segment::Segment;
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::pool::PoolFile;
use pannier_core::format::segment::{
    EntryKind, Header, Link, OpenSegment, PAGE_BYTES, SEAL_PAGE, SegmentWriter,
};
use pannier_core::ids::{Epoch, Incarnation, RequestNumber, SegmentName, Sequence, SessionId};
use pannier_core::map::{MapError, SegmentIndex, Target};
use pannier_core::units::{BlockIndex, PageIndex};
use parking_lot::MutexGuard;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Slices of one contiguous write: a descriptor and 63 writes of a batch.
pub(crate) const SLICES_MAX: usize = 64;

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
    /// The highest sequence ever used here, so that no name is used twice.
    pub(crate) last_sequence: Sequence,
    /// End of the log without the open segment.
    pub(crate) end: Position,
    /// The log behind the newest checkpoint, open segment excluded, with the entries of each.
    pub(crate) log: BTreeMap<Sequence, LogSegment>,
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
    /// What forwarding sessions have applied.
    pub(crate) sessions: SessionTable,
    /// The follower that asked last.
    pub(crate) followed: Option<super::follow::Followed>,
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

/// A change of the volume, ready to be appended. Data is whole blocks.
#[derive(Debug)]
pub(crate) enum Change<'a> {
    Data { first_block: BlockIndex, data: std::borrow::Cow<'a, [u8]> },
    Zero { first_block: BlockIndex, count: u32 },
    Discard { first_block: BlockIndex, count: u32 },
    Resize { size_bytes: u64 },
}

impl Change<'_> {
    pub(crate) fn pages(&self) -> u32 {
        match self {
            Self::Data { data, .. } => (data.len() / PAGE_BYTES) as u32,
            Self::Zero { .. } | Self::Discard { .. } | Self::Resize { .. } => 0,
        }
    }
}

/// Why an append has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Too much is unsynced, or no segment is ready: [`Volume::room`] tells when to try again.
    Room,
    /// Blocks of this byte range are needed and would have to be waited for.
    Warm { offset: u64, length: u64 },
}

/// How an append ended.
pub(crate) type Tried<T> = Result<std::result::Result<T, Wait>>;

impl Journal {
    pub(crate) fn new(end: Position, last_sequence: Sequence, sessions: SessionTable) -> Self {
        Self {
            mode: Mode::Stopped,
            epoch: Epoch(0),
            incarnation: Incarnation(0),
            open: None,
            next: None,
            preparing: false,
            prepare_error: None,
            last_sequence,
            end,
            log: BTreeMap::new(),
            closed: VecDeque::new(),
            unsealed: 0,
            tick: 0,
            unsynced_bytes: 0,
            syncing: false,
            sync_wanted: 0,
            sessions,
            followed: None,
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
    fn last_name(&self) -> Option<SegmentName> {
        self.open.as_ref().map_or(self.end.segment, |open| Some(open.segment.name))
    }

    /// Whether a segment that was prepared meanwhile is still the one that comes next.
    fn wants(&self, header: &Header) -> bool {
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

/// The volume does not append.
pub(crate) fn stopped() -> Error {
    Error::new(ErrorKind::Closed, "the volume is not appended to on this host; ask its owner")
}

pub(crate) fn map_error(error: MapError) -> Error {
    Error::new(ErrorKind::Invalid, format!("beyond the volume's end: {error}")).with_source(error)
}

/// Collects slices that are contiguous in the file, and writes them at once. The first place is
/// kept for the descriptor of a group that was just opened, which stands right before its data.
struct Gather<'a> {
    slices: [IoSlice<'a>; SLICES_MAX + 1],
    count: usize,
    first: PageIndex,
    next: PageIndex,
}

impl<'a> Gather<'a> {
    fn new() -> Self {
        let slices = [IoSlice::new(&[]); SLICES_MAX + 1];
        Self { slices, count: 0, first: PageIndex(0), next: PageIndex(0) }
    }

    fn push(&mut self, file: &PoolFile, page: PageIndex, data: &'a [u8]) -> io::Result<()> {
        if self.count == SLICES_MAX || self.count > 0 && page != self.next {
            write_slices(file, &mut self.slices[1..=self.count], self.first)?;
            self.count = 0;
        }
        if self.count == 0 {
            self.first = page;
            self.next = page;
        }
        self.count += 1;
        self.slices[self.count] = IoSlice::new(data);
        self.next = self.next.plus((data.len() / PAGE_BYTES) as u32);
        Ok(())
    }

    /// Writes what is left, and the descriptors: one write when the group is new.
    fn finish(mut self, open: &'a Open) -> io::Result<()> {
        let mut descriptors = open.writer.unwritten();
        let mut behind = descriptors.next();
        if let Some((page, bytes)) = behind
            && self.count > 0
            && page.plus(1) == self.first
        {
            self.slices[0] = IoSlice::new(bytes);
            write_slices(&open.file, &mut self.slices[..=self.count], page)?;
            behind = descriptors.next();
        } else {
            write_slices(&open.file, &mut self.slices[1..=self.count], self.first)?;
        }
        behind
            .into_iter()
            .chain(descriptors)
            .try_for_each(|(page, bytes)| open.file.write_at(bytes, page.byte_offset()))
    }
}

fn write_slices(file: &PoolFile, slices: &mut [IoSlice<'_>], at: PageIndex) -> io::Result<()> {
    match slices {
        [] => Ok(()),
        [one] => file.write_at(one, at.byte_offset()),
        many => file.write_vectored_at(many, at.byte_offset()),
    }
}

/// Appending, under the lock.
impl Volume {
    /// Appends changes, all or none, joined when `joined` says so, with the mark of a session.
    pub(crate) fn append(
        &self,
        journal: &mut MutexGuard<'_, Journal>,
        changes: &[Change<'_>],
        mark: Option<(SessionId, RequestNumber)>,
    ) -> Tried<()> {
        let pages = changes.iter().map(Change::pages).sum();
        let entries = changes.len() as u32 + u32::from(mark.is_some());
        if let Err(wait) = self.make_room(journal, entries, pages)? {
            return Ok(Err(wait));
        }
        self.append_in_place(journal, changes, mark)?;
        Ok(Ok(()))
    }

    /// Appends to the open segment, which has room.
    pub(crate) fn append_in_place(
        &self,
        journal: &mut MutexGuard<'_, Journal>,
        changes: &[Change<'_>],
        mark: Option<(SessionId, RequestNumber)>,
    ) -> Result<()> {
        let entries = changes.len() as u32 + u32::from(mark.is_some());
        let open = journal.open.as_mut().expect("room was made in it");
        let before = open.writer.entries();
        let mut gather = Gather::new();
        let mut written = Ok(());
        for (number, change) in changes.iter().enumerate() {
            let joined = number as u32 + 1 < entries;
            let kind = kind_of(change);
            let appended = open.writer.append(kind, joined).expect("room was made for it");
            if let Change::Data { data, .. } = change {
                written = written.and_then(|()| gather.push(&open.file, appended.page, data));
            }
        }
        if let Some((session, request)) = mark {
            let kind = EntryKind::SessionMark { session, request };
            open.writer.append(kind, false).expect("room was made for it");
        }
        let written = written.and_then(|()| gather.finish(open));
        self.finish_append(journal, before, written)?;
        if let Some((session, request)) = mark {
            note_session(&mut journal.sessions, session, request);
        }
        Ok(())
    }

    /// Appends as many of the writes as fit into the open segment, as one contiguous write where
    /// possible; they are whole blocks and at least the first has room. Returns how many.
    pub(crate) fn append_batch(
        &self,
        journal: &mut MutexGuard<'_, Journal>,
        writes: &[crate::port::WriteRequest<'_>],
    ) -> Result<usize> {
        let open = journal.open.as_mut().expect("room was made in it");
        let before = open.writer.entries();
        let mut gather = Gather::new();
        let (mut done, mut written) = (0, Ok(()));
        for write in writes.iter().take(SLICES_MAX - 1) {
            let first_block = BlockIndex(write.offset / PAGE_BYTES as u64);
            let aligned = is_aligned(write.offset) && is_aligned(write.data.len() as u64);
            if !aligned || write.data.is_empty() {
                break;
            }
            let Ok(appended) = open.writer.append_data(first_block, write.data, false) else {
                break;
            };
            written = written.and_then(|()| gather.push(&open.file, appended.page, write.data));
            done += 1;
        }
        let written = written.and_then(|()| gather.finish(open));
        self.finish_append(journal, before, written)?;
        Ok(done)
    }

    /// Puts the entries from `before` on, which are `written`, into the map and counts them.
    fn finish_append(
        &self,
        journal: &mut MutexGuard<'_, Journal>,
        before: u32,
        written: io::Result<()>,
    ) -> Result<()> {
        let open = journal.open.as_mut().expect("something was appended to it");
        if let Err(error) = written {
            let what = format!("write to the log of volume {}", self.id);
            let error = Error::io(what, error);
            self.fail(journal, error.clone());
            return Err(error);
        }
        open.writer.mark_written();
        let mut bytes = 0;
        let mut state = self.map.write();
        for entry in open.writer.entries_from(before) {
            bytes += u64::from(entry.kind.data_pages()) * PAGE_BYTES as u64;
            state.apply(open.index, &entry.kind, &self.size).map_err(map_error)?;
        }
        drop(state);
        let count = u64::from(open.writer.entries() - before);
        self.touched.store(true, Ordering::Relaxed);
        journal.tick += count;
        // A descriptor counts as well, so that a stream of zeroes is bounded too.
        let unsynced = bytes + PAGE_BYTES as u64;
        journal.unsynced_bytes += unsynced;
        self.context.unsynced.fetch_add(unsynced, Ordering::Relaxed);
        self.counters.wrote(count, bytes);
        if journal.unsynced_bytes >= limits::UNSYNCED_BYTES_KICK {
            self.start_sync(journal);
        }
        Ok(())
    }

    /// Makes sure that the open segment takes so much, moving on to the prepared one if need be.
    pub(crate) fn make_room(
        &self,
        journal: &mut MutexGuard<'_, Journal>,
        entries: u32,
        pages: u32,
    ) -> Tried<()> {
        journal.check()?;
        let bytes = u64::from(pages) * PAGE_BYTES as u64;
        let host = self.context.unsynced.load(Ordering::Relaxed);
        let over = |bound, have| have > 0 && have + bytes > bound;
        if over(limits::UNSYNCED_BYTES_MAX, journal.unsynced_bytes)
            || over(limits::HOST_UNSYNCED_BYTES_MAX, host) && journal.unsynced_bytes > 0
        {
            self.start_sync(journal);
            return Ok(Err(Wait::Room));
        }
        if journal.open.as_ref().is_some_and(|open| open.writer.has_room(entries, pages)) {
            return Ok(Ok(()));
        }
        if let Some(error) = journal.prepare_error.take() {
            return Err(error);
        }
        if journal.unsealed >= limits::UNSEALED_SEGMENTS_MAX {
            return Ok(Err(Wait::Room));
        }
        if journal.next.is_none() {
            self.start_prepare(journal);
            return Ok(Err(Wait::Room));
        }
        self.roll(journal);
        let fits = journal.open.as_ref().is_some_and(|open| open.writer.has_room(entries, pages));
        if !fits {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "a request of {entries} entries and {pages} pages is larger than a segment"
                ),
            ));
        }
        Ok(Ok(()))
    }

    /// Closes the open segment, if there is one with entries, and opens the prepared one.
    pub(crate) fn roll(&self, journal: &mut MutexGuard<'_, Journal>) {
        self.close_open(journal);
        let prepared = journal.next.take().expect("a segment is prepared");
        assert!(journal.open.is_none(), "one segment is open at a time");
        let predecessor = prepared.header.predecessor;
        assert_eq!(predecessor, journal.end.segment, "a segment follows the end of the log");
        let name = prepared.header.name;
        let segment = Segment::new(name, Some(Arc::clone(&prepared.file)));
        let index = self.map.write().add(&segment);
        let writer = SegmentWriter::new(prepared.header, journal.link());
        journal.open = Some(Open { segment, index, file: prepared.file, writer });
        self.start_prepare(journal);
    }

    /// Closes the open segment if it has entries: it is synced, hashed and sealed in the
    /// background.
    pub(crate) fn close_open(&self, journal: &mut MutexGuard<'_, Journal>) {
        if journal.open.as_ref().is_none_or(|open| open.writer.entries() == 0) {
            return;
        }
        journal.end = journal.position();
        let Some(open) = journal.open.take() else { return };
        let (entries, chain_crc) = (open.writer.entries(), open.writer.last_chain_crc());
        let segment = Arc::clone(&open.segment);
        journal.log.insert(segment.name.sequence, LogSegment { segment, entries, chain_crc });
        let source = parking_lot::Mutex::new(SealSource::Writer(Box::new(open.writer)));
        let closed = Closed { segment: open.segment, file: open.file, source };
        journal.closed.push_back(Arc::new(closed));
        journal.unsealed += 1;
        self.start_sync(journal);
    }

    /// Begins to prepare the segment behind the open one, if none is and none is being.
    pub(crate) fn start_prepare(&self, journal: &mut MutexGuard<'_, Journal>) {
        if journal.preparing || journal.next.is_some() {
            return;
        }
        let Ok(this) = self.this() else { return };
        let header = self.next_header(journal);
        journal.preparing = true;
        self.context.runtime.spawn_blocking(move || {
            let prepared = this.prepare(&header, &this.segment_path(header.name));
            let mut journal = this.journal.lock();
            journal.preparing = false;
            match prepared {
                Ok(prepared) if journal.wants(&prepared.header) => journal.next = Some(prepared),
                Ok(prepared) => this.give_back(&prepared.file),
                Err(error) => {
                    tracing::warn!(volume = %this.id, %error, "no segment file can be prepared");
                    journal.last_sequence.0 -= 1;
                    journal.prepare_error = Some(error);
                }
            }
            drop(journal);
            this.room.notify_waiters();
        });
    }

    /// The header of the segment behind the open one.
    pub(crate) fn next_header(&self, journal: &mut MutexGuard<'_, Journal>) -> Header {
        journal.last_sequence.0 += 1;
        let name = SegmentName {
            sequence: journal.last_sequence,
            epoch: journal.epoch,
            incarnation: journal.incarnation,
        };
        Header {
            volume: self.id,
            name,
            nonce: rand::random(),
            predecessor: journal.last_name(),
            capacity_pages: self.context.config.segment_pages,
        }
    }

    /// A file with a synced header and no seal, at `path`.
    pub(crate) fn prepare(&self, header: &Header, path: &Path) -> Result<Prepared> {
        match self.try_prepare(header, path) {
            Err(error) if error.kind() != ErrorKind::NoSpace => {
                tracing::warn!(volume = %self.id, %error, "another segment file is taken");
                self.context.disk.remove(path)?;
                self.try_prepare(header, path)
            }
            other => other,
        }
    }

    fn try_prepare(&self, header: &Header, path: &Path) -> Result<Prepared> {
        let file = self.context.pool.take(path)?;
        let mut pages = header.encode().to_vec();
        pages.resize((SEAL_PAGE.0 as usize + 1) * PAGE_BYTES, 0);
        let synced = file.write_at(&pages, 0).and_then(|()| file.sync());
        synced.map_err(|e| Error::io(format!("prepare segment {}", path.display()), e))?;
        self.context.disk.sync_dir(&self.dir.join("segments"))?;
        Ok(Prepared { header: *header, file: Arc::new(file) })
    }

    /// Gives the file of a segment without entries back.
    pub(crate) fn give_back(&self, file: &PoolFile) {
        if let Err(error) = self.context.pool.recycle(file) {
            tracing::warn!(volume = %self.id, %error, "an unused segment file stays");
        }
    }

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

/// A staged entry's kind; the page and data CRC are filled in by the writer.
fn kind_of(change: &Change<'_>) -> EntryKind {
    match change {
        Change::Data { first_block, data } => EntryKind::Data {
            first_block: *first_block,
            count: (data.len() / PAGE_BYTES) as u32,
            page: PageIndex(0),
            data_crc: pannier_core::format::segment::crc32c(data),
        },
        Change::Zero { first_block, count } => {
            EntryKind::Zero { first_block: *first_block, count: *count }
        }
        Change::Discard { first_block, count } => {
            EntryKind::Discard { first_block: *first_block, count: *count }
        }
        Change::Resize { size_bytes } => EntryKind::Resize { size_bytes: *size_bytes },
    }
}

/// Notes what a session has applied; the table is bounded.
pub(crate) fn note_session(
    sessions: &mut SessionTable,
    session: SessionId,
    request: RequestNumber,
) {
    let known = sessions.entry(session).or_default();
    *known = (*known).max(request);
    if sessions.len() > limits::SESSIONS_MAX
        && let Some(other) = sessions.keys().copied().find(|known| *known != session)
    {
        sessions.remove(&other);
    }
}

pub(crate) fn is_aligned(bytes: u64) -> bool {
    bytes.is_multiple_of(PAGE_BYTES as u64)
}

/// What an entry makes of the blocks it names, as the map says it.
pub(crate) fn target_of(
    index: SegmentIndex,
    kind: &EntryKind,
) -> Option<(BlockIndex, u32, Target)> {
    match *kind {
        EntryKind::Data { first_block, count, page, .. } => {
            Some((first_block, count, Target::Data(index, page)))
        }
        EntryKind::Zero { first_block, count } => Some((first_block, count, Target::Zero)),
        EntryKind::Discard { first_block, count } => Some((first_block, count, Target::Hole)),
        EntryKind::Resize { .. } | EntryKind::SessionMark { .. } => None,
    }
}
