use super::*;
use pannier_core::ids::{Epoch, Incarnation, SegmentName, Sequence};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn segment(sequence: u64) -> SegmentId {
    let name =
        SegmentName { sequence: Sequence(sequence), epoch: Epoch(1), incarnation: Incarnation(1) };
    SegmentId { volume: VolumeId(7), name }
}

fn page(byte: u8) -> Vec<u8> {
    vec![byte; PAGE_BYTES]
}

fn open(dir: &Path, lines: u64) -> LineCache {
    let config = LocalConfig { cache_bytes: lines * LINE_BYTES, ..LocalConfig::default() };
    LineCache::open(&Disk::default(), dir, &config).unwrap()
}

#[test]
fn pages_are_found_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 8);
    let bytes: Vec<u8> = (10..14).flat_map(page).collect();
    cache.insert(segment(1), PageIndex(14), &bytes).unwrap();
    cache.insert(segment(2), PageIndex(3), &page(9)).unwrap();
    drop(cache);
    let cache = open(dir.path(), 8);
    let runs: Vec<_> = cache.pages_of(segment(1)).runs().collect();
    assert_eq!(runs, [(PageIndex(14), 4)]);
    let mut read = vec![0; 3 * PAGE_BYTES];
    assert!(cache.read_cached(segment(1), 14 * 4096 + 512, &mut read));
    assert_eq!(read, bytes[512..512 + 3 * PAGE_BYTES]);
    assert!(!cache.read_cached(segment(1), 13 * 4096, &mut read));
    let mut one = page(0);
    assert!(cache.read(segment(2), PageIndex(3), &mut one));
    assert_eq!(one, page(9));
    cache.remove_page(segment(2), PageIndex(3));
    assert!(!cache.read(segment(2), PageIndex(3), &mut one));
    cache.remove_volume(VolumeId(7));
    assert_eq!(cache.bytes(), 0);
}

#[test]
fn only_what_may_leave_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 2);
    cache.set_may_leave(Box::new(|id| id.name.sequence.0 != 1));
    for sequence in 1..=4 {
        cache.insert(segment(sequence), PageIndex(0), &page(sequence as u8)).unwrap();
    }
    let mut read = page(0);
    assert!(cache.read(segment(1), PageIndex(0), &mut read), "it may not leave");
    assert_eq!(read, page(1));
    assert!(!cache.read(segment(2), PageIndex(0), &mut read));
    assert!(cache.read(segment(4), PageIndex(0), &mut read));
    assert_eq!(cache.bytes(), 2 * LINE_BYTES);
}

#[test]
fn a_torn_record_is_a_free_slot() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 8);
    cache.insert(segment(1), PageIndex(0), &page(1)).unwrap();
    drop(cache);
    let path = dir.path().join("slots");
    let mut slots = std::fs::read(&path).unwrap();
    slots[30] ^= 1;
    std::fs::write(&path, slots).unwrap();
    let cache = open(dir.path(), 8);
    assert!(cache.pages_of(segment(1)).is_empty());
    cache.insert(segment(2), PageIndex(5), &page(2)).unwrap();
    let mut read = page(0);
    assert!(cache.read(segment(2), PageIndex(5), &mut read));
    assert_eq!(read, page(2));
}

#[test]
fn what_is_held_in_memory_is_read_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 8);
    let pages_max = crate::limits::HELD_PAGES_MAX as u32;
    cache.hold(segment(1), PageIndex(7), &[page(1), page(2)].concat());
    let mut read = page(0);
    for _ in 0..2 {
        assert!(cache.read(segment(1), PageIndex(8), &mut read));
        assert_eq!(read, page(2));
        // Once more is not one more.
        cache.hold(segment(1), PageIndex(7), &[page(1), page(2)].concat());
    }
    assert!(!cache.read(segment(2), PageIndex(8), &mut read));
    assert!(cache.pages_of(segment(1)).runs().next().is_none(), "it is not here to stay");
    for other in 0..pages_max - 1 {
        cache.hold(segment(2), PageIndex(other), &page(3));
    }
    assert!(!cache.read(segment(1), PageIndex(7), &mut read), "the oldest has left");
    assert!(cache.read(segment(1), PageIndex(8), &mut read));
    cache.let_go();
    assert!(!cache.read(segment(1), PageIndex(8), &mut read));
}

/// Bytes that a file takes on the disk.
fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn the_space_of_lines_that_left_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let slab = dir.path().join("slab");
    let cache = open(dir.path(), 4);
    let stored = Arc::new(AtomicBool::new(false));
    let is_stored = stored.clone();
    cache.set_may_leave(Box::new(move |id| {
        id.name.sequence.0 > 1 && is_stored.load(Ordering::Relaxed)
    }));
    let line: Vec<u8> = (0..LINE_PAGES).flat_map(|_| page(7)).collect();
    for sequence in 1..=200 {
        cache.insert(segment(sequence), PageIndex(0), &line).unwrap();
    }
    cache.trim();
    assert_eq!(cache.bytes(), 200 * LINE_BYTES, "nothing may leave yet");
    assert!(allocated(&slab) >= 200 * LINE_BYTES);
    stored.store(true, Ordering::Relaxed);
    cache.trim();
    assert_eq!(cache.bytes(), 4 * LINE_BYTES);
    assert!(allocated(&slab) <= 5 * LINE_BYTES, "{} bytes", allocated(&slab));
    let mut read = page(0);
    assert!(cache.read(segment(1), PageIndex(3), &mut read), "it may not leave");
    assert_eq!(read, page(7));
    // What comes next takes the places that were given back.
    stored.store(false, Ordering::Relaxed);
    for sequence in 300..320 {
        cache.insert(segment(sequence), PageIndex(0), &line).unwrap();
        assert!(cache.read(segment(sequence), PageIndex(9), &mut read));
        assert_eq!(read, page(7));
    }
    assert!(std::fs::metadata(&slab).unwrap().len() <= 200 * LINE_BYTES);
    // Of a volume that is no more nothing stays, from before a restart neither.
    drop(cache);
    let cache = open(dir.path(), 4);
    cache.remove_volume(VolumeId(7));
    cache.trim();
    assert_eq!((cache.bytes(), allocated(&slab)), (0, 0));
}
