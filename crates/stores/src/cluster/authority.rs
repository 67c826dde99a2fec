//! The cluster's own certificate authority: X.509 with ECDSA P-256, by rcgen.
//!
//! A host's certificate names it in its subject alternative name, `<host id>.host.pannier`. Nothing
//! else in a certificate is looked at: the authority draws the id and writes the name.

use super::files;
use super::identity::Identity;
use crate::registry::{EtcdUrl, Place};
use pannier_core::ids::{HashKey, HostId};
use pannier_engine::error::{Error, ErrorKind, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls_pki_types::CertificateSigningRequestDer;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How far a host's clock may be behind the authority's.
const CLOCK_SLACK: Duration = DAY;
/// Validity of the authority's certificate.
const CA_VALID: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
/// Validity of a host's certificate.
const HOST_VALID: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// What follows the host id in a certificate's name.
const NAME_SUFFIX: &str = ".host.pannier";

/// The name in a host's certificate.
pub(crate) fn host_name(host: HostId) -> String {
    format!("{host}{NAME_SUFFIX}")
}

/// The host whose name this is.
pub(crate) fn parse_host_name(name: &str) -> Option<HostId> {
    let id = name.strip_suffix(NAME_SUFFIX)?;
    let host: HostId = id.parse().ok()?;
    // Only the canonical spelling, so that one host has one name.
    (host.to_string() == id).then_some(host)
}

/// The authority: its certificate and the key to sign with.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl Authority {
    /// Draws a new authority; returns it with its private key in PEM.
    pub(crate) fn generate() -> Result<(Self, String)> {
        let key = KeyPair::generate().map_err(bug)?;
        let key_pem = key.serialize_pem();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Pannier cluster authority");
        set_validity(&mut params, now()?, CA_VALID);
        let certificate = params.self_signed(&key).map_err(bug)?;
        let issuer = Issuer::new(params, key);
        Ok((Self { issuer, certificate_pem: certificate.pem() }, key_pem))
    }

    /// Loads the authority from an identity directory.
    pub(crate) fn load(directory: &Path) -> Result<Self> {
        let key_pem =
            files::read_secret(directory, files::CA_KEY).map_err(|error| match error.kind() {
                ErrorKind::NotFound => Error::new(
                    ErrorKind::Invalid,
                    format!(
                        "{}: this host does not hold the cluster's authority; \
                         use the host that `pannier init` made",
                        directory.display()
                    ),
                ),
                _other => error,
            })?;
        let certificate_pem = files::read(directory, files::CA_CERTIFICATE)?;
        let damaged = |error: rcgen::Error| {
            Error::new(
                ErrorKind::Corrupt,
                format!("{}: the authority's key or certificate: {error}", directory.display()),
            )
            .with_source(error)
        };
        let key = KeyPair::from_pem(&key_pem).map_err(damaged)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(damaged)?;
        Ok(Self { issuer, certificate_pem })
    }

    /// The authority's certificate.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A certificate for `host` with the public key of a signing request, whose signature proves
    /// that the asker has the private key. Nothing else of the request is taken over.
    pub(crate) fn sign_request(&self, host: HostId, request: &[u8]) -> Result<String> {
        let request = CertificateSigningRequestDer::from(request);
        let request = CertificateSigningRequestParams::from_der(&request).map_err(|error| {
            Error::new(ErrorKind::Invalid, format!("join: certificate signing request: {error}"))
        })?;
        self.sign(host, &request.public_key, now()?, HOST_VALID)
    }

    /// A certificate for `host`, valid from `from` (less the slack for clocks).
    pub(crate) fn sign(
        &self,
        host: HostId,
        key: &impl PublicKeyData,
        from: SystemTime,
        valid: Duration,
    ) -> Result<String> {
        let mut params = CertificateParams::new([host_name(host)]).map_err(bug)?;
        params.distinguished_name.push(DnType::CommonName, format!("Pannier host {host}"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, from, valid);
        Ok(params.signed_by(key, &self.issuer).map_err(bug)?.pem())
    }
}

fn set_validity(params: &mut CertificateParams, from: SystemTime, valid: Duration) {
    let since_epoch = from.duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch.saturating_sub(CLOCK_SLACK);
    params.not_after = epoch + (since_epoch + valid);
}

/// The time, from a clock that has been set.
fn now() -> Result<SystemTime> {
    let now = SystemTime::now();
    // A certificate from a clock at its factory setting would be expired everywhere else.
    let sane = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    if now < sane {
        return Err(Error::new(
            ErrorKind::Invalid,
            "this host's clock is before 2023; set it, certificates depend on it",
        ));
    }
    Ok(now)
}

fn bug(error: rcgen::Error) -> Error {
    Error::new(ErrorKind::Internal, format!("certificate: {error}")).with_source(error)
}

/// A host id that is not 0, which nothing is.
pub(super) fn draw_host() -> HostId {
    HostId(rand::random_range(1..=u64::MAX))
}

/// Makes a cluster: its authority and the identity of the first host, which its peers reach at
/// `address` and which holds the registry, unless that is in `etcd`. The directory appears whole or
/// not at all.
///
/// # Errors
/// `Invalid` when `directory` has an identity already, `NoSpace`, `Unavailable`.
pub fn init(directory: &Path, address: &str, etcd: Option<EtcdUrl>) -> Result<Identity> {
    refuse_existing(directory)?;
    let (authority, authority_key) = Authority::generate()?;
    let host = draw_host();
    let key = KeyPair::generate().map_err(bug)?;
    let certificate = authority.sign(host, &key, now()?, HOST_VALID)?;
    let hash_key = HashKey(rand::random());
    let embedded = || Place::Host { host, address: address.to_owned() };
    let registry = etcd.map_or_else(embedded, Place::Etcd);

    let fresh = directory.with_extension(format!("new-{:016x}", rand::random::<u64>()));
    let outcome = (|| {
        files::make_directory(&fresh)?;
        files::write(&fresh, files::CA_KEY, authority_key.as_bytes())?;
        files::write(&fresh, files::CA_CERTIFICATE, authority.certificate_pem().as_bytes())?;
        files::write(&fresh, files::HOST_KEY, key.serialize_pem().as_bytes())?;
        files::write(&fresh, files::HOST_CERTIFICATE, certificate.as_bytes())?;
        files::write(&fresh, files::HASH_KEY, super::identity::hex(&hash_key.0).as_bytes())?;
        files::write(&fresh, files::REGISTRY, registry.to_string().as_bytes())?;
        publish(&fresh, directory)
    })();
    if outcome.is_err() {
        drop(std::fs::remove_dir_all(&fresh));
    }
    outcome?;
    Identity::load(directory)
}

/// Gives a complete identity directory its name.
pub(super) fn publish(fresh: &Path, directory: &Path) -> Result<()> {
    std::fs::rename(fresh, directory)
        .map_err(|error| Error::io(format!("name {}", directory.display()), error))?;
    files::sync_parent(directory)
}

/// Refuses a directory that has an identity.
pub(super) fn refuse_existing(directory: &Path) -> Result<()> {
    if directory.exists() {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "{}: this host is in a cluster already; use another directory, \
                 or remove this one to leave that cluster for good",
                directory.display()
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_canonical() {
        let host = HostId(0x0123_4567_89ab_cdef);
        assert_eq!(host_name(host), "0123456789abcdef.host.pannier");
        for (name, expect) in [
            ("0123456789abcdef.host.pannier", Some(host)),
            ("0123456789ABCDEF.host.pannier", None),
            ("+123456789abcdef.host.pannier", None),
            ("123456789abcdef.host.pannier", None),
            ("0123456789abcdef.host.pannier.evil", None),
            ("0123456789abcdef", None),
            ("", None),
        ] {
            assert_eq!(parse_host_name(name), expect, "{name}");
        }
    }
}
