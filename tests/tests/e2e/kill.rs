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

/// As a guest's disk is used: fio itself does not connect again, QEMU's NBD client between does,
/// and sends anew what was not answered. fio goes on through every kill; it reads back what it was
/// told is written, some of it while it goes on and all of it in the end.
#[test]
fn kill_9_under_fio_loses_no_acknowledged_write() {
    let mut random = rand::rngs::StdRng::seed_from_u64(rand::random());
    let mut single = Single::start();
    let path = "/fio";
    single.host.cli(&["volume", "create", path, "--size", "64M"]);
    let socket = single.base.path().join("qemu.sock");
    let image = format!(
        "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export={path},\
         file.reconnect-delay=60",
        single.host.nbd_socket().display()
    );
    let served = socket.to_str().expect("a path in UTF-8");
    let arguments = ["--persistent", "--socket", served, "--image-opts", &image];
    let qemu = clients::serve("qemu-nbd", &arguments, &socket);
    let common = ["--name=kept", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--size=64m"];
    let verify = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--iodepth=16"];
    let fio = |uri: String, more: &[&str]| {
        // fio knows an engine's options only behind its name.
        let all = [&common[..], &[&uri], &verify, more].concat();
        clients::must_run("fio", &all)
    };
    std::thread::scope(|scope| {
        let uri = format!("--uri=nbd+unix:///?socket={served}");
        // Eight seconds of writes, of which the last thousand are always read back soon.
        let paced = ["--rate_iops=2000", "--verify_backlog=1000"];
        let load = scope.spawn(move || fio(uri, &paced));
        let mut kills = 0;
        while kills < 8 && !load.is_finished() {
            std::thread::sleep(Duration::from_millis(random.random_range(300..1200)));
            single.host.kill9();
            single.host.start();
            kills += u32::from(!load.is_finished());
        }
        let told = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        println!("{kills} kills under fio: {told}");
        assert!(kills >= 3, "{kills} kills have met fio");
    });
    drop(qemu);
    // And all of it once more, from what a last kill has left on disk.
    single.host.kill9();
    single.host.start();
    fio(format!("--uri={}", single.host.nbd_uri(path)), &["--verify_only"]);
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
