//! An object store in a directory.
//!
//! An object is written to `.incoming/`, synced, and renamed to its key without replacing; then
//! its directory is synced, and every directory above that was not known to be durable. So a key
//! that can be seen after a power loss names a complete object.

use super::key;
use crate::limits::DURABLE_DIRECTORIES_MAX;
use async_trait::async_trait;
use bytes::Bytes;
use pannier_engine::error::{Error, ErrorKind, Result};
use pannier_engine::port::Objects;
use parking_lot::Mutex;
use rustix::fs::{CWD, FlockOperation, RenameFlags};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind as IoKind, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where objects are while they are written. One directory for all, so that what a crash left is
/// found without walking the store; the same file system, so that a rename names them.
const INCOMING: &str = ".incoming";

/// An object store in a directory of the local (or a network) file system.
#[derive(Debug, Clone)]
pub struct DirectoryObjects {
    store: Arc<Store>,
}

#[derive(Debug)]
struct Store {
    root: PathBuf,
    /// Directories whose own entry was synced by this process, below `root`. Whoever creates a
    /// directory may die before its parent is synced, and another put may find it there: only what
    /// is in this set is taken as durable.
    durable: Mutex<HashSet<PathBuf>>,
}

impl DirectoryObjects {
    /// Opens, and makes if needed, a store in `root`; removes what writers that are gone left in
    /// `.incoming/`.
    ///
    /// # Errors
    /// `Unavailable` or `NoSpace` when the directory cannot be made, read or synced.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = std::path::absolute(root.into())
            .map_err(|error| Error::io("object store directory", error))?;
        let store = Store { root, durable: Mutex::default() };
        create_durably(&store.root)?;
        create_durably(&store.root.join(INCOMING))?;
        store.sweep()?;
        Ok(Self { store: Arc::new(store) })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || work(&store)).await.map_err(|error| {
            Error::new(ErrorKind::Closed, "object store: the host is stopping").with_source(error)
        })?
    }
}

#[async_trait]
impl Objects for DirectoryObjects {
    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        key::check(key)?;
        let key = key.to_owned();
        self.blocking(move |store| store.put(&key, &bytes)).await
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        key::check(key)?;
        let key = key.to_owned();
        self.blocking(move |store| store.read(&key, None)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        key::check(key)?;
        let key = key.to_owned();
        self.blocking(move |store| store.read(&key, Some(range))).await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        key::check(key)?;
        let key = key.to_owned();
        self.blocking(move |store| store.size(&key)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        key::check(key)?;
        let key = key.to_owned();
        self.blocking(move |store| store.delete(&key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let prefix = prefix.to_owned();
        self.blocking(move |store| store.list(&prefix)).await
    }
}

impl Store {
    /// Removes files in `.incoming/` that no live writer has locked.
    fn sweep(&self) -> Result<()> {
        let incoming = self.root.join(INCOMING);
        let fail = |error| Error::io(format!("object store {}", incoming.display()), error);
        for entry in std::fs::read_dir(&incoming).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let Ok(file) = File::open(&path) else { continue };
            // Another host of the site may be writing to the same store right now.
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                match std::fs::remove_file(&path) {
                    Ok(()) => {
                        tracing::info!(path = %path.display(), "removed an unfinished object")
                    }
                    Err(error) if error.kind() == IoKind::NotFound => {}
                    Err(error) => return Err(fail(error)),
                }
            }
        }
        Ok(())
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        let path = self.root.join(key);
        let fail = |what: &str, error| {
            Error::io(format!("object `{key}`: {what} in {}", self.root.display()), error)
        };
        if self.accept_existing(key, bytes.len() as u64)? {
            return Ok(());
        }
        let directory = self.make_parents(&path)?;
        let (incoming, file) = self.begin(key)?;
        let outcome = (|| {
            (&file).write_all(bytes).map_err(|error| fail("write", error))?;
            file.sync_data().map_err(|error| fail("sync", error))?;
            name_without_replacing(&incoming, &path).map_err(|error| fail("name", error))
        })();
        match outcome {
            Ok(true) => sync_directory(&directory),
            Ok(false) => {
                remove_quietly(&incoming);
                self.accept_existing(key, bytes.len() as u64).map(|_same| ())
            }
            Err(error) => {
                remove_quietly(&incoming);
                Err(error)
            }
        }
    }

    /// Whether the object is there already with this length, and then durable.
    fn accept_existing(&self, key: &str, length: u64) -> Result<bool> {
        let path = self.root.join(key);
        let fail = |error| Error::io(format!("object `{key}`"), error);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == IoKind::NotFound => return Ok(false),
            Err(error) => return Err(fail(error)),
        };
        let found = file.metadata().map_err(fail)?.len();
        if found != length {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "object `{key}`: there are {found} bytes, {length} were to be stored; \
                     delete it to store it again"
                ),
            ));
        }
        // Who named it may have died, or be about to sync: what we answer must be durable now.
        file.sync_data().map_err(fail)?;
        sync_directory(&self.make_parents(&path)?)?;
        Ok(true)
    }

    /// Makes the directories above `path` and returns the lowest; all are durable.
    fn make_parents(&self, path: &Path) -> Result<PathBuf> {
        let directory = path.parent().unwrap_or(&self.root).to_path_buf();
        let mut missing = Vec::new();
        {
            let durable = self.durable.lock();
            let mut at = directory.as_path();
            while at != self.root && !durable.contains(at) {
                missing.push(at.to_path_buf());
                let Some(above) = at.parent() else { break };
                at = above;
            }
        }
        for directory in missing.into_iter().rev() {
            create_durably(&directory)?;
            let mut durable = self.durable.lock();
            if durable.len() >= DURABLE_DIRECTORIES_MAX {
                durable.clear();
            }
            durable.insert(directory);
        }
        Ok(directory)
    }

    /// A new file in `.incoming/`, locked against the sweep of another host.
    fn begin(&self, key: &str) -> Result<(PathBuf, File)> {
        let fail = |error| Error::io(format!("object `{key}`: write in {INCOMING}/"), error);
        loop {
            let path = self.root.join(INCOMING).join(format!("{:032x}", rand::random::<u128>()));
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(fail)?;
            // A sweep may have come between the two calls: then the lock fails or the name is gone.
            let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            if locked && file.metadata().map_err(fail)?.nlink() > 0 {
                return Ok((path, file));
            }
            remove_quietly(&path);
        }
    }

    fn read(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        let fail = |error| Error::io(format!("object `{key}` in {}", self.root.display()), error);
        let file = File::open(self.root.join(key)).map_err(fail)?;
        let size = file.metadata().map_err(fail)?.len();
        let range = range.unwrap_or(0..size);
        if range.start > range.end || range.end > size {
            return Err(out_of_range(key, &range, size));
        }
        let length = usize::try_from(range.end - range.start).map_err(|error| {
            Error::new(ErrorKind::Invalid, format!("object `{key}`: range too long"))
                .with_source(error)
        })?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, range.start).map_err(fail)?;
        Ok(bytes.into())
    }

    fn size(&self, key: &str) -> Result<Option<u64>> {
        match std::fs::metadata(self.root.join(key)) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
            Ok(_directory) => Ok(None),
            Err(error) if matches!(error.kind(), IoKind::NotFound | IoKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(Error::io(format!("object `{key}`"), error)),
        }
    }

    fn delete(&self, key: &str) -> Result<()> {
        let path = self.root.join(key);
        match std::fs::remove_file(&path) {
            // The name must be gone for good before a caller counts on its space.
            Ok(()) => sync_directory(path.parent().unwrap_or(&self.root)),
            Err(error) if matches!(error.kind(), IoKind::NotFound | IoKind::NotADirectory) => {
                Ok(())
            }
            Err(error) => Err(Error::io(format!("object `{key}`: delete"), error)),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let (above, _rest) = prefix.rsplit_once('/').unwrap_or(("", prefix));
        if !above.is_empty() {
            key::check(above)?;
        }
        let mut keys = Vec::new();
        let mut waiting = vec![self.root.join(above)];
        while let Some(directory) = waiting.pop() {
            let fail = |error| Error::io(format!("list {}", directory.display()), error);
            let entries = match std::fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == IoKind::NotFound => continue,
                Err(error) => return Err(fail(error)),
            };
            for entry in entries {
                let entry = entry.map_err(fail)?;
                let path = entry.path();
                let Some(key) = path.strip_prefix(&self.root).ok().and_then(Path::to_str) else {
                    continue;
                };
                if key.starts_with('.') {
                    continue;
                }
                if entry.file_type().map_err(fail)?.is_dir() {
                    waiting.push(path);
                } else if key.starts_with(prefix) {
                    keys.push(key.to_owned());
                }
            }
        }
        keys.sort_unstable();
        Ok(keys)
    }
}

/// The error for a range that the object does not have.
pub(super) fn out_of_range(key: &str, range: &Range<u64>, size: u64) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!(
            "object `{key}`: bytes {}..{} were asked for and it has {size}; it is truncated, \
             take another copy",
            range.start, range.end
        ),
    )
}

/// Makes a directory and those above it, each durable in its parent.
fn create_durably(directory: &Path) -> Result<()> {
    let fail = |error| Error::io(format!("make {}", directory.display()), error);
    match std::fs::create_dir(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == IoKind::AlreadyExists && directory.is_dir() => {}
        Err(error) if error.kind() == IoKind::NotFound => {
            let Some(parent) = directory.parent() else { return Err(fail(error)) };
            create_durably(parent)?;
            match std::fs::create_dir(directory) {
                Err(error) if error.kind() != IoKind::AlreadyExists => return Err(fail(error)),
                _made => {}
            }
        }
        Err(error) => return Err(fail(error)),
    }
    directory.parent().map_or(Ok(()), sync_directory)
}

fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(|error| Error::io(format!("sync {}", directory.display()), error))
}

/// Gives the file its final name; `false` when the name is taken.
fn name_without_replacing(from: &Path, to: &Path) -> std::io::Result<bool> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => Ok(false),
        // File systems without RENAME_NOREPLACE: a second name does not replace either.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            match std::fs::hard_link(from, to) {
                Ok(()) => std::fs::remove_file(from).map(|()| true),
                Err(error) if error.kind() == IoKind::AlreadyExists => Ok(false),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes a file that nobody else knows of; what stays is swept at the next start.
fn remove_quietly(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != IoKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "an unfinished object stays until restart");
    }
}
