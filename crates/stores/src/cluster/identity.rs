//! Who this host is: its key and certificate, the authority it trusts, the cluster's hash key.

use super::files;
use super::parse_host_name;
use crate::registry::Place;
use pannier_core::ids::{HashKey, HostId};
use pannier_engine::error::{Error, ErrorKind, Result};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::path::{Path, PathBuf};
use x509_parser::extensions::GeneralName;

/// This host's identity, from its identity directory.
pub struct Identity {
    directory: PathBuf,
    host: HostId,
    key: PrivateKeyDer<'static>,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    hash_key: HashKey,
    registry: Place,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("directory", &self.directory)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Loads the identity in `directory`.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Invalid` when a secret can be read by others, `Corrupt` when
    /// a file is not what it should be.
    pub fn load(directory: &Path) -> Result<Self> {
        if !directory.exists() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "{}: this host has no identity; `pannier init` makes a cluster, \
                     `pannier join` enters one",
                    directory.display()
                ),
            ));
        }
        let damaged = |name: &str, cause: &dyn fmt::Display| {
            let path = directory.join(name);
            Error::new(ErrorKind::Corrupt, format!("{}: {cause}", path.display()))
        };
        let key_pem = files::read_secret(directory, files::HOST_KEY)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| damaged(files::HOST_KEY, &error))?;
        let certificate = |name: &str| {
            let pem = files::read(directory, name)?;
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(name, &error))
        };
        let (authority, certificate) =
            (certificate(files::CA_CERTIFICATE)?, certificate(files::HOST_CERTIFICATE)?);
        let host = certified_host(&certificate)
            .ok_or_else(|| damaged(files::HOST_CERTIFICATE, &"it does not name a host"))?;
        let hash_key = unhex(files::read_secret(directory, files::HASH_KEY)?.trim())
            .map(HashKey)
            .ok_or_else(|| damaged(files::HASH_KEY, &"it is not 64 hex digits"))?;
        let registry = files::read(directory, files::REGISTRY)?
            .parse()
            .map_err(|error: Error| damaged(files::REGISTRY, &error))?;
        let directory = directory.to_path_buf();
        Ok(Self { directory, host, key, certificate, authority, hash_key, registry })
    }

    /// This host's id, from its certificate.
    #[must_use]
    pub fn host(&self) -> HostId {
        self.host
    }

    /// The cluster's key for all hashes.
    #[must_use]
    pub fn hash_key(&self) -> HashKey {
        self.hash_key
    }

    /// What tells this cluster from others, for people and for the names of its things.
    #[must_use]
    pub fn cluster(&self) -> String {
        hex(&self.fingerprint()[..8])
    }

    /// Where the registry was when this host was made.
    #[must_use]
    pub fn registry(&self) -> &Place {
        &self.registry
    }

    /// Whether this host holds the authority's key, so that hosts can join by it.
    #[must_use]
    pub fn holds_authority(&self) -> bool {
        self.directory.join(files::CA_KEY).exists()
    }

    /// The identity directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(crate) fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.authority)
    }
}

/// What names a certificate: BLAKE3 over its DER.
pub(crate) fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    *blake3::hash(certificate).as_bytes()
}

/// The host that a certificate names: its only subject alternative name. Whether the certificate
/// can be trusted is TLS's to say.
pub(crate) fn certified_host(certificate: &CertificateDer<'_>) -> Option<HostId> {
    let (_rest, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    match names.value.general_names.as_slice() {
        [GeneralName::DNSName(name)] => parse_host_name(name),
        _other => None,
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}
