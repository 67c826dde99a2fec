use super::testing::{EtcdCluster, compact, open};
use super::*;
use crate::limits::ETCD_COMMIT;
use futures::StreamExt as _;
use pannier_engine::error::{Error, ErrorKind};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

const WAIT: Duration = Duration::from_millis(500);

/// How long any request may take, whatever etcd does: patience, and a last transaction.
const BOUND: Duration = Duration::from_secs(14);

fn put(key: &str, value: &str) -> Transaction {
    let value = Some(Bytes::copy_from_slice(value.as_bytes()));
    Transaction { expect: Vec::new(), changes: vec![KeyChange { key: key.to_owned(), value }] }
}

async fn write(registry: &Etcd, key: &str, value: &str) -> Revision {
    match registry.commit(put(key, value)).await.unwrap() {
        Commit::Done(revision) => revision,
        Commit::Conflict => panic!("conflict"),
    }
}

/// Follows a registry as a host does, and keeps all that it hears of.
struct Follower {
    heard: BTreeSet<String>,
    through: Revision,
}

impl Follower {
    async fn new(registry: &Etcd) -> Self {
        Self { heard: BTreeSet::new(), through: registry.list("").await.unwrap().1 }
    }

    /// Follows until it has heard of a key.
    async fn hear(&mut self, registry: &Etcd, key: &str) {
        let started = Instant::now();
        while !self.heard.contains(key) {
            assert!(started.elapsed() < Duration::from_secs(60), "{key} is not heard of");
            let changes = registry.changes(self.through).await.unwrap();
            assert!(!changes.complete, "the watch goes on where it was");
            self.through = changes.through;
            self.heard.extend(changes.entries.into_iter().map(|(key, _value)| key));
        }
    }
}

#[tokio::test]
async fn two_clusters_share_an_etcd() {
    let etcd = EtcdCluster::start(1);
    let (one, two) = (open(&etcd, "1", WAIT), open(&etcd, "11", WAIT));
    let before = write(&two, "key", "two").await;
    write(&one, "key", "one").await;
    assert_eq!(&one.get("key").await.unwrap().unwrap().value[..], b"one");
    assert_eq!(&two.get("key").await.unwrap().unwrap().value[..], b"two");
    assert_eq!(one.list("").await.unwrap().0.len(), 1);
    let nothing = two.changes(before).await.unwrap();
    assert_eq!((nothing.entries.len(), nothing.complete), (0, false));
    // Who is alive is a matter of each, too, and no record.
    let (west, east) = (HostId(0x77), HostId(0x88));
    assert_eq!(one.alive().await.unwrap(), Some(BTreeSet::new()));
    one.stay_alive(west).await.unwrap();
    two.stay_alive(east).await.unwrap();
    for _again in 0..2 {
        one.stay_alive(west).await.unwrap();
        assert_eq!(one.alive().await.unwrap(), Some(BTreeSet::from([west])));
    }
    assert_eq!(one.list("").await.unwrap().0.len(), 1);
    // A lease that has expired, as after a long time away, is no end.
    for lease in etcdctl(&etcd, &["lease", "list"]).lines().skip(1) {
        etcdctl(&etcd, &["lease", "revoke", lease]);
    }
    assert_eq!(one.alive().await.unwrap(), Some(BTreeSet::new()));
    one.stay_alive(west).await.unwrap();
    assert_eq!(one.alive().await.unwrap(), Some(BTreeSet::from([west])));
}

#[tokio::test]
async fn a_listing_of_many_pages_is_of_one_revision() {
    let etcd = EtcdCluster::start(1);
    let registry = open(&etcd, "c", WAIT);
    let keys = |from: i64| (from..from + 100).map(|at| format!("k/{at:04}"));
    for from in (0..ETCD_PAGE_KEYS * 3).step_by(100) {
        let change = |key| KeyChange { key, value: Some(Bytes::from_static(b"a")) };
        let changes = keys(from).map(change).collect();
        registry.commit(Transaction { expect: Vec::new(), changes }).await.unwrap();
    }
    // Two keys at the ends, which are on different pages, are always written together.
    let both = |round: u32| {
        let value = Some(Bytes::from(round.to_string()));
        let change = |key: &str| KeyChange { key: key.to_owned(), value: value.clone() };
        let changes = vec![change("k/0000"), change("k/0799")];
        Transaction { expect: Vec::new(), changes }
    };
    registry.commit(both(0)).await.unwrap();
    let writer = tokio::spawn({
        let registry = registry.clone();
        async move {
            for round in 1..200 {
                registry.commit(both(round)).await.unwrap();
            }
        }
    });
    let mut seen = BTreeSet::new();
    while !writer.is_finished() {
        let (entries, at) = registry.list("k/").await.unwrap();
        assert_eq!(entries.len(), 800);
        assert!(entries.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(entries[0].1, entries[799].1, "at {at:?}");
        seen.insert(at);
    }
    writer.await.unwrap();
    assert!(seen.len() > 1, "nothing was written meanwhile");
}

#[tokio::test]
async fn a_watcher_that_was_away_over_a_compaction_reads_everything() {
    let etcd = EtcdCluster::start(1);
    let registry = open(&etcd, "c", WAIT);
    let start = write(&registry, "a", "1").await;
    write(&registry, "b", "1").await;
    let heard = registry.changes(start).await.unwrap();
    assert_eq!(heard.entries.len(), 1);
    // Away: nobody asks, while much happens and is forgotten.
    drop(registry);
    let registry = open(&etcd, "c", WAIT);
    let gone = Transaction {
        expect: Vec::new(),
        changes: vec![KeyChange { key: "a".to_owned(), value: None }],
    };
    registry.commit(gone).await.unwrap();
    let last = write(&registry, "c", "1").await;
    compact(&registry, last).await;
    let changes = registry.changes(heard.through).await.unwrap();
    assert!(changes.complete);
    let keys: Vec<_> = changes.entries.iter().map(|(key, _value)| key.as_str()).collect();
    assert_eq!((keys, changes.through), (vec!["b", "c"], last));
    // And goes on from there.
    write(&registry, "d", "1").await;
    let changes = registry.changes(changes.through).await.unwrap();
    assert_eq!((changes.entries[0].0.as_str(), changes.complete), ("d", false));
}

/// etcd gives a watcher that lags its history in pieces of a thousand revisions, each under the
/// newest revision's name.
#[tokio::test]
async fn a_watcher_that_catches_up_in_pieces_misses_nothing() {
    let etcd = EtcdCluster::start(1);
    let registry = open(&etcd, "c", WAIT);
    let start = write(&registry, "start", "1").await;
    let write_one = |at: u32| {
        let registry = &registry;
        async move { write(registry, &format!("k/{at}"), "1").await }
    };
    let writes = futures::stream::iter((0..2500).map(write_one)).buffer_unordered(64);
    let last = writes.fold(start, |last, at| async move { last.max(at) }).await;
    let (mut heard, mut through, mut pieces) = (0, start, 0);
    while through < last {
        let changes = registry.changes(through).await.unwrap();
        assert!(!changes.complete);
        (heard, through, pieces) = (heard + changes.entries.len(), changes.through, pieces + 1);
    }
    println!("{pieces} pieces");
    assert_eq!(heard, 2500);
    assert!(pieces > 1);
}

/// Whether it was done is not known, so it is neither done twice nor called a conflict.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_does_not_come_is_not_sent_again() {
    let etcd = EtcdCluster::start(1);
    let registry = open(&etcd, "c", WAIT);
    write(&registry, "a", "1").await;
    etcd.signal(0, "STOP");
    let create = Transaction { expect: vec![("b".to_owned(), Revision(0))], ..put("b", "1") };
    let asked = Instant::now();
    let (committed, ()) = tokio::join!(registry.commit(create), async {
        tokio::time::sleep(ETCD_COMMIT + Duration::from_millis(500)).await;
        etcd.signal(0, "CONT");
    });
    let error = committed.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.context().contains("not known"), "{error}");
    assert!(asked.elapsed() < BOUND);
    assert!(registry.get("a").await.unwrap().is_some());
}

/// A member that hangs holds one up, and the next not at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_is_passed_over() {
    let etcd = EtcdCluster::start(3);
    let registry = open(&etcd, "c", WAIT);
    write(&registry, "a", "1").await;
    let first = registry.shared.members.first();
    etcd.signal(first, "STOP");
    let asked = Instant::now();
    assert!(registry.commit(put("a", "2")).await.is_err());
    assert!(asked.elapsed() >= ETCD_COMMIT && asked.elapsed() < BOUND, "{:?}", asked.elapsed());
    let asked = Instant::now();
    write(&registry, "a", "2").await;
    assert!(registry.get("a").await.unwrap().is_some());
    assert!(asked.elapsed() < ETCD_COMMIT, "{:?}", asked.elapsed());
    etcd.signal(first, "CONT");
}

#[tokio::test]
async fn a_watch_is_kept_open() {
    let etcd = EtcdCluster::start(1);
    let registry = open(&etcd, "c", WAIT);
    let mut through = write(&registry, "a", "0").await;
    for round in 1..5 {
        // A question that is dropped, and one that comes to nothing, lose nothing.
        drop(tokio::time::timeout(WAIT / 10, registry.changes(through)).await);
        let nothing = registry.changes(through).await.unwrap();
        assert_eq!((nothing.entries.len(), nothing.through), (0, through));
        assert!(registry.shared.watching.lock().await.is_some(), "round {round}");
        write(&registry, "a", &round.to_string()).await;
        let changes = registry.changes(through).await.unwrap();
        assert_eq!(changes.entries.len(), 1, "round {round}");
        through = changes.through;
    }
}

fn must_be_away(error: &Error, etcd: &EtcdCluster) {
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    for at in 0..3 {
        assert!(error.context().contains(&etcd.member(at)), "{error}");
    }
}

/// One of three members may go; with two gone everything says so, in bounded time; back again they
/// have lost nothing, and who watches has missed nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_die_and_come_back() {
    let mut etcd = EtcdCluster::start(3);
    let registry = open(&etcd, "c", WAIT);
    let mut follower = Follower::new(&registry).await;
    write(&registry, "before", "1").await;
    follower.hear(&registry, "before").await;

    // The member that is asked, and watched, dies. What was sent to it may or may not be done.
    let first = registry.shared.members.first();
    etcd.kill(first);
    let started = Instant::now();
    while let Err(error) = registry.commit(put("one is dead", "1")).await {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(started.elapsed() < BOUND, "{error}");
    }
    assert!(registry.get("before").await.unwrap().is_some());
    assert_eq!(registry.list("").await.unwrap().0.len(), 2);
    follower.hear(&registry, "one is dead").await;
    println!("one of three is dead: on after {:?}", started.elapsed());

    let second = (first + 1) % 3;
    etcd.kill(second);
    let asked = Instant::now();
    let (got, listed, committed, changed, alive) = tokio::join!(
        registry.get("before"),
        registry.list(""),
        registry.commit(put("two are dead", "1")),
        async {
            // A question that was asked before the member knew is answered with nothing.
            loop {
                let changes = registry.changes(follower.through).await;
                if changes.is_err() || asked.elapsed() > BOUND {
                    break changes;
                }
            }
        },
        registry.stay_alive(HostId(1)),
    );
    println!("two of three are dead: told after {:?}", asked.elapsed());
    assert!(asked.elapsed() < BOUND, "{:?}", asked.elapsed());
    for error in [got.unwrap_err(), listed.unwrap_err(), changed.unwrap_err(), alive.unwrap_err()] {
        must_be_away(&error, &etcd);
    }
    // It names the one member that was asked, when it may have been done.
    assert_eq!(committed.unwrap_err().kind(), ErrorKind::Unavailable);

    etcd.restart(&[first, second]);
    let back = Instant::now();
    while let Err(error) = registry.commit(put("after", "1")).await {
        assert!(back.elapsed() < BOUND, "{error}");
    }
    follower.hear(&registry, "after").await;
    for key in ["before", "one is dead", "after"] {
        assert!(registry.get(key).await.unwrap().is_some(), "{key} is lost");
        assert!(follower.heard.contains(key), "{key} was missed");
    }
}

fn etcdctl(etcd: &EtcdCluster, arguments: &[&str]) -> String {
    let output = std::process::Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &etcd.member(0)])
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("etcdctl: {error}; `cargo xtask install` installs it"));
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_user_with_the_prefix_and_nothing_else() {
    let etcd = EtcdCluster::start_with(1, "http", &["--auth-token-ttl", "1"]);
    etcdctl(&etcd, &["user", "add", "root:top"]);
    etcdctl(&etcd, &["user", "add", "pannier:secret"]);
    etcdctl(&etcd, &["role", "add", "pannier"]);
    etcdctl(&etcd, &["role", "grant-permission", "pannier", "readwrite", "/p/", "--prefix"]);
    etcdctl(&etcd, &["user", "grant-role", "pannier", "pannier"]);
    etcdctl(&etcd, &["auth", "enable"]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    let as_user = |prefix: &str, password: &str| {
        std::fs::write(&file, password).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let options = format!("user=pannier&password_file={}", file.display());
        let url = format!("{}{prefix}?{options}", etcd.url());
        Etcd::open_with(&url.parse().unwrap(), "c", WAIT).unwrap()
    };
    let registry = as_user("/p", "secret\n");
    let start = write(&registry, "a", "1").await;
    write(&registry, "b", "1").await;
    assert_eq!(registry.changes(start).await.unwrap().entries.len(), 1);
    registry.stay_alive(HostId(1)).await.unwrap();
    assert_eq!(registry.alive().await.unwrap().unwrap().len(), 1);
    for (who, part) in [
        (as_user("/p", "wrong"), "password"),
        (as_user("/q", "secret"), "permission denied"),
        (open(&etcd, "c", WAIT), "user name is empty"),
    ] {
        let asked = Instant::now();
        let error = who.get("a").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.context().contains(part), "{error}");
        assert!(!error.to_string().contains("secret") && !error.to_string().contains("wrong"));
        assert!(asked.elapsed() < BOUND);
    }
    // A token expires: a new one is asked for, and nobody notices.
    tokio::time::sleep(Duration::from_secs(3)).await;
    write(&registry, "c", "1").await;
    assert_eq!(registry.list("").await.unwrap().0.len(), 3);
}

/// An authority, and a certificate and key of it for the loopback; PEM, in files.
fn certificates(directory: &std::path::Path) -> [String; 3] {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let pem = params.signed_by(&key, &issuer).unwrap().pem();
    [("ca.pem", authority_pem), ("cert.pem", pem), ("key.pem", key.serialize_pem())].map(
        |(name, pem)| {
            let path = directory.join(name);
            std::fs::write(&path, pem).unwrap();
            path.to_str().unwrap().to_owned()
        },
    )
}

#[tokio::test]
async fn over_tls_both_sides_prove_who_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let [ca, cert, key] = certificates(directory.path());
    let arguments = ["--cert-file", &cert, "--key-file", &key, "--trusted-ca-file", &ca];
    let arguments = [&arguments[..], &["--client-cert-auth"]].concat();
    let etcd = EtcdCluster::start_with(1, "https", &arguments);
    let at = |query: &str| {
        let url = format!("etcds://{}?{query}", etcd.member(0));
        Etcd::open_with(&url.parse().unwrap(), "c", WAIT).unwrap()
    };
    let registry = at(&format!("ca={ca}&cert={cert}&key={key}"));
    let start = write(&registry, "a", "1").await;
    write(&registry, "b", "1").await;
    assert_eq!(registry.changes(start).await.unwrap().entries.len(), 1);
    let elsewhere = tempfile::tempdir().unwrap();
    let [other_ca, ..] = certificates(elsewhere.path());
    for (who, part) in [
        (at(&format!("ca={ca}")), etcd.member(0)),
        (at(&format!("ca={other_ca}&cert={cert}&key={key}")), "invalid peer certificate".into()),
        (Etcd::open_with(&etcd.url().parse().unwrap(), "c", WAIT).unwrap(), etcd.member(0)),
    ] {
        let error = who.get("a").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.context().contains(&part), "{error}");
    }
}
