//! A daemon dies and comes back, and no client is refused meanwhile: with sockets that a parent
//! passes as an init system does, and with our own supervisor.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PANNIER: &str = env!("CARGO_BIN_EXE_pannier");

/// First bytes of an NBD server.
const GREETING: &[u8; 8] = b"NBDMAGIC";

/// How long anything here may take on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends the daemon with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Daemon {
    fn wait_ready(&mut self) {
        let mut line = String::new();
        let stdout = self.0.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "READY\n");
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.0.id() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

fn init(dir: &Path) {
    let made = Command::new(PANNIER)
        .args(["init", "--site", "west", "--listen", "127.0.0.1:0", "--dir"])
        .arg(dir)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

fn cli(dir: &Path, args: &[&str]) -> (bool, String) {
    let done = Command::new(PANNIER).args(args).arg("--dir").arg(dir).output().unwrap();
    let text = if done.status.success() { done.stdout } else { done.stderr };
    (done.status.success(), String::from_utf8(text).unwrap())
}

fn greeted(mut stream: &UnixStream) -> bool {
    let mut bytes = [0; 8];
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_exact(&mut bytes).is_ok() && &bytes == GREETING
}

/// Starts the daemon with the listeners as its descriptors 3 and 4, as `sd_listen_fds(3)` has it.
fn activate(dir: &Path, nbd: &UnixListener, api: &UnixListener) -> Daemon {
    // The shell gives the descriptors their numbers; these are kept over exec.
    let (nbd_copy, api_copy) = (rustix::io::dup(nbd).unwrap(), rustix::io::dup(api).unwrap());
    let script = format!(
        "exec \"$0\" serve --dir \"$1\" 3<&{} 4<&{}",
        nbd_copy.as_raw_fd(),
        api_copy.as_raw_fd()
    );
    let child = Command::new("bash")
        .args(["-c", &script, PANNIER])
        .arg(dir)
        .env("LISTEN_FDS", "2")
        .env("LISTEN_FDNAMES", "nbd:api")
        .env_remove("LISTEN_PID")
        .stdout(Stdio::piped())
        .stderr(File::create(dir.join("log")).unwrap())
        .spawn()
        .unwrap();
    Daemon(child)
}

#[test]
fn sockets_of_a_parent_survive_kill_9_and_refuse_nobody() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("host");
    init(&dir);
    let nbd = UnixListener::bind(dir.join("nbd.sock")).unwrap();
    let api = UnixListener::bind(dir.join("api.sock")).unwrap();
    let mut daemon = activate(&dir, &nbd, &api);
    daemon.wait_ready();
    assert!(cli(&dir, &["volume", "create", "/a", "--size", "8M"]).0);

    for round in 0..3 {
        daemon.signal(rustix::process::Signal::KILL);
        daemon.0.wait().unwrap();
        // Nobody runs: whoever connects now waits.
        let waiting: Vec<_> =
            (0..8).map(|_| UnixStream::connect(dir.join("nbd.sock")).unwrap()).collect();
        daemon = activate(&dir, &nbd, &api);
        for client in &waiting {
            assert!(greeted(client), "round {round}");
        }
        daemon.wait_ready();
        let (fine, text) = cli(&dir, &["volume", "list"]);
        assert!(fine && text.contains("/a"), "{text}");
    }
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.0.wait().unwrap().success());
    for socket in ["nbd.sock", "api.sock"] {
        assert!(dir.join(socket).exists(), "{socket} of the parent is the parent's to remove");
    }
}

#[test]
fn a_supervised_daemon_is_started_again() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("host");
    init(&dir);
    let child = Command::new(PANNIER)
        .args(["serve", "--supervise", "--dir"])
        .arg(&dir)
        .stdout(Stdio::piped())
        .stderr(File::create(dir.join("log")).unwrap())
        .spawn()
        .unwrap();
    let mut supervisor = Daemon(child);
    supervisor.wait_ready();
    let daemon = || -> u32 {
        let text = std::fs::read_to_string(dir.join("lock")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let first = daemon();
    assert_ne!(first, supervisor.0.id());
    let pid = rustix::process::Pid::from_raw(first as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let client = UnixStream::connect(dir.join("nbd.sock")).expect("not refused");
    assert!(greeted(&client));
    let second = daemon();
    assert!(second != first && second != 0, "{first} {second}");

    supervisor.signal(rustix::process::Signal::TERM);
    assert!(supervisor.0.wait().unwrap().success());
    assert!(!dir.join("nbd.sock").exists() && !dir.join("api.sock").exists());
    let began = Instant::now();
    while Path::new(&format!("/proc/{second}")).exists() && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!Path::new(&format!("/proc/{second}")).exists(), "the daemon ends with it");
}

#[test]
fn a_second_daemon_is_refused_and_a_left_socket_is_not_in_the_way() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("host");
    init(&dir);
    let start = || {
        let child = Command::new(PANNIER)
            .args(["serve", "--dir"])
            .arg(&dir)
            .stdout(Stdio::piped())
            .stderr(File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        Daemon(child)
    };
    let mut daemon = start();
    daemon.wait_ready();
    let (fine, text) = cli(&dir, &["serve"]);
    assert!(!fine && text.contains("another daemon (process "), "{text}");
    daemon.signal(rustix::process::Signal::KILL);
    daemon.0.wait().unwrap();
    assert!(dir.join("nbd.sock").exists(), "it had no chance to remove it");
    let mut daemon = start();
    daemon.wait_ready();
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.0.wait().unwrap().success());
    let (fine, text) = cli(&dir, &["status"]);
    assert!(!fine && text.contains("pannier serve --dir"), "{text}");
}

#[test]
fn another_hosts_identity_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, other) = (scratch.path().join("host"), scratch.path().join("other"));
    let serve = || {
        let mut command = Command::new(PANNIER);
        command.args(["serve", "--dir"]).arg(&dir).stdout(Stdio::piped());
        Daemon(command.stderr(File::create(scratch.path().join("log")).unwrap()).spawn().unwrap())
    };
    init(&dir);
    init(&other);
    for _ in 0..2 {
        serve().wait_ready();
    }
    std::fs::rename(dir.join("identity"), scratch.path().join("aside")).unwrap();
    std::fs::rename(other.join("identity"), dir.join("identity")).unwrap();
    let mut daemon = serve();
    let mut said = String::new();
    BufReader::new(daemon.0.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "", "it serves as another host");
    assert!(!daemon.0.wait().unwrap().success());
    let log = std::fs::read_to_string(scratch.path().join("log")).unwrap();
    assert!(log.contains("own identity back"), "{log}");
}
