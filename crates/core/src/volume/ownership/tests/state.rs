use super::super::message::Grant;
use super::super::state::{BootId, LocalState, Right, Role, Session, StateError};
use crate::ids::{Epoch, HostId, Incarnation, SegmentName, Sequence, SessionId, VolumeId};
use crate::record::Transit;
use crate::volume::Position;
use std::collections::{BTreeMap, BTreeSet};

fn position() -> Position {
    let segment =
        SegmentName { sequence: Sequence(9), epoch: Epoch(2), incarnation: Incarnation(3) };
    Position { segment: Some(segment), entries: 77, chain_crc: 0x0102_0304 }
}

fn owner() -> LocalState {
    let transit = Transit {
        from: HostId(1),
        to: HostId(2),
        epoch: Epoch(3),
        declared: true,
        waits_for_write: false,
    };
    LocalState {
        volume: VolumeId(0x11),
        boot: BootId(0x22),
        known: Epoch(2),
        aborted: Epoch(1),
        transit_read: None,
        lineage: Epoch(0),
        role: Role::Owner { epoch: Epoch(2), incarnation: Incarnation(5), transit: Some(transit) },
        right: Right { holder: Some(HostId(1)), declared: Some(HostId(2)), shared: false },
        sessions: BTreeMap::from([(HostId(2), Session { id: SessionId(300), open: true })]),
    }
}

fn all_roles() -> Vec<LocalState> {
    let grant = Grant {
        from: HostId(1),
        to: HostId(2),
        epoch: Epoch(3),
        position: position(),
        size_bytes: 1 << 40,
        right: Right::default(),
        lineage: Epoch(0),
        sessions: BTreeMap::new(),
    };
    let roles = [
        Role::Follower { gave_to: Some(HostId(4)) },
        Role::Creating,
        Role::Claiming {
            at: position(),
            fenced: BTreeSet::from([HostId(1)]),
            granted: Some((Epoch(2), grant.clone())),
        },
        Role::Granted { epoch: Epoch(2), grant },
        Role::Fenced { epoch: Epoch(2), end: Some(position()) },
    ];
    roles.into_iter().map(|role| LocalState { role, ..owner() }).chain([owner()]).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_bytes_of_version_1() {
    let head = "504e527374617465010019000000";
    let body = "11220201000003020501010203010001010102000102ac0201";
    assert_eq!(hex(&owner().encode()), format!("{head}{body}284a2fde"));
}

#[test]
fn every_role_survives() {
    for state in all_roles() {
        assert_eq!(LocalState::decode(&state.encode()), Ok(state));
    }
}

#[test]
fn damage_is_noticed() {
    let bytes = owner().encode();
    for length in 0..bytes.len() {
        assert!(LocalState::decode(&bytes[..length]).is_err(), "cut to {length}");
    }
    for index in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1 << bit;
            assert!(LocalState::decode(&damaged).is_err(), "bit {bit} of byte {index}");
        }
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(LocalState::decode(&longer), Err(StateError::Damaged("its length is wrong")));
    let mut newer = bytes;
    newer[8] = 2;
    assert_eq!(LocalState::decode(&newer), Err(StateError::Version(2)));
}
