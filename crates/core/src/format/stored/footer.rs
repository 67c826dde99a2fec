//! The end of an object: the frame index, and a trailer of fixed size.

use super::{FRAME_BYTES, FRAME_PAGES, FRAMES_MAX};
use crate::format::segment::{
    SegmentMeta, crc32c, get, get_u16, get_u32, get_u64, put_u16, put_u32, put_u64,
};
use crate::ids::SegmentHash;
use crate::units::PageIndex;
use std::ops::Range;

const MAGIC: [u8; 8] = *b"PNR-STOR";
const VERSION: u16 = 1;
const ENTRY_BYTES: usize = 16;
const TRAILER_BYTES: usize = 64;
const CRC_AT: usize = TRAILER_BYTES - 4;
const COMPRESSED: u32 = 1 << 31;

/// Bytes at the end of an object that hold trailer and frame index of any segment of default size:
/// one ranged read of so much is enough, [`Footer::decode_tail`] says when it was not.
pub const FOOTER_BYTES_MAX: u64 = (4096 / FRAME_PAGES as u64) * ENTRY_BYTES as u64 + 64;

/// Why the end of an object is not a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FooterError {
    /// No trailer: not a stored segment, or cut off.
    #[error("it is not a stored segment, or it is cut off")]
    NotStored,
    /// Written by a newer version.
    #[error("it has format version {0}, this version reads version 1; use a newer pannier")]
    Version(u16),
    /// A CRC or a field does not hold.
    #[error("its footer is damaged")]
    Damaged,
    /// The tail that was read is shorter than the footer: read this many bytes from the end.
    #[error("its footer takes the last {0} bytes")]
    Short(u64),
}

/// The footer of an object: where its frames and its metadata are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    frames: Vec<FrameEntry>,
    meta: Range<u64>,
    pages: u32,
    hash: [u8; 16],
}

/// A frame as the index has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameEntry {
    pub(super) offset: u32,
    pub(super) length: u32,
    pub(super) compressed: bool,
    /// Pages whose bytes are in the frame, by bit.
    pub(super) stored: u16,
    /// Pages that are all zero, by bit.
    pub(super) zero: u16,
    pub(super) crc: u32,
}

/// One frame of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRef {
    /// Index of the frame: it has the pages with ordinals from `16 * index` on.
    pub index: u32,
    pub(super) entry: FrameEntry,
}

impl FrameRef {
    /// The frame's bytes in the object; empty when it has only pages of zeroes, or none.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let offset = u64::from(self.entry.offset);
        offset..offset + u64::from(self.entry.length)
    }

    /// Whether the object has the page with this ordinal.
    #[must_use]
    pub fn has(&self, ordinal: u32) -> bool {
        let bits = self.entry.stored | self.entry.zero;
        ordinal / FRAME_PAGES == self.index && bits & 1 << (ordinal % FRAME_PAGES) != 0
    }
}

impl Footer {
    /// Reads the footer from `tail`, the last bytes of an object of `object_bytes` bytes
    /// ([`FOOTER_BYTES_MAX`] of them, or the whole object if it is shorter).
    ///
    /// # Errors
    /// [`FooterError`]. Never panics, and allocates no more than `tail` is long, whatever it is.
    pub fn decode_tail(tail: &[u8], object_bytes: u64) -> Result<Self, FooterError> {
        let index_end = tail.len().checked_sub(TRAILER_BYTES).ok_or(FooterError::NotStored)?;
        let trailer = &tail[index_end..];
        if trailer[..8] != MAGIC {
            return Err(FooterError::NotStored);
        }
        let version = get_u16(trailer, 8);
        if version != VERSION {
            return Err(FooterError::Version(version));
        }
        if crc32c(&trailer[..CRC_AT]) != get_u32(trailer, CRC_AT)
            || get_u64(trailer, 16) != object_bytes
            || trailer[48..CRC_AT].iter().chain(&trailer[10..12]).any(|byte| *byte != 0)
        {
            return Err(FooterError::Damaged);
        }
        let (pages, meta_bytes) = (get_u32(trailer, 12), u64::from(get_u32(trailer, 24)));
        let count = pages.div_ceil(FRAME_PAGES);
        let index_bytes = count as usize * ENTRY_BYTES;
        let footer_bytes = (index_bytes + TRAILER_BYTES) as u64;
        let meta_end = object_bytes.checked_sub(footer_bytes).ok_or(FooterError::Damaged)?;
        let meta_start = meta_end.checked_sub(meta_bytes).ok_or(FooterError::Damaged)?;
        if count > FRAMES_MAX {
            return Err(FooterError::Damaged);
        }
        let Some(index_start) = index_end.checked_sub(index_bytes) else {
            return Err(FooterError::Short(footer_bytes));
        };
        let index = &tail[index_start..index_end];
        if crc32c(index) != get_u32(trailer, 28) {
            return Err(FooterError::Damaged);
        }
        let frames = decode_index(index, pages, meta_start).ok_or(FooterError::Damaged)?;
        let hash = get(trailer, 32);
        Ok(Self { frames, meta: meta_start..meta_end, pages, hash })
    }

    /// Where the object has the segment's metadata ([`SegmentMeta::decode`]).
    #[must_use]
    pub fn meta_range(&self) -> Range<u64> {
        self.meta.clone()
    }

    /// The frame that has data page `page`; `None` when it is no data page of the segment, or the
    /// object does not have it.
    #[must_use]
    pub fn frame_for(&self, meta: &SegmentMeta, page: PageIndex) -> Option<FrameRef> {
        let ordinal = meta.ordinal(page)?;
        self.frames().nth((ordinal / FRAME_PAGES) as usize).filter(|frame| frame.has(ordinal))
    }

    /// All frames, in page order.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = FrameRef> + '_ {
        self.frames
            .iter()
            .enumerate()
            .map(|(index, entry)| FrameRef { index: index as u32, entry: *entry })
    }

    /// Whether this is an object of the segment with this hash, as far as 16 bytes tell.
    #[must_use]
    pub fn is_of(&self, hash: SegmentHash) -> bool {
        self.hash == hash.0[..16]
    }

    /// Data pages that the segment has, in the object or not.
    #[must_use]
    pub fn data_pages(&self) -> u32 {
        self.pages
    }

    /// Whether the object has this data page.
    #[must_use]
    pub fn has(&self, meta: &SegmentMeta, page: PageIndex) -> bool {
        self.frame_for(meta, page).is_some()
    }
}

/// Appends metadata, frame index and trailer to the frames.
pub(super) fn append(out: &mut Vec<u8>, meta: &SegmentMeta, frames: &[FrameEntry]) {
    let meta_bytes = meta.encode();
    out.extend_from_slice(&meta_bytes);
    let index_start = out.len();
    for frame in frames {
        let mut entry = [0; ENTRY_BYTES];
        put_u32(&mut entry, 0, frame.offset);
        put_u32(&mut entry, 4, frame.length | if frame.compressed { COMPRESSED } else { 0 });
        put_u16(&mut entry, 8, frame.stored);
        put_u16(&mut entry, 10, frame.zero);
        put_u32(&mut entry, 12, frame.crc);
        out.extend_from_slice(&entry);
    }
    let mut trailer = [0; TRAILER_BYTES];
    trailer[..8].copy_from_slice(&MAGIC);
    put_u16(&mut trailer, 8, VERSION);
    put_u32(&mut trailer, 12, meta.data_pages());
    put_u64(&mut trailer, 16, (out.len() + TRAILER_BYTES) as u64);
    put_u32(&mut trailer, 24, meta_bytes.len() as u32);
    put_u32(&mut trailer, 28, crc32c(&out[index_start..]));
    let SegmentHash(hash) = meta.hash();
    trailer[32..48].copy_from_slice(&hash[..16]);
    let crc = crc32c(&trailer[..CRC_AT]);
    put_u32(&mut trailer, CRC_AT, crc);
    out.extend_from_slice(&trailer);
}

/// Reads the frame index: frames stand one behind the other before `frames_end`, none longer than
/// its pages, and pages behind the segment's last are in none.
fn decode_index(index: &[u8], pages: u32, frames_end: u64) -> Option<Vec<FrameEntry>> {
    let mut frames = Vec::with_capacity(index.len() / ENTRY_BYTES);
    let mut end = 0;
    for (number, bytes) in index.chunks_exact(ENTRY_BYTES).enumerate() {
        let length = get_u32(bytes, 4);
        let frame = FrameEntry {
            offset: get_u32(bytes, 0),
            length: length & !COMPRESSED,
            compressed: length & COMPRESSED != 0,
            stored: get_u16(bytes, 8),
            zero: get_u16(bytes, 10),
            crc: get_u32(bytes, 12),
        };
        let last = pages - number as u32 * FRAME_PAGES;
        let beyond = if last >= FRAME_PAGES { 0 } else { u16::MAX << last };
        let valid = u64::from(frame.offset) == end
            && frame.length as usize <= FRAME_BYTES
            && frame.stored & frame.zero == 0
            && (frame.stored | frame.zero) & beyond == 0;
        if !valid {
            return None;
        }
        end += u64::from(frame.length);
        frames.push(frame);
    }
    (end == frames_end).then_some(frames)
}
