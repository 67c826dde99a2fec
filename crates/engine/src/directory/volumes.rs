//! Volumes in the directory: create, change, delete.

use super::codec::{self, decode_record, encode_record};
use super::{CONFLICTS_MAX, Directory, Registered};
use crate::error::{Error, ErrorKind, Result};
use crate::port::{Commit, KeyChange, Revision, Transaction};
use pannier_core::ids::VolumeId;
use pannier_core::record::{DeletedRecord, VolumePath, VolumeRecord};

impl Directory {
    /// The volume at a path; while the registry is reachable its answer counts, not the copy's,
    /// when the copy has none.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` when the copy has none and the registry is away.
    pub async fn find(&self, path: &VolumePath) -> Result<Registered<VolumeRecord>> {
        if let Some(found) = self.volume_at(path) {
            return Ok(found);
        }
        self.look_again().await?;
        self.volume_at(path).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("there is no volume `{path}`; `pannier volume list` shows what there is"),
            )
        })
    }

    /// Checks that a volume exists, for whoever heard of it from elsewhere: it may be newer than
    /// the copy.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` when the copy does not have it and the registry is away.
    pub async fn check_exists(&self, id: VolumeId) -> Result<()> {
        let exists = || self.copy.read().volumes.contains_key(&id);
        if exists() {
            return Ok(());
        }
        if self.deleted(id).is_none() {
            self.look_again().await?;
            if exists() {
                return Ok(());
            }
        }
        Err(absent(id))
    }

    /// The volume's record, read from the registry itself.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub async fn fresh_volume(&self, id: VolumeId) -> Result<Registered<VolumeRecord>> {
        let key = codec::volume_key(id);
        let found = self.registry.get(&key).await.map_err(|error| self.away(error))?;
        self.reached();
        let Some(found) = found else {
            return Err(absent(id));
        };
        let record = decode_record(&key, &found.value)?;
        let changed = self.copy.write().committed(&key, found.revision, Some(found.value));
        self.seen.write().volumes.insert(id);
        self.announce(&changed);
        Ok(Registered { revision: found.revision, record })
    }

    /// Registers a new volume. Its path becomes taken in the same transaction.
    ///
    /// # Errors
    /// `Invalid` when the path is taken, `Unavailable` while the registry is away.
    pub async fn create_volume(&self, record: &VolumeRecord) -> Result<()> {
        let path = codec::path_key(&record.path);
        let volume = codec::volume_key(record.id);
        let transaction = Transaction {
            expect: vec![(path.clone(), Revision(0)), (volume.clone(), Revision(0))],
            changes: vec![
                KeyChange { key: path.clone(), value: Some(encode_record(&record.id)?) },
                KeyChange { key: volume, value: Some(encode_record(record)?) },
            ],
        };
        match self.commit(transaction).await {
            Ok(Commit::Done(_)) => Ok(()),
            Ok(Commit::Conflict) => Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "there is already a volume `{}`; choose another path, or delete it first",
                    record.path
                ),
            )),
            Err(error) => match self.registry.get(&path).await {
                // The commit had happened and only its answer was lost.
                Ok(Some(found)) if decode_record(&path, &found.value).ok() == Some(record.id) => {
                    self.refresh().await
                }
                _ => Err(error),
            },
        }
    }

    /// Changes a volume's record by `change`, a pure function of the record: it may be called more
    /// than once, on newer and newer records. A record that it leaves as it was is not written.
    /// Returns what `change` returned, and the record as it now is.
    ///
    /// # Errors
    /// What `change` returned; `NotFound`; `Unavailable` while the registry is away, and then the
    /// change may or may not have happened.
    pub async fn update_volume<T>(
        &self,
        id: VolumeId,
        mut change: impl FnMut(&mut VolumeRecord) -> Result<T> + Send,
    ) -> Result<(T, Registered<VolumeRecord>)> {
        let key = codec::volume_key(id);
        for _ in 0..CONFLICTS_MAX {
            let before = self.fresh_volume(id).await?;
            let mut record = before.record.clone();
            let value = change(&mut record)?;
            if record == before.record {
                return Ok((value, before));
            }
            assert_eq!(record.id, id, "a volume's identity never changes");
            assert_eq!(record.path, before.record.path, "a path changes with its own key only");
            let transaction = Transaction {
                expect: vec![(key.clone(), before.revision)],
                changes: vec![KeyChange { key: key.clone(), value: Some(encode_record(&record)?) }],
            };
            if let Commit::Done(revision) = self.commit(transaction).await? {
                return Ok((value, Registered { revision, record }));
            }
        }
        Err(busy(id))
    }

    /// Registers a larger size.
    ///
    /// # Errors
    /// `Invalid` when it is smaller than what is registered; as [`Directory::update_volume`].
    pub async fn grow_volume(&self, id: VolumeId, size_bytes: u64) -> Result<()> {
        self.update_volume(id, |record| {
            if size_bytes < record.size_bytes {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!(
                        "volume `{}` has {} bytes and cannot shrink to {size_bytes}; \
                         a size at least as large is possible",
                        record.path, record.size_bytes
                    ),
                ));
            }
            record.size_bytes = size_bytes;
            Ok(())
        })
        .await
        .map(|_| ())
    }

    /// Deletes a volume's record and its path, and leaves a tombstone by which every host removes
    /// its copy. `check` may refuse, given the record as it is.
    ///
    /// # Errors
    /// What `check` returned; `NotFound`; `Unavailable` while the registry is away.
    pub async fn delete_volume(
        &self,
        id: VolumeId,
        mut check: impl FnMut(&VolumeRecord) -> Result<()> + Send,
    ) -> Result<()> {
        for _ in 0..CONFLICTS_MAX {
            let before = self.fresh_volume(id).await?;
            check(&before.record)?;
            let key = codec::volume_key(id);
            let tombstone = DeletedRecord { id, path: before.record.path.clone() };
            let transaction = Transaction {
                expect: vec![(key.clone(), before.revision)],
                changes: vec![
                    KeyChange { key: codec::path_key(&before.record.path), value: None },
                    KeyChange { key, value: None },
                    KeyChange {
                        key: codec::deleted_key(id),
                        value: Some(encode_record(&tombstone)?),
                    },
                ],
            };
            if let Commit::Done(_) = self.commit(transaction).await? {
                return Ok(());
            }
        }
        Err(busy(id))
    }
}

fn absent(id: VolumeId) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("volume {id} is not in the registry; it may have been deleted"),
    )
}

fn busy(id: VolumeId) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("the record of volume {id} changes all the time; repeat the command"),
    )
}
