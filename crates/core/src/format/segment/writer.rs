//! Staging entries into groups: what an open segment's owner appends, and which pages to write.

use super::entry::{Entry, EntryKind, Link};
use super::group::{GROUP_ENTRIES_MAX, GroupHeader, slot};
use super::header::Header;
use super::limits::{DATA_PAGES_MAX, ENTRIES_MAX};
use super::meta::SegmentMeta;
use super::seal::{Sealing, index_and_table_pages};
use super::{FIRST_GROUP_PAGE, PAGE_BYTES, Page, bytes, crc32c};
use crate::ids::{BlockHash, HashKey, RequestNumber, SessionId};
use crate::units::{BlockIndex, PageIndex};

/// Where an appended entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The entry's index in the segment.
    pub entry_index: u32,
    /// For data, the first of the contiguous pages to which the caller writes it; else the
    /// segment's tail.
    pub page: PageIndex,
}

/// The segment has no room for the append; nothing was staged. Seal it and append to the next; data
/// larger than [`SegmentWriter::data_room_pages`] of an empty segment has to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the segment is full; seal it and append to the next")]
pub struct Full;

/// The writer of an open segment. Pure: it stages entries and says which pages to write; the caller
/// writes them, data in any order, descriptors in the order in which they were handed out.
///
/// The protocol, which the caller keeps under its sequencer:
///
/// 1. [`append`](Self::append) (or a shorthand), then write the data to the page it says and every
///    page of [`unwritten`](Self::unwritten), then [`mark_written`](Self::mark_written). An append
///    is acknowledged when it and all earlier ones are completely written.
/// 2. To flush: [`begin_flush`](Self::begin_flush), wait until all entries up to the index that it
///    returned are written, `fdatasync`, then [`flush_covers`](Self::flush_covers) that index.
/// 3. To end: [`seal`](Self::seal).
///
/// A descriptor page is rewritten, whole, only until a flush begins: what a flush has made durable
/// is never written again, so no torn write can take it back.
#[derive(Debug)]
pub struct SegmentWriter {
    header: Header,
    link: Link,
    entries: Vec<Entry>,
    tail: PageIndex,
    data_pages: u32,
    durable: u32,
    chain_crc: u32,
    groups: u32,
    group: Group,
    /// Descriptors of closed groups that the caller has not written in their last state.
    closed: Vec<(PageIndex, Box<Page>)>,
    /// Page buffers to use again.
    spare: Vec<Box<Page>>,
    sealed: bool,
}

#[derive(Debug)]
struct Group {
    page: PageIndex,
    bytes: Box<Page>,
    entries: u32,
    open: bool,
    unwritten: bool,
}

impl SegmentWriter {
    /// A writer of the empty segment that `header` names, behind the predecessor's last entry as
    /// `link` says. The header's page and a zeroed seal record are the caller's to write and sync
    /// first.
    #[must_use]
    pub fn new(header: Header, link: Link) -> Self {
        let group = Group {
            page: FIRST_GROUP_PAGE,
            bytes: Box::new([0; PAGE_BYTES]),
            entries: 0,
            open: false,
            unwritten: false,
        };
        Self {
            header,
            link,
            entries: Vec::new(),
            tail: FIRST_GROUP_PAGE,
            data_pages: 0,
            durable: 0,
            chain_crc: link.seed(header.nonce),
            groups: 0,
            group,
            closed: Vec::new(),
            spare: Vec::new(),
            sealed: false,
        }
    }

    /// Stages an entry; `joined` says that it counts only together with the next one. For data the
    /// entry's page is chosen here, whatever `kind` says.
    ///
    /// # Errors
    /// [`Full`]; nothing was staged.
    ///
    /// # Panics
    /// When the segment is sealed, or on a count of 0.
    pub fn append(&mut self, kind: EntryKind, joined: bool) -> Result<Appended, Full> {
        assert!(!self.sealed, "append to the sealed segment {}", self.header.id());
        let pages = kind.data_pages();
        if !self.has_room(1, pages) {
            return Err(Full);
        }
        if !self.group_accepts() {
            self.open_group();
        }
        let page = self.tail;
        let kind = match kind {
            EntryKind::Data { first_block, count, data_crc, .. } => {
                assert!(count > 0, "data without blocks");
                EntryKind::Data { first_block, count, page, data_crc }
            }
            EntryKind::Zero { count, .. } | EntryKind::Discard { count, .. } => {
                assert!(count > 0, "a range without blocks");
                kind
            }
            EntryKind::Resize { .. } | EntryKind::SessionMark { .. } => kind,
        };
        let entry = Entry::chained(kind, joined, self.chain_crc);
        bytes::put(&mut self.group.bytes[..], slot(self.group.entries), &entry.encode());
        self.group.entries += 1;
        self.group.unwritten = true;
        self.chain_crc = entry.chain_crc;
        self.tail = self.tail.plus(pages);
        self.data_pages += pages;
        self.entries.push(entry);
        Ok(Appended { entry_index: self.entries() - 1, page })
    }

    /// Appends data, whole pages, and computes its CRC.
    ///
    /// # Errors
    /// [`Full`].
    ///
    /// # Panics
    /// When `data` is empty or not whole pages, or the segment is sealed.
    pub fn append_data(
        &mut self,
        first_block: BlockIndex,
        data: &[u8],
        joined: bool,
    ) -> Result<Appended, Full> {
        assert!(data.len().is_multiple_of(PAGE_BYTES), "{} bytes are not whole pages", data.len());
        let Ok(count) = u32::try_from(data.len() / PAGE_BYTES) else { return Err(Full) };
        if !self.has_room(1, count) {
            return Err(Full);
        }
        let data_crc = crc32c(data);
        let page = self.tail;
        self.append(EntryKind::Data { first_block, count, page, data_crc }, joined)
    }

    /// Appends a zeroed range that stays allocated.
    ///
    /// # Errors
    /// [`Full`].
    pub fn append_zero(&mut self, first_block: BlockIndex, count: u32) -> Result<Appended, Full> {
        self.append(EntryKind::Zero { first_block, count }, false)
    }

    /// Appends a discarded range.
    ///
    /// # Errors
    /// [`Full`].
    pub fn append_discard(
        &mut self,
        first_block: BlockIndex,
        count: u32,
    ) -> Result<Appended, Full> {
        self.append(EntryKind::Discard { first_block, count }, false)
    }

    /// Appends a new size of the volume.
    ///
    /// # Errors
    /// [`Full`].
    pub fn append_resize(&mut self, size_bytes: u64) -> Result<Appended, Full> {
        self.append(EntryKind::Resize { size_bytes }, false)
    }

    /// Appends the mark that `session` is executed up to `request`: the last entry of a forwarded
    /// request, whose other entries are joined.
    ///
    /// # Errors
    /// [`Full`].
    pub fn append_session_mark(
        &mut self,
        session: SessionId,
        request: RequestNumber,
    ) -> Result<Appended, Full> {
        self.append(EntryKind::SessionMark { session, request }, false)
    }

    /// Whether `entries` more entries with `data_pages` data pages in all fit for certain. Ask
    /// before a request of several joined entries, which must stand in one segment.
    #[must_use]
    pub fn has_room(&self, entries: u32, data_pages: u32) -> bool {
        let free_slots = if self.group.open { GROUP_ENTRIES_MAX - self.group.entries } else { 0 };
        let descriptors = entries.saturating_sub(free_slots).div_ceil(GROUP_ENTRIES_MAX);
        let all_data = u64::from(self.data_pages) + u64::from(data_pages);
        let all_entries = self.entries.len() as u64 + u64::from(entries);
        let tail = u64::from(self.tail.0) + u64::from(descriptors) + u64::from(data_pages);
        all_data <= DATA_PAGES_MAX.into()
            && all_entries <= ENTRIES_MAX.into()
            && tail + index_and_table_pages(all_entries, all_data)
                <= u64::from(self.header.capacity_pages)
    }

    /// Most data pages that the next entry can have; 0 when not even one fits.
    #[must_use]
    pub fn data_room_pages(&self) -> u32 {
        // `has_room` is monotonous in the pages: bisect.
        let (mut fits, mut fails) = (0, DATA_PAGES_MAX + 1 - self.data_pages);
        while fails - fits > 1 {
            let middle = fits + (fails - fits) / 2;
            if self.has_room(1, middle) {
                fits = middle;
            } else {
                fails = middle;
            }
        }
        fits
    }

    /// Descriptor pages that changed since [`Self::mark_written`], in the order in which they are
    /// to be written. With a group that was just opened, its page and the data page behind it are
    /// one contiguous write.
    pub fn unwritten(&self) -> impl Iterator<Item = (PageIndex, &Page)> {
        let current = self.group.unwritten.then_some((self.group.page, &*self.group.bytes));
        self.closed.iter().map(|(page, bytes)| (*page, &**bytes)).chain(current)
    }

    /// The pages of [`Self::unwritten`] are completely written.
    pub fn mark_written(&mut self) {
        self.group.unwritten = false;
        self.spare.extend(self.closed.drain(..).map(|(_, bytes)| bytes));
    }

    /// Ends the current group, so that its descriptor is never written again, and returns the
    /// number of entries that the flush will cover.
    ///
    /// # Panics
    /// In the middle of a joined request.
    pub fn begin_flush(&mut self) -> u32 {
        assert!(
            self.entries.last().is_none_or(|entry| !entry.joined),
            "flush in the middle of a joined request"
        );
        self.group.open = false;
        self.entries()
    }

    /// An `fdatasync` that began after the first `entries` entries were completely written has
    /// returned without error: they are durable, and the next descriptor says so.
    ///
    /// # Panics
    /// When more entries are covered than exist.
    pub fn flush_covers(&mut self, entries: u32) {
        assert!(entries <= self.entries(), "a flush covers {entries} of {}", self.entries());
        self.durable = self.durable.max(entries);
        if entries > self.entries() - self.group.entries {
            self.group.open = false;
        }
    }

    /// Seals the segment: what to write, and all that is known of it from now on. `table` has the
    /// hash of every data page in page order. The writer takes no further append.
    ///
    /// # Panics
    /// When sealed twice, when the table's length is not the number of data pages, or in the middle
    /// of a joined request.
    #[must_use]
    pub fn seal(&mut self, table: Vec<BlockHash>, key: &HashKey) -> Sealing {
        assert!(!self.sealed, "the segment {} is sealed twice", self.header.id());
        self.begin_flush();
        self.sealed = true;
        let entries = self.entries.clone();
        let (header, link, durable, tail) = (self.header, self.link, self.durable, self.tail);
        Sealing::of(SegmentMeta::sealed(header, link, durable, entries, tail, table, key))
    }

    /// Entries staged so far.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.entries.len() as u32
    }

    /// The entries from index `from` on.
    #[must_use]
    pub fn entries_from(&self, from: u32) -> &[Entry] {
        self.entries.get(from as usize..).unwrap_or_default()
    }

    /// Entries known durable.
    #[must_use]
    pub fn durable(&self) -> u32 {
        self.durable
    }

    /// Chain CRC of the last entry; of an empty segment, its seed.
    #[must_use]
    pub fn last_chain_crc(&self) -> u32 {
        self.chain_crc
    }

    /// The link that the next segment starts with, when it follows all entries of this one.
    #[must_use]
    pub fn next_link(&self) -> Link {
        Link { entries: self.entries(), chain_crc: self.chain_crc }
    }

    /// First page behind all groups: where the next group, or the index, begins.
    #[must_use]
    pub fn tail(&self) -> PageIndex {
        self.tail
    }

    /// Data pages so far.
    #[must_use]
    pub fn data_pages(&self) -> u32 {
        self.data_pages
    }

    /// Who the segment is.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    fn group_accepts(&self) -> bool {
        self.group.open && self.group.entries < GROUP_ENTRIES_MAX
    }

    fn open_group(&mut self) {
        if self.group.unwritten {
            let fresh = self.spare.pop().unwrap_or_else(|| Box::new([0; PAGE_BYTES]));
            let full = std::mem::replace(&mut self.group.bytes, fresh);
            self.closed.push((self.group.page, full));
        }
        self.group.bytes.fill(0);
        let header = GroupHeader {
            page: self.tail,
            nonce: self.header.nonce,
            number: self.groups,
            first_entry: self.entries(),
            durable: self.durable,
            link: self.link,
            chain_before: self.chain_crc,
        };
        bytes::put(&mut self.group.bytes[..], 0, &header.encode());
        self.group.page = self.tail;
        self.group.entries = 0;
        self.group.open = true;
        self.groups += 1;
        self.tail = self.tail.plus(1);
    }
}
