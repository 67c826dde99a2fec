//! The cluster's records over the registry: sites, hosts, the namespace and volumes.
//!
//! Reads come from a copy of the whole registry that a watch task keeps current and that survives
//! in the file `registry-cache`, so they work while the registry is away. Changes are transactions
//! and need it; they fail with `Unavailable` and say what to do.

mod codec;
mod copy;
mod volumes;
mod watch;

pub use codec::{decode_record, encode_record};
pub use copy::Registered;

use crate::error::{Error, ErrorKind, Result};
use crate::port::{Commit, KeyChange, Registry, Revision, Transaction};
use copy::Copy;
use pannier_core::ids::{HostId, VolumeId};
use pannier_core::record::{DeletedRecord, HostRecord, SiteRecord, VolumePath, VolumeRecord};
use parking_lot::RwLock;
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::broadcast;
use tokio::time::Instant;

/// Name of the copy's file in a host's directory.
const CACHE_FILE: &str = "registry-cache";

/// Attempts of one transaction that meets conflicts. Each conflict means that somebody else made
/// progress, so this many in a row mean that something is wrong.
const CONFLICTS_MAX: u32 = 32;

/// Changes that a slow subscriber may lag behind before it is told to read everything again.
const NEWS_MAX: usize = 1024;

/// What changed in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A volume's record was created or changed.
    Volume(VolumeId),
    /// A volume was deleted: its tombstone was seen.
    Deleted(VolumeId),
    /// A host's record was created, changed or deleted.
    Host(HostId),
}

/// The cluster's records.
pub struct Directory {
    registry: Arc<dyn Registry>,
    file: PathBuf,
    copy: RwLock<Copy>,
    /// Volumes whose record was read from the registry in this boot.
    seen: RwLock<Seen>,
    boot: String,
    /// The boot in which the file that this daemon found was read from the registry.
    cached_boot: String,
    reachable: AtomicBool,
    /// How the registry was last read for somebody whom the copy did not serve, and when.
    looked: tokio::sync::Mutex<Option<(Instant, Result<()>)>>,
    /// The hosts that are alive, when the registry keeps that and answers.
    alive: RwLock<Option<BTreeSet<HostId>>>,
    news: broadcast::Sender<News>,
}

/// Which records were read from the registry itself since the host booted.
#[derive(Default)]
struct Seen {
    /// The whole copy was, by this or an earlier daemon of this boot.
    all: bool,
    /// These were.
    volumes: HashSet<VolumeId>,
}

impl Directory {
    /// The directory over `registry`, starting from the copy in `dir`. Nothing is asked of the
    /// registry yet: [`Directory::watch`] does.
    ///
    /// `boot` identifies this boot of the host.
    pub fn open(dir: &Path, registry: Arc<dyn Registry>, boot: &str) -> Self {
        let file = dir.join(CACHE_FILE);
        let (copy, cached_boot) = match std::fs::read(&file) {
            Ok(bytes) => match Copy::decode(&bytes) {
                Some((copy, cached_boot)) => (copy, Some(cached_boot)),
                None => {
                    tracing::warn!(
                        file = %file.display(),
                        "the copy of the registry is damaged and is read anew"
                    );
                    (Copy::default(), None)
                }
            },
            Err(_absent) => (Copy::default(), None),
        };
        let all = cached_boot.as_deref() == Some(boot);
        Self {
            registry,
            file,
            copy: RwLock::new(copy),
            seen: RwLock::new(Seen { all, volumes: HashSet::new() }),
            boot: boot.to_owned(),
            cached_boot: cached_boot.unwrap_or_default(),
            reachable: AtomicBool::new(false),
            looked: tokio::sync::Mutex::new(None),
            alive: RwLock::new(None),
            news: broadcast::Sender::new(NEWS_MAX),
        }
    }

    /// Subscribes to changes. A subscriber that lags reads everything again.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    /// Whether the registry answered when it was last asked.
    #[must_use]
    pub fn reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// Whether a host has told the registry lately that it is alive; `None` when that is not known.
    #[must_use]
    pub fn alive(&self, host: HostId) -> Option<bool> {
        self.alive.read().as_ref().map(|alive| alive.contains(&host))
    }

    /// The registry's revision up to which the copy has everything.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.copy.read().through()
    }

    /// All sites, by name.
    #[must_use]
    pub fn sites(&self) -> Vec<SiteRecord> {
        self.copy.read().sites.values().cloned().collect()
    }

    /// All hosts, by id.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostRecord> {
        self.copy.read().hosts.values().cloned().collect()
    }

    /// The host with this id.
    #[must_use]
    pub fn host(&self, id: HostId) -> Option<HostRecord> {
        self.copy.read().hosts.get(&id).cloned()
    }

    /// The name of a host for people; its id when it is not known.
    #[must_use]
    pub fn host_name(&self, id: HostId) -> String {
        self.host(id).map_or_else(|| id.to_string(), |host| host.name)
    }

    /// All volumes, by id.
    #[must_use]
    pub fn volumes(&self) -> Vec<Registered<VolumeRecord>> {
        self.copy.read().volumes.values().cloned().collect()
    }

    /// The volume with this id, from the copy.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<Registered<VolumeRecord>> {
        self.copy.read().volumes.get(&id).cloned()
    }

    /// The volume at this path, from the copy.
    #[must_use]
    pub fn volume_at(&self, path: &VolumePath) -> Option<Registered<VolumeRecord>> {
        let copy = self.copy.read();
        copy.volumes.get(copy.paths.get(path)?).cloned()
    }

    /// The tombstone of a deleted volume.
    #[must_use]
    pub fn deleted(&self, id: VolumeId) -> Option<DeletedRecord> {
        self.copy.read().deleted.get(&id).cloned()
    }

    /// Whether the volume's record was read from the registry in this boot, by this daemon or by
    /// one before it; a record that was not is only a memory from before the reboot.
    #[must_use]
    pub fn seen_in_this_boot(&self, id: VolumeId) -> bool {
        let seen = self.seen.read();
        seen.all || seen.volumes.contains(&id)
    }

    /// Registers a host, and its site when it is the first there.
    ///
    /// # Errors
    /// `Invalid` when another host has the name, `Unavailable` while the registry is away.
    pub async fn put_host(&self, host: &HostRecord) -> Result<()> {
        for _ in 0..CONFLICTS_MAX {
            self.refresh().await?;
            let name = codec::name_key(&host.name);
            let held = self.registry.get(&name).await.map_err(|error| self.away(error))?;
            let former = self.hosts().into_iter().find(|known| known.id == host.id);
            if let Some(held) = &held {
                self.check_name(host, decode_record(&name, &held.value)?)?;
            }
            // The name becomes taken in the same transaction.
            let expect = vec![(name.clone(), held.map_or(Revision(0), |held| held.revision))];
            let key = codec::host_key(host.id);
            let mut changes = vec![
                KeyChange { key: name, value: Some(encode_record(&host.id)?) },
                KeyChange { key, value: Some(encode_record(host)?) },
            ];
            if let Some(former) = former.filter(|former| former.name != host.name) {
                changes.push(KeyChange { key: codec::name_key(&former.name), value: None });
            }
            if !self.copy.read().sites.contains_key(&host.site) {
                let site = SiteRecord { name: host.site.clone() };
                let key = codec::site_key(&host.site);
                changes.push(KeyChange { key, value: Some(encode_record(&site)?) });
            }
            if let Commit::Done(_) = self.commit(Transaction { expect, changes }).await? {
                return Ok(());
            }
        }
        let context = format!("host `{}` cannot be registered: too many others are", host.name);
        Err(Error::new(ErrorKind::Unavailable, context))
    }

    /// Whether a host may have a name that `holder` has taken.
    fn check_name(&self, host: &HostRecord, holder: HostId) -> Result<()> {
        let other = self.hosts().into_iter().find(|known| known.id == holder);
        match other.filter(|other| other.id != host.id && other.name == host.name) {
            None => Ok(()),
            Some(other) => Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "host name `{}` is taken by host {} of site {}; choose another in this host's \
                     pannier.toml: `name = \"...\"`",
                    other.name, other.id, other.site
                ),
            )),
        }
    }

    /// Commits, and applies what was committed to the copy.
    async fn commit(&self, transaction: Transaction) -> Result<Commit> {
        let changes = transaction.changes.clone();
        let commit = self.registry.commit(transaction).await.map_err(|error| self.away(error))?;
        self.reachable.store(true, Ordering::Relaxed);
        if let Commit::Done(revision) = commit {
            let mut changed = Vec::new();
            {
                let mut copy = self.copy.write();
                for KeyChange { key, value } in changes {
                    changed.extend(copy.committed(&key, revision, value));
                }
            }
            self.announce(&changed);
        }
        Ok(commit)
    }

    /// The registry's error, with the way out when it is away.
    fn away(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::Unavailable {
            return error;
        }
        self.reachable.store(false, Ordering::Relaxed);
        let mut cause = error.to_string();
        for host in self.hosts() {
            cause = cause.replace(&host.id.to_string(), &host.name);
        }
        let context = format!(
            "the registry is away ({cause}); volumes go on serving, but this change needs it: \
             start what keeps it, or mend the link to it, and repeat the command"
        );
        Error::new(ErrorKind::Unavailable, context).with_source(error)
    }

    /// Tells subscribers, and remembers that the volumes' records come from the registry itself.
    fn announce(&self, keys: &[String]) {
        for key in keys {
            let news = if let Some(id) = key.strip_prefix(codec::VOLUMES) {
                id.parse().ok().map(News::Volume)
            } else if let Some(id) = key.strip_prefix(codec::DELETED) {
                id.parse().ok().map(News::Deleted)
            } else if let Some(id) = key.strip_prefix(codec::HOSTS) {
                id.parse().ok().map(News::Host)
            } else {
                None
            };
            let Some(news) = news else { continue };
            if let News::Volume(id) = news {
                self.seen.write().volumes.insert(id);
            }
            // No subscriber is no error.
            drop(self.news.send(news));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
