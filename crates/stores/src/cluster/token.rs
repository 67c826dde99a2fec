//! Join tokens: one text that lets one host into the cluster, once, for a while.
//!
//! A token is `pannier1.` and, in base64url, postcard of its fields and four bytes of BLAKE3 over
//! them, which tell a damaged copy from a refused one. The host that made it keeps, under the
//! token's id, only a hash of the secret, when it expires, and who used it.

use super::files;
use super::identity::{Identity, hex};
use crate::limits::{TOKEN_LIFETIME, TOKENS_MAX};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pannier_core::ids::HostId;
use pannier_engine::error::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const PREFIX: &str = "pannier1.";
const CHECK_BYTES: usize = 4;
/// Longest token text that is looked at.
const TEXT_BYTES_MAX: usize = 2048;

/// A token's id, by which its maker finds it.
pub(super) type TokenId = [u8; 8];

/// What a host needs to join.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub(super) id: TokenId,
    pub(super) secret: [u8; 32],
    /// Fingerprint of the authority's certificate.
    pub(super) authority: [u8; 32],
    /// The host that takes joins.
    pub(super) host: HostId,
    pub(super) address: String,
    /// Seconds since 1970 after which it is refused; the maker's record decides.
    pub(super) expires: u64,
}

impl Token {
    /// The address at which the joining host finds the cluster.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The same token with another way to the same host, such as through a relay.
    #[must_use]
    pub fn through(mut self, address: &str) -> Self {
        address.clone_into(&mut self.address);
        self
    }

    /// When it is refused from on.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.expires)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({} at {})", hex(&self.id), self.address)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = postcard::to_stdvec(self).map_err(|_unencodable| fmt::Error)?;
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..CHECK_BYTES]);
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |cause: &str| {
            Error::new(
                ErrorKind::Invalid,
                format!("join token: {cause}; copy it whole, as `pannier token` printed it"),
            )
        };
        let text = text.trim();
        let encoded = text.strip_prefix(PREFIX).ok_or_else(|| fail("it is not one"))?;
        if encoded.len() > TEXT_BYTES_MAX {
            return Err(fail("it is too long"));
        }
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_not_base64| fail("it is damaged"))?;
        let (body, check) =
            bytes.split_last_chunk::<CHECK_BYTES>().ok_or_else(|| fail("it is cut off"))?;
        if blake3::hash(body).as_bytes()[..CHECK_BYTES] != check[..] {
            return Err(fail("it is damaged"));
        }
        postcard::from_bytes(body).map_err(|_not_token| fail("it is of another version"))
    }
}

/// What the maker keeps of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    secret_hash: [u8; 32],
    expires: u64,
    /// Hash of the public key request that used it, and the id that it was given.
    used: Option<([u8; 32], HostId)>,
}

/// The tokens of the host that holds the authority, in its identity directory.
#[derive(Debug)]
pub struct TokenBook {
    directory: PathBuf,
    fingerprint: [u8; 32],
    host: HostId,
    /// One change at a time.
    writing: Mutex<()>,
}

impl TokenBook {
    /// The token book of this host.
    ///
    /// # Errors
    /// `Invalid` when this host does not hold the authority; `NoSpace`, `Unavailable`.
    pub fn open(identity: &Identity) -> Result<Self> {
        if !identity.holds_authority() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{}: this host does not hold the cluster's authority; \
                     make tokens on the host that `pannier init` made",
                    identity.directory().display()
                ),
            ));
        }
        let directory = identity.directory().join(files::TOKENS);
        files::make_directory(&directory)?;
        Ok(Self {
            directory,
            fingerprint: identity.fingerprint(),
            host: identity.host(),
            writing: Mutex::new(()),
        })
    }

    /// Makes a token that one host can join with, at `address`, within `lifetime`
    /// ([`TOKEN_LIFETIME`] when not given). The daemon need not run, and sees it when it does.
    ///
    /// # Errors
    /// `Invalid` when too many unused tokens are open, `NoSpace`, `Unavailable`.
    pub fn issue(&self, address: &str, lifetime: Option<Duration>) -> Result<Token> {
        let _one = self.writing.lock();
        self.sweep()?;
        let expires = seconds_now() + lifetime.unwrap_or(TOKEN_LIFETIME).as_secs();
        let token = Token {
            id: rand::random(),
            secret: rand::random(),
            authority: self.fingerprint,
            host: self.host,
            address: address.to_owned(),
            expires,
        };
        let secret_hash = *blake3::hash(&token.secret).as_bytes();
        self.write(&token.id, &Record { secret_hash, expires, used: None })?;
        Ok(token)
    }

    /// Uses a token for the request with this hash; `draw` names the new host, or refuses it, and
    /// the token stays good. The use is durable when this returns. A repeated request gets the same
    /// id again: an answer may be lost.
    pub(super) fn redeem(
        &self,
        id: &TokenId,
        secret: &[u8; 32],
        request: &[u8; 32],
        draw: impl FnOnce() -> Result<HostId>,
    ) -> Result<HostId> {
        let refuse = |cause: &str| {
            Error::new(
                ErrorKind::Invalid,
                format!("join refused: {cause}; ask for a new one with `pannier token`"),
            )
        };
        let _one = self.writing.lock();
        let mut record = match self.read(id) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(refuse("this cluster does not know the token"));
            }
            outcome => outcome?,
        };
        // `blake3::Hash` compares in constant time.
        if blake3::hash(secret) != blake3::Hash::from_bytes(record.secret_hash) {
            return Err(refuse("this cluster does not know the token"));
        }
        if seconds_now() >= record.expires {
            return Err(refuse("the token has expired"));
        }
        match record.used {
            Some((by, host)) if by == *request => Ok(host),
            Some(_other) => Err(refuse("the token was used already")),
            None => {
                let host = draw()?;
                record.used = Some((*request, host));
                self.write(id, &record)?;
                Ok(host)
            }
        }
    }

    fn read(&self, id: &TokenId) -> Result<Record> {
        let path = self.directory.join(hex(id));
        let bytes = std::fs::read(&path)
            .map_err(|error| Error::io(format!("read {}", path.display()), error))?;
        decode_record(&path, &bytes)
    }

    fn write(&self, id: &TokenId, record: &Record) -> Result<()> {
        let bytes = postcard::to_stdvec(record).map_err(|error| {
            Error::new(ErrorKind::Internal, format!("join token: {error}")).with_source(error)
        })?;
        files::write(&self.directory, &hex(id), &bytes)
    }

    /// Removes records of expired tokens; refuses to go on when too many others are there.
    fn sweep(&self) -> Result<()> {
        let fail = |error| Error::io(format!("read {}", self.directory.display()), error);
        let mut kept = 0;
        for entry in std::fs::read_dir(&self.directory).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let bytes = std::fs::read(&path).map_err(fail)?;
            let expired = decode_record(&path, &bytes)
                .is_ok_and(|record| record.expires.saturating_add(60) < seconds_now());
            if expired {
                std::fs::remove_file(&path).map_err(fail)?;
            } else {
                kept += 1;
            }
        }
        if kept >= TOKENS_MAX {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{kept} join tokens are open, {TOKENS_MAX} may be; wait until some expire, \
                     or remove files in {}",
                    self.directory.display()
                ),
            ));
        }
        Ok(())
    }
}

fn decode_record(path: &Path, bytes: &[u8]) -> Result<Record> {
    postcard::from_bytes(bytes).map_err(|error| {
        Error::new(
            ErrorKind::Corrupt,
            format!("{}: {error}; remove it and make a new token", path.display()),
        )
        .with_source(error)
    })
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
