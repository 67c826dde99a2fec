//! The traits through which the engine reaches what it does not know: the registry, a site's object
//! store, its peers; and the trait through which exports reach a volume.

use crate::error::Result;
use crate::message::{Request, Response};
use async_trait::async_trait;
use bytes::Bytes;
use pannier_core::ids::HostId;
use std::collections::BTreeSet;
use std::future::Future;
use std::ops::Range;
use std::time::Duration;

/// Revision of a registry key, or of the whole registry. Grows with every commit; 0 means absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

/// A registry value with the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The commit that last wrote the key.
    pub revision: Revision,
    /// Its bytes: a version byte, then the record.
    pub value: Bytes,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyChange {
    /// The key, such as `volume/<uuid>`.
    pub key: String,
    /// Its new value, or `None` to delete it.
    pub value: Option<Bytes>,
}

/// A transaction: all changes happen if every expectation holds, else none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// Keys and the revisions that they must have (0: absent).
    pub expect: Vec<(String, Revision)>,
    /// What then changes.
    pub changes: Vec<KeyChange>,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// All changes are durable under this revision.
    Done(Revision),
    /// An expectation did not hold; nothing changed.
    Conflict,
}

/// Keys that changed since a revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// The newest value of every changed key, `None` where it was deleted.
    pub entries: Vec<(String, Option<Versioned>)>,
    /// The revision up to which these are all changes.
    pub through: Revision,
    /// Set when history back to the asked revision is gone: `entries` is then the whole registry.
    pub complete: bool,
}

/// The small strongly consistent store. Keys are `cluster`, `site/<name>`, `host/<id>`,
/// `volume/<uuid>`, `path/<volume path>`, `deleted/<uuid>`. Revision 0 is before everything: asked
/// for the changes after it, an implementation may answer with all that there is.
///
/// Every method fails with `Unavailable` while the registry is away; a failed commit may or may not
/// have happened, and the caller reads again.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// The value of one key.
    async fn get(&self, key: &str) -> Result<Option<Versioned>>;

    /// All keys that start with `prefix`, in order, with the registry's revision.
    async fn list(&self, prefix: &str) -> Result<(Vec<(String, Versioned)>, Revision)>;

    /// Applies a transaction.
    async fn commit(&self, transaction: Transaction) -> Result<Commit>;

    /// Waits until something changed after `after`, up to a bounded time, and returns it.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping the future: ask again with the same revision.
    async fn changes(&self, after: Revision) -> Result<Changes>;

    /// Says that a host is alive, for the next minute. To be repeated three times as often.
    ///
    /// This is for people to see and for nothing else: no right follows from it, and a host that is
    /// not alive here may still serve guests. A registry that does not keep it does nothing.
    async fn stay_alive(&self, host: HostId) -> Result<()> {
        let _ = host;
        Ok(())
    }

    /// The hosts that have said so within the last minute; `None` from a registry that does not
    /// keep it.
    async fn alive(&self) -> Result<Option<BTreeSet<HostId>>> {
        Ok(None)
    }
}

/// A site's object store. Objects are immutable and create-only; keys carry hashes.
#[async_trait]
pub trait Objects: Send + Sync + 'static {
    /// Stores an object; it is durable when this returns. An object that is there with the same
    /// length is left alone: keys carry the hash of their content.
    async fn put(&self, key: &str, bytes: Bytes) -> Result<()>;

    /// The whole object.
    async fn get(&self, key: &str) -> Result<Bytes>;

    /// A range of the object's bytes.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes>;

    /// The object's size in bytes, `None` when there is none.
    async fn size(&self, key: &str) -> Result<Option<u64>>;

    /// Deletes the object; one that is not there is no error.
    async fn delete(&self, key: &str) -> Result<()>;

    /// Keys under a prefix. For fsck and accounting only: the log is followed by name, never by
    /// listing.
    async fn list(&self, prefix: &str) -> Result<Vec<String>>;
}

/// What a request is for; a stream's priority follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Filling a copy in the background.
    Bulk,
    /// Read ahead of a sequential reader.
    RunAhead,
    /// A guest waits for it.
    Demand,
    /// Ownership, map stream, registry: small and urgent.
    Control,
}

/// The other hosts of the cluster.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Sends a request with a payload and waits for the answer. An error that the peer's service
    /// returned arrives with its kind and context; a broken link is `Unavailable`, and the request
    /// may or may not have been executed.
    ///
    /// # Cancel safety
    /// Dropping the future resets the stream; the peer may still execute the request.
    async fn call(
        &self,
        host: HostId,
        class: Class,
        request: Request,
        payload: Bytes,
    ) -> Result<(Response, Bytes)>;

    /// Tells where a host is reached. The connection is made at the first call.
    fn learn(&self, host: HostId, address: &str);

    /// The smoothed round trip time to a host, once there is a connection.
    fn rtt(&self, host: HostId) -> Option<Duration>;
}

/// What a host does with its peers' requests.
#[async_trait]
pub trait PeerService: Send + Sync + 'static {
    /// Executes a request of the authenticated host `from`.
    async fn serve(
        &self,
        from: HostId,
        request: Request,
        payload: Bytes,
    ) -> Result<(Response, Bytes)>;
}

/// One write of a batch.
#[derive(Debug, Clone, Copy)]
pub struct WriteRequest<'a> {
    /// First byte on the device, a multiple of 512.
    pub offset: u64,
    /// The bytes, a multiple of 512 long.
    pub data: &'a [u8],
}

/// What a run of a device's bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtentState {
    /// Written data.
    Data,
    /// Reads as zero, and space is kept for it as far as the guest can tell.
    Zero,
    /// Reads as zero and takes no space.
    Hole,
}

/// A run of a device's bytes in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StatusExtent {
    /// Length in bytes.
    pub length: u64,
    /// What the run is.
    pub state: ExtentState,
}

/// A volume as an export sees it: one connection's view of a virtual disk. Offsets and lengths are
/// multiples of 512 and within the size; the export has checked that. All errors carry a kind that
/// the export maps to its protocol's error.
///
/// The `try_` methods never wait: they are the fast path, called inline on the connection's task.
/// Ordering: a write that has returned is seen by every later read on any connection. A flush
/// covers every write that returned before it on any connection.
pub trait BlockDevice: Send + Sync + 'static {
    /// Current size in bytes.
    fn size_bytes(&self) -> u64;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Reads if that needs no waiting; `false` when it would have to wait (nothing is promised
    /// about `into` then).
    ///
    /// # Errors
    /// As [`BlockDevice::read`].
    fn try_read(&self, offset: u64, into: &mut [u8]) -> Result<bool>;

    /// Writes as many of the requests, in order, as need no waiting, and returns how many were
    /// written. What remains goes through [`BlockDevice::write`].
    ///
    /// # Errors
    /// As [`BlockDevice::write`]; then none of the requests from the failing one on was written.
    fn try_write(&self, writes: &[WriteRequest<'_>]) -> Result<usize>;

    /// Reads `into.len()` bytes.
    ///
    /// # Errors
    /// `Corrupt` when no good copy can be had, `Fenced`, `Closed`.
    fn read(&self, offset: u64, into: &mut [u8]) -> impl Future<Output = Result<()>> + Send;

    /// Writes; with `fua` it returns only when the bytes are durable.
    ///
    /// # Errors
    /// `NoSpace`, `Fenced`, `Closed`, `Invalid` when read-only.
    fn write(&self, offset: u64, data: Bytes, fua: bool)
    -> impl Future<Output = Result<()>> + Send;

    /// Makes every write that returned before the call durable.
    ///
    /// # Errors
    /// As [`BlockDevice::write`].
    fn flush(&self) -> impl Future<Output = Result<()>> + Send;

    /// Gives the range's space back; it reads as zero from then on. Partial blocks are zeroed.
    ///
    /// # Errors
    /// As [`BlockDevice::write`].
    fn discard(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Makes the range read as zero; `allocate` asks that it does not become a hole.
    ///
    /// # Errors
    /// As [`BlockDevice::write`].
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        allocate: bool,
        fua: bool,
    ) -> impl Future<Output = Result<()>> + Send;

    /// The states of the range, in order, at most `extents_max` runs (so it may end early).
    ///
    /// # Errors
    /// As [`BlockDevice::read`].
    fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> impl Future<Output = Result<Vec<StatusExtent>>> + Send;

    /// Asks that the range become resident here; may return before it is.
    ///
    /// # Errors
    /// As [`BlockDevice::read`].
    fn cache(&self, offset: u64, length: u64) -> impl Future<Output = Result<()>> + Send;
}

/// Where an export finds its devices.
pub trait Devices: Send + Sync + 'static {
    /// What it hands out. Dropping the last handle of a connection is its disconnect.
    type Device: BlockDevice;

    /// Opens a device by name, with or without the leading slash.
    ///
    /// # Errors
    /// `NotFound` for an unknown name, `Unavailable` when it cannot be opened now.
    fn open(&self, name: &str) -> impl Future<Output = Result<Self::Device>> + Send;

    /// Names of all devices, for listings.
    ///
    /// # Errors
    /// `Unavailable`.
    fn names(&self) -> impl Future<Output = Result<Vec<String>>> + Send;
}
