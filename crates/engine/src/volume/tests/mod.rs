//! Tests of a volume on a host, against files in a temporary directory.

mod damage;
mod fault;
mod forwarded;
mod guest;
mod model;
mod store;
mod stored;

use super::Volume;
use crate::context::{Fetch, HostContext, HostOptions, LocalConfig};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::port::{Class, Objects};
use crate::volume::log::{PageRuns, pages_of};
use async_trait::async_trait;
use bytes::Bytes;
use pannier_core::format::segment::SegmentMeta;
use pannier_core::format::stored::{Footer, decode_frame};
use pannier_core::ids::{Epoch, HashKey, HostId, Incarnation, SegmentName, SiteName, VolumeId};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) const ID: VolumeId = VolumeId(0x5eed);
pub(super) const KEY: HashKey = HashKey([7; 32]);

/// A store in memory, which can be away, or lose its answers.
#[derive(Default)]
pub(super) struct MemoryObjects {
    objects: Mutex<BTreeMap<String, Bytes>>,
    away: AtomicBool,
    /// Objects are stored, and who stores them is told otherwise.
    lose_answers: AtomicBool,
    /// Nothing can be deleted.
    keep: AtomicBool,
}

impl MemoryObjects {
    fn check(&self) -> Result<()> {
        if self.away.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, "the store is away"));
        }
        Ok(())
    }
}

#[async_trait]
impl Objects for MemoryObjects {
    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.check()?;
        let mut objects = self.objects.lock();
        let there = objects.entry(key.to_owned()).or_insert_with(|| bytes.clone());
        if there.len() != bytes.len() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{key} is there, with other bytes"),
            ));
        }
        if self.lose_answers.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, "the answer is lost"));
        }
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.check()?;
        let found = self.objects.lock().get(key).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, key))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        Ok(self.get(key).await?.slice(range.start as usize..range.end as usize))
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        self.check()?;
        Ok(self.objects.lock().get(key).map(|bytes| bytes.len() as u64))
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.check()?;
        if self.keep.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, "nothing is deleted"));
        }
        self.objects.lock().remove(key);
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let objects = self.objects.lock();
        Ok(objects.keys().filter(|key| key.starts_with(prefix)).cloned().collect())
    }
}

/// Fetches whole objects from a store.
pub(super) struct FromStore(pub(super) Arc<MemoryObjects>);

#[async_trait]
impl Fetch for FromStore {
    async fn pages(
        &self,
        volume: &Arc<Volume>,
        segment: SegmentName,
        pages: PageRuns,
        _class: Class,
    ) -> Result<()> {
        let key = volume.stored_key(segment);
        let key = key.ok_or_else(|| Error::new(ErrorKind::NotFound, "it is not stored"))?;
        let object = self.0.get(&key).await?;
        let footer = Footer::decode_tail(&object, object.len() as u64).unwrap();
        let range = footer.meta_range();
        let meta =
            SegmentMeta::decode(&object[range.start as usize..range.end as usize], &KEY).unwrap();
        let mut bytes = Vec::new();
        for page in pages_of(&pages) {
            let frame = footer.frame_for(&meta, page).expect("the object has every live page");
            let range = frame.range();
            let mut buffer = Vec::new();
            let stored = &object[range.start as usize..range.end as usize];
            let found = decode_frame(&frame, stored, &meta, &KEY, &mut buffer).unwrap();
            bytes.extend_from_slice(found.iter().find(|found| found.page == page).unwrap().bytes);
        }
        volume.insert_pages(segment, &pages, &bytes).await
    }

    async fn meta(&self, volume: VolumeId, segment: SegmentName) -> Result<Bytes> {
        let keys = self.0.list(&format!("volumes/{volume}/segments/{segment}")).await?;
        let key =
            keys.first().ok_or_else(|| Error::new(ErrorKind::NotFound, segment.to_string()))?;
        let object = self.0.get(key).await?;
        let range = Footer::decode_tail(&object, object.len() as u64).unwrap().meta_range();
        Ok(object.slice(range.start as usize..range.end as usize))
    }
}

/// Small segments, so that tests cross their borders, and no background work.
pub(super) fn small() -> LocalConfig {
    LocalConfig {
        segment_pages: 64,
        pool_bytes: 16 * 64 * 4096,
        background: false,
        ..LocalConfig::default()
    }
}

/// A host on a directory.
pub(super) fn host(
    dir: &Path,
    config: LocalConfig,
    objects: &Arc<MemoryObjects>,
    disk: Disk,
) -> Arc<HostContext> {
    let context = HostContext::open(HostOptions {
        dir: dir.to_owned(),
        host: HostId(1),
        site: SiteName("west".to_owned()),
        key: KEY,
        config,
        objects: Arc::clone(objects) as Arc<dyn Objects>,
        disk,
    })
    .unwrap();
    context.set_fetch(Arc::new(FromStore(Arc::clone(objects))));
    context
}

/// A new volume that appends.
pub(super) async fn created(context: &Arc<HostContext>, size_bytes: u64) -> Arc<Volume> {
    let volume = Volume::create(context, ID, size_bytes).await.unwrap();
    volume.begin_append(Epoch(1), Incarnation(1)).await.unwrap();
    volume
}

/// The volume of a host that died without closing it.
pub(super) async fn recovered(context: &Arc<HostContext>, incarnation: u32) -> Arc<Volume> {
    let volume = Volume::recover(context, ID).await.unwrap();
    volume.begin_append(Epoch(1), Incarnation(incarnation)).await.unwrap();
    volume
}

/// `length` bytes that tell by what they were written.
pub(super) fn pattern(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..length.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(length).collect()
}

pub(super) async fn read(volume: &Volume, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    volume.read(offset, &mut bytes).await.unwrap();
    bytes
}

/// Makes the disk the only place that has a file's bytes.
pub(super) fn make_cold(path: &Path) {
    let file = Disk::default().open(path).unwrap();
    file.sync().unwrap();
    // Pages that somebody holds for an instant stay.
    while (0..file.length().unwrap()).step_by(4096).any(|offset| file.is_cached(offset, 4096)) {
        file.forget_cached(0, file.length().unwrap());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
