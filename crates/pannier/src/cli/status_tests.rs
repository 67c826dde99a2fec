use super::*;
use crate::api::types::{Home, Host, Registry};

fn example() -> Status {
    let place = |host: &str, site: &str, role: &str, missing_bytes| Place {
        host: host.into(),
        site: site.into(),
        role: role.into(),
        live_bytes: 4 << 30,
        resident_bytes: (4 << 30) - missing_bytes,
        stored_bytes: 0,
        missing_bytes,
        connections: 1,
        holds_write_right: missing_bytes > 0,
        obstacle: None,
    };
    Status {
        host: "w1".into(),
        registry: Registry { reachable: true, revision: 9 },
        sites: Vec::new(),
        hosts: vec![Host {
            id: "1".into(),
            name: "w1".into(),
            site: "west".into(),
            address: "192.0.2.1:7810".into(),
            reachable: true,
            alive: None,
            rtt_ms: None,
        }],
        volumes: vec![Volume {
            id: "id".into(),
            path: "/vms/web".into(),
            size_bytes: 20 << 30,
            shared: false,
            owner: "e1".into(),
            site: "east".into(),
            epoch: 2,
            places: vec![place("w1", "west", "none", 0), place("e1", "east", "owner", 1 << 30)],
            homes: vec![Home {
                site: "east".into(),
                checkpoint_epoch: None,
                checkpoint_sequence: None,
                independent: false,
            }],
            movement: Some(Movement {
                from: Some("w1".into()),
                to: "e1".into(),
                to_site: "east".into(),
                phase: "hydrating".into(),
                at_first_write: false,
                total_bytes: 4 << 30,
                done_bytes: 3 << 30,
                wire_bytes: 1 << 30,
                bytes_per_second: f64::from(20 << 20),
                eta_seconds: Some(51.2),
                demand_fetches: 7,
                waiting_for: None,
            }),
        }],
    }
}

#[test]
fn a_move_is_told_in_one_line() {
    let mut status = example();
    let text = cluster(&status);
    let line = "/vms/web  20 GiB  east/e1  2      3 GiB of 4 GiB at east  \
                hydrating to east/e1 75 %, 20 MiB/s, 51 s left";
    assert!(text.contains(line), "{text}");
    assert!(text.contains("west  w1    192.0.2.1:7810  this host"), "{text}");
    status.registry.reachable = false;
    assert!(cluster(&status).contains("create, delete and new moves wait for it"));
}

#[test]
fn a_host_that_does_not_answer_may_be_alive() {
    for (alive, said) in [
        (None, "does not answer"),
        (Some(true), "does not answer; alive, says the registry"),
        (Some(false), "does not answer; not alive"),
    ] {
        let mut status = example();
        let away = Host { name: "w2".into(), reachable: false, alive, ..status.hosts[0].clone() };
        status.hosts.push(away);
        assert!(cluster(&status).contains(&format!("192.0.2.1:7810  {said}\n")), "{alive:?}");
    }
}

#[test]
fn one_volume_is_told_whole() {
    let mut shown = example().volumes.remove(0);
    let text = volume(&shown);
    for part in ["owner   east/e1, epoch 2", "7 guest reads waited", "held here", "not yet"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    shown.places.clear();
    assert!(volume(&shown).contains("owner does not answer"));
}
