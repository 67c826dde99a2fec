//! What recovery found of a segment that was open at the crash.

use super::FIRST_GROUP_PAGE;
use super::entry::{Entry, EntryKind, Link};
use super::header::Header;
use super::meta::SegmentMeta;
use super::seal::Sealing;
use crate::ids::{BlockHash, HashKey};
use crate::units::PageIndex;

/// The longest valid prefix of a segment that was open at the crash. It is sealed as it stands,
/// never appended to.
#[derive(Debug)]
pub struct OpenSegment {
    pub(super) header: Header,
    pub(super) link: Option<Link>,
    pub(super) entries: Vec<Entry>,
    pub(super) groups: Vec<FoundGroup>,
    pub(super) durable: u32,
    pub(super) behind: Option<Behind>,
}

/// A group that is part of the valid prefix.
#[derive(Debug, Clone, Copy)]
pub(super) struct FoundGroup {
    pub(super) page: PageIndex,
    pub(super) first_entry: u32,
    pub(super) entries: u32,
}

/// Authentic entries behind the first break. Unless the medium is damaged, no flush that was
/// acknowledged covered them; they are no part of the log, but a copy of the file is kept aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// How many could be told.
    pub entries: u32,
}

impl OpenSegment {
    pub(super) fn empty(header: Header) -> Self {
        Self {
            header,
            link: None,
            entries: Vec::new(),
            groups: Vec::new(),
            durable: 0,
            behind: None,
        }
    }

    /// Who the segment is.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where the predecessor's part of the log ends; `None` when no group was found. When the
    /// predecessor does not reach that far ([`OpenSegment::precedes`], [`super::SegmentMeta`]'s
    /// seal record), this segment lies behind a break.
    #[must_use]
    pub fn link(&self) -> Option<Link> {
        self.link
    }

    /// The entries that count.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The highest durable position that any authentic page names.
    #[must_use]
    pub fn durable(&self) -> u32 {
        self.durable
    }

    /// Whether entries are missing that an acknowledged flush had covered. No crash does that: the
    /// medium is damaged, and the log must come from another copy.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.count() < self.durable
    }

    /// What lies behind the break, if anything does: keep a copy of the file before sealing it.
    #[must_use]
    pub fn behind(&self) -> Option<Behind> {
        self.behind
    }

    /// First page behind the entries that count.
    #[must_use]
    pub fn tail(&self) -> PageIndex {
        self.groups.last().map_or(FIRST_GROUP_PAGE, |group| {
            let data = self.entries[group.first_entry as usize..].iter();
            group.page.plus(1 + data.map(|entry| entry.kind.data_pages()).sum::<u32>())
        })
    }

    /// Data pages of the entries that count.
    #[must_use]
    pub fn data_pages(&self) -> u32 {
        self.entries.iter().map(|entry| entry.kind.data_pages()).sum()
    }

    /// The data pages, in order: what the block table has hashes of.
    pub fn pages(&self) -> impl Iterator<Item = PageIndex> + '_ {
        self.entries
            .iter()
            .flat_map(|entry| match entry.kind {
                EntryKind::Data { page, count, .. } => page.0..page.0 + count,
                EntryKind::Zero { .. }
                | EntryKind::Discard { .. }
                | EntryKind::Resize { .. }
                | EntryKind::SessionMark { .. } => 0..0,
            })
            .map(PageIndex)
    }

    /// The link of a segment that follows all of these entries.
    #[must_use]
    pub fn next_link(&self) -> Link {
        self.link_at(self.count()).unwrap_or_default()
    }

    /// The link of a segment that follows the first `entries` entries; `None` when there are fewer.
    #[must_use]
    pub fn link_at(&self, entries: u32) -> Option<Link> {
        let chain_crc = match entries.checked_sub(1) {
            None => self.link.unwrap_or_default().seed(self.header.nonce),
            Some(last) => self.entries.get(last as usize)?.chain_crc,
        };
        Some(Link { entries, chain_crc })
    }

    /// Whether a successor with `link` follows a prefix of these entries: then the log goes on
    /// there, and what is behind `link.entries` here does not count ([`OpenSegment::cut`]).
    #[must_use]
    pub fn precedes(&self, link: Link) -> bool {
        self.link_at(link.entries) == Some(link)
    }

    /// Keeps only the first `entries` entries: the successor's link says that the log goes on
    /// there.
    pub fn cut(&mut self, entries: u32) {
        self.keep(entries as usize);
    }

    /// An `fdatasync` of the file has returned without error since it was recovered: all that
    /// counts is durable. Without it, a seal makes every later reader check the data again.
    pub fn synced(&mut self) {
        self.durable = self.durable.max(self.count());
    }

    /// Seals what counts. `table` has the hash of every page of [`OpenSegment::pages`]. An empty
    /// segment is not sealed: its file goes back to the pool.
    ///
    /// # Panics
    /// When the table's length is not the number of data pages.
    #[must_use]
    pub fn seal(self, table: Vec<BlockHash>, key: &HashKey) -> Sealing {
        let tail = self.tail();
        let link = self.link.unwrap_or_default();
        let durable = self.durable.min(self.count());
        let header = self.header;
        Sealing::of(SegmentMeta::sealed(header, link, durable, self.entries, tail, table, key))
    }

    pub(super) fn count(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Keeps at most `entries` entries, and of a joined request all or none.
    pub(super) fn keep(&mut self, entries: usize) {
        self.entries.truncate(entries);
        while self.entries.last().is_some_and(|entry| entry.joined) {
            self.entries.pop();
        }
        let count = self.count();
        self.groups.retain(|group| group.first_entry < count);
    }

    /// Entries of the last group that do not count.
    pub(super) fn cut_in_last_group(&self) -> u32 {
        self.groups.last().map_or(0, |group| group.first_entry + group.entries - self.count())
    }
}
