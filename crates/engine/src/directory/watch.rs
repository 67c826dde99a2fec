//! Keeps the copy of the registry current, in memory and in its file.

use super::copy::replace_file;
use super::{Directory, codec};
use crate::error::Result;
use crate::limits;
use crate::port::{Changes, Revision};
use pannier_core::ids::{HostId, VolumeId};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// First pause after the registry failed to answer.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// How long changes gather before the file is written: a burst is one write.
const SAVE_AFTER: Duration = Duration::from_millis(500);
/// How often a host says that it is alive, and asks who else is.
const ALIVE_EVERY: Duration = Duration::from_secs(20);
/// Longest pause: so long a registry that is back may stay unnoticed.
const PAUSE_MAX: Duration = Duration::from_secs(2);

impl Directory {
    /// Follows the registry until `stop`: applies its changes, tells subscribers, writes the file.
    /// Runs for the life of the host.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut pause = PAUSE_MIN;
        // Deletions while no daemon ran here may have left the registry's history: read it whole.
        let mut after = Revision(0);
        let mut save_at = None;
        loop {
            let save = async {
                match save_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let answer = tokio::select! {
                () = stop.cancelled() => break,
                () = save => {
                    save_at = None;
                    self.save().await;
                    continue;
                }
                answer = self.registry.changes(after) => answer,
            };
            match answer {
                Ok(mut changes) => {
                    if !self.reachable.swap(true, Ordering::Relaxed) {
                        tracing::info!(revision = changes.through.0, "the registry answers");
                    }
                    // All changes since the beginning are the whole registry.
                    changes.complete |= after == Revision(0);
                    after = changes.through;
                    pause = PAUSE_MIN;
                    self.apply(&changes);
                    save_at = save_at.or(Some(Instant::now() + SAVE_AFTER));
                }
                Err(error) => {
                    if self.reachable.swap(false, Ordering::Relaxed) {
                        tracing::info!(%error, "the registry is away; volumes go on serving");
                    }
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
                    }
                }
            }
        }
        self.save().await;
    }

    /// Tells the registry until `stop` that `host` is alive, and asks who else is. For people to
    /// see: nothing rests on it.
    pub async fn stay_alive(self: Arc<Self>, host: HostId, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let alive = async {
                self.registry.stay_alive(host).await?;
                self.registry.alive().await
            };
            tokio::select! {
                () = stop.cancelled() => return,
                alive = alive => {
                    *self.alive.write() = alive.unwrap_or_else(|error| {
                        tracing::debug!(%error, "it is not known which hosts are alive");
                        None
                    });
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(ALIVE_EVERY) => {}
            }
        }
    }

    /// Reads the whole registry now.
    ///
    /// # Errors
    /// `Unavailable` while it is away.
    pub async fn refresh(&self) -> Result<()> {
        let (entries, through) = self.registry.list("").await.map_err(|error| self.away(error))?;
        self.reached();
        let entries = entries.into_iter().map(|(key, value)| (key, Some(value))).collect();
        self.apply(&Changes { entries, through, complete: true });
        Ok(())
    }

    /// Reads the registry for somebody whom the copy does not serve: once for all who ask at a
    /// time, and not again while the last answer is young.
    ///
    /// # Errors
    /// `Unavailable` while it is away.
    pub(super) async fn look_again(&self) -> Result<()> {
        let mut looked = self.looked.lock().await;
        if let Some((at, answer)) = &*looked
            && at.elapsed() < limits::MISS_KEPT
        {
            return answer.clone();
        }
        let answer = self.refresh().await;
        *looked = Some((Instant::now(), answer.clone()));
        answer
    }

    pub(super) fn reached(&self) {
        self.reachable.store(true, Ordering::Relaxed);
    }

    fn apply(&self, changes: &Changes) {
        let changed = self.copy.write().apply(changes);
        {
            let mut seen = self.seen.write();
            seen.all |= changes.complete;
            let keys =
                changes.entries.iter().filter_map(|(key, _)| key.strip_prefix(codec::VOLUMES));
            seen.volumes.extend(keys.filter_map(|id| id.parse::<VolumeId>().ok()));
        }
        self.announce(&changed);
    }

    /// Writes the copy's file.
    async fn save(&self) {
        // The file's boot vouches for every record in it, so it is this one only once all were read
        // from the registry: a reboot may have made the owner of any other another host.
        let boot = if self.seen.read().all { &self.boot } else { &self.cached_boot };
        let bytes = self.copy.read().encode(boot);
        let file = self.file.clone();
        let write = move || bytes.and_then(|bytes| replace_file(&file, &bytes));
        let written = tokio::task::spawn_blocking(write).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "the copy of the registry could not be written");
        }
    }
}
