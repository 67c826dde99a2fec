//! The servers that are measured: real processes, ended by their id.

use anyhow::{Context as _, Result, bail};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to begin.
const PATIENCE: Duration = Duration::from_secs(20);

/// Clock ticks per second in `/proc/PID/stat`: fixed in the kernel's interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running server.
pub(super) struct Server {
    child: Child,
    pub(super) socket: PathBuf,
}

impl Server {
    /// Pannier's daemon of the directory, which it makes first.
    pub(super) fn pannier(program: &Path, dir: &Path) -> Result<Self> {
        pannier(program, dir, &["init", "--site", "bench", "--listen", "127.0.0.1:0"])?;
        let mut child = Command::new(program)
            .arg("--dir")
            .arg(dir)
            .args(["serve", "--log-level", "warn"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("pannier serve does not start")?;
        let stdout = child.stdout.take();
        let server = Self { child, socket: dir.join("nbd.sock") };
        let lines = BufReader::new(stdout.context("no standard output")?).lines();
        for line in lines.map_while(Result::ok) {
            if line.trim() == "READY" {
                return Ok(server);
            }
        }
        bail!("pannier serve ended before it was ready; its messages are above")
    }

    /// nbdkit's file plugin over the files of a directory, by name.
    pub(super) fn nbdkit(dir: &Path) -> Result<Self> {
        let socket = dir.with_extension("sock");
        let child = Command::new("nbdkit")
            .args(["--foreground", "--exit-with-parent", "--unix"])
            .arg(&socket)
            .arg("file")
            .arg(format!("dir={}", dir.display()))
            .stdin(Stdio::null())
            .spawn()
            .context("nbdkit does not start; install the package nbdkit")?;
        let server = Self { child, socket };
        let begun = Instant::now();
        while !server.socket.exists() {
            if begun.elapsed() > PATIENCE {
                bail!("nbdkit did not make its socket");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// The URI of an export.
    pub(super) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// Processor seconds that it has used, user and system.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.child.id());
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        // The name, in parentheses, may contain spaces; utime and stime are fields 14 and 15.
        let (_, fields) = text.rsplit_once(") ").with_context(|| path.clone())?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
        let (user, system) = (ticks(11).context("utime")?, ticks(12).context("stime")?);
        Ok((user + system) / TICKS_PER_SECOND)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already dead is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs one of pannier's commands to its end.
pub(super) fn pannier(program: &Path, dir: &Path, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .arg("--dir")
        .arg(dir)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} does not start", program.display()))?;
    if !output.status.success() {
        let cause = String::from_utf8_lossy(&output.stderr);
        bail!("pannier {}: {}", arguments.join(" "), cause.trim());
    }
    Ok(())
}
