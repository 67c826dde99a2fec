//! The stream in which a volume's data goes in and out: only what is not zero.
//!
//! A sequence of pieces, little-endian: offset (u64), length (u64), then so many bytes. Offsets and
//! lengths are multiples of 512, a piece has at most 1 MiB, pieces ascend. A piece of length 0
//! whose offset is the volume's size ends the stream; without it the stream is broken off.

use bytes::{Buf as _, Bytes, BytesMut};
use pannier_core::units::{BLOCK_BYTES, SECTOR_BYTES};

/// Most bytes of a piece.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// Bytes of a piece's header.
pub(crate) const HEADER_BYTES: usize = 16;

/// A piece of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Bytes at an offset.
    Data {
        /// First byte on the volume.
        offset: u64,
        /// They.
        bytes: Bytes,
    },
    /// The end; the volume has this many bytes.
    End(u64),
}

/// A piece's header.
pub(crate) fn header(offset: u64, length: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&offset.to_le_bytes());
    header[8..].copy_from_slice(&(length as u64).to_le_bytes());
    header
}

/// The runs of blocks of a buffer that are not all zero, with their place in it.
pub(crate) fn data_parts(buffer: &[u8]) -> Vec<(usize, &[u8])> {
    let block = BLOCK_BYTES as usize;
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for (index, bytes) in buffer.chunks(block).enumerate() {
        if bytes.iter().all(|byte| *byte == 0) {
            continue;
        }
        let start = index * block;
        match parts.last_mut() {
            Some((from, length)) if *from + *length == start => *length += bytes.len(),
            _ => parts.push((start, bytes.len())),
        }
    }
    parts.into_iter().map(|(from, length)| (from, &buffer[from..from + length])).collect()
}

/// Takes a stream apart.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: BytesMut,
    /// Where the next piece may begin.
    at: u64,
    ended: bool,
}

impl Decoder {
    /// Takes more of the stream.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole piece.
    ///
    /// # Errors
    /// The cause, when the bytes are no such stream.
    pub(crate) fn next(&mut self) -> Result<Option<Piece>, String> {
        if self.ended && !self.buffer.is_empty() {
            return Err("there are bytes behind its end".to_owned());
        }
        let Some((header, rest)) = self.buffer.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let (mut offset, mut length) = ([0; 8], [0; 8]);
        offset.copy_from_slice(&header[..8]);
        length.copy_from_slice(&header[8..]);
        let (offset, length) = (u64::from_le_bytes(offset), u64::from_le_bytes(length));
        if offset < self.at || offset % SECTOR_BYTES != 0 || length % SECTOR_BYTES != 0 {
            return Err(format!("a piece at {offset} of {length} bytes cannot follow {}", self.at));
        }
        if length == 0 {
            self.ended = true;
            self.buffer.advance(HEADER_BYTES);
            return Ok(Some(Piece::End(offset)));
        }
        if length > PIECE_BYTES as u64 {
            return Err(format!("a piece of {length} bytes is longer than {PIECE_BYTES}"));
        }
        if (rest.len() as u64) < length {
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        let bytes = self.buffer.split_to(length as usize).freeze();
        self.at = offset.checked_add(length).ok_or_else(|| "an offset overflows".to_owned())?;
        Ok(Some(Piece::Data { offset, bytes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(stream: &[u8], step: usize) -> Result<Vec<Piece>, String> {
        let mut decoder = Decoder::default();
        let mut pieces = Vec::new();
        for part in stream.chunks(step) {
            decoder.push(part);
            while let Some(piece) = decoder.next()? {
                pieces.push(piece);
            }
        }
        Ok(pieces)
    }

    #[test]
    fn pieces_survive_any_cut() {
        let mut stream = Vec::new();
        stream.extend(header(512, 1024));
        stream.extend([7; 1024]);
        stream.extend(header(4096, 0));
        for step in [1, 15, 16, 17, 500, 5000] {
            let pieces = all(&stream, step).unwrap();
            let data = Piece::Data { offset: 512, bytes: Bytes::from(vec![7; 1024]) };
            assert_eq!(pieces, [data, Piece::End(4096)], "step {step}");
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        for (offset, length) in [(1, 512), (0, 100), (0, (PIECE_BYTES + 512) as u64)] {
            let stream = header(offset, length as usize);
            assert!(all(&stream, 16).is_err(), "{offset} {length}");
        }
        let mut back = header(1024, 512).to_vec();
        back.extend([1; 512]);
        back.extend(header(0, 512));
        assert!(all(&back, 16).is_err(), "pieces ascend");
        let mut behind = header(0, 0).to_vec();
        behind.push(0);
        assert!(all(&behind, 17).is_err(), "nothing follows the end");
    }

    #[test]
    fn zeroes_are_left_out() {
        let mut buffer = vec![0; 5 * 4096];
        assert!(data_parts(&buffer).is_empty());
        buffer[4096] = 1;
        buffer[3 * 4096 - 1] = 1;
        buffer[5 * 4096 - 1] = 1;
        let parts: Vec<_> = data_parts(&buffer).iter().map(|(at, b)| (*at, b.len())).collect();
        assert_eq!(parts, [(4096, 8192), (4 * 4096, 4096)]);
    }
}
