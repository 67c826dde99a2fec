//! A segment's stored form: compressed frames, metadata, footer index. Drawn in `docs/formats.md`.
//!
//! An object is `frames | SegmentMeta | frame index | trailer`. The data pages of a segment are cut
//! into frames of [`FRAME_PAGES`] by their ordinal (see [`SegmentMeta::ordinal`]), so that a page's
//! frame is known without search and any frame is one ranged read. A frame leaves out pages that
//! the copy does not have and pages of zeroes, and is compressed unless that makes it no smaller.
//! The segment's hash is the same whatever pages a copy has.

mod footer;
mod frame;

pub use footer::{FOOTER_BYTES_MAX, Footer, FooterError, FrameRef};
pub use frame::{FrameError, FramePage, decode_frame};

use crate::format::segment::{PAGE_BYTES, SegmentMeta, limits::CAPACITY_PAGES_MAX};
use crate::ids::{SegmentHash, SegmentId};
use crate::units::PageIndex;
use footer::FrameEntry;

/// Data pages of a full frame: 64 KiB before compression. Large enough to compress well, small
/// enough that a 4 KiB miss fetches little more than it needs.
pub const FRAME_PAGES: u32 = 16;

/// Bytes of a full frame before compression; no frame is longer in an object either.
pub const FRAME_BYTES: usize = FRAME_PAGES as usize * PAGE_BYTES;

/// Level of zstd: the knee between bytes saved and time spent.
const ZSTD_LEVEL: i32 = 3;

/// Most frames of an object that a reader accepts.
const FRAMES_MAX: u32 = CAPACITY_PAGES_MAX / FRAME_PAGES;

/// The key of a segment's object: create-only, and never of two contents, because it carries the
/// hash and the generation: 1 when first stored; a thinned copy, and one in place of a damaged
/// object, is the next.
#[must_use]
pub fn key(id: SegmentId, generation: u32, hash: SegmentHash) -> String {
    let short = &hash.to_string()[..16];
    format!("volumes/{}/segments/{}.{generation}.{short}", id.volume, id.name)
}

/// The generation that a key, or its last part, names.
#[must_use]
pub fn generation_of(key: &str) -> Option<u32> {
    key.rsplit('.').nth(1)?.parse().ok()
}

/// Encodes the pages that `present` has into an object; a page for which it answers `None` is left
/// out: dead, or not there. Pages of zeroes take no room.
///
/// # Panics
/// When `present` answers with other than [`PAGE_BYTES`] bytes.
pub fn encode<'a>(
    meta: &SegmentMeta,
    mut present: impl FnMut(PageIndex) -> Option<&'a [u8]>,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut frames = Vec::with_capacity(meta.data_pages().div_ceil(FRAME_PAGES) as usize);
    let mut packer = frame::Packer::new();
    let mut pages = meta.pages().peekable();
    while pages.peek().is_some() {
        packer.begin();
        for bit in 0..FRAME_PAGES {
            let Some(page) = pages.next() else { break };
            if let Some(bytes) = present(page) {
                packer.add(bit, bytes);
            }
        }
        frames.push(packer.finish(&mut out));
    }
    footer::append(&mut out, meta, &frames);
    out
}

#[cfg(test)]
mod tests;
