//! Moves between hosts in one process, under load and under faults.

#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

mod support;

use bytes::Bytes;
use pannier_core::ids::{HostId, RequestNumber, SessionId, SiteName, VolumeId};
use pannier_core::record::VolumePath;
use pannier_engine::attachment::Connection;
use pannier_engine::context::LocalConfig;
use pannier_engine::error::ErrorKind;
use pannier_engine::host::{Destination, Host, NewVolume, SwitchAt};
use pannier_engine::message::{ForwardOp, Request};
use pannier_engine::port::{BlockDevice, Devices, Objects, PeerService};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Cluster, PATH, create, independent, move_to, owner, path, until};

const MIB: u64 = 1 << 20;

/// What block `index` holds at its `version`: unlike any other, and half compressible.
fn block(index: u64, version: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let mut state =
        index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version.wrapping_mul(0x1234_5677) | 1;
    for word in bytes[..2048].chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    bytes[4080..4088].copy_from_slice(&index.to_le_bytes());
    bytes[4088..].copy_from_slice(&version.to_le_bytes());
    bytes
}

/// Writes `mib` MiB of blocks of version 0 from the start on, and flushes.
async fn fill(device: &Connection, mib: u64) {
    for piece in 0..mib * 4 {
        let first = piece * 64;
        let bytes: Vec<u8> = (first..first + 64).flat_map(|index| block(index, 0)).collect();
        device.write(first * 4096, bytes.into(), false).await.unwrap();
    }
    device.flush().await.unwrap();
}

/// Reads everything back in pieces; `version` tells what each block should be.
async fn check(device: &Connection, mib: u64, version: impl Fn(u64) -> u64) {
    let mut piece = vec![0; 1 << 18];
    for number in 0..mib * 4 {
        device.read(number << 18, &mut piece).await.unwrap();
        for (index, found) in (number * 64..).zip(piece.chunks_exact(4096)) {
            let told = u64::from_le_bytes(found[4088..].try_into().unwrap());
            assert!(found == block(index, version(index)), "block {index} is of version {told}");
        }
    }
}

/// A writer that goes round over `blocks`, in order, one acknowledged write after the other, and
/// reads each back. Returns how many it wrote and its longest wait.
async fn work(device: Connection, blocks: u64, stop: Arc<AtomicBool>) -> (u64, Duration) {
    let (mut written, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let (index, version) = (written % blocks, 1 + written / blocks);
        let bytes = Bytes::from(block(index, version));
        let started = Instant::now();
        device.write(index * 4096, bytes.clone(), false).await.unwrap();
        if written % 16 == 0 {
            device.flush().await.unwrap();
        }
        let mut back = vec![0; 4096];
        device.read(index * 4096, &mut back).await.unwrap();
        longest = longest.max(started.elapsed());
        assert!(back == bytes, "block {index} is not what was acknowledged");
        written += 1;
    }
    device.flush().await.unwrap();
    (written, longest)
}

fn version_after(written: u64, blocks: u64) -> impl Fn(u64) -> u64 {
    move |index| match index {
        index if index >= blocks => 0,
        index => written / blocks + u64::from(index < written % blocks),
    }
}

async fn open(host: &Host) -> Connection {
    host.open(PATH).await.unwrap()
}

/// Two sites, and a guest at the first with a disk, of which a part is filled.
async fn filled(mib: u64, filled_mib: u64) -> (Cluster, Arc<Host>, Arc<Host>, Connection) {
    let cluster = Cluster::new();
    let (a, b) = (cluster.start(1, "west").await, cluster.start(2, "east").await);
    create(&a, mib * MIB).await;
    let at_a = open(&a).await;
    fill(&at_a, filled_mib).await;
    (cluster, a, b, at_a)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_moves_under_its_guest() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.start(1, "west").await, cluster.start(2, "east").await);
    *cluster.net.delay.lock() = Duration::from_millis(5);
    create(&a, 64 * MIB).await;
    let at_a = open(&a).await;
    fill(&at_a, 40).await;
    let stop = Arc::new(AtomicBool::new(false));
    let guest = tokio::spawn(work(at_a, 500, stop.clone()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    move_to(&a, "east").await;
    until("the switch", || owner(&b) == Some(b.id())).await;
    // The guest is still at A, and its requests go to B.
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    let (written, _) = guest.await.unwrap();
    assert!(written > 20, "only {written} writes");
    let at_b = open(&b).await;
    check(&at_b, 40, version_after(written, 500)).await;
    until("independence", || independent(&b, "east")).await;
    let (repeated, pages) = cluster.net.repeated();
    assert_eq!(repeated, 0, "of {pages} pages");
    cluster.stop(a).await;
    check(&at_b, 40, version_after(written, 500)).await;
    drop(at_b);
    // Not even what is cached is needed: the site's store has it all.
    cluster.stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn moving_back_sends_only_what_is_new() {
    let (cluster, a, b, at_a) = filled(64, 32).await;
    drop(at_a);
    move_to(&a, "east").await;
    until("independence of east", || independent(&b, "east")).await;
    let at_b = open(&b).await;
    let new: Vec<u8> = (0..256).flat_map(|index| block(index, 1)).collect();
    at_b.write(0, new.into(), true).await.unwrap();
    drop(at_b);
    cluster.net.pages.lock().clear();
    move_to(&b, "west").await;
    until("independence of west", || independent(&a, "west")).await;
    let (repeated, pages) = cluster.net.repeated();
    assert_eq!(repeated, 0);
    assert!((256..=300).contains(&pages), "{pages} pages were sent for 256 new ones");
    let at_a = open(&a).await;
    check(&at_a, 32, |index| u64::from(index < 256)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn cuts_and_restarts_do_not_begin_anew() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.start(1, "west").await, cluster.start(2, "east").await);
    *cluster.net.delay.lock() = Duration::from_millis(10);
    cluster.net.rate.store(12_500_000, Ordering::Relaxed);
    create(&a, 128 * MIB).await;
    let at_a = open(&a).await;
    fill(&at_a, 96).await;
    drop(at_a);
    move_to(&a, "east").await;
    until("the switch", || owner(&b) == Some(b.id())).await;
    let sent = || cluster.net.pages.lock().len();
    until("a part of hydration", || sent() > 3000).await;
    cluster.net.set_cut(true);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!independent(&b, "east"));
    cluster.net.set_cut(false);
    until("more of hydration", || sent() > 8000).await;
    cluster.stop(a).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let a = cluster.start(1, "west").await;
    until("more of hydration", || sent() > 13_000).await;
    cluster.stop(b).await;
    let b = cluster.start(2, "east").await;
    until("independence", || independent(&b, "east")).await;
    let (repeated, pages) = cluster.net.repeated();
    // What was under way at each of the three breaks is lost: a bandwidth-delay product, with the
    // delay of a busy machine.
    assert!(repeated * 100 <= 6 * pages, "{repeated} of {pages} pages were sent again");
    cluster.stop(a).await;
    let at_b = open(&b).await;
    check(&at_b, 96, |_| 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn forwarded_writes_are_executed_once_while_the_owner_changes() {
    let cluster = Cluster::new();
    let a = cluster.start(1, "west").await;
    let b = cluster.start(2, "east").await;
    let c = cluster.start(3, "north").await;
    create(&a, 16 * MIB).await;
    cluster.net.answers_lost.store(150, Ordering::Relaxed);
    // Few blocks, many writes: a late second execution of a write would bring an old version back.
    let stop = Arc::new(AtomicBool::new(false));
    let guest = tokio::spawn(work(open(&c).await, 3, stop.clone()));
    for (from, to) in [(&a, &b), (&b, &a), (&a, &b)] {
        tokio::time::sleep(Duration::from_millis(400)).await;
        move_to(from, if to.id() == a.id() { "west" } else { "east" }).await;
        until("the switch", || owner(&c) == Some(to.id())).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    let (written, _) = guest.await.unwrap();
    assert!(written > 50, "only {written} writes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn damaged_pages_are_not_taken() {
    let (cluster, a, b, at_a) = filled(16, 8).await;
    drop(at_a);
    *cluster.net.corrupts.lock() = Some(a.id());
    move_to(&a, "east").await;
    until("the switch", || owner(&b) == Some(b.id())).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!independent(&b, "east"));
    assert_eq!(cluster.net.pages.lock().len(), 0);
    *cluster.net.corrupts.lock() = None;
    let at_b = open(&b).await;
    check(&at_b, 8, |_| 0).await;
    until("independence", || independent(&b, "east")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_damaged_object_is_stored_again() {
    let (cluster, a, b, at_a) = filled(32, 24).await;
    drop(at_a);
    let store = cluster.store("east");
    store.damages.store(true, Ordering::Relaxed);
    move_to(&a, "east").await;
    until("independence", || independent(&b, "east")).await;
    assert!(!store.damages.load(Ordering::Relaxed));
    let segments = store.list("volumes/").await.unwrap();
    let segments: Vec<_> = segments.iter().filter(|key| key.contains("/segments/")).collect();
    let generation = |key: &&&String| key.rsplit('.').nth(1).unwrap() == "2";
    assert_eq!(segments.iter().filter(generation).count(), 1, "{segments:?}");
    let mut names: Vec<_> = segments.iter().map(|key| key.rsplitn(3, '.').last()).collect();
    names.dedup();
    assert_eq!(names.len(), segments.len(), "a damaged object is left: {segments:?}");
    // Neither the source nor what the target has cached is needed.
    cluster.stop(a).await;
    cluster.stop(b).await;
    std::fs::remove_dir_all(cluster.host_dir(2).join("cache")).unwrap();
    let b = cluster.start(2, "east").await;
    check(&open(&b).await, 24, |_| 0).await;
    cluster.stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flush_covers_what_another_host_has_written_since() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.start(1, "west").await, cluster.start(2, "east").await);
    create(&a, 16 * MIB).await;
    let (at_a, at_b) = (open(&a).await, open(&b).await);
    let flushes = || cluster.net.flushes.load(Ordering::Relaxed);
    at_b.write(0, block(0, 1).into(), false).await.unwrap();
    at_b.flush().await.unwrap();
    a.release(&path()).await.unwrap();
    at_a.write(4096, block(1, 1).into(), false).await.unwrap();
    let before = flushes();
    at_b.flush().await.unwrap();
    assert_eq!(flushes(), before + 1, "what A was acknowledged is durable only when A says so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_guest_waits_while_the_owner_is_away() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.start(1, "west").await, cluster.start(2, "east").await);
    create(&a, 16 * MIB).await;
    let at_b = open(&b).await;
    at_b.write(0, block(0, 1).into(), false).await.unwrap();
    cluster.stop(a).await;
    let guest = tokio::spawn(async move {
        at_b.write(4096, block(1, 1).into(), false).await.unwrap();
        let mut back = vec![0; 8192];
        at_b.read(0, &mut back).await.unwrap();
        assert!(back[..4096] == block(0, 1) && back[4096..] == block(1, 1));
    });
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!guest.is_finished());
    let _a = cluster.start(1, "west").await;
    tokio::time::timeout(Duration::from_secs(20), guest).await.unwrap().unwrap();
}

/// A host which keeps almost nothing that is stored, so that reads need the store.
async fn without_a_cache(cluster: &Cluster) -> (Arc<Host>, Connection) {
    let config = LocalConfig { cache_bytes: 1 << 20, ..LocalConfig::default() };
    *cluster.config.lock() = config;
    let host = cluster.start(1, "west").await;
    create(&host, 64 * MIB).await;
    let device = open(&host).await;
    fill(&device, 40).await;
    let mut piece = vec![0; 4096];
    until("eviction", || !device.try_read(0, &mut piece).unwrap()).await;
    (host, device)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_guest_waits_while_the_only_store_is_away() {
    let cluster = Cluster::new();
    let (_host, device) = without_a_cache(&cluster).await;
    let store = cluster.store("west");
    store.away.store(true, Ordering::Relaxed);
    let guest = tokio::spawn(async move {
        let mut back = vec![0; 4096];
        device.read(0, &mut back).await.unwrap();
        assert!(back == block(0, 0));
    });
    // Longer than all sources may be without a good copy.
    tokio::time::sleep(Duration::from_secs(13)).await;
    assert!(!guest.is_finished(), "an outage of the store was taken for a loss");
    store.away.store(false, Ordering::Relaxed);
    tokio::time::timeout(Duration::from_secs(10), guest).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_full_disk_does_not_fetch_the_same_pages_again_and_again() {
    let cluster = Cluster::new();
    // Whatever is written to the cache of the second host meets a full disk.
    let cache = cluster.host_dir(2).join("cache");
    std::fs::create_dir_all(&cache).unwrap();
    std::os::unix::fs::symlink("/dev/full", cache.join("slab")).unwrap();
    let (a, b) = (cluster.start(1, "west").await, cluster.start(2, "east").await);
    create(&a, 16 * MIB).await;
    let at_a = open(&a).await;
    fill(&at_a, 8).await;
    drop(at_a);
    move_to(&a, "east").await;
    until("the switch", || owner(&b) == Some(b.id())).await;
    let sent = || cluster.net.pages.lock().values().copied().max().unwrap_or(0);
    until("a first try", || sent() > 0).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(sent() <= 2, "a page was sent {} times", sent());
    let status = a.status(Some(&path())).await.unwrap();
    let waits = status.volumes[0].movement.clone().unwrap().waiting_for.unwrap();
    assert!(waits.contains("the disk of host h2, which is full"), "{waits}");
    // What a guest reads goes through to it.
    let at_b = open(&b).await;
    for _ in 0..2 {
        let read = check(&at_b, 8, |_| 0);
        tokio::time::timeout(Duration::from_secs(10), read).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_host_that_cannot_recover_its_copy_does_not_say_that_it_has_none() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.start(1, "west").await, cluster.start(2, "east").await);
    create(&a, 16 * MIB).await;
    let volume = a.directory().volume_at(&path()).unwrap().record.id;
    let ask = async |host: &Host| {
        let request = Request::Checkpoint { volume };
        host.serve(HostId(9), request, Bytes::new()).await.map(|_| ()).unwrap_err().kind()
    };
    assert_eq!(ask(&b).await, ErrorKind::NotFound);
    cluster.stop(a).await;
    let volumes = cluster.host_dir(1).join("volumes");
    std::fs::write(volumes.join(volume.to_string()).join("checkpoint"), b"rot").unwrap();
    let a = cluster.start(1, "west").await;
    assert_eq!(ask(&a).await, ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_volume_whose_files_are_gone_says_so_and_holds_nobody_up() {
    for gone in ["checkpoint", "state", ""] {
        let cluster = Cluster::new();
        let a = cluster.start(1, "west").await;
        create(&a, 16 * MIB).await;
        fill(&open(&a).await, 1).await;
        let other = NewVolume {
            path: VolumePath::parse("/other").unwrap(),
            size_bytes: 16 * MIB,
            shared: false,
        };
        a.create_volume(other).await.unwrap();
        let volume = a.directory().volume_at(&path()).unwrap().record.id;
        cluster.stop(a).await;
        let dir = cluster.host_dir(1).join("volumes").join(volume.to_string());
        let (from, aside) = (dir.join(gone), cluster.host_dir(1).join("aside"));
        std::fs::rename(&from, &aside).unwrap();
        let started = Instant::now();
        let a = cluster.start(1, "west").await;
        let took = started.elapsed();
        assert!(took < Duration::from_secs(5), "`{gone}`: the start took {took:?}");
        fill(&a.open("/other").await.unwrap(), 1).await;
        let status = a.status(Some(&path())).await.unwrap();
        let obstacle = status.volumes[0].places[0].obstacle.clone().unwrap();
        assert!(obstacle.contains("pannier takeover /vms/web/disk0 --fenced h1"), "{obstacle}");
        let a = if gone == "checkpoint" {
            std::fs::rename(&aside, &from).unwrap();
            a
        } else {
            cluster.stop(a).await;
            std::fs::rename(&aside, &from).unwrap();
            cluster.start(1, "west").await
        };
        check(&open(&a).await, 1, |_| 0).await;
        let status = a.status(Some(&path())).await.unwrap();
        assert_eq!(status.volumes[0].places[0].obstacle, None);
        cluster.stop(a).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_target_that_stores_before_it_is_registered_becomes_independent() {
    let (cluster, a, b, at_a) = filled(16, 4).await;
    *cluster.registry.settle_delay.lock() = Duration::from_secs(1);
    move_to(&a, "east").await;
    until("independence", || independent(&b, "east")).await;
    check(&at_a, 4, |_| 0).await;
    drop(at_a);
    cluster.stop(a).await;
    cluster.stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_volume_whose_registration_was_not_answered_is_there() {
    let cluster = Cluster::new();
    let a = cluster.start(1, "west").await;
    cluster.registry.loses_answer.store(true, Ordering::SeqCst);
    let new = NewVolume { path: path(), size_bytes: 16 * MIB, shared: false };
    let error = a.create_volume(new.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    cluster.registry.away.store(false, Ordering::SeqCst);
    until("the news", || owner(&a) == Some(a.id())).await;
    let again = a.create_volume(new).await.unwrap_err();
    assert!(again.context().contains("there is already a volume"), "{again}");
    let device = open(&a).await;
    fill(&device, 4).await;
    check(&device, 4, |_| 0).await;
    drop(device);
    cluster.stop(a).await;
}

/// A peer may say any name: that costs the host nothing, not even a wait.
#[tokio::test]
async fn what_is_asked_of_a_volume_that_does_not_exist_is_not_found() {
    let cluster = Cluster::new();
    let host = cluster.start(1, "west").await;
    let (volume, session) = (VolumeId(77), SessionId(1));
    let op = ForwardOp::Discard { offset: 0, length: 4096 };
    let number = RequestNumber(1);
    let requests = [
        Request::Read { volume, offset: 0, length: 4096 },
        Request::Flush { volume },
        Request::Resize { volume, size_bytes: 8192 },
        Request::BlockStatus { volume, offset: 0, length: 4096, extents_max: 1 },
        Request::CloseSession { volume, session },
        Request::Forward { volume, session, number, open: None, op },
    ];
    for request in requests {
        let told = host.serve(HostId(9), request.clone(), Bytes::new()).await;
        let kind = told.map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::NotFound), "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_without_end_is_not_read() {
    let (cluster, a, b, _at_a) = filled(16, 1).await;
    cluster.net.endless_roots.store(true, Ordering::Relaxed);
    move_to(&a, "east").await;
    until("a refusal of the first", || cluster.net.roots_asked.load(Ordering::Relaxed) > 1).await;
    cluster.net.endless_roots.store(false, Ordering::Relaxed);
    until("the switch", || owner(&b) == Some(b.id())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_disowns_its_checkpoint_is_not_followed_anew_without_end() {
    let (cluster, a, b, _at_a) = filled(16, 1).await;
    cluster.net.forgets_log.store(true, Ordering::Relaxed);
    move_to(&a, "east").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let asked = cluster.net.roots_asked.load(Ordering::Relaxed);
    assert!((2..12).contains(&asked), "a checkpoint was asked for {asked} times in 4 s");
    cluster.net.forgets_log.store(false, Ordering::Relaxed);
    until("the switch", || owner(&a) == Some(b.id())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calling_a_stuck_move_off_names_the_way_out() {
    let (cluster, a, b, at_a) = filled(16, 1).await;
    drop(at_a);
    let to = Destination { site: SiteName("east".to_owned()), host: None };
    a.move_volume(&path(), &to, SwitchAt::FirstWrite).await.unwrap();
    let volume = a.directory().volume_at(&path()).unwrap().record.id;
    cluster.stop(a).await;
    let dir = cluster.host_dir(1).join("volumes").join(volume.to_string());
    std::fs::remove_file(dir.join("state")).unwrap();
    let a = cluster.start(1, "west").await;
    for host in [&a, &b] {
        let refused = host.abort_move(&path()).await.unwrap_err().to_string();
        let way_out = "`pannier takeover /vms/web/disk0 --fenced h1`";
        assert!(refused.contains(way_out), "{refused}");
    }
}
