//! Little-endian fields in byte slices. Offsets are constants within checked lengths, so an
//! out-of-range offset is a bug and panics.

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
