use super::*;
use bytes::Bytes;
use std::path::Path;

async fn conformance(objects: &dyn Objects) {
    let key = "volumes/a/segments/1.1-1.0.00ff";
    assert_eq!(objects.size(key).await.unwrap(), None);
    assert_eq!(objects.get(key).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(objects.get_range(key, 0..1).await.unwrap_err().kind(), ErrorKind::NotFound);
    objects.delete(key).await.unwrap();

    let bytes = Bytes::from((0..=255u8).cycle().take(10_000).collect::<Vec<_>>());
    objects.put(key, bytes.clone()).await.unwrap();
    objects.put(key, bytes.clone()).await.unwrap();
    assert_eq!(objects.size(key).await.unwrap(), Some(10_000));
    assert_eq!(objects.get(key).await.unwrap(), bytes);
    assert_eq!(objects.get_range(key, 300..5000).await.unwrap(), bytes.slice(300..5000));
    assert_eq!(objects.get_range(key, 9_999..10_000).await.unwrap(), bytes.slice(9_999..));
    assert_eq!(objects.get_range(key, 10_000..10_000).await.unwrap(), Bytes::new());
    for range in [9_000..10_001, 10_000..10_001, 20_000..20_001, 10_001..10_001] {
        let error = objects.get_range(key, range.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{range:?}: {error}");
        assert!(error.context().contains("10000"), "{error}");
    }

    let error = objects.put(key, bytes.slice(1..)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(objects.get(key).await.unwrap(), bytes);

    objects.put("volumes/a/segments/1.1-2.0.00ff", Bytes::new()).await.unwrap();
    objects.put("volumes/b", bytes.slice(..1)).await.unwrap();
    assert_eq!(objects.get("volumes/a/segments/1.1-2.0.00ff").await.unwrap(), Bytes::new());
    let all = ["volumes/a/segments/1.1-1.0.00ff", "volumes/a/segments/1.1-2.0.00ff", "volumes/b"];
    for (prefix, expect) in [
        ("", &all[..]),
        ("volumes/", &all[..]),
        ("volumes/a", &all[..2]),
        ("volumes/a/segments/1.1-2", &all[1..2]),
        ("volumes/c/", &[]),
    ] {
        assert_eq!(objects.list(prefix).await.unwrap(), expect, "{prefix}");
    }
    for bad in ["", "../x", "/etc/passwd", "a/../b"] {
        let error = objects.put(bad, Bytes::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}");
    }
    objects.delete(key).await.unwrap();
    objects.delete(key).await.unwrap();
    assert_eq!(objects.size(key).await.unwrap(), None);
}

fn left_in_incoming(root: &Path) -> usize {
    std::fs::read_dir(root.join(".incoming")).unwrap().count()
}

#[tokio::test]
async fn all_stores_conform() {
    let directory = tempfile::tempdir().unwrap();
    let bare = directory.path().join("deep/er/store");
    conformance(&*open(bare.to_str().unwrap()).unwrap()).await;
    assert_eq!(left_in_incoming(&bare), 0);
    let by_url = directory.path().join("by url");
    let url = ::url::Url::from_file_path(&by_url).unwrap();
    conformance(&*open(url.as_str()).unwrap()).await;
    assert_eq!(left_in_incoming(&by_url), 0);
    conformance(&*open("memory:///").unwrap()).await;
    conformance(&*open("memory:///some/prefix").unwrap()).await;
    // The crate's own local store stands in for a service: other semantics, same answers.
    let local = tempfile::tempdir().unwrap();
    let url = ::url::Url::from_directory_path(local.path()).unwrap();
    conformance(&UrlObjects::open(&url).unwrap()).await;
}

#[test]
fn a_location_that_is_none_is_named() {
    for location in ["gopher://host/x", "s3://", "://", "file://host/path"] {
        let error = open(location).map(|_opened| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{location}");
        assert!(error.context().contains("object store"), "{error}");
    }
}

#[tokio::test]
async fn a_file_in_the_way_is_an_error_not_a_panic() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, b"x").unwrap();
    assert!(DirectoryObjects::open(&file).is_err());
    let objects = DirectoryObjects::open(directory.path()).unwrap();
    assert!(objects.put("file/below", Bytes::new()).await.is_err());
    assert_eq!(objects.size("file/below").await.unwrap(), None);
    objects.delete("file/below").await.unwrap();
}

#[tokio::test]
async fn leftovers_go_and_live_writers_stay() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    DirectoryObjects::open(root).unwrap();
    std::fs::write(root.join(".incoming/dead"), b"half").unwrap();
    let live = std::fs::File::create(root.join(".incoming/live")).unwrap();
    rustix::fs::flock(&live, rustix::fs::FlockOperation::LockExclusive).unwrap();
    DirectoryObjects::open(root).unwrap();
    assert!(!root.join(".incoming/dead").exists());
    assert!(root.join(".incoming/live").exists());
    drop(live);
    DirectoryObjects::open(root).unwrap();
    assert_eq!(left_in_incoming(root), 0);
}

#[tokio::test]
async fn concurrent_puts_of_one_key_agree() {
    let directory = tempfile::tempdir().unwrap();
    let objects = DirectoryObjects::open(directory.path()).unwrap();
    let bytes = Bytes::from(vec![7; 100_000]);
    let puts = (0..16).map(|_| objects.put("a/b/c/d", bytes.clone()));
    for outcome in futures::future::join_all(puts).await {
        outcome.unwrap();
    }
    assert_eq!(objects.get("a/b/c/d").await.unwrap(), bytes);
    assert_eq!(left_in_incoming(directory.path()), 0);
}

#[tokio::test]
async fn a_truncated_object_is_corrupt_and_can_be_stored_again() {
    let directory = tempfile::tempdir().unwrap();
    let objects = DirectoryObjects::open(directory.path()).unwrap();
    objects.put("a/b", Bytes::from(vec![1; 5000])).await.unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(directory.path().join("a/b"))
        .unwrap()
        .set_len(4096)
        .unwrap();
    let error = objects.get_range("a/b", 4000..5000).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let error = objects.put("a/b", Bytes::from(vec![1; 5000])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    objects.delete("a/b").await.unwrap();
    objects.put("a/b", Bytes::from(vec![1; 5000])).await.unwrap();
    assert_eq!(objects.get("a/b").await.unwrap().len(), 5000);
}

/// Where the inner test finds its small file system.
const SMALL: &str = "PANNIER_TEST_SMALL_DIRECTORY";

/// Runs the test below on a file system of 256 KiB, in a mount namespace of its own, so that no
/// privilege is needed; where namespaces are not allowed it says so and passes.
#[test]
fn a_full_disk_is_no_space_and_costs_nothing() {
    let unshare = |arguments: &[&std::ffi::OsStr], small: &Path| {
        std::process::Command::new("unshare").arg("-rm").args(arguments).env(SMALL, small).output()
    };
    let directory = tempfile::tempdir().unwrap();
    let small = directory.path();
    if !unshare(&["true".as_ref()], small).is_ok_and(|run| run.status.success()) {
        eprintln!("skipped: `unshare -rm` does not work here");
        return;
    }
    let script = r#"mount -t tmpfs -o size=256k none "$1" &&
        exec "$0" --exact --ignored objects::tests::on_a_small_disk"#;
    let exe = std::env::current_exe().unwrap();
    let run = unshare(
        &["sh".as_ref(), "-c".as_ref(), script.as_ref(), exe.as_ref(), small.as_ref()],
        small,
    )
    .unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
#[ignore = "runs inside `a_full_disk_is_no_space_and_costs_nothing`"]
async fn on_a_small_disk() {
    let Some(small) = std::env::var_os(SMALL) else { return };
    let root = Path::new(&small).join("store");
    let objects = DirectoryObjects::open(&root).unwrap();
    objects.put("a/small", Bytes::from(vec![1; 10_000])).await.unwrap();
    let error = objects.put("a/big", Bytes::from(vec![2; 400_000])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(error.context().contains("a/big"), "{error}");
    // What was written of it is gone, what was there stays, and what fits is taken.
    assert_eq!(left_in_incoming(&root), 0);
    assert_eq!(objects.list("").await.unwrap(), ["a/small"]);
    objects.put("a/fits", Bytes::from(vec![3; 100_000])).await.unwrap();
    assert_eq!(objects.get("a/fits").await.unwrap().len(), 100_000);
}

#[tokio::test]
async fn a_store_over_tls_that_is_away_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/bucket?timeout=1s", listener.local_addr().unwrap());
    drop(listener);
    let objects = UrlObjects::open(&url.parse().unwrap()).unwrap();
    let got = tokio::time::timeout(std::time::Duration::from_secs(60), objects.get("a/b")).await;
    assert_eq!(got.expect("within a minute").unwrap_err().kind(), ErrorKind::Unavailable);
}
