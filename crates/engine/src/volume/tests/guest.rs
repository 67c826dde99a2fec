//! What a guest sees.

use super::*;
use crate::port::{ExtentState, StatusExtent, WriteRequest};
use pannier_core::format::segment::limits::META_BYTES_MAX;

const SIZE: u64 = 8 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn written_bytes_are_read_at_any_alignment() {
    let dir = tempfile::tempdir().unwrap();
    let context = host(dir.path(), small(), &Arc::default(), Disk::default());
    let volume = created(&context, SIZE).await;
    let mut expect = vec![0; SIZE as usize];
    for (number, (offset, length)) in [
        (0, 4096),
        (512, 512),
        (4096 - 512, 1024),
        (10_240, 512),
        (8192, 300 << 10),
        (SIZE - 512, 512),
    ]
    .into_iter()
    .enumerate()
    {
        let data = pattern(number as u64 + 1, length);
        volume.write(offset, data.clone(), number % 2 == 0).await.unwrap();
        expect[offset as usize..offset as usize + length].copy_from_slice(&data);
    }
    assert!(read(&volume, 0, SIZE as usize).await == expect);
    assert!(read(&volume, 1536, 9216).await == expect[1536..1536 + 9216]);
    for (offset, length) in [(SIZE, 512), (SIZE - 512, 1024), (1, 512), (0, 100)] {
        let refused = volume.write(offset, pattern(9, length), false).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{offset}+{length}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_written_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let context = host(dir.path(), small(), &Arc::default(), Disk::default());
    let volume = created(&context, SIZE).await;
    volume.write(0, pattern(1, 4096), false).await.unwrap();
    let data: Vec<_> = (0..12).map(|n| pattern(n + 2, if n == 5 { 512 } else { 8192 })).collect();
    let writes: Vec<_> = data
        .iter()
        .enumerate()
        .map(|(n, data)| WriteRequest { offset: (n as u64 % 3) * 4096, data })
        .collect();
    let mut done = 0;
    while done < writes.len() {
        match volume.try_write(&writes[done..]).unwrap() {
            0 => {
                let write = writes[done];
                volume
                    .write(write.offset, Bytes::copy_from_slice(write.data), false)
                    .await
                    .unwrap();
                done += 1;
            }
            count => done += count,
        }
    }
    let mut expect = vec![0; 16384];
    for write in &writes {
        expect[write.offset as usize..][..write.data.len()].copy_from_slice(write.data);
    }
    assert!(read(&volume, 0, 16384).await == expect);
}

#[tokio::test(flavor = "multi_thread")]
async fn zeroes_discards_and_their_states() {
    let dir = tempfile::tempdir().unwrap();
    let context = host(dir.path(), small(), &Arc::default(), Disk::default());
    let volume = created(&context, SIZE).await;
    volume.write(0, pattern(1, 64 << 10), false).await.unwrap();
    volume.discard(512, 12_288, false).await.unwrap();
    volume.write_zeroes(32_768, 8192, true, true).await.unwrap();
    let mut expect = pattern(1, 64 << 10).to_vec();
    expect[512..512 + 12_288].fill(0);
    expect[32_768..40_960].fill(0);
    assert!(read(&volume, 0, 64 << 10).await == expect);
    let states = volume.block_status(0, 128 << 10, 16).await.unwrap();
    let expect = [
        (4096, ExtentState::Data),
        (8192, ExtentState::Hole),
        (20_480, ExtentState::Data),
        (8192, ExtentState::Zero),
        (24_576, ExtentState::Data),
        (65_536, ExtentState::Hole),
    ];
    let expect = expect.map(|(length, state)| StatusExtent { length, state });
    assert_eq!(states, expect);
    assert_eq!(volume.block_status(0, 128 << 10, 2).await.unwrap(), expect[..2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_volume_serves_nobody_and_goes_on_in_a_new_incarnation() {
    let dir = tempfile::tempdir().unwrap();
    let context = host(dir.path(), small(), &Arc::default(), Disk::default());
    let volume = created(&context, SIZE).await;
    volume.write(4096, pattern(3, 8192), false).await.unwrap();
    let position = volume.stop_append().await.unwrap();
    assert_eq!(position.entries, 1);
    assert_eq!(volume.stop_append().await.unwrap(), position);
    let mut bytes = vec![0; 4096];
    let unread = volume.read(0, &mut bytes).await.unwrap_err();
    assert_eq!(unread.kind(), ErrorKind::Closed);
    let refused = volume.write(0, pattern(1, 4096), false).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Closed);
    assert!(!volume.is_appending());
    volume.begin_append(Epoch(1), Incarnation(2)).await.unwrap();
    // The request finds out only now, and is not to fail at its guest.
    assert!(volume.has_left(&refused) && volume.has_left(&unread));
    assert!(read(&volume, 4096, 8192).await == pattern(3, 8192));
    volume.resize(SIZE * 2).await.unwrap();
    volume.write(SIZE * 2 - 4096, pattern(4, 4096), false).await.unwrap();
    drop(volume);
    let volume = recovered(&context, 3).await;
    assert_eq!(volume.size_bytes(), SIZE * 2);
    assert!(read(&volume, SIZE * 2 - 4096, 4096).await == pattern(4, 4096));
}

/// Whoever reads a block while its segment is being sealed finds it whole, and marks nothing bad.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_is_read_while_its_segment_is_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let objects = Arc::default();
    let context = host(dir.path(), small(), &objects, Disk::default());
    let volume = created(&context, 1 << 20).await;
    for round in 0..200 {
        volume.write(0, pattern(round, 4096), false).await.unwrap();
        let name = volume.position().segment.unwrap();
        let segment = volume.known(name).unwrap();
        let reader = std::thread::spawn({
            let (volume, segment) = (volume.clone(), segment.clone());
            move || {
                // The first data page stands behind the header, the seal and the descriptor.
                let one = std::iter::once(3..4).collect();
                while segment.sealed().is_none() {
                    let (_, absent) = volume.load_runs(&segment, &one).unwrap();
                    assert_eq!(absent, [], "round {round}");
                }
            }
        });
        volume.seal_open().await.unwrap();
        reader.join().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_small_discards_makes_segments_that_fit_into_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let config = LocalConfig { background: false, ..LocalConfig::default() };
    let context = host(dir.path(), config, &Arc::default(), Disk::default());
    let volume = created(&context, 128 << 20).await;
    let start = volume.position();
    for block in 0..20_000 {
        volume.discard(block * 4096, 4096, false).await.unwrap();
    }
    volume.seal_open().await.unwrap();
    let batch = volume.log_since(start, usize::MAX).await.unwrap();
    let metas = batch.segments.iter().map(|(_, bytes)| {
        assert!(bytes.len() <= META_BYTES_MAX, "{} bytes of metadata", bytes.len());
        SegmentMeta::decode(bytes, &KEY).unwrap().entries().len()
    });
    let entries: Vec<_> = metas.collect();
    assert!(entries.len() > 1, "{entries:?}");
    assert_eq!(entries.iter().sum::<usize>(), 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_grows_and_never_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    let context = host(dir.path(), small(), &Arc::default(), Disk::default());
    let volume = created(&context, SIZE).await;
    volume.resize(SIZE * 2).await.unwrap();
    volume.write(SIZE * 2 - 4096, pattern(1, 4096), false).await.unwrap();
    let position = volume.position();
    for size in [0, 512, SIZE, SIZE + 4096, SIZE * 2 - 512] {
        let refused = volume.resize(size).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{size}");
    }
    volume.resize(SIZE * 2).await.unwrap();
    assert_eq!((volume.position(), volume.size_bytes()), (position, SIZE * 2));
    assert!(read(&volume, SIZE * 2 - 4096, 4096).await == pattern(1, 4096));
}
