//! A registry in a file of this host, by redb.
//!
//! Three tables: `data` has each key's value and the revision that wrote it; `history` has, for
//! each revision, the keys that it changed; `meta` has the newest revision and the horizon, the
//! newest revision whose history is gone. A commit is one redb transaction with immediate
//! durability: synced when it returns.

use crate::limits::{
    CHANGES_WAIT, HISTORY_MAX, KEY_BYTES_MAX, TRANSACTION_BYTES_MAX, TRANSACTION_KEYS_MAX,
    VALUE_BYTES_MAX,
};
use async_trait::async_trait;
use bytes::Bytes;
use pannier_engine::error::{Error, ErrorKind, Result};
use pannier_engine::port::{
    Changes, Commit, KeyChange, Registry, Revision, Transaction, Versioned,
};
use parking_lot::Mutex;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const DATA: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("data");
const HISTORY: TableDefinition<(u64, u32), &str> = TableDefinition::new("history");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
const HORIZON: &str = "horizon";

/// A registry in a file of this host.
#[derive(Debug, Clone)]
pub struct Embedded {
    file: Arc<RegistryFile>,
    newest: watch::Receiver<Revision>,
    wait: Duration,
}

#[derive(Debug)]
struct RegistryFile {
    path: PathBuf,
    /// Absent after an I/O error: redb answers nothing more then, and opening it again recovers
    /// the last commit, so the next operation does that.
    database: Mutex<Option<Arc<Database>>>,
    history_max: u64,
    newest: watch::Sender<Revision>,
}

impl Embedded {
    /// Opens, and makes if needed, the registry in the file `path`.
    ///
    /// # Errors
    /// `Unavailable` when the file cannot be opened or another process has it open, `Corrupt` when
    /// it is not a registry.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        Self::open_with(path.into(), HISTORY_MAX, CHANGES_WAIT)
    }

    pub(super) fn open_with(path: PathBuf, history_max: u64, wait: Duration) -> Result<Self> {
        let (sender, newest) = watch::channel(Revision::default());
        let file = RegistryFile { path, database: Mutex::new(None), history_max, newest: sender };
        let revision = file.with(|database| read_meta(database, REVISION))?;
        file.newest.send_replace(Revision(revision));
        Ok(Self { file: Arc::new(file), newest, wait })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&RegistryFile) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let file = Arc::clone(&self.file);
        tokio::task::spawn_blocking(move || work(&file)).await.map_err(|error| {
            Error::new(ErrorKind::Closed, "registry: the host is stopping").with_source(error)
        })?
    }
}

#[async_trait]
impl Registry for Embedded {
    async fn get(&self, key: &str) -> Result<Option<Versioned>> {
        let key = key.to_owned();
        self.blocking(move |file| file.with(|database| read_key(database, &key))).await
    }

    async fn list(&self, prefix: &str) -> Result<(Vec<(String, Versioned)>, Revision)> {
        let prefix = prefix.to_owned();
        self.blocking(move |file| file.with(|database| read_prefix(database, &prefix))).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit> {
        check(&transaction)?;
        self.blocking(move |file| file.commit(&transaction)).await
    }

    async fn changes(&self, after: Revision) -> Result<Changes> {
        let mut newest = self.newest.clone();
        // A revision from the future is not of this registry's history: no waiting for it.
        if *newest.borrow_and_update() == after {
            let news = newest.wait_for(|revision| *revision != after);
            match tokio::time::timeout(self.wait, news).await {
                Ok(Ok(_revision)) => {}
                Ok(Err(closed)) => {
                    return Err(Error::new(ErrorKind::Closed, "registry: it is shut down")
                        .with_source(closed));
                }
                Err(_elapsed) => {
                    return Ok(Changes { entries: Vec::new(), through: after, complete: false });
                }
            }
        }
        self.blocking(move |file| file.with(|database| read_changes(database, after))).await
    }
}

/// Checks a transaction's bounds; the same for every implementation, so that what one takes all
/// take.
pub(super) fn check(transaction: &Transaction) -> Result<()> {
    let invalid = |cause: String| {
        Err(Error::new(ErrorKind::Invalid, format!("registry transaction: {cause}")))
    };
    let keys = || {
        let expected = transaction.expect.iter().map(|(key, _revision)| key);
        expected.chain(transaction.changes.iter().map(|change| &change.key))
    };
    if transaction.expect.len().max(transaction.changes.len()) > TRANSACTION_KEYS_MAX {
        return invalid(format!("more than {TRANSACTION_KEYS_MAX} keys"));
    }
    if let Some(key) = keys().find(|key| key.is_empty() || key.len() > KEY_BYTES_MAX) {
        return invalid(format!("a key has {} bytes, 1 to {KEY_BYTES_MAX} may be", key.len()));
    }
    let value_bytes = |change: &KeyChange| change.value.as_ref().map_or(0, Bytes::len);
    if let Some(change) =
        transaction.changes.iter().find(|change| value_bytes(change) > VALUE_BYTES_MAX)
    {
        return invalid(format!(
            "the value of `{}` has {} bytes, {VALUE_BYTES_MAX} may be",
            change.key,
            value_bytes(change)
        ));
    }
    let bytes = keys().map(String::len).sum::<usize>()
        + transaction.changes.iter().map(value_bytes).sum::<usize>();
    if bytes > TRANSACTION_BYTES_MAX {
        return invalid(format!("{bytes} bytes, {TRANSACTION_BYTES_MAX} may be"));
    }
    let mut seen = HashSet::new();
    if let Some(change) = transaction.changes.iter().find(|change| !seen.insert(&change.key)) {
        return invalid(format!("it changes `{}` twice", change.key));
    }
    Ok(())
}

impl RegistryFile {
    /// Runs `work` on the database, opening it if needed.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T> {
        let database = {
            let mut slot = self.database.lock();
            match &*slot {
                Some(database) => Arc::clone(database),
                None => {
                    let database = Arc::new(self.open_database()?);
                    *slot = Some(Arc::clone(&database));
                    database
                }
            }
        };
        work(&database).map_err(|error| {
            if matches!(error, redb::Error::Io(_) | redb::Error::PreviousIo) {
                let mut slot = self.database.lock();
                if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, &database)) {
                    *slot = None;
                }
            }
            self.error(error)
        })
    }

    fn open_database(&self) -> Result<Database> {
        let fresh = !self.path.exists();
        let database = Database::create(&self.path).map_err(|error| self.error(error.into()))?;
        make_tables(&database).map_err(|error| self.error(error))?;
        if fresh {
            sync_parent(&self.path)?;
        }
        Ok(database)
    }

    fn error(&self, error: redb::Error) -> Error {
        let path = self.path.display();
        match error {
            redb::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                Error::new(ErrorKind::Corrupt, format!("registry {path}: {error}"))
                    .with_source(error)
            }
            redb::Error::Io(error) => Error::io(format!("registry {path}"), error),
            redb::Error::DatabaseAlreadyOpen => Error::new(
                ErrorKind::Unavailable,
                format!("registry {path}: another process has it open; stop that one first"),
            ),
            redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) => Error::new(
                ErrorKind::Corrupt,
                format!("registry {path}: {error}; restore it from a copy"),
            )
            .with_source(error),
            error => Error::new(ErrorKind::Unavailable, format!("registry {path}: {error}"))
                .with_source(error),
        }
    }

    fn commit(&self, transaction: &Transaction) -> Result<Commit> {
        let commit = self.with(|database| apply(database, transaction, self.history_max))?;
        if let Commit::Done(revision) = commit {
            // Commits may return out of order; the newest only grows.
            self.newest.send_if_modified(|newest| {
                let grows = *newest < revision;
                *newest = revision.max(*newest);
                grows
            });
        }
        Ok(commit)
    }
}

fn make_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        transaction.open_table(DATA)?;
        transaction.open_table(HISTORY)?;
        transaction.open_table(META)?;
    }
    transaction.commit()?;
    Ok(())
}

fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    std::fs::File::open(parent.unwrap_or(Path::new(".")))
        .and_then(|directory| directory.sync_all())
        .map_err(|error| Error::io(format!("sync the directory of {}", path.display()), error))
}

fn read_meta(database: &Database, name: &str) -> Result<u64, redb::Error> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    Ok(meta.get(name)?.map_or(0, |value| value.value()))
}

fn versioned((revision, value): (u64, &[u8])) -> Versioned {
    Versioned { revision: Revision(revision), value: Bytes::copy_from_slice(value) }
}

fn read_key(database: &Database, key: &str) -> Result<Option<Versioned>, redb::Error> {
    let data = database.begin_read()?.open_table(DATA)?;
    Ok(data.get(key)?.map(|value| versioned(value.value())))
}

type Listing = (Vec<(String, Versioned)>, Revision);

fn read_prefix(database: &Database, prefix: &str) -> Result<Listing, redb::Error> {
    let transaction = database.begin_read()?;
    let revision = transaction.open_table(META)?.get(REVISION)?.map_or(0, |value| value.value());
    let data = transaction.open_table(DATA)?;
    let mut entries = Vec::new();
    for entry in data.range(prefix..)? {
        let (key, value) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        entries.push((key.value().to_owned(), versioned(value.value())));
    }
    Ok((entries, Revision(revision)))
}

fn read_changes(database: &Database, after: Revision) -> Result<Changes, redb::Error> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let number = |name| Ok::<_, redb::Error>(meta.get(name)?.map_or(0, |value| value.value()));
    let (revision, horizon) = (number(REVISION)?, number(HORIZON)?);
    if after.0 < horizon || after.0 > revision {
        let (entries, through) = read_prefix(database, "")?;
        let entries = entries.into_iter().map(|(key, value)| (key, Some(value))).collect();
        return Ok(Changes { entries, through, complete: true });
    }
    let history = transaction.open_table(HISTORY)?;
    let mut keys = BTreeSet::new();
    for entry in history.range((after.0 + 1, 0)..)? {
        keys.insert(entry?.1.value().to_owned());
    }
    let data = transaction.open_table(DATA)?;
    let mut entries = Vec::with_capacity(keys.len());
    for key in keys {
        let value = data.get(key.as_str())?.map(|value| versioned(value.value()));
        entries.push((key, value));
    }
    Ok(Changes { entries, through: Revision(revision), complete: false })
}

fn apply(
    database: &Database,
    transaction: &Transaction,
    history_max: u64,
) -> Result<Commit, redb::Error> {
    // redb's default is what is wanted: immediate durability, synced when commit returns.
    let write = database.begin_write()?;
    let revision = {
        let mut data = write.open_table(DATA)?;
        for (key, expected) in &transaction.expect {
            let found = data.get(key.as_str())?.map_or(0, |value| value.value().0);
            if found != expected.0 {
                return Ok(Commit::Conflict);
            }
        }
        let mut meta = write.open_table(META)?;
        let newest = meta.get(REVISION)?.map_or(0, |value| value.value());
        if transaction.changes.is_empty() {
            return Ok(Commit::Done(Revision(newest)));
        }
        let revision = newest + 1;
        let mut history = write.open_table(HISTORY)?;
        for (ordinal, change) in (0_u32..).zip(&transaction.changes) {
            match &change.value {
                Some(value) => {
                    data.insert(change.key.as_str(), (revision, &value[..]))?;
                }
                None => {
                    data.remove(change.key.as_str())?;
                }
            }
            history.insert((revision, ordinal), change.key.as_str())?;
        }
        if let Some(horizon) = revision.checked_sub(history_max) {
            history.retain_in(..(horizon + 1, 0), |_at, _key| false)?;
            meta.insert(HORIZON, horizon)?;
        }
        meta.insert(REVISION, revision)?;
        revision
    };
    write.commit()?;
    Ok(Commit::Done(Revision(revision)))
}
