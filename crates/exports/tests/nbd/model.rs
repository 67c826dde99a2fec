//! Random requests, pipelined and answered in any order, against an array.

use crate::device::{Disk, Inline};
use crate::rig::Rig;
use pannier_exports::nbd::codec::handshake::{InfoRequest, encode_option, option};
use pannier_exports::nbd::codec::transmission::{Command, Cookie, Request, flag};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

const SIZE: u64 = 8 << 20;
/// Requests in flight never overlap: each has a slot of the disk of its own.
const SLOTS: u64 = 16;

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

/// Takes one structured reply of one chunk, or a simple one: cookie and data.
fn reply(stream: &mut UnixStream) -> (u64, Option<Vec<u8>>) {
    let mut head = [0; 16];
    stream.read_exact(&mut head).unwrap();
    let cookie = u64::from_be_bytes(head[8..].try_into().unwrap());
    if word(&head[..4]) == 0x6744_6698 {
        assert_eq!(word(&head[4..8]), 0);
        return (cookie, None);
    }
    assert_eq!(head[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1]);
    let mut rest = [0; 12];
    stream.read_exact(&mut rest).unwrap();
    let mut data = vec![0; word(&rest[..4]) as usize - 8];
    stream.read_exact(&mut data).unwrap();
    (cookie, Some(data))
}

#[test]
fn pipelined_requests_match_the_model() {
    for (seed, inline) in [(1, Inline::Always), (2, Inline::Mostly), (3, Inline::Never)] {
        let rig = Rig::new(vec![Disk::new("disk", SIZE, inline)]);
        let mut stream = UnixStream::connect(&rig.socket).unwrap();
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        stream.write_all(&encode_option(option::STRUCTURED_REPLY, &[])).unwrap();
        stream.write_all(&encode_option(option::GO, &InfoRequest::encode("disk"))).unwrap();
        // Greeting, two acknowledgements, size and block sizes.
        stream.read_exact(&mut [0; 18 + 20 + (20 + 12) + (20 + 14) + 20]).unwrap();
        let mut random = SmallRng::seed_from_u64(seed);
        let mut model = vec![0u8; SIZE as usize];
        let mut cookie = 0;
        for _round in 0..300 {
            let mut batch = Vec::new();
            let mut expected: HashMap<u64, Option<Vec<u8>>> = HashMap::new();
            for slot in 0..SLOTS {
                let slot_bytes = SIZE / SLOTS;
                let first = random.random_range(0..slot_bytes / 512);
                let sectors = random.random_range(1..=(slot_bytes / 512 - first));
                let sectors = if random.random_ratio(1, 8) { sectors } else { sectors.min(16) };
                let (offset, length) = (slot * slot_bytes + first * 512, sectors * 512);
                let (from, to) = (offset as usize, (offset + length) as usize);
                let command = [Command::Read, Command::Write, Command::Write, Command::WriteZeroes]
                    [random.random_range(0..4)];
                cookie += 1;
                let fua = command != Command::Read && random.random_ratio(1, 8);
                let flags = if fua { flag::FUA } else { 0 };
                let length = length as u32;
                let request = Request { flags, command, cookie: Cookie(cookie), offset, length };
                batch.extend(request.encode());
                let mut data = None;
                match command {
                    Command::Read => data = Some(model[from..to].to_vec()),
                    Command::Write => {
                        random.fill(&mut model[from..to]);
                        batch.extend(&model[from..to]);
                    }
                    _ => model[from..to].fill(0),
                }
                expected.insert(cookie, data);
            }
            let mut writer = stream.try_clone().unwrap();
            let pieces = random.random_range(1..batch.len());
            let sending = std::thread::spawn(move || {
                for piece in batch.chunks(pieces.max(1000)) {
                    writer.write_all(piece).unwrap();
                }
            });
            while !expected.is_empty() {
                let (cookie, data) = reply(&mut stream);
                let wanted = expected.remove(&cookie).expect("a reply to a request in flight");
                assert!(data == wanted, "{inline:?}: request {cookie} read other bytes");
            }
            sending.join().unwrap();
        }
        assert!(rig.disks[0].snapshot() == model, "{inline:?}: the disk differs");
        drop(stream);
        rig.settle();
    }
}
