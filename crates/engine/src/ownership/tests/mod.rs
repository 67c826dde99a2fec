//! Handovers between drivers: under load, with losses, with a death at every effect, without a
//! registry.

mod world;

use super::Part;
use crate::error::{ErrorKind, Result};
use crate::limits::MISS_KEPT;
use crate::lines::Lines;
use bytes::Bytes;
use pannier_core::ids::{Epoch, HostId, SessionId, VolumeId};
use pannier_core::record::{VolumePath, VolumeRecord};
use pannier_core::volume::ownership::transaction::{Plan, begin_transit};
use pannier_core::volume::ownership::{Message, Outcome};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use world::{A, B, VOLUME, World};

/// Registers a transit from anywhere.
async fn declare(world: &World, from: HostId, to: HostId, plan: Plan) -> Result<()> {
    let change = |record: &mut VolumeRecord| {
        *record = begin_transit(record, from, to, plan).unwrap();
        Ok(())
    };
    world.directory(B).update_volume(VOLUME, change).await.map(|_| ())
}

/// A guest that writes one number after the other, wherever it is executed, and remembers what was
/// acknowledged.
fn guest(world: &Arc<World>, stop: CancellationToken) -> tokio::task::JoinHandle<Vec<u64>> {
    let world = world.clone();
    tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        while !stop.is_cancelled() {
            let next = acknowledged.len() as u64 + 1;
            if world.body(A).append(next) || world.body(B).append(next) {
                acknowledged.push(next);
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        acknowledged
    })
}

/// Moves the volume from A to B under load. Returns whether the fuse was burnt.
async fn moved(world: World, fuse: Option<(HostId, u32)>) -> bool {
    let world = Arc::new(world);
    let stop = CancellationToken::new();
    let guest = guest(&world, stop.clone());
    tokio::time::sleep(Duration::from_millis(20)).await;
    let body = fuse.map(|(host, effects)| {
        world.light(host, effects);
        world.body(host)
    });
    declare(&world, A, B, Plan::default()).await.unwrap();
    world.until(B, |view| view.part == Part::Owner).await;
    let settled = world.settled(B).await;
    assert_eq!(settled.epoch, Epoch(2));
    world.until(A, |view| view.part == Part::None).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    stop.cancel();
    let acknowledged = guest.await.unwrap();
    assert!(acknowledged.len() > 10, "the guest has written before and after");
    assert_eq!(world.body(B).log(), acknowledged, "nothing is lost, nothing twice");
    body.is_some_and(|body| body.dead.is_cancelled())
}

#[tokio::test(start_paused = true)]
async fn a_move_under_load_loses_nothing() {
    moved(World::new(0, 1).await, None).await;
}

#[tokio::test(start_paused = true)]
async fn a_move_over_a_lossy_network() {
    for seed in 1..6 {
        moved(World::new(140, seed).await, None).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_death_at_every_effect_of_either_side() {
    for host in [A, B] {
        let mut deaths = 0;
        for effects in 0..16 {
            if moved(World::new(0, 3).await, Some((host, effects))).await {
                deaths += 1;
            }
        }
        assert!(deaths >= 5, "{deaths} deaths of {host} are too few to mean anything");
    }
}

#[tokio::test(start_paused = true)]
async fn a_move_under_way_completes_without_the_registry() {
    let world = World::new(0, 1).await;
    let plan = Plan { declared: true, waits_for_write: true };
    declare(&world, A, B, plan).await.unwrap();
    world.until(A, |view| view.transit.is_some()).await;
    world.until(B, |view| view.part == Part::Follower).await;
    world.registry.set_away(true);
    // A's daemon restarts in between: what it knows of the transit is on its disk.
    world.kill(A).await;
    world.until(A, |view| view.part == Part::Owner).await;
    assert_eq!(
        world.owners(A).switch(VOLUME).await.unwrap(),
        Outcome::Switched { epoch: Epoch(2) }
    );
    world.until(B, |view| view.part == Part::Owner).await;
    let refused = world.owners(B).prepare(VOLUME, A, Plan::default()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    world.registry.set_away(false);
    assert_eq!(world.settled(B).await.epoch, Epoch(2));
}

#[tokio::test(start_paused = true)]
async fn an_aborted_transit_leaves_the_owner_and_its_epoch_is_never_used() {
    let world = World::new(0, 1).await;
    let plan = Plan { declared: true, waits_for_write: true };
    declare(&world, A, B, plan).await.unwrap();
    world.until(A, |view| view.transit.is_some()).await;
    let aborted = world.owners(A).abort(VOLUME).await.unwrap();
    assert_eq!(aborted, Outcome::Aborted { epoch: Epoch(2) });
    world.settled(A).await;
    assert_eq!(world.view(A).part, Part::Owner);
    let again = world.owners(A).prepare(VOLUME, B, Plan::default()).await.unwrap();
    assert_eq!(again, Outcome::Prepared { epoch: Epoch(3) });
    assert_eq!(world.settled(B).await.epoch, Epoch(3));
    assert_eq!(world.owners(A).abort(VOLUME).await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn sessions_only_grow_and_end_each_other() {
    let world = World::new(0, 1).await;
    let owners = world.owners(A);
    let open = |session| owners.open_session(VOLUME, B, SessionId(session), Epoch(0));
    open(5).await.unwrap();
    assert_eq!(owners.session_of(VOLUME, B), Some(SessionId(5)));
    open(7).await.unwrap();
    assert_eq!(owners.session_of(VOLUME, B), Some(SessionId(7)));
    assert_eq!(open(5).await.unwrap_err().kind(), ErrorKind::Fenced);
    owners.close_session(VOLUME, B, SessionId(7)).await.unwrap();
    assert_eq!(open(7).await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(owners.session_of(VOLUME, B), None);
    open(8).await.unwrap();
    declare(&world, A, B, Plan::default()).await.unwrap();
    world.settled(B).await;
    world.until(B, |view| view.sessions.contains_key(&B)).await;
    assert_eq!(world.owners(B).session_of(VOLUME, B), Some(SessionId(8)));
    let elsewhere = world.owners(A).open_session(VOLUME, B, SessionId(9), Epoch(0)).await;
    assert_eq!(elsewhere.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn one_attachment_writes_until_it_releases_or_a_migration_is_declared() {
    let world = World::new(0, 1).await;
    let owners = world.owners(A);
    owners.ask_right(VOLUME, A).await.unwrap();
    assert_eq!(*world.body(A).holder.lock(), Some(A));
    assert_eq!(owners.ask_right(VOLUME, B).await.unwrap_err().kind(), ErrorKind::Unavailable);
    owners.release_right(VOLUME, A).await.unwrap();
    owners.ask_right(VOLUME, B).await.unwrap();
    assert_eq!(*world.body(A).holder.lock(), Some(B));
    // B's host is the source of nothing yet: its right goes when its session does.
    owners.open_session(VOLUME, B, SessionId(1), Epoch(0)).await.unwrap();
    owners.close_session(VOLUME, B, SessionId(1)).await.unwrap();
    owners.ask_right(VOLUME, A).await.unwrap();
    // The first write at the target takes the right, and with it the switch comes.
    declare(&world, A, B, Plan { declared: true, waits_for_write: true }).await.unwrap();
    world.until(A, |view| view.transit.is_some()).await;
    // The switch begins before the right is told, so the write waits for the target itself.
    let asked = owners.ask_right(VOLUME, B).await;
    assert_eq!(asked.unwrap_err().kind(), ErrorKind::Unavailable);
    world.settled(B).await;
    assert_eq!(world.view(B).right.holder, Some(B));
    assert_eq!(
        world.owners(B).ask_right(VOLUME, A).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

#[tokio::test(start_paused = true)]
async fn a_takeover_needs_the_owner_out_and_fences_it() {
    let mut world = World::new(0, 1).await;
    assert!(world.body(A).append(1));
    declare(&world, A, B, Plan { declared: false, waits_for_write: true }).await.unwrap();
    world.until(B, |view| view.part == Part::Follower).await;
    world.kill(A).await;
    let owners = world.owners(B);
    let refused = owners.take_over(VOLUME, BTreeSet::new()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    let taken = owners.take_over(VOLUME, BTreeSet::from([A])).await.unwrap();
    assert_eq!(taken, Outcome::Owner { epoch: Epoch(3) });
    world.reboot(A);
    world.until(A, |view| view.part == Part::None).await;
    assert_eq!(world.body(A).log(), [0_u64; 0], "its tail is set aside");
    assert_eq!(world.view(B).part, Part::Owner);
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_ownership_waits_for_the_registry() {
    let mut world = World::new(0, 1).await;
    world.registry.set_away(true);
    world.kill(A).await;
    // The same boot: it counts at once.
    world.until(A, |view| view.part == Part::Owner).await;
    world.kill(A).await;
    world.reboot(A);
    world.revive().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.view(A).part, Part::Waiting);
    world.registry.set_away(false);
    world.until(A, |view| view.part == Part::Owner).await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_cannot_be_started_is_told_of_once() {
    let world = World::new(0, 1).await;
    let lines = Lines::default();
    let _log = tracing::subscriber::set_default(lines.subscriber());
    world.kill(A).await;
    world.lose(A, true);
    let before = world.starts(A);
    world.until(A, |view| view.obstacle.is_some()).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let starts = world.starts(A) - before;
    assert!((8..15).contains(&starts), "{starts} starts in two minutes");
    let errors = lines.of("ERROR");
    let [error] = &errors[..] else { panic!("not one line: {errors:#?}") };
    for part in ["nothing is here", "Restore the directory `volumes/", "pannier takeover /v"] {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    // What comes back is taken without a restart.
    world.lose(A, false);
    world.until(A, |view| view.part == Part::Owner && view.obstacle.is_none()).await;
    world.kill(A).await;
    world.lose_state(A);
    world.until(A, |view| view.obstacle.is_some()).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let errors = lines.of("ERROR");
    let [_, error] = &errors[..] else { panic!("not one more line: {errors:#?}") };
    assert!(error.contains("`state` is not in its directory"), "{error}");
}

/// A peer may say a name that nobody has given, and may know of a volume before this host does.
#[tokio::test(start_paused = true)]
async fn only_volumes_that_exist_get_a_driver() {
    let world = World::new(0, 1).await;
    let owners = world.owners(B);
    let ask = super::effects::encode(&Message::AskSwitch { epoch: Epoch(2) }).unwrap();
    for id in 1000..1100 {
        let told = owners.peer(A, VolumeId(id), &ask, Bytes::new()).await.unwrap_err();
        assert_eq!(told.kind(), ErrorKind::NotFound);
        assert!(owners.view(VolumeId(id)).is_none(), "a driver of volume {id} is kept");
    }
    world.registry.set_away(true);
    tokio::time::sleep(MISS_KEPT).await;
    let told = owners.peer(A, VolumeId(1000), &ask, Bytes::new()).await.unwrap_err();
    assert_eq!(told.kind(), ErrorKind::Unavailable);
    assert!(owners.view(VolumeId(1000)).is_none());

    world.registry.set_away(false);
    tokio::time::sleep(MISS_KEPT).await;
    let path = VolumePath::parse("/new").unwrap();
    let new = VolumeRecord::new(VolumeId(1000), path, 4096, A);
    world.directory(A).create_volume(&new).await.unwrap();
    assert!(world.directory(B).volume(new.id).is_none(), "B has not heard of it");
    owners.peer(A, new.id, &ask, Bytes::new()).await.unwrap();
    assert!(owners.view(new.id).is_some());
}
