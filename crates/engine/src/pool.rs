//! Segment files that were written once before: a flush into one of them needs no commit of the
//! file system's journal. Also the reserve for what must be written on a full disk.
//!
//! A file goes back to the pool by a rename, and is taken again only when its last handle is
//! closed: a reader that holds one never sees another segment's bytes.

use crate::context::LocalConfig;
use crate::disk::{Disk, DiskFile};
use crate::error::Result;
use crate::limits;
use parking_lot::Mutex;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The host's pool of segment files.
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    disk: Disk,
    dir: PathBuf,
    file_bytes: u64,
    files_max: usize,
    state: Mutex<State>,
}

struct State {
    free: Vec<PathBuf>,
    next_name: u64,
}

/// An open segment file. When it was recycled, closing the last handle gives it to the pool.
pub struct PoolFile {
    file: DiskFile,
    path: Mutex<PathBuf>,
    recycled: Mutex<Option<Arc<Shared>>>,
}

impl Deref for PoolFile {
    type Target = DiskFile;

    fn deref(&self) -> &DiskFile {
        &self.file
    }
}

impl PoolFile {
    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.path.lock().clone()
    }

    /// Renames the file within its volume; the caller syncs the directory.
    ///
    /// # Errors
    /// `Unavailable`; it then has its old name.
    pub(crate) fn rename(&self, disk: &Disk, to: &Path) -> Result<()> {
        let mut path = self.path.lock();
        disk.rename(&path, to)?;
        *path = to.to_owned();
        Ok(())
    }
}

impl Drop for PoolFile {
    fn drop(&mut self) {
        if let Some(pool) = self.recycled.lock().take() {
            pool.take_back(self.path.lock().clone());
        }
    }
}

impl Shared {
    /// A recycled file has no handle any more: it is free, or too many are.
    fn take_back(&self, path: PathBuf) {
        let mut state = self.state.lock();
        if state.free.len() < self.files_max {
            state.free.push(path);
            return;
        }
        drop(state);
        if let Err(error) = self.disk.remove(&path) {
            tracing::warn!(%error, "a segment file beyond the pool's bound stays");
        }
    }

    fn reserve(&self) -> PathBuf {
        self.dir.join("reserve")
    }
}

impl Pool {
    /// Opens the pool's directory.
    ///
    /// # Errors
    /// `NoSpace` or `Unavailable`.
    pub fn open(disk: &Disk, dir: &Path, config: &LocalConfig) -> Result<Self> {
        disk.create_dir(dir)?;
        let file_bytes = u64::from(config.segment_pages) * 4096;
        let files_max = (config.pool_bytes / file_bytes) as usize;
        let (mut free, mut next_name) = (Vec::new(), 0);
        for path in disk.list(dir)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(number) = name.strip_suffix(".segment").and_then(|n| n.parse::<u64>().ok())
            else {
                continue;
            };
            next_name = next_name.max(number + 1);
            if free.len() < files_max && disk.open(&path)?.length().ok() == Some(file_bytes) {
                free.push(path);
            } else {
                disk.remove(&path)?;
            }
        }
        let state = Mutex::new(State { free, next_name });
        let shared =
            Shared { disk: disk.clone(), dir: dir.to_owned(), file_bytes, files_max, state };
        let pool = Self { shared: Arc::new(shared) };
        pool.take_reserve();
        Ok(pool)
    }

    /// Takes a file, or makes a new one, and puts it at `path`. Its content is whatever an earlier
    /// use left. The caller syncs the directory.
    ///
    /// # Errors
    /// `NoSpace` or `Unavailable`.
    pub fn take(&self, path: &Path) -> Result<PoolFile> {
        let disk = &self.shared.disk;
        let free = self.shared.state.lock().free.pop();
        let file = match free {
            Some(from) => {
                let file = disk.open(&from)?;
                disk.rename(&from, path)?;
                file
            }
            None => disk.create(path, self.shared.file_bytes)?,
        };
        Ok(PoolFile { file, path: Mutex::new(path.to_owned()), recycled: Mutex::new(None) })
    }

    /// Opens a segment file that is in use by a volume.
    ///
    /// # Errors
    /// `NotFound` or `Unavailable`.
    pub fn open_file(&self, path: &Path) -> Result<PoolFile> {
        let file = self.shared.disk.open(path)?;
        Ok(PoolFile { file, path: Mutex::new(path.to_owned()), recycled: Mutex::new(None) })
    }

    /// Takes a file out of its volume: nothing durable names it any more.
    ///
    /// # Errors
    /// `Unavailable`; the file then stays where it is.
    pub fn recycle(&self, file: &PoolFile) -> Result<()> {
        let number = {
            let mut state = self.shared.state.lock();
            state.next_name += 1;
            state.next_name - 1
        };
        let to = self.shared.dir.join(format!("{number}.segment"));
        let mut path = file.path.lock();
        if file.length().ok() != Some(self.shared.file_bytes) {
            return self.shared.disk.remove(&path);
        }
        self.shared.disk.rename(&path, &to)?;
        *path = to;
        *file.recycled.lock() = Some(Arc::clone(&self.shared));
        Ok(())
    }

    /// Files that wait for their next use.
    #[must_use]
    pub fn free_files(&self) -> usize {
        self.shared.state.lock().free.len()
    }

    /// Frees the reserved space.
    pub fn release_reserve(&self) {
        if let Err(error) = self.shared.disk.remove(&self.shared.reserve()) {
            tracing::warn!(%error, "the reserved space is not freed");
        }
    }

    /// Reserves the space again, if the disk has it.
    pub fn take_reserve(&self) {
        let path = self.shared.reserve();
        if path.exists() {
            return;
        }
        if let Err(error) = self.shared.disk.create(&path, limits::RESERVE_BYTES) {
            tracing::warn!(%error, "no space is reserved for seals and checkpoints; free some");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_free_when_its_last_handle_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let config =
            LocalConfig { segment_pages: 8, pool_bytes: 2 * 8 * 4096, ..LocalConfig::default() };
        let disk = Disk::default();
        let pool = Pool::open(&disk, &dir.path().join("pool"), &config).unwrap();
        let files: Vec<_> =
            (0..3).map(|n| Arc::new(pool.take(&dir.path().join(n.to_string())).unwrap())).collect();
        files[0].write_at(&[7; 4096], 0).unwrap();
        let reader = Arc::clone(&files[0]);
        for file in &files {
            pool.recycle(file).unwrap();
        }
        drop(files);
        assert_eq!(pool.free_files(), 2, "the reader still has the first");
        let again = pool.take(&dir.path().join("again")).unwrap();
        again.write_at(&[9; 4096], 0).unwrap();
        let mut page = vec![0; 4096];
        reader.read_at(&mut page, 0).unwrap();
        assert_eq!(page, vec![7; 4096]);
        drop(reader);
        assert_eq!(pool.free_files(), 2);
        drop((again, pool));
        let reopened = Pool::open(&disk, &dir.path().join("pool"), &config).unwrap();
        assert_eq!(reopened.free_files(), 2);
    }
}
