//! The registry of another host, over the peer transport.

use super::embedded::check;
use super::message::{Answer, Ask, Stamped, decode, encode};
use crate::limits::{CHANGES_WAIT, LISTING_ATTEMPTS_MAX, REGISTRY_TIMEOUT};
use crate::peer::Transport;
use crate::peer::frame::ServiceTag;
use async_trait::async_trait;
use bytes::Bytes;
use pannier_core::ids::HostId;
use pannier_engine::error::{Error, ErrorKind, Result};
use pannier_engine::port::{Changes, Class, Commit, Registry, Revision, Transaction, Versioned};
use std::time::Duration;

/// The registry that another host serves. The transport connects and reconnects by itself; while
/// the host cannot be reached every method is `Unavailable`.
#[derive(Debug, Clone)]
pub struct Remote {
    transport: Transport,
    host: HostId,
}

impl Remote {
    /// The registry served by `host`, whose address the transport learns apart.
    #[must_use]
    pub fn new(transport: Transport, host: HostId) -> Self {
        Self { transport, host }
    }

    async fn ask(&self, ask: &Ask, within: Duration) -> Result<(Answer, Bytes)> {
        let head = encode(ask)?;
        let exchange = self.transport.exchange(
            self.host,
            ServiceTag::Registry,
            Class::Control,
            head,
            Bytes::new(),
        );
        let (head, payload) =
            tokio::time::timeout(within, exchange).await.map_err(|elapsed| {
                Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "registry on host {}: no answer within {} s; is its link overloaded?",
                        self.host,
                        within.as_secs()
                    ),
                )
                .with_source(elapsed)
            })??;
        Ok((decode(&head)?, payload))
    }

    fn confused(&self) -> Error {
        Error::new(
            ErrorKind::Internal,
            format!("registry on host {}: the answer is not to the question", self.host),
        )
    }

    /// One listing by pages; `None` when the registry changed between two of them.
    async fn list_once(&self, prefix: &str) -> Result<Option<Listing>> {
        let mut entries: Vec<(String, Versioned)> = Vec::new();
        let mut first = None;
        loop {
            let after = entries.last().map(|(key, _value)| key.clone());
            let ask = Ask::List { prefix: prefix.to_owned(), after };
            let (answer, payload) = self.ask(&ask, REGISTRY_TIMEOUT).await?;
            let Answer::Page { revision, last } = answer else { return Err(self.confused()) };
            if *first.get_or_insert(revision) != revision {
                return Ok(None);
            }
            let page: Vec<(String, Stamped)> = decode(&payload)?;
            if page.is_empty() && !last {
                return Err(self.confused());
            }
            entries.extend(page.into_iter().map(|(key, value)| (key, value.into())));
            if last {
                return Ok(Some((entries, Revision(revision))));
            }
        }
    }
}

type Listing = (Vec<(String, Versioned)>, Revision);

#[async_trait]
impl Registry for Remote {
    async fn get(&self, key: &str) -> Result<Option<Versioned>> {
        let ask = Ask::Get { key: key.to_owned() };
        match self.ask(&ask, REGISTRY_TIMEOUT).await?.0 {
            Answer::Value(value) => Ok(value.map(Versioned::from)),
            _other => Err(self.confused()),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Listing> {
        for _attempt in 0..LISTING_ATTEMPTS_MAX {
            if let Some(listing) = self.list_once(prefix).await? {
                return Ok(listing);
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("registry on host {}: it changes faster than it is listed; retry", self.host),
        ))
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit> {
        check(&transaction)?;
        match self.ask(&Ask::from(transaction), REGISTRY_TIMEOUT).await?.0 {
            Answer::Committed(Some(revision)) => Ok(Commit::Done(Revision(revision))),
            Answer::Committed(None) => Ok(Commit::Conflict),
            _other => Err(self.confused()),
        }
    }

    async fn changes(&self, after: Revision) -> Result<Changes> {
        let ask = Ask::Changes { after: after.0 };
        let (answer, payload) = self.ask(&ask, CHANGES_WAIT + REGISTRY_TIMEOUT).await?;
        match answer {
            Answer::News { through } => {
                let entries: Vec<(String, Option<Stamped>)> = decode(&payload)?;
                Ok(Changes {
                    entries: entries
                        .into_iter()
                        .map(|(key, value)| (key, value.map(Versioned::from)))
                        .collect(),
                    through: Revision(through),
                    complete: false,
                })
            }
            Answer::TooFar => {
                let (entries, through) = self.list("").await?;
                let entries = entries.into_iter().map(|(key, value)| (key, Some(value))).collect();
                Ok(Changes { entries, through, complete: true })
            }
            _other => Err(self.confused()),
        }
    }
}
