use super::*;
use crate::api::types::{Status, VolumeList};
use crate::cli::args::Cli;
use crate::client::{API_SOCKET, Client};
use crate::config::Config;
use crate::output::Printer;
use clap::Parser as _;
use hyper::Method;
use pannier_core::ids::{Epoch, HostId, ObjectHash, Sequence, SiteName, VolumeId};
use pannier_core::record::{Home, PublishedCheckpoint, VolumePath, VolumeRecord};
use pannier_engine::directory::Directory;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

#[test]
fn the_description_has_every_route() {
    let description = Description::openapi();
    let paths: Vec<_> = description.paths.paths.keys().cloned().collect();
    for path in ["/v1/status", "/v1/volumes/{path}", "/v1/moves/{path}", "/v1/data/{path}"] {
        assert!(paths.iter().any(|known| known == path), "{path}: {paths:?}");
    }
    assert_eq!(description.info.title, "Pannier");
}

/// A host in this process, with its API on a socket.
struct Served {
    _dir: tempfile::TempDir,
    client: Client,
    parts: crate::serve::Parts,
    stop: CancellationToken,
}

async fn command(dir: &Path, line: &str) -> Result<(), Failure> {
    let words = std::iter::once("pannier").chain(line.split_whitespace());
    let cli = Cli::try_parse_from(words).unwrap();
    crate::cli::execute(cli.command, Some(dir), &Printer::quiet()).await
}

impl Served {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("host");
        command(&host, "init --site west --name w1 --listen 127.0.0.1:0").await.unwrap();
        let parts = crate::serve::start(&host, &Config::read(&host).unwrap()).await.unwrap();
        parts.settled().await.unwrap();
        let metrics =
            metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
        let state = parts.api_state(&host, metrics, host.join("nbd.sock"), None);
        let socket = std::os::unix::net::UnixListener::bind(host.join(API_SOCKET)).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(serve(socket, state, stop.clone()));
        Self { client: Client::find(Some(&host)), _dir: dir, parts, stop }
    }

    fn dir(&self) -> std::path::PathBuf {
        self._dir.path().join("host")
    }

    /// Runs a command of the CLI and returns why it failed.
    async fn fails(&self, line: &str) -> (String, String) {
        let failure = command(&self.dir(), line).await.expect_err(line);
        (failure.0.kind, failure.0.message)
    }

    async fn works(&self, line: &str) {
        if let Err(failure) = command(&self.dir(), line).await {
            panic!("`{line}`: {failure:?}");
        }
    }

    async fn end(self) {
        self.stop.cancel();
        self.parts.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_list_names_the_sites_that_are_independent_in_the_present_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let registry = pannier_stores::registry::Embedded::open(dir.path().join("registry")).unwrap();
    let directory = Directory::open(dir.path(), std::sync::Arc::new(registry), "boot");
    let home = |epoch, independent| {
        let object = ObjectHash([1; 32]);
        let checkpoint = PublishedCheckpoint { epoch: Epoch(epoch), through: Sequence(1), object };
        Home { checkpoint: Some(checkpoint), independent }
    };
    let homes = [("east", home(3, true)), ("north", home(4, false)), ("west", home(4, true))];
    let path = VolumePath::parse("/v").unwrap();
    let record = VolumeRecord {
        epoch: Epoch(4),
        reserved: Epoch(4),
        homes: homes.map(|(site, home)| (SiteName(site.to_owned()), home)).into(),
        ..VolumeRecord::new(VolumeId(1), path, 4096, HostId(1))
    };
    assert_eq!(convert::entry(&record, &directory).independent_at, ["west"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_from_create_to_delete() {
    let served = Served::start().await;
    served.works("volume create /vms/web --size 8M").await;
    served.works("volume resize vms/web +8M").await;
    served.works("volume qemu /vms/web").await;
    served.works("volume xml /vms/web").await;
    served.works("volume release /vms/web").await;
    let list: VolumeList = served.client.get("/v1/volumes").await.unwrap();
    assert_eq!(list.volumes.len(), 1);
    assert_eq!((list.volumes[0].size_bytes, list.volumes[0].owner.as_str()), (16 << 20, "w1"));
    let status: Status = served.client.get("/v1/status/vms/web").await.unwrap();
    assert_eq!(status.volumes[0].places[0].role, "owner");
    assert!(status.registry.reachable);

    for (line, kind, part) in [
        ("volume create /vms/web --size 8M", "invalid", "already a volume `/vms/web`"),
        ("volume create /b --size 0", "invalid", "at least 512 bytes"),
        ("volume create /b --size 1000", "invalid", "take 1024"),
        ("volume create /b --size 2000T", "invalid", "256 TiB"),
        ("volume show /none", "not_found", "pannier volume list"),
        ("volume resize /vms/web 1M", "invalid", "cannot shrink"),
        ("move /vms/web --to east", "not_found", "sites with hosts are west"),
        ("move /vms/web --to west", "invalid", "at site west already"),
        ("move /vms/web --to west/w2", "not_found", "its hosts are w1"),
        ("move /vms/web --to west/w1", "invalid", "on host w1 already"),
        ("move /vms/web --abort", "invalid", "no change of owner"),
        ("takeover /vms/web --fenced w9", "not_found", "no host `w9`"),
        ("volume export /vms/web /nowhere/at/all", "not_found", "/nowhere/at/all"),
        ("volume import /nowhere/image /c", "not_found", "/nowhere/image"),
    ] {
        let (found, message) = served.fails(line).await;
        assert_eq!(found, kind, "{line}: {message}");
        assert!(message.contains(part), "{line}: {message}");
    }
    served.works("volume delete /vms/web").await;
    assert_eq!(served.fails("volume delete /vms/web").await.0, "not_found");
    let left = std::fs::read_dir(served.dir().join("volumes")).unwrap().count();
    assert_eq!(left, 0, "its files are gone");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_go_in_and_come_out_the_same_and_thin() {
    use std::os::unix::fs::FileExt as _;
    let served = Served::start().await;
    let (image, copy) = (served.dir().join("image"), served.dir().join("copy"));
    let file = std::fs::File::create(&image).unwrap();
    // No whole number of blocks: a volume has whole sectors.
    file.set_len((64 << 20) + 512).unwrap();
    file.write_all_at(&[7; 100_000], 4096).unwrap();
    file.write_all_at(&[0; 1 << 20], 8 << 20).unwrap();
    file.write_all_at(&[9; 512], 64 << 20).unwrap();
    served.works(&format!("volume import {} /disk", image.display())).await;
    served.works(&format!("volume export /disk {}", copy.display())).await;
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&copy).unwrap());
    let blocks = std::fs::metadata(&copy).unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks} sectors: zeroes are not written");
    let (_, message) = served.fails(&format!("volume export /disk {}", copy.display())).await;
    assert!(message.contains("--overwrite"), "{message}");
    served.works(&format!("volume export /disk {} --overwrite", copy.display())).await;

    // A broken stream is refused, and an import that fails leaves nothing behind.
    let url = "/v1/data/disk";
    let cut = futures::stream::iter([bytes::Bytes::copy_from_slice(&extents::header(0, 512))]);
    let failure = served.client.upload(url, cut).await.unwrap_err();
    assert!(failure.0.message.contains("no end"), "{failure:?}");
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_none_are_answered_in_json() {
    let served = Served::start().await;
    let unknown = served.client.get::<()>("/v2/anything").await.unwrap_err();
    assert!(unknown.0.message.contains("/v1/openapi.json"), "{unknown:?}");
    let method = served.client.call::<()>(Method::DELETE, "/v1/status").await.unwrap_err();
    assert!(method.0.message.contains("does not take DELETE"), "{method:?}");
    let body = serde_json::json!({ "path": "/a", "size": 5 });
    let field = served.client.send::<_, ()>(Method::POST, "/v1/volumes", &body).await.unwrap_err();
    assert!(field.0.message.contains("unknown field `size`"), "{field:?}");
    let token = serde_json::json!({ "valid_seconds": 0 });
    let token = served.client.send::<_, ()>(Method::POST, "/v1/tokens", &token).await.unwrap_err();
    assert_eq!(token.0.kind, "invalid");
    served.works("token").await;
    served.end().await;
}
