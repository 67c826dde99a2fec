//! Little-endian fields in byte slices, and pages of such fields. Offsets are constants within
//! checked lengths, so an out-of-range offset is a bug and panics.

use super::{PAGE_BYTES, Page, crc32c};

const CRC_AT: usize = PAGE_BYTES - 4;

/// A page of its own: fields, then zero, then the CRC32C of all before it.
pub(super) fn core_page(core: &[u8]) -> Box<Page> {
    let mut page = Box::new([0; PAGE_BYTES]);
    put(&mut page[..CRC_AT], 0, core);
    let crc = crc32c(&page[..CRC_AT]);
    put_u32(&mut page[..], CRC_AT, crc);
    page
}

/// The first `bytes` bytes of such a page, and whether zero follows, as its one encoding has it;
/// `None` when its CRC does not hold. (A newer version may have more fields: the caller looks at
/// the version first.)
pub(super) fn core_of(page: &[u8], bytes: usize) -> Option<(&[u8], bool)> {
    if page.len() != PAGE_BYTES || crc32c(&page[..CRC_AT]) != get_u32(page, CRC_AT) {
        return None;
    }
    let (core, rest) = page[..CRC_AT].split_at(bytes);
    Some((core, rest.iter().all(|byte| *byte == 0)))
}

pub(crate) fn get<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&from[at..at + N]);
    bytes
}

pub(crate) fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    into[at..at + bytes.len()].copy_from_slice(bytes);
}

pub(crate) fn get_u16(from: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(get(from, at))
}

pub(crate) fn get_u32(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(from, at))
}

pub(crate) fn get_u64(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(from, at))
}

pub(crate) fn put_u16(into: &mut [u8], at: usize, value: u16) {
    put(into, at, &value.to_le_bytes());
}

pub(crate) fn put_u32(into: &mut [u8], at: usize, value: u32) {
    put(into, at, &value.to_le_bytes());
}

pub(crate) fn put_u64(into: &mut [u8], at: usize, value: u64) {
    put(into, at, &value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_page_is_whole_and_zero_behind_its_fields() {
        let core = [7; 96];
        let page = core_page(&core);
        assert_eq!(core_of(&page[..], 96), Some((&core[..], true)));
        for at in [0, 95, 96, CRC_AT - 1, CRC_AT, PAGE_BYTES - 1] {
            let mut torn = page.clone();
            torn[at] ^= 1;
            assert_eq!(core_of(&torn[..], 96), None, "byte {at}");
        }
        let more = core_page(&[7; 97]);
        assert_eq!(core_of(&more[..], 96), Some((&core[..], false)), "another version's");
        assert_eq!(core_of(&page[1..], 96), None);
    }
}
