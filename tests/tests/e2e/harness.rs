//! The harness itself: a server that keeps what it is given passes, one that does not is found.

use pannier_e2e::load::{Load, Plan, Report, verify_all};
use pannier_e2e::model::Model;
use pannier_e2e::nbd_client::Address;
use pannier_e2e::pair::scratch;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Nbdkit(Child);

impl Drop for Nbdkit {
    fn drop(&mut self) {
        self.0.kill().expect("nbdkit is ended");
        self.0.wait().expect("nbdkit has ended");
    }
}

fn run(plugin: &str) -> Result<Report, String> {
    let base = scratch();
    let socket = base.path().join("nbd.sock");
    let _server = Nbdkit(
        Command::new("nbdkit")
            .args(["--foreground", "--unix", socket.to_str().unwrap(), plugin, "8M"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let deadline = Instant::now() + Duration::from_secs(20);
    while !socket.exists() {
        assert!(Instant::now() < deadline, "nbdkit does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    let address = Address::Unix(socket);
    let plan = Plan {
        address: address.clone(),
        export: String::new(),
        size_bytes: 8 << 20,
        depth: 8,
        patience: Duration::from_secs(20),
        reconnect: false,
        pace: Duration::ZERO,
        seed: 3,
    };
    let load = Load::start(plan, Model::new(8 << 20));
    std::thread::sleep(Duration::from_millis(300));
    let mut report = load.stop()?;
    verify_all(&address, "", &mut report.model);
    Ok(report)
}

#[test]
fn a_server_that_keeps_what_it_is_given_passes() {
    let report = run("memory").unwrap();
    assert!(report.done.len() > 100 && report.written_bytes > 1 << 20, "{}", report.done.len());
}

#[test]
fn a_server_that_forgets_is_found() {
    let failure = run("null").unwrap_err();
    assert!(failure.contains("Mismatch"), "{failure}");
}
