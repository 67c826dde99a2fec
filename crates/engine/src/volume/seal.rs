//! Hashing and sealing: one thread per host, of low priority, never in the guest's path.
//!
//! It gets segments whose entries are durable. What it reads back is in the page cache as a rule;
//! each entry's CRC is checked before its blocks are hashed, so that a page that the disk returned
//! wrong never gets a hash.

use super::Volume;
use super::journal::{Closed, SealSource};
use super::segment::{Hashed, Sealed, Segment, read_segment};
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::pool::PoolFile;
use crate::worker::lower_priority;
use pannier_core::format::segment::{Entry, EntryKind, PAGE_BYTES, Recovered, SEAL_PAGE, Sealing};
use pannier_core::ids::{BlockHash, HashKey};
use std::io;
use std::sync::{Arc, Weak, mpsc};

/// Work for the sealer.
pub(crate) enum Job {
    /// Hash durable entries of an open segment.
    Hash { segment: Arc<Segment>, file: Arc<PoolFile>, first: u32, entries: Vec<Entry> },
    /// Seal a closed segment that is durable.
    Seal { volume: Weak<Volume>, closed: Arc<Closed> },
}

/// The host's sealer.
pub(crate) struct Sealer {
    jobs: mpsc::Sender<Job>,
}

impl Sealer {
    /// Starts the thread; it ends when the sealer is dropped.
    ///
    /// # Errors
    /// `Unavailable` when no thread can be had.
    pub(crate) fn start(key: HashKey) -> Result<Self> {
        let (jobs, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name("pannier-sealer".to_owned())
            .spawn(move || {
                lower_priority();
                for job in queue {
                    run(job, &key);
                }
            })
            .map_err(|e| Error::io("start the sealer", e))?;
        Ok(Self { jobs })
    }

    /// Hands work over. The queue is bounded by what a volume may have unsealed.
    pub(crate) fn send(&self, job: Job) {
        // The thread ends only with its queue, which this is the other end of.
        self.jobs.send(job).unwrap_or_default();
    }
}

fn run(job: Job, key: &HashKey) {
    match job {
        Job::Hash { segment, file, first, entries } => {
            if let Err(error) = hash(&segment, &file, first, &entries, key) {
                tracing::warn!(segment = %segment.name, %error, "hashing ahead failed");
            }
        }
        Job::Seal { volume, closed } => {
            let Some(volume) = volume.upgrade() else { return };
            let sealed = seal(&volume, &closed, key);
            volume.sealed(&closed, sealed);
        }
    }
}

/// Hashes the data of entries, of which `first` is the index of the first, unless that was done.
fn hash(
    segment: &Segment,
    file: &PoolFile,
    first: u32,
    entries: &[Entry],
    key: &HashKey,
) -> Result<()> {
    let done = segment.hashed.lock().entries;
    if segment.sealed().is_some() || done < first {
        return Ok(());
    }
    let mut buffer = Vec::new();
    for entry in entries.iter().skip((done - first) as usize) {
        let mut pages = Vec::new();
        if let EntryKind::Data { page, count, .. } = entry.kind {
            buffer.resize(count as usize * PAGE_BYTES, 0);
            let what = || format!("read {} to hash it", file.path().display());
            file.read_at(&mut buffer, page.byte_offset()).map_err(|e| Error::io(what(), e))?;
            if !entry.data_matches(&buffer) {
                let text = format!("{}: page {} is damaged on the disk", what(), page.0);
                return Err(Error::new(ErrorKind::Corrupt, text));
            }
            let blocks = buffer.chunks_exact(PAGE_BYTES).zip(page.0..);
            pages.extend(
                blocks
                    .map(|(block, page)| (pannier_core::units::PageIndex(page), key.block(block))),
            );
        }
        let mut hashed = segment.hashed.lock();
        hashed.pages.extend(pages);
        hashed.entries += 1;
    }
    Ok(())
}

fn seal(volume: &Volume, closed: &Closed, key: &HashKey) -> Result<Sealed> {
    let entries = match &*closed.source.lock() {
        SealSource::Writer(writer) => writer.entries_from(0).to_vec(),
        SealSource::Recovered(open) => open.entries().to_vec(),
        SealSource::Taken => return Err(Error::new(ErrorKind::Internal, "sealed twice")),
    };
    hash(&closed.segment, &closed.file, 0, &entries, key)?;
    let table: Vec<BlockHash> = {
        let Hashed { pages, .. } = &mut *closed.segment.hashed.lock();
        pages.iter().map(|(_, hash)| *hash).collect()
    };
    let source = std::mem::replace(&mut *closed.source.lock(), SealSource::Taken);
    let sealing = match source {
        SealSource::Writer(mut writer) => writer.seal(table, key),
        SealSource::Recovered(open) => open.seal(table, key),
        SealSource::Taken => return Err(Error::new(ErrorKind::Internal, "sealed twice")),
    };
    let path = || closed.file.path().display().to_string();
    let written = if closed.failed {
        Err(Error::new(ErrorKind::Unavailable, "its last fdatasync failed"))
    } else {
        write_seal(&closed.file, &sealing).map_err(|e| Error::io("fdatasync of the seal", e))
    };
    if let Err(error) = written {
        tracing::warn!(file = %path(), %error, "the segment is sealed as a copy");
        seal_copy(volume, closed, &entries, &sealing)
            .map_err(|e| Error::new(e.kind(), format!("seal {}: {e}", path())).with_source(e))?;
    }
    let sealed = Sealed { hash: sealing.hash(), entries: entries.len() as u32 };
    let meta = Arc::new(sealing.into_meta());
    volume.metas.lock().put(closed.segment.name, meta);
    Ok(sealed)
}

fn write_seal(file: &PoolFile, sealing: &Sealing) -> io::Result<()> {
    file.write_at(sealing.bytes(), sealing.page().byte_offset())?;
    file.write_at(&sealing.record()[..], SEAL_PAGE.byte_offset())?;
    file.sync()
}

/// Seals a segment in another file, which takes the place of its own: an fdatasync of that one has
/// failed and is not repeated.
fn seal_copy(volume: &Volume, closed: &Closed, entries: &[Entry], sealing: &Sealing) -> Result<()> {
    let mut files = 1;
    loop {
        let error = match try_seal_copy(volume, closed, entries, sealing) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        volume.context.disk.remove(&volume.copy_path(closed.segment.name))?;
        if files == limits::FAILED_FILES_MAX {
            return Err(error);
        }
        tracing::warn!(segment = %closed.segment.name, %error, "another file is taken");
        files += 1;
    }
}

fn try_seal_copy(
    volume: &Volume,
    closed: &Closed,
    entries: &[Entry],
    sealing: &Sealing,
) -> Result<()> {
    let name = closed.segment.name;
    let copy = volume.context.pool.take(&volume.copy_path(name))?;
    // No power loss then brings back a name that the file has had before, with this in it.
    volume.context.disk.sync_dir(&volume.dir.join("segments"))?;
    let what = || format!("copy {} to {}", closed.file.path().display(), copy.path().display());
    let mut buffer = vec![0; limits::ENTRY_PAGES_MAX as usize * PAGE_BYTES];
    let (mut at, end) = (0, sealing.page().byte_offset());
    while at < end {
        let part = &mut buffer[..(end - at).min(limits::ENTRY_PAGES_MAX as u64 * 4096) as usize];
        let copied = closed.file.read_at(part, at).and_then(|()| copy.write_at(part, at));
        copied.map_err(|e| Error::io(what(), e))?;
        at += part.len() as u64;
    }
    write_seal(&copy, sealing).map_err(|e| Error::io(what(), e))?;
    let damaged = || Error::new(ErrorKind::Corrupt, format!("{}: not what was sealed", what()));
    match read_segment(&copy, &volume.context.key)? {
        Recovered::Sealed(found)
            if found.repair.is_none() && found.meta.hash() == sealing.hash() => {}
        Recovered::Sealed(_) | Recovered::Open(_) => return Err(damaged()),
    }
    for entry in entries {
        let EntryKind::Data { page, count, .. } = entry.kind else { continue };
        buffer.resize(count as usize * PAGE_BYTES, 0);
        copy.read_at(&mut buffer, page.byte_offset()).map_err(|e| Error::io(what(), e))?;
        if !entry.data_matches(&buffer) {
            return Err(damaged());
        }
    }
    copy.rename(&volume.context.disk, &volume.segment_path(name))?;
    volume.context.disk.sync_dir(&volume.dir.join("segments"))?;
    closed.segment.set_file(Some(Arc::new(copy)));
    Ok(())
}

impl Volume {
    /// A segment is sealed, or cannot be.
    fn sealed(&self, closed: &Closed, sealed: Result<Sealed>) {
        let mut journal = self.journal.lock();
        match sealed {
            Ok(sealed) => {
                closed.segment.set_sealed(sealed);
                journal.unsealed -= 1;
            }
            Err(error) => self.fail(&mut journal, error),
        }
        drop(journal);
        self.context.residency.note(self, &closed.segment);
        self.news.notify_waiters();
        self.room.notify_waiters();
        self.work_due.notify_one();
    }
}
