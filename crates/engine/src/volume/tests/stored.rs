//! What is stored of a segment: the same bytes whenever, and once.

use super::model::gone;
use super::store::{FromPeer, Published, SIZE, check, fill, objects_of, store_all};
use super::*;
use crate::context::Publish;
use crate::volume::log::object_key;
use std::collections::BTreeSet;

/// What each live segment's object would be now.
async fn encoded(volume: &Arc<Volume>) -> BTreeMap<SegmentName, Vec<u8>> {
    let volume = Arc::clone(volume);
    let encode = move || {
        let live = volume.live_segments().into_iter().filter(|live| live.hash.is_some());
        let encode = |name| volume.encode_stored(&volume.known(name).unwrap()).unwrap();
        live.map(|live| (live.name, encode(live.name))).collect()
    };
    tokio::task::spawn_blocking(encode).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_of_a_segment_does_not_depend_on_when() {
    let dir = tempfile::tempdir().unwrap();
    let context = host(dir.path(), small(), &Arc::default(), Disk::default());
    let volume = created(&context, SIZE).await;
    fill(&volume, 100, 1).await;
    // Some is replaced within its segment, and never stored.
    fill(&volume, 10, 300).await;
    volume.discard(90 * 4096, 2 * 4096, false).await.unwrap();
    volume.seal_open().await.unwrap();
    let first = encoded(&volume).await;
    assert!(first.len() >= 2, "segments: {:?}", first.keys());

    fill(&volume, 60, 500).await;
    volume.discard(95 * 4096, 4096, false).await.unwrap();
    volume.write_zeroes(96 * 4096, 4096, true, false).await.unwrap();
    volume.seal_open().await.unwrap();
    let check = |now: BTreeMap<SegmentName, Vec<u8>>, what: &str| {
        let both: Vec<_> = first.keys().filter(|name| now.contains_key(name)).collect();
        assert!(!both.is_empty(), "{what}: nothing of the first is live");
        for name in both {
            assert!(first[name] == now[name], "{what}: {name} would be stored differently");
        }
    };
    check(encoded(&volume).await, "overwritten");
    volume.checkpoint().await.unwrap();
    check(encoded(&volume).await, "behind a checkpoint");
    gone(volume).await;
    let volume = recovered(&context, 2).await;
    check(encoded(&volume).await, "restarted");
    fill(&volume, 98, 700).await;
    volume.seal_open().await.unwrap();
    check(encoded(&volume).await, "nearly dead");
}

/// The answer of the store is lost, the daemon dies, and the guest goes on: the second attempt
/// finds the first one's object, and is content with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_whose_storing_was_not_noted_is_stored_again() {
    let dir = tempfile::tempdir().unwrap();
    let objects: Arc<MemoryObjects> = Arc::default();
    let context = host(dir.path(), small(), &objects, Disk::default());
    let volume = created(&context, SIZE).await;
    fill(&volume, 40, 1).await;
    volume.seal_open().await.unwrap();
    let name = volume.live_segments()[0].name;
    objects.lose_answers.store(true, Ordering::Relaxed);
    let lost = volume.store_segment(name).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Unavailable);
    assert_eq!(volume.stats().stored_bytes, 0, "nothing is believed that was not said");
    let before = objects.objects.lock().clone();
    assert_eq!(before.len(), 1);
    objects.lose_answers.store(false, Ordering::Relaxed);
    gone(volume).await;
    let volume = recovered(&context, 2).await;
    fill(&volume, 20, 500).await;
    volume.store_segment(name).await.unwrap();
    assert!(volume.stored_key(name).is_some());
    assert!(*objects.objects.lock() == before, "one object, as it was");
}

/// A host that has only the live pages of a segment stores fewer of them the later it does so.
#[tokio::test(flavor = "multi_thread")]
async fn what_stores_less_is_content_with_what_has_more() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let owner_host = host(here.path(), small(), &Arc::default(), Disk::default());
    let owner = created(&owner_host, SIZE).await;
    fill(&owner, 40, 1).await;
    owner.checkpoint().await.unwrap();
    let (root, parts) = objects_of(&owner).await;
    owner.stop_append().await.unwrap();

    let objects: Arc<MemoryObjects> = Arc::default();
    let context = HostContext::open(HostOptions {
        dir: there.path().to_owned(),
        host: HostId(2),
        site: SiteName("east".to_owned()),
        key: KEY,
        config: small(),
        objects: Arc::clone(&objects) as Arc<dyn Objects>,
        disk: Disk::default(),
    })
    .unwrap();
    context.set_fetch(Arc::new(FromPeer(Arc::clone(&owner))));
    let volume = Volume::follower(&context, ID, root, parts).await.unwrap();
    volume.begin_append(Epoch(2), Incarnation(1)).await.unwrap();
    for block in 0..40 {
        assert!(read(&volume, block * 4096, 4096).await == pattern(1 + block, 4096));
    }
    let name = volume.live_segments()[0].name;
    assert!(!volume.live_segments()[0].file_here);
    objects.lose_answers.store(true, Ordering::Relaxed);
    volume.store_segment(name).await.unwrap_err();
    objects.lose_answers.store(false, Ordering::Relaxed);
    let before = objects.objects.lock().clone();
    fill(&volume, 20, 500).await;
    volume.store_segment(name).await.unwrap();
    assert!(*objects.objects.lock() == before, "one object, as it was");

    // An object that lacks what the map names is no substitute.
    let key = volume.stored_key(name).unwrap();
    let known = volume.known(name).unwrap();
    known.set_stored(false);
    let meta = volume.meta_of(&known).await.unwrap();
    let empty = pannier_core::format::stored::encode(&meta, |_page| None);
    objects.objects.lock().insert(key.clone(), empty.into());
    volume.store_segment(name).await.unwrap();
    let beside = volume.stored_key(name).unwrap();
    assert_ne!(beside, key, "a key is create-only");
    assert!(volume.object_suffices(&beside, &known).await.unwrap());
    let listed = crate::stored::read(&Disk::default(), volume.dir()).unwrap();
    assert_eq!(listed[&name].damaged.len(), 1, "{listed:?}");
}

/// Objects of a volume in the store: segments, checkpoint objects.
fn kinds(objects: &MemoryObjects) -> [Vec<String>; 2] {
    let keys: Vec<_> = objects.objects.lock().keys().cloned().collect();
    ["/segments/", "/checkpoints/"]
        .map(|kind| keys.iter().filter(|key| key.contains(kind)).cloned().collect())
}

/// The daemon dies at every step between a segment's death and its object's deletion, and in the
/// end the store has what the newest root names, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_condemned_is_not_forgotten_at_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let objects: Arc<MemoryObjects> = Arc::default();
    let published = Arc::new(Published::default());
    let mut incarnation = 1;
    let mut context = None;
    let mut restart = async |volume: Option<Arc<Volume>>| {
        if let Some(volume) = volume {
            gone(volume).await;
        }
        drop(context.take());
        let host = host(dir.path(), small(), &objects, Disk::default());
        host.set_publish(Arc::clone(&published) as Arc<dyn Publish>);
        incarnation += 1;
        let volume = match incarnation {
            2 => created(&host, SIZE).await,
            _ => recovered(&host, incarnation).await,
        };
        context = Some(host);
        volume
    };
    let mut volume = restart(None).await;
    fill(&volume, 100, 1).await;
    store_all(&volume).await;
    assert!(volume.checkpoint().await.unwrap().1);
    let [old, _] = kinds(&objects);
    volume = restart(Some(volume)).await;
    fill(&volume, 100, 1000).await;
    store_all(&volume).await;
    // Dead, and not recycled.
    volume = restart(Some(volume)).await;
    volume.checkpoint_local().await.unwrap();
    // Recycled by a local checkpoint that nobody publishes.
    volume = restart(Some(volume)).await;
    fill(&volume, 1, 2000).await;
    store_all(&volume).await;
    volume.checkpoint_local().await.unwrap();
    // Condemned by one, and the store refuses to delete.
    volume = restart(Some(volume)).await;
    objects.keep.store(true, Ordering::Relaxed);
    assert!(volume.publish_checkpoint().await.unwrap().is_some());
    assert!(old.iter().all(|key| kinds(&objects)[0].contains(key)));
    objects.keep.store(false, Ordering::Relaxed);
    volume = restart(Some(volume)).await;
    for seed in [3000, 4000] {
        fill(&volume, 2, seed).await;
        store_all(&volume).await;
        assert!(volume.checkpoint().await.unwrap().1);
    }
    let [segments, checkpoints] = kinds(&objects);
    assert!(old.iter().all(|key| !segments.contains(key)), "{segments:?}");
    let named: Vec<_> = volume.live_segments().iter().map(|live| live.name.to_string()).collect();
    // What died since the newest checkpoint is condemned by the next.
    assert!(segments.len() <= named.len() + 1, "{segments:?} for {named:?}");
    let named: BTreeSet<_> = {
        let checkpointer = volume.checkpointer.lock().await;
        let saved = &checkpointer.saved;
        let named = saved.objects().into_iter().chain([saved.hash]);
        named.map(|object| object_key(ID, object)).collect()
    };
    assert_eq!(checkpoints.into_iter().collect::<BTreeSet<_>>(), named);
    let list = crate::stored::read(&Disk::default(), volume.dir()).unwrap();
    assert_eq!(list.len(), segments.len(), "a line leaves the list with its object");
    volume = restart(Some(volume)).await;
    check(&volume, 2, 4000).await;
}
