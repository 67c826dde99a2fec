//! A volume against a plain array, through restarts.

use super::*;
use proptest::prelude::*;

const BLOCKS: u64 = 192;
const SIZE: u64 = BLOCKS * 4096 - 1024;

#[derive(Debug, Clone)]
enum Step {
    Write { sector: u64, sectors: u64 },
    Clear { sector: u64, sectors: u64, allocate: bool },
    Read { sector: u64, sectors: u64 },
    Flush,
    Seal,
    Checkpoint,
    Store,
    Evict,
    StopAndStart,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..SIZE / 512).prop_flat_map(|sector| {
        let most = (SIZE / 512 - sector).min(300);
        (Just(sector), prop_oneof![3 => 1..=most.min(17), 1 => 1..=most])
    });
    let aligned = (0..BLOCKS - 1).prop_map(|block| (block * 8, 8));
    let range = prop_oneof![range, aligned];
    prop_oneof![
        12 => range.clone().prop_map(|(sector, sectors)| Step::Write { sector, sectors }),
        3 => (range.clone(), any::<bool>()).prop_map(|((sector, sectors), allocate)| {
            Step::Clear { sector, sectors, allocate }
        }),
        4 => range.prop_map(|(sector, sectors)| Step::Read { sector, sectors }),
        2 => Just(Step::Flush),
        1 => Just(Step::Seal),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Store),
        1 => Just(Step::Evict),
        1 => Just(Step::StopAndStart),
        2 => Just(Step::Kill),
    ]
}

/// Waits until nothing works on a volume whose last handle was dropped.
pub(super) async fn gone(volume: Arc<Volume>) {
    let weak = Arc::downgrade(&volume);
    drop(volume);
    while weak.strong_count() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

async fn run(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let objects = Arc::default();
    let mut context = host(dir.path(), small(), &objects, Disk::default());
    let mut volume = created(&context, SIZE).await;
    let mut model = vec![0; SIZE as usize];
    let mut incarnation = 1;
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            Step::Write { sector, sectors } => {
                let data = pattern(number as u64 + 1, sectors as usize * 512);
                volume.write(sector * 512, data.clone(), false).await.unwrap();
                model[sector as usize * 512..][..data.len()].copy_from_slice(&data);
            }
            Step::Clear { sector, sectors, allocate } => {
                let (offset, length) = (sector * 512, sectors * 512);
                volume.write_zeroes(offset, length, allocate, false).await.unwrap();
                model[offset as usize..][..length as usize].fill(0);
            }
            Step::Read { sector, sectors } => {
                let (offset, length) = (sector * 512, sectors as usize * 512);
                let bytes = read(&volume, offset, length).await;
                assert!(bytes == model[offset as usize..][..length], "step {number}");
            }
            Step::Flush => volume.flush().await.unwrap(),
            Step::Seal => _ = volume.seal_open().await.unwrap(),
            Step::Checkpoint => _ = volume.checkpoint().await.unwrap(),
            Step::Store => {
                for live in volume.live_segments() {
                    if live.hash.is_some() {
                        volume.store_segment(live.name).await.unwrap();
                    }
                }
            }
            Step::Evict => {
                let volume = Arc::clone(&volume);
                let all = volume.live_segments();
                tokio::task::spawn_blocking(move || {
                    all.iter().for_each(|live| volume.evict_file(live.name).unwrap());
                })
                .await
                .unwrap();
            }
            Step::StopAndStart => {
                volume.stop_append().await.unwrap();
                incarnation += 1;
                volume.begin_append(Epoch(1), Incarnation(incarnation)).await.unwrap();
            }
            Step::Kill => {
                gone(volume).await;
                drop(context);
                context = host(dir.path(), small(), &objects, Disk::default());
                incarnation += 1;
                volume = recovered(&context, incarnation).await;
            }
        }
    }
    assert!(read(&volume, 0, SIZE as usize).await == model);
    volume.close().await.unwrap();
    gone(volume).await;
    let volume = recovered(&context, incarnation + 1).await;
    assert!(read(&volume, 0, SIZE as usize).await == model, "after a clean stop");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_volume_is_an_array(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(run(steps));
    }
}
