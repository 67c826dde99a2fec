//! Stored segments: golden bytes, round trips, hostile bytes.

use super::*;
use crate::format::segment::golden::{KEY, sealing};
use crate::format::segment::{Header, Link, Sealing, SegmentWriter};
use crate::ids::VolumeId;
use crate::units::BlockIndex;
use proptest::prelude::*;
use std::collections::BTreeMap;

type Pages = BTreeMap<PageIndex, Vec<u8>>;

fn golden() -> (SegmentMeta, Pages) {
    let (sealing, pages) = sealing();
    (sealing.into_meta(), pages.into_iter().collect())
}

fn object(meta: &SegmentMeta, pages: &Pages) -> Vec<u8> {
    encode(meta, |page| pages.get(&page).map(Vec::as_slice))
}

fn footer_of(object: &[u8]) -> Result<Footer, FooterError> {
    let tail = object.len().saturating_sub(FOOTER_BYTES_MAX as usize);
    Footer::decode_tail(&object[tail..], object.len() as u64)
}

/// Reads a whole object as a fetcher does; the pages that it has.
fn read(object: &[u8], meta: &SegmentMeta) -> Result<Pages, String> {
    let footer = footer_of(object).map_err(|error| error.to_string())?;
    let mut found = Pages::new();
    for frame in footer.frames() {
        let range = frame.range();
        let bytes = object.get(range.start as usize..range.end as usize).ok_or("range")?;
        let mut buffer = Vec::new();
        let pages = decode_frame(&frame, bytes, meta, &KEY, &mut buffer);
        for page in pages.map_err(|error| error.to_string())? {
            found.insert(page.page, page.bytes.to_vec());
        }
    }
    Ok(found)
}

#[test]
fn golden_bytes_of_version_1() {
    let (meta, pages) = golden();
    let object = object(&meta, &pages);
    let trailer: String =
        object[object.len() - 64..].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        trailer,
        "\
         504e522d53544f52010000000500000070020000000000000402000045928c62\
         14e78051e7a591f4389dbffeb0f5ecb600000000000000000000000059c5bf3e"
    );
    // What zstd makes of a frame may change with its version; what it means may not.
    let footer = footer_of(&object).unwrap();
    assert!(footer.is_of(meta.hash()));
    let range = footer.meta_range();
    let inside = &object[range.start as usize..range.end as usize];
    assert_eq!(SegmentMeta::decode(inside, &KEY).as_ref(), Ok(&meta));
    assert!(read(&object, &meta) == Ok(pages), "pages differ");
    let id = key(meta.id(), 1, meta.hash());
    assert_eq!(
        id,
        "volumes/01234567-89ab-cdef-0123-456789abcdef/segments/3.2-17.1.14e78051e7a591f4"
    );
}

#[test]
fn an_object_written_by_version_1_reads() {
    let object: Vec<u8> = GOLDEN_OBJECT
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    let (meta, pages) = golden();
    assert!(read(&object, &meta) == Ok(pages), "pages differ");
}

#[test]
fn pages_left_out_are_not_there_and_the_rest_is() {
    let (meta, pages) = golden();
    for absent in pages.keys() {
        let mut some = pages.clone();
        some.remove(absent);
        let object = object(&meta, &some);
        let footer = footer_of(&object).unwrap();
        assert!(!footer.has(&meta, *absent));
        assert!(some.keys().all(|page| footer.has(&meta, *page)));
        assert!(read(&object, &meta) == Ok(some), "pages differ");
    }
    let nothing = object(&meta, &Pages::new());
    assert_eq!(read(&nothing, &meta), Ok(Pages::new()));
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let (meta, pages) = golden();
    let object = object(&meta, &pages);
    let footer = footer_of(&object).unwrap();
    for at in 0..object.len() {
        if footer.meta_range().contains(&(at as u64)) {
            continue; // Guarded by its own CRC and hash.
        }
        let mut flipped = object.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(read(&flipped, &meta).is_err(), "bit {} of byte {at}", at % 8);
    }
    for cut in 0..object.len() {
        assert!(footer_of(&object[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_page_of_another_segment_is_noticed() {
    let (meta, pages) = golden();
    let mut forged = pages.clone();
    forged.insert(PageIndex(3), vec![9; PAGE_BYTES]);
    let wrong = read(&object(&meta, &forged), &meta);
    assert_eq!(wrong, Err("page 3 of frame 0 is not what the block table names".into()));
    forged.insert(PageIndex(3), vec![0; PAGE_BYTES]);
    assert!(read(&object(&meta, &forged), &meta).is_err(), "a page forged as zero");
}

#[test]
fn a_short_tail_says_how_long_it_has_to_be() {
    let (meta, pages) = golden();
    let object = object(&meta, &pages);
    let short = Footer::decode_tail(&object[object.len() - 64..], object.len() as u64);
    assert_eq!(short, Err(FooterError::Short(80)));
}

/// A segment of so many pages, `fill` saying what each is: 0 zeroes, 1 text, 2 noise.
fn filled(fill: &[u8]) -> (SegmentMeta, Pages) {
    let name = "1.1-1".parse().unwrap();
    let capacity_pages = fill.len() as u32 * 3 + 64;
    let header = Header { volume: VolumeId(1), name, nonce: 3, predecessor: None, capacity_pages };
    let mut writer = SegmentWriter::new(header, Link::default());
    let (mut pages, mut state) = (Pages::new(), 88_172_645_463_325_252_u64);
    for (number, fill) in fill.iter().enumerate() {
        let block: Vec<u8> = (0..PAGE_BYTES)
            .map(|at| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                match fill {
                    0 => 0,
                    1 => (at % 61 + number) as u8,
                    _ => state as u8,
                }
            })
            .collect();
        let at = writer.append_data(BlockIndex(number as u64), &block, false).unwrap();
        pages.insert(at.page, block);
    }
    let table = pages.values().map(|block| KEY.block(block)).collect();
    let sealing: Sealing = writer.seal(table, &KEY);
    (sealing.into_meta(), pages)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_stored_is_read(
        fill in prop::collection::vec((0..3_u8, prop::bool::weighted(0.8)), 0..140),
    ) {
        let (meta, mut pages) = filled(&fill.iter().map(|(fill, _)| *fill).collect::<Vec<_>>());
        let present: Vec<bool> = fill.iter().map(|(_, present)| *present).collect();
        let mut number = 0;
        pages.retain(|_, _| { number += 1; present[number - 1] });
        let object = object(&meta, &pages);
        prop_assert!(read(&object, &meta) == Ok(pages));
    }

    /// Bytes changed at random, with every CRC of the footer made to hold again, as a hostile store
    /// would: no panic, and never a page that the block table does not name.
    #[test]
    fn hostile_objects_never_panic_and_never_lie(
        patches in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        in_index in any::<bool>(),
        pages_claimed in prop::option::of(any::<u32>()),
    ) {
        let (meta, pages) = filled(&[1; 40]);
        let mut object = object(&meta, &pages);
        let index = object.len() - 64 - 3 * 16;
        let (from, to) = if in_index { (index, object.len() - 64) } else { (0, object.len()) };
        for (at, value) in patches {
            let at = from + at.index(to - from);
            object[at] = value;
        }
        let end = object.len();
        if let Some(claimed) = pages_claimed {
            object[end - 52..end - 48].copy_from_slice(&claimed.to_le_bytes());
        }
        let index_crc = crate::format::segment::crc32c(&object[index..end - 64]);
        object[end - 36..end - 32].copy_from_slice(&index_crc.to_le_bytes());
        let crc = crate::format::segment::crc32c(&object[end - 64..end - 4]);
        object[end - 4..].copy_from_slice(&crc.to_le_bytes());
        if let Ok(found) = read(&object, &meta) {
            prop_assert!(found.iter().all(|(page, block)| pages.get(page) == Some(block)));
        }
    }
}

/// A whole object of version 1: the pages of [`golden`].
const GOLDEN_OBJECT: &str = "\
         28b52ffd60003f9500002801010203040414002ffc17fe1fffd9fedb504e522d\
         4d4554410100000000000000504e522d5345474d010000004000000001234567\
         89abcdef0123456789abcdef1100000000000000030000000000000002000000\
         0100000088776655443322111000000000000000020000000000000009000000\
         000000000000000000000000504e522d5345414c010000000700000088776655\
         4433221105000000030000000900000005000000efbeaddef4b7216100000000\
         00000000000000000000000014e78051e7a591f4389dbffeb0f5ecb68a39ff8a\
         809d9ebeaba5158dfc72118a0700000000000000030000000000000003000000\
         e8e8807f01000000e3c5d0f36400000000000000320000000000000000000000\
         0000000002000000fddc2f710000000000010000010000000000000000000000\
         00000000030000001a4b7c190000000004000000000000000000000000000000\
         0000000004000000620be12c0800000000000000010000000000000007000000\
         624836f2010100005111c576cdab0000000000000c0000000000000000000000\
         0000000005000000ae01696a0700000000000000010000000000000008000000\
         427149fd01000000f4b7216178bdcc98a95aabac95154e6971d1709dd26ed0be\
         744b1879a00f981a4e516a93eea7f984a48a48de2120171f65281f35b1a74971\
         ce6b21079933122b20f503a3396b4f72950d5c77b9ac52033c7bbb54c561a340\
         000000001c0000801d000200e0bae108504e522d53544f520100000005000000\
         70020000000000000402000045928c6214e78051e7a591f4389dbffeb0f5ecb6\
         00000000000000000000000059c5bf3e";
