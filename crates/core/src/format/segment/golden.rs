//! The bytes of format version 1, so that no change goes unnoticed: a change of any of these is a
//! new version, and version 1 stays readable.

use super::*;
use crate::ids::{HashKey, RequestNumber, SegmentHash, SegmentName, SessionId, VolumeId};
use crate::units::BlockIndex;

pub(crate) const KEY: HashKey = HashKey([0x2a; 32]);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The beginning in hex, and a hash of everything.
fn check(what: &str, bytes: &[u8], prefix: &str, hash: &str) {
    let found = (hex(&bytes[..prefix.len() / 2]), hex(&blake3::hash(bytes).as_bytes()[..8]));
    assert_eq!((found.0.as_str(), found.1.as_str()), (prefix, hash), "{what}");
}

fn header() -> Header {
    let name: SegmentName = "3.2-17".parse().unwrap();
    Header {
        volume: VolumeId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        name,
        nonce: 0x1122_3344_5566_7788,
        predecessor: Some("2.9-16".parse().unwrap()),
        capacity_pages: 64,
    }
}

/// A segment with every kind of entry, of two groups, and the content of its pages.
pub(crate) fn segment() -> (SegmentWriter, Vec<(PageIndex, Vec<u8>)>) {
    let mut writer = SegmentWriter::new(header(), Link { entries: 5, chain_crc: 0xdead_beef });
    let mut pages = Vec::new();
    let mut data = |writer: &mut SegmentWriter, block, fill: &[u8], joined| {
        let bytes: Vec<u8> = fill.iter().flat_map(|fill| [*fill; PAGE_BYTES]).collect();
        let at = writer.append_data(BlockIndex(block), &bytes, joined).unwrap();
        let blocks = bytes.chunks(PAGE_BYTES).enumerate();
        pages.extend(blocks.map(|(n, block)| (at.page.plus(n as u32), block.to_vec())));
    };
    data(&mut writer, 7, &[1, 0, 2], false);
    writer.append_zero(BlockIndex(100), 50).unwrap();
    writer.append_discard(BlockIndex(1 << 40), 1).unwrap();
    let covered = writer.begin_flush();
    writer.flush_covers(covered);
    writer.append_resize(1 << 34).unwrap();
    data(&mut writer, 8, &[3], true);
    writer.append_session_mark(SessionId(0xabcd), RequestNumber(12)).unwrap();
    data(&mut writer, 7, &[4], false);
    (writer, pages)
}

/// The same segment, sealed.
pub(crate) fn sealing() -> (Sealing, Vec<(PageIndex, Vec<u8>)>) {
    let (mut writer, pages) = segment();
    let table = pages.iter().map(|(_, block)| KEY.block(block)).collect();
    (writer.seal(table, &KEY), pages)
}

#[test]
fn header_page() {
    check(
        "header",
        &header().encode()[..],
        "\
         504e522d5345474d01000000400000000123456789abcdef0123456789abcdef\
         1100000000000000030000000000000002000000010000008877665544332211\
         1000000000000000020000000000000009000000000000000000000000000000",
        "73d22f5700e07c22",
    );
    assert_eq!(Header::decode(&header().encode()[..]), Ok(header()));
}

#[test]
fn descriptor_page() {
    let (writer, _) = segment();
    let pages: Vec<_> = writer.unwritten().collect();
    assert_eq!(pages.iter().map(|(page, _)| page.0).collect::<Vec<_>>(), [2, 6]);
    check(
        "group 0",
        pages[0].1,
        "\
         504e522d47524f55010000000200000088776655443322110000000000000000\
         0000000005000000efbeadde5a8d490d00000000000000000000000004556c42\
         0700000000000000030000000000000003000000e8e8807f01000000e3c5d0f3\
         64000000000000003200000000000000000000000000000002000000fddc2f71\
         000000000001000001000000000000000000000000000000030000001a4b7c19",
        "c9c00077b706051b",
    );
    check(
        "group 1",
        pages[1].1,
        "\
         504e522d47524f55010000000600000088776655443322110100000003000000\
         0300000005000000efbeadde1a4b7c190000000000000000000000005e1f4b22\
         00000000040000000000000000000000000000000000000004000000620be12c\
         0800000000000000010000000000000007000000624836f2010100005111c576\
         cdab0000000000000c00000000000000000000000000000005000000ae01696a\
         0700000000000000010000000000000008000000427149fd01000000f4b72161",
        "c9e2c1b96fcaa0c7",
    );
}

#[test]
fn seal_record_index_and_table() {
    let (sealing, _) = sealing();
    assert_eq!(sealing.page(), PageIndex(9));
    check(
        "seal record",
        &sealing.record()[..],
        "\
         504e522d5345414c010000000700000088776655443322110500000003000000\
         0900000005000000efbeaddef4b7216100000000000000000000000000000000\
         14e78051e7a591f4389dbffeb0f5ecb68a39ff8a809d9ebeaba5158dfc72118a",
        "527cc06b7780bf10",
    );
    check(
        "index and table",
        sealing.bytes(),
        "\
         0700000000000000030000000000000003000000e8e8807f01000000e3c5d0f3\
         64000000000000003200000000000000000000000000000002000000fddc2f71\
         000000000001000001000000000000000000000000000000030000001a4b7c19\
         00000000040000000000000000000000000000000000000004000000620be12c\
         0800000000000000010000000000000007000000624836f2010100005111c576\
         cdab0000000000000c00000000000000000000000000000005000000ae01696a\
         0700000000000000010000000000000008000000427149fd01000000f4b72161",
        "f5c496c07ab3d31c",
    );
    let SegmentHash(hash) = sealing.hash();
    assert_eq!(hex(&hash), "14e78051e7a591f4389dbffeb0f5ecb68a39ff8a809d9ebeaba5158dfc72118a");
}

#[test]
fn metadata() {
    let (sealing, _) = sealing();
    check(
        "metadata",
        &sealing.meta().encode(),
        "504e522d4d4554410100000000000000",
        "7fafc3041cfe9e5a",
    );
    assert_eq!(SegmentMeta::decode(&sealing.meta().encode(), &KEY).as_ref(), Ok(sealing.meta()));
}

#[test]
fn castagnoli() {
    // The check value of CRC-32/ISCSI in the catalogue, and RFC 3720, B.4.
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
}
