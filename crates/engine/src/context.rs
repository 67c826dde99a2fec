//! What all volumes of a host share: its directory, identity, configuration, file pool, line cache,
//! the site's store, and the hooks to what lies above (fetching from peers, publishing).

use crate::cache::LineCache;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::pool::Pool;
use crate::port::{Class, Objects};
use crate::residency::Residency;
use crate::volume::Volume;
use crate::volume::log::PageRuns;
use crate::volume::seal::Sealer;
use crate::worker::Worker;
use async_trait::async_trait;
use bytes::Bytes;
use pannier_core::ids::{Epoch, HashKey, HostId, SegmentName, SiteName, VolumeId};
use pannier_core::record::PublishedCheckpoint;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use tokio::sync::Notify;

/// What of a host's storage is for the operator to choose.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// Bound in bytes on what is kept of stored segments and fetched data.
    pub cache_bytes: u64,
    /// Bound in bytes on segment files that wait in the pool.
    pub pool_bytes: u64,
    /// Pages of a new segment's file.
    pub segment_pages: u32,
    /// Bound in bytes per second on the background upload; 0 is no bound.
    pub upload_bytes_per_s: u64,
    /// Whether background work (upload, checkpoints by their triggers) runs. Tests turn it off to
    /// drive it by hand.
    pub background: bool,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self {
            cache_bytes: limits::CACHE_BYTES_DEFAULT,
            pool_bytes: limits::POOL_BYTES_DEFAULT,
            segment_pages: limits::SEGMENT_PAGES,
            upload_bytes_per_s: 0,
            background: true,
        }
    }
}

/// What a host's context is made from.
pub struct HostOptions {
    /// The host's directory (`--dir`); it exists.
    pub dir: PathBuf,
    /// This host.
    pub host: HostId,
    /// Its site.
    pub site: SiteName,
    /// The cluster's key for hashes.
    pub key: HashKey,
    /// The operator's choices.
    pub config: LocalConfig,
    /// The site's store.
    pub objects: Arc<dyn Objects>,
    /// How files are reached.
    pub disk: Disk,
}

/// Gets what is not resident. Implemented by the mover.
#[async_trait]
pub trait Fetch: Send + Sync + 'static {
    /// Makes the pages of a sealed segment resident and verified (through
    /// [`Volume::insert_pages`]): from the own site's store, else from a peer. Waits as long as a
    /// copy can come back.
    ///
    /// # Errors
    /// `Corrupt` when no good copy exists, `Closed` when the host shuts down.
    async fn pages(
        &self,
        volume: &Arc<Volume>,
        segment: SegmentName,
        pages: PageRuns,
        class: Class,
    ) -> Result<()>;

    /// The encoded `SegmentMeta` of a sealed segment.
    ///
    /// # Errors
    /// As [`Fetch::pages`].
    async fn meta(&self, volume: VolumeId, segment: SegmentName) -> Result<Bytes>;
}

/// A checkpoint that is durable in the site's store and asks to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch that publishes; the registry refuses any but the current one.
    pub epoch: Epoch,
    /// The checkpoint.
    pub checkpoint: PublishedCheckpoint,
    /// The volume's size in bytes at it.
    pub size_bytes: u64,
}

/// Publishes checkpoints: one registry transaction per volume and site, fenced by epoch.
#[async_trait]
pub trait Publish: Send + Sync + 'static {
    /// Publishes it; it is registered when this returns.
    ///
    /// # Errors
    /// `Fenced` when another epoch owns the volume, `Unavailable` while the registry is away.
    async fn publish(&self, publication: Publication) -> Result<()>;

    /// The newest checkpoint that this host's site has published of a volume, as far as is known
    /// here: an older one is as good for finding what may be deleted.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn published(&self, volume: VolumeId) -> Result<Option<PublishedCheckpoint>>;
}

/// What all volumes of a host share.
pub struct HostContext {
    /// The host's directory.
    pub dir: PathBuf,
    /// This host.
    pub host: HostId,
    /// Its site.
    pub site: SiteName,
    /// The cluster's key for hashes.
    pub key: HashKey,
    /// The operator's choices.
    pub config: LocalConfig,
    /// How files are reached.
    pub disk: Disk,
    /// Segment files that were written once before.
    pub pool: Pool,
    /// Fetched data.
    pub cache: LineCache,
    /// The site's store.
    pub objects: Arc<dyn Objects>,
    /// Bytes written and not yet synced, of all volumes.
    pub(crate) unsynced: AtomicU64,
    /// Told when `unsynced` falls.
    pub(crate) synced: Notify,
    /// Hashes and seals.
    pub(crate) sealer: Sealer,
    /// Encodes what is stored.
    pub(crate) encoder: Worker,
    /// Segment files of all volumes.
    pub(crate) residency: Arc<Residency>,
    /// Where blocking work is started from any thread.
    pub(crate) runtime: tokio::runtime::Handle,
    fetch: OnceLock<Arc<dyn Fetch>>,
    publish: OnceLock<Arc<dyn Publish>>,
}

impl HostContext {
    /// Opens the host's pool and cache. Runs inside a tokio runtime.
    ///
    /// # Errors
    /// `NoSpace`, or `Unavailable` with the path that could not be opened.
    pub fn open(options: HostOptions) -> Result<Arc<Self>> {
        let HostOptions { dir, host, site, key, config, objects, disk } = options;
        let pool = Pool::open(&disk, &dir.join("pool"), &config)?;
        let cache = LineCache::open(&disk, &dir.join("cache"), &config)?;
        // Pages may have come in while their volume was being deleted.
        let residency = Arc::new(Residency::default());
        let stored = Arc::clone(&residency);
        cache.set_may_leave(Box::new(move |segment| stored.is_stored(segment)));
        Ok(Arc::new(Self {
            dir,
            host,
            site,
            key,
            config,
            disk,
            pool,
            cache,
            objects,
            unsynced: AtomicU64::new(0),
            synced: Notify::new(),
            sealer: Sealer::start(key)?,
            encoder: Worker::start("pannier-store")?,
            residency,
            runtime: tokio::runtime::Handle::current(),
            fetch: OnceLock::new(),
            publish: OnceLock::new(),
        }))
    }

    /// Connects what fetches; once, before guests are served.
    pub fn set_fetch(&self, fetch: Arc<dyn Fetch>) {
        assert!(self.fetch.set(fetch).is_ok(), "the fetch hook is set once");
    }

    /// Connects what publishes; once, before guests are served.
    pub fn set_publish(&self, publish: Arc<dyn Publish>) {
        assert!(self.publish.set(publish).is_ok(), "the publish hook is set once");
    }

    /// The hook that fetches.
    ///
    /// # Errors
    /// `Unavailable` when the host has none.
    pub fn fetch(&self) -> Result<&Arc<dyn Fetch>> {
        self.fetch.get().ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, "this host has no peers to fetch from")
        })
    }

    /// The hook that publishes.
    pub(crate) fn publish(&self) -> Option<&Arc<dyn Publish>> {
        self.publish.get()
    }

    /// Gives cached lines and segment files back while the host keeps more than its bound; blocks.
    pub(crate) fn evict(&self) {
        self.cache.trim();
        let file_bytes = u64::from(self.config.segment_pages) * 4096;
        self.residency.evict(file_bytes, self.cache.bytes(), self.config.cache_bytes);
    }

    /// Directory of a volume's local files.
    #[must_use]
    pub fn volume_dir(&self, volume: VolumeId) -> PathBuf {
        volume_dir(&self.dir, volume)
    }

    /// Runs `write`, which needs little space; when the disk is full, runs it again with the space
    /// that is reserved for seals, checkpoints and GRANT.
    ///
    /// # Errors
    /// Whatever `write` fails with.
    pub fn with_reserve<T>(&self, write: impl Fn() -> Result<T>) -> Result<T> {
        match write() {
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                self.pool.release_reserve();
                let result = write();
                self.pool.take_reserve();
                result
            }
            other => other,
        }
    }

    /// Replaces a small file atomically and durably: temporary file, fsync, rename, fsync of the
    /// directory. Uses the reserve when the disk is full.
    ///
    /// # Errors
    /// `NoSpace`, or `Unavailable` with the path.
    pub fn replace_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.with_reserve(|| self.disk.replace(path, bytes))
    }
}

fn volume_dir(dir: &Path, volume: VolumeId) -> PathBuf {
    dir.join("volumes").join(volume.to_string())
}
