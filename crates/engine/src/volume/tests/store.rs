//! Storing, evicting, checkpoints, followers, sessions.

use super::forwarded::Slow;
use super::model::gone;
use super::*;
use crate::checkpoint::Saved;
use crate::context::{Publication, Publish};
use crate::disk::Observer;
use crate::volume::log::{Operation, object_key};
use crate::volume::recover::load_map;
use pannier_core::ids::{ObjectHash, RequestNumber, SessionId};
use pannier_core::record::PublishedCheckpoint;

pub(super) const SIZE: u64 = 4 << 20;

/// Publishes into a list.
#[derive(Default)]
pub(super) struct Published(pub(super) Mutex<Vec<Publication>>);

#[async_trait]
impl Publish for Published {
    async fn publish(&self, publication: Publication) -> Result<()> {
        self.0.lock().push(publication);
        Ok(())
    }

    async fn published(&self, _volume: VolumeId) -> Result<Option<PublishedCheckpoint>> {
        Ok(self.0.lock().last().map(|last| last.checkpoint.clone()))
    }
}

pub(super) async fn store_all(volume: &Volume) {
    volume.seal_open().await.unwrap();
    for live in volume.live_segments() {
        volume.store_segment(live.name).await.unwrap();
    }
}

async fn evict_all(volume: &Arc<Volume>) {
    let volume = Arc::clone(volume);
    let evict = move || {
        for live in volume.live_segments() {
            volume.evict_file(live.name).unwrap();
        }
    };
    tokio::task::spawn_blocking(evict).await.unwrap();
}

/// Writes the volume's first `count` blocks, block `n` by seed `first_seed + n`.
pub(super) async fn fill(volume: &Volume, count: u64, first_seed: u64) {
    for block in 0..count {
        volume.write(block * 4096, pattern(first_seed + block, 4096), false).await.unwrap();
    }
}

pub(super) async fn check(volume: &Volume, count: u64, first_seed: u64) {
    for block in 0..count {
        let bytes = read(volume, block * 4096, 4096).await;
        assert!(bytes == pattern(first_seed + block, 4096), "block {block}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_evicted_comes_back_from_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let objects = Arc::default();
    let context = host(dir.path(), small(), &objects, Disk::default());
    let volume = created(&context, SIZE).await;
    fill(&volume, 200, 1).await;
    let before = volume.stats();
    assert_eq!((before.live_bytes, before.stored_bytes), (200 * 4096, 0));
    evict_all(&volume).await;
    assert_eq!(volume.stats().resident_bytes, 200 * 4096, "nothing leaves before it is stored");
    store_all(&volume).await;
    evict_all(&volume).await;
    let after = volume.stats();
    assert_eq!((after.resident_bytes, after.stored_bytes), (0, 200 * 4096));
    let mut inline = vec![0; 4096];
    assert!(!volume.try_read(0, &mut inline).unwrap(), "it would have to wait");
    check(&volume, 200, 1).await;
    assert!(volume.try_read(0, &mut inline).unwrap());
    let name = volume.live_segments()[0].name;
    assert!(volume.missing_pages(name).is_empty());

    // Lines and stored marks are known after a restart; damage in a line is noticed and mended.
    volume.checkpoint().await.unwrap();
    gone(volume).await;
    drop(context);
    let slab = dir.path().join("cache/slab");
    let mut bytes = std::fs::read(&slab).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
    std::fs::write(&slab, bytes).unwrap();
    make_cold(&slab);
    let context = host(dir.path(), small(), &objects, Disk::default());
    let volume = recovered(&context, 2).await;
    assert_eq!(volume.stats().stored_bytes, 200 * 4096);
    check(&volume, 200, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_on_the_disk_is_mended_or_reported_never_returned() {
    for stored in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let objects = Arc::default();
        let context = host(dir.path(), small(), &objects, Disk::default());
        let volume = created(&context, SIZE).await;
        fill(&volume, 8, 1).await;
        volume.seal_open().await.unwrap();
        if stored {
            store_all(&volume).await;
        }
        let name = volume.live_segments()[0].name;
        let page = volume.live_pages(name)[0].start;
        let file = std::fs::OpenOptions::new().write(true).open(volume.segment_path(name)).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"rot", u64::from(page) * 4096).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        if stored {
            check(&volume, 8, 1).await;
        } else {
            let served = {
                let one = std::iter::once(page..page + 1).collect();
                volume.read_pages(name, &one).await.unwrap_err()
            };
            assert_eq!(served.kind(), ErrorKind::NotFound);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_segments_are_recycled_and_condemned() {
    let dir = tempfile::tempdir().unwrap();
    let objects: Arc<MemoryObjects> = Arc::default();
    let context = host(dir.path(), small(), &objects, Disk::default());
    let published = Arc::new(Published::default());
    context.set_publish(Arc::clone(&published) as Arc<dyn Publish>);
    let volume = created(&context, SIZE).await;
    fill(&volume, 100, 1).await;
    store_all(&volume).await;
    let (first, is_published) = volume.checkpoint().await.unwrap();
    assert!(is_published);
    let old_keys: Vec<_> =
        volume.live_segments().iter().filter_map(|live| volume.stored_key(live.name)).collect();
    assert!(old_keys.len() >= 2);
    fill(&volume, 100, 1000).await;
    volume.seal_open().await.unwrap();
    let (second, is_published) = volume.checkpoint().await.unwrap();
    assert!(!is_published, "its segments are not stored yet");
    assert!(old_keys.iter().all(|key| objects.objects.lock().contains_key(key)));
    store_all(&volume).await;
    // The dead are named as condemned by the next root, and deleted once it is published.
    let (third, is_published) = volume.checkpoint().await.unwrap();
    assert!(is_published && first != second && second != third);
    assert!(old_keys.iter().all(|key| !objects.objects.lock().contains_key(key)));
    let roots: Vec<_> = published.0.lock().iter().map(|done| done.checkpoint.object).collect();
    assert_eq!(roots, [first, third]);
    assert!(objects.objects.lock().contains_key(&object_key(ID, third)));
    assert!(context.pool.free_files() > 0, "files of dead segments wait for their next use");
    let files = std::fs::read_dir(dir.path().join(format!("volumes/{ID}/segments"))).unwrap();
    assert!(files.count() <= volume.live_segments().len() + 2);
    gone(volume).await;
    let volume = recovered(&context, 2).await;
    check(&volume, 100, 1000).await;
}

/// Fetches from the volume of another host.
pub(super) struct FromPeer(pub(super) Arc<Volume>);

#[async_trait]
impl Fetch for FromPeer {
    async fn pages(
        &self,
        volume: &Arc<Volume>,
        segment: SegmentName,
        pages: PageRuns,
        _class: Class,
    ) -> Result<()> {
        let bytes = self.0.read_pages(segment, &pages).await?;
        volume.insert_pages(segment, &pages, &bytes).await
    }

    async fn meta(&self, _volume: VolumeId, segment: SegmentName) -> Result<Bytes> {
        self.0.segment_meta(segment).await
    }
}

/// Every object that a volume's newest checkpoint names.
pub(super) async fn objects_of(volume: &Volume) -> (Bytes, Vec<Bytes>) {
    let root = volume.checkpoint_root().await.unwrap();
    let dir = volume.dir().join("pages");
    let mut objects = Vec::new();
    for path in std::fs::read_dir(dir).unwrap() {
        let name = path.unwrap().file_name().into_string().unwrap();
        let hash: Vec<u8> =
            (0..32).map(|n| u8::from_str_radix(&name[2 * n..2 * n + 2], 16).unwrap()).collect();
        let hash = ObjectHash(hash.try_into().unwrap());
        objects.push(volume.checkpoint_page(hash).await.unwrap());
    }
    (root, objects)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_takes_the_log_over() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let owner_host = host(here.path(), small(), &Arc::default(), Disk::default());
    let owner = created(&owner_host, SIZE).await;
    fill(&owner, 60, 1).await;
    owner.checkpoint().await.unwrap();
    let (root, objects) = objects_of(&owner).await;

    let follower_host = HostContext::open(HostOptions {
        dir: there.path().to_owned(),
        host: HostId(2),
        site: SiteName("east".to_owned()),
        key: KEY,
        config: small(),
        objects: Arc::<MemoryObjects>::default(),
        disk: Disk::default(),
    })
    .unwrap();
    follower_host.set_fetch(Arc::new(FromPeer(Arc::clone(&owner))));
    let follower = Volume::follower(&follower_host, ID, root, objects).await.unwrap();
    fill(&owner, 30, 500).await;
    owner.discard(59 * 4096, 4096, false).await.unwrap();
    owner.resize(2 * SIZE).await.unwrap();
    owner.seal_open().await.unwrap();
    let batch = owner.log_since(follower.position(), 1).await.unwrap();
    assert!(!batch.segments.is_empty());
    follower.apply_log(&batch).await.unwrap();
    owner.write(0, pattern(900, 4096), false).await.unwrap();
    let end = owner.stop_append().await.unwrap();
    while follower.position() != end {
        let batch = owner.log_since(follower.position(), 1 << 20).await.unwrap();
        follower.apply_log(&batch).await.unwrap();
        follower.apply_log(&batch).await.unwrap();
    }

    // A crash right behind GRANT: the follower's side is complete.
    gone(follower).await;
    let follower = Volume::recover(&follower_host, ID).await.unwrap();
    assert_eq!(follower.position(), end);
    follower.begin_append(Epoch(2), Incarnation(1)).await.unwrap();
    assert_eq!(follower.size_bytes(), 2 * SIZE);
    let mut expect: Vec<_> =
        (0..60).map(|n| pattern(if n < 30 { 500 } else { 1 } + n, 4096)).collect();
    expect[0] = pattern(900, 4096);
    expect[59] = vec![0; 4096].into();
    let missing: u32 = follower
        .live_segments()
        .iter()
        .map(|live| crate::volume::log::pages_in(&follower.missing_pages(live.name)))
        .sum();
    assert_eq!(missing, 59, "everything is elsewhere");
    assert!(read(&follower, 0, 60 * 4096).await == expect.concat());

    // And back again: the former owner follows from where it stopped.
    follower.write(4096, pattern(901, 4096), false).await.unwrap();
    expect[1] = pattern(901, 4096);
    let back = follower.stop_append().await.unwrap();
    let batch = follower.log_since(owner.position(), 1 << 20).await.unwrap();
    assert_eq!(owner.apply_log(&batch).await.unwrap(), back);
    let wrong = follower.log_since(crate::volume::log::Position { entries: 9, ..back }, 1).await;
    assert_eq!(wrong.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_reaches_back_to_the_follower_over_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let context = host(dir.path(), small(), &Arc::default(), Disk::default());
    let owner = created(&context, SIZE).await;
    fill(&owner, 10, 1).await;
    owner.checkpoint().await.unwrap();
    let base = owner.position();
    let write = async |first_seed| {
        fill(&owner, 10, first_seed).await;
        owner.seal_open().await.unwrap();
    };
    write(100).await;
    write(200).await;
    // At a checkpoint, and then at a segment of the log behind it.
    let entry = owner.log_since(base, 1).await.unwrap().through;
    for (round, at) in [base, entry].into_iter().enumerate() {
        let next = owner.log_since(at, 1).await.unwrap().through;
        assert_ne!(next, at);
        for checkpoint in 0..3 {
            owner.checkpoint().await.unwrap();
            let again = owner.log_since(at, 1).await;
            let again = again.unwrap_or_else(|error| panic!("{at:?}, {checkpoint}: {error}"));
            assert_eq!(again.through, next);
            write(1000 * (1 + round as u64) + 100 * checkpoint).await;
        }
    }
    // Where the follower is not any more, nothing is kept.
    owner.checkpoint().await.unwrap();
    assert_eq!(owner.log_since(base, 1).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sessions_requests_are_applied_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let context = host(dir.path(), small(), &Arc::default(), Disk::default());
    let volume = created(&context, SIZE).await;
    let session = SessionId(77);
    let number = |number| RequestNumber(number)..=RequestNumber(number);
    let request = |seed: u64| {
        vec![
            Operation::Write { offset: 512, data: pattern(seed, 8192) },
            Operation::Discard { offset: 65_536, length: 4096 },
        ]
    };
    // The second comes first and waits for its turn.
    let early = {
        let (volume, operations) = (Arc::clone(&volume), request(2));
        tokio::spawn(async move { volume.write_in_session(session, number(2), &operations).await })
    };
    volume.write_in_session(session, number(1), &request(1)).await.unwrap();
    early.await.unwrap().unwrap();
    assert!(read(&volume, 512, 8192).await == pattern(2, 8192));
    volume.write_in_session(session, number(3), &[]).await.unwrap();
    // Several at once need only the one before the first.
    let several = RequestNumber(4)..=RequestNumber(6);
    let started = std::time::Instant::now();
    volume.write_in_session(session, several, &[]).await.unwrap();
    assert!(started.elapsed() < std::time::Duration::from_secs(5), "it waited for itself");
    gone(volume).await;
    let volume = recovered(&context, 2).await;
    assert_eq!(volume.sessions()[&session], RequestNumber(6));
    volume.write(512, pattern(9, 8192), false).await.unwrap();
    volume.write_in_session(session, number(2), &request(2)).await.unwrap();
    assert!(read(&volume, 512, 8192).await == pattern(9, 8192), "not applied again");
}

#[tokio::test(flavor = "multi_thread")]
async fn background_work_stores_and_publishes_and_survives_an_absent_store() {
    let dir = tempfile::tempdir().unwrap();
    let objects: Arc<MemoryObjects> = Arc::default();
    objects.away.store(true, Ordering::Relaxed);
    let config = LocalConfig { background: true, cache_bytes: 0, ..small() };
    let context = host(dir.path(), config, &objects, Disk::default());
    let published = Arc::new(Published::default());
    context.set_publish(Arc::clone(&published) as Arc<dyn Publish>);
    let volume = created(&context, SIZE).await;
    fill(&volume, 300, 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(volume.stats().stored_bytes, 0);
    check(&volume, 300, 1).await;
    objects.away.store(false, Ordering::Relaxed);
    volume.seal_open().await.unwrap();
    for _ in 0..400 {
        if volume.stats().stored_bytes == 300 * 4096 && !published.0.lock().is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let stats = volume.stats();
    assert_eq!(stats.stored_bytes, 300 * 4096);
    assert!(stats.resident_bytes < stats.live_bytes, "stored segments leave a cache of nothing");
    assert!(!published.0.lock().is_empty());
    check(&volume, 300, 1).await;
}

/// The oldest of what recovery set aside goes; the tail of an ended epoch stays.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_aside_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let context = host(dir.path(), small(), &Arc::default(), Disk::default());
    let volume = created(&context, SIZE).await;
    let aside = volume.dir().join("aside");
    let tail = aside.join("beyond-7/1.1-8");
    std::fs::create_dir_all(tail.parent().unwrap()).unwrap();
    let bytes = crate::limits::ASIDE_BYTES_MAX / 4;
    let make = |path: &Path, age: u64| {
        let file = std::fs::File::create(path).unwrap();
        file.set_len(bytes).unwrap();
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
        file.set_modified(long_ago).unwrap();
    };
    make(&tail, 1000);
    // The names do not tell the age.
    for (name, age) in [("1.1-3", 50), ("1.1-1", 40), ("1.1-2", 30), ("1.1-9", 20), ("1.1-4", 10)] {
        let path = volume.dir().join(name);
        make(&path, age);
        volume.set_aside(&path).unwrap();
    }
    let again = volume.dir().join("1.1-4");
    make(&again, 0);
    volume.set_aside(&again).unwrap();
    let mut left: Vec<_> = std::fs::read_dir(&aside).unwrap().map(|e| e.unwrap().path()).collect();
    left.sort();
    let kept = ["1.1-2", "1.1-4", "1.1-4.1", "1.1-9", "beyond-7"].map(|name| aside.join(name));
    assert_eq!(left, kept);
    assert!(tail.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_names_an_unlisted_segment_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let context = host(dir.path(), small(), &Arc::default(), Disk::default());
    let volume = created(&context, SIZE).await;
    fill(&volume, 8, 1).await;
    volume.checkpoint_local().await.unwrap();
    gone(volume).await;
    let dir = context.volume_dir(ID);
    let mut root = Saved::read_local(&context, &dir, ID).unwrap().root;
    assert!(load_map(&context, &dir, &root).is_ok());
    root.segments.clear();
    let refused = load_map(&context, &dir, &root).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    assert!(refused.to_string().contains("not listed"), "{refused}");
}

/// What is claimed at a takeover is all that is ever applied.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_followed_log_is_behind_what_is_being_applied() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let owner_host = host(here.path(), small(), &Arc::default(), Disk::default());
    let owner = created(&owner_host, SIZE).await;
    owner.checkpoint().await.unwrap();
    let (root, objects) = objects_of(&owner).await;
    let slow = Arc::new(Slow::default());
    let disk = Disk::observed(Arc::clone(&slow) as Arc<dyn Observer>);
    let follower_host = host(there.path(), small(), &Arc::default(), disk);
    let follower = Volume::follower(&follower_host, ID, root, objects).await.unwrap();
    fill(&owner, 10, 1).await;
    owner.seal_open().await.unwrap();
    let batch = owner.log_since(follower.position(), 1 << 20).await.unwrap();

    slow.0.store(true, Ordering::Relaxed);
    let through = batch.through;
    let applying = {
        let follower = Arc::clone(&follower);
        tokio::spawn(async move { follower.apply_log(&batch).await })
    };
    while !slow.1.load(Ordering::Relaxed) {
        tokio::task::yield_now().await;
    }
    applying.abort();
    assert!(applying.await.unwrap_err().is_cancelled(), "following has ended");
    let end = {
        let follower = Arc::clone(&follower);
        tokio::spawn(async move { follower.followed_end().await })
    };
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    slow.0.store(false, Ordering::Relaxed);
    assert_eq!(end.await.unwrap(), through);
    assert_eq!(follower.position(), through);
}
