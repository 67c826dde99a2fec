//! A cluster whose registry is in etcd: no host has it, and etcd may go and come back.

use pannier_e2e::etcd::EtcdCluster;
use pannier_e2e::host::Host;
use pannier_e2e::load::{Load, Plan, verify_all};
use pannier_e2e::model::Model;
use pannier_e2e::pair::Pair;
use std::time::{Duration, Instant};

const DISK_BYTES: u64 = 48 << 20;
const PATH: &str = "/vms/web/disk0";
const RATE_BITS: u64 = 200_000_000;
const RTT: Duration = Duration::from_millis(10);

/// How long one phase of a move may take here, where other tests compile and run beside it.
const PHASE_MAX: Duration = Duration::from_secs(120);

/// How long a command may take to say that etcd is away.
const TOLD_MAX: Duration = Duration::from_secs(20);

fn load(host: &Host, seed: u64) -> Load {
    let plan = Plan {
        address: Pair::nbd(host),
        export: PATH.to_owned(),
        size_bytes: DISK_BYTES,
        depth: 4,
        patience: Duration::from_secs(60),
        reconnect: false,
        pace: Duration::from_millis(4),
        seed,
    };
    Load::start(plan, Model::new(DISK_BYTES))
}

fn create(host: &Host, path: &str) {
    host.cli(&["volume", "create", path, "--size", &DISK_BYTES.to_string()]);
}

fn is_alive(status: &serde_json::Value, name: &str) -> bool {
    let hosts = status["hosts"].as_array().unwrap();
    hosts.iter().any(|host| host["name"] == name && host["alive"] == true)
}

/// A member of etcd dies in the middle, then the host that made the cluster: neither is missed.
#[test]
fn a_move_under_load_with_the_registry_in_etcd() {
    let mut etcd = EtcdCluster::start(3);
    let mut pair = Pair::start_on(&etcd.url(), RTT, Some(RATE_BITS));
    create(&pair.a, PATH);
    let load = load(&pair.a, 31);
    std::thread::sleep(Duration::from_secs(1));
    pair.a.cli(&["move", PATH, "--to", "east", "--wait", "switched"]);
    etcd.kill(0);
    load.hop(Pair::nbd(&pair.b));
    pair.b.wait_for(PATH, "independent", PHASE_MAX, |volume| {
        volume["owner"] == "b" && Host::is_independent(volume, "east")
    });
    assert!(!load.has_failed(), "the load failed");
    let mut report = load.stop().unwrap();
    verify_all(&Pair::nbd(&pair.b), PATH, &mut report.model);
    let status = pair.b.cli_json(&["status"]);
    assert!(is_alive(&status, "a") && is_alive(&status, "b"), "{status:#}");

    pair.a.kill9();
    pair.b.expect_log("unreachable");
    create(&pair.b, "/without-a");
    // The embedded registry's file is not there, on either.
    assert!(!pair.a.dir.join("registry.redb").exists());
    assert_eq!(pair.b.volume("/without-a")["owner"], "b");

    // A daemon that starts without etcd serves what is its own.
    pair.b.expect_log("the registry is away");
    etcd.kill(1);
    etcd.kill(2);
    pair.b.kill9();
    pair.b.start();
    verify_all(&Pair::nbd(&pair.b), PATH, &mut report.model);
}

/// etcd goes when the move is declared and the volume has not been handed over.
#[test]
fn etcd_goes_in_the_middle_of_a_move_and_comes_back() {
    let mut etcd = EtcdCluster::start(1);
    let mut pair = Pair::start_on(&etcd.url(), RTT, Some(RATE_BITS));
    pair.a.expect_log("the registry is away");
    pair.b.expect_log("the registry is away");
    create(&pair.a, PATH);
    let load = load(&pair.a, 32);
    std::thread::sleep(Duration::from_secs(1));
    pair.a.cli(&["move", PATH, "--to", "east/b", "--at-first-write"]);
    std::thread::sleep(Duration::from_secs(2));
    etcd.kill(0);
    load.hop(Pair::nbd(&pair.b));
    std::thread::sleep(Duration::from_secs(3));
    assert!(!load.has_failed(), "guests go on without etcd");
    for host in [&pair.a, &pair.b] {
        let asked = Instant::now();
        let said = host.cli_fails(&["volume", "create", "/new", "--size", "16M"]);
        assert!(asked.elapsed() < TOLD_MAX, "told after {:?}", asked.elapsed());
        assert!(said.contains("registry") && said.contains(&etcd.member(0)), "{said}");
        let status = host.cli_json(&["status"]);
        assert_eq!(status["registry"]["reachable"], false, "{status:#}");
    }
    // Handed over all the same; only the registry does not know yet.
    let roles = |volume: &serde_json::Value| {
        let places = volume["places"].as_array().unwrap().clone();
        places.into_iter().find(|place| place["host"] == "b").map(|place| place["role"].clone())
    };
    pair.b.wait_for(PATH, "handed over", PHASE_MAX, |volume| {
        roles(volume).is_some_and(|role| role == "owner")
    });
    assert!(!Host::is_independent(&pair.b.volume(PATH), "east"), "nobody has recorded that");

    etcd.restart(&[0]);
    pair.b.wait_for(PATH, "independent", PHASE_MAX, |volume| {
        volume["owner"] == "b" && Host::is_independent(volume, "east")
    });
    assert!(!load.has_failed(), "the load failed");
    let mut report = load.stop().unwrap();
    println!("longest request {:?} of {}", report.longest(), report.done.len());
    assert!(report.longest() < Duration::from_secs(5), "a request took {:?}", report.longest());
    verify_all(&Pair::nbd(&pair.b), PATH, &mut report.model);
    create(&pair.b, "/new");
}
