use super::frame::{HEADER_BYTES, ServiceTag};
use super::testing::{Counting, Relay, bind};
use super::*;
use crate::cluster::testing::TestCluster;
use crate::limits::{HEAD_BYTES_MAX, PAYLOAD_BYTES_MAX, SERVED_BULK_MAX};
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

async fn ping(from: &Transport, to: HostId, payload: Bytes) -> Result<Bytes> {
    from.call(to, Class::Demand, Request::Ping, payload).await.map(|(_pong, payload)| payload)
}

/// Two hosts, 1 and 2; 2 serves, 1 knows where.
struct Pair {
    cluster: TestCluster,
    one: Transport,
    two: Transport,
    service: Arc<Counting>,
}

impl Pair {
    fn serving(service: Arc<Counting>) -> Self {
        let cluster = TestCluster::new();
        let (one, two) = (bind(&cluster.host(1)), bind(&cluster.host(2)));
        two.serve_engine(service.clone());
        one.learn(HostId(2), &two.address().to_string());
        Self { cluster, one, two, service }
    }

    async fn ping(&self) -> Result<Bytes> {
        ping(&self.one, HostId(2), Bytes::new()).await
    }
}

#[tokio::test]
async fn calls_carry_payloads_and_who_calls() {
    let pair = Pair::serving(Counting::new(|from, payload| {
        assert_eq!(from, HostId(1));
        Ok(payload)
    }));
    assert_eq!(pair.one.rtt(HostId(2)), None);
    for length in [0, 1, 4096, 1_000_000, PAYLOAD_BYTES_MAX as usize] {
        let payload = Bytes::from((0..251u8).cycle().take(length).collect::<Vec<_>>());
        for class in [Class::Bulk, Class::RunAhead, Class::Demand, Class::Control] {
            let (response, back) =
                pair.one.call(HostId(2), class, Request::Ping, payload.clone()).await.unwrap();
            assert_eq!(response, Response::Pong);
            assert!(back == payload, "{length} {class:?}");
        }
    }
    assert!(pair.one.rtt(HostId(2)).unwrap() < Duration::from_secs(1));
    let links = pair.one.links();
    assert_eq!(links.len(), 1);
    assert!(links[0].sent_bytes > 4 << 20 && links[0].rtt.is_some());
    // One connection served all of it, and 2 has dialed nobody.
    assert_eq!(pair.one.inner.endpoint.open_connections(), 1);
    assert!(pair.two.links().is_empty());
}

#[tokio::test]
async fn a_service_s_error_keeps_kind_and_context() {
    let pair = Pair::serving(Counting::failing(Error::new(ErrorKind::Fenced, "volume x: epoch 7")));
    let error = pair.ping().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert_eq!(error.context(), "volume x: epoch 7");
}

#[tokio::test]
async fn what_cannot_be_asked_is_said_so() {
    let pair = Pair::serving(Counting::echo());
    let error = ping(&pair.one, HostId(9), Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.context().contains("not known"), "{error}");
    let long = Bytes::from(vec![0; PAYLOAD_BYTES_MAX as usize + 1]);
    let error = ping(&pair.one, HostId(2), long).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    // Host 1 serves nothing yet.
    pair.two.learn(HostId(1), &pair.one.address().to_string());
    let error = ping(&pair.two, HostId(1), Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.context().contains("starting"), "{error}");
    let join =
        pair.one.exchange(HostId(2), ServiceTag::Join, Class::Control, Vec::new(), Bytes::new());
    assert_eq!(join.await.unwrap_err().kind(), ErrorKind::Invalid);
    pair.one.learn(HostId(3), "no such name.invalid:1");
    let error = ping(&pair.one, HostId(3), Bytes::new()).await.unwrap_err();
    assert!(error.context().contains("resolved"), "{error}");
}

#[tokio::test]
async fn only_hosts_of_the_cluster_are_served_and_believed() {
    let pair = Pair::serving(Counting::echo());
    let foreign = TestCluster::new();
    let day = Duration::from_secs(24 * 3600);
    let past = SystemTime::now() - 30 * day;
    let address = pair.two.address().to_string();

    let expired = bind(&pair.cluster.host_valid(3, past, day));
    let stranger = bind(&foreign.host(1));
    for (what, client, says) in
        [("foreign", &stranger, "not that host"), ("expired", &expired, "certificate")]
    {
        client.learn(HostId(2), &address);
        let error = ping(client, HostId(2), Bytes::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{what}");
        assert!(error.context().contains(says), "{what}: {error}");
    }
    // Nor does a good host take a foreign, an expired or another host for the one it dials.
    let other = bind(&pair.cluster.host(4));
    for server in [&stranger, &expired, &other] {
        server.serve_engine(pair.service.clone());
        pair.one.learn(HostId(5), &server.address().to_string());
        let error = ping(&pair.one, HostId(5), Bytes::new()).await.unwrap_err();
        assert!(error.context().contains("not that host"), "{error}");
    }
    assert_eq!(pair.service.served.load(Ordering::SeqCst), 0);
    pair.ping().await.unwrap();
}

/// A raw client with the certificate of `identity`, or with none.
async fn raw(config: quinn::ClientConfig, to: &Transport) -> Result<Connection, String> {
    let endpoint = socket::endpoint("127.0.0.1:0".parse().unwrap(), None).unwrap();
    let address = to.address().to_string();
    link::connect(&endpoint, Some(config), &address, to.host())
        .await
        .map_err(|failure| failure.to_string())
}

/// Sends bytes as a request and returns the whole answer.
async fn say(connection: &Connection, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| error.to_string())?;
    send.write_all(bytes).await.map_err(|error| error.to_string())?;
    send.finish().map_err(|error| error.to_string())?;
    recv.read_to_end(1 << 20).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn without_a_certificate_there_is_nothing_but_joining() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("identity");
    let first = crate::cluster::init(&home, "127.0.0.1:1", None).unwrap();
    let host = bind(&first);
    let service = Counting::echo();
    host.serve_engine(service.clone());
    let ping_frame = [1, 1, 3, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];

    // The join protocol without a certificate: only a join is heard.
    let joining = || tls::joining_client(first.fingerprint()).unwrap();
    let connection = raw(joining(), &host).await.unwrap();
    let answer = say(&connection, &ping_frame).await.unwrap();
    assert_eq!(answer[1], 1);
    assert!(String::from_utf8_lossy(&answer).contains("can only join"));
    // One request, then it is over.
    assert!(say(&connection, &ping_frame).await.is_err());

    // The hosts' protocol without a certificate: closed before a stream is served.
    let connection = raw(tls::anonymous_client(first.fingerprint()).unwrap(), &host).await;
    let answer = match connection {
        Ok(connection) => say(&connection, &ping_frame).await,
        Err(error) => Err(error),
    };
    assert!(answer.is_err());
    // A host without the authority does not even know the join protocol.
    let cluster = TestCluster::new();
    let plain = cluster.host(2);
    let host = bind(&plain);
    assert!(raw(tls::joining_client(plain.fingerprint()).unwrap(), &host).await.is_err());
    assert_eq!(service.served.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn hostile_frames_hurt_nobody() {
    let pair = Pair::serving(Counting::echo());
    let connection = raw(tls::client(&pair.cluster.host(3)).unwrap(), &pair.two).await.unwrap();
    let header = |version, service, class, head: u32, payload: u32| {
        let mut bytes = vec![version, service, class, 0];
        bytes.extend(head.to_le_bytes());
        bytes.extend(payload.to_le_bytes());
        assert_eq!(bytes.len(), HEADER_BYTES);
        bytes
    };
    for (what, bytes, says) in [
        ("version", header(2, 1, 3, 0, 0), Some("version 2")),
        ("service", header(1, 9, 3, 0, 0), Some("unknown service")),
        ("class", header(1, 1, 9, 0, 0), Some("unknown class")),
        ("head", header(1, 1, 3, HEAD_BYTES_MAX + 1, 0), Some("a head of")),
        ("payload", header(1, 1, 3, 0, u32::MAX), Some("a payload of")),
        ("request", [header(1, 1, 3, 2, 0), vec![0xff, 0xff]].concat(), Some("peer request")),
        ("registry", [header(1, 2, 3, 2, 0), vec![0, 0]].concat(), Some("does not serve")),
        ("join", header(1, 3, 3, 0, 0), Some("in the cluster already")),
        ("nothing", Vec::new(), None),
        ("short header", vec![1, 1, 3], None),
        ("short head", [header(1, 1, 3, 100, 0), vec![0; 99]].concat(), None),
        ("short payload", [header(1, 1, 3, 1, 4 << 20), vec![0; 70_000]].concat(), None),
    ] {
        let answer = say(&connection, &bytes).await;
        match says {
            Some(says) => {
                let answer = answer.unwrap();
                assert_eq!(answer[..2], [1, 1], "{what}");
                let text = String::from_utf8_lossy(&answer).into_owned();
                assert!(text.contains(says), "{what}: {text}");
            }
            None => assert!(answer.is_err(), "{what}"),
        }
    }
    // The same connection and everybody else go on.
    let ping_frame = [header(1, 1, 3, 1, 0), vec![0]].concat();
    assert_eq!(say(&connection, &ping_frame).await.unwrap()[..2], [1, 0]);
    pair.ping().await.unwrap();
}

#[tokio::test]
async fn random_frames_hurt_nobody() {
    let pair = Pair::serving(Counting::echo());
    let connection = raw(tls::client(&pair.cluster.host(3)).unwrap(), &pair.two).await.unwrap();
    for round in 0..300_usize {
        let mut bytes: Vec<u8> = (0..rand::random_range(0..64)).map(|_| rand::random()).collect();
        // Most begin well, so that what is behind the header is reached.
        if round % 4 != 0 && bytes.len() >= HEADER_BYTES {
            bytes[..4].copy_from_slice(&[1, 1 + (round % 3) as u8, (round % 4) as u8, 0]);
            bytes[5..8].fill(0);
            bytes[9..12].fill(0);
        }
        drop(say(&connection, &bytes).await);
    }
    assert!(connection.close_reason().is_none());
    pair.ping().await.unwrap();
}

#[tokio::test]
async fn what_is_served_at_once_is_bounded_by_class() {
    let pair = Pair::serving(Counting::echo());
    let shut = pair.service.gate.write().await;
    let count = SERVED_BULK_MAX + 20;
    let calls: Vec<_> = (0..count)
        .map(|_| {
            let one = pair.one.clone();
            tokio::spawn(async move {
                one.call(HostId(2), Class::Bulk, Request::Ping, Bytes::from(vec![1; 5000])).await
            })
        })
        .collect();
    while pair.service.under_way.load(Ordering::SeqCst) < SERVED_BULK_MAX {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(pair.service.under_way_max.load(Ordering::SeqCst), SERVED_BULK_MAX);
    // Another class has its own places, though bulk is full.
    let demand = pair.one.clone();
    let demand = tokio::spawn(async move { ping(&demand, HostId(2), Bytes::new()).await });
    while pair.service.under_way.load(Ordering::SeqCst) < SERVED_BULK_MAX + 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(shut);
    demand.await.unwrap().unwrap();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(pair.service.served.load(Ordering::SeqCst), count + 1);
    assert_eq!(pair.service.under_way_max.load(Ordering::SeqCst), SERVED_BULK_MAX + 1);
}

#[tokio::test]
async fn a_dropped_call_sends_no_half_request() {
    let pair = Pair::serving(Counting::echo());
    pair.ping().await.unwrap();
    let payload = Bytes::from(vec![1; PAYLOAD_BYTES_MAX as usize]);
    for _ in 0..20 {
        let call = pair.one.call(HostId(2), Class::Bulk, Request::Ping, payload.clone());
        drop(tokio::time::timeout(Duration::from_micros(300), call).await);
    }
    // What was served was whole: the echo service would answer shorter payloads just as well, so
    // the proof is that the link still works and no slot is lost.
    for _ in 0..2 * SERVED_BULK_MAX {
        let call = pair.one.call(HostId(2), Class::Bulk, Request::Ping, Bytes::new());
        tokio::time::timeout(Duration::from_secs(10), call).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_cut_link_is_noticed_and_heals_at_once() {
    let pair = Pair::serving(Counting::echo());
    let relay = Relay::start(pair.two.address()).await;
    pair.one.learn(HostId(2), &relay.address.to_string());
    pair.ping().await.unwrap();
    let hanging = pair.service.gate.write().await;
    let one = pair.one.clone();
    let call = tokio::spawn(async move { ping(&one, HostId(2), Bytes::new()).await });
    while pair.service.under_way.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    relay.cut(true);
    let cut = Instant::now();
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let noticed = cut.elapsed();
    assert!((2..=6).contains(&noticed.as_secs()), "noticed after {noticed:?}");
    drop(hanging);
    // While it is cut, callers hear so soon.
    let asked = Instant::now();
    assert_eq!(pair.ping().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    tokio::time::sleep(Duration::from_secs(10).saturating_sub(cut.elapsed())).await;
    relay.cut(false);
    let healed = Instant::now();
    // Nobody asks: the link comes back by itself.
    while pair.one.rtt(HostId(2)).is_none() {
        assert!(healed.elapsed() < Duration::from_secs(5), "not back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    pair.ping().await.unwrap();
    eprintln!("noticed after {noticed:?}, back after {:?}", healed.elapsed());
}

#[tokio::test]
async fn a_short_cut_breaks_nothing() {
    let pair = Pair::serving(Counting::echo());
    let relay = Relay::start(pair.two.address()).await;
    pair.one.learn(HostId(2), &relay.address.to_string());
    pair.ping().await.unwrap();
    relay.cut(true);
    let one = pair.one.clone();
    let call = tokio::spawn(async move { ping(&one, HostId(2), Bytes::new()).await });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    relay.cut(false);
    call.await.unwrap().unwrap();
    assert_eq!(pair.service.served.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_peer_may_move_and_restart() {
    let pair = Pair::serving(Counting::echo());
    pair.ping().await.unwrap();
    // Another way to the same host: new calls take it.
    let relay = Relay::start(pair.two.address()).await;
    pair.one.learn(HostId(2), &relay.address.to_string());
    let moved = Instant::now();
    while pair.one.links()[0].rtt.is_none() || pair.ping().await.is_err() {
        assert!(moved.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    relay.cut(true);
    let probe = tokio::time::timeout(Duration::from_millis(500), pair.ping());
    assert!(!matches!(probe.await, Ok(Ok(_))), "the old way is still taken");
    // The host restarts at another address, with the same identity.
    pair.two.close().await;
    let two = bind(&pair.cluster.host(2));
    two.serve_engine(pair.service.clone());
    pair.one.learn(HostId(2), &two.address().to_string());
    let restarted = Instant::now();
    while pair.ping().await.is_err() {
        assert!(restarted.elapsed() < Duration::from_secs(5));
    }
    // And at the same address, as a daemon does.
    let address = two.address();
    two.close().await;
    drop(two);
    let error = pair.ping().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let two = loop {
        // The socket is free when the closed endpoint's driver has ended.
        match Transport::bind(address, &pair.cluster.host(2)) {
            Ok(two) => break two,
            Err(_in_use) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    two.serve_engine(pair.service.clone());
    let restarted = Instant::now();
    while pair.ping().await.is_err() {
        assert!(restarted.elapsed() < Duration::from_secs(5));
    }
}

/// A daemon killed without a goodbye and started again: its peers hear from its next incarnation
/// that their connections are gone, well before the idle timeout.
#[test]
fn a_killed_peer_that_is_back_is_found_at_once() {
    let cluster = TestCluster::new();
    let two = cluster.host(2);
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (first, ours) = (runtime(), runtime());
    let address = first.block_on(async {
        let transport = bind(&two);
        transport.serve_engine(Counting::echo());
        transport.address()
    });
    let one = ours.block_on(async {
        let one = bind(&cluster.host(1));
        one.learn(HostId(2), &address.to_string());
        ping(&one, HostId(2), Bytes::new()).await.unwrap();
        one
    });
    // Nothing is sent any more, as after `kill -9`.
    first.shutdown_background();
    let killed = Instant::now();
    let second = runtime();
    let _back = second.block_on(async {
        let transport = loop {
            match Transport::bind(address, &two) {
                Ok(transport) => break transport,
                Err(_in_use) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        transport.serve_engine(Counting::echo());
        transport
    });
    ours.block_on(async {
        while ping(&one, HostId(2), Bytes::new()).await.is_err() {
            assert!(killed.elapsed() < Duration::from_secs(10));
        }
    });
    assert!(killed.elapsed() < Duration::from_millis(2500), "{:?}", killed.elapsed());
}

#[tokio::test]
async fn many_callers_share_one_connection() {
    let pair = Pair::serving(Counting::echo());
    let calls = (0..100).map(|_| pair.ping());
    for outcome in futures::future::join_all(calls).await {
        outcome.unwrap();
    }
    assert_eq!(pair.one.inner.endpoint.open_connections(), 1);
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let cluster = TestCluster::new();
    let one = bind(&cluster.host(1));
    let error = Transport::bind(one.address(), &cluster.host(2)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.context().contains("another process"), "{error}");
}
