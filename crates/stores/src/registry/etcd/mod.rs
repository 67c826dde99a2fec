//! A registry in etcd, which needs no host of ours that serves it.
//!
//! Keys are `<prefix>/records/<key>` for what the port knows, and `<prefix>/alive/<host id>`, each
//! under that host's lease. A [`Revision`] is etcd's: of the whole store, so that other users of
//! the same etcd leave gaps in ours.

mod api;
mod members;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
mod url;
mod watch;

pub use url::EtcdUrl;

use super::embedded::check;
use crate::limits::{
    CHANGES_WAIT, ETCD_ALIVE_TTL, ETCD_PAGE_KEYS, ETCD_PAUSE, LISTING_ATTEMPTS_MAX,
};
use api::{
    Change, Client, Compare, DeleteRequest, Operation, PutRequest, RangeRequest, RangeResponse,
    TxnRequest,
};
use async_trait::async_trait;
use bytes::Bytes;
use members::{Members, Repeat};
use pannier_core::ids::HostId;
use pannier_engine::error::Result;
use pannier_engine::port::{
    Changes, Commit, KeyChange, Registry, Revision, Transaction, Versioned,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Code;
use watch::{News, Watching, key_below, signed, unsigned};

/// A registry in etcd.
#[derive(Clone)]
pub struct Etcd {
    shared: Arc<Shared>,
}

struct Shared {
    members: Members,
    /// What the keys of records begin with.
    records: String,
    /// What the keys of hosts that are alive begin with.
    alive: String,
    watching: Mutex<Option<Watching>>,
    lease: Mutex<Option<i64>>,
    wait: Duration,
}

type Listing = (Vec<(String, Versioned)>, Revision);

impl Etcd {
    /// The registry of the cluster with this id. Nothing is asked of etcd yet.
    ///
    /// # Errors
    /// `Invalid` or `NotFound` when a file that the URL names is not there, or not what it should
    /// be.
    pub fn open(url: &EtcdUrl, cluster: &str) -> Result<Self> {
        Self::open_with(url, cluster, CHANGES_WAIT)
    }

    pub(super) fn open_with(url: &EtcdUrl, cluster: &str, wait: Duration) -> Result<Self> {
        let prefix = url.prefix(cluster);
        Ok(Self {
            shared: Arc::new(Shared {
                members: Members::new(url)?,
                records: format!("{prefix}/records/"),
                alive: format!("{prefix}/alive/"),
                watching: Mutex::new(None),
                lease: Mutex::new(None),
                wait,
            }),
        })
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.shared.records)
    }

    /// `None` when the revision that is asked for was compacted away.
    async fn range(&self, request: RangeRequest) -> Result<Option<RangeResponse>> {
        let ask = |client: Client| {
            let request = request.clone();
            async move {
                match client.range(request).await {
                    Ok(answer) => Ok(Some(answer)),
                    Err(status) if status.code() == Code::OutOfRange => Ok(None),
                    Err(status) => Err(status),
                }
            }
        };
        self.shared.members.call(Repeat::Freely, ask).await
    }

    /// One listing, all pages at the revision of the first; `None` when that was compacted away
    /// meanwhile.
    async fn list_once(&self, prefix: &str) -> Result<Option<Listing>> {
        let mut request = RangeRequest {
            key: self.key(prefix).into(),
            range_end: end_of(&self.key(prefix)),
            limit: ETCD_PAGE_KEYS,
            ..RangeRequest::default()
        };
        let mut entries = Vec::new();
        loop {
            let Some(page) = self.range(request.clone()).await? else { return Ok(None) };
            if request.revision == 0 {
                request.revision = page.header.map_or(0, |header| header.revision);
            }
            if let Some(last) = page.kvs.last() {
                request.key = [&last.key, &b"\0"[..]].concat();
            }
            for kv in page.kvs {
                let Some(key) = key_below(&self.shared.records, &kv.key) else { continue };
                let revision = unsigned(kv.mod_revision);
                entries.push((key, Versioned { revision, value: kv.value }));
            }
            if !page.more {
                return Ok(Some((entries, unsigned(request.revision))));
            }
        }
    }

    async fn everything(&self) -> Result<Changes> {
        let (entries, through) = self.list("").await?;
        let entries = entries.into_iter().map(|(key, value)| (key, Some(value))).collect();
        Ok(Changes { entries, through, complete: true })
    }

    /// The next changes, from the open stream or a new one.
    async fn watched(&self, after: Revision) -> Result<Changes> {
        let Shared { members, records, watching, wait, .. } = &*self.shared;
        let until = Instant::now() + *wait;
        let mut watching = watching.lock().await;
        loop {
            let open = watching.take_if(|open| !open.follows(after));
            drop(open);
            if watching.is_none() {
                *watching = Watching::open(members, records, after).await?;
            }
            let news = match &mut *watching {
                Some(open) => timeout_at(until, open.next(records)).await,
                None => Ok(News::Gone),
            };
            match news {
                Err(_elapsed) => return Ok(Changes { through: after, ..Changes::default() }),
                Ok(News::Changes(changes)) => return Ok(changes),
                Ok(News::Gone) => {
                    *watching = None;
                    return self.everything().await;
                }
                // Its member may have gone: another goes on from the same revision.
                Ok(News::Broken(cause)) => {
                    *watching = None;
                    if Instant::now() >= until {
                        return Err(members.error(&cause));
                    }
                    sleep(ETCD_PAUSE).await;
                }
            }
        }
    }
}

#[async_trait]
impl Registry for Etcd {
    async fn get(&self, key: &str) -> Result<Option<Versioned>> {
        let request = RangeRequest { key: self.key(key).into(), ..RangeRequest::default() };
        let found = self.range(request).await?.and_then(|mut answer| answer.kvs.pop());
        Ok(found.map(|kv| Versioned { revision: unsigned(kv.mod_revision), value: kv.value }))
    }

    async fn list(&self, prefix: &str) -> Result<Listing> {
        for _attempt in 0..LISTING_ATTEMPTS_MAX {
            if let Some(listing) = self.list_once(prefix).await? {
                return Ok(listing);
            }
        }
        Err(self.shared.members.error("it is compacted faster than it is listed; retry"))
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit> {
        check(&transaction)?;
        let compare =
            |(key, at): &(String, Revision)| Compare::changed_at(self.key(key), signed(*at));
        let operation = |change: &KeyChange| {
            let key = self.key(&change.key).into();
            Operation {
                change: Some(match change.value.clone() {
                    Some(value) => Change::Put(PutRequest { key, value, lease: 0 }),
                    None => Change::Delete(DeleteRequest { key }),
                }),
            }
        };
        let txn = TxnRequest {
            compare: transaction.expect.iter().map(compare).collect(),
            success: transaction.changes.iter().map(operation).collect(),
        };
        let ask = |client: Client| {
            let txn = txn.clone();
            async move { client.txn(txn).await }
        };
        let answer = self.shared.members.call(Repeat::Unsent, ask).await?;
        let revision = answer.header.map_or(0, |header| header.revision);
        Ok(if answer.succeeded { Commit::Done(unsigned(revision)) } else { Commit::Conflict })
    }

    async fn changes(&self, after: Revision) -> Result<Changes> {
        if after == Revision(0) {
            return self.everything().await;
        }
        self.watched(after).await
    }

    async fn stay_alive(&self, host: HostId) -> Result<()> {
        let mut lease = self.shared.lease.lock().await;
        let (known, key) = (*lease, format!("{}{host}", self.shared.alive));
        let ask = |client: Client| {
            let key = key.clone();
            async move {
                if let Some(id) = known
                    && client.renew(id).await?
                {
                    return Ok(id);
                }
                let id = client.grant(ETCD_ALIVE_TTL.as_secs() as i64).await?;
                client.put(PutRequest { key: key.into(), value: Bytes::new(), lease: id }).await?;
                Ok(id)
            }
        };
        *lease = Some(self.shared.members.call(Repeat::Freely, ask).await?);
        Ok(())
    }

    async fn alive(&self) -> Result<Option<BTreeSet<HostId>>> {
        let Shared { alive, .. } = &*self.shared;
        let request = RangeRequest {
            key: alive.as_str().into(),
            range_end: end_of(alive),
            keys_only: true,
            ..RangeRequest::default()
        };
        let keys = self.range(request).await?.map(|answer| answer.kvs).unwrap_or_default();
        let host = |key: &[u8]| key_below(alive, key)?.parse().ok();
        Ok(Some(keys.iter().filter_map(|kv| host(&kv.key)).collect()))
    }
}

/// The first key behind all that begin with `prefix`, which ends with no byte 255: it is text.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}
