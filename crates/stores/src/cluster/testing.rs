//! Clusters without a network, for tests.

use super::authority::Authority;
use super::identity::hex;
use super::{Identity, files};
use crate::registry::Place;
use pannier_core::ids::{HashKey, HostId};
use std::time::{Duration, SystemTime};

/// An authority and identities that it signs.
pub(crate) struct TestCluster {
    directory: tempfile::TempDir,
    authority: Authority,
}

impl TestCluster {
    pub(crate) fn new() -> Self {
        let authority = Authority::generate().unwrap().0;
        Self { directory: tempfile::tempdir().unwrap(), authority }
    }

    /// A host with a good certificate.
    pub(crate) fn host(&self, id: u64) -> Identity {
        self.host_valid(id, SystemTime::now(), Duration::from_secs(3600))
    }

    /// A host whose certificate is valid from a day before `from` on.
    pub(crate) fn host_valid(&self, id: u64, from: SystemTime, valid: Duration) -> Identity {
        let home = self.directory.path().join(format!("{id}-{:x}", rand::random::<u64>()));
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = self.authority.sign(HostId(id), &key, from, valid).unwrap();
        let registry = Place::Host { host: HostId(1), address: "127.0.0.1:1".to_owned() };
        files::make_directory(&home).unwrap();
        for (name, text) in [
            (files::HOST_KEY, key.serialize_pem()),
            (files::HOST_CERTIFICATE, certificate),
            (files::CA_CERTIFICATE, self.authority.certificate_pem().to_owned()),
            (files::HASH_KEY, hex(&HashKey([7; 32]).0)),
            (files::REGISTRY, registry.to_string()),
        ] {
            files::write(&home, name, text.as_bytes()).unwrap();
        }
        Identity::load(&home).unwrap()
    }
}
