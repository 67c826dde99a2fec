//! Delay, rate, queue, loss, cuts and mapping, over real sockets. Tolerances are for a busy
//! machine: what is asserted tightly is what must never be too early or too much.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use pannier_wan::{LinkConfig, Relay, Wan};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind(any()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

fn delay(millis: u64) -> LinkConfig {
    LinkConfig { delay: Duration::from_millis(millis), ..LinkConfig::default() }
}

/// Sends one datagram there and back, and returns the time it took.
fn round_trip(client: &UdpSocket, relay: &Relay, server: &UdpSocket) -> Duration {
    let mut buffer = [0; 64];
    let begun = Instant::now();
    client.send_to(b"there", relay.address()).unwrap();
    let (length, mapped) = server.recv_from(&mut buffer).unwrap();
    server.send_to(&buffer[..length], mapped).unwrap();
    let (length, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from), (&b"there"[..], relay.address()));
    begun.elapsed()
}

#[test]
fn delay_is_that_of_both_directions() {
    let (client, server) = (socket(), socket());
    let relay = Relay::start(any(), server.local_addr().unwrap(), delay(20)).unwrap();
    let mut times: Vec<Duration> = (0..20).map(|_| round_trip(&client, &relay, &server)).collect();
    times.sort();
    assert!(times[0] >= Duration::from_micros(39_900), "too early: {times:?}");
    assert!(times[10] < Duration::from_millis(50), "too late: {times:?}");
    relay.to_target().configure(delay(1));
    relay.from_target().configure(delay(1));
    let quick = (0..5).map(|_| round_trip(&client, &relay, &server)).min().unwrap();
    assert!(quick < Duration::from_millis(20), "{quick:?}");
    let stats = relay.to_target().stats();
    assert_eq!((stats.packets, stats.bytes), (25, 25 * 33));
}

#[test]
fn rate_bounds_what_passes_and_keeps_order() {
    let (client, server) = (socket(), socket());
    let config = LinkConfig { rate_bits: Some(20_000_000), queue_bytes: Some(1 << 20), ..delay(5) };
    let relay = Relay::start(any(), server.local_addr().unwrap(), config).unwrap();
    let count = 500_u32;
    let begun = Instant::now();
    for number in 0..count {
        let mut data = [0; 1222];
        data[..4].copy_from_slice(&number.to_be_bytes());
        client.send_to(&data, relay.address()).unwrap();
    }
    let mut buffer = [0; 2048];
    for number in 0..count {
        let length = server.recv(&mut buffer).unwrap();
        assert_eq!((length, &buffer[..4]), (1222, &number.to_be_bytes()[..]));
    }
    // 500 x 1250 bytes at 20 Mbit/s are 250 ms, and 5 ms on the way.
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(254), "faster than the link: {took:?}");
    assert!(took < Duration::from_millis(500), "slower than the link: {took:?}");
}

#[test]
fn a_full_queue_drops_the_tail() {
    let (client, server) = (socket(), socket());
    let config = LinkConfig { rate_bits: Some(1_000_000), queue_bytes: Some(20_000), ..delay(1) };
    let relay = Relay::start(any(), server.local_addr().unwrap(), config).unwrap();
    for _ in 0..100 {
        client.send_to(&[0; 972], relay.address()).unwrap();
    }
    server.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
    let arrived = std::iter::from_fn(|| server.recv(&mut [0; 2048]).ok()).count();
    let stats = relay.to_target().stats();
    // What fits into the queue, and the few that left while the others came.
    assert!((20..40).contains(&arrived), "{arrived} of 100 arrived");
    assert_eq!(stats.packets, arrived as u64);
    assert_eq!(stats.dropped_packets, 100 - arrived as u64);
    assert_eq!(stats.dropped_bytes, stats.dropped_packets * 1000);
}

#[test]
fn loss_is_the_configured_share() {
    let (client, server) = (socket(), socket());
    let config = LinkConfig { loss: 0.2, ..delay(0) };
    let relay = Relay::start(any(), server.local_addr().unwrap(), config).unwrap();
    for _ in 0..2000 {
        client.send_to(&[0; 100], relay.address()).unwrap();
        std::thread::sleep(Duration::from_micros(20));
    }
    let begun = Instant::now();
    let link = relay.to_target();
    while link.stats().packets + link.stats().dropped_packets < 2000 {
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", link.stats());
        std::thread::sleep(Duration::from_millis(5));
    }
    let dropped = link.stats().dropped_packets;
    assert!((300..500).contains(&dropped), "{dropped} of 2000 dropped");
}

#[test]
fn a_cut_loses_what_is_under_way() {
    let (client, server) = (socket(), socket());
    let relay = Relay::start(any(), server.local_addr().unwrap(), delay(100)).unwrap();
    client.send_to(b"lost", relay.address()).unwrap();
    while relay.to_target().stats().packets == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    relay.to_target().cut();
    client.send_to(b"lost too", relay.address()).unwrap();
    while relay.to_target().stats().dropped_packets < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    relay.to_target().restore();
    round_trip(&client, &relay, &server);
}

#[test]
fn every_source_has_its_own_way_back() {
    let server = socket();
    let relay = Relay::start(any(), server.local_addr().unwrap(), delay(1)).unwrap();
    let clients = [socket(), socket(), socket()];
    let mut ways = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        client.send_to(&[number as u8], relay.address()).unwrap();
        let (_, mapped) = server.recv_from(&mut [0; 8]).unwrap();
        ways.push(mapped);
    }
    for (number, mapped) in ways.iter().enumerate().rev() {
        server.send_to(&[number as u8], mapped).unwrap();
    }
    for (number, client) in clients.iter().enumerate() {
        let mut buffer = [9; 8];
        assert_eq!(client.recv(&mut buffer).unwrap(), 1);
        assert_eq!(buffer[0], number as u8);
    }
}

#[test]
fn two_relays_share_a_wan() {
    let (first, second) = (socket(), socket());
    let wan = Wan::new(delay(10)).unwrap();
    let to_second = wan.relay_to_second(any(), second.local_addr().unwrap()).unwrap();
    let to_first = wan.relay_to_first(any(), first.local_addr().unwrap()).unwrap();
    round_trip(&first, &to_second, &second);
    round_trip(&second, &to_first, &first);
    assert_eq!((wan.forth.stats().packets, wan.back.stats().packets), (2, 2));
    assert_eq!(wan.bytes(), 4 * 33);
    wan.cut();
    first.send_to(b"x", to_second.address()).unwrap();
    second.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(second.recv(&mut [0; 8]).is_err());
    wan.restore();
    second.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    round_trip(&first, &to_second, &second);
}
