//! What must not be believed, and what must be said about it.

use pannier_e2e::clients::must_run;
use pannier_e2e::host::Host;
use pannier_e2e::nbd_client::{Client, Command};
use pannier_e2e::pair::{Pair, Single, scratch, write_image};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn assert_says(text: &str, needed: &[&str]) {
    let lower = text.to_lowercase();
    for word in needed {
        assert!(lower.contains(word), "`{text}` does not say `{word}`");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn commands_that_cannot_be() {
    let mut single = Single::start();
    let host = &single.host;
    host.cli(&["volume", "create", "/there", "--size", "16M"]);
    for (arguments, says) in [
        (&["volume", "show", "/nowhere"][..], &["/nowhere"][..]),
        (&["volume", "create", "/there", "--size", "16M"], &["/there", "already"]),
        (&["volume", "create", "/odd", "--size", "1000"], &["512"]),
        (&["volume", "create", "/none", "--size", "0"], &["size"]),
        (&["volume", "create", "a//b", "--size", "1M"], &["a//b"]),
        (&["volume", "resize", "/there", "8M"], &["/there", "shrink"]),
        (&["volume", "delete", "/nowhere"], &["/nowhere"]),
        (&["volume", "import", "/no/such/file", "/new"], &["/no/such/file"]),
        (&["move", "/there", "--to", "nowhere"], &["nowhere"]),
        (&["move", "/nowhere", "--to", "west"], &["/nowhere"]),
    ] {
        assert_says(&host.cli_fails(arguments), says);
    }
    // None of it did anything.
    let list = host.cli_json(&["volume", "list"]);
    assert_eq!(list["volumes"].as_array().map(Vec::len), Some(1), "{list}");
    single.host.stop();
}

#[test]
fn an_unknown_export_is_refused_and_the_known_ones_are_found() {
    let mut single = Single::start();
    single.host.cli(&["volume", "create", "/vms/web/disk0", "--size", "16M"]);
    let address = Pair::nbd(&single.host);
    let refused = Client::connect(&address, "/vms/web/disk1", true, PATIENCE).err().unwrap();
    assert_says(&refused.to_string(), &["disk1"]);
    for name in ["/vms/web/disk0", "vms/web/disk0"] {
        let client = Client::connect(&address, name, false, PATIENCE).unwrap();
        assert_eq!(client.agreed.size_bytes, 16 << 20);
        client.disconnect().unwrap();
    }
    single.host.stop();
}

#[test]
fn requests_beyond_the_end_and_nonsense_hurt_nobody_else() {
    let mut single = Single::start();
    single.host.expect_log("nbd");
    single.host.expect_log("NBD");
    single.host.cli(&["volume", "create", "/disk", "--size", "16M"]);
    let address = Pair::nbd(&single.host);
    let connect = || Client::connect(&address, "/disk", true, PATIENCE).unwrap();
    let mut neighbour = connect();
    neighbour.write(0, &[5; 4096]).unwrap();

    let mut client = connect();
    let size = 16_u64 << 20;
    for (command, offset, length) in [
        (Command::Read, size, 512),
        (Command::Read, size - 512, 1024),
        (Command::Read, u64::MAX - 511, 512),
        (Command::Trim, size, 512),
        (Command::WriteZeroes, size - 512, 1024),
        (Command::BlockStatus, size, 512),
    ] {
        assert!(client.call(command, 0, offset, length, &[]).is_err(), "{command:?} {offset}");
    }
    assert!(client.call(Command::Write, 0, size, 512, &[1; 512]).is_err());
    assert!(client.read(0, 512).is_ok(), "an error of one request leaves the connection");

    // Not a request at all; a write of 4 GiB that never comes; half a header.
    client.send_raw(&[0xff; 4096]).unwrap();
    assert!(client.read(0, 512).is_err(), "nonsense ends its connection");
    let mut huge = connect();
    let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
    request.extend_from_slice(&[0, 0, 0, 1]);
    request.extend_from_slice(&1_u64.to_be_bytes());
    request.extend_from_slice(&0_u64.to_be_bytes());
    request.extend_from_slice(&u32::MAX.to_be_bytes());
    huge.send_raw(&request).unwrap();
    let mut half = connect();
    half.send_raw(&[0x25, 0x60]).unwrap();
    drop(half);
    assert_eq!(neighbour.read(0, 4096).unwrap(), [5; 4096]);
    drop(huge);
    neighbour.disconnect().unwrap();
    single.host.stop();
}

#[test]
fn a_wrong_token_gets_nothing() {
    let mut pair = Pair::start(Duration::ZERO, None);
    pair.a.expect_log("refused a join");
    let stranger = Host::unborn(pair.base.path(), "stranger", "north");
    let listen = stranger.address.to_string();
    let join = |token: &str| {
        let arguments = ["join", "--site", "north", "--token", token, "--listen", &listen];
        stranger.cli_fails(&arguments)
    };
    assert_says(&join("not a token"), &["token"]);
    // One character changed.
    let token = pair.a.token();
    let last = token.len() - 6;
    let other = if token.as_bytes()[last] == b'A' { "B" } else { "A" };
    let changed = format!("{}{other}{}", &token[..last], &token[last + 1..]);
    assert_says(&join(&changed), &["token"]);
    // A token is good once.
    let guest = Host::unborn(pair.base.path(), "guest", "south");
    guest.join(&token, None);
    assert_says(&join(&token), &["token"]);
}

/// A host of another cluster comes to this one's address with its own certificate: neither side
/// takes the other, and each says why.
#[test]
fn a_foreign_certificate_gets_nothing() {
    let mut pair = Pair::start(Duration::from_millis(2), None);
    let base = scratch();
    let mut first = Host::unborn(base.path(), "a", "west");
    first.init(None);
    first.start();
    let mut foreign = Host::unborn(base.path(), "b", "east");
    foreign.join(&first.token(), None);
    // It learns of its own "a" before that goes away and another one is in its place.
    foreign.start();
    foreign.stop();
    first.stop();
    foreign.reach("a", pair.a.address);
    for text in ["certificate", "registry", "unreachable"] {
        foreign.expect_log(text);
        pair.a.expect_log(text);
    }
    foreign.start();
    let error = foreign.cli_fails(&["volume", "create", "/stolen", "--size", "1M"]);
    assert_says(&error, &["registry"]);
    assert!(foreign.log_contains("certificate"), "{}", foreign.log_tail());
    assert_eq!(pair.a.cli_json(&["volume", "list"])["volumes"].as_array().map(Vec::len), Some(0));
    foreign.stop();
}

#[test]
fn with_the_registry_away_guests_go_on_and_the_rest_says_so() {
    let mut pair = Pair::start(Duration::from_millis(2), None);
    pair.b.expect_log("registry");
    pair.b.expect_log("unreachable");
    let path = "/guest";
    pair.b.cli(&["volume", "create", path, "--size", "16M"]);
    let mut client = Client::connect(&Pair::nbd(&pair.b), path, true, PATIENCE).unwrap();
    client.write(0, &[1; 4096]).unwrap();
    pair.a.kill9();
    for turn in 2..10_u8 {
        client.write(0, &[turn; 4096]).unwrap();
        client.flush().unwrap();
    }
    let said = pair.b.cli_fails(&["volume", "create", "/new", "--size", "16M"]);
    assert_says(&said, &["registry"]);
    let status = pair.b.cli_json(&["status"]);
    assert_eq!(status["registry"]["reachable"], false, "{status:#}");
    // The owner restarts without it, with what was written.
    client.disconnect().unwrap();
    pair.b.kill9();
    pair.b.start();
    let mut client = Client::connect(&Pair::nbd(&pair.b), path, true, PATIENCE).unwrap();
    assert_eq!(client.read(0, 4096).unwrap(), [9; 4096]);
    pair.a.start();
    let again = ["volume", "create", "/new", "--size", "16M"];
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !pair.b.try_cli(&again, Duration::from_secs(20)).success {
        assert!(std::time::Instant::now() < deadline, "the registry is back and not found");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// All files below a directory whose path contains a word.
fn files(below: &Path, word: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![below.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.to_string_lossy().contains(word) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_truncated_segment_file_is_told_or_repaired_and_never_believed() {
    let mut single = Single::start();
    let image = single.file("image.raw");
    write_image(image.as_ref(), 48 << 20, 9);
    single.host.cli(&["volume", "import", &image, "/disk"]);
    let uri = single.host.nbd_uri("/disk");
    // Once every segment is in the store, the damaged file is not the only copy.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let volume = single.host.volume("/disk");
        let place = &volume["places"][0];
        if place["stored_bytes"] == place["live_bytes"] && place["live_bytes"] != 0 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{volume:#}");
        std::thread::sleep(Duration::from_millis(100));
    }
    single.host.stop();
    let segments: Vec<_> = files(&single.host.dir.join("volumes"), "/segments/");
    assert!(!segments.is_empty());
    let file = std::fs::File::options().write(true).open(&segments[0]).unwrap();
    file.set_len(1 << 20).unwrap();
    single.host.expect_log("segment");
    single.host.start();
    must_run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &uri]);
}

#[test]
fn a_flipped_bit_in_the_store_is_found_and_mended_from_the_other_site() {
    let mut pair = Pair::start(Duration::from_millis(2), None);
    let image = pair.base.path().join("image.raw");
    write_image(&image, 48 << 20, 10);
    let image = image.to_str().unwrap().to_owned();
    pair.a.cli(&["volume", "import", &image, "/disk"]);
    pair.a.cli(&["move", "/disk", "--to", "east", "--wait", "independent"]);
    pair.b.stop();
    // The host's own copies go; one of the store's is damaged in the middle.
    std::fs::remove_dir_all(pair.b.dir.join("cache")).unwrap();
    let stored = files(&pair.b.dir.join("store"), "/segments/");
    assert!(!stored.is_empty());
    let mut bytes = std::fs::read(&stored[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&stored[0], bytes).unwrap();
    pair.b.expect_log("segment");
    pair.b.expect_log("corrupt");
    pair.b.start();
    let uri = pair.b.nbd_uri("/disk");
    must_run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &uri]);
    assert!(pair.b.log_contains("the site's store did not give"), "{}", pair.b.log_tail());
}
