//! Members of etcd as child processes, on ports of the loopback that are free, in a directory that
//! goes with them. The tests of `pannier-stores` include this file, too.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a member may take until it serves, on a machine that builds other things meanwhile.
const READY_MAX: Duration = Duration::from_secs(60);

/// A cluster of etcd; its members are ended with it.
pub struct EtcdCluster {
    members: Vec<Member>,
    /// Dropped last.
    base: TempDir,
}

struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
}

impl EtcdCluster {
    /// So many members, that serve.
    ///
    /// # Panics
    /// When etcd is not installed, or does not get ready.
    #[must_use]
    pub fn start(members: usize) -> Self {
        Self::start_with(members, "http", &[])
    }

    /// The same, with `scheme` towards clients and more arguments.
    ///
    /// # Panics
    /// When etcd is not installed, or does not get ready.
    #[must_use]
    pub fn start_with(members: usize, scheme: &str, arguments: &[&str]) -> Self {
        let base = tempfile::Builder::new().prefix("pannier-etcd-").tempdir().expect("a directory");
        // Held until all are drawn, so that no port is drawn twice.
        let ports: Vec<_> = (0..members * 2)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        let port = |at: usize| ports[at].local_addr().expect("its address").port();
        let members = (0..members).map(|at| Member {
            name: format!("m{at}"),
            client_port: port(at * 2),
            peer_port: port(at * 2 + 1),
            process: None,
        });
        let mut cluster = Self { members: members.collect(), base };
        drop(ports);
        for at in 0..cluster.members.len() {
            cluster.spawn(at, scheme, arguments);
        }
        for at in 0..cluster.members.len() {
            cluster.wait_ready(at, scheme == "http");
        }
        cluster
    }

    /// How a client reaches it: `etcd://...`.
    #[must_use]
    pub fn url(&self) -> String {
        let members: Vec<_> = (0..self.members.len()).map(|at| self.member(at)).collect();
        format!("etcd://{}", members.join(","))
    }

    /// `host:port` of a member.
    #[must_use]
    pub fn member(&self, at: usize) -> String {
        format!("127.0.0.1:{}", self.members[at].client_port)
    }

    /// `kill -9` of a member, waited for.
    pub fn kill(&mut self, at: usize) {
        if let Some(mut process) = self.members[at].process.take() {
            // It may have ended by itself.
            drop(process.kill());
            drop(process.wait());
        }
    }

    /// Sends a member a signal, such as `STOP` or `CONT`.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, at: usize, name: &str) {
        let pid = self.members[at].process.as_ref().expect("it runs").id();
        let line = format!("kill -{name} {pid}");
        let sent = Command::new("sh").args(["-c", &line]).status().expect("a shell");
        assert!(sent.success(), "{line}: {sent}");
    }

    /// Starts members again that were killed, on what they had written, until all serve.
    ///
    /// # Panics
    /// When they do not get ready.
    pub fn restart(&mut self, members: &[usize]) {
        for at in members {
            self.spawn(*at, "http", &[]);
        }
        for at in members {
            self.wait_ready(*at, true);
        }
    }

    fn log(&self, at: usize) -> PathBuf {
        self.base.path().join(format!("{}.log", self.members[at].name))
    }

    fn spawn(&mut self, at: usize, scheme: &str, arguments: &[&str]) {
        let peer = |member: &Member| format!("http://127.0.0.1:{}", member.peer_port);
        let all: Vec<_> =
            self.members.iter().map(|one| format!("{}={}", one.name, peer(one))).collect();
        let member = &self.members[at];
        let client = format!("{scheme}://127.0.0.1:{}", member.client_port);
        let log = std::fs::File::options().create(true).append(true).open(self.log(at));
        let log = log.expect("the log");
        let process = Command::new("etcd")
            .args(["--name", &member.name, "--data-dir"])
            .arg(self.base.path().join(&member.name))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer(member)])
            .args(["--initial-advertise-peer-urls", &peer(member)])
            .args(["--initial-cluster", &all.join(",")])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("etcd: {error}; `cargo xtask install` installs it"));
        self.members[at].process = Some(process);
    }

    /// Waits until a member says that it is in health; only whether it listens, when it is not to
    /// be asked in plain text.
    fn wait_ready(&self, at: usize, plain: bool) {
        let deadline = Instant::now() + READY_MAX;
        loop {
            let ready = TcpStream::connect(self.member(at)).and_then(|mut stream| {
                if !plain {
                    return Ok(true);
                }
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                Ok(answer.contains(r#""health":"true""#))
            });
            if matches!(ready, Ok(true)) {
                return;
            }
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(self.log(at)).unwrap_or_default();
                panic!(
                    "etcd {} is not ready after {READY_MAX:?}: {ready:?}\n{log}",
                    self.member(at)
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        for at in 0..self.members.len() {
            self.kill(at);
        }
    }
}
