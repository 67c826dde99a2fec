//! Debian packages that the tests need.

use anyhow::{Context as _, Result, bail};
use std::path::Path;
use std::process::Command;

/// A program that the tests run, and the package that has it.
const NEEDED: [(&str, &str); 9] = [
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdkit", "nbdkit"),
    ("fio", "fio"),
    ("mkfs.ext4", "e2fsprogs"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
];

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps mkfs in /usr/sbin, which a user's PATH leaves out.
    std::env::split_paths(&path)
        .chain([Path::new("/usr/sbin").into(), Path::new("/sbin").into()])
        .any(|dir| dir.join(program).is_file())
}

fn missing() -> Vec<&'static str> {
    let mut packages: Vec<_> = NEEDED
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|(_, package)| *package)
        .collect();
    packages.dedup();
    packages
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// Installs what is missing when root; else says what to run.
///
/// # Errors
/// When something is missing and was not installed.
pub(crate) fn install() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let by_hand = format!("sudo apt-get install --yes --no-install-recommends {list}");
    if !is_root() {
        bail!("the tests need Debian packages that are not installed; run: {by_hand}");
    }
    println!("installing {list}");
    for arguments in [
        vec!["update", "--quiet"],
        [&["install", "--yes", "--quiet", "--no-install-recommends"], &missing[..]].concat(),
    ] {
        let status = Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(&arguments)
            .status()
            .with_context(|| format!("apt-get is not here; install by other means: {list}"))?;
        if !status.success() {
            bail!("apt-get {} failed: {status}; run: {by_hand}", arguments[0]);
        }
    }
    Ok(())
}
