//! Records every change that the engine makes on its disk, and what its guest was told.

use pannier_engine::disk::{DiskOp, Observer};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
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

/// What a file is synced for, as its last write tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A segment's header, before its use.
    Header,
    /// Entries and data.
    Log,
    /// A seal.
    Seal,
    /// A file that is written whole: of a checkpoint.
    Whole,
}

/// Syncs that fail.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Failing {
    /// Only those for this purpose count.
    pub(crate) purpose: Option<Purpose>,
    /// Which of them fail, from 1 on.
    pub(crate) nth: Vec<usize>,
}

/// Sees every change of the disk.
#[derive(Default)]
pub(crate) struct Recorder {
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    events: Vec<Event>,
    running: HashMap<ThreadId, usize>,
    purposes: HashMap<u64, Purpose>,
    failing: Failing,
    /// Syncs that counted since `failing` was set.
    syncs: usize,
    /// Files of which a sync has failed.
    failed: HashSet<u64>,
}

impl Log {
    fn sync_fails(&mut self, file: u64) -> bool {
        assert!(!self.failed.contains(&file), "a file is synced again after its sync has failed");
        let purpose = self.purposes.get(&file).copied().unwrap_or(Purpose::Log);
        if self.failing.purpose.is_some_and(|only| only != purpose) {
            return false;
        }
        self.syncs += 1;
        let fails = self.failing.nth.contains(&self.syncs);
        if fails {
            self.failed.insert(file);
        }
        fails
    }
}

impl Recorder {
    pub(crate) fn begun(&self, operation: usize) {
        self.log.lock().events.push(Event::Begun(operation));
    }

    pub(crate) fn acknowledged(&self, operation: usize) {
        self.log.lock().events.push(Event::Acknowledged(operation));
    }

    /// Of the syncs of files from now on these fail.
    pub(crate) fn fail(&self, failing: &Failing) {
        let mut log = self.log.lock();
        (log.failing, log.syncs) = (failing.clone(), 0);
    }

    /// Everything until now.
    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.log.lock().events)
    }
}

impl Observer for Recorder {
    fn before(&self, op: &DiskOp<'_>) -> io::Result<()> {
        let owned = |path: &Path| path.to_owned();
        let mut log = self.log.lock();
        let event = match *op {
            DiskOp::Create { file, path, length } => {
                if path.extension().is_some_and(|extension| extension == "tmp") {
                    log.purposes.insert(file, Purpose::Whole);
                }
                Event::Create { file, path: owned(path), length }
            }
            DiskOp::Open { file, path } => Event::Open { file, path: owned(path) },
            DiskOp::Write { file, offset, data } => {
                let data = data.iter().flat_map(|slice| slice.iter().copied()).collect();
                let purpose = match offset {
                    0 => Purpose::Header,
                    4096 => Purpose::Seal,
                    _ => Purpose::Log,
                };
                if log.purposes.get(&file) != Some(&Purpose::Whole) {
                    log.purposes.insert(file, purpose);
                }
                Event::Write { file, offset, data }
            }
            DiskOp::Sync { file } if log.sync_fails(file) => {
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
