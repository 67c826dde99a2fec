//! One frame: up to sixteen pages of a segment, compressed.

use super::{FRAME_BYTES, FRAME_PAGES, FrameEntry, ZSTD_LEVEL, footer::FrameRef};
use crate::format::segment::{PAGE_BYTES, SegmentMeta, crc32c};
use crate::ids::HashKey;
use crate::units::PageIndex;

const ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Why a frame's bytes are not its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not as long as the frame index says.
    #[error("frame {frame} is cut off")]
    CutOff {
        /// Index of the frame.
        frame: u32,
    },
    /// CRC or decompression failed: damaged in the store or on the way.
    #[error("frame {frame} is damaged")]
    Damaged {
        /// Index of the frame.
        frame: u32,
    },
    /// A page is not what the segment's block table names.
    #[error("page {} of frame {frame} is not what the block table names", page.0)]
    Page {
        /// Index of the frame.
        frame: u32,
        /// The page.
        page: PageIndex,
    },
}

/// A verified page of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramePage<'a> {
    /// Which page of the segment.
    pub page: PageIndex,
    /// Its bytes; zeroes are those of a static page.
    pub bytes: &'a [u8],
}

/// Builds frames.
pub(super) struct Packer {
    pages: Vec<u8>,
    packed: Vec<u8>,
    compressor: zstd::bulk::Compressor<'static>,
    stored: u16,
    zero: u16,
}

impl Packer {
    pub(super) fn new() -> Self {
        Self {
            pages: Vec::with_capacity(FRAME_BYTES),
            packed: Vec::with_capacity(FRAME_BYTES),
            compressor: zstd::bulk::Compressor::new(ZSTD_LEVEL)
                .expect("level 3 exists in every zstd"),
            stored: 0,
            zero: 0,
        }
    }

    pub(super) fn begin(&mut self) {
        self.pages.clear();
        (self.stored, self.zero) = (0, 0);
    }

    pub(super) fn add(&mut self, bit: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), PAGE_BYTES, "a page");
        if bytes == ZERO_PAGE {
            self.zero |= 1 << bit;
        } else {
            self.stored |= 1 << bit;
            self.pages.extend_from_slice(bytes);
        }
    }

    pub(super) fn finish(&mut self, out: &mut Vec<u8>) -> FrameEntry {
        // Room for one byte less than the pages: a frame that does not shrink stays raw.
        self.packed.resize(self.pages.len().saturating_sub(1), 0);
        let packed = self.compressor.compress_to_buffer(&self.pages, &mut self.packed[..]);
        let (bytes, compressed) = match packed {
            Ok(length) if !self.pages.is_empty() => (&self.packed[..length], true),
            Ok(_) | Err(_) => (&self.pages[..], false),
        };
        let entry = FrameEntry {
            offset: out.len() as u32,
            length: bytes.len() as u32,
            compressed,
            stored: self.stored,
            zero: self.zero,
            crc: crc32c(bytes),
        };
        out.extend_from_slice(bytes);
        entry
    }
}

/// Decodes the bytes of `frame` and verifies every page in it against the block table. `buffer` is
/// scratch that can be used again.
///
/// # Errors
/// [`FrameError`]. Never panics, and never holds more than [`FRAME_BYTES`], whatever the bytes are.
pub fn decode_frame<'a>(
    frame: &FrameRef,
    bytes: &'a [u8],
    meta: &SegmentMeta,
    key: &HashKey,
    buffer: &'a mut Vec<u8>,
) -> Result<Vec<FramePage<'a>>, FrameError> {
    let (index, entry) = (frame.index, frame.entry);
    if bytes.len() != entry.length as usize {
        return Err(FrameError::CutOff { frame: index });
    }
    let damaged = FrameError::Damaged { frame: index };
    if crc32c(bytes) != entry.crc {
        return Err(damaged);
    }
    let length = entry.stored.count_ones() as usize * PAGE_BYTES;
    let pages: &[u8] = if entry.compressed {
        buffer.clear();
        buffer.resize(length, 0);
        let unpacked = zstd::bulk::decompress_to_buffer(bytes, &mut buffer[..]);
        if !unpacked.is_ok_and(|unpacked| unpacked == length) {
            return Err(damaged);
        }
        buffer
    } else {
        bytes
    };
    if pages.len() != length {
        return Err(damaged);
    }
    let mut blocks = pages.chunks_exact(PAGE_BYTES);
    let mut found = Vec::with_capacity(FRAME_PAGES as usize);
    for bit in 0..FRAME_PAGES {
        let block = if entry.stored & 1 << bit != 0 {
            blocks.next().ok_or(damaged)?
        } else if entry.zero & 1 << bit != 0 {
            &ZERO_PAGE
        } else {
            continue;
        };
        let page = meta.page_at(index * FRAME_PAGES + bit).ok_or(damaged)?;
        if !meta.verify(page, block, key) {
            return Err(FrameError::Page { frame: index, page });
        }
        found.push(FramePage { page, bytes: block });
    }
    Ok(found)
}
