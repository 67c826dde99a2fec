//! Rates of one volume through the guest's path, without an export: `volume_rate DIR [MIB]`.
//!
//! Prints, per pattern, operations per second and MB per second. For profiles (`perf record`) and
//! to see what the engine alone costs; the comparison with a peer is `cargo xtask bench nbd`.

use async_trait::async_trait;
use bytes::Bytes;
use pannier_core::ids::{Epoch, HashKey, HostId, Incarnation, SiteName, VolumeId};
use pannier_engine::context::{HostContext, HostOptions, LocalConfig};
use pannier_engine::disk::Disk;
use pannier_engine::error::{Error, ErrorKind, Result};
use pannier_engine::port::{Objects, WriteRequest};
use pannier_engine::volume::Volume;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

struct NoStore;

#[async_trait]
impl Objects for NoStore {
    async fn put(&self, _key: &str, _bytes: Bytes) -> Result<()> {
        Err(Error::new(ErrorKind::Unavailable, "there is no store"))
    }
    async fn get(&self, _key: &str) -> Result<Bytes> {
        Err(Error::new(ErrorKind::Unavailable, "there is no store"))
    }
    async fn get_range(&self, _key: &str, _range: Range<u64>) -> Result<Bytes> {
        Err(Error::new(ErrorKind::Unavailable, "there is no store"))
    }
    async fn size(&self, _key: &str) -> Result<Option<u64>> {
        Ok(None)
    }
    async fn delete(&self, _key: &str) -> Result<()> {
        Ok(())
    }
    async fn list(&self, _prefix: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

fn report(name: &str, operations: u64, bytes: u64, since: Instant) {
    let seconds = since.elapsed().as_secs_f64();
    let line = format!(
        "{name:<28} {:>10.0} op/s {:>8.1} MB/s\n",
        operations as f64 / seconds,
        bytes as f64 / seconds / 1e6
    );
    std::io::stdout().write_all(line.as_bytes()).unwrap_or_default();
}

async fn write_all(volume: &Volume, writes: &[WriteRequest<'_>]) -> Result<()> {
    let mut done = 0;
    while done < writes.len() {
        match volume.try_write(&writes[done..])? {
            0 => {
                let write = writes[done];
                volume.write(write.offset, Bytes::copy_from_slice(write.data), false).await?;
                done += 1;
            }
            count => done += count,
        }
    }
    Ok(())
}

async fn run(volume: &Volume, size: u64) -> Result<()> {
    let data = vec![0x5a; 256 << 10];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % (size / 4096) * 4096
    };
    for round in ["first", "second"] {
        let since = Instant::now();
        for offset in (0..size).step_by(256 << 10) {
            write_all(volume, &[WriteRequest { offset, data: &data }]).await?;
        }
        volume.flush().await?;
        report(&format!("{round} sequential write 256k"), size / (256 << 10), size, since);
    }
    for depth in [1_u64, 32] {
        let (since, mut operations) = (Instant::now(), 0);
        while since.elapsed() < Duration::from_secs(3) {
            let writes: Vec<_> =
                (0..depth).map(|_| WriteRequest { offset: block(), data: &data[..4096] }).collect();
            write_all(volume, &writes).await?;
            operations += depth;
        }
        report(&format!("random write 4k x{depth}"), operations, operations * 4096, since);
    }
    volume.flush().await?;
    let mut into = vec![0; 256 << 10];
    let (since, mut operations) = (Instant::now(), 0);
    while since.elapsed() < Duration::from_secs(3) {
        volume.read(block(), &mut into[..4096]).await?;
        operations += 1;
    }
    report("random read 4k", operations, operations * 4096, since);
    let since = Instant::now();
    for offset in (0..size).step_by(256 << 10) {
        volume.read(offset, &mut into).await?;
    }
    report("sequential read 256k", size / (256 << 10), size, since);
    let (since, mut operations) = (Instant::now(), 0);
    while since.elapsed() < Duration::from_secs(3) {
        write_all(volume, &[WriteRequest { offset: block(), data: &data[..4096] }]).await?;
        volume.flush().await?;
        operations += 1;
    }
    report("write 4k + flush", operations, operations * 4096, since);
    Ok(())
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().unwrap_or_else(|| "/tmp/volume_rate".to_owned()));
    let mib: u64 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(512);
    let io = |e| Error::io("start", e);
    std::fs::create_dir_all(&dir).map_err(io)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(io)?;
    runtime.block_on(async {
        let context = HostContext::open(HostOptions {
            dir: dir.clone(),
            host: HostId(1),
            site: SiteName("here".to_owned()),
            key: HashKey([1; 32]),
            config: LocalConfig { background: false, ..LocalConfig::default() },
            objects: Arc::new(NoStore),
            disk: Disk::default(),
        })?;
        let id = VolumeId(u128::from(std::process::id()));
        let volume = Volume::create(&context, id, mib << 20).await?;
        volume.begin_append(Epoch(1), Incarnation(1)).await?;
        run(&volume, mib << 20).await?;
        volume.close().await?;
        drop(volume);
        Volume::delete(&context, id, false).await
    })?;
    std::fs::remove_dir_all(&dir).map_err(io)
}
