//! One volume used at both hosts: reads see the latest acknowledged write, and only one attachment
//! writes unless the volume is shared.

use pannier_e2e::history::{self, Op};
use pannier_e2e::host::Host;
use pannier_e2e::nbd_client::{Client, Command};
use pannier_e2e::pair::Pair;
use rand::{Rng as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

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

/// Writes a value that nobody else does to one of a few blocks, or reads one, again and again, and
/// tells what happened when.
fn work(mut client: Client, next: &AtomicU64, stop: &AtomicBool, seed: u64) -> Vec<(u64, Op)> {
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut ops = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let (slot, is_write) = (random.random_range(0..SLOTS), random.random_ratio(1, 2));
        let offset = slot * BLOCK as u64 * 3;
        let start = Instant::now();
        let value = if is_write {
            let value = next.fetch_add(1, Ordering::Relaxed);
            client.write(offset, &value.to_le_bytes().repeat(BLOCK / 8)).unwrap();
            value
        } else {
            let data = client.read(offset, BLOCK as u32).unwrap();
            assert!(data.chunks_exact(8).all(|word| word == &data[..8]), "a torn block {slot}");
            u64::from_le_bytes(data[..8].try_into().unwrap())
        };
        ops.push((slot, Op { is_write, value, start, end: Instant::now() }));
    }
    ops
}

/// Blocks that everybody uses at the same time.
const SLOTS: u64 = 6;

/// Guests at both hosts read and write the same blocks at the same time, through moves there and
/// back: what each of them was told can have happened one after the other.
#[test]
fn concurrent_requests_at_both_hosts_are_linearizable() {
    let pair = Pair::start(Duration::from_millis(4), None);
    let path = "/shared";
    let size = DISK_BYTES.to_string();
    pair.a.cli(&["volume", "create", path, "--size", &size, "--shared"]);
    let origin = Instant::now();
    let (next, stop) = (AtomicU64::new(1), AtomicBool::new(false));
    let ops: Vec<(u64, Op)> = std::thread::scope(|scope| {
        let guests: Vec<_> = [&pair.a, &pair.b, &pair.a, &pair.b, &pair.a, &pair.b]
            .into_iter()
            .zip(1..)
            .map(|(host, seed)| {
                let (client, next, stop) = (connect(host, path), &next, &stop);
                scope.spawn(move || work(client, next, stop, seed))
            })
            .collect();
        for to in ["east", "west"] {
            std::thread::sleep(Duration::from_secs(2));
            pair.a.cli(&["move", path, "--to", to, "--wait", "switched"]);
        }
        std::thread::sleep(Duration::from_secs(2));
        stop.store(true, Ordering::Relaxed);
        guests.into_iter().flat_map(|guest| guest.join().expect("a guest's errors")).collect()
    });
    let mut slots: BTreeMap<u64, Vec<Op>> = BTreeMap::new();
    for (slot, op) in &ops {
        slots.entry(*slot).or_default().push(*op);
    }
    println!("{} requests to {} blocks", ops.len(), slots.len());
    assert!(ops.len() > 2000, "{} requests are too few to meet", ops.len());
    for (slot, ops) in slots {
        history::check(0, origin, &ops).unwrap_or_else(|what| panic!("block {slot}: {what}"));
    }
}

/// Both hosts' first writes come at the same moment, to a volume that nobody has written to:
/// exactly one is let in, and the other when that one has gone.
#[test]
fn of_two_first_writers_exactly_one_is_let_in() {
    let pair = Pair::start(Duration::from_millis(4), None);
    for turn in 0..4 {
        let path = format!("/first-writer/{turn}");
        pair.a.cli(&["volume", "create", &path, "--size", &DISK_BYTES.to_string()]);
        let mut writers = [connect(&pair.a, &path), connect(&pair.b, &path)];
        // Who is asked first changes.
        for index in [turn % 2, 1 - turn % 2] {
            let data = [index as u8 + 1; BLOCK];
            writers[index].send(Command::Write, 0, 0, BLOCK as u32, &data).unwrap();
        }
        let (told, tells) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            for (index, mut writer) in writers.into_iter().enumerate() {
                let told = told.clone();
                scope.spawn(move || {
                    assert_eq!(writer.receive().unwrap().error, 0);
                    told.send((index, writer)).unwrap();
                });
            }
            let (winner, mut writer) = tells.recv_timeout(Duration::from_secs(30)).unwrap();
            let other = tells.recv_timeout(Duration::from_secs(2));
            assert!(other.is_err(), "turn {turn}: both writers were let in");
            assert_eq!(read(&mut writer, 0), winner as u8 + 1, "turn {turn}: the other's write");
            writer.disconnect().unwrap();
            let (loser, mut writer) = tells.recv_timeout(Duration::from_secs(30)).unwrap();
            assert_eq!(loser, 1 - winner, "turn {turn}");
            assert_eq!(read(&mut writer, 0), loser as u8 + 1, "turn {turn}: its turn came");
        });
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
/// it is written. The one that does not have it gets it; the other is told that it has it or that
/// it is on its way, unless it asks so late that it gets it back. Both hosts then agree on one
/// owner, and nothing that was acknowledged is lost.
#[test]
fn two_hosts_that_both_want_the_volume() {
    let pair = Pair::start(Duration::from_millis(10), None);
    let path = "/wanted";
    let size = DISK_BYTES.to_string();
    pair.a.cli(&["volume", "create", path, "--size", &size, "--shared"]);
    let mut client = connect(&pair.a, path);
    for turn in 1..=6_u8 {
        client.write(0, &[turn; BLOCK]).unwrap();
        let owner = pair.a.volume(path)["owner"].as_str().expect("a name").to_owned();
        std::thread::scope(|scope| {
            let wish = |host: &'static str, site: &'static str| {
                let asked = if host == "a" { &pair.a } else { &pair.b };
                let arguments = ["move", path, "--to", site, "--wait", "switched"];
                scope.spawn(move || asked.try_cli(&arguments, Duration::from_secs(60)))
            };
            let (west, east) = (wish("a", "west"), wish("b", "east"));
            client.write(4096, &[turn; BLOCK]).unwrap();
            let mut moves = [("a", west), ("b", east)].map(|(to, wish)| (to, wish.join().unwrap()));
            moves.sort_by_key(|(to, _)| *to == owner);
            let [(other, goes), (_, stays)] = &moves;
            let next = match (goes.success, stays.success) {
                (true, false) => {
                    assert!(stays.stderr.contains("already"), "turn {turn}: {stays:?}");
                    *other
                }
                (_, true) => &owner,
                (false, false) => panic!("turn {turn}: nobody got it: {moves:?}"),
            };
            for host in [&pair.a, &pair.b] {
                host.wait_for(path, next, Duration::from_secs(30), |volume| {
                    volume["owner"] == next
                });
            }
        });
        for host in [&pair.a, &pair.b] {
            let mut reader = connect(host, path);
            for offset in [0, 4096] {
                assert_eq!(read(&mut reader, offset), turn, "turn {turn} at {}", host.name);
            }
        }
    }
}
