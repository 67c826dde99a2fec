use super::etcd::testing::{EtcdCluster, Rebased};
use super::*;
use crate::cluster::testing::TestCluster;
use crate::limits::{KEY_BYTES_MAX, TRANSACTION_KEYS_MAX, VALUE_BYTES_MAX};
use crate::peer::Transport;
use crate::peer::testing::{Relay, bind};
use bytes::Bytes;
use pannier_core::ids::HostId;
use pannier_engine::error::ErrorKind;
use pannier_engine::port::{Changes, Commit, KeyChange, Peers, Registry, Revision, Transaction};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn put(key: &str, value: &str) -> KeyChange {
    KeyChange { key: key.to_owned(), value: Some(Bytes::copy_from_slice(value.as_bytes())) }
}

fn delete(key: &str) -> KeyChange {
    KeyChange { key: key.to_owned(), value: None }
}

fn when(expect: &[(&str, u64)], changes: Vec<KeyChange>) -> Transaction {
    let expect = expect.iter().map(|(key, at)| ((*key).to_owned(), Revision(*at))).collect();
    Transaction { expect, changes }
}

fn done(commit: Commit) -> u64 {
    match commit {
        Commit::Done(revision) => revision.0,
        Commit::Conflict => panic!("conflict"),
    }
}

/// Changes as text: `key=value@revision` or `key-`.
fn said(changes: &Changes) -> String {
    let mut said = String::new();
    for (key, value) in &changes.entries {
        match value {
            Some(value) => {
                let text = String::from_utf8_lossy(&value.value);
                said += &format!("{key}={text}@{} ", value.revision.0);
            }
            None => said += &format!("{key}- "),
        }
    }
    format!("{said}|{}{}", changes.through.0, if changes.complete { " complete" } else { "" })
}

const WAIT: Duration = Duration::from_millis(300);

fn open(directory: &tempfile::TempDir, history_max: u64) -> Embedded {
    Embedded::open_with(directory.path().join("registry.redb"), history_max, WAIT).unwrap()
}

/// A registry on host 1 and its client on host 2.
struct Served {
    _cluster: TestCluster,
    host: Transport,
    client: Transport,
    remote: Remote,
}

fn serve(registry: Embedded) -> Served {
    let cluster = TestCluster::new();
    let (host, client) = (bind(&cluster.host(1)), bind(&cluster.host(2)));
    host.serve_registry(Service::new(Arc::new(registry)));
    client.learn(HostId(1), &host.address().to_string());
    let remote = Remote::new(client.clone(), HostId(1));
    Served { _cluster: cluster, host, client, remote }
}

/// Asks for changes until there are some.
async fn next_changes(registry: &dyn Registry, after: Revision) -> Changes {
    let asked = Instant::now();
    loop {
        assert!(asked.elapsed() < Duration::from_secs(30), "no changes after {after:?}");
        let changes = registry.changes(after).await.unwrap();
        if changes.complete || !changes.entries.is_empty() {
            return changes;
        }
    }
}

/// What every registry does. `forget` leaves it a history of 4 revisions.
async fn conformance<F: Future<Output = ()>>(
    registry: &dyn Registry,
    forget: impl Fn(Revision) -> F,
) {
    // Nothing there.
    assert_eq!(registry.get("a").await.unwrap(), None);
    assert_eq!(registry.list("").await.unwrap(), (Vec::new(), Revision(0)));

    // Compare and swap.
    let first = when(&[("a/1", 0)], vec![put("a/1", "x"), put("a/2", "y")]);
    assert_eq!(done(registry.commit(first.clone()).await.unwrap()), 1);
    assert_eq!(registry.commit(first).await.unwrap(), Commit::Conflict);
    let asked = Instant::now();
    assert_eq!(said(&registry.changes(Revision(1)).await.unwrap()), "|1");
    assert!(asked.elapsed() >= WAIT);
    let value = registry.get("a/1").await.unwrap().unwrap();
    assert_eq!((value.revision, &value.value[..]), (Revision(1), &b"x"[..]));
    let half = when(&[("a/1", 1), ("a/2", 7)], vec![put("a/1", "no")]);
    assert_eq!(registry.commit(half).await.unwrap(), Commit::Conflict);
    let swap = when(&[("a/1", 1), ("b", 0)], vec![put("a/1", ""), put("b", "z")]);
    assert_eq!(done(registry.commit(swap).await.unwrap()), 2);
    assert_eq!(registry.get("a/1").await.unwrap().unwrap().value, Bytes::new());
    // A check without a change is no revision.
    assert_eq!(done(registry.commit(when(&[("b", 2)], vec![])).await.unwrap()), 2);
    assert_eq!(registry.commit(when(&[("b", 1)], vec![])).await.unwrap(), Commit::Conflict);

    // Delete and make anew: the revision does not come again.
    let gone = when(&[("a/2", 1)], vec![delete("a/2")]);
    assert_eq!(done(registry.commit(gone).await.unwrap()), 3);
    assert_eq!(registry.get("a/2").await.unwrap(), None);
    assert_eq!(done(registry.commit(when(&[("a/2", 0)], vec![put("a/2", "n")])).await.unwrap()), 4);

    // Lists are by prefix, in order.
    let (all, at) = registry.list("").await.unwrap();
    assert_eq!(at, Revision(4));
    let keys: Vec<_> = all.iter().map(|(key, value)| (key.as_str(), value.revision.0)).collect();
    assert_eq!(keys, [("a/1", 2), ("a/2", 4), ("b", 2)]);
    assert_eq!(registry.list("a/").await.unwrap().0.len(), 2);
    assert_eq!(registry.list("c").await.unwrap().0.len(), 0);

    // Changes are the newest values since, deletions too.
    assert_eq!(done(registry.commit(when(&[], vec![delete("b")])).await.unwrap()), 5);
    assert_eq!(done(registry.commit(when(&[], vec![put("c", "w")])).await.unwrap()), 6);
    forget(Revision(2)).await;
    for (after, expect) in [
        (5, "c=w@6 |6"),
        (4, "b- c=w@6 |6"),
        (3, "a/2=n@4 b- c=w@6 |6"),
        (2, "a/2=n@4 b- c=w@6 |6"),
        // That history is gone, or has never been.
        (1, "a/1=@2 a/2=n@4 c=w@6 |6 complete"),
        (0, "a/1=@2 a/2=n@4 c=w@6 |6 complete"),
        (99, "a/1=@2 a/2=n@4 c=w@6 |6 complete"),
    ] {
        let changes = next_changes(registry, Revision(after)).await;
        assert_eq!(said(&changes), expect, "{after}");
    }

    bounds(registry).await;
    waiting(registry).await;
}

/// What is too much is `Invalid` and changes nothing; what is just not too much is done.
async fn bounds(registry: &dyn Registry) {
    let many = |count| (0..count).map(|at| put(&format!("m/{at}"), "")).collect::<Vec<_>>();
    let big = |bytes: usize| put("big", &"v".repeat(bytes));
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    for (what, transaction) in [
        ("empty key", when(&[], vec![put("", "")])),
        ("long key", when(&[], vec![put(&long, "")])),
        ("long expected key", when(&[(&long, 0)], vec![])),
        ("big value", when(&[], vec![big(VALUE_BYTES_MAX + 1)])),
        ("many keys", when(&[], many(TRANSACTION_KEYS_MAX + 1))),
        ("twice", when(&[], vec![put("d", "1"), put("d", "2")])),
        (
            "many bytes",
            when(&[], (0..4).map(|at| put(&format!("x{at}"), &"v".repeat(200_000))).collect()),
        ),
    ] {
        let error = registry.commit(transaction).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{what}: {error}");
    }
    assert_eq!(registry.list("").await.unwrap().1, Revision(6));
    assert_eq!(done(registry.commit(when(&[], many(TRANSACTION_KEYS_MAX))).await.unwrap()), 7);
    let all = many(TRANSACTION_KEYS_MAX).into_iter().map(|change| delete(&change.key)).collect();
    assert_eq!(done(registry.commit(when(&[], all)).await.unwrap()), 8);
    assert_eq!(done(registry.commit(when(&[], vec![big(VALUE_BYTES_MAX)])).await.unwrap()), 9);
    assert_eq!(registry.get("big").await.unwrap().unwrap().value.len(), VALUE_BYTES_MAX);
}

/// A question for changes is answered when there is one, to everybody who asks.
async fn waiting(registry: &dyn Registry) {
    let ask = || next_changes(registry, Revision(9));
    let commit = async {
        tokio::time::sleep(WAIT / 3).await;
        registry.commit(when(&[], vec![put("w", "1")])).await
    };
    let (one, two, committed) = tokio::join!(ask(), ask(), commit);
    assert_eq!(done(committed.unwrap()), 10);
    assert_eq!(said(&one), "w=1@10 |10");
    assert_eq!(said(&two), "w=1@10 |10");
}

/// Its history is short by itself.
async fn forgets(_before: Revision) {}

#[tokio::test]
async fn the_embedded_registry_conforms() {
    let directory = tempfile::tempdir().unwrap();
    conformance(&open(&directory, 4), forgets).await;
}

#[tokio::test]
async fn the_remote_registry_conforms() {
    let directory = tempfile::tempdir().unwrap();
    conformance(&serve(open(&directory, 4)).remote, forgets).await;
}

#[tokio::test]
async fn etcd_conforms() {
    let etcd = EtcdCluster::start(1);
    let registry = Rebased::new(etcd::testing::open(&etcd, "c", WAIT)).await;
    let forget = |through: Revision| {
        // What is compacted is gone, but for the last change of what is there.
        etcd::testing::compact(&registry.registry, Revision(through.0 + registry.base + 1))
    };
    conformance(&registry, forget).await;
}

/// Eight tasks add up a number by swaps, through two ways to one registry.
async fn swaps_lose_nothing(registries: [Arc<dyn Registry>; 2]) {
    let adders = (0..8).map(|at| {
        let registry = Arc::clone(&registries[at % 2]);
        tokio::spawn(async move {
            let mut won = Vec::new();
            while won.len() < 10 {
                let old = registry.get("n").await.unwrap();
                let at = old.as_ref().map_or(0, |old| old.revision.0);
                let number: u64 =
                    old.map_or(0, |old| String::from_utf8_lossy(&old.value).parse().unwrap());
                let add = when(&[("n", at)], vec![put("n", &(number + 1).to_string())]);
                if let Commit::Done(revision) = registry.commit(add).await.unwrap() {
                    won.push(revision.0);
                }
            }
            won
        })
    });
    let mut won = Vec::new();
    for adder in adders.collect::<Vec<_>>() {
        won.extend(adder.await.unwrap());
    }
    won.sort_unstable();
    assert_eq!(won, (1..=80).collect::<Vec<_>>(), "one wins per revision");
    let end = registries[0].get("n").await.unwrap().unwrap();
    assert_eq!((&end.value[..], end.revision), (&b"80"[..], Revision(80)));
}

#[tokio::test]
async fn concurrent_swaps_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let embedded = open(&directory, 1000);
    let served = serve(embedded.clone());
    swaps_lose_nothing([Arc::new(embedded), Arc::new(served.remote.clone())]).await;
}

#[tokio::test]
async fn concurrent_swaps_in_etcd_lose_nothing() {
    let etcd = EtcdCluster::start(3);
    let one = Rebased::new(etcd::testing::open(&etcd, "c", WAIT)).await;
    let two = Rebased::new(etcd::testing::open(&etcd, "c", WAIT)).await;
    swaps_lose_nothing([Arc::new(one), Arc::new(two)]).await;
}

#[tokio::test]
async fn what_is_committed_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let registry = open(&directory, 4);
    for at in 0..6 {
        registry.commit(when(&[], vec![put(&format!("k{at}"), "v")])).await.unwrap();
    }
    // Another process (here: another handle) is kept out.
    let path = directory.path().join("registry.redb");
    let error = Embedded::open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.context().contains("another process"), "{error}");
    // A copy of the file as it is now is what a power loss leaves: commits were synced.
    let crashed = tempfile::tempdir().unwrap();
    std::fs::copy(&path, crashed.path().join("registry.redb")).unwrap();
    drop(registry);
    for directory in [&directory, &crashed] {
        let registry = open(directory, 4);
        let (all, at) = registry.list("").await.unwrap();
        assert_eq!((all.len(), at), (6, Revision(6)));
        assert_eq!(said(&registry.changes(Revision(5)).await.unwrap()), "k5=v@6 |6");
        assert!(registry.changes(Revision(1)).await.unwrap().complete);
        assert_eq!(done(registry.commit(when(&[], vec![put("n", "v")])).await.unwrap()), 7);
    }
}

#[test]
fn a_file_that_is_no_registry_is_named() {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in [("text", &b"hello"[..]), ("zeroes", &[0; 65_536][..])] {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = Embedded::open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
        assert!(error.context().contains(name), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{name} was written to");
    }
    let nowhere = directory.path().join("no/such/directory");
    assert_ne!(Embedded::open(nowhere).unwrap_err().kind(), ErrorKind::Internal);
}

#[tokio::test]
async fn a_large_registry_is_listed_by_pages() {
    let directory = tempfile::tempdir().unwrap();
    let embedded = open(&directory, 100);
    let value = "v".repeat(200_000);
    for at in 0..30 {
        embedded.commit(when(&[], vec![put(&format!("p/{at:02}"), &value)])).await.unwrap();
    }
    let served = serve(embedded.clone());
    let (all, at) = served.remote.list("p/").await.unwrap();
    assert_eq!((all, at), embedded.list("p/").await.unwrap());
    // Too many bytes of changes for one answer are a complete answer.
    let changes = served.remote.changes(Revision(1)).await.unwrap();
    assert!(changes.complete);
    assert_eq!((changes.entries.len(), changes.through), (30, Revision(30)));
    let changes = served.remote.changes(Revision(28)).await.unwrap();
    assert_eq!((changes.entries.len(), changes.complete), (2, false));
}

#[tokio::test]
async fn a_registry_that_is_away_says_so_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let served = serve(open(&directory, 100));
    let relay = Relay::start(served.host.address()).await;
    served.client.learn(HostId(1), &relay.address.to_string());
    served.remote.commit(when(&[], vec![put("a", "1")])).await.unwrap();
    relay.cut(true);
    let asked = Instant::now();
    let (got, changed, committed) = tokio::join!(
        served.remote.get("a"),
        served.remote.changes(Revision(1)),
        served.remote.commit(when(&[], vec![put("a", "2")])),
    );
    for error in [got.unwrap_err(), changed.unwrap_err(), committed.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    relay.cut(false);
    let back = Instant::now();
    while served.remote.get("a").await.is_err() {
        assert!(back.elapsed() < Duration::from_secs(5));
    }
}

mod model {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Clone)]
    struct Step {
        expect: Vec<(u8, bool)>,
        changes: BTreeMap<u8, Option<u8>>,
    }

    fn step() -> impl Strategy<Value = Step> {
        let expect = proptest::collection::vec((0..4u8, proptest::bool::weighted(0.8)), 0..3);
        let changes =
            proptest::collection::btree_map(0..4u8, proptest::option::of(any::<u8>()), 0..3);
        (expect, changes).prop_map(|(expect, changes)| Step { expect, changes })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Against a map with revisions; a follower of `changes` always arrives at the same map.
        #[test]
        fn embedded_is_a_map_with_revisions(
            steps in proptest::collection::vec(step(), 1..24),
            history_max in 1..6u64,
            follow_every in 1..5usize,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let directory = tempfile::tempdir().unwrap();
                let registry = open(&directory, history_max);
                let mut model: BTreeMap<String, (u64, Vec<u8>)> = BTreeMap::new();
                let mut revision = 0;
                let mut followed: BTreeMap<String, (u64, Vec<u8>)> = BTreeMap::new();
                let mut through = Revision(0);
                for (at, step) in steps.into_iter().enumerate() {
                    let found = |key: &str| model.get(key).map_or(0, |value| value.0);
                    let expect: Vec<_> = step.expect.iter().map(|(key, right)| {
                        let key = key.to_string();
                        let at = found(&key) + u64::from(!right);
                        (key, Revision(at))
                    }).collect();
                    let holds = expect.iter().all(|(key, at)| found(key) == at.0);
                    let changes: Vec<_> = step.changes.iter().map(|(key, value)| KeyChange {
                        key: key.to_string(),
                        value: value.map(|byte| Bytes::from(vec![byte])),
                    }).collect();
                    let commit =
                        registry.commit(Transaction { expect, changes: changes.clone() }).await;
                    if !holds {
                        assert_eq!(commit.unwrap(), Commit::Conflict);
                        continue;
                    }
                    revision += u64::from(!changes.is_empty());
                    assert_eq!(commit.unwrap(), Commit::Done(Revision(revision)));
                    for change in changes {
                        match change.value {
                            Some(value) => {
                                model.insert(change.key, (revision, value.to_vec()));
                            }
                            None => {
                                model.remove(&change.key);
                            }
                        }
                    }
                    if at % follow_every == 0 && through.0 < revision {
                        let changes = registry.changes(through).await.unwrap();
                        assert!(changes.complete || revision - through.0 <= history_max);
                        if changes.complete {
                            followed.clear();
                        }
                        for (key, value) in changes.entries {
                            match value {
                                Some(value) => {
                                    let value = (value.revision.0, value.value.to_vec());
                                    followed.insert(key, value);
                                }
                                None => {
                                    followed.remove(&key);
                                }
                            }
                        }
                        through = changes.through;
                        assert_eq!(through.0, revision);
                        assert_eq!(followed, model);
                    }
                }
            });
        }
    }
}
