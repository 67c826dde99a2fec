//! What changed in etcd: one watch stream, kept open from one question to the next.

use super::api::{Client, RangeRequest, WatchCreate, WatchResponse};
use super::end_of;
use super::members::{Members, Repeat, cause};
use pannier_engine::error::Result;
use pannier_engine::port::{Changes, Revision, Versioned};
use std::collections::BTreeMap;
use tonic::{Code, Status, Streaming};

/// A stream, and up to which revision what came from it was given out.
pub(super) struct Watching {
    stream: Streaming<WatchResponse>,
    through: Revision,
}

/// What came of waiting.
pub(super) enum News {
    /// These are all changes.
    Changes(Changes),
    /// The history back to the asked revision is not to be had.
    Gone,
    /// The stream has ended; another may go on where it was.
    Broken(String),
}

impl Watching {
    /// Watches the keys under `prefix` from behind `after`; `None` when that is no revision of this
    /// etcd's history, or none any more.
    pub(super) async fn open(
        members: &Members,
        prefix: &str,
        after: Revision,
    ) -> Result<Option<Self>> {
        let create = WatchCreate {
            key: prefix.into(),
            range_end: end_of(prefix),
            start_revision: signed(after) + 1,
            progress_notify: true,
        };
        let open = |client: Client| {
            let create = create.clone();
            async move {
                let mut stream = client.watch(create).await?;
                let ended = || Status::unavailable("the watch ended as it began");
                let created = stream.message().await?.ok_or_else(ended)?;
                if created.canceled && created.compact_revision == 0 {
                    return Err(Status::unavailable(created.cancel_reason));
                }
                Ok((stream, created))
            }
        };
        let (stream, created) = members.call(Repeat::Freely, open).await?;
        if created.canceled {
            return Ok(None);
        }
        let known = created.header.map_or(0, |header| header.revision);
        // The member may lag behind the others; only they know the newest revision. One that is
        // older than ours is of an etcd that was put back to an earlier state.
        if known < signed(after) && newest(members, prefix).await? < signed(after) {
            return Ok(None);
        }
        Ok(Some(Self { stream, through: after }))
    }

    /// Whether the stream goes on behind this revision.
    pub(super) fn follows(&self, after: Revision) -> bool {
        self.through == after
    }

    /// Waits for the next changes.
    ///
    /// # Cancel safety
    /// Nothing is lost: between what arrives and its return nothing is awaited, and a caller that
    /// has not got it asks from an older revision, which this stream does not follow.
    pub(super) async fn next(&mut self, prefix: &str) -> News {
        loop {
            let response = match self.stream.message().await {
                Ok(Some(response)) => response,
                Ok(None) => return News::Broken("the watch has ended".to_owned()),
                // More than a message holds.
                Err(status) if status.code() == Code::OutOfRange => return News::Gone,
                Err(status) => return News::Broken(cause(&status)),
            };
            if response.canceled && response.compact_revision != 0 {
                return News::Gone;
            }
            if response.canceled {
                return News::Broken(response.cancel_reason);
            }
            if let Some(changes) = changes(response, prefix) {
                self.through = changes.through;
                return News::Changes(changes);
            }
        }
    }
}

/// The newest value of every key that a response tells of; `None` when it tells nothing new.
fn changes(response: WatchResponse, prefix: &str) -> Option<Changes> {
    // The header's revision is the member's: a watcher that catches up gets its history in pieces,
    // and only a response without events says that all up to there was told.
    let mut through = match &response.header {
        Some(header) if response.events.is_empty() && !response.created => {
            unsigned(header.revision)
        }
        _other => Revision(0),
    };
    let mut newest = BTreeMap::new();
    for event in response.events {
        let Some(kv) = event.kv else { continue };
        let revision = unsigned(kv.mod_revision);
        through = through.max(revision);
        if let Some(key) = key_below(prefix, &kv.key) {
            let put = event.kind == 0;
            newest.insert(key, put.then_some(Versioned { revision, value: kv.value }));
        }
    }
    let entries = newest.into_iter().collect();
    (through > Revision(0)).then_some(Changes { entries, through, complete: false })
}

async fn newest(members: &Members, prefix: &str) -> Result<i64> {
    let ask = |client: Client| {
        let request =
            RangeRequest { key: prefix.into(), count_only: true, ..RangeRequest::default() };
        async move { client.range(request).await }
    };
    let answer = members.call(Repeat::Freely, ask).await?;
    Ok(answer.header.map_or(0, |header| header.revision))
}

/// The registry's key of an etcd key.
pub(super) fn key_below(prefix: &str, key: &[u8]) -> Option<String> {
    let key = key.strip_prefix(prefix.as_bytes())?;
    String::from_utf8(key.to_vec()).ok()
}

/// etcd counts in signed numbers and uses none below zero.
pub(super) fn unsigned(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or_default())
}

/// See [`unsigned`]; what is beyond is of no etcd's history.
pub(super) fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX - 1)
}
