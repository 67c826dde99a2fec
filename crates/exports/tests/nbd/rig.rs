//! A server on a unix socket and on TCP, in a directory that goes away with it.

use crate::device::{Disk, Disks};
use pannier_exports::nbd::{Server, limits};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) struct Rig {
    pub(crate) runtime: Runtime,
    pub(crate) directory: TempDir,
    pub(crate) socket: PathBuf,
    pub(crate) address: SocketAddr,
    pub(crate) disks: Vec<Arc<Disk>>,
    pub(crate) shutdown: CancellationToken,
    serving: Option<JoinHandle<()>>,
}

impl Rig {
    pub(crate) fn new(disks: Vec<Disk>) -> Self {
        Self::with(disks, limits::HANDSHAKE_TIME_MAX)
    }

    pub(crate) fn with(disks: Vec<Disk>, handshake_time_max: Duration) -> Self {
        let runtime = Runtime::new().unwrap();
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("nbd.sock");
        let unix = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let disks: Vec<Arc<Disk>> = disks.into_iter().map(Arc::new).collect();
        let server =
            Server::new(Arc::new(Disks(disks.clone()))).with_handshake_time_max(handshake_time_max);
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let serving = runtime.spawn(async move {
            server.serve(vec![unix.into(), tcp.into()], token).await.unwrap();
        });
        Self { runtime, directory, socket, address, disks, shutdown, serving: Some(serving) }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    pub(crate) fn handles(&self) -> usize {
        let handles = self.disks.iter().map(|disk| &disk.handles);
        handles.map(|count| count.load(std::sync::atomic::Ordering::SeqCst)).sum()
    }

    /// Waits until every connection has let its device go.
    pub(crate) fn settle(&self) {
        for _ in 0..500 {
            if self.handles() == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{} device handles are still held", self.handles());
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(serving) = self.serving.take()
            && !std::thread::panicking()
        {
            self.runtime.block_on(serving).unwrap();
            assert_eq!(self.handles(), 0, "a device outlived the server");
        }
    }
}

/// Runs a program to its successful end and returns what it printed.
pub(crate) fn run(directory: &Path, package: &str, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; install the package {package}"));
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{text}", output.status);
    text
}
