//! Checking data of segments that are not sealed: where no hash is computed yet, by the CRC of the
//! entry that wrote them.

use super::Volume;
use super::segment::Segment;
use crate::disk::DiskFile;
use pannier_core::format::segment::{Entry, EntryKind, PAGE_BYTES};
use pannier_core::units::PageIndex;
use std::ops::Range;

/// Reads pages of one unsealed segment, with the entries that they lie in.
pub(super) struct EntryReader<'a> {
    volume: &'a Volume,
    segment: &'a Segment,
    file: &'a DiskFile,
    /// The pages of the entry that was read last, and its data, if that is whole.
    last: Option<(Range<u32>, Option<Vec<u8>>)>,
}

impl<'a> EntryReader<'a> {
    pub(super) fn new(volume: &'a Volume, segment: &'a Segment, file: &'a DiskFile) -> Self {
        Self { volume, segment, file, last: None }
    }

    /// Reads a page. `None` when no entry is known that wrote it: the segment was sealed meanwhile.
    /// Else whether its entry has the data that it was written with.
    pub(super) fn read(&mut self, page: PageIndex, into: &mut [u8]) -> Option<bool> {
        if !self.last.as_ref().is_some_and(|(pages, _)| pages.contains(&page.0)) {
            let (entry, pages) = self.volume.entry_of(self.segment, page)?;
            let mut data = vec![0; pages.len() * PAGE_BYTES];
            let read = self.file.read_at(&mut data, PageIndex(pages.start).byte_offset());
            let whole = read.is_ok() && entry.data_matches(&data);
            self.last = Some((pages, whole.then_some(data)));
        }
        let (pages, data) = self.last.as_ref()?;
        let Some(data) = data else { return Some(false) };
        let at = (page.0 - pages.start) as usize * PAGE_BYTES;
        into.copy_from_slice(&data[at..at + PAGE_BYTES]);
        Some(true)
    }
}

impl Volume {
    /// The entry of an unsealed segment whose data a page is, and all its pages.
    fn entry_of(&self, segment: &Segment, page: PageIndex) -> Option<(Entry, Range<u32>)> {
        let of = |entries: &[Entry]| entries.iter().find_map(|entry| wrote(entry, page));
        // The journal first: a segment's entries are noted before it is closed.
        let open = {
            let journal = self.journal.lock();
            let open = journal.open.as_ref().filter(|open| open.segment.name == segment.name);
            open.and_then(|open| of(open.writer.entries_from(0)))
        };
        open.or_else(|| of(&segment.entries()))
    }
}

/// The pages of an entry that wrote `page`, with the entry.
fn wrote(entry: &Entry, page: PageIndex) -> Option<(Entry, Range<u32>)> {
    let EntryKind::Data { page: first, count, .. } = entry.kind else { return None };
    let pages = first.0..first.0 + count;
    pages.contains(&page.0).then_some((*entry, pages))
}
