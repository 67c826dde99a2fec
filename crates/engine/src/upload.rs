//! Storing: sealed segments go to the site's store, encoded, in the background; then the file may
//! be evicted. Also the volume's one background task, which decides when what is due.

use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::volume::Volume;
use crate::volume::log::pages_of;
use crate::volume::segment::{Segment, blocking};
use bytes::Bytes;
use pannier_core::format::segment::{Entry, EntryKind, PAGE_BYTES};
use pannier_core::format::stored;
use pannier_core::ids::{SegmentId, SegmentName};
use pannier_core::map::PageSet;
use pannier_core::units::PageIndex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Begins a volume's background work; it ends with the volume.
pub(crate) fn start(volume: &Arc<Volume>) {
    let context = volume.context();
    if context.config.background {
        context.runtime.spawn(work(Arc::downgrade(volume)));
    }
}

/// The data pages of a segment that no later entry of the same segment replaces.
fn kept_by(entries: &[Entry]) -> PageSet {
    let mut blocks: BTreeMap<u64, PageIndex> = BTreeMap::new();
    for entry in entries {
        let (first, count) = match entry.kind {
            EntryKind::Data { first_block, count, page, .. } => {
                blocks.extend((0..count).map(|n| (first_block.0 + u64::from(n), page.plus(n))));
                continue;
            }
            EntryKind::Zero { first_block, count } | EntryKind::Discard { first_block, count } => {
                (first_block.0, u64::from(count))
            }
            EntryKind::Resize { size_bytes } => {
                let end = size_bytes.div_ceil(PAGE_BYTES as u64);
                (end, u64::MAX - end)
            }
            EntryKind::SessionMark { .. } => continue,
        };
        let gone: Vec<u64> = blocks.range(first..first + count).map(|(block, _)| *block).collect();
        gone.iter().for_each(|block| _ = blocks.remove(block));
    }
    blocks.into_values().collect()
}

/// How a round of background work went.
#[derive(Default)]
struct Pace {
    failures: u32,
    last_tick: u64,
    quiet_since: Option<Instant>,
}

async fn work(volume: Weak<Volume>) {
    let mut pace = Pace::default();
    loop {
        let Some(this) = volume.upgrade() else { return };
        if this.closing.load(Ordering::Acquire) {
            return;
        }
        let pause = match this.work_once(&mut pace).await {
            Ok(()) => {
                pace.failures = 0;
                Duration::from_millis(limits::WORK_TICK_MS)
            }
            Err(error) => {
                let (first, longest) = limits::RETRY_MS;
                let pause = (first << pace.failures.min(16)).min(longest);
                pace.failures += 1;
                if pace.failures == 1 {
                    tracing::warn!(
                        volume = %this.id(), %error, pause_ms = pause,
                        "storing is put off; guests are served from here meanwhile"
                    );
                }
                Duration::from_millis(pause)
            }
        };
        let due = Arc::clone(&this.work_due);
        // Holds no volume while it waits, so that dropping the last handle ends it.
        drop(this);
        if pace.failures > 0 {
            tokio::time::sleep(pause).await;
        } else if tokio::time::timeout(pause, due.notified()).await.is_err() {
            tracing::trace!("nobody called; looking all the same");
        }
    }
}

impl Volume {
    async fn work_once(&self, pace: &mut Pace) -> Result<()> {
        if !self.is_appending() {
            return Ok(());
        }
        let idle = self.note_activity(pace);
        if idle {
            self.rest();
        }
        let mut lag = self.to_store();
        self.counters.upload_lag.set(lag.len() as f64);
        for name in lag.drain(..) {
            if !self.is_appending() || self.closing.load(Ordering::Acquire) {
                return Ok(());
            }
            let since = Instant::now();
            let sent = self.store_segment(name).await?;
            if self.touched.swap(false, Ordering::Relaxed) {
                tokio::time::sleep(since.elapsed() * limits::STORE_PAUSE).await;
            }
            let rate = self.context().config.upload_bytes_per_s;
            if let Some(pause) = (sent * 1000).checked_div(rate) {
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        }
        let context = Arc::clone(self.context());
        blocking(move || {
            context.evict();
            Ok(())
        })
        .await?;
        if self.checkpoint_is_due(idle) {
            self.checkpoint_local().await?;
        }
        self.publish_checkpoint().await.map(|_published| ())
    }

    /// Whether nothing was written for a while.
    fn note_activity(&self, pace: &mut Pace) -> bool {
        let tick = self.tick();
        if tick != pace.last_tick || pace.quiet_since.is_none() {
            pace.last_tick = tick;
            pace.quiet_since = Some(Instant::now());
        }
        let quiet = pace
            .quiet_since
            .is_some_and(|since| since.elapsed() >= Duration::from_millis(limits::IDLE_MS));
        quiet && tick > 0
    }

    /// Sealed live segments whose file is here and which the store lacks, in the order of the log.
    fn to_store(&self) -> Vec<SegmentName> {
        let state = self.map.read();
        let lacking = state.live().filter(|(segment, _)| {
            segment.sealed().is_some() && segment.has_file() && !segment.is_stored()
        });
        lacking.map(|(segment, _)| segment.name).collect()
    }

    /// Encodes a sealed segment's live pages and stores the object in the site's store, durably;
    /// they all are resident here. Nothing is done when it is stored already; what is in the way
    /// under its key and does not suffice is passed over, for the next generation. Returns the
    /// bytes sent.
    ///
    /// # Errors
    /// `NotFound` when a page is not resident, `Unavailable` or `NoSpace` of the store.
    pub async fn store_segment(&self, segment: SegmentName) -> Result<u64> {
        let known = self.known(segment)?;
        let _one = known.storing.lock().await;
        if known.is_stored() {
            return Ok(0);
        }
        let not_sealed = || {
            let text = format!("segment {}/{segment} is not sealed", self.id());
            Error::new(ErrorKind::NotFound, text)
        };
        let mut key = self.object_key_of(&known).ok_or_else(not_sealed)?;
        self.meta_of(&known).await?;
        let (this, wanted) = (self.this()?, Arc::clone(&known));
        let encode = move || this.encode_stored(&wanted);
        let object: Bytes = self.context().encoder.run(encode).await?.into();
        loop {
            match self.context().objects.put(&key, object.clone()).await {
                Ok(()) => break,
                Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
                Err(_other) if self.object_suffices(&key, &known).await? => break,
                Err(error) => {
                    tracing::warn!(volume = %self.id(), %segment, %error, "stored beside it");
                    self.pass_over(&known, key).await?;
                    key = self.object_key_of(&known).ok_or_else(not_sealed)?;
                }
            }
        }
        let bytes = object.len() as u64;
        let (this, stored) = (self.this()?, Arc::clone(&known));
        blocking(move || this.note_stored(&stored, &key)).await?;
        self.counters.uploaded.increment(bytes);
        Ok(bytes)
    }

    /// Whether an object that is there already has every page that the map names. A host that has
    /// not the whole segment stores what is live: whoever did so before, here or on another host of
    /// the site, stored more, since what was overwritten since was live then.
    pub(crate) async fn object_suffices(&self, key: &str, segment: &Arc<Segment>) -> Result<bool> {
        let meta = self.meta_of(segment).await?;
        let objects = &self.context().objects;
        let Some(length) = objects.size(key).await? else { return Ok(false) };
        let tail = length.saturating_sub(stored::FOOTER_BYTES_MAX)..length;
        let tail = objects.get_range(key, tail).await?;
        let Ok(footer) = stored::Footer::decode_tail(&tail, length) else { return Ok(false) };
        let (this, name) = (self.this()?, segment.name);
        let live = blocking(move || Ok(this.live_set(name))).await?;
        Ok(footer.is_of(meta.hash()) && live.iter().all(|page| footer.has(&meta, page)))
    }

    pub(crate) fn encode_stored(&self, segment: &Arc<Segment>) -> Result<Vec<u8>> {
        let meta = self.local_meta(segment)?.ok_or_else(|| {
            let text = format!("metadata of segment {}/{} is not here", self.id(), segment.name);
            Error::new(ErrorKind::NotFound, text)
        })?;
        let live = self.live_set(segment.name);
        // A checkpoint may name what was overwritten since it was taken. So a segment that is here
        // whole is stored with all that it does not itself overwrite: the same bytes, whenever.
        let wanted = if segment.has_file() { kept_by(meta.entries()) } else { live.clone() };
        let runs: Vec<_> = wanted.runs().map(|(first, count)| first.0..first.0 + count).collect();
        let (bytes, absent) = self.load_runs(segment, &runs)?;
        if let Some(page) = pages_of(&absent).find(|page| live.contains(*page)) {
            let text = format!("page {} of segment {} is not here", page.0, segment.name);
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        let pages: BTreeMap<PageIndex, &[u8]> =
            wanted.iter().zip(bytes.chunks_exact(PAGE_BYTES)).collect();
        let pages: BTreeMap<PageIndex, &[u8]> = {
            let gone: BTreeSet<PageIndex> = pages_of(&absent).collect();
            pages.into_iter().filter(|(page, _)| !gone.contains(page)).collect()
        };
        Ok(stored::encode(&meta, |page| pages.get(&page).copied()))
    }

    /// Gives a stored segment's file back; its metadata stays here. Blocks.
    pub(crate) fn evict_file(&self, name: SegmentName) -> Result<()> {
        let segment = self.known(name)?;
        if !segment.is_stored() || !segment.has_file() {
            return Ok(());
        }
        let meta = self.local_meta(&segment)?.ok_or_else(|| {
            let text = format!("metadata of segment {}/{name} is not here", self.id());
            Error::new(ErrorKind::NotFound, text)
        })?;
        self.context().replace_file(&self.index_path(name), &meta.encode())?;
        self.context().residency.forget(SegmentId { volume: self.id(), name });
        if let Some(file) = segment.set_file(None) {
            self.give_back(&file);
        }
        Ok(())
    }
}
