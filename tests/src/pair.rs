//! Two sites with one host each, and a WAN between them.

use crate::host::Host;
use crate::nbd_client::Address;
use pannier_wan::{LinkConfig, Relay, Wan};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// A host alone, with its daemon running, in a directory that goes with it.
pub struct Single {
    /// The host.
    pub host: Host,
    /// Where it and what the test makes lie. Dropped last.
    pub base: TempDir,
}

impl Single {
    /// A cluster of one host.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start() -> Self {
        let base = scratch();
        let mut host = Host::unborn(base.path(), "a", "west");
        host.init(None);
        host.start();
        Self { host, base }
    }

    /// A path in the test's directory.
    ///
    /// # Panics
    /// When it is not UTF-8.
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        self.base.path().join(name).to_str().expect("a path in UTF-8").to_owned()
    }
}

/// A directory for one test; it stays there when `PANNIER_E2E_KEEP` is set.
///
/// # Panics
/// When there is no place for it.
#[must_use]
pub fn scratch() -> TempDir {
    let keep = std::env::var_os("PANNIER_E2E_KEEP").is_some();
    let mut builder = tempfile::Builder::new();
    builder.prefix("pannier-e2e-").disable_cleanup(keep).tempdir().expect("a directory")
}

/// Site `west` with host `a`, which made the cluster, and site `east` with host `b`.
pub struct Pair {
    /// In `west`; has the registry, unless that is in etcd.
    pub a: Host,
    /// In `east`.
    pub b: Host,
    /// The links between them.
    pub wan: Wan,
    _to_b: Relay,
    _to_a: Relay,
    /// Where they and what the test makes lie. Dropped last.
    pub base: TempDir,
}

impl Pair {
    /// Both daemons running, with a round trip of `rtt` and a rate in bits per second between them.
    ///
    /// # Panics
    /// When something does not start.
    #[must_use]
    pub fn start(rtt: Duration, rate_bits: Option<u64>) -> Self {
        Self::start_with(rtt, rate_bits, Host::init)
    }

    /// The same, with the cluster's registry in etcd.
    ///
    /// # Panics
    /// When something does not start.
    #[must_use]
    pub fn start_on(registry: &str, rtt: Duration, rate_bits: Option<u64>) -> Self {
        Self::start_with(rtt, rate_bits, |host, advertised| host.init_on(registry, advertised))
    }

    fn start_with(
        rtt: Duration,
        rate_bits: Option<u64>,
        init: impl Fn(&Host, Option<SocketAddr>),
    ) -> Self {
        let base = scratch();
        let config = LinkConfig { delay: rtt / 2, rate_bits, ..LinkConfig::default() };
        let wan = Wan::new(config).expect("the links start");
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();

        let mut a = Host::unborn(base.path(), "a", "west");
        let mut b = Host::unborn(base.path(), "b", "east");
        let to_b = wan.relay_to_second(any, b.address).expect("a relay to b");
        let to_a = wan.relay_to_first(any, a.address).expect("a relay to a");
        init(&a, Some(to_a.address()));
        a.start();
        b.join(&a.token(), Some(to_b.address()));
        b.start();
        Self { a, b, wan, _to_b: to_b, _to_a: to_a, base }
    }

    /// Where a host serves NBD.
    #[must_use]
    pub fn nbd(host: &Host) -> Address {
        Address::Unix(host.nbd_socket())
    }
}

/// Writes a file of pseudo-random bytes that do not compress, with a hole in its middle third.
///
/// # Panics
/// When the file cannot be written.
pub fn write_image(path: &Path, bytes: u64, seed: u64) {
    use rand::{RngCore as _, SeedableRng as _};
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::create(path).expect("the image is made");
    file.set_len(bytes).expect("the image has its size");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut chunk = vec![0; 1 << 20];
    for at in (0..bytes).step_by(chunk.len()) {
        if at >= bytes / 3 && at < bytes * 2 / 3 {
            continue;
        }
        let length = chunk.len().min((bytes - at) as usize);
        random.fill_bytes(&mut chunk[..length]);
        file.write_all_at(&chunk[..length], at).expect("the image is written");
    }
}
