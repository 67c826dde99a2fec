//! Making the log durable: one fdatasync at a time per volume, each for all who wait.
//!
//! A sync first closes the open group, so that no descriptor that it counts on is written again,
//! and then syncs the segments in the order of the log. A failed fdatasync is never repeated: the
//! entries that it should have covered are copied into new segments (`rescue`).

use super::Volume;
use super::journal::{Closed, Journal, Mode, Open, SealSource};
use super::seal::Job;
use crate::error::{Error, Result};
use crate::limits;
use crate::pool::PoolFile;
use pannier_core::ids::SegmentName;
use parking_lot::MutexGuard;
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

    pub(crate) fn count_synced(&self, journal: &mut MutexGuard<'_, Journal>, bytes: u64) {
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
