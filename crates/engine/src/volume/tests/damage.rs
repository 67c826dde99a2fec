//! Damage to the files of a host that died, as its next start finds it: told or repaired, nothing
//! destroyed, no wrong byte returned.

use super::model::gone;
use super::*;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

const SIZE: u64 = 4 << 20;
const BLOCKS: u64 = 150;

async fn check(volume: &Volume) {
    for block in 0..BLOCKS {
        let expect = pattern(block + 1, 4096);
        assert!(read(volume, block * 4096, 4096).await == expect, "block {block}");
    }
}

/// A host that died with a flushed log of several segments of which nothing is stored, and their
/// files in order; the last is prepared and not used.
async fn dead_host() -> (tempfile::TempDir, Arc<HostContext>, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let context = host(dir.path(), small(), &Arc::default(), Disk::default());
    let volume = created(&context, SIZE).await;
    for block in 0..BLOCKS {
        volume.write(block * 4096, pattern(block + 1, 4096), false).await.unwrap();
    }
    volume.flush().await.unwrap();
    let prepared = async {
        while volume.journal.lock().next.is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), prepared).await.unwrap();
    gone(volume).await;
    let files = std::fs::read_dir(dir.path().join(format!("volumes/{ID}/segments"))).unwrap();
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 4, "{files:?}");
    (dir, context, files)
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_in_what_was_flushed_and_not_sealed_is_never_returned() {
    let dir = tempfile::tempdir().unwrap();
    let context = host(dir.path(), small(), &Arc::default(), Disk::default());
    let volume = created(&context, SIZE).await;
    for block in 0..20 {
        volume.write(block * 4096, pattern(block + 1, 4096), false).await.unwrap();
        if block % 5 == 4 {
            // What comes next says that this is durable, so recovery does not read it.
            volume.flush().await.unwrap();
        }
    }
    let name = volume.live_segments()[0].name;
    let path = volume.segment_path(name);
    let page = volume.live_pages(name)[0].start + 2;
    gone(volume).await;
    flip(&path, u64::from(page) * 4096 + 1000);
    make_cold(&path);
    let volume = recovered(&context, 2).await;
    for _again in 0..2 {
        let mut told = Vec::new();
        for block in 0..20 {
            let mut bytes = vec![0xee; 4096];
            match volume.read(block * 4096, &mut bytes).await {
                Ok(()) => assert!(bytes == pattern(block + 1, 4096), "block {block}"),
                Err(_told) => told.push(block),
            }
        }
        assert_eq!(told, [2], "only what the damage has touched is told");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_file_that_is_not_what_its_name_says_is_told_and_kept() {
    let (_dir, context, files) = dead_host().await;
    let last = files.len() - 2;
    let swap = |a: &Path, b: &Path| {
        let middle = a.with_extension("swap");
        for (from, to) in [(a, &*middle), (b, a), (&*middle, b)] {
            std::fs::rename(from, to).unwrap();
        }
    };
    let cut = |path: &Path, length: u64| {
        let whole = std::fs::read(path).unwrap();
        OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
        whole
    };
    let told = async |what: &str, file: &Path| {
        let error = Volume::recover(&context, ID).await.err().expect(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
        let name = file.file_name().unwrap().to_str().unwrap();
        let is_named = what.contains("gone") || error.to_string().contains(name);
        assert!(is_named, "{what}: {error}");
    };
    for file in &files[..=last] {
        flip(file, 20);
        told("a damaged header", file).await;
        flip(file, 20);

        let away = file.with_extension("gone");
        let away = away.parent().unwrap().parent().unwrap().join(away.file_name().unwrap());
        std::fs::rename(file, &away).unwrap();
        told("a file that is gone", file).await;
        std::fs::rename(&away, file).unwrap();

        for length in [0, 4096, 20 * 4096] {
            let whole = cut(file, length);
            told("a file that was cut off", file).await;
            std::fs::write(file, whole).unwrap();
        }
    }
    swap(&files[0], &files[1]);
    told("files that have changed places", &files[0]).await;
    swap(&files[0], &files[1]);
    swap(&files[last - 1], &files[last]);
    told("files that have changed places", &files[last - 1]).await;
    swap(&files[last - 1], &files[last]);
    let volume = recovered(&context, 2).await;
    check(&volume).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_segment_s_file_that_is_another_s_is_read_from_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let context = host(dir.path(), small(), &Arc::default(), Disk::default());
    let volume = created(&context, SIZE).await;
    for block in 0..BLOCKS {
        volume.write(block * 4096, pattern(block + 1, 4096), false).await.unwrap();
    }
    volume.seal_open().await.unwrap();
    for live in volume.live_segments() {
        volume.store_segment(live.name).await.unwrap();
    }
    volume.checkpoint().await.unwrap();
    let paths: Vec<_> =
        volume.live_segments().iter().map(|live| volume.segment_path(live.name)).collect();
    gone(volume).await;
    let middle = dir.path().join("middle");
    for (from, to) in [(&paths[0], &middle), (&paths[1], &paths[0]), (&middle, &paths[1])] {
        std::fs::rename(from, to).unwrap();
    }
    let volume = recovered(&context, 2).await;
    check(&volume).await;
}
