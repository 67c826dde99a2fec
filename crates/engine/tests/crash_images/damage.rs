//! Damage that no crash explains is told, never read around.

use super::*;
use pannier_core::format::segment::PAGE_BYTES;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// A volume of several segments, flushed, and the daemon killed; its segment files in order.
async fn flushed(dir: &Path) -> Vec<PathBuf> {
    let context = host(dir, Disk::default()).unwrap();
    let volume = Volume::create(&context, ID, guest::SIZE as u64).await.unwrap();
    volume.begin_append(Epoch(1), Incarnation(1)).await.unwrap();
    for block in 0..90 {
        volume.write(block * 4096, vec![block as u8; 4096].into(), block % 7 == 0).await.unwrap();
    }
    // The next group says what this flush has made durable.
    volume.flush().await.unwrap();
    volume.write(0, vec![1; 4096].into(), false).await.unwrap();
    kill(volume, context).await;
    let segments = dir.join("volumes").join(ID.to_string()).join("segments");
    let mut files: Vec<_> =
        std::fs::read_dir(segments).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_segments_are_told() {
    type Damage = fn(&Path);
    let gone: Damage = |path| std::fs::remove_file(path).unwrap();
    let cut: Damage = |path| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(3 * PAGE_BYTES as u64).unwrap();
    };
    let no_header: Damage = |path| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(&[0x55; 512], 0).unwrap();
    };
    // Index, block table and descriptors at once.
    let no_entries: Damage = |path| {
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        let mut page = vec![0; PAGE_BYTES];
        for number in 2..file.metadata().unwrap().len() / PAGE_BYTES as u64 {
            file.read_exact_at(&mut page, number * PAGE_BYTES as u64).unwrap();
            if !page.iter().all(|byte| *byte == page[0]) {
                file.write_all_at(&[0x55; 512], number * PAGE_BYTES as u64).unwrap();
            }
        }
    };
    for (what, damage) in
        [("gone", gone), ("cut off", cut), ("no header", no_header), ("no entries", no_entries)]
    {
        let dir = tempfile::tempdir().unwrap();
        let files = flushed(dir.path()).await;
        assert!(files.len() >= 4, "segments: {files:?}");
        damage(&files[1]);
        let error = open(dir.path()).await.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_in_an_index_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let files = flushed(dir.path()).await;
    let context = host(dir.path(), Disk::default()).unwrap();
    let volume = start(&context, 2).await.unwrap();
    volume.stop_append().await.unwrap();
    kill(volume, context).await;
    let expect = open(dir.path()).await.unwrap();
    let file = std::fs::File::options().read(true).write(true).open(&files[0]).unwrap();
    let mut seal = vec![0; PAGE_BYTES];
    file.read_exact_at(&mut seal, PAGE_BYTES as u64).unwrap();
    assert!(seal.starts_with(b"PNR-SEAL"), "the first segment is sealed");
    let tail = u64::from(u32::from_le_bytes([seal[32], seal[33], seal[34], seal[35]]));
    let mut byte = [0];
    file.read_exact_at(&mut byte, tail * PAGE_BYTES as u64 + 5).unwrap();
    file.write_all_at(&[byte[0] ^ 8], tail * PAGE_BYTES as u64 + 5).unwrap();
    assert!(open(dir.path()).await.unwrap() == expect);
    let mut repaired = [0];
    file.read_exact_at(&mut repaired, tail * PAGE_BYTES as u64 + 5).unwrap();
    assert_eq!(repaired, byte);
}
