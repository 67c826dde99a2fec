//! A volume on this host: its log, its map, and what of its segments is here.
//!
//! While it appends (between [`Volume::begin_append`] and [`Volume::stop_append`]) it serves
//! guests; otherwise it is a follower that applies another host's log, or stands still.
//!
//! The rooms: `journal` is the state under one mutex, `append` what happens under it, `roll` goes
//! from segment to segment, `flush` makes durable, `rescue` is what a failed sync leads to, `seal`
//! hashes and seals what is full, `read` and `write` are the guest's path, `recover` opens,
//! `follow` is the log for followers, `data` the pages for peers, `segment` one segment's file and
//! facts, `unsealed` checks what has no hash yet, `mark` notes how far the log goes, `aside` is
//! what is no part of it any more.

mod append;
mod aside;
mod counters;
mod data;
mod flush;
mod follow;
pub(crate) mod journal;
pub mod log;
mod mark;
mod read;
mod recover;
mod rescue;
mod roll;
pub(crate) mod seal;
pub(crate) mod segment;
mod state;
mod unsealed;
mod write;

#[cfg(test)]
mod tests;

use crate::checkpoint::Checkpointer;
use crate::context::HostContext;
use crate::error::{Error, ErrorKind, Result};
use crate::stored::StoredList;
use counters::Counters;
use journal::{Journal, Mode};
use log::{Position, SessionTable};
use pannier_core::ids::{Epoch, Incarnation, SessionId, VolumeId};
use parking_lot::{Mutex, RwLock};
use segment::Metas;
use state::MapState;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

/// A volume on this host.
pub struct Volume {
    pub(crate) id: VolumeId,
    pub(crate) context: Arc<HostContext>,
    pub(crate) dir: PathBuf,
    pub(crate) this: Weak<Self>,
    /// Size in bytes.
    pub(crate) size: AtomicU64,
    /// Set by every read and write of the guest, cleared by background work.
    pub(crate) touched: AtomicBool,
    /// Whether it has followed another host since it was opened.
    pub(crate) followed: AtomicBool,
    /// Mirrors `Journal::mode`, for reads.
    pub(crate) appending: AtomicBool,
    /// Taken before `map`, never after it.
    pub(crate) journal: Mutex<Journal>,
    pub(crate) map: RwLock<MapState>,
    pub(crate) metas: Mutex<Metas>,
    /// Told when writers that waited may try again.
    pub(crate) room: Notify,
    /// Told when `synced_tick` rose, or the volume failed.
    pub(crate) synced: Notify,
    pub(crate) synced_tick: AtomicU64,
    /// Told when a segment was sealed, or the log's end changed otherwise.
    pub(crate) news: Notify,
    /// Told when background work may be due.
    pub(crate) work_due: Arc<Notify>,
    /// What the site's store has of it; held while the list's file is written.
    pub(crate) stored_list: Mutex<StoredList>,
    /// Told when a session's request was applied.
    pub(crate) session_news: Notify,
    /// Held while a batch of another host's log is applied.
    pub(crate) following: Arc<tokio::sync::Mutex<()>>,
    pub(crate) closing: AtomicBool,
    pub(crate) checkpointer: tokio::sync::Mutex<Checkpointer>,
    pub(crate) counters: Counters,
}

/// Life: append, stop, close. (Create, recover, follow and delete are in `recover`.)
impl Volume {
    /// Begins to append under an epoch: the caller has made its right to do so durable.
    /// `incarnation` was never used before with `epoch`.
    ///
    /// # Errors
    /// `Internal` when it already appends, `Unavailable` when its disk failed.
    pub async fn begin_append(&self, epoch: Epoch, incarnation: Incarnation) -> Result<()> {
        let mut journal = self.journal.lock();
        match &journal.mode {
            Mode::Stopped => {}
            Mode::Appending => {
                return Err(Error::new(
                    ErrorKind::Internal,
                    format!("volume {} already appends under epoch {}", self.id, journal.epoch),
                ));
            }
            Mode::Failed(error) => return Err(error.clone()),
        }
        assert!(
            (epoch, incarnation) > (journal.epoch, journal.incarnation),
            "volume {}: epoch {epoch} incarnation {} was used before",
            self.id,
            incarnation.0
        );
        journal.mode = Mode::Appending;
        (journal.epoch, journal.incarnation) = (epoch, incarnation);
        journal.prepare_error = None;
        journal.mark = mark::Mark::begin(&self.dir, journal.end);
        if self.followed.load(Ordering::Acquire) {
            // A guest is about to come over: its first write shall find a segment ready.
            self.start_prepare(&mut journal);
        }
        self.appending.store(true, Ordering::Release);
        Ok(())
    }

    /// Forgets what all sessions but these have applied: they are over, and will not ask again. To
    /// be called while the volume does not append, so that nothing of them runs.
    pub(crate) fn keep_sessions(&self, open: &BTreeSet<SessionId>) {
        self.journal.lock().sessions.retain(|session, _| open.contains(session));
    }

    /// Ends appending: refuses new requests, drains the running ones, syncs and seals. Nothing is
    /// appended, acknowledged or read for a guest after it returns, until another
    /// [`Volume::begin_append`]. Idempotent: a stopped volume answers its position.
    ///
    /// # Errors
    /// `Unavailable` when the log cannot be made durable; the volume has then failed: it takes no
    /// more writes, and serves reads.
    pub async fn stop_append(&self) -> Result<Position> {
        if let Some(error) = self.failure() {
            return Err(error);
        }
        let stopped = self.stop_and_seal().await;
        if let Err(error) = &stopped {
            self.fail(&mut self.journal.lock(), error.clone());
            self.appending.store(true, Ordering::Release);
        }
        stopped
    }

    /// Why it takes no more writes, when its disk has failed.
    pub(crate) fn failure(&self) -> Option<Error> {
        match &self.journal.lock().mode {
            Mode::Failed(error) => Some(error.clone()),
            Mode::Appending | Mode::Stopped => None,
        }
    }

    async fn stop_and_seal(&self) -> Result<Position> {
        {
            let mut journal = self.journal.lock();
            self.appending.store(false, Ordering::Release);
            journal.mode = Mode::Stopped;
            self.close_open(&mut journal);
            self.give_unused_back(&mut journal);
            self.room.notify_waiters();
            self.session_news.notify_waiters();
        }
        self.flush_log().await?;
        self.wait_sealed().await?;
        Ok(self.position())
    }

    /// Seals the open segment on purpose while writes go on, and returns when all that was written
    /// before the call is durable and sealed. Nothing happens when there is nothing open.
    ///
    /// # Errors
    /// As [`Volume::stop_append`].
    pub async fn seal_open(&self) -> Result<Position> {
        loop {
            let (position, rescues) = {
                let mut journal = self.journal.lock();
                if journal.next.is_some() {
                    if journal.open.as_ref().is_some_and(|open| open.writer.entries() > 0) {
                        self.roll(&mut journal);
                    }
                } else {
                    self.close_open(&mut journal);
                }
                (journal.end, journal.rescues)
            };
            self.flush_log().await?;
            self.wait_sealed_through(position.sequence()).await?;
            // Else its last entries stand behind another position now.
            if self.journal.lock().rescues == rescues {
                return Ok(position);
            }
        }
    }

    /// Seals what a quiet volume has open, and gives the files that it does not need back. The next
    /// write takes new ones.
    pub(crate) fn rest(&self) {
        let mut journal = self.journal.lock();
        self.close_open(&mut journal);
        self.give_unused_back(&mut journal);
    }

    /// Gives an open segment without entries and the one prepared behind it back.
    fn give_unused_back(&self, journal: &mut Journal) {
        if let Some(open) = journal.open.take() {
            assert_eq!(open.writer.entries(), 0, "what has entries is closed first");
            self.map.write().forget(open.index);
            self.give_back(&open.file);
        }
        if let Some(next) = journal.next.take() {
            self.give_back(&next.file);
        }
        if !journal.preparing {
            journal.last_sequence = journal.end.sequence();
        }
    }

    /// Ends background work and writes a last checkpoint; called when the daemon stops. The volume
    /// takes no request afterwards.
    ///
    /// # Errors
    /// As [`Volume::stop_append`].
    pub async fn close(&self) -> Result<()> {
        self.stop_append().await?;
        let result = self.checkpoint_local().await;
        self.closing.store(true, Ordering::Release);
        self.work_due.notify_one();
        result.map(|_written| ())
    }
}

/// What it is.
impl Volume {
    /// Its identity.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// The host's context.
    #[must_use]
    pub fn context(&self) -> &Arc<HostContext> {
        &self.context
    }

    /// Whether it serves guests: it appends, or its disk has failed and it can still be read.
    #[must_use]
    pub fn is_appending(&self) -> bool {
        self.appending.load(Ordering::Acquire)
    }

    /// Whether a request that failed so is to be routed anew. The error itself says so: by now the
    /// volume may have been started again.
    pub(crate) fn has_left(&self, error: &Error) -> bool {
        journal::is_stopped(error) || !self.is_appending()
    }

    /// The end of the log here.
    #[must_use]
    pub fn position(&self) -> Position {
        self.journal.lock().position()
    }

    /// The end of the sealed log here: what followers can have.
    #[must_use]
    pub fn sealed_position(&self) -> Position {
        let journal = self.journal.lock();
        let sealed = journal.log.values().take_while(|known| known.segment.sealed().is_some());
        sealed.last().map_or(self.map.read().base, |last| Position {
            segment: Some(last.segment.name),
            entries: last.entries,
            chain_crc: last.chain_crc,
        })
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// What forwarding sessions have applied.
    #[must_use]
    pub fn sessions(&self) -> SessionTable {
        self.journal.lock().sessions.clone()
    }

    /// Forgets a session that has ended: its late requests are refused with `Closed`.
    pub fn end_session(&self, session: SessionId) {
        self.journal.lock().sessions.remove(&session);
        self.session_news.notify_waiters();
    }

    /// Figures for status; walks over all segments.
    #[must_use]
    pub fn stats(&self) -> VolumeStats {
        let mut stats = VolumeStats {
            unsynced_bytes: self.journal.lock().unsynced_bytes,
            ..VolumeStats::default()
        };
        let mut elsewhere = Vec::new();
        for (segment, live_pages) in self.map.read().live() {
            let bytes = u64::from(live_pages) * 4096;
            stats.segments += 1;
            stats.live_bytes += bytes;
            if segment.is_stored() {
                stats.stored_bytes += bytes;
            }
            if segment.has_file() {
                stats.resident_bytes += bytes;
            } else {
                elsewhere.push(segment.name);
            }
        }
        for name in elsewhere {
            let id = pannier_core::ids::SegmentId { volume: self.id, name };
            stats.resident_bytes += u64::from(self.context.cache.pages_of(id).len()) * 4096;
        }
        stats
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Entries appended since it was opened.
    pub(crate) fn tick(&self) -> u64 {
        self.journal.lock().tick
    }

    /// A handle of its own.
    pub(crate) fn this(&self) -> Result<Arc<Self>> {
        self.this
            .upgrade()
            .ok_or_else(|| Error::new(ErrorKind::Closed, "the volume is being closed"))
    }
}

/// Figures of a volume on this host, in bytes unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VolumeStats {
    /// Live data that the map names.
    pub live_bytes: u64,
    /// Of these, what is here; pages in the line cache that are dead by now count too.
    pub resident_bytes: u64,
    /// Of these, what the site's store holds.
    pub stored_bytes: u64,
    /// Written and not yet synced.
    pub unsynced_bytes: u64,
    /// Number of segments with live data.
    pub segments: u64,
}
