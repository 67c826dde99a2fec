//! The cached copy of the registry: every record, typed, in memory and in a file, so that whatever
//! needs no transaction works while the registry is away.

use super::codec::{self, decode_record};
use crate::error::{Error, ErrorKind, Result};
use crate::port::{Changes, Revision, Versioned};
use bytes::Bytes;
use pannier_core::ids::{HostId, SiteName, VolumeId};
use pannier_core::record::{DeletedRecord, HostRecord, SiteRecord, VolumePath, VolumeRecord};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

/// Version of the file's format.
const FILE_VERSION: u8 = 1;

/// One value as the registry had it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Raw {
    revision: u64,
    value: Vec<u8>,
}

/// The file: all values as they came, so that a newer program decodes them with its own eyes.
#[derive(Debug, Default, Serialize, Deserialize)]
struct FileBody {
    /// Boot in which the copy was last read from the registry.
    boot: String,
    through: u64,
    entries: BTreeMap<String, Raw>,
}

/// A record with the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered<T> {
    /// The commit that wrote it.
    pub revision: Revision,
    /// The record.
    pub record: T,
}

/// Every record, as last seen.
#[derive(Debug, Default)]
pub(super) struct Copy {
    through: Revision,
    raw: BTreeMap<String, Raw>,
    /// Keys deleted by our own commits that the watch has not caught up with.
    tombstones: BTreeMap<String, Revision>,
    pub(super) sites: BTreeMap<SiteName, SiteRecord>,
    pub(super) hosts: BTreeMap<HostId, HostRecord>,
    pub(super) volumes: BTreeMap<VolumeId, Registered<VolumeRecord>>,
    pub(super) paths: BTreeMap<VolumePath, VolumeId>,
    pub(super) deleted: BTreeMap<VolumeId, DeletedRecord>,
}

impl Copy {
    /// The revision up to which the watch has seen everything.
    pub(super) fn through(&self) -> Revision {
        self.through
    }

    /// Applies what the registry reported and returns the keys that changed here.
    pub(super) fn apply(&mut self, changes: &Changes) -> Vec<String> {
        let mut changed = Vec::new();
        if changes.complete {
            let gone: Vec<_> = self
                .raw
                .iter()
                .filter(|(key, raw)| {
                    Revision(raw.revision) <= changes.through
                        && !changes.entries.iter().any(|(there, _)| there == *key)
                })
                .map(|(key, _)| key.clone())
                .collect();
            for key in gone {
                self.put(&key, changes.through, None, &mut changed);
            }
        }
        for (key, value) in &changes.entries {
            let revision = value.as_ref().map_or(changes.through, |value| value.revision);
            self.put(key, revision, value.as_ref(), &mut changed);
        }
        self.through = self.through.max(changes.through);
        self.tombstones.retain(|_, revision| *revision > changes.through);
        changed
    }

    /// Applies what one of our own commits wrote.
    pub(super) fn committed(
        &mut self,
        key: &str,
        revision: Revision,
        value: Option<Bytes>,
    ) -> Vec<String> {
        let mut changed = Vec::new();
        if value.is_none() {
            self.tombstones.insert(key.to_owned(), revision);
        }
        let value = value.map(|value| Versioned { revision, value });
        self.put(key, revision, value.as_ref(), &mut changed);
        changed
    }

    fn put(
        &mut self,
        key: &str,
        revision: Revision,
        value: Option<&Versioned>,
        changed: &mut Vec<String>,
    ) {
        let known = self.raw.get(key).map_or(0, |raw| raw.revision);
        let deleted = self.tombstones.get(key).map_or(0, |revision| revision.0);
        // Answers overtake each other. What is as old as all that the copy has seen, and is not in
        // it, has been deleted since.
        let gone = known == 0 && revision <= self.through;
        if revision.0 < known || (value.is_some() && (gone || revision.0 <= deleted)) {
            return;
        }
        match value {
            Some(value) if value.revision.0 == known => return,
            Some(value) => {
                let raw = Raw { revision: revision.0, value: value.value.to_vec() };
                self.raw.insert(key.to_owned(), raw);
            }
            None if known == 0 => return,
            None => {
                self.raw.remove(key);
            }
        }
        if let Err(error) = self.index(key, revision, value.map(|value| &value.value[..])) {
            tracing::error!(key, %error, "a registry record is unreadable and is ignored");
        }
        changed.push(key.to_owned());
    }

    /// Keeps the typed view in step with one raw value.
    fn index(&mut self, key: &str, revision: Revision, value: Option<&[u8]>) -> Result<()> {
        let bad = |what: &str| Error::new(ErrorKind::Corrupt, format!("key `{key}` is not {what}"));
        if let Some(name) = key.strip_prefix(codec::SITES) {
            replace(&mut self.sites, SiteName(name.to_owned()), key, value)
        } else if let Some(id) = key.strip_prefix(codec::HOSTS) {
            let id = id.parse().map_err(|error| bad("a host's").with_source(error))?;
            replace(&mut self.hosts, id, key, value)
        } else if let Some(id) = key.strip_prefix(codec::VOLUMES) {
            let id = id.parse().map_err(|error| bad("a volume's").with_source(error))?;
            self.volumes.remove(&id);
            if let Some(value) = value {
                let record = decode_record(key, value)?;
                self.volumes.insert(id, Registered { revision, record });
            }
            Ok(())
        } else if let Some(path) = key.strip_prefix(codec::PATHS) {
            let path = VolumePath::parse(path).map_err(|error| bad("a path").with_source(error))?;
            replace(&mut self.paths, path, key, value)
        } else if let Some(id) = key.strip_prefix(codec::DELETED) {
            let id = id.parse().map_err(|error| bad("a volume's").with_source(error))?;
            replace(&mut self.deleted, id, key, value)
        } else {
            Ok(())
        }
    }

    /// The copy's bytes for its file.
    pub(super) fn encode(&self, boot: &str) -> Result<Vec<u8>> {
        let body =
            FileBody { boot: boot.to_owned(), through: self.through.0, entries: self.raw.clone() };
        let mut bytes = vec![FILE_VERSION];
        bytes.extend(postcard::to_stdvec(&body).map_err(|error| {
            Error::new(ErrorKind::Internal, format!("the registry's copy does not encode: {error}"))
        })?);
        let crc = blake3::hash(&bytes);
        bytes.extend_from_slice(&crc.as_bytes()[..16]);
        Ok(bytes)
    }

    /// The copy in a file's bytes, and the boot in which it was read from the registry. `None` for
    /// bytes that are damaged or of another version: the copy is then read anew.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, String)> {
        let (bytes, sum) = bytes.split_at_checked(bytes.len().checked_sub(16)?)?;
        let (&version, body) = bytes.split_first()?;
        if version != FILE_VERSION || blake3::hash(bytes).as_bytes()[..16] != *sum {
            return None;
        }
        let body: FileBody = postcard::from_bytes(body).ok()?;
        let mut copy = Self { through: Revision(body.through), ..Self::default() };
        for (key, raw) in &body.entries {
            copy.index(key, Revision(raw.revision), Some(&raw.value)).ok()?;
        }
        copy.raw = body.entries;
        Some((copy, body.boot))
    }
}

fn replace<K: Ord, V: serde::de::DeserializeOwned>(
    map: &mut BTreeMap<K, V>,
    key: K,
    registry_key: &str,
    value: Option<&[u8]>,
) -> Result<()> {
    map.remove(&key);
    if let Some(value) = value {
        map.insert(key, decode_record(registry_key, value)?);
    }
    Ok(())
}

/// Replaces the file `path` atomically: temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// `NoSpace`, `Unavailable`.
pub(super) fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = |error| Error::io(format!("cannot write {}", path.display()), error);
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).map_err(name)?;
    file.write_all(bytes).map_err(name)?;
    file.sync_all().map_err(name)?;
    std::fs::rename(&temporary, path).map_err(name)?;
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(name)
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
