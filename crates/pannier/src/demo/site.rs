//! The two sites: real daemons, processes of their own.

use crate::client::Client;
use crate::output::Failure;
use pannier_engine::error::ErrorKind;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a daemon may take to begin, or to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(20);

/// A site with its one host.
pub(super) struct Site {
    pub(super) name: &'static str,
    pub(super) dir: PathBuf,
    pub(super) listen: SocketAddr,
    daemon: Option<Child>,
}

/// A UDP port that is free now.
pub(super) fn free_address() -> Result<SocketAddr, Failure> {
    let bound = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    bound.map_err(|error| Failure::io("cannot find a free UDP port", error))
}

impl Site {
    pub(super) fn new(name: &'static str, root: &Path, listen: SocketAddr) -> Self {
        Self { name, dir: root.join(name), listen, daemon: None }
    }

    /// Where guests reach its volumes.
    pub(super) fn nbd_socket(&self) -> PathBuf {
        self.dir.join("nbd.sock")
    }

    /// Its API.
    pub(super) fn api(&self) -> Client {
        Client::find(Some(&self.dir))
    }

    fn command(&self, arguments: &[&str]) -> Result<Command, Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::io("cannot find the pannier program", error))?;
        let mut command = Command::new(program);
        command.arg("--dir").arg(&self.dir).args(arguments).stdin(Stdio::null());
        // The demo's caller may have set these for daemons of their own.
        command.env_remove("PANNIER_DIR");
        Ok(command)
    }

    /// Runs one of the program's commands to its end and returns what it printed.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<String, Failure> {
        let output = self
            .command(arguments)?
            .output()
            .map_err(|error| Failure::io("cannot start the pannier program", error))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let cause = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let what = format!("`pannier {}` at {} failed: {cause}", arguments.join(" "), self.name);
        Err(Failure::new(ErrorKind::Internal, what))
    }

    /// Starts its daemon and waits until it serves.
    pub(super) fn serve(&mut self) -> Result<(), Failure> {
        let log = self.dir.join("demo.log");
        let log_file = std::fs::File::create(&log)
            .map_err(|error| Failure::io(format!("cannot make {}", log.display()), error))?;
        let mut command = self.command(&["serve"])?;
        command.stdout(Stdio::piped()).stderr(log_file);
        // Ctrl-C is for the demo, which then ends its daemons itself.
        command.process_group(0);
        let mut child = command.spawn().map_err(|error| {
            Failure::io(format!("cannot start the daemon of {}", self.name), error)
        })?;
        let stdout = child.stdout.take();
        self.daemon = Some(child);
        let Some(stdout) = stdout else { return Err(self.silent(&log)) };
        let (said, ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.trim() == "READY" && said.send(()).is_err() {
                    return;
                }
            }
        });
        ready.recv_timeout(PATIENCE).map_err(|_silent| self.silent(&log))
    }

    fn silent(&self, log: &Path) -> Failure {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let last: Vec<&str> = text.lines().rev().take(5).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        let what = format!("the daemon of {} does not serve: {}", self.name, last.join("; "));
        Failure::new(ErrorKind::Internal, what)
    }

    /// The last lines of its log that are warnings or errors.
    pub(super) fn complaints(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join("demo.log")).unwrap_or_default();
        let bad = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
        text.lines().filter(bad).map(str::to_owned).take(20).collect()
    }

    /// Kills its daemon, as a lost host would end.
    pub(super) fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // Already dead is as good.
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }

    /// Ends its daemon in order; kills it when that takes too long.
    pub(super) fn stop(&mut self) {
        let Some(daemon) = self.daemon.as_mut() else { return };
        let pid = i32::try_from(daemon.id()).ok().and_then(rustix::process::Pid::from_raw);
        let asked =
            pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
        let begun = Instant::now();
        while matches!(asked, Some(Ok(()))) && begun.elapsed() < PATIENCE {
            if let Ok(Some(_status)) = daemon.try_wait() {
                self.daemon = None;
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill();
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
    }
}
