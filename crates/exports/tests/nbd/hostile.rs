//! Clients that break the protocol, stall, or vanish; each must hurt only itself.

use crate::device::{Disk, Inline};
use crate::rig::Rig;
use pannier_engine::error::ErrorKind;
use pannier_exports::nbd::client::Client;
use pannier_exports::nbd::codec::handshake::{InfoRequest, encode_option, option};
use pannier_exports::nbd::codec::transmission::{Command, Cookie, Request};
use pannier_exports::nbd::limits::UNREAD_TIME_MAX;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

fn connect(rig: &Rig) -> UnixStream {
    let stream = UnixStream::connect(&rig.socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn take<const N: usize>(stream: &mut UnixStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Greeting and client flags.
fn greet(rig: &Rig) -> UnixStream {
    let mut stream = connect(rig);
    assert_eq!(&take::<16>(&mut stream), b"NBDMAGICIHAVEOPT");
    take::<2>(&mut stream);
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    stream
}

/// Sends an option, returns the types of its replies up to the last.
fn haggle(stream: &mut UnixStream, number: u32, data: &[u8]) -> Vec<u32> {
    stream.write_all(&encode_option(number, data)).unwrap();
    let mut replies = Vec::new();
    loop {
        let header = take::<20>(stream);
        assert_eq!(word(&header, 8), number);
        let mut data = vec![0; word(&header, 16) as usize];
        stream.read_exact(&mut data).unwrap();
        let reply = word(&header, 12);
        replies.push(reply);
        if reply == 1 || reply & 1 << 31 != 0 {
            return replies;
        }
    }
}

/// Whether the server has closed the connection.
fn is_dropped(stream: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// A client with EXPORT_NAME and simple replies.
pub(crate) struct OldClient(UnixStream);

pub(crate) fn with_old_client(rig: &Rig, export: &str, then: impl FnOnce(&mut OldClient)) {
    let mut stream = greet(rig);
    stream.write_all(&encode_option(option::EXPORT_NAME, export.as_bytes())).unwrap();
    take::<10>(&mut stream);
    then(&mut OldClient(stream));
}

impl OldClient {
    fn request(&mut self, command: Command, offset: u64, length: u32) {
        let request = Request { flags: 0, command, cookie: Cookie(9), offset, length };
        self.0.write_all(&request.encode()).unwrap();
    }

    fn reply(&mut self) -> u32 {
        let reply = take::<16>(&mut self.0);
        assert_eq!(word(&reply, 0), 0x6744_6698);
        assert_eq!(word(&reply, 12), 9);
        word(&reply, 4)
    }

    pub(crate) fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
        self.request(Command::Read, offset, length);
        match self.reply() {
            0 => {
                let mut data = vec![0; length as usize];
                self.0.read_exact(&mut data).unwrap();
                Ok(data)
            }
            error => Err(error),
        }
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8], fua: bool) {
        let flags = fua.into();
        let length = data.len() as u32;
        let request = Request { flags, command: Command::Write, cookie: Cookie(9), offset, length };
        self.0.write_all(&request.encode()).unwrap();
        self.0.write_all(data).unwrap();
        assert_eq!(self.reply(), 0);
    }
}

/// A well-behaved client still gets its answers, soon.
fn others_are_served(rig: &Rig) {
    let begun = Instant::now();
    rig.runtime.block_on(async {
        let mut client = Client::connect_unix(&rig.socket, "/disk").await.unwrap();
        client.write(0, &[0xab; 4096], false).await.unwrap();
        let mut back = [0; 4096];
        client.read(0, &mut back).await.unwrap();
        assert_eq!(back, [0xab; 4096]);
        client.disconnect().await.unwrap();
    });
    assert!(begun.elapsed() < Duration::from_secs(10), "took {:?}", begun.elapsed());
}

fn rig(inline: Inline) -> Rig {
    Rig::new(vec![Disk::new("/disk", 64 * MIB, inline)])
}

#[test]
fn garbage_in_the_handshake_is_dropped() {
    let rig = rig(Inline::Always);
    let huge = [&b"IHAVEOPT"[..], &3u32.to_be_bytes(), &u32::MAX.to_be_bytes()].concat();
    let cases: &[(&str, Vec<u8>)] = &[
        ("client flags", vec![0xff; 4]),
        ("no fixed newstyle", vec![0; 4]),
        ("option magic", [&3u32.to_be_bytes()[..], &[0x55; 16]].concat()),
        ("option length", [&3u32.to_be_bytes()[..], &huge].concat()),
        ("unknown export", {
            [&3u32.to_be_bytes()[..], &encode_option(option::EXPORT_NAME, b"nothing")].concat()
        }),
        ("name", {
            [&3u32.to_be_bytes()[..], &encode_option(option::EXPORT_NAME, &[0xff])].concat()
        }),
        ("endless options", {
            let options = encode_option(99, &[]).repeat(300);
            [&3u32.to_be_bytes()[..], &options].concat()
        }),
    ];
    for (what, bytes) in cases {
        let mut stream = connect(&rig);
        take::<18>(&mut stream);
        // The server may have hung up before all was sent.
        let sent = stream.write_all(bytes);
        assert!(is_dropped(&mut stream), "{what}: {sent:?}");
        others_are_served(&rig);
    }
    rig.settle();
}

#[test]
fn refused_options_leave_the_session_usable() {
    let rig = rig(Inline::Always);
    let mut stream = greet(&rig);
    let error = |number: u32| vec![1u32 << 31 | number];
    assert_eq!(haggle(&mut stream, 5, &[]), error(1), "STARTTLS");
    assert_eq!(haggle(&mut stream, 4711, &[1; 1000]), error(1), "unknown");
    assert_eq!(haggle(&mut stream, option::LIST, &[0]), error(3));
    assert_eq!(haggle(&mut stream, option::GO, &[0, 0, 0, 99]), error(3));
    assert_eq!(haggle(&mut stream, option::GO, &InfoRequest::encode("no")), error(6));
    assert_eq!(haggle(&mut stream, option::SET_META_CONTEXT, &[]), error(3));
    assert_eq!(haggle(&mut stream, option::STRUCTURED_REPLY, &[]), [1]);
    assert_eq!(haggle(&mut stream, option::LIST, &[]), [2, 1]);
    assert_eq!(haggle(&mut stream, option::INFO, &InfoRequest::encode("/disk")), [3, 3, 1]);
    assert_eq!(haggle(&mut stream, option::GO, &InfoRequest::encode("disk")), [3, 3, 1]);
    assert_eq!(rig.handles(), 1);
    drop(stream);
    rig.settle();
    let mut stream = greet(&rig);
    assert_eq!(haggle(&mut stream, option::ABORT, &[]), [1]);
    assert!(is_dropped(&mut stream));
}

#[test]
fn refused_requests_leave_the_session_usable() {
    for inline in [Inline::Always, Inline::Never] {
        let rig = rig(inline);
        with_old_client(&rig, "disk", |client| {
            for (command, offset, length, error) in [
                (Command::Read, 0, u32::MAX, 22),
                (Command::Read, 64 * MIB, 512, 22),
                (Command::Read, 1, 512, 22),
                (Command::BlockStatus, 0, 512, 22),
                (Command::Unknown(77), 0, 0, 22),
                (Command::WriteZeroes, 64 * MIB, 512, 28),
            ] {
                client.request(command, offset, length);
                assert_eq!(client.reply(), error, "{command:?} {offset} {length}");
            }
            // The data of a refused write is skipped, whatever its length.
            for length in [0, 100, 33 << 20, 100 << 20] {
                client.request(Command::Write, 0, length);
                let chunk = vec![0; 1 << 20];
                let mut left = length as usize;
                while left > 0 {
                    let part = left.min(chunk.len());
                    client.0.write_all(&chunk[..part]).unwrap();
                    left -= part;
                }
                assert_eq!(client.reply(), 22, "write of {length}");
            }
            assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
        });
        rig.settle();
    }
}

#[test]
fn garbage_and_cuts_in_transmission() {
    let rig = rig(Inline::Mostly);
    let write = Request {
        flags: 0,
        command: Command::Write,
        cookie: Cookie(1),
        offset: 0,
        length: 32 << 20,
    };
    let half_large = [&write.encode()[..], &[1; 1 << 20]].concat();
    let small = Request { length: 8192, ..write };
    let half_small = [&small.encode()[..], &[1; 100]].concat();
    for bytes in [vec![0x42; 5000], vec![0x25; 7], half_large, half_small, Vec::new()] {
        with_old_client(&rig, "disk", |client| {
            // A server that has hung up already is as good as one that reads.
            drop(client.0.write_all(&bytes));
            client.0.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(is_dropped(&mut client.0));
        });
        rig.settle();
        others_are_served(&rig);
    }
}

#[test]
fn slow_clients_hold_only_their_own_connection() {
    let rig = rig(Inline::Always);
    let waiting: Vec<UnixStream> = (0..200).map(|_| connect(&rig)).collect();
    let write = Request {
        flags: 0,
        command: Command::Write,
        cookie: Cookie(1),
        offset: 0,
        length: 32 << 20,
    };
    let mut claims = Vec::new();
    for _ in 0..20 {
        with_old_client(&rig, "disk", |client| {
            client.0.write_all(&write.encode()).unwrap();
            claims.push(client.0.try_clone().unwrap());
        });
    }
    others_are_served(&rig);
    let begun = Instant::now();
    while rig.handles() > 20 && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(rig.handles(), 20);
    drop((waiting, claims));
    rig.settle();
}

#[test]
fn a_client_that_does_not_read_is_held_back() {
    for inline in [Inline::Always, Inline::Never] {
        let rig = rig(inline);
        with_old_client(&rig, "disk", |client| {
            client.0.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            let read = Request {
                flags: 0,
                command: Command::Read,
                cookie: Cookie(1),
                offset: 0,
                length: 1 << 20,
            };
            let requests = read.encode().repeat(1000);
            let mut sent = 0_usize;
            while client.0.write_all(&requests).is_ok() {
                sent += 1000;
                assert!(sent < 1_000_000, "the server takes requests without end");
            }
            others_are_served(&rig);
        });
        rig.settle();
    }
}

#[test]
fn clients_that_read_nothing_keep_nobody_waiting() {
    let rig = rig(Inline::Never);
    let read =
        Request { flags: 0, command: Command::Read, cookie: Cookie(1), offset: 0, length: 1 << 20 };
    let mut idle = Vec::new();
    with_old_client(&rig, "disk", |served| {
        for _ in 0..50 {
            with_old_client(&rig, "disk", |client| {
                client.0.write_all(&read.encode().repeat(64)).unwrap();
                idle.push(client.0.try_clone().unwrap());
            });
        }
        // All of the memory for queued requests is taken once that many were begun.
        while rig.disks[0].reads.load(Ordering::SeqCst) < 512 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let begun = Instant::now();
        for round in 0..8 {
            served.write(0, &[round; 4096], false);
            assert_eq!(served.read(0, 4096), Ok(vec![round; 4096]));
        }
        let took = begun.elapsed();
        assert!(took < UNREAD_TIME_MAX / 10, "the others held it up for {took:?}");
    });
    drop(idle);
    rig.settle();
}

#[test]
fn the_handshake_has_a_deadline() {
    let time = Duration::from_millis(300);
    let rig = Rig::with(vec![Disk::new("/disk", MIB, Inline::Always)], time);
    for option in [None, Some(encode_option(option::STRUCTURED_REPLY, &[]))] {
        let begun = Instant::now();
        let mut stream = greet(&rig);
        if let Some(bytes) = option {
            stream.write_all(&bytes).unwrap();
        }
        assert!(is_dropped(&mut stream));
        assert!(begun.elapsed() >= time - Duration::from_millis(1), "{:?}", begun.elapsed());
    }
}

#[test]
fn device_errors_become_their_errno() {
    for (kind, errno) in [
        (ErrorKind::Unavailable, 5),
        (ErrorKind::Fenced, 108),
        (ErrorKind::Invalid, 22),
        (ErrorKind::NotFound, 5),
        (ErrorKind::Corrupt, 5),
        (ErrorKind::NoSpace, 28),
        (ErrorKind::Closed, 108),
        (ErrorKind::Internal, 5),
    ] {
        let mut disk = Disk::new("/disk", MIB, Inline::Always);
        disk.fail = Some(kind);
        let rig = Rig::new(vec![disk]);
        rig.runtime.block_on(async {
            let mut client = Client::connect_unix(&rig.socket, "disk").await.unwrap();
            let mut into = [0; 512];
            let read = client.read(0, &mut into).await.unwrap_err();
            assert_eq!(read.raw_os_error(), Some(errno), "{kind}");
            let large = vec![0; 700 << 10];
            for data in [&large[..512], &large] {
                let write = client.write(0, data, false).await.unwrap_err();
                assert_eq!(write.raw_os_error(), Some(errno), "{kind}");
            }
            let flush = client.flush().await.unwrap_err();
            assert_eq!(flush.raw_os_error(), Some(errno), "{kind}");
            let status = client.block_status(0, 512).await.unwrap_err();
            assert_eq!(status.raw_os_error(), Some(errno), "{kind}");
            client.disconnect().await.unwrap();
        });
    }
    let mut disk = Disk::new("/disk", MIB, Inline::Always);
    disk.read_only = true;
    let rig = Rig::new(vec![disk]);
    rig.runtime.block_on(async {
        let mut client = Client::connect_unix(&rig.socket, "disk").await.unwrap();
        let write = client.write(0, &[0; 512], false).await.unwrap_err();
        assert_eq!(write.raw_os_error(), Some(1));
        client.read(0, &mut [0; 512]).await.unwrap();
    });
}

#[test]
fn shutdown_answers_what_was_received() {
    let mut disk = Disk::new("/disk", MIB, Inline::Never);
    disk.delay = Duration::from_millis(300);
    let rig = Rig::new(vec![disk]);
    rig.runtime.block_on(async {
        let mut client = Client::connect_unix(&rig.socket, "disk").await.unwrap();
        let shutdown = rig.shutdown.clone();
        let stopping = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            shutdown.cancel();
        });
        client.write(0, &[7; 4096], true).await.unwrap();
        stopping.await.unwrap();
        client.read(0, &mut [0; 512]).await.unwrap_err();
        Client::connect_unix(&rig.socket, "disk").await.err().unwrap();
    });
    assert_eq!(rig.disks[0].snapshot()[..4096], [7; 4096]);
}

#[test]
fn mostly_valid_sessions_never_harm_the_server() {
    let rig = rig(Inline::Mostly);
    for seed in 0..300 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut bytes = 3u32.to_be_bytes().to_vec();
        if random.random() {
            bytes.extend(encode_option(option::STRUCTURED_REPLY, &[]));
        }
        bytes.extend(encode_option(option::GO, &InfoRequest::encode("disk")));
        let handshake = bytes.len();
        for _ in 0..random.random_range(1..40) {
            let length = random.random_range(0..64) * 512;
            let command = Command::from_number(random.random_range(0..9));
            let request = Request {
                flags: if random.random_ratio(1, 4) { random.random_range(0..32) } else { 0 },
                command,
                cookie: Cookie(random.random()),
                offset: random.random_range(0..64 * MIB / 512) * 512,
                length,
            };
            bytes.extend(request.encode());
            if command == Command::Write {
                bytes.resize(bytes.len() + length as usize, random.random());
            }
        }
        let from = if random.random_ratio(1, 3) { 0 } else { handshake };
        for _ in 0..random.random_range(0..4) {
            let at = random.random_range(from..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
        }
        bytes.truncate(random.random_range(handshake / 2..=bytes.len()));
        let mut stream = connect(&rig);
        let mut reader = stream.try_clone().unwrap();
        let draining = std::thread::spawn(move || is_dropped(&mut reader));
        // The server may hang up on the garbage before all of it was sent.
        drop(stream.write_all(&bytes));
        drop(stream.shutdown(std::net::Shutdown::Write));
        assert!(draining.join().unwrap(), "seed {seed}: the server neither answers nor hangs up");
    }
    others_are_served(&rig);
    rig.settle();
}
