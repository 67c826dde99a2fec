//! What a segment costs: staging an append, recovering an open segment, sealing, storing.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pannier_core::format::segment::{
    Header, Link, PAGE_BYTES, SegmentWriter, crc32c, limits, recover,
};
use pannier_core::format::stored;
use pannier_core::ids::{HashKey, VolumeId};
use pannier_core::units::{BlockIndex, PageIndex};
use std::convert::Infallible;
use std::hint::black_box;

const KEY: HashKey = HashKey([7; 32]);

fn writer() -> SegmentWriter {
    let header = Header {
        volume: VolumeId(1),
        name: "1.1-1".parse().expect("a name"),
        nonce: 42,
        predecessor: None,
        capacity_pages: limits::CAPACITY_PAGES_DEFAULT,
    };
    SegmentWriter::new(header, Link::default())
}

/// Text-like pages, as compressible as a file system's.
fn page(number: usize) -> Vec<u8> {
    let text = format!("{number} the quick brown fox jumps over {} lazy dogs; ", number * 7919);
    text.bytes().cycle().take(PAGE_BYTES).collect()
}

/// A full segment's file, written 4 KiB at a time, a flush after every `flush_every` writes.
fn full_file(flush_every: usize) -> (SegmentWriter, Vec<u8>) {
    let mut writer = writer();
    let mut file = vec![0; limits::CAPACITY_PAGES_DEFAULT as usize * PAGE_BYTES];
    let mut put = |page: PageIndex, bytes: &[u8]| {
        let at = page.byte_offset() as usize;
        file[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(PageIndex(0), &writer.header().encode()[..]);
    for number in 0.. {
        let data = page(number);
        let Ok(at) = writer.append_data(BlockIndex(number as u64), &data, false) else { break };
        put(at.page, &data);
        writer.unwritten().for_each(|(page, bytes)| put(page, bytes));
        writer.mark_written();
        if number % flush_every == flush_every - 1 {
            // Nothing is known durable, so that recovery reads everything: the worst case.
            writer.begin_flush();
        }
    }
    (writer, file)
}

fn append(c: &mut Criterion) {
    for pages in [1, 64] {
        let data = vec![0x5a; pages * PAGE_BYTES];
        let mut group = c.benchmark_group(format!("{} KiB", pages * 4));
        group.throughput(Throughput::Bytes(data.len() as u64));
        group.bench_function("crc32c", |b| b.iter(|| crc32c(black_box(&data))));
        group.bench_function("append", |b| {
            let mut open = writer();
            b.iter(|| {
                if open.append_data(BlockIndex(7), black_box(&data), false).is_err() {
                    open = writer();
                }
                open.mark_written();
            });
        });
        group.finish();
    }
}

fn recovery(c: &mut Criterion) {
    let mut group = c.benchmark_group("recover");
    for flush_every in [1, 32] {
        let (_, file) = full_file(flush_every);
        group.throughput(Throughput::Bytes(file.len() as u64));
        group.bench_function(format!("open, all data read, a flush every {flush_every}"), |b| {
            b.iter(|| {
                recover(&file[..PAGE_BYTES], &KEY, |page, into: &mut [u8]| {
                    let at = page.byte_offset() as usize;
                    into.copy_from_slice(&file[at..at + into.len()]);
                    Ok::<(), Infallible>(())
                })
            });
        });
    }
    group.finish();
}

fn seal_and_store(c: &mut Criterion) {
    let (mut open, file) = full_file(32);
    let block = |page: PageIndex| {
        let at = page.byte_offset() as usize;
        &file[at..at + PAGE_BYTES]
    };
    let pages: Vec<PageIndex> = open
        .entries_from(0)
        .iter()
        .filter_map(|entry| match entry.kind {
            pannier_core::format::segment::EntryKind::Data { page, .. } => Some(page),
            _ => None,
        })
        .collect();
    let mut group = c.benchmark_group("full segment");
    group.throughput(Throughput::Bytes((pages.len() * PAGE_BYTES) as u64));
    group.sample_size(20);
    group.bench_function("hash all blocks", |b| {
        b.iter(|| pages.iter().map(|page| KEY.block(block(*page))).collect::<Vec<_>>());
    });
    let table: Vec<_> = pages.iter().map(|page| KEY.block(block(*page))).collect();
    let meta = open.seal(table, &KEY).into_meta();
    group.bench_function("store: encode", |b| {
        b.iter(|| stored::encode(&meta, |page| Some(block(page))));
    });
    let object = stored::encode(&meta, |page| Some(block(page)));
    group.bench_function("store: decode and verify", |b| {
        b.iter_batched_ref(
            Vec::new,
            |buffer| {
                let tail = object.len() - stored::FOOTER_BYTES_MAX as usize;
                let footer = stored::Footer::decode_tail(&object[tail..], object.len() as u64);
                for frame in footer.expect("a footer").frames() {
                    let range = frame.range();
                    let bytes = &object[range.start as usize..range.end as usize];
                    stored::decode_frame(&frame, bytes, &meta, &KEY, buffer)
                        .expect("what was encoded");
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, append, recovery, seal_and_store);
criterion_main!(benches);
