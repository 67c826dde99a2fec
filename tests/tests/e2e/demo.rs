//! The README's first command: what it prints, what it writes, what it leaves.

use pannier_e2e::host::{binary, signal};
use pannier_e2e::pair::write_image;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The figures of the JSON output, under their documented names.
const FIGURES: [&str; 12] = [
    "image_bytes",
    "rtt_ms",
    "rate_mbit",
    "switch_ms",
    "stall_ms_max",
    "wan_bytes",
    "floor_bytes",
    "independent_s",
    "wan_reads_after_switch",
    "records_written",
    "records_lost",
    "verified",
];

/// The demo with a small image of its own, and everything it makes below `dir`.
fn demo(dir: &Path, arguments: &[&str]) -> Command {
    let (image, made) = (dir.join("image.raw"), dir.join("made"));
    if !image.exists() {
        write_image(&image, 48 << 20, 77);
        std::fs::create_dir(&made).unwrap();
    }
    let mut command = Command::new(binary());
    command.args(["demo", "--rtt", "10ms", "--rate", "400mbit", "--image"]).arg(image);
    command.args(arguments).env("TMPDIR", made).stdin(Stdio::null());
    command
}

/// Waits for the end of the demo, at most that long.
fn ended(mut child: Child, at_most: Duration) -> Output {
    let deadline = Instant::now() + at_most;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("the demo did not end: {:?}", child.wait_with_output().unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// Neither a file below `dir/made` nor a process that was started there is left.
fn assert_nothing_left(dir: &Path) {
    let left: Vec<_> = std::fs::read_dir(dir.join("made")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let named = dir.join("made").to_str().unwrap().to_owned();
    for process in std::fs::read_dir("/proc").unwrap() {
        let line = std::fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        assert!(!line.contains(&named), "{line} still runs");
    }
}

#[test]
fn the_demo_moves_a_disk_and_proves_it() {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.html");
    let arguments = ["--report", report.to_str().unwrap(), "-o", "json"];
    let mut command = demo(dir.path(), &arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = ended(child, Duration::from_secs(120));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for name in FIGURES {
        assert!(!figures[name].is_null(), "{name} is missing: {figures:#}");
    }
    assert_eq!(figures["verified"], true, "{figures:#}");
    assert_eq!(figures["records_lost"], 0, "{figures:#}");
    assert!(figures["records_written"].as_u64().unwrap() > 0, "{figures:#}");
    assert!(figures["image_bytes"].as_u64().unwrap() == 48 << 20, "{figures:#}");
    assert!(figures["wan_bytes"].as_u64() >= figures["floor_bytes"].as_u64(), "{figures:#}");
    let report = std::fs::read_to_string(report).unwrap();
    assert!(report.contains("<svg") && !report.contains("http://"), "a page that stands alone");
    assert_nothing_left(dir.path());
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for (number, until) in [
        (libc::SIGINT, "two sites"),
        (libc::SIGTERM, "a guest writes"),
        (libc::SIGHUP, "the move is declared"),
    ] {
        let mut command = demo(dir.path(), &[]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap().contains(until)), "it never says {until:?}");
        signal(child.id(), number);
        let output = ended(child, Duration::from_secs(30));
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "signal {number}: {error}");
        assert!(error.contains("interrupted"), "signal {number}: {error}");
        assert_nothing_left(dir.path());
    }
}
