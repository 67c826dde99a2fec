//! What `check` and `test` run, step by step.

use crate::{packages, tidy};
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

/// The workspace's directory.
pub(crate) fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask is a directory of the workspace").to_owned()
}

fn cargo(arguments: &[&str], variables: &[(&str, u32)]) -> Result<()> {
    let line = format!("cargo {}", arguments.join(" "));
    println!("\n=== {line}");
    let started = Instant::now();
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    for (name, value) in variables {
        command.env(name, value.to_string());
    }
    let status = command.status().with_context(|| format!("{line} does not start"))?;
    if !status.success() {
        bail!("{line} failed: {status}");
    }
    if arguments[0] != "nextest" && arguments[0] != "test" {
        println!("=== {} s", started.elapsed().as_secs());
    }
    Ok(())
}

/// Whether a cargo subcommand is installed.
fn has(subcommand: &str) -> bool {
    Command::new("cargo")
        .args([subcommand, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Format, lints, tidy.
pub(crate) fn check() -> Result<()> {
    cargo(&["fmt", "--all", "--check"], &[])?;
    tidy::run()?;
    if has("deny") {
        cargo(&["deny", "check", "bans", "licenses", "sources"], &[])?;
    }
    cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"], &[])
}

/// Binaries and tests in one build, so that the daemon which the tests with real clients start is
/// built with the same features as the tests.
const BUILD: [&str; 4] = ["build", "--workspace", "--bins", "--tests"];

/// Everything. The last lines are the test runner's summary.
pub(crate) fn test() -> Result<()> {
    packages::install()?;
    check()?;
    cargo(&BUILD, &[])?;
    if has("nextest") {
        cargo(&["nextest", "run", "--workspace", "--no-fail-fast"], &[])
    } else {
        cargo(&["test", "--workspace", "--bins", "--tests", "--no-fail-fast"], &[])
    }
}

/// The tests with real clients alone.
pub(crate) fn e2e(filter: Option<&str>) -> Result<()> {
    packages::install()?;
    cargo(&BUILD, &[])?;
    e2e_tests(&[], filter, &[])
}

/// One of these tests at full length, with the build that ships: it also holds the figures that are
/// promised for that one.
pub(crate) fn soak(test: &str, variable: &str, rounds: u32) -> Result<()> {
    packages::install()?;
    cargo(&["build", "--release", "--workspace", "--bins"], &[])?;
    e2e_tests(&["--release"], Some(test), &[(variable, rounds)])
}

/// Histories whose every sort of crash is opened and compared, the loss of power with any subset of
/// the unsynced writes among them.
pub(crate) fn crash_images(rounds: u32) -> Result<()> {
    let test = ["--release", "--package", "pannier-engine", "--test", "crash_images"];
    let filter = ["what_survives_is_between_the_last_flush_and_the_last_request"];
    let runner: &[&str] = if has("nextest") { &["nextest", "run"] } else { &["test"] };
    cargo(&[runner, &test, &filter].concat(), &[("PANNIER_CRASH_ROUNDS", rounds)])
}

fn e2e_tests(profile: &[&str], filter: Option<&str>, variables: &[(&str, u32)]) -> Result<()> {
    let runner: &[&str] =
        if has("nextest") { &["nextest", "run", "--no-capture"] } else { &["test"] };
    // The whole workspace and one test of it: the dependencies' features stay those of the build.
    let test = ["--workspace", "--test", "e2e"];
    let filter = filter.as_slice();
    cargo(&[runner, profile, &test, filter].concat(), variables)
}
