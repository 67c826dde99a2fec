//! The start of a host: its parts are put together, its volumes recovered, deleted ones removed.

use super::hands::Locals;
use super::{Host, Setup};
use crate::boot::boot;
use crate::context::{HostContext, HostOptions};
use crate::directory::{Directory, News};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::mover::Mover;
use crate::ownership::{Hands as _, Owners, Part};
use crate::volume::Volume;
use futures::StreamExt as _;
use pannier_core::ids::VolumeId;
use pannier_core::volume::ownership::Role;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Volumes that are recovered at once, beside those for which a client waits: enough to keep a disk
/// busy, few enough not to starve those.
const RECOVERING_MAX: usize = 16;

/// How long behind the start leftovers are looked for: a commit that was under way when the former
/// daemon died has come through by then.
const SWEEP_AFTER: Duration = Duration::from_secs(30);

impl Host {
    /// Starts a host on its directory. It serves at once; its volumes are recovered in the
    /// background ([`Host::recovered`]), those that somebody opens first.
    ///
    /// # Errors
    /// `Unavailable`, `NoSpace` or `Corrupt` when the directory cannot be used at all. A single
    /// volume that cannot be recovered fails only itself.
    pub async fn start(setup: Setup) -> Result<Arc<Self>> {
        let boot = boot()?;
        let boot_text = uuid::Uuid::from_u128(boot.0).to_string();
        let directory = Directory::open(&setup.dir, setup.registry.clone(), &boot_text);
        let directory = Arc::new(directory);
        let options = HostOptions {
            dir: setup.dir,
            host: setup.id,
            site: setup.site,
            key: setup.key,
            config: setup.config,
            objects: setup.objects,
            disk: Disk::default(),
        };
        let context = tokio::task::spawn_blocking(move || HostContext::open(options))
            .await
            .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))??;
        let mover = Mover::new(context.clone(), directory.clone(), setup.peers.clone());
        let locals = Locals::new(context.clone(), directory.clone());
        let news = directory.subscribe();
        let owners =
            Owners::new(setup.id, boot, locals.clone(), directory.clone(), setup.peers.clone());
        locals.connect(mover.clone(), &owners);
        mover.set_ownership(locals.clone());
        context.set_publish(locals.clone());
        let (done, recovered) = watch::channel(false);
        let host = Arc::new(Self {
            id: setup.id,
            context,
            directory,
            peers: setup.peers,
            mover,
            owners,
            locals,
            came_from: Mutex::new(HashMap::new()),
            recovered,
            removing: tokio::sync::Mutex::new(()),
            stop: CancellationToken::new(),
            tasks: Mutex::new(Vec::new()),
        });
        let watch = host.directory.clone().watch(host.stop.clone());
        let alive = host.directory.clone().stay_alive(setup.id, host.stop.clone());
        let tasks = [
            tokio::spawn(watch),
            tokio::spawn(alive),
            tokio::spawn(host.clone().hear(news)),
            tokio::spawn(host.clone().recover_all(done)),
            tokio::spawn(host.clone().sweep(host.volumes_here())),
        ];
        host.tasks.lock().extend(tasks.map(AbortOnDropHandle::new));
        Ok(host)
    }

    /// Returns when every volume that was here is back, or has failed on its own.
    pub async fn recovered(&self) {
        let mut recovered = self.recovered.clone();
        // An error means that recovery was aborted: the host stops.
        drop(recovered.wait_for(|done| *done).await);
    }

    async fn recover_all(self: Arc<Self>, done: watch::Sender<bool>) {
        let started = std::time::Instant::now();
        let mut volumes: BTreeSet<_> = self.volumes_here().into_iter().collect();
        // What should be here and is not is told of.
        let own = self.directory.volumes().into_iter().filter(|it| it.record.owner == self.id);
        volumes.extend(own.map(|found| found.record.id));
        let count = volumes.len();
        let recover = volumes.into_iter().map(|volume| {
            let host = &self;
            async move {
                if host.directory.deleted(volume).is_some() {
                    host.remove(volume).await;
                } else if let Err(error) = host.open_volume(volume).await {
                    tracing::error!(%volume, %error, "a volume cannot be opened");
                } else {
                    host.await_part(volume).await;
                }
            }
        });
        futures::stream::iter(recover).buffer_unordered(RECOVERING_MAX).collect::<Vec<()>>().await;
        self.evict().await;
        let millis = started.elapsed().as_millis() as u64;
        if count > 0 {
            tracing::info!(volumes = count, millis, "volumes recovered");
        }
        metrics::gauge!("pannier_recovery_seconds").set(started.elapsed().as_secs_f64());
        done.send_replace(true);
    }

    /// Removes, once, what a creation has left that did not come to its end, and tells of volumes
    /// that the registry does not know.
    async fn sweep(self: Arc<Self>, found: Vec<VolumeId>) {
        tokio::select! {
            () = self.stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_AFTER) => {}
        }
        while self.directory.refresh().await.is_err() {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(SWEEP_AFTER) => {}
            }
        }
        for volume in found {
            let known =
                self.directory.volume(volume).is_some() || self.directory.deleted(volume).is_some();
            if known {
                continue;
            }
            if matches!(self.locals.load(volume), Ok(Some(state)) if state.role == Role::Creating) {
                // Nobody was ever told that it exists.
                self.remove(volume).await;
            } else {
                tracing::warn!(
                    %volume, dir = %self.context.volume_dir(volume).display(),
                    "a volume is here that the registry does not know; its files are kept"
                );
            }
        }
    }

    /// Waits, a short while, until a volume that this host owns is appended to again: so that a
    /// host that says it serves does.
    async fn await_part(&self, volume: VolumeId) {
        let owned = self
            .directory
            .volume(volume)
            .is_some_and(|found| found.record.owner == self.id && found.record.transit.is_none());
        if !owned {
            return;
        }
        let Some(mut view) = self.owners.watch(volume) else { return };
        let settled = view.wait_for(|view| view.part != Part::Waiting || view.obstacle.is_some());
        // After a reboot the registry has to confirm the ownership first, and it may be away.
        drop(tokio::time::timeout(super::volumes::SETTLE_MAX, settled).await);
    }

    /// Volumes that have a directory here.
    fn volumes_here(&self) -> Vec<VolumeId> {
        let Ok(entries) = std::fs::read_dir(self.context.dir.join("volumes")) else {
            return Vec::new();
        };
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
    }

    /// Opens a volume here: recovers what is here of it, and lets its ownership be driven.
    pub(super) async fn open_volume(&self, volume: VolumeId) -> Result<()> {
        self.locals.local(volume).await?;
        self.owners.open(volume)
    }

    /// Removes what is here of a deleted volume.
    pub(super) async fn remove(&self, volume: VolumeId) {
        let _one = self.removing.lock().await;
        self.owners.close(volume).await;
        self.mover.forget(volume);
        self.came_from.lock().remove(&volume);
        if let Some(local) = self.locals.take(volume)
            && let Err(error) = local.close().await
        {
            tracing::debug!(%volume, %error, "a deleted volume did not close well");
        }
        if !self.context.volume_dir(volume).exists() {
            return;
        }
        match Volume::delete(&self.context, volume, true).await {
            Ok(()) => {
                tracing::info!(%volume, "a deleted volume is removed here");
                self.evict().await;
            }
            Err(error) => {
                tracing::warn!(
                    %volume, %error,
                    "a deleted volume is not removed here; the next start tries again"
                );
            }
        }
    }

    /// Gives back what the host keeps beyond its bound.
    async fn evict(&self) {
        let context = self.context.clone();
        // It fails only where the daemon ends.
        drop(tokio::task::spawn_blocking(move || context.evict()).await);
    }

    /// Follows the directory's news: deletions, and from where volumes come.
    async fn hear(self: Arc<Self>, mut news: broadcast::Receiver<News>) {
        loop {
            let next = tokio::select! {
                () = self.stop.cancelled() => return,
                next = news.recv() => next,
            };
            match next {
                Ok(News::Deleted(volume)) => self.remove(volume).await,
                Ok(News::Volume(volume)) => self.note_transit(volume),
                Ok(News::Host(_)) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    for volume in self.volumes_here() {
                        if self.directory.deleted(volume).is_some() {
                            self.remove(volume).await;
                        }
                    }
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    fn note_transit(&self, volume: VolumeId) {
        let transit = self.directory.volume(volume).and_then(|found| found.record.transit);
        if let Some(transit) = transit.filter(|transit| transit.to == self.id) {
            self.came_from.lock().insert(volume, transit.from);
        }
    }
}
