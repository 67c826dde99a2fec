//! The seam between the engine and its local disk: few operations, each of which a test can record
//! (to make crash images) or fail (full disk, failed fdatasync).

use crate::error::{Error, Result};
use rustix::fs::FallocateFlags;
use rustix::io::ReadWriteFlags;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Longest list of slices that one `pwritev` takes (`IOV_MAX` of Linux).
const IOV_MAX: usize = 1024;

/// A change that is about to happen on the disk. `file` is the number under which the file was
/// created or opened; it stays the same when the file is renamed.
#[derive(Debug)]
pub enum DiskOp<'a> {
    /// A file of `length` bytes is created (space allocated, reads as zero).
    Create {
        /// Number of the file.
        file: u64,
        /// Where.
        path: &'a Path,
        /// Its length in bytes.
        length: u64,
    },
    /// A file that exists is opened.
    Open {
        /// Number of the file.
        file: u64,
        /// Where it is.
        path: &'a Path,
    },
    /// Bytes are written.
    Write {
        /// Number of the file.
        file: u64,
        /// First byte.
        offset: u64,
        /// The bytes, in pieces.
        data: &'a [IoSlice<'a>],
    },
    /// The file's data is synced (`fdatasync`).
    Sync {
        /// Number of the file.
        file: u64,
    },
    /// A file is renamed, replacing what was at `to`.
    Rename {
        /// From.
        from: &'a Path,
        /// To.
        to: &'a Path,
    },
    /// A file is removed.
    Remove {
        /// Where it was.
        path: &'a Path,
    },
    /// A directory is synced.
    SyncDir {
        /// Which.
        path: &'a Path,
    },
}

/// Sees every change before it happens, and may fail it.
pub trait Observer: Send + Sync + 'static {
    /// Called before each operation.
    ///
    /// # Errors
    /// An error makes the operation fail with it, without being done.
    fn before(&self, op: &DiskOp<'_>) -> io::Result<()>;

    /// Called after a write, a sync or a sync of a directory that succeeded.
    fn after(&self, _op: &DiskOp<'_>) {}
}

/// Number of `cachestat(2)`, the same on all architectures.
const SYS_CACHESTAT: libc::c_long = 451;

#[repr(C)]
struct CachestatRange {
    off: u64,
    len: u64,
}

#[repr(C)]
#[derive(Default)]
struct Cachestat {
    nr_cache: u64,
    nr_dirty: u64,
    nr_writeback: u64,
    nr_evicted: u64,
    nr_recently_evicted: u64,
}

/// The local disk.
#[derive(Clone, Default)]
pub struct Disk {
    observer: Option<Arc<dyn Observer>>,
}

/// Numbers for files, so that an observer can tell them apart across renames.
static FILES: AtomicU64 = AtomicU64::new(1);

impl Disk {
    /// The disk, every change of which `observer` sees first.
    #[must_use]
    pub fn observed(observer: Arc<dyn Observer>) -> Self {
        Self { observer: Some(observer) }
    }

    fn observe(&self, op: &DiskOp<'_>) -> io::Result<()> {
        match &self.observer {
            None => Ok(()),
            Some(observer) => observer.before(op),
        }
    }

    fn observe_done(&self, op: &DiskOp<'_>) {
        if let Some(observer) = &self.observer {
            observer.after(op);
        }
    }

    /// Creates a file with `length` bytes of allocated space.
    ///
    /// # Errors
    /// `NoSpace` (the file is then removed again), or `Unavailable`.
    pub fn create(&self, path: &Path, length: u64) -> Result<DiskFile> {
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let make = || {
            self.observe(&DiskOp::Create { file: number, path, length })?;
            let file =
                OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
            if length > 0
                && let Err(error) = allocate(&file, length)
            {
                drop(file);
                std::fs::remove_file(path)?;
                return Err(error);
            }
            Ok(file)
        };
        let file = make().map_err(|e| Error::io(format_args!("create {}", path.display()), e))?;
        no_read_ahead(&file);
        Ok(DiskFile { file, number, disk: self.clone() })
    }

    /// Opens a file that exists, for reading and writing.
    ///
    /// # Errors
    /// `NotFound` or `Unavailable`.
    pub fn open(&self, path: &Path) -> Result<DiskFile> {
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let open = || {
            self.observe(&DiskOp::Open { file: number, path })?;
            OpenOptions::new().read(true).write(true).open(path)
        };
        let file = open().map_err(|e| Error::io(format_args!("open {}", path.display()), e))?;
        no_read_ahead(&file);
        Ok(DiskFile { file, number, disk: self.clone() })
    }

    /// Renames a file; durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// `NotFound` or `Unavailable`.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.observe(&DiskOp::Rename { from, to }).and_then(|()| std::fs::rename(from, to)).map_err(
            |e| Error::io(format_args!("rename {} to {}", from.display(), to.display()), e),
        )
    }

    /// Removes a file; one that is not there is no error.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn remove(&self, path: &Path) -> Result<()> {
        let removed =
            self.observe(&DiskOp::Remove { path }).and_then(|()| std::fs::remove_file(path));
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format_args!("remove {}", path.display()), error))
            }
            _ => Ok(()),
        }
    }

    /// Makes creations, renames and removals in a directory durable.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn sync_dir(&self, path: &Path) -> Result<()> {
        let op = DiskOp::SyncDir { path };
        self.observe(&op)
            .and_then(|()| File::open(path)?.sync_all())
            .map_err(|e| Error::io(format_args!("sync directory {}", path.display()), e))?;
        self.observe_done(&op);
        Ok(())
    }

    /// Creates a directory and its parents.
    ///
    /// # Errors
    /// `NoSpace` or `Unavailable`.
    pub fn create_dir(&self, path: &Path) -> Result<()> {
        std::fs::create_dir_all(path)
            .map_err(|e| Error::io(format_args!("create directory {}", path.display()), e))
    }

    /// The paths in a directory; none when it does not exist.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn list(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let read = || -> io::Result<Vec<PathBuf>> {
            std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect()
        };
        match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => {
                other.map_err(|e| Error::io(format_args!("list directory {}", path.display()), e))
            }
        }
    }

    /// The content of a small file; `None` when there is none.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn read_file(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format_args!("read {}", path.display()), error)),
        }
    }

    /// Writes a file whole under a temporary name and gives it its name, replacing what was there:
    /// after a crash either the old or the new content is there. Durable when it returns.
    ///
    /// # Errors
    /// `NoSpace` or `Unavailable`.
    pub fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let parent = path.parent().unwrap_or(Path::new("."));
        self.write_named(path, bytes)?;
        self.sync_dir(parent)
    }

    /// As [`Disk::replace`] without syncing the directory, for several files of one directory.
    ///
    /// # Errors
    /// `NoSpace` or `Unavailable`.
    pub fn write_named(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = temporary_of(path);
        let file = self.create(&temporary, 0)?;
        let written = file
            .write_at(bytes, 0)
            .and_then(|()| file.sync())
            .map_err(|e| Error::io(format_args!("write {}", temporary.display()), e));
        if let Err(error) = written {
            drop(file);
            self.remove(&temporary)?;
            return Err(error);
        }
        self.rename(&temporary, path)
    }
}

/// Name under which a file is written before it gets its own.
fn temporary_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

/// The page cache shall have only what was written here, or read and checked here: bytes that the
/// kernel reads ahead would be found there by [`DiskFile::read_cached`] without having been
/// checked.
fn no_read_ahead(file: &File) {
    if let Err(error) = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random) {
        tracing::debug!(%error, "the kernel may read ahead");
    }
}

/// Allocates space; where the file system cannot, makes the file sparse with the length.
fn allocate(file: &File, length: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length) {
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(length),
        other => Ok(other?),
    }
}

/// An open file.
pub struct DiskFile {
    file: File,
    number: u64,
    disk: Disk,
}

impl DiskFile {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// Of the system.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.disk.observer.is_none() {
            return self.file.write_all_at(bytes, offset);
        }
        let op = DiskOp::Write { file: self.number, offset, data: &[IoSlice::new(bytes)] };
        self.disk.observe(&op)?;
        self.file.write_all_at(bytes, offset)?;
        self.disk.observe_done(&op);
        Ok(())
    }

    /// Writes all slices, one behind the other, from `offset`.
    ///
    /// # Errors
    /// Of the system.
    pub fn write_vectored_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        if self.disk.observer.is_some() {
            // One copy, so that the observer sees the write as one.
            let whole: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
            return self.write_at(&whole, offset);
        }
        let (mut slices, mut offset) = (slices, offset);
        while !slices.is_empty() {
            let count = slices.len().min(IOV_MAX);
            let written = match rustix::io::pwritev(&self.file, &slices[..count], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            offset += written as u64;
            IoSlice::advance_slices(&mut slices, written);
        }
        Ok(())
    }

    /// Reads `into.len()` bytes; waits for the disk.
    ///
    /// # Errors
    /// Of the system; `UnexpectedEof` behind the end of the file.
    pub fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    /// Whether a range is wholly in the page cache, or on its way into it. A read that does not
    /// wait cannot tell: it begins to read from the disk what it misses, and may find it when the
    /// disk is fast. Where the kernel has no `cachestat` (before Linux 6.5) the answer is always
    /// no.
    #[must_use]
    pub fn is_cached(&self, offset: u64, length: u64) -> bool {
        let pages = (offset + length).div_ceil(4096) - offset / 4096;
        let range = CachestatRange { off: offset, len: length };
        let mut found = Cachestat::default();
        // SAFETY: both structures live during the call and have the layout that the kernel's
        // `cachestat(2)` defines; the kernel only reads `range` and only writes `found`.
        let failed = unsafe {
            libc::syscall(
                SYS_CACHESTAT,
                self.file.as_raw_fd(),
                std::ptr::from_ref(&range),
                std::ptr::from_mut(&mut found),
                0,
            )
        };
        failed == 0 && found.nr_cache >= pages
    }

    /// Reads what is in the page cache without waiting; returns how many of the first bytes of
    /// `into` that was.
    ///
    /// # Errors
    /// Of the system.
    pub fn read_cached(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            let slice = &mut [IoSliceMut::new(&mut into[done..])];
            let at = offset + done as u64;
            match rustix::io::preadv2(&self.file, slice, at, ReadWriteFlags::NOWAIT) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok(done),
                Ok(read) => done += read,
                Err(rustix::io::Errno::OPNOTSUPP) => {
                    self.file.read_exact_at(&mut into[done..], at)?;
                    return Ok(into.len());
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    /// Drops a range that was found damaged from the page cache, so that it is read and checked
    /// anew after a restart.
    pub fn forget_cached(&self, offset: u64, length: u64) {
        let length = std::num::NonZeroU64::new(length);
        let dropped = rustix::fs::fadvise(&self.file, offset, length, rustix::fs::Advice::DontNeed);
        if let Err(error) = dropped {
            tracing::debug!(%error, "damaged bytes stay in the page cache");
        }
    }

    /// Makes what was written durable (`fdatasync`). Never call it again after it failed: the
    /// kernel has marked the pages clean.
    ///
    /// # Errors
    /// Of the system.
    pub fn sync(&self) -> io::Result<()> {
        let op = DiskOp::Sync { file: self.number };
        self.disk.observe(&op)?;
        self.file.sync_data()?;
        self.disk.observe_done(&op);
        Ok(())
    }

    /// Gives the space of a range back, which then reads as zeros. For bytes that nothing names:
    /// no observer is told.
    ///
    /// # Errors
    /// Of the system.
    pub fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, hole, offset, length)?)
    }

    /// The file's length in bytes.
    ///
    /// # Errors
    /// Of the system.
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_bytes_are_read_and_faults_arrive() {
        struct Fail;
        impl Observer for Fail {
            fn before(&self, op: &DiskOp<'_>) -> io::Result<()> {
                match op {
                    DiskOp::Sync { .. } => Err(io::Error::from_raw_os_error(5)),
                    _ => Ok(()),
                }
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::observed(Arc::new(Fail));
        let file = disk.create(&dir.path().join("a"), 3 * 4096).unwrap();
        let pages: Vec<Vec<u8>> = (1..=2).map(|byte| vec![byte; 4096]).collect();
        let mut slices: Vec<_> = pages.iter().map(|page| IoSlice::new(page)).collect();
        file.write_vectored_at(&mut slices, 4096).unwrap();
        let mut read = vec![9; 3 * 4096];
        assert_eq!(file.read_cached(&mut read[4096..], 4096).unwrap(), 2 * 4096);
        file.read_at(&mut read, 0).unwrap();
        assert_eq!(read, [vec![0; 4096], pages[0].clone(), pages[1].clone()].concat());
        assert!(file.sync().is_err());
        assert!(disk.replace(&dir.path().join("b"), b"x").is_err());
        assert!(!dir.path().join("b.tmp").exists());
    }
}
