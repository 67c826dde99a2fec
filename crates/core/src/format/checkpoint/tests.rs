use super::*;
use crate::ids::{
    Epoch, HashKey, Incarnation, RequestNumber, SegmentHash, SegmentName, Sequence, SessionId,
    VolumeId,
};
use crate::map::{LoadTarget, Map, MapPageIndex, PAGE_BLOCKS, Target};
use crate::units::{BLOCK_BYTES, BlockIndex, PageIndex};
use crate::volume::Position;
use proptest::prelude::*;
use std::collections::BTreeMap;

const KEY: HashKey = HashKey([7; 32]);

fn name(sequence: u64) -> SegmentName {
    SegmentName { sequence: Sequence(sequence), epoch: Epoch(3), incarnation: Incarnation(2) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Data from two segments met in the reverse of their order, a zero and holes.
fn small_page() -> Vec<u8> {
    let mut map = Map::new(5000).unwrap();
    let second = map.intern(name(9));
    let first = map.intern(name(8));
    map.assign(BlockIndex(0), 3, Target::Data(second, PageIndex(3))).unwrap();
    map.assign(BlockIndex(3), 1, Target::Data(first, PageIndex(200))).unwrap();
    map.assign(BlockIndex(16), 2, Target::Zero).unwrap();
    let snapshot = map.snapshot_dirty();
    let (index, page) = &snapshot.pages[0];
    assert_eq!(*index, MapPageIndex(0));
    encode_page(page.as_ref().unwrap(), &snapshot.segments)
}

fn root(pages: usize, segments: u64) -> Root {
    Root {
        volume: VolumeId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        size_bytes: pages as u64 * u64::from(PAGE_BLOCKS) * BLOCK_BYTES,
        epoch: Epoch(3),
        incarnation: Incarnation(2),
        through: Position { segment: Some(name(9)), entries: 5, chain_crc: 0xdead_beef },
        pages: (0..pages).map(|n| (n % 3 != 1).then(|| KEY.object(&n.to_le_bytes()))).collect(),
        segments: (1..=segments)
            .map(|n| LiveSegment {
                name: name(n),
                hash: (n % 5 != 0).then_some(SegmentHash([(n as u8).max(1); 32])),
                entries: n as u32,
                live_pages: 2 * n as u32,
                generation: 1,
            })
            .collect(),
        sessions: BTreeMap::from([(SessionId(4), RequestNumber(17))]),
        condemned: vec![name(1), name(2)],
        condemned_objects: vec![ObjectHash([1; 32])],
    }
}

fn read_back(encoded: &EncodedRoot) -> Result<Root, DecodeError> {
    let parts: BTreeMap<_, _> = encoded.parts.iter().cloned().collect();
    check_hash(&KEY, encoded.hash, &encoded.bytes)?;
    let head = RootHead::decode(&encoded.bytes)?;
    assert!(head.parts().iter().all(|part| parts.contains_key(part)));
    head.assemble(&KEY, |hash| Ok(parts[&hash].clone()))
}

#[test]
fn golden_page() {
    let bytes = small_page();
    let expect = concat!(
        "50414e4e4d415050",                 // magic
        "0100",                             // version
        "0000",                             // reserved
        "0200",                             // names
        "0500",                             // runs
        "08000000000000000300000000000000", // 8.. of epoch 3
        "02000000",                         // incarnation
        "09000000000000000300000000000000",
        "02000000",
        "0300010003000000", // 3 blocks, second name, from page 3
        "01000000c8000000", // 1 block, first name, page 200
        "0c00ffff00000000", // 12 holes
        "0200feff00000000", // 2 zeroes
        "ee0fffff00000000", // the rest
    );
    assert_eq!(hex(&bytes), expect);
    assert_eq!(
        hex(&KEY.object(&bytes).0),
        "be83c867c6a6cbf2e419b5b0e17c22dd2596c2160c7248e60c138093486a2110"
    );
}

#[test]
fn golden_root() {
    let encoded = root(2, 1).encode(&KEY);
    assert_eq!(encoded.parts.len(), 2);
    assert_eq!(
        hex(&encoded.bytes[..96]),
        concat!(
            "50414e4e524f4f54", // magic
            "0100",             // version
            "0100",             // has a position, reserved
            "02000000",         // incarnation
            "0123456789abcdef0123456789abcdef",
            "0000000200000000", // 32 MiB
            "0300000000000000", // epoch
            "09000000000000000300000000000000",
            "02000000",
            "05000000efbeadde", // entries, chain CRC
            "02000000010000000100000002000000",
            "01000000",
        )
    );
    assert_eq!(encoded.bytes.len(), 96 + 2 * 32 + 16 + 2 * 20 + 32);
    assert_eq!(
        encoded.hash.to_string(),
        "d86b02424685f28344dda0cb655991ad22fa8dd34e5b266e852b97169a52207c"
    );
}

#[test]
fn roots_survive() {
    for (pages, segments) in [(0, 0), (1, 0), (2, 1), (1024, 512), (1025, 513), (5000, 1300)] {
        let root = root(pages, segments);
        let encoded = root.encode(&KEY);
        assert_eq!(read_back(&encoded), Ok(root), "{pages} pages, {segments} segments");
    }
    let empty = Root { through: Position::START, ..root(3, 0) };
    assert_eq!(read_back(&empty.encode(&KEY)), Ok(empty));
    let mut holes = root(3000, 0);
    holes.pages.fill(None);
    let encoded = holes.encode(&KEY);
    assert!(encoded.parts.is_empty(), "a table of holes takes no part");
    assert_eq!(read_back(&encoded), Ok(holes));
}

#[test]
fn what_did_not_change_is_shared() {
    let before = root(5000, 1300).encode(&KEY);
    let mut root = root(5000, 1300);
    root.pages[1500] = Some(KEY.object(b"new"));
    root.segments[1299].live_pages -= 1;
    let after = root.encode(&KEY);
    let old: Vec<_> = before.parts.iter().map(|part| part.0).collect();
    let new = after.parts.iter().filter(|part| !old.contains(&part.0)).count();
    assert_eq!(new, 2, "one table part and one segment part");
}

#[test]
fn generations_are_named() {
    let mut root = root(2, 1300);
    root.segments[600].generation = 7;
    let encoded = root.encode(&KEY);
    assert_eq!(read_back(&encoded), Ok(root.clone()));
    let versions = |encoded: &EncodedRoot| -> Vec<u8> {
        let lists = encoded.parts.iter().filter(|(_, part)| part.starts_with(b"PANNSEGL"));
        lists.map(|(_, part)| part[8]).collect()
    };
    assert_eq!(versions(&encoded), [1, 2, 1]);

    root.segments = vec![LiveSegment { generation: 2, ..root.segments[0] }];
    let encoded = root.encode(&KEY);
    let (_, list) = encoded.parts.iter().find(|(_, part)| part[8] == 2).unwrap();
    let expect = concat!(
        "50414e4e5345474c",                 // magic
        "0200",                             // version
        "0100",                             // segments
        "01000000000000000300000000000000", // 1.. of epoch 3
        "02000000",                         // incarnation
        "0101010101010101010101010101010101010101010101010101010101010101",
        "01000000", // entries
        "02000000", // live pages
        "02000000", // generation
    );
    assert_eq!(hex(list), expect);
    for generation in [0, 1] {
        let mut list = list.clone();
        list[12 + 60] = generation;
        let mut other = encoded.clone();
        other.parts.retain(|(_, part)| part[8] == 1);
        let hash = KEY.object(&list);
        let at = 96 + 32;
        other.bytes[at..at + 32].copy_from_slice(&hash.0);
        other.hash = KEY.object(&other.bytes);
        other.parts.push((hash, list));
        assert!(matches!(read_back(&other), Err(DecodeError::Wrong(_))), "{generation}");
    }
}

#[test]
fn a_damaged_part_is_told() {
    let encoded = root(2, 1).encode(&KEY);
    let (damaged, mut bytes) = encoded.parts[0].clone();
    bytes[20] ^= 1;
    let result = RootHead::decode(&encoded.bytes).unwrap().assemble(&KEY, |hash| {
        let part = encoded.parts.iter().find(|part| part.0 == hash).unwrap();
        Ok(if hash == damaged { bytes.clone() } else { part.1.clone() })
    });
    assert!(matches!(result, Err(DecodeError::WrongHash { expected, .. }) if expected == damaged));
}

#[test]
fn what_the_encoder_would_not_write_is_refused() {
    let page = small_page();
    let change = |at: usize, to: &[u8]| {
        let mut bytes = page.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        decode_page(&bytes).unwrap_err()
    };
    let wrong = |error: DecodeError, what: &str| {
        assert!(error.to_string().contains(what), "{error}");
    };
    assert_eq!(change(0, b"X"), DecodeError::WrongMagic("map page"));
    assert_eq!(change(8, &[2]), DecodeError::WrongVersion(2));
    wrong(change(10, &[1]), "reserved");
    wrong(change(12, &[0xff, 0xff]), "segment names");
    wrong(change(16, &[9]), "ascend");
    wrong(change(14, &[0xff, 0xff]), "runs");
    // Run 0 begins at byte 56: 16 of header and two names of 20.
    wrong(change(56, &[0, 0]), "length");
    wrong(change(56, &[4, 0]), "cover");
    wrong(change(58, &[2, 0]), "not listed");
    wrong(change(58, &[0, 0]), "does not name");
    wrong(change(60, &[0xff, 0xff, 0xff, 0xff]), "length");
    wrong(change(76, &[1]), "has a page");
    wrong(change(74, &[0xfe, 0xff]), "two runs");
    let mut long = page.clone();
    long.push(0);
    wrong(decode_page(&long).unwrap_err(), "behind its end");
    let mut hole = page[..16].to_vec();
    (hole[12], hole[14]) = (0, 1);
    hole.extend_from_slice(&[0, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    wrong(decode_page(&hole).unwrap_err(), "not stored");
}

#[test]
fn every_truncation_and_every_flipped_bit_is_survived() {
    let page = small_page();
    let root = root(2, 3).encode(&KEY);
    for end in 0..page.len() {
        assert!(decode_page(&page[..end]).is_err());
    }
    for end in 0..root.bytes.len() {
        assert!(RootHead::decode(&root.bytes[..end]).is_err());
    }
    for bit in 0..page.len() * 8 {
        let mut bytes = page.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(check_hash(&KEY, KEY.object(&page), &bytes).is_err());
        if let Ok(content) = decode_page(&bytes) {
            let mut map = Map::new(u64::from(PAGE_BLOCKS)).unwrap();
            map.load_page(MapPageIndex(0), &content.runs).unwrap();
            assert_eq!(reencode(&mut map), bytes, "accepted, so canonical");
        }
    }
    for bit in 0..root.bytes.len() * 8 {
        let mut bytes = root.bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(head) = RootHead::decode(&bytes) {
            let parts: BTreeMap<_, _> = root.parts.iter().cloned().collect();
            let part = |hash| parts.get(&hash).cloned().ok_or(DecodeError::Wrong("absent"));
            if let Ok(root) = head.assemble(&KEY, part) {
                assert_eq!(root.encode(&KEY).bytes, bytes, "accepted, so canonical");
            }
        }
    }
}

fn reencode(map: &mut Map) -> Vec<u8> {
    map.mark_dirty(MapPageIndex(0));
    let snapshot = map.snapshot_dirty();
    encode_page(snapshot.pages[0].1.as_ref().unwrap(), &snapshot.segments)
}

proptest! {
    #[test]
    fn pages_survive(
        writes in proptest::collection::vec(
            (0..PAGE_BLOCKS, 1..200_u32, 0..5_u8, 0..5000_u32),
            1..600,
        ),
    ) {
        let mut map = Map::new(u64::from(PAGE_BLOCKS)).unwrap();
        for (first, count, kind, page) in writes {
            let target = match kind {
                0 => Target::Hole,
                1 => Target::Zero,
                kind => Target::Data(map.intern(name(kind.into())), PageIndex(page)),
            };
            let count = count.min(PAGE_BLOCKS - first);
            map.assign(BlockIndex(first.into()), count, target).unwrap();
        }
        let snapshot = map.snapshot_dirty();
        if let Some((_, Some(page))) = snapshot.pages.first() {
            let bytes = encode_page(page, &snapshot.segments);
            let content = decode_page(&bytes).unwrap();
            let mut again = Map::new(u64::from(PAGE_BLOCKS)).unwrap();
            again.load_page(MapPageIndex(0), &content.runs).unwrap();
            prop_assert_eq!(again.dirty_count(), 0);
            prop_assert_eq!(reencode(&mut again), bytes);
            let named = |map: &Map| -> Vec<_> {
                map.lookup(BlockIndex(0), PAGE_BLOCKS)
                    .map(|run| match run.target {
                        Target::Data(segment, page) => {
                            (run, LoadTarget::Data(map.segments().name(segment).unwrap(), page))
                        }
                        Target::Zero => (run, LoadTarget::Zero),
                        Target::Hole => (run, LoadTarget::Hole),
                    })
                    .map(|(run, target)| (run.first_block, run.count, target))
                    .collect()
            };
            prop_assert_eq!(named(&again), named(&map));
        }
    }

    #[test]
    fn hostile_bytes_never_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
        magic in 0..3_usize,
    ) {
        let magics: [&[u8]; 3] = [b"PANNMAPP\x01\0\0\0", b"PANNROOT\x01\0\x01\0", b""];
        let head = magics[magic];
        if bytes.len() >= head.len() {
            bytes[..head.len()].copy_from_slice(head);
        }
        let _page: Result<_, DecodeError> = decode_page(&bytes);
        if let Ok(head) = RootHead::decode(&bytes) {
            let part = |_| Ok::<_, DecodeError>(bytes.clone());
            prop_assert!(head.parts().is_empty() || head.assemble(&KEY, part).is_err());
        }
    }
}
