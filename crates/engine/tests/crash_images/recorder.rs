//! Records every change that the engine makes on its disk, and what its guest was told.

use pannier_engine::disk::{DiskOp, Observer};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ThreadId;

/// What happened, in order. Operations that take time have a beginning and an end: at a crash
/// between the two anything of them may have been done.
#[derive(Debug)]
pub(crate) enum Event {
    Create {
        file: u64,
        path: PathBuf,
        length: u64,
    },
    Open {
        file: u64,
        path: PathBuf,
    },
    Write {
        file: u64,
        offset: u64,
        data: Vec<u8>,
    },
    Sync {
        file: u64,
    },
    SyncFailed {
        file: u64,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    SyncDir {
        path: PathBuf,
    },
    /// The write, sync or directory sync that began at this event has ended well.
    Done {
        begun: usize,
    },
    /// The guest has begun its operation with this number.
    Begun(usize),
    /// It was told that the operation succeeded.
    Acknowledged(usize),
}

/// Sees every change of the disk.
#[derive(Default)]
pub(crate) struct Recorder {
    log: Mutex<Log>,
    /// Syncs until one fails; 0 is none.
    fail_in: AtomicUsize,
}

#[derive(Default)]
struct Log {
    events: Vec<Event>,
    running: HashMap<ThreadId, usize>,
}

impl Recorder {
    pub(crate) fn begun(&self, operation: usize) {
        self.log.lock().events.push(Event::Begun(operation));
    }

    pub(crate) fn acknowledged(&self, operation: usize) {
        self.log.lock().events.push(Event::Acknowledged(operation));
    }

    /// The `n`th sync of a file from now on fails.
    pub(crate) fn fail_sync_in(&self, n: usize) {
        self.fail_in.store(n, Ordering::SeqCst);
    }

    /// Everything until now.
    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.log.lock().events)
    }

    fn sync_fails(&self) -> bool {
        let step = |left: usize| left.checked_sub(1);
        self.fail_in.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step) == Ok(1)
    }
}

impl Observer for Recorder {
    fn before(&self, op: &DiskOp<'_>) -> io::Result<()> {
        let owned = |path: &Path| path.to_owned();
        let mut log = self.log.lock();
        let event = match *op {
            DiskOp::Create { file, path, length } => {
                Event::Create { file, path: owned(path), length }
            }
            DiskOp::Open { file, path } => Event::Open { file, path: owned(path) },
            DiskOp::Write { file, offset, data } => {
                let data = data.iter().flat_map(|slice| slice.iter().copied()).collect();
                Event::Write { file, offset, data }
            }
            DiskOp::Sync { file } if self.sync_fails() => {
                log.events.push(Event::SyncFailed { file });
                return Err(io::Error::from_raw_os_error(5));
            }
            DiskOp::Sync { file } => Event::Sync { file },
            DiskOp::Rename { from, to } => Event::Rename { from: owned(from), to: owned(to) },
            DiskOp::Remove { path } => Event::Remove { path: owned(path) },
            DiskOp::SyncDir { path } => Event::SyncDir { path: owned(path) },
        };
        let begun = log.events.len();
        log.running.insert(std::thread::current().id(), begun);
        log.events.push(event);
        Ok(())
    }

    fn after(&self, _op: &DiskOp<'_>) {
        let mut log = self.log.lock();
        if let Some(begun) = log.running.remove(&std::thread::current().id()) {
            log.events.push(Event::Done { begun });
        }
    }
}
