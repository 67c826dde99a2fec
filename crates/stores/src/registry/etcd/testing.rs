//! A real etcd, for tests.

#[expect(unreachable_pub, reason = "in the crate that the file is of, it is")]
#[path = "../../../../../tests/src/etcd.rs"]
mod process;

pub(crate) use process::EtcdCluster;

use super::api::Client;
use super::{Etcd, Members, Repeat, Revision, Shared};
use async_trait::async_trait;
use pannier_engine::error::Result;
use pannier_engine::port::{Changes, Commit, Registry, Transaction, Versioned};
use std::time::Duration;

/// The registry of a cluster in this etcd.
pub(crate) fn open(etcd: &EtcdCluster, cluster: &str, wait: Duration) -> Etcd {
    Etcd::open_with(&etcd.url().parse().unwrap(), cluster, wait).unwrap()
}

/// Forgets etcd's history before a revision.
pub(crate) async fn compact(etcd: &Etcd, before: Revision) {
    let Shared { members, .. } = &*etcd.shared;
    let members: &Members = members;
    let at = i64::try_from(before.0).unwrap();
    members
        .call(Repeat::Freely, |client: Client| async move { client.compact(at).await })
        .await
        .unwrap();
}

/// A registry whose revisions are counted from where it was when this was made, so that what is
/// expected of one is expected of all.
pub(crate) struct Rebased {
    pub(crate) registry: Etcd,
    pub(crate) base: u64,
}

impl Rebased {
    pub(crate) async fn new(registry: Etcd) -> Self {
        let base = registry.list("").await.unwrap().1.0;
        Self { registry, base }
    }

    fn from(&self, revision: Revision) -> Revision {
        Revision(revision.0 - self.base)
    }

    fn to(&self, revision: Revision) -> Revision {
        if revision == Revision(0) { revision } else { Revision(revision.0 + self.base) }
    }

    fn value(&self, value: Versioned) -> Versioned {
        Versioned { revision: self.from(value.revision), ..value }
    }
}

#[async_trait]
impl Registry for Rebased {
    async fn get(&self, key: &str) -> Result<Option<Versioned>> {
        Ok(self.registry.get(key).await?.map(|value| self.value(value)))
    }

    async fn list(&self, prefix: &str) -> Result<(Vec<(String, Versioned)>, Revision)> {
        let (entries, at) = self.registry.list(prefix).await?;
        let entries = entries.into_iter().map(|(key, value)| (key, self.value(value))).collect();
        Ok((entries, self.from(at)))
    }

    async fn commit(&self, mut transaction: Transaction) -> Result<Commit> {
        for (_key, at) in &mut transaction.expect {
            *at = self.to(*at);
        }
        Ok(match self.registry.commit(transaction).await? {
            Commit::Done(at) => Commit::Done(self.from(at)),
            Commit::Conflict => Commit::Conflict,
        })
    }

    async fn changes(&self, after: Revision) -> Result<Changes> {
        let mut changes = self.registry.changes(self.to(after)).await?;
        changes.through = self.from(changes.through);
        for (_key, value) in &mut changes.entries {
            *value = value.take().map(|value| self.value(value));
        }
        Ok(changes)
    }
}
