//! Hydration: after a switch the new owner's site takes every live block that it lacks, stores it,
//! and proves it.
//!
//! Segment by segment in the order of the disk, only pages that are not resident, as bulk behind
//! all demand. A segment whose live pages are all here is stored in the site's own store. When
//! everything is stored, the checkpoint follows, and then the proof ([`crate::verify`]). What is
//! done is known from the line cache and the store, so a restart goes on where it was.

use crate::error::{ErrorKind, Result};
use crate::message::{MoveProgress, Phase};
use crate::mover::{Mover, Room, limits};
use crate::port::Class;
use crate::verify::Proof;
use crate::volume::Volume;
use crate::volume::log::{LiveSegment, pages_in};
use pannier_core::ids::{SegmentId, SegmentName};
use pannier_core::units::BLOCK_BYTES;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Version of the file that keeps progress.
const PROGRESS_VERSION: u8 = 1;

/// Hydration of one volume, until it is dropped.
pub(crate) struct Hydration {
    _running: DropGuard,
}

struct Task {
    mover: Arc<Mover>,
    room: Arc<Room>,
    volume: Arc<Volume>,
}

impl Hydration {
    pub(crate) fn start(mover: Arc<Mover>, room: Arc<Room>, volume: Arc<Volume>) -> Self {
        let running = CancellationToken::new();
        let ended = running.clone();
        let task = Arc::new(Task { mover, room, volume });
        // Detached: it ends with the handle's guard.
        drop(tokio::spawn(async move {
            tokio::select! {
                () = task.run() => {}
                () = ended.cancelled() => {}
            }
        }));
        Self { _running: running.drop_guard() }
    }
}

/// The outcome of a task of the set.
fn ended(task: Option<Result<Result<()>, JoinError>>) -> Result<()> {
    match task {
        Some(Ok(done)) => done,
        Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Some(Err(_)) | None => Ok(()),
    }
}

/// The file that keeps a volume's progress.
fn progress_file(volume: &Volume) -> PathBuf {
    volume.context().volume_dir(volume.id()).join("move")
}

impl Task {
    async fn run(self: &Arc<Self>) {
        self.load_progress();
        if self.is_proven() {
            return;
        }
        let reporter = self.report();
        let work = self.work();
        tokio::select! {
            () = reporter => {}
            () = work => {}
        }
        self.save_progress();
    }

    /// Whether the registry has the proof for the present owner's site and epoch.
    fn is_proven(&self) -> bool {
        let found = self.mover.directory.volume(self.room.id);
        let proven = found.is_some_and(|found| {
            found.record.is_independent_at(&self.mover.context.site)
                && found.record.owner == self.mover.host()
        });
        if proven {
            self.enter(Phase::Independent);
        }
        proven
    }

    async fn work(self: &Arc<Self>) {
        let mut pause = limits::IDLE;
        let mut proof = Proof::default();
        loop {
            let round = self.round(&mut proof).await;
            *self.room.hydration_failure.lock() =
                round.as_ref().err().filter(|error| error.kind() != ErrorKind::Fenced).cloned();
            match round {
                Ok(true) => return self.enter(Phase::Independent),
                Ok(false) => pause = limits::IDLE,
                Err(error) if error.kind() == ErrorKind::Fenced => {
                    if self.epoch() > self.volume.journal.lock().epoch.0 {
                        tracing::info!(volume = %self.room.id, %error, "hydration ends");
                        return;
                    }
                    // A target appends, and stores, before the registry knows that it owns the
                    // volume. Rounds must not be so close that what they publish is always in the
                    // way of that transaction.
                    tracing::debug!(volume = %self.room.id, %error, "hydration waits");
                    pause = (pause * 2).min(limits::HYDRATION_RETRY_MAX);
                }
                Err(error) => {
                    tracing::warn!(
                        volume = %self.room.id, %error,
                        "hydration pauses and goes on from where it is"
                    );
                    pause = (pause * 2).min(limits::HYDRATION_RETRY_MAX);
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// One round over what is missing. `true` when nothing depends on another site any more, and
    /// that is proven.
    async fn round(self: &Arc<Self>, proof: &mut Proof) -> Result<bool> {
        let segments = self.volume.live_segments();
        self.measure(&segments);
        let lacking: Vec<SegmentName> = segments
            .iter()
            .filter(|segment| segment.hash.is_some() && !segment.stored_here)
            .map(|segment| segment.name)
            .collect();
        if !lacking.is_empty() {
            self.enter(Phase::Hydrating);
            self.pull(&lacking).await?;
        }
        self.enter(Phase::Publishing);
        let root = self.volume.checkpoint_local().await?;
        // What was written until the checkpoint is sealed by now, and this host has its files.
        for segment in self.volume.live_segments() {
            if segment.hash.is_some() && !segment.stored_here {
                self.store(segment.name).await?;
            }
        }
        if self.volume.publish_checkpoint().await? != Some(root) {
            return Ok(false);
        }
        self.enter(Phase::Verifying);
        proof.prove(&self.mover, &self.room, &self.volume, root).await
    }

    /// Pulls what is missing of the segments, in the order of the disk, and stores each.
    async fn pull(self: &Arc<Self>, lacking: &[SegmentName]) -> Result<()> {
        let storing = Arc::new(Semaphore::new(limits::STORED_SEGMENTS_MAX));
        let order = self.disk_order(lacking).await;
        // Tasks of their own: what is stored keeps no answer waiting. They end with the set.
        let mut pulls = JoinSet::new();
        for segment in order {
            self.mover.fetcher.bulk_ready().await;
            while pulls.len() >= limits::HYDRATED_SEGMENTS_MAX {
                ended(pulls.join_next().await)?;
            }
            pulls.spawn(self.clone().pull_segment(segment, storing.clone()));
        }
        while !pulls.is_empty() {
            ended(pulls.join_next().await)?;
        }
        Ok(())
    }

    /// The segments, those first whose missing pages come first on the disk; last those of which
    /// nothing is missing.
    async fn disk_order(&self, lacking: &[SegmentName]) -> Vec<SegmentName> {
        let set: HashSet<SegmentName> = lacking.iter().copied().collect();
        let mut seen = HashSet::new();
        let mut order = Vec::with_capacity(lacking.len());
        let size = self.volume.size_bytes();
        let mut offset = 0;
        while offset < size && order.len() < lacking.len() {
            let length = limits::HYDRATION_STEP_BYTES.min(size - offset);
            for (segment, _) in self.volume.missing_in_range(offset, length) {
                if set.contains(&segment) && seen.insert(segment) {
                    order.push(segment);
                }
            }
            offset += length;
            tokio::task::yield_now().await;
        }
        order.extend(lacking.iter().copied().filter(|segment| !seen.contains(segment)));
        order
    }

    async fn pull_segment(
        self: Arc<Self>,
        segment: SegmentName,
        storing: Arc<Semaphore>,
    ) -> Result<()> {
        let missing = self.volume.missing_pages(segment);
        let pages = u64::from(pages_in(&missing));
        if pages > 0 {
            self.mover.fetcher.fetch(&self.volume, segment, &missing, Class::Bulk).await?;
            self.room.progress.lock().bytes_done += pages * BLOCK_BYTES;
        }
        let Ok(_one) = storing.acquire().await else { return Ok(()) };
        self.store(segment).await
    }

    async fn store(&self, segment: SegmentName) -> Result<()> {
        match self.volume.store_segment(segment).await {
            Ok(_sent) => {
                let mut progress = self.room.progress.lock();
                progress.segments_stored =
                    (progress.segments_stored + 1).min(progress.segments_total);
                Ok(())
            }
            // Something of it was evicted, or became dead, meanwhile: the next round sees to it.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes stock: what there is, and what of it is here.
    fn measure(&self, segments: &[LiveSegment]) {
        let (mut total, mut missing, mut stored) = (0_u64, 0_u64, 0_u64);
        for segment in segments {
            total += u64::from(segment.pages_live);
            stored += u64::from(segment.stored_here);
            if !segment.stored_here && !segment.file_here {
                let id = SegmentId { volume: self.room.id, name: segment.name };
                let cached = self.mover.context.cache.pages_of(id).len();
                missing += u64::from(segment.pages_live.saturating_sub(cached));
            }
        }
        let mut progress = self.room.progress.lock();
        progress.bytes_total = total * BLOCK_BYTES;
        progress.bytes_done = total.saturating_sub(missing) * BLOCK_BYTES;
        progress.segments_total = segments.len() as u64;
        progress.segments_stored = stored;
    }

    fn enter(&self, phase: Phase) {
        let changed = {
            let mut progress = self.room.progress.lock();
            std::mem::replace(&mut progress.phase, phase) != phase
        };
        if changed {
            if phase == Phase::Independent {
                let mut progress = self.room.progress.lock();
                progress.bytes_done = progress.bytes_total;
                (progress.rate_bytes, progress.eta_ms) = (0, Some(0));
            }
            tracing::debug!(volume = %self.room.id, ?phase, "hydration");
            self.save_progress();
        }
    }

    /// Keeps the rate and the expected end up to date, and writes progress down.
    async fn report(&self) {
        let mut last = (Instant::now(), self.room.progress.lock().bytes_done);
        loop {
            tokio::time::sleep(limits::PROGRESS_INTERVAL).await;
            let now = Instant::now();
            {
                let mut progress = self.room.progress.lock();
                let moved = progress.bytes_done.saturating_sub(last.1);
                let nanos = (now - last.0).as_nanos().max(1) as u64;
                let rate = (u128::from(moved) * 1_000_000_000 / u128::from(nanos)) as u64;
                // A moving average over about four intervals.
                progress.rate_bytes = (3 * progress.rate_bytes + rate) / 4;
                let left = progress.bytes_total.saturating_sub(progress.bytes_done);
                progress.eta_ms = (progress.rate_bytes > 0)
                    .then(|| left.saturating_mul(1000) / progress.rate_bytes.max(1));
                last = (now, progress.bytes_done);
            }
            self.save_progress();
        }
    }

    /// Progress and its counters from before a restart, when they are of this move.
    fn load_progress(&self) {
        let Ok(bytes) = std::fs::read(progress_file(&self.volume)) else { return };
        let Some((&PROGRESS_VERSION, body)) = bytes.split_first() else { return };
        let Ok((epoch, saved)) = postcard::from_bytes::<(u64, MoveProgress)>(body) else { return };
        if epoch != self.epoch() {
            return;
        }
        self.room.wire_bytes.fetch_max(saved.wire_bytes, Ordering::Relaxed);
        self.room.resent_bytes.fetch_max(saved.resent_bytes, Ordering::Relaxed);
        self.room.demand_fetches.fetch_max(saved.demand_fetches, Ordering::Relaxed);
        *self.room.progress.lock() = saved;
    }

    /// Writes progress down. For people only: what is here is known from the files themselves, so
    /// it need not be durable.
    fn save_progress(&self) {
        let progress = self.mover.progress(self.room.id);
        let mut bytes = vec![PROGRESS_VERSION];
        let body = postcard::to_stdvec(&(self.epoch(), progress));
        let file = progress_file(&self.volume);
        let temporary = file.with_extension("tmp");
        let written = body.map_err(std::io::Error::other).and_then(|body| {
            bytes.extend_from_slice(&body);
            std::fs::write(&temporary, &bytes)?;
            std::fs::rename(&temporary, &file)
        });
        if let Err(error) = written {
            tracing::debug!(volume = %self.room.id, %error, "progress is not written down");
        }
    }

    /// The epoch that owns the volume here, as registered.
    fn epoch(&self) -> u64 {
        self.mover.directory.volume(self.room.id).map_or(0, |found| found.record.epoch.0)
    }
}
