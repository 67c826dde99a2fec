//! `kill -9` of the daemon under load: every acknowledged write is there afterwards.

use pannier_e2e::load::{Load, Plan, verify_all};
use pannier_e2e::model::Model;
use pannier_e2e::pair::{Pair, Single};
use pannier_e2e::{clients, rounds};
use rand::{Rng as _, SeedableRng as _};
use std::time::{Duration, Instant};

const DISK_BYTES: u64 = 64 << 20;

fn plan(single: &Single, export: &str) -> Plan {
    Plan {
        address: Pair::nbd(&single.host),
        export: export.to_owned(),
        size_bytes: DISK_BYTES,
        depth: 16,
        patience: Duration::from_secs(30),
        reconnect: true,
        pace: Duration::ZERO,
        seed: 7,
    }
}

/// 50 times with `cargo xtask soak kill9`. After each kill the whole disk is compared before
/// anything else is written: a loss that a later write covers would not be seen in the end. What a
/// loss of power leaves of the flushed is for the engine's crash images.
#[test]
fn kill_9_loses_no_acknowledged_write() {
    let kills = rounds("PANNIER_E2E_KILLS", 6);
    let mut random = rand::rngs::StdRng::seed_from_u64(rand::random());
    let mut single = Single::start();
    let path = "/killed";
    single.host.cli(&["volume", "create", path, "--size", &DISK_BYTES.to_string()]);
    let mut model = Model::new(DISK_BYTES);
    let (mut slowest, mut requests, mut written) = (Duration::ZERO, 0, 0);
    for round in 0..kills {
        let plan = Plan { seed: round.into(), ..plan(&single, path) };
        let load = Load::start(plan, model);
        std::thread::sleep(Duration::from_millis(random.random_range(50..1500)));
        assert!(!load.has_failed(), "the load failed in round {round}");
        single.host.kill9();
        let killed = Instant::now();
        load.end();
        single.host.start();
        slowest = slowest.max(killed.elapsed());
        let report = load.stop().unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(report.connections, 2, "round {round}: the kill met the load");
        assert!(report.written_bytes > 0, "round {round}: nothing was written");
        requests += report.done.len();
        written += report.written_bytes;
        model = report.model;
        verify_all(&Pair::nbd(&single.host), path, &mut model);
        // And once more from what that start has left on disk.
        if round % 8 == 7 || round + 1 == kills {
            single.host.kill9();
            single.host.start();
            verify_all(&Pair::nbd(&single.host), path, &mut model);
        }
        println!("round {round}: {} requests, the whole disk is as told", report.done.len());
    }
    println!(
        "{kills} kills, {requests} requests, {} MiB written and acknowledged, slowest restart \
         {slowest:?}",
        written >> 20
    );
    single.host.stop();
}

/// What fio wrote and was acknowledged survives too; fio itself does not reconnect.
#[test]
fn kill_9_under_fio_keeps_what_was_written_before() {
    let mut single = Single::start();
    let path = "/fio";
    single.host.cli(&["volume", "create", path, "--size", "64M"]);
    let uri = format!("--uri={}", single.host.nbd_uri(path));
    let common = ["--name=kept", "--ioengine=nbd", &uri, "--rw=randwrite", "--bs=4k"];
    let verify = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--size=16m"];
    let all = [&common[..], &verify, &["--iodepth=16"]].concat();
    clients::must_run("fio", &[&all[..], &["--do_verify=0"]].concat());
    let endless = ["--name=endless", "--ioengine=nbd", &uri, "--rw=randwrite", "--bs=4k"];
    let time = ["--offset=32m", "--size=16m", "--time_based", "--runtime=30", "--iodepth=16"];
    let endless: Vec<String> =
        endless.iter().chain(&time).map(|argument| (*argument).to_owned()).collect();
    let killed = std::thread::spawn(move || {
        let arguments: Vec<&str> = endless.iter().map(String::as_str).collect();
        clients::run("fio", &arguments, Duration::from_secs(60))
    });
    std::thread::sleep(Duration::from_millis(1500));
    single.host.kill9();
    single.host.start();
    assert!(!killed.join().expect("fio ends").success, "fio lost its server and must say so");
    clients::must_run("fio", &[&all[..], &["--verify_only"]].concat());
    single.host.stop();
}

#[test]
fn a_hundred_volumes_are_back_within_a_second() {
    let mut single = Single::start();
    for index in 0..100 {
        let path = format!("/many/{index}");
        single.host.cli(&["volume", "create", &path, "--size", "64M"]);
        let uri = single.host.nbd_uri(&path);
        let write = format!("write -P {} 1M 64k", index + 1);
        clients::must_run("qemu-io", &["-f", "raw", "-c", &write, &uri]);
    }
    single.host.kill9();
    let started = Instant::now();
    single.host.start();
    let took = started.elapsed();
    for index in 0..100 {
        let uri = single.host.nbd_uri(&format!("/many/{index}"));
        let read = format!("read -P {} 1M 64k", index + 1);
        let text = clients::must_run("qemu-io", &["-f", "raw", "-c", &read, &uri]);
        assert!(!text.contains("failed"), "{text}");
    }
    println!("100 volumes were back after {took:?}");
    // A second is the promise of the build that ships, on an idle machine.
    let longest = Duration::from_secs(if cfg!(debug_assertions) { 3 } else { 1 });
    assert!(took < longest, "100 volumes took {took:?}");
    single.host.stop();
}
