//! Metadata from hostile hands, and the pages' arithmetic.

use super::*;
use crate::format::segment::golden::{KEY, sealing};
use proptest::prelude::*;

#[test]
fn pages_and_ordinals() {
    let (sealing, pages) = sealing();
    let meta = sealing.meta();
    assert_eq!(meta.pages().map(|page| page.0).collect::<Vec<_>>(), [3, 4, 5, 7, 8]);
    for (ordinal, (page, block)) in pages.iter().enumerate() {
        assert_eq!(meta.ordinal(*page), Some(ordinal as u32));
        assert_eq!(meta.page_at(ordinal as u32), Some(*page));
        assert!(meta.verify(*page, block, &KEY));
        assert!(!meta.verify(*page, &block[1..], &KEY));
    }
    for page in [0, 1, 2, 6, 9, u32::MAX] {
        assert_eq!((meta.ordinal(PageIndex(page)), page), (None, page));
        assert!(meta.block_hash(PageIndex(page)).is_none());
    }
    assert_eq!(meta.page_at(5), None);
    assert_eq!(meta.page_at(u32::MAX), None);
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let bytes = sealing().0.meta().encode();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(SegmentMeta::decode(&flipped, &KEY).is_err(), "bit {} of byte {at}", at % 8);
        assert!(SegmentMeta::decode(&bytes[..at], &KEY).is_err(), "cut at {at}");
    }
}

/// Makes the CRC hold again, as a forger would.
fn with_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - CRC_BYTES;
    let crc = crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn a_forgery_without_the_key_is_noticed() {
    let bytes = sealing().0.meta().encode();
    for at in 0..bytes.len() - CRC_BYTES {
        let mut forged = bytes.clone();
        forged[at] ^= 0x10;
        // `durable` and `tail` say where copies stand, not what the segment is.
        let of_the_copy = (SEAL_AT + 28..SEAL_AT + 36).contains(&at);
        let decoded = SegmentMeta::decode(&with_crc(forged), &KEY);
        assert!(decoded.is_err() || of_the_copy, "byte {at}");
    }
    let other = HashKey([1; 32]);
    assert_eq!(SegmentMeta::decode(&bytes, &other), Err(MetaError::Hash));
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(
        patches in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        keep in any::<bool>(),
    ) {
        let mut bytes = sealing().0.meta().encode();
        for (at, value) in patches {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if !keep {
            bytes.truncate(cut.index(bytes.len()).max(CRC_BYTES));
        }
        // A decoded segment may differ in the copy's fields only.
        if let Ok(meta) = SegmentMeta::decode(&with_crc(bytes), &KEY) {
            prop_assert_eq!(meta.hash(), sealing().0.hash());
        }
    }
}
