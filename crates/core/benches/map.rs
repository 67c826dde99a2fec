//! The map under the guest's hand: lookups and writes of single blocks at random in a volume of
//! 16 GiB, once freshly written in order and once fragmented to the last block.

#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use criterion::{Criterion, criterion_group, criterion_main};
use pannier_core::ids::{Epoch, Incarnation, SegmentName, Sequence};
use pannier_core::map::{Map, Target};
use pannier_core::units::{BlockIndex, PageIndex};
use std::hint::black_box;

const BLOCKS: u64 = 4 << 20;
const SEGMENT_PAGES: u64 = 4096;

/// A full-period walk over all blocks in an order without locality.
fn scattered(turn: u64) -> u64 {
    turn.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(3_037_000_493) % BLOCKS
}

fn segment(map: &mut Map, turn: u64) -> Target {
    let name = SegmentName {
        sequence: Sequence(1 + turn / SEGMENT_PAGES),
        epoch: Epoch(1),
        incarnation: Incarnation(1),
    };
    Target::Data(map.intern(name), PageIndex((turn % SEGMENT_PAGES) as u32 + 2))
}

fn fragmented() -> Map {
    let mut map = Map::new(BLOCKS).unwrap();
    for turn in 0..BLOCKS {
        let target = segment(&mut map, turn);
        map.assign(BlockIndex(scattered(turn)), 1, target).unwrap();
    }
    map
}

fn in_order() -> Map {
    let mut map = Map::new(BLOCKS).unwrap();
    for turn in (0..BLOCKS).step_by(SEGMENT_PAGES as usize) {
        let target = segment(&mut map, turn);
        map.assign(BlockIndex(turn), SEGMENT_PAGES as u32, target).unwrap();
    }
    map
}

fn bench(criterion: &mut Criterion) {
    for (shape, mut map) in [("in order", in_order()), ("fragmented", fragmented())] {
        let mut turn = 0;
        let mut next = move || {
            turn += 1;
            BlockIndex(scattered(turn))
        };
        let mut group = criterion.benchmark_group(format!("map of 16 GiB, {shape}"));
        group.bench_function("lookup 4 KiB", |bencher| {
            bencher.iter(|| black_box(map.lookup(next(), 1).next()));
        });
        group.bench_function("lookup 256 KiB", |bencher| {
            bencher.iter(|| black_box(map.lookup(next(), 64).count()));
        });
        let mut written = BLOCKS * 2;
        group.bench_function("assign 4 KiB", |bencher| {
            bencher.iter(|| {
                written += 1;
                let target = segment(&mut map, written);
                map.assign(next(), 1, target).unwrap();
            });
        });
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
