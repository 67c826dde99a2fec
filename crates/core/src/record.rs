//! The registry's records: what the small strongly consistent store knows of sites, hosts and
//! volumes. Plain data; the ownership rules over them are in [`crate::volume`].

use crate::ids::{Epoch, HostId, ObjectHash, Sequence, SiteName, VolumeId};
use crate::volume::Position;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Path of a volume in the namespace, always with the leading slash: `/vms/web/disk0`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumePath(String);

/// A text that is not a volume path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a volume path: {cause}; write it like `/vms/web/disk0`")]
pub struct ParsePathError {
    text: String,
    cause: &'static str,
}

/// Longest volume path in bytes: below NBD's limit of 4096 for an export name.
pub const PATH_BYTES_MAX: usize = 1024;

impl VolumePath {
    /// Parses a path, with or without its leading slash.
    ///
    /// # Errors
    /// When the text is empty or too long, has empty parts, `.` or `..`, `@` (which names
    /// snapshots), or control characters.
    pub fn parse(text: &str) -> Result<Self, ParsePathError> {
        let fail = |cause| Err(ParsePathError { text: text.to_owned(), cause });
        let bare = text.strip_prefix('/').unwrap_or(text);
        if bare.is_empty() {
            return fail("it is empty");
        }
        if bare.len() >= PATH_BYTES_MAX {
            return fail("it is longer than 1023 bytes");
        }
        if bare.chars().any(|c| c.is_control() || c == '@') {
            return fail("it has a control character or `@`");
        }
        if bare.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return fail("it has an empty part, `.` or `..`");
        }
        Ok(Self(format!("/{bare}")))
    }

    /// The path with its leading slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VolumePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumePath({self})")
    }
}

/// A host of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Its identity, also the name in its certificate.
    pub id: HostId,
    /// Its name for people, unique in the cluster.
    pub name: String,
    /// The site it belongs to.
    pub site: SiteName,
    /// Address and port where its peers reach it.
    pub address: String,
}

/// A planned change of owner that has begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Transit {
    /// The owner that gives.
    pub from: HostId,
    /// The host that takes.
    pub to: HostId,
    /// The epoch reserved for the taker.
    pub epoch: Epoch,
    /// Whether a migration is declared: the first writer at the target then takes the write right,
    /// once.
    pub declared: bool,
    /// Whether the switch waits for that write; else it comes as soon as the target has caught up.
    pub waits_for_write: bool,
}

/// Where the log of an epoch ends that a takeover has ended. What lies beyond is no part of the
/// log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EpochEnd {
    /// The epoch that ended.
    pub epoch: Epoch,
    /// The epoch that ended it.
    pub by: Epoch,
    /// The last position that counts.
    pub position: Position,
}

/// What a site's own store holds of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Home {
    /// The newest checkpoint published in the site's store, with the epoch that published it.
    pub checkpoint: Option<PublishedCheckpoint>,
    /// Whether every block that any root of the volume named at that checkpoint was verified in the
    /// site's own store.
    pub independent: bool,
}

/// A checkpoint that a registry transaction has published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedCheckpoint {
    /// Epoch of the owner that published it.
    pub epoch: Epoch,
    /// Last sequence of the log that it contains.
    pub through: Sequence,
    /// Hash, and with it the key, of the checkpoint object.
    pub object: ObjectHash,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Its identity, never reused.
    pub id: VolumeId,
    /// Its path in the namespace.
    pub path: VolumePath,
    /// Its size as last registered; the log's resize entries are the truth.
    pub size_bytes: u64,
    /// The host whose epoch is [`VolumeRecord::epoch`].
    pub owner: HostId,
    /// The newest epoch whose ownership is registered.
    pub epoch: Epoch,
    /// The highest epoch ever reserved, at least [`VolumeRecord::epoch`].
    pub reserved: Epoch,
    /// The change of owner under way.
    pub transit: Option<Transit>,
    /// Where the log of the last epoch that ended by a takeover ends.
    pub ended: Option<EpochEnd>,
    /// Whether several attachments may write at once.
    pub shared: bool,
    /// What each site's store holds.
    pub homes: BTreeMap<SiteName, Home>,
}

impl VolumeRecord {
    /// A new volume: its creator owns it, under the first epoch.
    #[must_use]
    pub fn new(id: VolumeId, path: VolumePath, size_bytes: u64, owner: HostId) -> Self {
        Self {
            id,
            path,
            size_bytes,
            owner,
            epoch: Epoch(1),
            reserved: Epoch(1),
            transit: None,
            ended: None,
            shared: false,
            homes: BTreeMap::new(),
        }
    }

    /// Whether it was proven that a site depends on no other for this volume: under the present
    /// owner, since another one's checkpoint lacks what was written after it.
    #[must_use]
    pub fn is_independent_at(&self, site: &SiteName) -> bool {
        self.homes.get(site).is_some_and(|home| {
            let epoch = home.checkpoint.as_ref().map(|checkpoint| checkpoint.epoch);
            home.independent && epoch == Some(self.epoch)
        })
    }
}

/// A site: hosts that share a store and are near each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteRecord {
    /// Its name, unique in the cluster.
    pub name: SiteName,
}

/// A volume that was deleted. Kept, so that a host that was away at that time deletes its copy too,
/// and so that a copy whose record is merely missing is never taken for a deleted one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedRecord {
    /// Its identity, never reused.
    pub id: VolumeId,
    /// The path that it had.
    pub path: VolumePath,
}
