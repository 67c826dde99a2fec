//! Appending to the open segment, under the sequencer's lock: stage, write, put into the map.

use super::Volume;
use super::journal::{Journal, Open, note_session};
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::pool::PoolFile;
use pannier_core::format::segment::{EntryKind, PAGE_BYTES};
use pannier_core::ids::{RequestNumber, SessionId};
use pannier_core::map::MapError;
use pannier_core::units::{BlockIndex, PageIndex};
use parking_lot::MutexGuard;
use std::io::{self, IoSlice};
use std::sync::atomic::Ordering;

/// Slices of one contiguous write: a descriptor and 63 writes of a batch.
pub(crate) const SLICES_MAX: usize = 64;

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
        self.note_written(journal);
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

pub(crate) fn is_aligned(bytes: u64) -> bool {
    bytes.is_multiple_of(PAGE_BYTES as u64)
}

pub(crate) fn map_error(error: MapError) -> Error {
    Error::new(ErrorKind::Invalid, format!("beyond the volume's end: {error}")).with_source(error)
}
