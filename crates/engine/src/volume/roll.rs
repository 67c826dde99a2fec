//! From one segment to the next: the one behind is prepared ahead, with a synced header, so that a
//! writer never waits for it.

use super::Volume;
use super::journal::{Closed, Journal, LogSegment, Open, Prepared, SealSource};
use super::segment::Segment;
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::pool::PoolFile;
use pannier_core::format::segment::{Header, PAGE_BYTES, SEAL_PAGE, SegmentWriter};
use pannier_core::ids::SegmentName;
use parking_lot::MutexGuard;
use std::sync::Arc;

impl Volume {
    /// Closes the open segment, if there is one with entries, and opens the prepared one.
    pub(crate) fn roll(&self, journal: &mut MutexGuard<'_, Journal>) {
        self.close_open(journal);
        let prepared = journal.next.take().expect("a segment is prepared");
        assert!(journal.open.is_none(), "one segment is open at a time");
        let predecessor = prepared.header.predecessor;
        assert_eq!(predecessor, journal.end.segment, "a segment follows the end of the log");
        let name = prepared.header.name;
        let segment = Segment::new(name, Some(Arc::clone(&prepared.file)));
        let index = self.map.write().add(&segment);
        let writer = SegmentWriter::new(prepared.header, journal.link());
        journal.open = Some(Open { segment, index, file: prepared.file, writer });
        self.start_prepare(journal);
    }

    /// Closes the open segment if it has entries: it is synced, hashed and sealed in the
    /// background.
    pub(crate) fn close_open(&self, journal: &mut MutexGuard<'_, Journal>) {
        if journal.open.as_ref().is_none_or(|open| open.writer.entries() == 0) {
            return;
        }
        journal.end = journal.position();
        let Some(open) = journal.open.take() else { return };
        let (entries, chain_crc) = (open.writer.entries(), open.writer.last_chain_crc());
        let segment = Arc::clone(&open.segment);
        segment.set_entries(open.writer.entries_from(0));
        journal.log.insert(segment.name.sequence, LogSegment { segment, entries, chain_crc });
        let source = parking_lot::Mutex::new(SealSource::Writer(Box::new(open.writer)));
        let closed = Closed { segment: open.segment, file: open.file, source, failed: false };
        journal.closed.push_back(Arc::new(closed));
        journal.unsealed += 1;
        self.start_sync(journal);
    }

    /// Begins to prepare the segment behind the open one, if none is and none is being.
    pub(crate) fn start_prepare(&self, journal: &mut MutexGuard<'_, Journal>) {
        if journal.preparing || journal.next.is_some() {
            return;
        }
        let Ok(this) = self.this() else { return };
        let header = self.next_header(journal);
        journal.preparing = true;
        self.context.runtime.spawn_blocking(move || {
            let prepared = this.prepare(&header, true);
            let mut journal = this.journal.lock();
            journal.preparing = false;
            journal.note_prepared(this.id, prepared.as_ref().err());
            match prepared {
                Ok(prepared) if journal.wants(&prepared.header) => journal.next = Some(prepared),
                Ok(prepared) => this.give_back(&prepared.file),
                Err(error) => {
                    // A rescue may have taken a name behind it meanwhile.
                    if journal.last_sequence == header.name.sequence {
                        journal.last_sequence.0 -= 1;
                    }
                    journal.prepare_error = Some(error);
                }
            }
            drop(journal);
            this.room.notify_waiters();
        });
    }

    /// The header of the segment behind the open one.
    pub(crate) fn next_header(&self, journal: &mut MutexGuard<'_, Journal>) -> Header {
        journal.last_sequence.0 += 1;
        let name = SegmentName {
            sequence: journal.last_sequence,
            epoch: journal.epoch,
            incarnation: journal.incarnation,
        };
        Header {
            volume: self.id,
            name,
            nonce: rand::random(),
            predecessor: journal.last_name(),
            capacity_pages: self.context.config.segment_pages,
        }
    }

    /// A file with a synced header and no seal. A segment's file never has its name without that
    /// header, so recovery takes what it finds under a name for that segment or for damage. Unless
    /// it is `named` the file has a name that recovery does not look at.
    pub(crate) fn prepare(&self, header: &Header, named: bool) -> Result<Prepared> {
        let mut files = 1;
        loop {
            match self.try_prepare(header, named) {
                Err(error)
                    if error.kind() != ErrorKind::NoSpace && files < limits::FAILED_FILES_MAX =>
                {
                    tracing::warn!(volume = %self.id, %error, "another segment file is taken");
                    self.context.disk.remove(&self.copy_path(header.name))?;
                    self.context.disk.remove(&self.segment_path(header.name))?;
                    files += 1;
                }
                other => return other,
            }
        }
    }

    fn try_prepare(&self, header: &Header, named: bool) -> Result<Prepared> {
        let path = self.copy_path(header.name);
        let file = self.context.pool.take(&path)?;
        let mut pages = header.encode().to_vec();
        pages.resize((SEAL_PAGE.0 as usize + 1) * PAGE_BYTES, 0);
        let synced = file.write_at(&pages, 0).and_then(|()| file.sync());
        synced.map_err(|e| Error::io(format!("prepare segment {}", path.display()), e))?;
        if named {
            file.rename(&self.context.disk, &self.segment_path(header.name))?;
        }
        // Also, no power loss then brings back a name that the file has had before it has entries.
        self.context.disk.sync_dir(&self.dir.join("segments"))?;
        Ok(Prepared { header: *header, file: Arc::new(file) })
    }

    /// Gives the file of a segment without entries back.
    pub(crate) fn give_back(&self, file: &PoolFile) {
        if let Err(error) = self.context.pool.recycle(file) {
            tracing::warn!(volume = %self.id, %error, "an unused segment file stays");
        }
    }
}
