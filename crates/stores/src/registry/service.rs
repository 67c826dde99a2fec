//! The registry's host side: serves a [`Registry`] to peers.

use super::message::{Answer, Ask, Stamped, decode, encode};
use crate::limits::LISTING_BYTES_MAX;
use bytes::Bytes;
use pannier_engine::error::Result;
use pannier_engine::port::{Commit, KeyChange, Registry, Revision, Transaction};
use std::sync::Arc;

/// Serves a registry to the other hosts of the cluster.
#[derive(Clone)]
pub struct Service {
    registry: Arc<dyn Registry>,
}

impl Service {
    /// A service of `registry`, to be given to the peer transport.
    #[must_use]
    pub fn new(registry: Arc<dyn Registry>) -> Self {
        Self { registry }
    }

    /// Answers one question.
    pub(crate) async fn serve(&self, head: &[u8]) -> Result<(Vec<u8>, Bytes)> {
        let (answer, payload) = match decode(head)? {
            Ask::Get { key } => {
                let value = self.registry.get(&key).await?;
                (Answer::Value(value.map(Stamped::from)), Vec::new())
            }
            Ask::List { prefix, after } => self.list(&prefix, after.as_deref()).await?,
            Ask::Commit { expect, changes } => {
                let transaction = Transaction {
                    expect: expect.into_iter().map(|(key, at)| (key, Revision(at))).collect(),
                    changes: changes
                        .into_iter()
                        .map(|(key, value)| KeyChange { key, value: value.map(Bytes::from) })
                        .collect(),
                };
                let revision = match self.registry.commit(transaction).await? {
                    Commit::Done(revision) => Some(revision.0),
                    Commit::Conflict => None,
                };
                (Answer::Committed(revision), Vec::new())
            }
            Ask::Changes { after } => self.changes(Revision(after)).await?,
        };
        Ok((encode(&answer)?, payload.into()))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<(Answer, Vec<u8>)> {
        let (entries, revision) = self.registry.list(prefix).await?;
        let mut page: Vec<(String, Stamped)> = Vec::new();
        let mut bytes = 0;
        let mut last = true;
        for (key, value) in entries {
            if after.is_some_and(|after| key.as_str() <= after) {
                continue;
            }
            bytes += entry_bytes(&key, value.value.len());
            if bytes > LISTING_BYTES_MAX && !page.is_empty() {
                last = false;
                break;
            }
            page.push((key, value.into()));
        }
        Ok((Answer::Page { revision: revision.0, last }, encode(&page)?))
    }

    async fn changes(&self, after: Revision) -> Result<(Answer, Vec<u8>)> {
        let changes = self.registry.changes(after).await?;
        let bytes: usize = changes
            .entries
            .iter()
            .map(|(key, value)| entry_bytes(key, value.as_ref().map_or(0, |it| it.value.len())))
            .sum();
        if changes.complete || bytes > LISTING_BYTES_MAX {
            return Ok((Answer::TooFar, Vec::new()));
        }
        let entries: Vec<(String, Option<Stamped>)> = changes
            .entries
            .into_iter()
            .map(|(key, value)| (key, value.map(Stamped::from)))
            .collect();
        Ok((Answer::News { through: changes.through.0 }, encode(&entries)?))
    }
}

/// What an entry takes on the wire at most, beside its key and value: lengths and revision.
fn entry_bytes(key: &str, value_bytes: usize) -> usize {
    key.len() + value_bytes + 32
}
