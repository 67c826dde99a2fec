//! A host: everything that runs on one directory. Recovers its volumes, drives their ownership,
//! attaches guests, answers peers, and carries out what its operators ask for.

use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::port::{Objects, Peers, Registry};
use pannier_core::ids::{HashKey, HostId, SiteName};
use pannier_core::record::VolumePath;
use std::path::PathBuf;
use std::sync::Arc;

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
    /// The registry.
    pub registry: Arc<dyn Registry>,
    /// The site's object store.
    pub objects: Arc<dyn Objects>,
    /// The other hosts.
    pub peers: Arc<dyn Peers>,
}

/// Where a volume is to be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The site.
    pub site: SiteName,
    /// A host of that site, by name; without it, the first that answers.
    pub host: Option<String>,
}

/// When the right to append changes hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwitchAt {
    /// As soon as the target has caught up.
    Once,
    /// At the first write at the target: what a hypervisor's migration hook asks for.
    FirstWrite,
}

/// What a new volume is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// Its path.
    pub path: VolumePath,
    /// Its size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// Whether several attachments may write at once.
    pub shared: bool,
}

/// A running host.
pub struct Host {
    setup: Setup,
    directory: Arc<Directory>,
}

impl Host {
    /// Starts a host on its directory: recovers every volume there and begins to serve.
    ///
    /// # Errors
    /// `Unavailable`, `NoSpace` or `Corrupt` when the directory cannot be used at all. A single
    /// volume that cannot be recovered fails only itself.
    pub async fn start(setup: Setup) -> Result<Arc<Self>> {
        let boot = boot_id()?;
        let directory = Directory::open(&setup.dir, setup.registry.clone(), &boot);
        Ok(Arc::new(Self { setup, directory: Arc::new(directory) }))
    }

    /// This host's identity.
    #[must_use]
    pub fn id(&self) -> HostId {
        self.setup.id
    }

    /// The cluster's records.
    #[must_use]
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }
}

/// This boot of the machine.
fn boot_id() -> Result<String> {
    let file = "/proc/sys/kernel/random/boot_id";
    std::fs::read_to_string(file)
        .map(|text| text.trim().to_owned())
        .map_err(|error| Error::io(format!("cannot read {file}"), error))
}
