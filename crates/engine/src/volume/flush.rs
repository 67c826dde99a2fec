//! Making the log durable: one fdatasync at a time per volume, each for all who wait.
//!
//! A sync first closes the open group, so that no descriptor that it counts on is written again,
//! and then syncs the segments in the order of the log. A failed fdatasync is never repeated: the
//! entries that it should have covered are copied, checked by their CRC, into new segments
//! (`rescue`).

use super::Volume;
use super::append::Change;
use super::journal::{Closed, Journal, Mode, Open, Prepared, SealSource};
use super::seal::Job;
use super::segment::Segment;
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::pool::PoolFile;
use pannier_core::format::segment::{Entry, EntryKind};
use pannier_core::ids::SegmentName;
use parking_lot::MutexGuard;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What one sync covers.
struct Covers {
    closed: Vec<Arc<Closed>>,
    open: Option<(Arc<PoolFile>, SegmentName, u32)>,
    tick: u64,
    bytes: u64,
}

impl Volume {
    /// Makes every write that returned before durable.
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub async fn flush(&self) -> Result<()> {
        self.journal.lock().check()?;
        self.flush_log().await
    }

    /// Makes durable what the log has, whether the volume appends or not.
    pub(crate) async fn flush_log(&self) -> Result<()> {
        let tick = {
            let mut journal = self.journal.lock();
            let tick = journal.tick;
            if self.synced_tick.load(Ordering::Acquire) >= tick && journal.closed.is_empty() {
                return Ok(());
            }
            journal.sync_wanted = journal.sync_wanted.max(tick);
            self.start_sync(&mut journal);
            tick
        };
        self.wait_synced(tick).await
    }

    /// Waits until the log is durable through a tick.
    pub(crate) async fn wait_synced(&self, tick: u64) -> Result<()> {
        loop {
            let synced = self.synced.notified();
            tokio::pin!(synced);
            synced.as_mut().enable();
            if self.synced_tick.load(Ordering::Acquire) >= tick {
                return Ok(());
            }
            if let Mode::Failed(error) = &self.journal.lock().mode {
                return Err(error.clone());
            }
            synced.await;
        }
    }

    /// Begins to sync, unless that is under way: what runs looks again when it has ended.
    pub(crate) fn start_sync(&self, journal: &mut MutexGuard<'_, Journal>) {
        if journal.syncing || matches!(journal.mode, Mode::Failed(_)) {
            return;
        }
        let Ok(this) = self.this() else { return };
        journal.syncing = true;
        self.context.runtime.spawn_blocking(move || this.sync_until_quiet());
    }

    fn sync_until_quiet(&self) {
        loop {
            let covers = self.begin_sync();
            let failed = covers
                .closed
                .iter()
                .map(|closed| &closed.file)
                .chain(covers.open.as_ref().map(|(file, _, _)| file))
                .find_map(|file| file.sync().err().map(|error| (error, file.path())));
            self.counters.syncs.increment(1);
            let mut journal = self.journal.lock();
            if let Some((error, path)) = failed {
                let what = format!("fdatasync of {} failed", path.display());
                if let Err(error) = self.rescue(&mut journal, Error::io(what, error)) {
                    journal.syncing = false;
                    self.fail(&mut journal, error);
                    return;
                }
            } else {
                self.end_sync(&mut journal, covers);
            }
            let more = journal.sync_wanted > self.synced_tick.load(Ordering::Acquire)
                || !journal.closed.is_empty()
                || journal.unsynced_bytes >= limits::UNSYNCED_BYTES_KICK;
            journal.syncing = more;
            drop(journal);
            self.synced.notify_waiters();
            self.room.notify_waiters();
            self.context.synced.notify_waiters();
            if !more {
                return;
            }
        }
    }

    fn begin_sync(&self) -> Covers {
        let mut journal = self.journal.lock();
        let (tick, bytes) = (journal.tick, journal.unsynced_bytes);
        let closed = journal.closed.iter().cloned().collect();
        let open = journal.open.as_mut().and_then(|open| {
            let entries = open.writer.begin_flush();
            let unsynced = entries > open.writer.durable();
            unsynced.then(|| (Arc::clone(&open.file), open.segment.name, entries))
        });
        Covers { closed, open, tick, bytes }
    }

    fn end_sync(&self, journal: &mut MutexGuard<'_, Journal>, covers: Covers) {
        for closed in covers.closed {
            let first = journal.closed.pop_front();
            assert!(
                first.is_some_and(|first| Arc::ptr_eq(&first, &closed)),
                "closed segments leave in order"
            );
            match &mut *closed.source.lock() {
                SealSource::Writer(writer) => {
                    let entries = writer.entries();
                    writer.flush_covers(entries);
                }
                SealSource::Recovered(open) => open.synced(),
                SealSource::Taken => {}
            }
            self.context.sealer.send(Job::Seal { volume: self.this.clone(), closed });
        }
        if let Some((_, name, entries)) = covers.open {
            if let Some(open) = journal.open.as_mut().filter(|open| open.segment.name == name) {
                open.writer.flush_covers(entries);
                self.hash_ahead(open);
            } else if let Some(closed) = journal.closed.iter().find(|c| c.segment.name == name)
                && let SealSource::Writer(writer) = &mut *closed.source.lock()
            {
                writer.flush_covers(entries);
            }
        }
        self.synced_tick.store(covers.tick, Ordering::Release);
        self.count_synced(journal, covers.bytes);
    }

    fn count_synced(&self, journal: &mut MutexGuard<'_, Journal>, bytes: u64) {
        journal.unsynced_bytes -= bytes;
        self.context.unsynced.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Has the durable part of the open segment hashed, so that its seal has little left to do.
    fn hash_ahead(&self, open: &Open) {
        let hashed = open.segment.hashed.lock().entries;
        let durable = open.writer.durable();
        let entries = &open.writer.entries_from(hashed)[..(durable.max(hashed) - hashed) as usize];
        let pages: u32 = entries.iter().map(|entry| entry.kind.data_pages()).sum();
        if pages >= limits::HASH_AHEAD_PAGES {
            self.context.sealer.send(Job::Hash {
                segment: Arc::clone(&open.segment),
                file: Arc::clone(&open.file),
                first: hashed,
                entries: entries.to_vec(),
            });
        }
    }

    /// Waits until every closed segment is sealed.
    pub(crate) async fn wait_sealed(&self) -> Result<()> {
        self.wait_until(|journal| journal.unsealed == 0).await
    }

    /// Waits until the log is sealed through a sequence.
    pub(crate) async fn wait_sealed_through(
        &self,
        through: pannier_core::ids::Sequence,
    ) -> Result<()> {
        let sealed = move |journal: &Journal| {
            journal.log.range(..=through).all(|(_, known)| known.segment.sealed().is_some())
        };
        self.wait_until(sealed).await
    }

    async fn wait_until(&self, done: impl Fn(&Journal) -> bool) -> Result<()> {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            {
                let journal = self.journal.lock();
                if done(&journal) {
                    return Ok(());
                }
                if let Mode::Failed(error) = &journal.mode {
                    return Err(error.clone());
                }
            }
            news.await;
        }
    }
}

/// Entries that a failed fdatasync should have covered, with the file that has their data.
struct Stranded {
    segment: Arc<Segment>,
    file: Arc<PoolFile>,
    entries: Vec<Entry>,
    durable: u32,
}

/// Rescue after a failed fdatasync.
impl Volume {
    /// Copies what is not known durable into new segments and syncs them. Acknowledging stops
    /// meanwhile, since the caller holds the lock.
    ///
    /// # Errors
    /// When the copies cannot be made durable either: the volume has failed.
    fn rescue(&self, journal: &mut MutexGuard<'_, Journal>, cause: Error) -> Result<()> {
        tracing::warn!(volume = %self.id, %cause, "unsynced entries are copied to another file");
        let lost = |error: Error| {
            let text = format!("{}; the rescue failed too: {}", cause.context(), error.context());
            Error::new(error.kind(), text).with_source(error)
        };
        let stranded = stranded(journal);
        let Some(first) = stranded.first() else { return Ok(()) };
        let was_stopped = matches!(journal.mode, Mode::Stopped);
        if first.durable > 0 {
            // The durable prefix stays where it is; it is sealed by what recovery reads of it.
            journal.end = pannier_core::volume::Position {
                segment: Some(first.segment.name),
                entries: first.durable,
                chain_crc: first.entries[first.durable as usize - 1].chain_crc,
            };
        } else {
            let link = journal.log.range(..first.segment.name.sequence).next_back();
            journal.end = link.map_or_else(
                || self.map.read().base,
                |(_, known)| pannier_core::volume::Position {
                    segment: Some(known.segment.name),
                    entries: known.entries,
                    chain_crc: known.chain_crc,
                },
            );
        }
        for known in &stranded {
            journal.log.remove(&known.segment.name.sequence);
        }
        journal.unsealed -= journal.closed.len();
        journal.closed.clear();
        journal.open = None;
        // What was prepared names one of them as its predecessor.
        if let Some(unused) = journal.next.take() {
            self.give_back(&unused.file);
        }
        let prefix = match first.durable {
            0 => None,
            _ => Some(self.keep_prefix(journal, first).map_err(lost)?),
        };
        journal.mode = Mode::Appending;
        for known in &stranded {
            self.append_again(journal, known).map_err(lost)?;
        }
        self.show_copies(journal).map_err(lost)?;
        for known in &stranded {
            if known.durable == 0 {
                self.set_aside(&known.file.path())?;
            }
        }
        if was_stopped {
            self.close_open(journal);
            journal.mode = Mode::Stopped;
        }
        self.after_rescue(journal, prefix);
        Ok(())
    }

    /// Syncs the copies, and only then gives them their names: recovery finds all of them or, under
    /// the old names, what they were copied from.
    fn show_copies(&self, journal: &MutexGuard<'_, Journal>) -> Result<()> {
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

    fn after_rescue(&self, journal: &mut MutexGuard<'_, Journal>, prefix: Option<Arc<Closed>>) {
        let tick = journal.tick;
        for closed in prefix.into_iter().chain(std::mem::take(&mut journal.closed)) {
            self.context.sealer.send(Job::Seal { volume: self.this.clone(), closed });
        }
        if let Some(open) = &mut journal.open {
            let entries = open.writer.begin_flush();
            open.writer.flush_covers(entries);
        }
        self.synced_tick.store(tick, Ordering::Release);
        let bytes = journal.unsynced_bytes;
        self.count_synced(journal, bytes);
        tracing::warn!(volume = %self.id, "all unsynced entries are durable in another file");
    }

    /// The durable prefix of a segment whose fdatasync failed becomes a segment of its own right.
    /// It is sealed only when what lies behind it is copied: the seal's index takes its place.
    fn keep_prefix(
        &self,
        journal: &mut MutexGuard<'_, Journal>,
        from: &Stranded,
    ) -> Result<Arc<Closed>> {
        let found = super::segment::read_segment(&from.file, &self.context.key)?;
        let pannier_core::format::segment::Recovered::Open(mut open) = found else {
            return Err(Error::new(ErrorKind::Internal, "an unsealed segment reads as sealed"));
        };
        open.cut(from.durable);
        let closed = Closed {
            segment: Arc::clone(&from.segment),
            file: Arc::clone(&from.file),
            source: parking_lot::Mutex::new(SealSource::Recovered(Box::new(open))),
        };
        *from.segment.hashed.lock() = super::segment::Hashed::default();
        let known = super::journal::LogSegment {
            segment: Arc::clone(&from.segment),
            entries: journal.end.entries,
            chain_crc: journal.end.chain_crc,
        };
        journal.log.insert(from.segment.name.sequence, known);
        journal.unsealed += 1;
        Ok(Arc::new(closed))
    }

    /// Appends stranded entries to segments of new names, blocking.
    fn append_again(&self, journal: &mut MutexGuard<'_, Journal>, from: &Stranded) -> Result<()> {
        let mut rest = &from.entries[from.durable as usize..];
        while !rest.is_empty() {
            let joined = rest.iter().position(|entry| !entry.joined).unwrap_or(rest.len() - 1) + 1;
            let (request, behind) = rest.split_at(joined);
            rest = behind;
            let mut changes = Vec::new();
            let mut mark = None;
            for entry in request {
                match entry.kind {
                    EntryKind::Data { first_block, count, page, .. } => {
                        let mut data = vec![0; count as usize * 4096];
                        from.file
                            .read_at(&mut data, page.byte_offset())
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

    /// Prepares a segment on this thread, for the rescue.
    fn prepare_now(&self, journal: &mut MutexGuard<'_, Journal>) -> Result<Prepared> {
        if let Some(unused) = journal.next.take() {
            self.give_back(&unused.file);
        }
        self.close_open(journal);
        let header = self.next_header(journal);
        let mut path = self.segment_path(header.name).into_os_string();
        path.push(".rescue");
        self.prepare(&header, path.as_ref())
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
    all
}
