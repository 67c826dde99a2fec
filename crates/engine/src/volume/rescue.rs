//! What a failed fdatasync leads to.
//!
//! The kernel has marked the pages clean, so the same fdatasync would answer well the next time and
//! have done nothing: it is never repeated. The entries that it should have covered are copied,
//! checked by their CRC, into other segments in other files; when these are synced the entries have
//! moved. Nothing is acknowledged meanwhile. What is durable of the first segment stays its own and
//! is sealed as a copy; the files that failed are removed, not used again.

use super::Volume;
use super::append::Change;
use super::journal::{Closed, Journal, LogSegment, Mode, Prepared, SealSource};
use super::log::Position;
use super::seal::Job;
use super::segment::{Segment, read_segment};
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::pool::PoolFile;
use pannier_core::format::segment::{Entry, EntryKind, PAGE_BYTES, Recovered};
use pannier_core::ids::{RequestNumber, SessionId};
use parking_lot::MutexGuard;
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Entries that a failed fdatasync should have covered, with the file that has their data.
struct Stranded {
    segment: Arc<Segment>,
    file: Arc<PoolFile>,
    entries: Vec<Entry>,
    durable: u32,
}

/// A segment that the log has no more, with its file.
type Left = (Arc<Segment>, Arc<PoolFile>);

/// Changes that are appended together, with the mark of the session that asked for them.
type Request = (Vec<Change<'static>>, Option<(SessionId, RequestNumber)>);

impl Volume {
    /// Copies what is not known durable into new segments and syncs them. Acknowledging stops
    /// meanwhile, since the caller holds the lock. A copy that cannot be synced either is made
    /// again from the same files, [`limits::FAILED_FILES_MAX`] times.
    ///
    /// # Errors
    /// When no copy can be made durable: the volume has failed.
    pub(super) fn rescue(&self, journal: &mut MutexGuard<'_, Journal>, cause: Error) -> Result<()> {
        tracing::warn!(volume = %self.id, %cause, "unsynced entries are copied to another file");
        let lost = |error: Error| {
            let text = format!("{}; the rescue failed too: {}", cause.context(), error.context());
            Error::new(error.kind(), text).with_source(error)
        };
        let stranded = stranded(journal);
        let Some(first) = stranded.first() else { return Ok(()) };
        let was_stopped = matches!(journal.mode, Mode::Stopped);
        journal.rescues += 1;
        self.leave(journal, &stranded);
        let prefix = match first.durable {
            0 => None,
            _ => Some(self.keep_prefix(journal, first).map_err(lost)?),
        };
        let start = journal.end;
        let mut left = Vec::new();
        journal.mode = Mode::Appending;
        for copies in 1.. {
            let Err(error) = self.copy(journal, &stranded) else { break };
            if copies == limits::FAILED_FILES_MAX || !matches!(journal.mode, Mode::Appending) {
                return Err(lost(error));
            }
            tracing::warn!(volume = %self.id, %error, "the copy is made again");
            left.extend(drop_copies(journal, start));
        }
        if was_stopped {
            self.close_open(journal);
            journal.mode = Mode::Stopped;
        }
        self.end_rescue(journal, prefix);
        self.note_written(journal);
        let stranded = stranded.into_iter().filter(|known| known.durable == 0);
        self.remove_left(stranded.map(|known| (known.segment, known.file)).chain(left));
        Ok(())
    }

    /// Takes segments out of the log, which ends in front of what is not known durable.
    fn leave(&self, journal: &mut MutexGuard<'_, Journal>, stranded: &[Stranded]) {
        let Some(first) = stranded.first() else { return };
        journal.end = if first.durable > 0 {
            Position {
                segment: Some(first.segment.name),
                entries: first.durable,
                chain_crc: first.entries[first.durable as usize - 1].chain_crc,
            }
        } else {
            let before = journal.log.range(..first.segment.name.sequence).next_back();
            before.map_or_else(
                || self.map.read().base,
                |(_, known)| Position {
                    segment: Some(known.segment.name),
                    entries: known.entries,
                    chain_crc: known.chain_crc,
                },
            )
        };
        for known in stranded {
            journal.log.remove(&known.segment.name.sequence);
            known.segment.set_entries(&known.entries);
        }
        journal.unsealed -= journal.closed.len();
        journal.closed.clear();
        journal.open = None;
        // What was prepared names one of them as its predecessor.
        if let Some(unused) = journal.next.take() {
            self.give_back(&unused.file);
        }
    }

    /// The durable prefix of a segment whose fdatasync failed becomes a segment of its own right.
    /// It is sealed only when what lies behind it is copied.
    fn keep_prefix(
        &self,
        journal: &mut MutexGuard<'_, Journal>,
        from: &Stranded,
    ) -> Result<Arc<Closed>> {
        let Recovered::Open(mut open) = read_segment(&from.file, &self.context.key)? else {
            return Err(Error::new(ErrorKind::Internal, "an unsealed segment reads as sealed"));
        };
        open.cut(from.durable);
        let known = LogSegment {
            segment: Arc::clone(&from.segment),
            entries: journal.end.entries,
            chain_crc: journal.end.chain_crc,
        };
        journal.log.insert(from.segment.name.sequence, known);
        journal.unsealed += 1;
        Ok(Arc::new(Closed {
            segment: Arc::clone(&from.segment),
            file: Arc::clone(&from.file),
            source: parking_lot::Mutex::new(SealSource::Recovered(Box::new(open))),
            failed: true,
        }))
    }

    /// Appends the stranded entries to segments of new names, syncs these, and only then gives the
    /// files their names: recovery finds all of them or, under the old names, what they were copied
    /// from.
    fn copy(&self, journal: &mut MutexGuard<'_, Journal>, stranded: &[Stranded]) -> Result<()> {
        for known in stranded {
            self.append_again(journal, known)?;
        }
        let closed = journal.closed.iter().map(|closed| (&closed.segment, &closed.file));
        let open = journal.open.as_ref().map(|open| (&open.segment, &open.file));
        let copies: Vec<_> = closed.chain(open).collect();
        for (_, file) in &copies {
            file.sync().map_err(|e| Error::io("fdatasync of the copy", e))?;
        }
        // The last first: recovery follows the chain only from the first.
        for (segment, file) in copies.iter().rev() {
            file.rename(&self.context.disk, &self.segment_path(segment.name))?;
        }
        self.context.disk.sync_dir(&self.dir.join("segments"))
    }

    /// Appends what is not durable of a segment, blocking.
    fn append_again(&self, journal: &mut MutexGuard<'_, Journal>, from: &Stranded) -> Result<()> {
        let mut rest = &from.entries[from.durable as usize..];
        while !rest.is_empty() {
            let joined = rest.iter().position(|entry| !entry.joined).unwrap_or(rest.len() - 1) + 1;
            let (request, behind) = rest.split_at(joined);
            rest = behind;
            let (changes, mark) = read_request(request, &from.file)?;
            let pages = changes.iter().map(Change::pages).sum();
            let entries = request.len() as u32;
            let fits =
                journal.open.as_ref().is_some_and(|open| open.writer.has_room(entries, pages));
            if !fits {
                journal.next = Some(self.prepare_now(journal)?);
                self.roll(journal);
            }
            self.append_in_place(journal, &changes, mark)?;
        }
        Ok(())
    }

    /// Prepares a segment on this thread. Its file has a name that recovery does not look at.
    fn prepare_now(&self, journal: &mut MutexGuard<'_, Journal>) -> Result<Prepared> {
        if let Some(unused) = journal.next.take() {
            self.give_back(&unused.file);
        }
        self.close_open(journal);
        let header = self.next_header(journal);
        self.prepare(&header, false)
    }

    /// Where a copy of a segment is until it is durable: recovery removes what has such a name.
    pub(super) fn copy_path(&self, name: pannier_core::ids::SegmentName) -> PathBuf {
        let mut path = self.segment_path(name).into_os_string();
        path.push(".copy");
        path.into()
    }

    /// Everything is durable: acknowledging goes on, and what is closed is sealed.
    fn end_rescue(&self, journal: &mut MutexGuard<'_, Journal>, prefix: Option<Arc<Closed>>) {
        for closed in &journal.closed {
            if let SealSource::Writer(writer) = &mut *closed.source.lock() {
                let entries = writer.entries();
                writer.flush_covers(entries);
            }
        }
        for closed in prefix.into_iter().chain(std::mem::take(&mut journal.closed)) {
            self.context.sealer.send(Job::Seal { volume: self.this.clone(), closed });
        }
        if let Some(open) = &mut journal.open {
            let entries = open.writer.begin_flush();
            open.writer.flush_covers(entries);
        }
        self.synced_tick.store(journal.tick, Ordering::Release);
        let bytes = journal.unsynced_bytes;
        self.count_synced(journal, bytes);
        tracing::warn!(volume = %self.id, "all unsynced entries are durable in another file");
    }

    /// Removes segments that nothing names any more. Their files are not used again: the disk has
    /// failed to write to them.
    fn remove_left(&self, left: impl Iterator<Item = Left>) {
        for (segment, file) in left {
            let mut state = self.map.write();
            if let Some(index) = state.map.segments().index(segment.name)
                && state.map.segments().get(index).is_some_and(|known| known.live_pages == 0)
            {
                state.forget(index);
            }
            drop(state);
            if let Err(error) = self.context.disk.remove(&file.path()) {
                tracing::warn!(volume = %self.id, %error, "the next start sets this file aside");
            }
        }
    }
}

/// Everything not known durable, in order.
fn stranded(journal: &MutexGuard<'_, Journal>) -> Vec<Stranded> {
    let of = |segment: &Arc<Segment>, file: &Arc<PoolFile>, entries: &[Entry], durable| Stranded {
        segment: Arc::clone(segment),
        file: Arc::clone(file),
        entries: entries.to_vec(),
        durable,
    };
    let mut all = Vec::new();
    for closed in &journal.closed {
        match &*closed.source.lock() {
            SealSource::Writer(writer) => all.push(of(
                &closed.segment,
                &closed.file,
                writer.entries_from(0),
                writer.durable(),
            )),
            SealSource::Recovered(open) => all.push(of(
                &closed.segment,
                &closed.file,
                open.entries(),
                open.durable().min(open.entries().len() as u32),
            )),
            SealSource::Taken => {}
        }
    }
    if let Some(open) = &journal.open {
        let writer = &open.writer;
        all.push(of(&open.segment, &open.file, writer.entries_from(0), writer.durable()));
    }
    // Only the first keeps a prefix. Recovery may find more durable in a later one, which then says
    // that the first is durable whole; what is copied needlessly is in no danger.
    all.iter_mut().skip(1).for_each(|known| known.durable = 0);
    all
}

/// Takes copies that are not durable out of the log again.
fn drop_copies(journal: &mut MutexGuard<'_, Journal>, start: Position) -> Vec<Left> {
    let closed: Vec<_> = journal.closed.drain(..).collect();
    journal.unsealed -= closed.len();
    let mut left: Vec<Left> = Vec::new();
    for closed in closed {
        journal.log.remove(&closed.segment.name.sequence);
        left.push((Arc::clone(&closed.segment), Arc::clone(&closed.file)));
    }
    left.extend(journal.open.take().map(|open| (open.segment, open.file)));
    journal.end = start;
    left
}

/// The changes of one request, read back from the file.
fn read_request(request: &[Entry], file: &PoolFile) -> Result<Request> {
    let mut changes = Vec::new();
    let mut mark = None;
    for entry in request {
        match entry.kind {
            EntryKind::Data { first_block, count, page, .. } => {
                let mut data = vec![0; count as usize * PAGE_BYTES];
                file.read_at(&mut data, page.byte_offset())
                    .map_err(|e| Error::io("read unsynced data back", e))?;
                if !entry.data_matches(&data) {
                    let text = "unsynced data is not what was written any more";
                    return Err(Error::new(ErrorKind::Corrupt, text));
                }
                changes.push(Change::Data { first_block, data: Cow::Owned(data) });
            }
            EntryKind::Zero { first_block, count } => {
                changes.push(Change::Zero { first_block, count });
            }
            EntryKind::Discard { first_block, count } => {
                changes.push(Change::Discard { first_block, count });
            }
            EntryKind::Resize { size_bytes } => changes.push(Change::Resize { size_bytes }),
            EntryKind::SessionMark { session, request } => mark = Some((session, request)),
        }
    }
    Ok((changes, mark))
}
