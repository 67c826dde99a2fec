//! Hosts of a cluster as separate processes.

use crate::clients::{Finished, run};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a daemon may take until it is ready, and until it has stopped. A machine that builds
/// other things meanwhile is slow.
const READY_MAX: Duration = Duration::from_secs(30);
const STOP_MAX: Duration = Duration::from_secs(30);

/// How long a command of the CLI may take, unless a test says otherwise.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// The `pannier` binary that was built together with this test, or the one that
/// `PANNIER_E2E_BINARY` names.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("PANNIER_E2E_BINARY") {
        return path.into();
    }
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test.ancestors().nth(2).expect("a test lies in <target>/<profile>/deps");
    let path = profile.join("pannier");
    assert!(
        path.exists(),
        "{} is not built: run `cargo build --workspace --bins --tests`",
        path.display()
    );
    path
}

/// A UDP port that is free now, on the loopback.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_udp_address() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free UDP port");
    socket.local_addr().expect("its address")
}

/// A host: its directory, and its daemon while that runs.
pub struct Host {
    /// Its name in the cluster.
    pub name: String,
    /// Its site.
    pub site: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Where its peers reach it.
    pub address: SocketAddr,
    serve_arguments: Vec<String>,
    log: PathBuf,
    daemon: Option<Child>,
    expected: Vec<String>,
}

impl Host {
    fn new(base: &Path, name: &str, site: &str) -> Self {
        Self {
            name: name.to_owned(),
            site: site.to_owned(),
            dir: base.join(name),
            address: free_udp_address(),
            serve_arguments: Vec::new(),
            log: base.join(format!("{name}.log")),
            daemon: None,
            expected: Vec::new(),
        }
    }

    /// A host that is no part of a cluster yet.
    #[must_use]
    pub fn unborn(base: &Path, name: &str, site: &str) -> Self {
        Self::new(base, name, site)
    }

    /// Makes it the first host of a new cluster, which its peers reach at `advertised` when that is
    /// given.
    pub fn init(&self, advertised: Option<SocketAddr>) {
        self.born(&["init"], advertised);
    }

    /// The same, with the cluster's registry in etcd.
    pub fn init_on(&self, registry: &str, advertised: Option<SocketAddr>) {
        self.born(&["init", "--registry", registry], advertised);
    }

    /// Makes it a host of a cluster.
    pub fn join(&self, token: &str, advertised: Option<SocketAddr>) {
        self.born(&["join", "--token", token], advertised);
    }

    fn born(&self, command: &[&str], advertised: Option<SocketAddr>) {
        let (listen, advertised) = (self.address.to_string(), advertised.map(|at| at.to_string()));
        let identity = ["--site", &self.site, "--name", &self.name, "--listen", &listen];
        let mut arguments = [command, &identity[..]].concat();
        if let Some(advertised) = &advertised {
            arguments.extend(["--advertise", advertised]);
        }
        self.cli(&arguments);
    }

    /// A token for one more host.
    #[must_use]
    pub fn token(&self) -> String {
        let answer = self.cli_json(&["token"]);
        answer["token"].as_str().expect("a token").to_owned()
    }

    /// Gives `serve` more arguments from its next start on.
    pub fn serve_with(&mut self, arguments: &[&str]) {
        self.serve_arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    }

    /// Reaches a peer at another address than the registered one, from the next start on.
    pub fn reach(&mut self, peer: &str, at: SocketAddr) {
        self.serve_with(&["--peer", &format!("{peer}={at}")]);
    }

    /// Lines of the log that contain this are no failure.
    pub fn expect_log(&mut self, text: &str) {
        self.expected.push(text.to_owned());
    }

    /// Starts the daemon and waits until it is ready.
    ///
    /// # Panics
    /// When it does not get ready in time.
    pub fn start(&mut self) {
        let started = Instant::now();
        if let Err(failure) = self.try_start() {
            let after = started.elapsed();
            panic!("{} is not ready after {after:?}: {failure}\n{}", self.name, self.log_tail());
        }
    }

    /// Starts the daemon and waits until it is ready, or tells why not.
    ///
    /// # Errors
    /// When it ends, or does not get ready in time.
    pub fn try_start(&mut self) -> Result<(), String> {
        assert!(self.daemon.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).expect("the log file");
        let mut daemon = Command::new(binary())
            .arg("serve")
            .arg("--dir")
            .arg(&self.dir)
            .args(&self.serve_arguments)
            // For whoever looks for the cause of a failure; the log's end is printed with it.
            .args(std::env::var("PANNIER_E2E_LOG").iter().flat_map(|level| ["--log-level", level]))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the daemon starts");
        let stdout = daemon.stdout.take().expect("it is piped");
        let (sender, ready) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.starts_with("READY") {
                    // Nobody waits any more when the wait has timed out.
                    sender.send(()).ok();
                }
            }
        });
        self.daemon = Some(daemon);
        match ready.recv_timeout(READY_MAX) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.kill9();
                Err(error.to_string())
            }
        }
    }

    /// The daemon's process id.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").id()
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // It may have ended by itself.
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }

    /// SIGTERM, and waits until it has stopped by itself.
    ///
    /// # Panics
    /// When it does not stop in time, or fails.
    pub fn stop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        self::signal(daemon.id(), libc::SIGTERM);
        let deadline = Instant::now() + STOP_MAX;
        loop {
            if let Some(status) = daemon.try_wait().expect("its state") {
                assert!(status.success(), "{} ended with {status}\n{}", self.name, self.log_tail());
                return;
            }
            if Instant::now() > deadline {
                drop(daemon.kill());
                drop(daemon.wait());
                panic!("{} does not stop within {STOP_MAX:?}\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal to the daemon.
    pub fn signal(&self, signal: libc::c_int) {
        self::signal(self.pid(), signal);
    }

    /// Runs a command of the CLI against this host.
    ///
    /// # Panics
    /// When it fails.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let finished = self.try_cli(arguments, COMMAND_MAX);
        let line = arguments.join(" ");
        assert!(finished.success, "pannier {line}: {}\n{}", finished.stderr, self.log_tail());
        finished.stdout
    }

    /// Runs a command that must fail, and returns what it says.
    ///
    /// # Panics
    /// When it succeeds.
    pub fn cli_fails(&self, arguments: &[&str]) -> String {
        let finished = self.try_cli(arguments, COMMAND_MAX);
        let line = arguments.join(" ");
        assert!(!finished.success, "pannier {line} succeeded: {}", finished.stdout);
        finished.stderr
    }

    /// Runs a command, bounded in time.
    ///
    /// # Panics
    /// When it does not end in time.
    #[must_use]
    pub fn try_cli(&self, arguments: &[&str], at_most: Duration) -> Finished {
        let dir = self.dir.to_str().expect("a path in UTF-8");
        let binary = binary();
        let all: Vec<&str> = arguments.iter().copied().chain(["--dir", dir]).collect();
        run(binary.to_str().expect("a path in UTF-8"), &all, at_most)
    }

    /// Runs a command with `-o json` and reads what it prints.
    ///
    /// # Panics
    /// When it fails or prints something else.
    #[must_use]
    pub fn cli_json(&self, arguments: &[&str]) -> Value {
        let all: Vec<&str> = arguments.iter().copied().chain(["-o", "json"]).collect();
        let text = self.cli(&all);
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("pannier {}: {error}: {text}", all.join(" ")))
    }

    /// One volume's status.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn volume(&self, path: &str) -> Value {
        let status = self.cli_json(&["status", path]);
        status["volumes"][0].clone()
    }

    /// Waits until something holds of a volume's status.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn wait_for(
        &self,
        path: &str,
        what: &str,
        at_most: Duration,
        holds: impl Fn(&Value) -> bool,
    ) {
        let deadline = Instant::now() + at_most;
        loop {
            let volume = self.volume(path);
            if holds(&volume) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{path} is not {what} after {at_most:?}: {volume:#}\n{}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Whether the volume is verified in the store of a site.
    #[must_use]
    pub fn is_independent(volume: &Value, site: &str) -> bool {
        volume["homes"].as_array().is_some_and(|homes| {
            homes.iter().any(|home| home["site"] == site && home["independent"] == true)
        })
    }

    /// The NBD socket.
    #[must_use]
    pub fn nbd_socket(&self) -> PathBuf {
        self.dir.join("nbd.sock")
    }

    /// The NBD URI of a volume, as QEMU and libnbd take it.
    #[must_use]
    pub fn nbd_uri(&self, path: &str) -> String {
        format!("nbd+unix://{path}?socket={}", self.nbd_socket().display())
    }

    /// The last lines of the log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let from = lines.len().saturating_sub(30);
        format!("--- {} log\n{}", self.name, lines[from..].join("\n"))
    }

    /// Whether the log has a line that contains this.
    #[must_use]
    pub fn log_contains(&self, text: &str) -> bool {
        std::fs::read_to_string(&self.log).is_ok_and(|log| log.contains(text))
    }

    fn unexpected_lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines()
            .filter(|line| {
                let mut words = line.split_whitespace().take(3);
                words.any(|word| matches!(word, "WARN" | "ERROR")) || line.contains("panicked at")
            })
            .filter(|line| !self.expected.iter().any(|text| line.contains(text)))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill9();
        let lines = self.unexpected_lines();
        if !lines.is_empty() && !std::thread::panicking() {
            panic!("{} logged what the test did not expect:\n{}", self.name, lines.join("\n"));
        }
    }
}

/// Sends a signal to one process, a child that was not waited for yet.
///
/// # Panics
/// When it cannot be sent.
pub fn signal(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).expect("a process id");
    // SAFETY: kill has no memory effects; the process is our child and not yet waited for, so the
    // id is its own.
    let result = unsafe { libc::kill(pid, signal) };
    assert_eq!(result, 0, "process {pid} is gone");
}
