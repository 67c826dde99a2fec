//! Reading a segment file after a crash, or any other time.
//!
//! Of a sealed segment the seal record is believed, when the segment hash holds, and the data that
//! were not known durable when it was written. Of an open one the
//! longest valid prefix of its entries counts: every entry behind its predecessor, with its data.
//! Unsynced pages may have reached the medium in any subset, torn, or not at all, and a recycled
//! file is full of an earlier use's pages: `docs/formats.md` has the case list, and
//! `recover/tests.rs` enumerates it.

use super::entry::{Entry, EntryKind};
use super::group::{GroupHeader, chained_entries, slots};
use super::header::{Header, HeaderError};
use super::limits::READ_PAGES;
use super::meta::{SegmentMeta, decode_index, decode_table};
use super::open::{Behind, FoundGroup, OpenSegment};
use super::seal::{SealRecord, Sealing};
use super::{FIRST_GROUP_PAGE, PAGE_BYTES, SEAL_PAGE, pages_for};
use crate::ids::{BlockHash, HashKey};
use crate::units::PageIndex;

/// What a segment file turned out to hold.
#[derive(Debug)]
pub enum Recovered {
    /// A sealed segment.
    Sealed(SealedSegment),
    /// A segment without a seal that holds: seal it ([`OpenSegment::seal`]), never append to it.
    Open(OpenSegment),
}

/// A sealed segment as found.
#[derive(Debug)]
pub struct SealedSegment {
    /// All that is known of it except its data.
    pub meta: SegmentMeta,
    /// Set when index or block table were damaged and have been rebuilt from the groups, so that
    /// the segment hash holds again: what to write to repair the file.
    pub repair: Option<Box<Sealing>>,
}

/// Why a file could not be read as a segment.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError<E> {
    /// Page 0 is no header of a segment.
    #[error("the file is not a usable segment: {0}")]
    Header(#[from] HeaderError),
    /// The caller's `read` failed.
    #[error("the segment file cannot be read")]
    Read(#[source] E),
}

/// What the verifier checks: all of it, except in tests that show what each check is for.
#[derive(Debug, Clone, Copy)]
struct Rules {
    chain: bool,
    data: bool,
}

const RULES: Rules = Rules { chain: true, data: true };

/// Reads a segment file. `header` is page 0; `read` fills its buffer (whole pages) from the page
/// that it is given on; what lies behind the end of a file that was cut off reads as zero.
///
/// # Errors
/// [`RecoverError::Header`] when the file was never used as a segment; [`RecoverError::Read`] when
/// `read` fails.
pub fn recover<E>(
    header: &[u8],
    key: &HashKey,
    mut read: impl FnMut(PageIndex, &mut [u8]) -> Result<(), E>,
) -> Result<Recovered, RecoverError<E>> {
    let header = Header::decode(header)?;
    recover_by(RULES, header, key, &mut read).map_err(RecoverError::Read)
}

fn recover_by<E>(
    rules: Rules,
    header: Header,
    key: &HashKey,
    read: &mut impl FnMut(PageIndex, &mut [u8]) -> Result<(), E>,
) -> Result<Recovered, E> {
    let mut page = vec![0; PAGE_BYTES];
    read(SEAL_PAGE, &mut page)?;
    let seal = SealRecord::decode(&page, &header);
    if let Some(seal) = seal
        && let Some(sealed) = read_sealed(rules, header, seal, key, read)?
    {
        let entries = sealed.meta.entries();
        if !rules.data || valid_data(entries, seal.durable, read)? == entries.len() {
            return Ok(Recovered::Sealed(sealed));
        }
    }
    let mut open = walk(rules, header, u32::MAX, read)?;
    if let Some(seal) = seal {
        open.durable = open.durable.max(seal.durable);
    }
    let valid = if rules.data {
        valid_data(&open.entries, open.durable, read)?
    } else {
        open.entries.len()
    };
    open.keep(valid);
    search_behind(&mut open, read)?;
    Ok(Recovered::Open(open))
}

/// Reads a sealed segment by its record; `None` when neither its index and table nor its groups
/// are what the record's hash names.
fn read_sealed<E>(
    rules: Rules,
    header: Header,
    seal: SealRecord,
    key: &HashKey,
    read: &mut impl FnMut(PageIndex, &mut [u8]) -> Result<(), E>,
) -> Result<Option<SealedSegment>, E> {
    let mut index = vec![0; pages_for(seal.index_bytes()) * PAGE_BYTES];
    let mut table = vec![0; pages_for(seal.table_bytes()) * PAGE_BYTES];
    if !index.is_empty() {
        read(seal.index_page(), &mut index)?;
    }
    if !table.is_empty() {
        read(seal.table_page(), &mut table)?;
    }
    let table = decode_table(&table[..seal.table_bytes()]);
    if let Some(entries) = decode_index(&index[..seal.index_bytes()])
        && let Ok(meta) = SegmentMeta::assemble(header, seal, entries, table.clone(), key)
    {
        return Ok(Some(SealedSegment { meta, repair: None }));
    }
    let open = walk(rules, header, seal.entries, read)?;
    if open.entries.len() != seal.entries as usize {
        return Ok(None);
    }
    let repaired = match SegmentMeta::assemble(header, seal, open.entries.clone(), table, key) {
        Ok(meta) => Ok(meta),
        Err(_) => {
            let table = hash_data(&open, key, read)?;
            SegmentMeta::assemble(header, seal, open.entries.clone(), table, key)
        }
    };
    Ok(repaired.ok().map(|meta| {
        let repair = Some(Box::new(Sealing::of(meta.clone())));
        SealedSegment { meta, repair }
    }))
}

/// Follows the groups from the first on, as long as headers and entries hold, without reading data.
fn walk<E>(
    rules: Rules,
    header: Header,
    entries_max: u32,
    read: &mut impl FnMut(PageIndex, &mut [u8]) -> Result<(), E>,
) -> Result<OpenSegment, E> {
    let mut open = OpenSegment::empty(header);
    let mut page = vec![0; PAGE_BYTES];
    let mut at = FIRST_GROUP_PAGE;
    let mut chain = 0;
    while at.0 < header.capacity_pages && open.count() < entries_max {
        read(at, &mut page)?;
        let Some(group) = GroupHeader::decode(&page, at, header.nonce) else { break };
        if open.groups.is_empty() {
            chain = group.link.seed(header.nonce);
        }
        let in_order = group.number as usize == open.groups.len()
            && group.first_entry == open.count()
            && open.link.is_none_or(|link| link == group.link)
            && (group.chain_before == chain || !rules.chain);
        if !in_order {
            break;
        }
        open.link = Some(group.link);
        open.durable = open.durable.max(group.durable);
        let mut next = at.plus(1);
        let before = open.count();
        for entry in slots(&page).take((entries_max - before) as usize).map_while(|slot| slot) {
            if !stands_at(&entry, next, header.capacity_pages)
                || rules.chain && !entry.follows(chain)
            {
                break;
            }
            chain = entry.chain_crc;
            next = next.plus(entry.kind.data_pages());
            open.entries.push(entry);
        }
        if open.count() == before {
            break;
        }
        open.groups.push(FoundGroup {
            page: at,
            first_entry: before,
            entries: open.count() - before,
        });
        at = next;
    }
    Ok(open)
}

/// Whether an entry's data begins at `next` and ends within the file.
fn stands_at(entry: &Entry, next: PageIndex, capacity_pages: u32) -> bool {
    match entry.kind {
        EntryKind::Data { page, count, .. } => {
            page == next && u64::from(next.0) + u64::from(count) <= capacity_pages.into()
        }
        EntryKind::Zero { .. }
        | EntryKind::Discard { .. }
        | EntryKind::Resize { .. }
        | EntryKind::SessionMark { .. } => true,
    }
}

/// How many of the entries, from the first on, have their data, when those before `durable` need no
/// check.
fn valid_data<E>(
    entries: &[Entry],
    durable: u32,
    read: &mut impl FnMut(PageIndex, &mut [u8]) -> Result<(), E>,
) -> Result<usize, E> {
    let mut buffer = Vec::new();
    for (index, entry) in entries.iter().enumerate().skip(durable as usize) {
        let EntryKind::Data { page, count, data_crc, .. } = entry.kind else { continue };
        let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        for_each_chunk(page, count, &mut buffer, read, |bytes| crc.update(bytes))?;
        if crc.finalize() != u64::from(data_crc) {
            return Ok(index);
        }
    }
    Ok(entries.len())
}

/// Computes the block table from the data.
fn hash_data<E>(
    open: &OpenSegment,
    key: &HashKey,
    read: &mut impl FnMut(PageIndex, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<BlockHash>, E> {
    let (mut buffer, mut table) = (Vec::new(), Vec::new());
    for entry in &open.entries {
        let EntryKind::Data { page, count, .. } = entry.kind else { continue };
        for_each_chunk(page, count, &mut buffer, read, |bytes| {
            table.extend(bytes.chunks_exact(PAGE_BYTES).map(|block| key.block(block)));
        })?;
    }
    Ok(table)
}

fn for_each_chunk<E>(
    page: PageIndex,
    count: u32,
    buffer: &mut Vec<u8>,
    read: &mut impl FnMut(PageIndex, &mut [u8]) -> Result<(), E>,
    mut visit: impl FnMut(&[u8]),
) -> Result<(), E> {
    let mut done = 0;
    while done < count {
        let chunk = (count - done).min(READ_PAGES);
        buffer.resize(chunk as usize * PAGE_BYTES, 0);
        read(page.plus(done), buffer)?;
        visit(buffer);
        done += chunk;
    }
    Ok(())
}

/// Looks for what this use of the file wrote behind the valid prefix.
fn search_behind<E>(
    open: &mut OpenSegment,
    read: &mut impl FnMut(PageIndex, &mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    let tail = open.tail();
    // What was walked and then cut lies in groups behind the tail, which the search meets again,
    // except for the rest of the group in which the prefix ends.
    let mut behind = open.cut_in_last_group();
    let mut buffer = Vec::new();
    let mut at = tail;
    let rest = open.header.capacity_pages.saturating_sub(tail.0);
    let (nonce, durable) = (open.header.nonce, &mut open.durable);
    for_each_chunk(tail, rest, &mut buffer, read, |bytes| {
        for page in bytes.chunks_exact(PAGE_BYTES) {
            if let Some(group) = GroupHeader::decode(page, at, nonce) {
                *durable = (*durable).max(group.durable);
                behind += chained_entries(page, group.chain_before);
            }
            at = at.plus(1);
        }
    })?;
    open.behind = (behind > 0).then_some(Behind { entries: behind });
    Ok(())
}

#[cfg(test)]
mod tests;
