//! A host: everything that runs on one directory. Recovers its volumes, drives their ownership,
//! attaches guests, answers peers, and carries out what its operators ask for.

mod hands;
mod moves;
mod peers;
mod report;
mod start;
mod volumes;

pub use moves::{Destination, SwitchAt};
pub use volumes::NewVolume;

use crate::attachment::Connection;
use crate::context::{HostContext, LocalConfig};
use crate::directory::Directory;
use crate::error::{Error, ErrorKind, Result};
use crate::mover::Mover;
use crate::ownership::Owners;
use crate::port::{Devices, Objects, Peers, Registry};
use futures::StreamExt as _;
use hands::Locals;
use pannier_core::ids::{HashKey, HostId, SiteName, VolumeId};
use pannier_core::record::VolumePath;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Volumes that are put away at once when the host stops: each seals and syncs.
const CLOSING_MAX: usize = 16;

/// What a host is started with.
pub struct Setup {
    /// The host's directory.
    pub dir: PathBuf,
    /// Its identity.
    pub id: HostId,
    /// Its site.
    pub site: SiteName,
    /// The cluster's key for hashes.
    pub key: HashKey,
    /// What of its storage the operator has chosen.
    pub config: LocalConfig,
    /// The registry.
    pub registry: Arc<dyn Registry>,
    /// The site's object store.
    pub objects: Arc<dyn Objects>,
    /// The other hosts.
    pub peers: Arc<dyn Peers>,
}

/// A running host.
pub struct Host {
    id: HostId,
    context: Arc<HostContext>,
    directory: Arc<Directory>,
    peers: Arc<dyn Peers>,
    mover: Arc<Mover>,
    owners: Arc<Owners>,
    locals: Arc<Locals>,
    /// From where volumes came here, as far as this daemon has seen it.
    came_from: Mutex<HashMap<VolumeId, HostId>>,
    recovered: watch::Receiver<bool>,
    /// Held while a deleted volume is removed here.
    removing: tokio::sync::Mutex<()>,
    stop: CancellationToken,
    tasks: Mutex<Vec<AbortOnDropHandle<()>>>,
}

impl Host {
    /// This host's identity.
    #[must_use]
    pub fn id(&self) -> HostId {
        self.id
    }

    /// The cluster's records.
    #[must_use]
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Stops: finishes what is under way, seals, and writes last checkpoints.
    ///
    /// # Errors
    /// The first volume's error that could not be put away; the next start recovers it.
    pub async fn stop(&self) -> Result<()> {
        self.stop.cancel();
        self.owners.close_all().await;
        self.mover.close();
        let closing = self.locals.all().into_iter().map(|local| async move { local.close().await });
        let ends: Vec<_> =
            futures::stream::iter(closing).buffer_unordered(CLOSING_MAX).collect().await;
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            // A task that was aborted or has panicked has ended as well.
            drop(tokio::time::timeout(std::time::Duration::from_secs(2), task).await);
        }
        ends.into_iter().collect()
    }
}

impl Devices for Host {
    type Device = Connection;

    /// Opens a volume by its path. A volume that is not recovered yet is recovered now, before
    /// those for which nobody waits.
    async fn open(&self, name: &str) -> Result<Connection> {
        let path = VolumePath::parse(name).map_err(|error| {
            Error::new(ErrorKind::NotFound, error.to_string()).with_source(error)
        })?;
        let found = self.directory.find(&path).await?.record;
        self.open_volume(found.id).await?;
        Ok(self.mover.connect(found.id, found.size_bytes))
    }

    async fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<_> =
            self.directory.volumes().iter().map(|found| found.record.path.to_string()).collect();
        names.sort();
        Ok(names)
    }
}
