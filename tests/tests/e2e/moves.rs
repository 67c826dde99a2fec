//! A volume that moves while it is used.

use pannier_e2e::clients::must_run;
use pannier_e2e::host::Host;
use pannier_e2e::load::{Load, Plan, Report, verify_all};
use pannier_e2e::model::Model;
use pannier_e2e::pair::{Pair, write_image};
use pannier_e2e::rounds;
use std::time::Duration;

const DISK_BYTES: u64 = 48 << 20;
const PATH: &str = "/vms/web/disk0";
const RATE_BITS: u64 = 200_000_000;

/// How long one phase of a move may take here, where other tests compile and run beside it.
const PHASE_MAX: Duration = Duration::from_secs(120);

fn plan(host: &Host, seed: u64) -> Plan {
    Plan {
        address: Pair::nbd(host),
        export: PATH.to_owned(),
        size_bytes: DISK_BYTES,
        depth: 4,
        patience: Duration::from_secs(60),
        reconnect: false,
        pace: Duration::from_millis(4),
        seed,
    }
}

fn create(pair: &Pair) {
    pair.a.cli(&["volume", "create", PATH, "--size", &DISK_BYTES.to_string()]);
}

fn is_owner(host: &str) -> impl Fn(&serde_json::Value) -> bool {
    let host = host.to_owned();
    move |volume| volume["owner"] == host.as_str()
}

/// The load goes along, as a guest that live-migrates does: the move is declared, the target's
/// first write takes the volume over.
fn back_and_forth(rtt: Duration, moves: u32) {
    let pair = Pair::start(rtt, Some(RATE_BITS));
    create(&pair);
    let load = Load::start(plan(&pair.a, 11), Model::new(DISK_BYTES));
    std::thread::sleep(Duration::from_secs(1));
    for turn in 0..moves {
        let (from, to) = if turn % 2 == 0 { (&pair.a, &pair.b) } else { (&pair.b, &pair.a) };
        let target = format!("{}/{}", to.site, to.name);
        from.cli(&["move", PATH, "--to", &target, "--at-first-write"]);
        // A live migration takes seconds from its declaration to the pause; the target follows.
        std::thread::sleep(Duration::from_secs(2));
        assert!(!load.has_failed(), "the load failed before move {turn}");
        load.hop(Pair::nbd(to));
        to.wait_for(PATH, "switched", PHASE_MAX, is_owner(&to.name));
        std::thread::sleep(Duration::from_millis(500));
        assert!(!load.has_failed(), "the load failed after move {turn}");
        to.wait_for(PATH, "independent", PHASE_MAX, |volume| {
            Host::is_independent(volume, &to.site)
        });
    }
    let mut report = load.stop().unwrap();
    assert_stalls(&report, rtt, moves);
    let last = if moves.is_multiple_of(2) { &pair.a } else { &pair.b };
    verify_all(&Pair::nbd(last), PATH, &mut report.model);
    drop(pair);
}

fn assert_stalls(report: &Report, rtt: Duration, moves: u32) {
    assert_eq!(report.hops.len(), moves as usize);
    let mut stalls: Vec<Duration> =
        report.hops.iter().map(|hop| report.stall(*hop, Duration::from_secs(2))).collect();
    stalls.sort_unstable();
    println!("{moves} moves at {rtt:?}: stalls {stalls:?}");
    let (median, worst) = (stalls[stalls.len() / 2], stalls[stalls.len() - 1]);
    // One round trip and 50 ms is the promise, for an optimised build on an idle machine
    // (`cargo xtask soak moves`). The build that the tests use is not optimised, and compiles run
    // beside it: medians were up to 150 ms beyond the round trip there, the worst 340 ms.
    let (slack, worst_slack) = if cfg!(debug_assertions) { (250, 600) } else { (50, 500) };
    assert!(median <= rtt + Duration::from_millis(slack), "median stall {median:?} at {rtt:?}");
    assert!(worst <= rtt + Duration::from_millis(worst_slack), "worst stall {worst:?} at {rtt:?}");
}

/// 20 times with `cargo xtask soak moves`.
#[test]
fn back_and_forth_at_20_ms() {
    back_and_forth(Duration::from_millis(20), rounds("PANNIER_E2E_MOVES", 4));
}

/// 20 times with `cargo xtask soak moves`.
#[test]
fn back_and_forth_at_100_ms() {
    back_and_forth(Duration::from_millis(100), rounds("PANNIER_E2E_MOVES", 3));
}

/// The load stays where it is: the volume is handed over at once, and its requests are forwarded.
#[test]
fn a_guest_that_stays_is_forwarded() {
    let rtt = Duration::from_millis(20);
    let pair = Pair::start(rtt, Some(RATE_BITS));
    create(&pair);
    let load = Load::start(plan(&pair.a, 12), Model::new(DISK_BYTES));
    for to in [&pair.b, &pair.a, &pair.b] {
        std::thread::sleep(Duration::from_secs(1));
        pair.a.cli(&["move", PATH, "--to", &to.site, "--wait", "switched"]);
        to.wait_for(PATH, "switched", PHASE_MAX, is_owner(&to.name));
        assert!(!load.has_failed(), "the load failed at the move to {}", to.site);
    }
    std::thread::sleep(Duration::from_secs(2));
    let mut report = load.stop().unwrap();
    println!("longest request {:?} of {}", report.longest(), report.done.len());
    assert!(report.longest() < Duration::from_secs(5), "a request took {:?}", report.longest());
    verify_all(&Pair::nbd(&pair.b), PATH, &mut report.model);
    verify_all(&Pair::nbd(&pair.a), PATH, &mut report.model);
}

/// What the new site holds is enough: the old one is deleted, and every byte is there.
#[test]
fn nothing_depends_on_the_old_site_once_independent() {
    let rtt = Duration::from_millis(40);
    let mut pair = Pair::start(rtt, Some(RATE_BITS));
    let image = pair.base.path().join("image.raw");
    write_image(&image, DISK_BYTES, 5);
    let image = image.to_str().expect("a path in UTF-8").to_owned();
    pair.a.cli(&["volume", "import", &image, PATH]);
    let bytes_before = pair.wan.bytes();
    pair.a.cli(&["move", PATH, "--to", "east", "--wait", "independent"]);
    let sent = pair.wan.bytes() - bytes_before;
    // Two thirds of the image are random bytes, one third is a hole: not sent.
    let floor = DISK_BYTES / 3 * 2;
    println!("{sent} bytes sent for {floor} that do not compress");
    assert!(sent < floor + floor / 20 + (2 << 20), "{sent} bytes sent for {floor}");
    let volume = pair.b.volume(PATH);
    assert!(Host::is_independent(&volume, "east"), "{volume:#}");

    pair.wan.cut();
    pair.a.kill9();
    std::fs::remove_dir_all(&pair.a.dir).expect("the old site is deleted");
    // The registry went with it: that may be said, and stops nobody.
    pair.b.expect_log("registry");
    pair.b.expect_log("unreachable");
    must_run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &pair.b.nbd_uri(PATH)]);
    // Also from the site's own store alone, after a restart, and it can be written.
    pair.b.kill9();
    pair.b.start();
    must_run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &pair.b.nbd_uri(PATH)]);
    must_run(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 9 0 1M", "-c", "flush", &pair.b.nbd_uri(PATH)],
    );
}

/// What the other side has is not sent again.
#[test]
fn moving_back_sends_only_what_is_new() {
    let pair = Pair::start(Duration::from_millis(10), Some(RATE_BITS));
    let image = pair.base.path().join("image.raw");
    write_image(&image, DISK_BYTES, 6);
    pair.a.cli(&["volume", "import", image.to_str().expect("a path in UTF-8"), PATH]);
    pair.a.cli(&["move", PATH, "--to", "east", "--wait", "independent"]);
    let uri = pair.b.nbd_uri(PATH);
    must_run("qemu-io", &["-f", "raw", "-c", "write -P 7 3M 256k", "-c", "flush", &uri]);
    let bytes_before = pair.wan.bytes();
    pair.b.cli(&["move", PATH, "--to", "west", "--wait", "independent"]);
    let sent = pair.wan.bytes() - bytes_before;
    println!("{sent} bytes sent back for 256 KiB that are new");
    assert!(sent < 2 << 20, "{sent} bytes sent back for 256 KiB that are new");
    let uri = pair.a.nbd_uri(PATH);
    must_run("qemu-io", &["-f", "raw", "-c", "read -P 7 3M 256k", &uri]);
}
