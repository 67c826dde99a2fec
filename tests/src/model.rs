//! What a disk may contain, given what was acknowledged.
//!
//! Every write has a stamp, and every sector that it writes says its stamp and its own number. A
//! sector may then hold its last acknowledged stamp, or that of any write to it that was sent since
//! and not answered. What was once read is acknowledged from then on: a disk does not go back.

use std::collections::BTreeMap;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// The stamp of a sector that reads as zero.
pub const ZERO: u64 = 0;

/// A sector with another content than it may have.
#[derive(Debug)]
pub struct Mismatch {
    /// The sector.
    pub sector: u64,
    /// The stamp that was read; `None` when the sector is no sector of ours, or torn.
    pub found: Option<u64>,
    /// The last acknowledged stamp.
    pub acknowledged: u64,
    /// Stamps of writes that may have happened.
    pub possible: Vec<u64>,
}

/// The model of a disk.
#[derive(Debug)]
pub struct Model {
    acknowledged: Vec<u64>,
    possible: BTreeMap<u64, Vec<u64>>,
    next: u64,
}

fn mix(stamp: u64, sector: u64, word: u64) -> u64 {
    // splitmix64 over what the word is: any exchanged, torn or shifted part shows.
    let mut z = stamp
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(sector.wrapping_mul(0xbf58_476d_1ce4_e5b9))
        .wrapping_add(word.wrapping_mul(0x94d0_49bb_1331_11eb));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Writes a sector's content.
pub fn fill(into: &mut [u8], sector: u64, stamp: u64) {
    if stamp == ZERO {
        into.fill(0);
        return;
    }
    for (word, bytes) in into.chunks_exact_mut(8).enumerate() {
        let value = if word == 0 { stamp } else { mix(stamp, sector, word as u64) };
        bytes.copy_from_slice(&value.to_le_bytes());
    }
}

/// The stamp of a sector's content; `None` when it is not whole.
#[must_use]
pub fn stamp_of(content: &[u8], sector: u64) -> Option<u64> {
    let stamp = u64::from_le_bytes(content[..8].try_into().ok()?);
    let mut expect = [0; SECTOR];
    fill(&mut expect, sector, stamp);
    (expect == content).then_some(stamp)
}

impl Model {
    /// An empty disk.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self {
            acknowledged: vec![ZERO; size_bytes as usize / SECTOR],
            possible: BTreeMap::new(),
            next: 1,
        }
    }

    /// Size in sectors.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.acknowledged.len() as u64
    }

    /// A write of `count` sectors is sent: its stamp.
    pub fn sent(&mut self, first: u64, count: u64) -> u64 {
        let stamp = self.next;
        self.next += 1;
        self.sent_as(first, count, stamp);
        stamp
    }

    /// A write with a given stamp is sent, [`ZERO`] for zeroes and discards.
    pub fn sent_as(&mut self, first: u64, count: u64, stamp: u64) {
        for sector in first..first + count {
            self.possible.entry(sector).or_default().push(stamp);
        }
    }

    /// The write was acknowledged. No other write to these sectors was under way.
    pub fn acknowledged(&mut self, first: u64, count: u64, stamp: u64) {
        for sector in first..first + count {
            self.acknowledged[sector as usize] = stamp;
            self.possible.remove(&sector);
        }
    }

    /// The content that a read returned.
    ///
    /// # Errors
    /// The first sector that has another content than it may have.
    pub fn read(&mut self, first: u64, content: &[u8]) -> Result<(), Mismatch> {
        for (offset, bytes) in content.chunks_exact(SECTOR).enumerate() {
            let sector = first + offset as u64;
            let found = stamp_of(bytes, sector);
            let acknowledged = self.acknowledged[sector as usize];
            if found == Some(acknowledged) {
                continue;
            }
            let possible = self.possible.get(&sector).cloned().unwrap_or_default();
            match found {
                Some(stamp) if possible.contains(&stamp) => {
                    // It has happened. Writes sent before it were overwritten or never happen:
                    // their connection is gone, and a new one was not made before the old one
                    // ended.
                    self.acknowledged[sector as usize] = stamp;
                    self.possible.remove(&sector);
                }
                _ => return Err(Mismatch { sector, found, acknowledged, possible }),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sectors(first: u64, stamps: &[u64]) -> Vec<u8> {
        let mut bytes = vec![0; stamps.len() * SECTOR];
        for (offset, (sector, stamp)) in bytes.chunks_exact_mut(SECTOR).zip(stamps).enumerate() {
            fill(sector, first + offset as u64, *stamp);
        }
        bytes
    }

    #[test]
    fn what_was_acknowledged_is_there_and_what_was_sent_may_be() {
        let mut model = Model::new(1 << 20);
        let a = model.sent(8, 2);
        model.acknowledged(8, 2, a);
        assert!(model.read(7, &sectors(7, &[ZERO, a, a, ZERO])).is_ok());
        assert!(model.read(8, &sectors(8, &[ZERO])).is_err(), "an acknowledged write is lost");
        let b = model.sent(9, 1);
        assert!(model.read(9, &sectors(9, &[a])).is_ok());
        assert!(model.read(9, &sectors(9, &[b])).is_ok());
        assert!(model.read(9, &sectors(9, &[a])).is_err(), "a disk does not go back");
        let mut torn = sectors(8, &[a]);
        torn[300] ^= 1;
        assert!(model.read(8, &torn).is_err(), "a flipped bit");
        assert!(model.read(8, &sectors(9, &[a])).is_err(), "the content of another sector");
    }
}
