//! Moves that are interrupted: they complete, and send next to nothing twice.

use pannier_e2e::clients::must_run;
use pannier_e2e::host::Host;
use pannier_e2e::pair::{Pair, write_image};
use std::time::Duration;

const DISK_BYTES: u64 = 288 << 20;
const PAYLOAD_BYTES: u64 = DISK_BYTES / 3 * 2;
const PATH: &str = "/disk";
const RATE_BITS: u64 = 100_000_000;
const MOVE_MAX: Duration = Duration::from_secs(180);

/// Imports an image of random bytes and a hole, and moves it; returns once the target hydrates it,
/// with the bytes that had crossed the WAN before.
fn begin(pair: &Pair, image: &str, path: &str) -> u64 {
    pair.a.cli(&["volume", "import", image, path]);
    let before = pair.wan.bytes();
    pair.a.cli(&["move", path, "--to", "east", "--wait", "switched"]);
    before
}

/// Bytes that crossed the WAN until the target is independent.
fn finish(pair: &Pair, path: &str, before: u64) -> u64 {
    pair.b.wait_for(path, "independent", MOVE_MAX, |volume| Host::is_independent(volume, "east"));
    pair.wan.bytes() - before
}

/// What a move of the image costs when nothing is in its way: the payload and all headers.
fn undisturbed(pair: &Pair, image: &str) -> u64 {
    write_image(image.as_ref(), DISK_BYTES, 8);
    let before = begin(pair, image, "/undisturbed");
    finish(pair, "/undisturbed", before)
}

/// Waits until about this share of the image has crossed.
fn wait_until_sent(pair: &Pair, before: u64, percent: u64) {
    let deadline = std::time::Instant::now() + MOVE_MAX;
    while pair.wan.bytes() - before < PAYLOAD_BYTES * percent / 100 {
        assert!(std::time::Instant::now() < deadline, "{percent} % are not sent");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The move completes, the image is right, and at most one percent of it was sent twice, what was
/// in flight when the link or a daemon went included.
fn complete(pair: &Pair, image: &str, before: u64, undisturbed: u64) {
    let sent = finish(pair, PATH, before);
    let allowed = undisturbed + PAYLOAD_BYTES / 100;
    println!("{sent} bytes sent, {undisturbed} undisturbed, {allowed} allowed");
    assert!(sent <= allowed, "{sent} bytes sent, {undisturbed} undisturbed, {allowed} allowed");
    let uri = pair.b.nbd_uri(PATH);
    must_run("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &uri]);
}

fn image_of(pair: &Pair) -> String {
    pair.base.path().join("image.raw").to_str().expect("a path in UTF-8").to_owned()
}

#[test]
fn the_link_is_cut_twice_for_ten_seconds() {
    let mut pair = Pair::start(Duration::from_millis(20), Some(RATE_BITS));
    for host in [&mut pair.a, &mut pair.b] {
        host.expect_log("unreachable");
    }
    let image = image_of(&pair);
    let undisturbed = undisturbed(&pair, &image);
    let before = begin(&pair, &image, PATH);
    for percent in [30, 60] {
        wait_until_sent(&pair, before, percent);
        pair.wan.cut();
        std::thread::sleep(Duration::from_secs(10));
        pair.wan.restore();
    }
    complete(&pair, &image, before, undisturbed);
}

#[test]
fn the_source_is_restarted_in_the_middle() {
    let mut pair = Pair::start(Duration::from_millis(20), Some(RATE_BITS));
    pair.b.expect_log("unreachable");
    let image = image_of(&pair);
    let undisturbed = undisturbed(&pair, &image);
    let before = begin(&pair, &image, PATH);
    wait_until_sent(&pair, before, 40);
    pair.a.kill9();
    std::thread::sleep(Duration::from_secs(1));
    pair.a.start();
    complete(&pair, &image, before, undisturbed);
}

#[test]
fn the_target_is_restarted_in_the_middle() {
    let mut pair = Pair::start(Duration::from_millis(20), Some(RATE_BITS));
    pair.a.expect_log("unreachable");
    let image = image_of(&pair);
    let undisturbed = undisturbed(&pair, &image);
    let before = begin(&pair, &image, PATH);
    wait_until_sent(&pair, before, 40);
    pair.b.kill9();
    std::thread::sleep(Duration::from_secs(1));
    pair.b.start();
    complete(&pair, &image, before, undisturbed);
}
