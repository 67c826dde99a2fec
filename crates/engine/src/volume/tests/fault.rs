//! A disk that fails: fdatasync errors, no space.

use super::model::gone;
use super::*;
use crate::disk::{DiskOp, Observer};
use crate::lines::Lines;
use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::AtomicUsize;

const SIZE: u64 = 4 << 20;

/// Fails what it is told to, and remembers which files' syncs failed.
#[derive(Default)]
struct Faults {
    /// Syncs to fail from now on, after letting `skip` pass.
    fail_syncs: AtomicUsize,
    /// They fail for want of space.
    syncs_lack_space: AtomicBool,
    full: AtomicBool,
    /// No space within files either, as on a file system that cannot reserve it.
    full_inside: AtomicBool,
    failed: Mutex<BTreeSet<u64>>,
    retried: AtomicBool,
}

impl Observer for Faults {
    fn before(&self, op: &DiskOp<'_>) -> io::Result<()> {
        match op {
            DiskOp::Sync { file } => {
                if self.failed.lock().contains(file) {
                    self.retried.store(true, Ordering::Relaxed);
                }
                let take = |left: usize| left.checked_sub(1);
                if self.fail_syncs.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok() {
                    self.failed.lock().insert(*file);
                    let lacks_space = self.syncs_lack_space.load(Ordering::Relaxed);
                    return Err(io::Error::from_raw_os_error(if lacks_space { 28 } else { 5 }));
                }
                Ok(())
            }
            DiskOp::Write { .. } if self.full_inside.load(Ordering::Relaxed) => {
                Err(io::Error::from_raw_os_error(28))
            }
            DiskOp::Create { .. } if self.full.load(Ordering::Relaxed) => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_fdatasync_the_unsynced_entries_stand_in_another_file() {
    for (durable_before, lack_space) in [(0, false), (5, false), (0, true), (5, true)] {
        let dir = tempfile::tempdir().unwrap();
        let faults = Arc::new(Faults::default());
        faults.syncs_lack_space.store(lack_space, Ordering::Relaxed);
        let disk = Disk::observed(Arc::clone(&faults) as Arc<dyn Observer>);
        let context = host(dir.path(), small(), &Arc::default(), disk.clone());
        let volume = created(&context, SIZE).await;
        for block in 0..durable_before {
            volume.write(block * 4096, pattern(block + 1, 4096), false).await.unwrap();
        }
        volume.flush().await.unwrap();
        for block in durable_before..20 {
            volume.write(block * 4096, pattern(block + 1, 4096), false).await.unwrap();
        }
        volume.write_zeroes(19 * 4096, 4096, true, false).await.unwrap();
        // Until the segment prepared ahead is there, a sync may be its header's.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        faults.fail_syncs.store(1, Ordering::Release);
        volume.flush().await.unwrap();
        assert_eq!(faults.failed.lock().len(), 1);
        let check = |volume: Arc<Volume>| async move {
            for block in 0..20 {
                let bytes = read(&volume, block * 4096, 4096).await;
                let expect =
                    if block == 19 { vec![0; 4096] } else { pattern(block + 1, 4096).to_vec() };
                assert!(bytes == expect, "{durable_before} durable before, block {block}");
            }
        };
        check(Arc::clone(&volume)).await;
        volume.write(20 * 4096, pattern(21, 4096), true).await.unwrap();
        gone(volume).await;
        assert!(!faults.retried.load(Ordering::Relaxed), "a failed fdatasync is not retried");
        let volume = recovered(&context, 2).await;
        check(Arc::clone(&volume)).await;
        assert!(read(&volume, 20 * 4096, 4096).await == pattern(21, 4096));
    }
}

/// A crash before a segment's seal leaves two segments that both have durable entries, and of the
/// first its own file does not say that all are.
#[tokio::test(flavor = "multi_thread")]
async fn what_recovery_found_durable_survives_a_failed_fdatasync() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let disk = Disk::observed(Arc::clone(&faults) as Arc<dyn Observer>);
    let context = host(dir.path(), small(), &Arc::default(), disk);
    let volume = created(&context, SIZE).await;
    for block in 0..80 {
        let fua = block % 16 == 3 || block > 70;
        volume.write(block * 4096, pattern(block + 1, 4096), fua).await.unwrap();
    }
    volume.stop_append().await.unwrap();
    gone(volume).await;
    let segments = dir.path().join("volumes").join(ID.to_string()).join("segments");
    let files = Disk::default().list(&segments).unwrap();
    assert_eq!(files.len(), 2, "{files:?}");
    for path in &files {
        let file = Disk::default().open(path).unwrap();
        file.write_at(&[0; 4096], 4096).unwrap();
    }
    faults.fail_syncs.store(1, Ordering::Release);
    for incarnation in [2, 3] {
        let volume = recovered(&context, incarnation).await;
        volume.flush().await.unwrap();
        assert_eq!(faults.failed.lock().len(), 1);
        for block in 0..80 {
            let bytes = read(&volume, block * 4096, 4096).await;
            assert!(bytes == pattern(block + 1, 4096), "{incarnation}: block {block}");
        }
        gone(volume).await;
    }
    assert!(!faults.retried.load(Ordering::Relaxed), "a failed fdatasync is not retried");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_rescue_fails_too_nothing_is_acknowledged_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let disk = Disk::observed(Arc::clone(&faults) as Arc<dyn Observer>);
    let context = host(dir.path(), small(), &Arc::default(), disk);
    let volume = created(&context, SIZE).await;
    volume.write(0, pattern(1, 4096), false).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    faults.fail_syncs.store(usize::MAX, Ordering::Release);
    let failed = volume.flush().await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Unavailable);
    assert!(failed.context().contains("fdatasync"), "{failed}");
    assert!(volume.write(0, pattern(2, 4096), false).await.is_err());
    assert!(volume.flush().await.is_err());
    assert!(read(&volume, 0, 4096).await == pattern(1, 4096), "reads go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_fails_as_it_stops_is_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let disk = Disk::observed(Arc::clone(&faults) as Arc<dyn Observer>);
    let context = host(dir.path(), small(), &Arc::default(), disk);
    let volume = created(&context, SIZE).await;
    volume.write(0, pattern(1, 4096), false).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    faults.fail_syncs.store(usize::MAX, Ordering::Release);
    for attempt in 0..2 {
        let failed = volume.stop_append().await.unwrap_err();
        assert!(failed.context().contains("fdatasync"), "{failed}");
        let mut bytes = [0; 4096];
        volume.read(0, &mut bytes).await.unwrap();
        assert!(bytes[..] == pattern(1, 4096)[..], "attempt {attempt}");
        assert!(volume.write(0, pattern(2, 4096), false).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_and_recovers() {
    let lines = Lines::of_process();
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let disk = Disk::observed(Arc::clone(&faults) as Arc<dyn Observer>);
    let context = host(dir.path(), small(), &Arc::default(), disk);
    let volume = created(&context, SIZE).await;
    faults.full.store(true, Ordering::Relaxed);
    let mut written = 0;
    let refused = loop {
        match volume.write(written * 4096, pattern(written + 1, 4096), false).await {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::NoSpace);
    for _ in 0..20 {
        assert!(volume.write(written * 4096, pattern(1, 4096), false).await.is_err());
    }
    volume.flush().await.unwrap();
    for block in 0..written {
        assert!(read(&volume, block * 4096, 4096).await == pattern(block + 1, 4096));
    }
    assert!(volume.write(0, pattern(1, 4096), false).await.is_err());
    faults.full.store(false, Ordering::Relaxed);
    volume.write(written * 4096, pattern(written + 1, 4096), true).await.unwrap();
    assert!(read(&volume, written * 4096, 4096).await == pattern(written + 1, 4096));
    let here = dir.path().display().to_string();
    let warned = lines.of("WARN").into_iter().filter(|line| line.contains(&here));
    let warned = warned.filter(|line| line.contains("no segment file can be prepared"));
    assert_eq!(warned.count(), 1, "{:#?}", lines.of("WARN"));
    let again = lines.of("INFO");
    assert!(again.iter().any(|line| line.contains("segment files can be prepared again")));
}

/// Space can run out where it is not asked for: in the middle of a segment, or when what was
/// written to it is synced. What was acknowledged is read on, and is there after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn space_that_runs_out_within_a_segment_takes_nothing_acknowledged() {
    for (at_sync, durable_before) in [(false, 0), (false, 5), (true, 0), (true, 5)] {
        let dir = tempfile::tempdir().unwrap();
        let faults = Arc::new(Faults::default());
        faults.syncs_lack_space.store(true, Ordering::Relaxed);
        let disk = Disk::observed(Arc::clone(&faults) as Arc<dyn Observer>);
        let context = host(dir.path(), small(), &Arc::default(), disk);
        let volume = created(&context, SIZE).await;
        for block in 0..10 {
            volume.write(block * 4096, pattern(block + 1, 4096), false).await.unwrap();
            if block + 1 == durable_before {
                volume.flush().await.unwrap();
            }
        }
        // Until the segment prepared ahead is there, a sync may be its header's.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        faults.full.store(true, Ordering::Relaxed);
        let refused = if at_sync {
            faults.fail_syncs.store(usize::MAX, Ordering::Release);
            volume.flush().await.unwrap_err()
        } else {
            faults.full_inside.store(true, Ordering::Relaxed);
            volume.write(9 * 4096, pattern(99, 8192), false).await.unwrap_err()
        };
        assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
        let there = |volume: Arc<Volume>| async move {
            for block in 0..10 {
                let bytes = read(&volume, block * 4096, 4096).await;
                let whole = bytes == pattern(block + 1, 4096);
                assert!(whole, "at a sync: {at_sync}, {durable_before} durable: block {block}");
            }
        };
        there(Arc::clone(&volume)).await;
        let again = volume.write(10 * 4096, pattern(11, 4096), true).await.unwrap_err();
        assert_eq!(again.kind(), ErrorKind::NoSpace, "{again}");
        assert_eq!(volume.flush().await.unwrap_err().kind(), ErrorKind::NoSpace);
        there(Arc::clone(&volume)).await;
        gone(volume).await;
        assert!(!faults.retried.load(Ordering::Relaxed), "a failed fdatasync is not retried");

        faults.full.store(false, Ordering::Relaxed);
        faults.full_inside.store(false, Ordering::Relaxed);
        faults.fail_syncs.store(0, Ordering::Release);
        let volume = recovered(&context, 2).await;
        there(Arc::clone(&volume)).await;
        volume.write(10 * 4096, pattern(11, 4096), true).await.unwrap();
        gone(volume).await;
        let volume = recovered(&context, 3).await;
        there(Arc::clone(&volume)).await;
        assert!(read(&volume, 10 * 4096, 4096).await == pattern(11, 4096));
    }
}
