use super::super::rules::Rules;
use super::super::transaction::{
    Plan, Refusal, abort, begin_transit, publish_checkpoint, set_independent, set_size, settle,
    takeover,
};
use crate::ids::{Epoch, HostId, ObjectHash, Sequence, SiteName, VolumeId};
use crate::record::{EpochEnd, PublishedCheckpoint, VolumePath, VolumeRecord};
use crate::volume::Position;
use std::collections::BTreeSet;

const A: HostId = HostId(1);
const B: HostId = HostId(2);
const C: HostId = HostId(3);

/// Owned by A under epoch 4; epochs up to 6 were reserved.
fn record() -> VolumeRecord {
    let path = VolumePath::parse("/v").unwrap();
    let new = VolumeRecord::new(VolumeId(7), path, 8192, A);
    VolumeRecord { epoch: Epoch(4), reserved: Epoch(6), ..new }
}

fn in_transit() -> VolumeRecord {
    begin_transit(&record(), A, B, Plan { declared: true, waits_for_write: true }).unwrap()
}

#[test]
fn a_transit_reserves_an_epoch_for_ever() {
    let begun = in_transit();
    let transit = begun.transit.clone().unwrap();
    assert_eq!((transit.from, transit.to, transit.epoch), (A, B, Epoch(7)));
    assert!(transit.declared && transit.waits_for_write);
    assert_eq!((begun.owner, begun.epoch, begun.reserved), (A, Epoch(4), Epoch(7)));

    let aborted = abort(&begun, A, Epoch(7), &Rules::ALL).unwrap();
    assert_eq!((aborted.transit.clone(), aborted.reserved), (None, Epoch(7)));
    let again = begin_transit(&aborted, A, C, Plan::default()).unwrap();
    assert_eq!(again.transit.unwrap().epoch, Epoch(8));
}

#[test]
fn a_transit_is_refused() {
    let plan = Plan::default();
    let not_owner = Err(Refusal::NotOwner { owner: A, epoch: Epoch(4) });
    assert_eq!(begin_transit(&record(), B, C, plan), not_owner);
    assert_eq!(begin_transit(&record(), A, A, plan), Err(Refusal::AlreadyThere(A)));
    let busy = in_transit();
    let transit = busy.transit.clone().unwrap();
    assert_eq!(begin_transit(&busy, A, C, plan), Err(Refusal::InTransit(transit)));
}

#[test]
fn only_the_giver_aborts_and_only_what_is_there() {
    let begun = in_transit();
    let not_owner = Err(Refusal::NotOwner { owner: A, epoch: Epoch(4) });
    assert_eq!(abort(&begun, B, Epoch(7), &Rules::ALL), not_owner);
    assert_eq!(abort(&begun, A, Epoch(6), &Rules::ALL), Err(Refusal::NoTransit));
    assert_eq!(abort(&record(), A, Epoch(7), &Rules::ALL), Err(Refusal::NoTransit));
}

#[test]
fn a_settle_ends_its_own_transit_only() {
    let settled = settle(&in_transit(), B, Epoch(7)).unwrap();
    assert_eq!((settled.owner, settled.epoch, &settled.transit), (B, Epoch(7), &None));
    assert_eq!(settle(&settled, B, Epoch(7)), Ok(settled), "once more changes nothing");
    let superseded = Err(Refusal::Superseded(Epoch(4)));
    assert_eq!(settle(&in_transit(), C, Epoch(7)), superseded);
    assert_eq!(settle(&in_transit(), B, Epoch(6)), superseded);
    assert_eq!(settle(&record(), B, Epoch(7)), superseded);
}

#[test]
fn a_takeover_needs_every_possible_owner_out() {
    let out = |hosts: &[HostId]| hosts.iter().copied().collect::<BTreeSet<_>>();
    let at = Position { segment: None, entries: 5, chain_crc: 1 };
    let take = |record: &VolumeRecord, by, hosts: &[HostId]| {
        takeover(record, by, &out(hosts), at, &Rules::ALL)
    };
    assert_eq!(take(&record(), C, &[]), Err(Refusal::NotFenced(A)));
    assert_eq!(take(&record(), C, &[B]), Err(Refusal::NotFenced(A)));
    let taken = take(&record(), C, &[A]).unwrap();
    assert_eq!((taken.owner, taken.epoch, taken.reserved), (C, Epoch(7), Epoch(7)));
    let end = EpochEnd { epoch: Epoch(4), by: Epoch(7), position: at };
    assert_eq!(taken.ended, Some(end));

    // During a transit giver and taker count, except the one that takes over.
    let moving = in_transit();
    assert_eq!(take(&moving, C, &[A]), Err(Refusal::NotFenced(B)));
    assert_eq!(take(&moving, C, &[B]), Err(Refusal::NotFenced(A)));
    assert_eq!(take(&moving, A, &[]), Err(Refusal::NotFenced(B)));
    assert_eq!(take(&moving, B, &[]), Err(Refusal::NotFenced(A)));
    for (by, hosts) in [(C, &[A, B][..]), (A, &[B]), (B, &[A])] {
        let taken = take(&moving, by, hosts).unwrap();
        assert_eq!((taken.owner, taken.epoch, taken.transit), (by, Epoch(8), None));
    }
}

fn checkpoint(epoch: u64, through: u64) -> PublishedCheckpoint {
    PublishedCheckpoint {
        epoch: Epoch(epoch),
        through: Sequence(through),
        object: ObjectHash([through as u8; 32]),
    }
}

#[test]
fn a_checkpoint_is_published_by_the_owner_of_its_epoch() {
    let site = SiteName("west".to_owned());
    let publish = |record: &VolumeRecord, by, checkpoint| {
        publish_checkpoint(record, by, &site, checkpoint, true)
    };
    let first = publish(&record(), A, checkpoint(4, 10)).unwrap();
    assert_eq!(first.homes[&site].checkpoint, Some(checkpoint(4, 10)));
    assert_eq!(publish(&record(), A, checkpoint(3, 11)), Err(Refusal::Superseded(Epoch(4))));
    let not_owner = Err(Refusal::NotOwner { owner: A, epoch: Epoch(4) });
    assert_eq!(publish(&record(), B, checkpoint(4, 11)), not_owner);
    assert_eq!(publish(&first, A, checkpoint(4, 9)), Err(Refusal::OldCheckpoint));
    assert_eq!(publish(&first, A, checkpoint(4, 10)), Ok(first.clone()));
    // The taker may get here before its settle.
    assert!(publish(&in_transit(), B, checkpoint(7, 12)).is_ok());
    assert!(publish(&in_transit(), C, checkpoint(7, 12)).is_err());
}

#[test]
fn independence_is_of_one_checkpoint() {
    let site = SiteName("west".to_owned());
    let published = publish_checkpoint(&record(), A, &site, checkpoint(4, 10), true).unwrap();
    assert!(!published.homes[&site].independent, "it was never verified");
    let wrong = set_independent(&published, &site, &checkpoint(4, 9));
    assert_eq!(wrong, Err(Refusal::OldCheckpoint));
    let nowhere = set_independent(&record(), &site, &checkpoint(4, 10));
    assert_eq!(nowhere, Err(Refusal::OldCheckpoint));
    let verified = set_independent(&published, &site, &checkpoint(4, 10)).unwrap();
    assert!(verified.homes[&site].independent);
    for complete in [true, false] {
        let next = publish_checkpoint(&verified, A, &site, checkpoint(4, 11), complete).unwrap();
        assert_eq!(next.homes[&site].independent, complete);
    }
}

#[test]
fn a_volume_only_grows() {
    assert_eq!(set_size(&record(), A, Epoch(4), 16384).unwrap().size_bytes, 16384);
    let smaller = set_size(&record(), A, Epoch(4), 4096);
    assert_eq!(smaller, Err(Refusal::Shrink { size_bytes: 8192 }));
    assert!(set_size(&record(), B, Epoch(4), 16384).is_err());
    assert!(set_size(&record(), A, Epoch(3), 16384).is_err());
}
