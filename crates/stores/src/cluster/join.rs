//! Joining: a host with a token gets a certificate.
//!
//! The joining host draws its key and keeps it, so that a repeated attempt is the same host. It
//! connects without a certificate, checks the authority's fingerprint, and sends the token's
//! secret and a signing request. The first host marks the token used, durably, and only then
//! answers; it answers the same request again.

use super::authority::{Authority, draw_host, publish, refuse_existing};
use super::files;
use super::identity::{Identity, hex};
use super::token::{Token, TokenBook, TokenId};
use crate::peer::ask_to_join;
use crate::registry::Place;
use pannier_core::ids::{HashKey, HostId};
use pannier_engine::error::{Error, ErrorKind, Result};
use rcgen::{CertificateParams, KeyPair};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a joining host sends.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct JoinRequest {
    token: TokenId,
    secret: [u8; 32],
    /// PKCS #10, DER.
    signing_request: Vec<u8>,
    /// The name that the host is to have, when it was given one.
    name: Option<String>,
}

/// What it gets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct JoinAnswer {
    host: HostId,
    certificate_pem: String,
    authority_pem: String,
    hash_key: HashKey,
    /// A [`Place`] as text.
    registry: String,
}

/// Lets hosts with a token into the cluster; on the host that holds the authority.
pub struct JoinService {
    authority: Authority,
    book: TokenBook,
    hash_key: HashKey,
    host: HostId,
    registry: Place,
    is_taken: Box<dyn Fn(&str) -> bool + Send + Sync>,
}

impl JoinService {
    /// The join service of this host; who joins is told that the registry is at `registry`.
    /// `is_taken` tells whether another host has a name.
    ///
    /// # Errors
    /// `Invalid` when this host does not hold the authority, `Corrupt` when its key is damaged.
    pub fn open(
        identity: &Identity,
        registry: Place,
        is_taken: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Result<Self> {
        Ok(Self {
            is_taken: Box::new(is_taken),
            authority: Authority::load(identity.directory())?,
            book: TokenBook::open(identity)?,
            hash_key: identity.hash_key(),
            host: identity.host(),
            registry,
        })
    }

    /// Answers one join request. Blocks on files.
    pub(crate) fn serve(&self, head: &[u8]) -> Result<Vec<u8>> {
        let request: JoinRequest = postcard::from_bytes(head).map_err(|error| {
            Error::new(
                ErrorKind::Invalid,
                format!("join request: {error}; use the same version of pannier on both hosts"),
            )
        })?;
        // A bad request must not use the token up.
        self.authority.sign_request(self.host, &request.signing_request)?;
        let asked = *blake3::hash(&request.signing_request).as_bytes();
        let draw = || match &request.name {
            Some(name) if (self.is_taken)(name) => Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "join refused: the cluster has a host `{name}`; choose another with --name, \
                     the token is still good"
                ),
            )),
            Some(_) | None => Ok(draw_host()),
        };
        let host = self.book.redeem(&request.token, &request.secret, &asked, draw)?;
        let answer = JoinAnswer {
            host,
            certificate_pem: self.authority.sign_request(host, &request.signing_request)?,
            authority_pem: self.authority.certificate_pem().to_owned(),
            hash_key: self.hash_key,
            registry: self.registry.to_string(),
        };
        tracing::info!(%host, token = hex(&request.token), "a host has joined");
        postcard::to_stdvec(&answer).map_err(|error| {
            Error::new(ErrorKind::Internal, format!("join answer: {error}")).with_source(error)
        })
    }
}

/// Joins the cluster that made `token`: gets this host's identity into `directory`. An attempt
/// that failed on the way can be repeated with the same token and directory. `name` is what the
/// host will be called, when that is known.
///
/// # Errors
/// `Invalid` when the token is wrong, used or expired, the name taken, or the directory has an
/// identity,
/// `Unavailable` when the first host cannot be reached or is not of the token's cluster.
pub async fn join(directory: &Path, token: &Token, name: Option<&str>) -> Result<Identity> {
    refuse_existing(directory)?;
    let joining = joining_directory(directory);
    let signing_request = pending_request(&joining)?;
    let name = name.map(str::to_owned);
    let request = JoinRequest { token: token.id, secret: token.secret, signing_request, name };
    let head = postcard::to_stdvec(&request).map_err(|error| {
        Error::new(ErrorKind::Internal, format!("join request: {error}")).with_source(error)
    })?;
    let head = ask_to_join(token.host, &token.address, token.authority, head).await?;
    let answer: JoinAnswer = postcard::from_bytes(&head).map_err(|error| {
        Error::new(
            ErrorKind::Invalid,
            format!("join answer: {error}; use the same version of pannier on both hosts"),
        )
    })?;
    // The token's way to the first host is known to work from here.
    let registry = answer.registry.parse::<Place>()?.reached(token.host, &token.address);
    files::write(&joining, files::CA_CERTIFICATE, answer.authority_pem.as_bytes())?;
    files::write(&joining, files::HOST_CERTIFICATE, answer.certificate_pem.as_bytes())?;
    files::write(&joining, files::HASH_KEY, hex(&answer.hash_key.0).as_bytes())?;
    files::write(&joining, files::REGISTRY, registry.to_string().as_bytes())?;
    let identity = Identity::load(&joining)?;
    if identity.host() != answer.host || identity.fingerprint() != token.authority {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("host {} answered the join with another's certificate", token.host),
        ));
    }
    std::fs::remove_file(joining.join(SIGNING_REQUEST))
        .map_err(|error| Error::io(format!("clean {}", joining.display()), error))?;
    publish(&joining, directory)?;
    Identity::load(directory)
}

/// The signing request of a join under way.
const SIGNING_REQUEST: &str = "host.csr";

fn joining_directory(directory: &Path) -> PathBuf {
    directory.with_extension("joining")
}

/// The signing request of this host's join, drawn at the first attempt.
fn pending_request(joining: &Path) -> Result<Vec<u8>> {
    match std::fs::read(joining.join(SIGNING_REQUEST)) {
        Ok(request) => return Ok(request),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(format!("read {}", joining.display()), error)),
    }
    let bug = |error: rcgen::Error| {
        Error::new(ErrorKind::Internal, format!("certificate: {error}")).with_source(error)
    };
    files::make_directory(joining)?;
    let key = KeyPair::generate().map_err(bug)?;
    let request = CertificateParams::default().serialize_request(&key).map_err(bug)?;
    files::write(joining, files::HOST_KEY, key.serialize_pem().as_bytes())?;
    // The request last: where it is, its key is.
    files::write(joining, SIGNING_REQUEST, request.der())?;
    Ok(request.der().to_vec())
}
