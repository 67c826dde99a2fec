//! One volume used at both hosts: reads see the latest acknowledged write, and only one attachment
//! writes unless the volume is shared.

use pannier_e2e::host::Host;
use pannier_e2e::nbd_client::{Client, Command};
use pannier_e2e::pair::Pair;
use rand::{Rng as _, SeedableRng as _};
use std::time::Duration;

const DISK_BYTES: u64 = 16 << 20;
const BLOCK: usize = 4096;

/// What a block is filled with.
fn read(client: &mut Client, offset: u64) -> u8 {
    let data = client.read(offset, BLOCK as u32).unwrap();
    assert!(data.iter().all(|byte| *byte == data[0]), "a torn block at {offset}");
    data[0]
}

fn connect(host: &Host, path: &str) -> Client {
    Client::connect(&Pair::nbd(host), path, true, Duration::from_secs(30))
        .unwrap_or_else(|error| panic!("{} {path}: {error}", host.name))
}

#[test]
fn owner_and_forwarded_requests_mixed_see_each_other() {
    let pair = Pair::start(Duration::from_millis(4), None);
    let path = "/shared";
    let size = DISK_BYTES.to_string();
    pair.a.cli(&["volume", "create", path, "--size", &size, "--shared"]);
    let mut clients = [connect(&pair.a, path), connect(&pair.b, path)];
    let mut random = rand::rngs::StdRng::seed_from_u64(21);
    let mut expect = [0_u8; 64];
    for step in 0..600_u32 {
        let client = &mut clients[random.random_range(0..2)];
        let slot = random.random_range(0..expect.len());
        let offset = (slot * BLOCK) as u64 * 3;
        match random.random_range(0..10) {
            0..4 => {
                expect[slot] = random.random_range(1..=255);
                client.write(offset, &[expect[slot]; BLOCK]).unwrap();
            }
            4 => {
                expect[slot] = 0;
                client.call(Command::Trim, 0, offset, BLOCK as u32, &[]).unwrap();
            }
            5 => client.flush().unwrap(),
            _ => {
                assert_eq!(read(client, offset), expect[slot], "step {step}, slot {slot}");
            }
        }
        // In the middle of it the volume moves, and both go on.
        if step == 300 {
            pair.a.cli(&["move", path, "--to", "east", "--wait", "switched"]);
        }
    }
}

#[test]
fn a_second_writer_waits_until_the_first_is_gone() {
    let pair = Pair::start(Duration::from_millis(4), None);
    let path = "/one-writer";
    pair.a.cli(&["volume", "create", path, "--size", &DISK_BYTES.to_string()]);
    let mut at_a = connect(&pair.a, path);
    at_a.write(0, &[1; BLOCK]).unwrap();
    let mut at_b = connect(&pair.b, path);
    assert_eq!(read(&mut at_b, 0), 1, "a reader is let in");
    // Its write is sent and waits.
    at_b.send(Command::Write, 0, 0, BLOCK as u32, &[2; BLOCK]).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(read(&mut at_a, 0), 1, "the second writer was let in");
    at_a.write(8192, &[3; BLOCK]).unwrap();
    at_a.disconnect().unwrap();
    let reply = at_b.receive().unwrap();
    assert_eq!(reply.error, 0, "the right passed when its holder went");
    assert_eq!(read(&mut at_b, 0), 2);
    assert_eq!(read(&mut at_b, 8192), 3);
}

/// The right is taken from a guest on the other host: the next writer gets it, and the guest that
/// had it goes on, its writes waiting for their turn as any other's do.
#[test]
fn a_released_right_goes_to_the_next_writer_and_ends_nobody() {
    let pair = Pair::start(Duration::from_millis(4), None);
    let path = "/released";
    pair.a.cli(&["volume", "create", path, "--size", &DISK_BYTES.to_string()]);
    let mut at_b = connect(&pair.b, path);
    at_b.write(0, &[1; BLOCK]).unwrap();
    let mut at_a = connect(&pair.a, path);
    at_a.send(Command::Write, 0, 0, BLOCK as u32, &[2; BLOCK]).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(read(&mut at_b, 0), 1, "the right is still at b");
    pair.a.cli(&["volume", "release", path]);
    assert_eq!(at_a.receive().unwrap().error, 0);
    assert_eq!(read(&mut at_b, 0), 2, "the former holder still reads");
    at_a.disconnect().unwrap();
    at_b.write(4096, &[3; BLOCK]).unwrap();
    assert_eq!(read(&mut at_b, 4096), 3, "and writes again when the right is free");
}

/// Both sites are told to move the volume to themselves at the same moment, again and again, while
/// it is written: one wins each time, and nothing that was acknowledged is lost.
#[test]
fn two_hosts_that_both_want_the_volume() {
    let pair = Pair::start(Duration::from_millis(10), None);
    let path = "/wanted";
    let size = DISK_BYTES.to_string();
    pair.a.cli(&["volume", "create", path, "--size", &size, "--shared"]);
    let mut client = connect(&pair.a, path);
    for turn in 1..=6_u8 {
        client.write(0, &[turn; BLOCK]).unwrap();
        std::thread::scope(|scope| {
            let wish = |host: &'static str, site: &'static str| {
                let asked = if host == "a" { &pair.a } else { &pair.b };
                let arguments = ["move", path, "--to", site, "--wait", "switched"];
                scope.spawn(move || asked.try_cli(&arguments, Duration::from_secs(60)))
            };
            let (west, east) = (wish("a", "west"), wish("b", "east"));
            client.write(4096, &[turn; BLOCK]).unwrap();
            let ended = [west.join().unwrap(), east.join().unwrap()];
            assert!(ended.iter().any(|ended| ended.success), "{ended:?}");
        });
        for host in [&pair.a, &pair.b] {
            let mut reader = connect(host, path);
            for offset in [0, 4096] {
                assert_eq!(read(&mut reader, offset), turn, "turn {turn} at {}", host.name);
            }
        }
    }
}
