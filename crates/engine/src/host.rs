//! A host: everything that runs on one directory. Recovers its volumes, drives their ownership,
//! attaches guests, answers peers, and carries out what its operators ask for.

use crate::context::LocalConfig;
use crate::directory::Directory;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Request, Response};
use crate::port::{
    BlockDevice, Devices, Objects, PeerService, Peers, Registry, StatusExtent, WriteRequest,
};
use crate::status::Status;
use async_trait::async_trait;
use bytes::Bytes;
use pannier_core::ids::{HashKey, HostId, SiteName};
use pannier_core::record::{VolumePath, VolumeRecord};
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

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
    /// Its size in bytes, a multiple of 512.
    pub size_bytes: u64,
    /// Whether several attachments may write at once.
    pub shared: bool,
}

/// A running host.
pub struct Host {
    setup: Setup,
    directory: Arc<Directory>,
    stop: CancellationToken,
    _watch: AbortOnDropHandle<()>,
}

fn unbuilt<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Internal, "the host does not do this"))
}

impl Host {
    /// Starts a host on its directory: recovers every volume there and begins to serve.
    ///
    /// # Errors
    /// `Unavailable`, `NoSpace` or `Corrupt` when the directory cannot be used at all. A single
    /// volume that cannot be recovered fails only itself.
    pub async fn start(setup: Setup) -> Result<Arc<Self>> {
        let boot = boot_id()?;
        let directory = Arc::new(Directory::open(&setup.dir, setup.registry.clone(), &boot));
        let stop = CancellationToken::new();
        let watch = tokio::spawn(directory.clone().watch(stop.clone()));
        let watch = AbortOnDropHandle::new(watch);
        Ok(Arc::new(Self { setup, directory, stop, _watch: watch }))
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

    /// Creates a volume, owned by this host.
    ///
    /// # Errors
    /// `Invalid` for a path that is taken or a size that cannot be, `NoSpace`, `Unavailable` while
    /// the registry is away.
    pub async fn create_volume(&self, new: NewVolume) -> Result<VolumeRecord> {
        let _ = new;
        unbuilt()
    }

    /// Deletes a volume and its data at all sites. Hosts that are away do so when they are back.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` while guests are connected (unless `force`), a move is under way,
    /// or the owner or the registry is away.
    pub async fn delete_volume(&self, path: &VolumePath, force: bool) -> Result<()> {
        let _ = (path, force);
        unbuilt()
    }

    /// Grows a volume.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for a size that is smaller or cannot be, `Unavailable` while the owner
    /// or the registry is away.
    pub async fn resize_volume(&self, path: &VolumePath, size_bytes: u64) -> Result<()> {
        let _ = (path, size_bytes);
        unbuilt()
    }

    /// Takes the write right from whoever holds it, so that the next writer gets it.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable` while the owner is away.
    pub async fn release(&self, path: &VolumePath) -> Result<()> {
        let _ = path;
        unbuilt()
    }

    /// Begins a move; it is registered when this returns.
    ///
    /// # Errors
    /// `NotFound` for the volume, site or host; `Invalid` when it is there already; `Unavailable`
    /// while another move is under way, or the owner, the target or the registry is away.
    pub async fn move_volume(
        &self,
        path: &VolumePath,
        to: &Destination,
        switch: SwitchAt,
    ) -> Result<()> {
        let _ = (path, to, switch);
        unbuilt()
    }

    /// Calls off a move that has not switched yet.
    ///
    /// # Errors
    /// `Invalid` when there is none or it has switched; `Unavailable` while the owner is away.
    pub async fn abort_move(&self, path: &VolumePath) -> Result<()> {
        let _ = path;
        unbuilt()
    }

    /// Makes this host the owner without the old owner's word. `fenced` names the hosts that are
    /// out, on the operator's word.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` when a host that may own it is not named, `Unavailable` while the
    /// registry is away.
    pub async fn take_over(&self, path: &VolumePath, fenced: &[String]) -> Result<()> {
        let _ = (path, fenced);
        unbuilt()
    }

    /// The cluster, with all volumes or one.
    ///
    /// # Errors
    /// `NotFound` for a volume that is not there.
    pub async fn status(&self, only: Option<&VolumePath>) -> Result<Status> {
        let _ = only;
        unbuilt()
    }

    /// Stops: finishes what is under way, seals, and writes last checkpoints.
    ///
    /// # Errors
    /// The first volume's error that could not be put away; the next start recovers it.
    pub async fn stop(&self) -> Result<()> {
        self.stop.cancel();
        Ok(())
    }
}

/// This boot of the machine.
fn boot_id() -> Result<String> {
    let file = "/proc/sys/kernel/random/boot_id";
    std::fs::read_to_string(file)
        .map(|text| text.trim().to_owned())
        .map_err(|error| Error::io(format!("cannot read {file}"), error))
}

#[async_trait]
impl PeerService for Host {
    async fn serve(
        &self,
        from: HostId,
        request: Request,
        payload: Bytes,
    ) -> Result<(Response, Bytes)> {
        let _ = (from, payload);
        match request {
            Request::Ping => Ok((Response::Pong, Bytes::new())),
            _ => unbuilt(),
        }
    }
}

/// A volume attached to an export.
pub struct Attached;

impl Devices for Host {
    type Device = Attached;

    async fn open(&self, _name: &str) -> Result<Attached> {
        unbuilt()
    }

    async fn names(&self) -> Result<Vec<String>> {
        Ok(self.directory.volumes().iter().map(|v| v.record.path.to_string()).collect())
    }
}

impl BlockDevice for Attached {
    fn size_bytes(&self) -> u64 {
        0
    }
    fn read_only(&self) -> bool {
        true
    }
    fn try_read(&self, _offset: u64, _into: &mut [u8]) -> Result<bool> {
        unbuilt()
    }
    fn try_write(&self, _writes: &[WriteRequest<'_>]) -> Result<usize> {
        unbuilt()
    }
    async fn read(&self, _offset: u64, _into: &mut [u8]) -> Result<()> {
        unbuilt()
    }
    async fn write(&self, _offset: u64, _data: Bytes, _fua: bool) -> Result<()> {
        unbuilt()
    }
    async fn flush(&self) -> Result<()> {
        unbuilt()
    }
    async fn discard(&self, _offset: u64, _length: u64, _fua: bool) -> Result<()> {
        unbuilt()
    }
    async fn write_zeroes(&self, _o: u64, _l: u64, _a: bool, _f: bool) -> Result<()> {
        unbuilt()
    }
    async fn block_status(&self, _o: u64, _l: u64, _max: usize) -> Result<Vec<StatusExtent>> {
        unbuilt()
    }
    async fn cache(&self, _offset: u64, _length: u64) -> Result<()> {
        unbuilt()
    }
}
