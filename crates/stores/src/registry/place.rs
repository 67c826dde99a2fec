//! Where a cluster's registry is: the one place that knows the sorts of registries.

use super::{Embedded, Etcd, EtcdUrl, Remote, Service};
use crate::cluster::Identity;
use crate::peer::Transport;
use pannier_core::ids::HostId;
use pannier_engine::error::{Error, ErrorKind, Result};
use pannier_engine::port::{Peers as _, Registry};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

/// Where a cluster's registry is. As text: `<host id> <address>`, or the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Embedded in a host, which serves it to the others.
    Host {
        /// That host.
        host: HostId,
        /// Where its peers reach it.
        address: String,
    },
    /// In etcd.
    Etcd(EtcdUrl),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { host, address } => write!(f, "{host} {address}"),
            Self::Etcd(url) => url.fmt(f),
        }
    }
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.contains("://") {
            return text.parse().map(Self::Etcd);
        }
        let embedded = || {
            let (host, address) = text.split_once(' ')?;
            Some(Self::Host { host: host.parse().ok()?, address: address.to_owned() })
        };
        embedded().ok_or_else(|| {
            let context = "registry: it is neither `<host id> <address>` nor a URL";
            Error::new(ErrorKind::Invalid, context)
        })
    }
}

impl Place {
    /// The same place, with the address at which `host` is reached from here.
    #[must_use]
    pub fn reached(self, at: HostId, address: &str) -> Self {
        match self {
            Self::Host { host, .. } if host == at => {
                Self::Host { host, address: address.to_owned() }
            }
            other => other,
        }
    }

    /// An address at which it is reached by the network; `None` on the host that has it.
    #[must_use]
    pub fn far_address(&self, here: HostId) -> Option<&str> {
        match self {
            Self::Host { host, address } => (*host != here).then_some(address),
            Self::Etcd(url) => Some(url.address()),
        }
    }
}

/// Opens the registry at `place` for the host with this identity: its own in `file`, which it then
/// serves to its peers, that of another host, or etcd.
///
/// # Errors
/// As [`Embedded::open`] and [`Etcd::open`]; one that is elsewhere is not asked for anything yet.
pub fn open(
    place: &Place,
    identity: &Identity,
    transport: &Transport,
    file: &Path,
) -> Result<Arc<dyn Registry>> {
    match place {
        Place::Host { host, .. } if *host == identity.host() => {
            let registry: Arc<dyn Registry> = Arc::new(Embedded::open(file)?);
            transport.serve_registry(Service::new(registry.clone()));
            Ok(registry)
        }
        Place::Host { host, address } => {
            transport.learn(*host, address);
            Ok(Arc::new(Remote::new(transport.clone(), *host)))
        }
        Place::Etcd(url) => Ok(Arc::new(Etcd::open(url, &identity.cluster())?)),
    }
}
