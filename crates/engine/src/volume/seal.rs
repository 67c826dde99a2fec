//! Hashing and sealing: one thread per host, of low priority, never in the guest's path.
//!
//! It gets segments whose entries are durable. What it reads back is in the page cache as a rule;
//! each entry's CRC is checked before its blocks are hashed, so that a page that the disk returned
//! wrong never gets a hash.

use super::Volume;
use super::journal::{Closed, SealSource};
use super::segment::{Hashed, Sealed, Segment};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::PoolFile;
use crate::worker::lower_priority;
use pannier_core::format::segment::{Entry, EntryKind, PAGE_BYTES, SEAL_PAGE};
use pannier_core::ids::{BlockHash, HashKey};
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
    let file = &closed.file;
    let write = || {
        file.write_at(sealing.bytes(), sealing.page().byte_offset())?;
        file.write_at(&sealing.record()[..], SEAL_PAGE.byte_offset())?;
        file.sync()
    };
    // The groups are durable already. A failed fdatasync has marked its pages clean, so they are
    // written again before another one says whether they are durable.
    let written = write().or_else(|error| {
        tracing::warn!(file = %file.path().display(), %error, "a seal is written again");
        write()
    });
    written.map_err(|e| Error::io(format!("seal {}", file.path().display()), e))?;
    let sealed = Sealed { hash: sealing.hash(), entries: entries.len() as u32 };
    let meta = Arc::new(sealing.into_meta());
    volume.metas.lock().put(closed.segment.name, meta);
    Ok(sealed)
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
