//! The log for followers: what the owner hands out, and how a follower takes it in.

use super::Volume;
use super::append::map_error;
use super::journal::{Journal, LogSegment, Mode, note_session};
use super::log::{LogBatch, Position};
use super::segment::{Sealed, Segment, blocking};
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use pannier_core::format::segment::{EntryKind, Link, SegmentMeta};
use pannier_core::ids::Sequence;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The follower that asked last, so that the log is kept for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Followed {
    at: Instant,
    sequence: Sequence,
}

impl Journal {
    /// The first sequence of the log that a follower may still ask for.
    pub(crate) fn kept_for_follower(&self) -> Option<Sequence> {
        let recent = Duration::from_secs(limits::FOLLOWER_SILENCE_S);
        let followed = self.followed.filter(|followed| followed.at.elapsed() < recent)?;
        (self.log.len() <= limits::FOLLOWED_SEGMENTS_MAX).then_some(followed.sequence)
    }

    /// Drops what a checkpoint at `base` makes unnecessary, save what a follower at `kept` may
    /// still ask for: what is behind its position, and the position itself, by which it asks. The
    /// checkpoint before began at `former`.
    pub(crate) fn trim(&mut self, former: Position, base: Position, kept: Option<Sequence>) {
        self.log.retain(|sequence, _| {
            *sequence > base.sequence() || kept.is_some_and(|kept| *sequence >= kept)
        });
        let mut known = self.former_base.into_iter().chain([former]);
        self.former_base = known.rfind(|known| kept == Some(known.sequence()));
    }
}

impl Volume {
    /// Sealed segments behind `position`, about `bytes_max` of metadata at most but at least one
    /// segment; waits up to [`limits::LOG_WAIT_MS`] when there are none. What the open segment has
    /// is not part of it: [`Volume::seal_open`] seals it.
    ///
    /// # Errors
    /// `NotFound` when the log no longer reaches back to `position`: begin again from
    /// [`Volume::checkpoint_root`]. `Invalid` when `position` is of another log.
    pub async fn log_since(&self, position: Position, bytes_max: usize) -> Result<LogBatch> {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(limits::LOG_WAIT_MS);
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            let (segments, more) = self.sealed_since(position)?;
            if !segments.is_empty() {
                return self.batch(position, segments, more, bytes_max).await;
            }
            if tokio::time::timeout_at(deadline, news).await.is_err() {
                let (from, through) = (position, position);
                return Ok(LogBatch { from, segments: Vec::new(), through, end: true });
            }
        }
    }

    /// The next sealed segments behind a position, and whether there are more.
    fn sealed_since(&self, position: Position) -> Result<(Vec<LogSegment>, bool)> {
        let base = self.map.read().base;
        let mut journal = self.journal.lock();
        journal.followed = Some(Followed { at: Instant::now(), sequence: position.sequence() });
        let known = |log: &LogSegment| Position {
            segment: Some(log.segment.name),
            entries: log.entries,
            chain_crc: log.chain_crc,
        };
        let here = journal.log.get(&position.sequence()).map(known);
        if ![Some(base), here, journal.former_base].contains(&Some(position)) {
            return if position.sequence() < base.sequence() && here.is_none() {
                let text = format!("the log of volume {} no longer reaches back so far", self.id);
                Err(Error::new(ErrorKind::NotFound, text))
            } else {
                let text = format!("position {position:?} is not in the log of volume {}", self.id);
                Err(Error::new(ErrorKind::Invalid, text))
            };
        }
        let mut behind = journal
            .log
            .range(Sequence(position.sequence().0 + 1)..)
            .map(|(_, known)| known.clone())
            .take_while(|known| known.segment.sealed().is_some());
        let segments = behind.by_ref().take(limits::LOG_BATCH_SEGMENTS_MAX).collect();
        Ok((segments, behind.next().is_some()))
    }

    async fn batch(
        &self,
        from: Position,
        known: Vec<LogSegment>,
        more: bool,
        bytes_max: usize,
    ) -> Result<LogBatch> {
        let this = self.this()?;
        blocking(move || {
            let mut batch = LogBatch { from, segments: Vec::new(), through: from, end: !more };
            let mut bytes = 0;
            for LogSegment { segment, entries, chain_crc } in known {
                let name = segment.name;
                let meta = this.local_meta(&segment)?.ok_or_else(|| {
                    let text = format!("metadata of segment {}/{name} is not here", this.id);
                    Error::new(ErrorKind::NotFound, text)
                })?;
                let meta = meta.encode();
                if !batch.segments.is_empty() && bytes + meta.len() > bytes_max {
                    batch.end = false;
                    break;
                }
                bytes += meta.len();
                batch.segments.push((name, meta));
                batch.through = Position { segment: Some(name), entries, chain_crc };
            }
            Ok(batch)
        })
        .await
    }

    /// Applies a batch on a follower; its segments' metadata is durable when it returns, so that a
    /// crash right behind GRANT recovers. Segments that the own log has are skipped.
    ///
    /// # Errors
    /// `Invalid` when the batch does not continue the own log, `Corrupt`, `NoSpace`.
    pub async fn apply_log(&self, batch: &LogBatch) -> Result<Position> {
        let this = self.this()?;
        let segments = batch.segments.clone();
        let one = self.following.clone().lock_owned().await;
        // Held by what cannot be stopped, and not by what waits for it.
        blocking(move || {
            let _one = one;
            this.apply_segments(&segments)
        })
        .await
    }

    /// The end of the log, when no batch is being applied, as one may be whose follower has gone.
    pub(crate) async fn followed_end(&self) -> Position {
        let _one = self.following.lock().await;
        self.position()
    }

    fn apply_segments(
        &self,
        segments: &[(pannier_core::ids::SegmentName, Vec<u8>)],
    ) -> Result<Position> {
        let key = &self.context.key;
        let mut end = self.follower_end()?;
        let mut metas = Vec::new();
        for (name, bytes) in segments {
            let meta = SegmentMeta::decode(bytes, key).map_err(|e| {
                let text = format!("metadata of segment {}/{name}: {e}", self.id);
                Error::new(ErrorKind::Corrupt, text).with_source(e)
            })?;
            if meta.name().sequence <= end.sequence() {
                continue;
            }
            let link = Link { entries: end.entries, chain_crc: end.chain_crc };
            let fits = meta.header().predecessor == end.segment && meta.link() == link;
            if meta.id().volume != self.id || meta.name() != *name || !fits {
                let text = format!(
                    "segment {}/{name} does not follow position {end:?} of the log here",
                    self.id
                );
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            let next = meta.next_link();
            end =
                Position { segment: Some(*name), entries: next.entries, chain_crc: next.chain_crc };
            metas.push((meta, bytes));
        }
        if metas.is_empty() {
            return Ok(end);
        }
        for (meta, bytes) in &metas {
            let path = self.index_path(meta.name());
            self.context.with_reserve(|| self.context.disk.write_named(&path, bytes))?;
        }
        self.context.disk.sync_dir(&self.dir.join("index"))?;
        self.follower_end()?;
        self.followed.store(true, Ordering::Release);
        for (meta, _) in metas {
            let segment = Segment::new(meta.name(), None);
            let sealed = Sealed { hash: meta.hash(), entries: meta.entries().len() as u32 };
            segment.set_sealed(sealed);
            self.replay(&segment, meta.entries())?;
            self.metas.lock().put(meta.name(), Arc::new(meta));
        }
        self.news.notify_waiters();
        self.work_due.notify_one();
        Ok(end)
    }

    fn follower_end(&self) -> Result<Position> {
        let journal = self.journal.lock();
        match &journal.mode {
            Mode::Stopped => Ok(journal.end),
            Mode::Failed(error) => Err(error.clone()),
            Mode::Appending => {
                let text = format!("volume {} appends itself and follows nobody", self.id);
                Err(Error::new(ErrorKind::Invalid, text))
            }
        }
    }

    /// Puts a segment's entries into the map, behind what is there.
    pub(crate) fn replay(
        &self,
        segment: &Arc<Segment>,
        entries: &[pannier_core::format::segment::Entry],
    ) -> Result<()> {
        let mut journal = self.journal.lock();
        let mut state = self.map.write();
        let index = state.add(segment);
        for entry in entries {
            state.apply(index, &entry.kind, &self.size).map_err(|e| {
                let text = format!("segment {}/{} does not fit: {e}", self.id, segment.name);
                map_error(e).with_source(Error::new(ErrorKind::Corrupt, text))
            })?;
            if let EntryKind::SessionMark { session, request } = entry.kind {
                note_session(&mut journal.sessions, session, request);
            }
        }
        let Some(last) = entries.last() else { return Ok(()) };
        let (count, chain_crc) = (entries.len() as u32, last.chain_crc);
        let name = segment.name;
        journal.end = Position { segment: Some(name), entries: count, chain_crc };
        journal.last_sequence = journal.last_sequence.max(name.sequence);
        let known = LogSegment { segment: Arc::clone(segment), entries: count, chain_crc };
        journal.log.insert(name.sequence, known);
        Ok(())
    }
}
