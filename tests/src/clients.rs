//! Programs of others, bounded in time.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Whether it ended with 0.
    pub success: bool,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// A program that runs beside the test, and ends with this.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts a program that serves on a socket, and returns when that is there.
///
/// # Panics
/// When it does not start, or the socket does not come.
#[must_use]
pub fn serve(program: &str, arguments: &[&str], socket: &Path) -> Running {
    let line = format!("{program} {}", arguments.join(" "));
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{line}: {error}; `cargo xtask install` installs it"));
    let mut running = Running(child);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !socket.exists() {
        let ended = running.0.try_wait().expect("its state");
        assert!(ended.is_none() && Instant::now() < deadline, "{line} does not serve: {ended:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    running
}

/// Runs a program to its end.
///
/// # Panics
/// When it does not start, or does not end in time: it is killed then.
#[must_use]
pub fn run(program: &str, arguments: &[&str], at_most: Duration) -> Finished {
    let line = format!("{program} {}", arguments.join(" "));
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{line}: {error}; `cargo xtask install` installs it"));
    let stdout = drain(child.stdout.take().expect("it is piped"));
    let stderr = drain(child.stderr.take().expect("it is piped"));
    let deadline = Instant::now() + at_most;
    let status = loop {
        if let Some(status) = child.try_wait().expect("its state") {
            break status;
        }
        if Instant::now() > deadline {
            drop(child.kill());
            drop(child.wait());
            let (stdout, stderr) = (stdout.join(), stderr.join());
            panic!("{line} does not end within {at_most:?}: {stdout:?} {stderr:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = |bytes: std::thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&bytes.join().expect("the reader ends")).into_owned()
    };
    Finished { success: status.success(), stdout: text(stdout), stderr: text(stderr) }
}

fn drain(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before a broken pipe is what there is.
        drop(from.read_to_end(&mut bytes));
        bytes
    })
}

/// Runs a program that must succeed, and returns its standard output.
///
/// # Panics
/// When it fails.
pub fn must_run(program: &str, arguments: &[&str]) -> String {
    let finished = run(program, arguments, Duration::from_secs(180));
    let line = arguments.join(" ");
    assert!(finished.success, "{program} {line} failed:\n{}{}", finished.stdout, finished.stderr);
    finished.stdout
}
