use super::handshake::{
    ALLOCATION, ClientFlags, InfoRequest, MetaError, MetaRequest, OPTION_BYTES, OptionHeader,
    Reply, encode_option, greeting, parse_greeting, parse_reply, push_reply,
};
use super::transmission::{
    Command, Cookie, Head, REQUEST_BYTES, Request, Terms, admit, descriptors, flag,
};
use super::{Errno, Malformed};
use pannier_engine::port::{ExtentState, StatusExtent};
use proptest::prelude::*;

const TERMS: Terms =
    Terms { size_bytes: 1 << 20, read_only: false, structured: true, allocation: true };

fn request(command: Command, flags: u16, offset: u64, length: u32) -> Request {
    Request { flags, command, cookie: Cookie(7), offset, length }
}

#[test]
fn golden_bytes() {
    let bytes = request(Command::Write, flag::FUA, 0x1000, 512).encode();
    let expected = [
        0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0x10, 0, 0,
        0, 2, 0,
    ];
    assert_eq!(bytes, expected);
    assert_eq!(
        Head::simple(Cookie(7)).as_slice(),
        [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]
    );
    assert_eq!(
        Head::read(true, Cookie(7), 0x1000, 512).as_slice(),
        [
            0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 2, 8, 0, 0, 0, 0, 0,
            0, 0x10, 0
        ]
    );
    assert_eq!(
        Head::error(true, Command::Read, Cookie(7), Errno::Io).as_slice(),
        [
            0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 6, 0, 0, 0, 5,
            0, 0
        ]
    );
    assert_eq!(&greeting(), b"NBDMAGICIHAVEOPT\x00\x03");
    assert_eq!(encode_option(7, b"x"), b"IHAVEOPT\0\0\0\x07\0\0\0\x01x");
}

#[test]
fn requests_are_judged_as_the_protocol_says() {
    let end = 1 << 20;
    let cases: &[(Request, Result<(), Errno>)] = &[
        (request(Command::Read, 0, 0, 512), Ok(())),
        (request(Command::Read, flag::DF, end - 512, 512), Ok(())),
        (request(Command::Read, flag::NO_HOLE, 0, 512), Err(Errno::Inval)),
        (request(Command::Read, 0, 0, 0), Err(Errno::Inval)),
        (request(Command::Read, 0, 1, 512), Err(Errno::Inval)),
        (request(Command::Read, 0, 0, 511), Err(Errno::Inval)),
        (request(Command::Read, 0, end, 512), Err(Errno::Inval)),
        (request(Command::Read, 0, u64::MAX - 511, 512), Err(Errno::Inval)),
        (request(Command::Read, 0, 0, u32::MAX), Err(Errno::Inval)),
        (request(Command::Write, flag::FUA, 0, 512), Ok(())),
        (request(Command::Write, flag::DF, 0, 512), Err(Errno::Inval)),
        (request(Command::Write, 0, end, 512), Err(Errno::NoSpc)),
        (request(Command::WriteZeroes, flag::NO_HOLE | flag::FAST_ZERO, 0, end as u32), Ok(())),
        (request(Command::WriteZeroes, 0, 512, end as u32), Err(Errno::NoSpc)),
        (request(Command::Trim, 0, 512, end as u32), Err(Errno::Inval)),
        (request(Command::Flush, 0, 0, 0), Ok(())),
        (request(Command::Flush, 0, 512, 0), Err(Errno::Inval)),
        (request(Command::BlockStatus, flag::REQ_ONE, 0, end as u32), Ok(())),
        (request(Command::Cache, flag::REQ_ONE, 0, 512), Err(Errno::Inval)),
        (request(Command::Unknown(8), 0, 0, 0), Err(Errno::Inval)),
    ];
    for (request, expected) in cases {
        assert_eq!(admit(request, &TERMS), *expected, "{request:?}");
    }
    let read_only = Terms { read_only: true, ..TERMS };
    for command in [Command::Write, Command::Trim, Command::WriteZeroes] {
        assert_eq!(admit(&request(command, 0, 0, 512), &read_only), Err(Errno::Perm));
    }
    assert_eq!(admit(&request(Command::Read, 0, 0, 512), &read_only), Ok(()));
    let plain = Terms { structured: false, allocation: false, ..TERMS };
    assert_eq!(admit(&request(Command::Read, flag::DF, 0, 512), &plain), Err(Errno::Inval));
    assert_eq!(admit(&request(Command::BlockStatus, 0, 0, 512), &plain), Err(Errno::Inval));
}

fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let string = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
    let mut data = string(name);
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|query| string(query)));
    data
}

#[test]
fn meta_context_queries() {
    let cases: &[(&[&str], bool, bool)] = &[
        (&[], true, false),
        (&[ALLOCATION], true, true),
        (&["base:"], true, false),
        (&["base:allocationX"], false, false),
        (&["qemu:dirty-bitmap:x", ALLOCATION], true, true),
        (&["x-other:"], false, false),
    ];
    for (queries, lists, selects) in cases {
        let data = meta("disk", queries);
        let parsed = MetaRequest::parse(&data).unwrap();
        assert_eq!(parsed.lists_allocation(), *lists, "{queries:?}");
        assert_eq!(parsed.selects_allocation(), *selects, "{queries:?}");
    }
    assert_eq!(MetaRequest::parse(&meta("d", &["q"; 65])), Err(MetaError::TooBig));
    let mut long = meta("d", &["q"]);
    long.push(0);
    assert_eq!(MetaRequest::parse(&long), Err(MetaError::Invalid));
    assert_eq!(MetaRequest::parse(&u32::MAX.to_be_bytes()), Err(MetaError::Invalid));
}

#[test]
fn handshake_bounds() {
    assert_eq!(ClientFlags::parse([0, 0, 0, 3]), Ok(ClientFlags { no_zeroes: true }));
    assert_eq!(ClientFlags::parse([0, 0, 0, 1]), Ok(ClientFlags { no_zeroes: false }));
    assert_eq!(ClientFlags::parse([0, 0, 0, 2]), Err(Malformed::NotFixed));
    assert_eq!(ClientFlags::parse([0, 0, 0, 7]), Err(Malformed::ClientFlags(7)));
    let mut option: [u8; OPTION_BYTES] = encode_option(3, &[]).try_into().unwrap();
    assert_eq!(OptionHeader::parse(&option).unwrap(), OptionHeader { option: 3, length: 0 });
    option[12] = 1;
    assert!(matches!(OptionHeader::parse(&option), Err(Malformed::OptionTooLong { .. })));
    option[0] = 0;
    assert!(matches!(OptionHeader::parse(&option), Err(Malformed::Magic { .. })));
    let mut reply = Vec::new();
    push_reply(&mut reply, 3, Reply::Server, &[b"ab", b"c"]);
    assert_eq!(parse_reply(reply.first_chunk().unwrap()), Ok((2, 3)));
    assert_eq!(parse_greeting(&greeting()), Ok(()));
}

fn extents() -> impl Strategy<Value = Vec<StatusExtent>> {
    let state =
        prop_oneof![Just(ExtentState::Data), Just(ExtentState::Zero), Just(ExtentState::Hole)];
    let extent = (1u64..64, state)
        .prop_map(|(sectors, state)| StatusExtent { length: sectors * 512, state });
    proptest::collection::vec(extent, 0..40)
}

proptest! {
    #[test]
    fn requests_survive_the_wire(
        flags: u16, command: u16, cookie: u64, offset: u64, length: u32
    ) {
        let command = Command::from_number(command);
        let request = Request { flags, command, cookie: Cookie(cookie), offset, length };
        prop_assert_eq!(Request::parse(&request.encode()), Ok(request));
    }

    #[test]
    fn what_is_admitted_is_within_the_device(
        flags in 0u16..32, command in 0u16..9, offset: u64, length: u32,
        near in 0u64..(2 << 20), sectors: bool
    ) {
        for offset in [offset, near, near & !511] {
            let length = if sectors { (length % (3 << 20)) & !511 } else { length };
            let request = request(Command::from_number(command), flags, offset, length);
            if admit(&request, &TERMS).is_ok() && request.command != Command::Disconnect {
                prop_assert!(offset + u64::from(length) <= TERMS.size_bytes);
                prop_assert!(offset % 512 == 0 && length % 512 == 0);
                prop_assert!((length == 0) == (request.command == Command::Flush));
            }
        }
    }

    #[test]
    fn no_bytes_panic(
        data in proptest::collection::vec(any::<u8>(), 0..200),
        head in any::<[u8; REQUEST_BYTES]>(),
        option in any::<[u8; OPTION_BYTES]>()
    ) {
        let requested = InfoRequest::parse(&data);
        if let Some(requested) = requested {
            prop_assert!(requested.name.len() + 6 <= data.len());
        }
        if let Ok(requested) = MetaRequest::parse(&data) {
            prop_assert!(requested.queries.len() <= 64);
        }
        prop_assert_eq!(Request::parse(&head).is_ok(), head.starts_with(&[0x25, 0x60, 0x95, 0x13]));
        prop_assert!(OptionHeader::parse(&option).is_err());
    }

    #[test]
    fn descriptors_tell_what_the_extents_say(
        extents in extents(), sectors in 1u32..600, one: bool
    ) {
        let length = sectors * 512;
        let bytes = descriptors(&extents, length, one);
        let told: Vec<(u32, u32)> = bytes.chunks_exact(8).map(|pair| {
            let word = |at: usize| u32::from_be_bytes(pair[at..at + 4].try_into().unwrap());
            (word(0), word(4))
        }).collect();
        // Sector by sector, against the extents.
        let naive = extents.iter().flat_map(|extent| {
            let flags = match extent.state {
                ExtentState::Data => 0,
                ExtentState::Zero => 2,
                ExtentState::Hole => 3,
            };
            (0..extent.length / 512).map(move |_| flags)
        });
        let naive: Vec<u32> = naive.take(sectors as usize).collect();
        let flat: Vec<u32> = told
            .iter()
            .flat_map(|&(run, flags)| (0..run / 512).map(move |_| flags))
            .collect();
        prop_assert!(told.windows(2).all(|pair| pair[0].1 != pair[1].1));
        if one {
            prop_assert!(told.len() <= 1);
            prop_assert_eq!(&flat[..], &naive[..flat.len()]);
        } else {
            prop_assert_eq!(flat, naive);
        }
    }
}
