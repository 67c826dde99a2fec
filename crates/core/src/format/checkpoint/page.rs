//! A map page in bytes: the segment names it uses, then its runs.

use super::DecodeError;
use super::wire::{NAME_BYTES, Reader, VERSION, check_ascending, put_head, put_name};
use crate::ids::SegmentName;
use crate::map::{LoadTarget, MapPage, PAGE_BLOCKS, SegmentTable, Target};
use crate::units::PageIndex;

const MAGIC: &[u8; 8] = b"PANNMAPP";
const RUN_BYTES: usize = 8;
/// Slots from here on are no segments.
const SLOT_ZERO: u16 = 0xfffe;
const SLOT_HOLE: u16 = 0xffff;

/// What a map page says: runs of (count of blocks, target), gapless over [`PAGE_BLOCKS`] blocks,
/// as [`crate::map::Map::load_page`] takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageContent {
    /// The segments that the page names, in order.
    pub segments: Vec<SegmentName>,
    /// Its runs.
    pub runs: Vec<(u32, LoadTarget)>,
}

/// A map page in bytes. `segments` is the table of the snapshot that the page is from.
///
/// # Panics
/// When the page names a segment that is not in the table.
#[must_use]
pub fn encode_page(page: &MapPage, segments: &SegmentTable) -> Vec<u8> {
    let name =
        |segment| segments.name(segment).expect("a snapshot's table has its pages' segments");
    let mut names: Vec<SegmentName> = Vec::new();
    let mut last = None;
    for (_, _, target) in page.runs() {
        if let Target::Data(segment, _) = target
            && last != Some(segment)
        {
            last = Some(segment);
            names.push(name(segment));
        }
    }
    names.sort_unstable();
    names.dedup();

    let run_count = page.run_count();
    let mut bytes = Vec::with_capacity(16 + names.len() * NAME_BYTES + run_count * RUN_BYTES);
    put_head(&mut bytes, MAGIC, VERSION);
    bytes.extend_from_slice(&0_u16.to_le_bytes());
    bytes.extend_from_slice(&(names.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&(run_count as u16).to_le_bytes());
    names.iter().for_each(|name| put_name(&mut bytes, *name));
    for (_, count, target) in page.runs() {
        let (slot, first_page) = match target {
            Target::Data(segment, first_page) => {
                let slot = names.binary_search(&name(segment)).expect("collected above");
                (slot as u16, first_page.0)
            }
            Target::Zero => (SLOT_ZERO, 0),
            Target::Hole => (SLOT_HOLE, 0),
        };
        bytes.extend_from_slice(&(count as u16).to_le_bytes());
        bytes.extend_from_slice(&slot.to_le_bytes());
        bytes.extend_from_slice(&first_page.to_le_bytes());
    }
    bytes
}

/// What a map page says. The caller has checked the bytes against the page's name.
///
/// # Errors
/// [`DecodeError`] for anything that [`encode_page`] does not write.
pub fn decode_page(bytes: &[u8]) -> Result<PageContent, DecodeError> {
    let mut reader = Reader::open(bytes, MAGIC, "map page")?;
    if reader.u16()? != 0 {
        return Err(DecodeError::Wrong("reserved bits are set"));
    }
    let name_count = reader.u16()?;
    let run_count = reader.u16()?;
    reader.part("segment names", u32::from(name_count), NAME_BYTES)?;
    let segments = (0..name_count).map(|_| reader.name()).collect::<Result<Vec<_>, _>>()?;
    check_ascending(&segments, "segment names of a map page do not ascend")?;

    reader.part("runs", u32::from(run_count), RUN_BYTES)?;
    let mut runs: Vec<(u32, LoadTarget)> = Vec::with_capacity(usize::from(run_count));
    let mut used = vec![false; segments.len()];
    let mut blocks = 0;
    for _ in 0..run_count {
        let count = u32::from(reader.u16()?);
        let slot = reader.u16()?;
        let first_page = PageIndex(reader.u32()?);
        let target = match slot {
            SLOT_HOLE | SLOT_ZERO if first_page.0 != 0 => {
                return Err(DecodeError::Wrong("a run without data has a page"));
            }
            SLOT_HOLE => LoadTarget::Hole,
            SLOT_ZERO => LoadTarget::Zero,
            slot => {
                let segment = segments
                    .get(usize::from(slot))
                    .ok_or(DecodeError::Wrong("a run names a segment that is not listed"))?;
                used[usize::from(slot)] = true;
                LoadTarget::Data(*segment, first_page)
            }
        };
        if count == 0 || matches!(target, LoadTarget::Data(..) if first_page.0 > u32::MAX - count) {
            return Err(DecodeError::Wrong("a run's length cannot be"));
        }
        if runs.last().is_some_and(|last| goes_on(*last, target)) {
            return Err(DecodeError::Wrong("two runs that are one"));
        }
        blocks += count;
        runs.push((count, target));
    }
    if blocks != PAGE_BLOCKS {
        return Err(DecodeError::Wrong("runs of a map page do not cover it exactly"));
    }
    if used.contains(&false) {
        return Err(DecodeError::Wrong("a map page lists a segment that it does not name"));
    }
    if runs == [(PAGE_BLOCKS, LoadTarget::Hole)] {
        return Err(DecodeError::Wrong("a map page that is all hole is not stored"));
    }
    reader.end()?;
    Ok(PageContent { segments, runs })
}

fn goes_on(last: (u32, LoadTarget), target: LoadTarget) -> bool {
    match (last.1, target) {
        (LoadTarget::Data(name, page), LoadTarget::Data(next_name, next_page)) => {
            name == next_name && page.0 + last.0 == next_page.0
        }
        (LoadTarget::Zero, LoadTarget::Zero) | (LoadTarget::Hole, LoadTarget::Hole) => true,
        _ => false,
    }
}
