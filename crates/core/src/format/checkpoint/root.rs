//! The root of a checkpoint, and the parts that it names.

use super::wire::{NAME_BYTES, Reader, VERSION, check_ascending, put_head, put_name};
use super::{DecodeError, check_hash};
use crate::ids::{
    Epoch, HashKey, Incarnation, ObjectHash, RequestNumber, SegmentHash, SegmentName, Sequence,
    SessionId, VolumeId,
};
use crate::map::{PAGE_BLOCKS, SIZE_BLOCKS_MAX};
use crate::volume::Position;
use std::collections::BTreeMap;

const ROOT_MAGIC: &[u8; 8] = b"PANNROOT";
const TABLE_MAGIC: &[u8; 8] = b"PANNMAPT";
const SEGMENTS_MAGIC: &[u8; 8] = b"PANNSEGL";
const HASH_BYTES: usize = 32;
/// Page hashes of a table part: 16 GiB of disk in 32 KiB.
const TABLE_PART_PAGES: usize = 1024;
/// Segments of a segment part: 8 GiB of log in 30 KiB.
const SEGMENT_PART_COUNT: usize = 512;
const SEGMENT_BYTES: usize = NAME_BYTES + HASH_BYTES + 8;
/// Version of a segment part that says under which generation each segment is stored. A part whose
/// segments are all stored under the first is written as version 1.
const GENERATIONS_VERSION: u16 = 2;

/// A segment that a checkpoint needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveSegment {
    /// Its name.
    pub name: SegmentName,
    /// Its hash; `None` while it is not sealed, which only a host's local checkpoint may contain.
    pub hash: Option<SegmentHash>,
    /// How many entries it has, as far as the checkpoint includes them.
    pub entries: u32,
    /// How many of its pages the map names.
    pub live_pages: u32,
    /// Generation under which the site's store has it, from 1. Its objects of earlier generations
    /// are condemned.
    pub generation: u32,
}

/// A checkpoint in memory: all that is needed to open a volume, apart from the map pages
/// themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// The volume.
    pub volume: VolumeId,
    /// Its size in bytes, a multiple of 512.
    pub size_bytes: u64,
    /// Epoch of the owner that made the checkpoint.
    pub epoch: Epoch,
    /// Incarnation of the owner that made it.
    pub incarnation: Incarnation,
    /// How far the log is included.
    pub through: Position,
    /// One per map page, in order; `None` is all hole.
    pub pages: Vec<Option<ObjectHash>>,
    /// The segments that the map names, ascending.
    pub segments: Vec<LiveSegment>,
    /// The highest request applied of each forwarding session that may still ask.
    pub sessions: BTreeMap<SessionId, RequestNumber>,
    /// Segments that no root names any more, ascending: they may be deleted once this checkpoint is
    /// published, and nothing else may.
    pub condemned: Vec<SegmentName>,
    /// Checkpoint objects that no root names any more, ascending, under the same rule.
    pub condemned_objects: Vec<ObjectHash>,
}

/// A checkpoint in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedRoot {
    /// Name of the root object.
    pub hash: ObjectHash,
    /// The root object.
    pub bytes: Vec<u8>,
    /// The parts that it names, to be durable before it.
    pub parts: Vec<(ObjectHash, Vec<u8>)>,
}

/// A root as read, before its parts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootHead {
    root: Root,
    page_count: u32,
    segment_count: u32,
    table_parts: Vec<ObjectHash>,
    segment_parts: Vec<ObjectHash>,
}

impl Root {
    /// The checkpoint in bytes.
    ///
    /// # Panics
    /// When `pages` does not fit the size, or a list does not ascend.
    #[must_use]
    pub fn encode(&self, key: &HashKey) -> EncodedRoot {
        assert_eq!(self.pages.len() as u64, page_count(self.size_bytes), "pages fit the size");
        assert!(self.segments.is_sorted_by(|a, b| a.name < b.name), "segments ascend");
        assert!(self.condemned.is_sorted_by(|a, b| a < b), "condemned segments ascend");
        assert!(self.condemned_objects.is_sorted_by(|a, b| a < b), "condemned objects ascend");
        let table: Vec<Option<Vec<u8>>> =
            self.pages.chunks(TABLE_PART_PAGES).map(encode_table_part).collect();
        let segments: Vec<Vec<u8>> =
            self.segments.chunks(SEGMENT_PART_COUNT).map(encode_segment_part).collect();

        let mut bytes = Vec::new();
        put_head(&mut bytes, ROOT_MAGIC, VERSION);
        bytes.push(u8::from(self.through.segment.is_some()));
        bytes.push(0);
        bytes.extend_from_slice(&self.incarnation.0.to_le_bytes());
        bytes.extend_from_slice(&self.volume.0.to_be_bytes());
        bytes.extend_from_slice(&self.size_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.epoch.0.to_le_bytes());
        put_name(&mut bytes, self.through.segment.unwrap_or(NO_SEGMENT));
        bytes.extend_from_slice(&self.through.entries.to_le_bytes());
        bytes.extend_from_slice(&self.through.chain_crc.to_le_bytes());
        for count in [
            self.pages.len(),
            self.segments.len(),
            self.sessions.len(),
            self.condemned.len(),
            self.condemned_objects.len(),
        ] {
            let count = u32::try_from(count).expect("fewer than 2^32 of anything in a checkpoint");
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        let mut parts = Vec::new();
        for part in table.into_iter().chain(segments.into_iter().map(Some)) {
            let hash = part.map_or(ABSENT, |part| {
                let hash = key.object(&part);
                parts.push((hash, part));
                hash
            });
            bytes.extend_from_slice(&hash.0);
        }
        for (session, applied) in &self.sessions {
            bytes.extend_from_slice(&session.0.to_le_bytes());
            bytes.extend_from_slice(&applied.0.to_le_bytes());
        }
        self.condemned.iter().for_each(|name| put_name(&mut bytes, *name));
        self.condemned_objects.iter().for_each(|hash| bytes.extend_from_slice(&hash.0));
        EncodedRoot { hash: key.object(&bytes), bytes, parts }
    }

    /// Hashes of all map pages that the checkpoint names, each once.
    pub fn page_objects(&self) -> impl Iterator<Item = ObjectHash> + '_ {
        let unique: std::collections::BTreeSet<_> = self.pages.iter().flatten().copied().collect();
        unique.into_iter()
    }
}

/// In place of a hash: no such object, all of it is hole.
const ABSENT: ObjectHash = ObjectHash([0; 32]);

/// In place of the last segment in a volume that was never written.
const NO_SEGMENT: SegmentName =
    SegmentName { sequence: Sequence(0), epoch: Epoch(0), incarnation: Incarnation(0) };

/// How many map pages a volume of a size has.
fn page_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(crate::units::BLOCK_BYTES).div_ceil(u64::from(PAGE_BLOCKS))
}

/// `None` when all pages of the part are holes.
fn encode_table_part(pages: &[Option<ObjectHash>]) -> Option<Vec<u8>> {
    if pages.iter().all(Option::is_none) {
        return None;
    }
    let mut bytes = Vec::with_capacity(16 + pages.len() * HASH_BYTES);
    put_head(&mut bytes, TABLE_MAGIC, VERSION);
    bytes.extend_from_slice(&(pages.len() as u16).to_le_bytes());
    for page in pages {
        bytes.extend_from_slice(&page.unwrap_or(ABSENT).0);
    }
    Some(bytes)
}

fn decode_table_part(bytes: &[u8], expect: usize) -> Result<Vec<Option<ObjectHash>>, DecodeError> {
    let mut reader = Reader::open(bytes, TABLE_MAGIC, "part of a page table")?;
    let count = reader.u16()?;
    if usize::from(count) != expect {
        return Err(DecodeError::Wrong("a table part has another length than the root says"));
    }
    reader.part("page hashes", u32::from(count), HASH_BYTES)?;
    let mut pages = Vec::with_capacity(expect);
    for _ in 0..count {
        let hash = ObjectHash(reader.array()?);
        pages.push((hash != ABSENT).then_some(hash));
    }
    if pages.iter().all(Option::is_none) {
        return Err(DecodeError::Wrong("a table part that is all hole is not stored"));
    }
    reader.end()?;
    Ok(pages)
}

fn encode_segment_part(segments: &[LiveSegment]) -> Vec<u8> {
    let later = segments.iter().any(|segment| segment.generation != 1);
    let version = if later { GENERATIONS_VERSION } else { VERSION };
    let mut bytes = Vec::with_capacity(16 + segments.len() * (SEGMENT_BYTES + 4));
    put_head(&mut bytes, SEGMENTS_MAGIC, version);
    bytes.extend_from_slice(&(segments.len() as u16).to_le_bytes());
    for segment in segments {
        put_name(&mut bytes, segment.name);
        bytes.extend_from_slice(&segment.hash.map_or([0; 32], |hash| hash.0));
        bytes.extend_from_slice(&segment.entries.to_le_bytes());
        bytes.extend_from_slice(&segment.live_pages.to_le_bytes());
        if later {
            bytes.extend_from_slice(&segment.generation.to_le_bytes());
        }
    }
    bytes
}

fn decode_segment_part(bytes: &[u8], expect: usize) -> Result<Vec<LiveSegment>, DecodeError> {
    let what = "part of a segment list";
    let (mut reader, version) =
        Reader::open_up_to(GENERATIONS_VERSION, bytes, SEGMENTS_MAGIC, what)?;
    let later = version == GENERATIONS_VERSION;
    let count = reader.u16()?;
    if usize::from(count) != expect {
        return Err(DecodeError::Wrong("a segment part has another length than the root says"));
    }
    let each = SEGMENT_BYTES + if later { 4 } else { 0 };
    reader.part("segments", u32::from(count), each)?;
    let mut segments = Vec::with_capacity(expect);
    for _ in 0..count {
        let name = reader.name()?;
        let hash: [u8; 32] = reader.array()?;
        segments.push(LiveSegment {
            name,
            hash: (hash != [0; 32]).then_some(SegmentHash(hash)),
            entries: reader.u32()?,
            live_pages: reader.u32()?,
            generation: if later { reader.u32()? } else { 1 },
        });
    }
    if segments.iter().any(|segment| segment.generation == 0) {
        return Err(DecodeError::Wrong("a segment is stored under generation 0"));
    }
    if later && segments.iter().all(|segment| segment.generation == 1) {
        return Err(DecodeError::Wrong("a segment part of version 2 without a later generation"));
    }
    reader.end()?;
    Ok(segments)
}

impl RootHead {
    /// Reads a root. The caller has checked the bytes against the root's name, or trusts the file
    /// that they are from.
    ///
    /// # Errors
    /// [`DecodeError`] for anything that [`Root::encode`] does not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::open(bytes, ROOT_MAGIC, "checkpoint root")?;
        let has_through = match reader.array()? {
            [0, 0] => false,
            [1, 0] => true,
            _ => return Err(DecodeError::Wrong("reserved bits are set")),
        };
        let incarnation = Incarnation(reader.u32()?);
        let volume = VolumeId(u128::from_be_bytes(reader.array()?));
        let size_bytes = reader.u64()?;
        let epoch = Epoch(reader.u64()?);
        let segment = reader.name()?;
        let (entries, chain_crc) = (reader.u32()?, reader.u32()?);
        let through = Position { segment: has_through.then_some(segment), entries, chain_crc };
        if !has_through && (segment != NO_SEGMENT || through != Position::START) {
            return Err(DecodeError::Wrong("a position in a log that is empty"));
        }
        let [page_total, segment_total, session_total, condemned_total, condemned_object_total] =
            [reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?];
        if size_bytes.div_ceil(crate::units::BLOCK_BYTES) > SIZE_BLOCKS_MAX
            || u64::from(page_total) != page_count(size_bytes)
        {
            return Err(DecodeError::Wrong("the page table does not fit the size"));
        }
        let hashes = |reader: &mut Reader<'_>, what, count: u32| {
            reader.part(what, count, HASH_BYTES)?;
            (0..count).map(|_| reader.array().map(ObjectHash)).collect::<Result<Vec<_>, _>>()
        };
        let table_count = page_total.div_ceil(TABLE_PART_PAGES as u32);
        let table_parts = hashes(&mut reader, "table parts", table_count)?;
        let segment_count = segment_total.div_ceil(SEGMENT_PART_COUNT as u32);
        let segment_parts = hashes(&mut reader, "segment parts", segment_count)?;
        if segment_parts.contains(&ABSENT) {
            return Err(DecodeError::Wrong("a segment part is absent"));
        }
        reader.part("sessions", session_total, 16)?;
        let sessions = (0..session_total)
            .map(|_| Ok((SessionId(reader.u64()?), RequestNumber(reader.u64()?))))
            .collect::<Result<Vec<_>, DecodeError>>()?;
        if !sessions.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(DecodeError::Wrong("sessions do not ascend"));
        }
        reader.part("condemned segments", condemned_total, NAME_BYTES)?;
        let condemned =
            (0..condemned_total).map(|_| reader.name()).collect::<Result<Vec<_>, _>>()?;
        check_ascending(&condemned, "condemned segments do not ascend")?;
        let condemned_objects = hashes(&mut reader, "condemned objects", condemned_object_total)?;
        check_ascending(&condemned_objects, "condemned objects do not ascend")?;
        reader.end()?;
        let root = Root {
            volume,
            size_bytes,
            epoch,
            incarnation,
            through,
            pages: Vec::new(),
            segments: Vec::new(),
            sessions: sessions.into_iter().collect(),
            condemned,
            condemned_objects,
        };
        let (page_count, segment_count) = (page_total, segment_total);
        Ok(Self { root, page_count, segment_count, table_parts, segment_parts })
    }

    /// The objects that [`RootHead::assemble`] needs, each once.
    #[must_use]
    pub fn parts(&self) -> Vec<ObjectHash> {
        let mut parts: Vec<ObjectHash> = Vec::new();
        parts.extend(self.table_parts.iter().chain(&self.segment_parts));
        parts.sort_unstable();
        parts.dedup();
        parts.retain(|part| *part != ABSENT);
        parts
    }

    /// The checkpoint, with the parts that `part` returns by name.
    ///
    /// # Errors
    /// What `part` fails with; [`DecodeError`] when a part is damaged or does not fit.
    pub fn assemble<E: From<DecodeError>>(
        self,
        key: &HashKey,
        mut part: impl FnMut(ObjectHash) -> Result<Vec<u8>, E>,
    ) -> Result<Root, E> {
        let mut root = self.root;
        // Only what a part has shown to exist is allocated beyond the holes that the size implies.
        let mut left = self.page_count as usize;
        for hash in self.table_parts {
            let expect = left.min(TABLE_PART_PAGES);
            left -= expect;
            if hash == ABSENT {
                root.pages.resize(root.pages.len() + expect, None);
                continue;
            }
            let bytes = part(hash)?;
            check_hash(key, hash, &bytes)?;
            root.pages.extend(decode_table_part(&bytes, expect)?);
        }
        let mut left = self.segment_count as usize;
        for hash in self.segment_parts {
            let expect = left.min(SEGMENT_PART_COUNT);
            left -= expect;
            let bytes = part(hash)?;
            check_hash(key, hash, &bytes)?;
            root.segments.extend(decode_segment_part(&bytes, expect)?);
        }
        if !root.segments.is_sorted_by(|a, b| a.name < b.name) {
            return Err(DecodeError::Wrong("live segments do not ascend").into());
        }
        Ok(root)
    }
}
