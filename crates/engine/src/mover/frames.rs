//! Pages of a segment on the wire: lines of up to 64 KiB, zero pages as bits, the rest compressed
//! where that makes it smaller.

use crate::error::{Error, ErrorKind, Result};
use crate::message::{Encoding, PageFrame};
use crate::volume::log::{PageRuns, pages_in};
use bytes::Bytes;
use pannier_core::movement::limits::LINE_PAGES;
use pannier_core::units::{BLOCK_BYTES, PageIndex};
use std::ops::Range;

const PAGE: usize = BLOCK_BYTES as usize;

/// zstd level on the wire: as in stores.
pub(crate) const ZSTD_LEVEL: i32 = 3;

/// Encodes pages: `bytes` are those of `runs`, one behind the other.
///
/// # Panics
/// When `bytes` has another length than `runs` say.
pub(crate) fn encode(runs: &[Range<u32>], bytes: &[u8]) -> (Vec<PageFrame>, Vec<u8>) {
    assert_eq!(bytes.len(), pages_in(runs) as usize * PAGE, "pages and their bytes");
    let (mut frames, mut payload) = (Vec::new(), Vec::new());
    let mut at = 0;
    for run in runs {
        let mut first = run.start;
        while first < run.end {
            let end = run.end.min((first / LINE_PAGES + 1) * LINE_PAGES);
            let length = (end - first) as usize * PAGE;
            frames.push(encode_line(first, &bytes[at..at + length], &mut payload));
            at += length;
            first = end;
        }
    }
    (frames, payload)
}

fn encode_line(first: u32, bytes: &[u8], payload: &mut Vec<u8>) -> PageFrame {
    let (mut data, mut zero) = (0_u16, 0_u16);
    let mut kept = Vec::with_capacity(bytes.len());
    for (index, page) in bytes.chunks_exact(PAGE).enumerate() {
        if page.iter().all(|byte| *byte == 0) {
            zero |= 1 << index;
        } else {
            data |= 1 << index;
            kept.extend_from_slice(page);
        }
    }
    let packed = zstd::bulk::compress(&kept, ZSTD_LEVEL);
    let (encoding, body) = match packed {
        Ok(packed) if packed.len() < kept.len() => (Encoding::Zstd, packed),
        Ok(_) | Err(_) => (Encoding::Raw, kept),
    };
    payload.extend_from_slice(&body);
    PageFrame { first: PageIndex(first), data, zero, encoding, bytes: body.len() as u32 }
}

fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("a peer's answer with pages is damaged: {what}"))
}

/// Decodes an answer to a request for `wanted`: the runs that it holds, and their bytes, one behind
/// the other.
///
/// # Errors
/// `Corrupt` when the answer contradicts itself or holds what was not asked for.
pub(crate) fn decode(
    wanted: &[Range<u32>],
    frames: &[PageFrame],
    payload: &Bytes,
) -> Result<(PageRuns, Vec<u8>)> {
    let pages_max = pages_in(wanted) as usize;
    let (mut runs, mut bytes) = (PageRuns::new(), Vec::with_capacity(pages_max * PAGE));
    let (mut at, mut behind) = (0_usize, 0_u32);
    for frame in frames {
        let end = at.checked_add(frame.bytes as usize).filter(|end| *end <= payload.len());
        let end = end.ok_or_else(|| damaged("it is too short"))?;
        if frame.data & frame.zero != 0 || frame.first.0 < behind {
            return Err(damaged("its pages overlap"));
        }
        let count = frame.data.count_ones() as usize;
        let body = match frame.encoding {
            Encoding::Raw => payload[at..end].to_vec(),
            Encoding::Zstd => zstd::bulk::decompress(&payload[at..end], count * PAGE)
                .map_err(|error| damaged("a frame does not decompress").with_source(error))?,
        };
        if body.len() != count * PAGE {
            return Err(damaged("a frame has another length than it says"));
        }
        at = end;
        let mut pages = body.chunks_exact(PAGE);
        for bit in (0..16).filter(|bit| (frame.data | frame.zero) & (1 << bit) != 0) {
            let Some(page) = frame.first.0.checked_add(bit) else {
                return Err(damaged("a page is out of range"));
            };
            if !wanted.iter().any(|run| run.contains(&page)) {
                return Err(damaged("it holds a page that was not asked for"));
            }
            if frame.data & (1 << bit) == 0 {
                bytes.resize(bytes.len() + PAGE, 0);
            } else if let Some(content) = pages.next() {
                bytes.extend_from_slice(content);
            }
            push(&mut runs, page);
            behind = page + 1;
        }
    }
    Ok((runs, bytes))
}

/// Adds a page behind the last run.
fn push(runs: &mut PageRuns, page: u32) {
    match runs.last_mut() {
        Some(run) if run.end == page => run.end += 1,
        _ => runs.push(page..page + 1),
    }
}

/// The pages of `all` that are not in `some`. Both ascending.
pub(crate) fn without(all: &[Range<u32>], some: &[Range<u32>]) -> PageRuns {
    let mut rest = PageRuns::new();
    for run in all {
        for page in run.clone().filter(|page| !some.iter().any(|taken| taken.contains(page))) {
            push(&mut rest, page);
        }
    }
    rest
}
