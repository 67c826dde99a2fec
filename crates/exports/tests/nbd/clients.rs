//! The clients that guests and operators use.

use crate::device::{Disk, Inline};
use crate::rig::{Rig, run};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::sync::atomic::Ordering;

const MIB: u64 = 1 << 20;
const MODES: [Inline; 3] = [Inline::Always, Inline::Mostly, Inline::Never];

/// An image of data and holes.
fn image(size_bytes: u64, seed: u64) -> Vec<u8> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut bytes = vec![0; size_bytes as usize];
    for chunk in bytes.chunks_mut(192 << 10) {
        if random.random_ratio(2, 3) {
            random.fill(chunk);
        }
    }
    bytes
}

#[test]
fn qemu_img_converts_in_and_out() {
    for inline in MODES {
        let rig = Rig::new(vec![Disk::new("/vms/web/disk0", 24 * MIB, inline)]);
        let here = rig.directory.path();
        let content = image(24 * MIB, 1);
        std::fs::write(rig.path("in.raw"), &content).unwrap();
        let img = |arguments: &[&str]| run(here, "qemu-utils", "qemu-img", arguments);
        img(&["convert", "-O", "qcow2", "-c", "in.raw", "in.qcow2"]);
        let uri = rig.uri("vms/web/disk0");
        for source in ["in.raw", "in.qcow2"] {
            img(&["convert", "-n", "-W", source, &uri]);
            img(&["compare", source, &uri]);
            assert!(rig.disks[0].snapshot() == content, "{source} arrived differently");
        }
        img(&["convert", "-O", "raw", &uri, "out.raw"]);
        img(&["convert", "-O", "qcow2", &uri, "out.qcow2"]);
        img(&["compare", "in.raw", "out.raw"]);
        img(&["compare", "in.raw", "out.qcow2"]);
        assert!(std::fs::read(rig.path("out.raw")).unwrap() == content);
        rig.settle();
    }
}

#[test]
fn qemu_io_patterns() {
    for inline in MODES {
        let rig = Rig::new(vec![Disk::new("disk", 80 * MIB, inline)]);
        let uri = rig.uri("disk");
        let commands = [
            "write -P 1 0 1M",
            "write -P 2 512 512",
            "write -P 3 4097k 63k",
            "read -P 1 0 512",
            "read -P 2 512 512",
            "read -P 1 1024 1047552",
            "write -f -P 4 2M 40M",
            "read -P 4 2M 40M",
            "write -z 3M 1M",
            "read -P 0 3M 1M",
            "write -z -u 5M 64k",
            "read -P 0 5M 64k",
            "discard 6M 2M",
            "read -P 0 6M 2M",
            "read -P 4 8M 64k",
            "aio_write -P 7 10M 64k",
            "aio_write -P 8 11M 64k",
            "aio_flush",
            "read -P 7 10M 64k",
            "read -P 8 11M 64k",
            "flush",
        ];
        let mut arguments = vec!["-t", "writeback", "-f", "raw", "-d", "unmap"];
        for command in &commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(&uri);
        let text = run(rig.directory.path(), "qemu-utils", "qemu-io", &arguments);
        assert!(!text.contains("verification failed"), "{inline:?}: {text}");
        assert!(rig.disks[0].flushes.load(Ordering::SeqCst) >= 2, "FUA and flush reach the disk");
        rig.settle();
    }
}

#[test]
fn nbdinfo_lists_and_maps() {
    let rig = Rig::new(vec![
        Disk::new("/vms/a", 8 * MIB, Inline::Always),
        Disk::new("/vms/b", 4 * MIB, Inline::Never),
    ]);
    let here = rig.directory.path();
    let info = |arguments: &[&str]| run(here, "libnbd-bin", "nbdinfo", arguments);
    for export in ["vms/b", "/vms/b"] {
        assert_eq!(info(&["--size", &rig.uri(export)]).trim(), (4 * MIB).to_string());
    }
    let listed = info(&["--list", &rig.uri("")]);
    assert!(listed.contains("/vms/a") && listed.contains("/vms/b"), "{listed}");
    let shown = info(&[&rig.uri("vms/a")]);
    for line in [
        "can_multi_conn: true",
        "can_fast_zero: true",
        "can_cache: true",
        "can_trim: true",
        "block_size_minimum: 512",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
        "base:allocation",
    ] {
        assert!(shown.contains(line), "no `{line}` in {shown}");
    }
    let commands = ["-c", "write 1M 1M", "-c", "write -z 4M 1M"];
    let uri = rig.uri("vms/a");
    let arguments = [&["-f", "raw"][..], &commands, &[&uri]].concat();
    run(here, "qemu-utils", "qemu-io", &arguments);
    let map = info(&["--map", &uri]);
    let words: Vec<Vec<&str>> =
        map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    let expected = [
        ["0", "1048576", "3"],
        ["1048576", "1048576", "0"],
        ["2097152", "2097152", "3"],
        ["4194304", "1048576", "2"],
        ["5242880", "3145728", "3"],
    ];
    assert_eq!(words, expected, "{map}");
    rig.settle();
}

#[test]
fn nbdcopy_with_several_connections() {
    for inline in MODES {
        let rig = Rig::new(vec![Disk::new("disk", 32 * MIB, inline)]);
        let here = rig.directory.path();
        let content = image(32 * MIB, 2);
        std::fs::write(rig.path("in.raw"), &content).unwrap();
        let copy = |arguments: &[&str]| run(here, "libnbd-bin", "nbdcopy", arguments);
        let tcp = format!("nbd://{}/disk", rig.address);
        copy(&["--connections=4", "--requests=32", "--flush", "in.raw", &rig.uri("disk")]);
        assert!(rig.disks[0].snapshot() == content);
        copy(&["--connections=4", "--request-size=1048576", &tcp, "out.raw"]);
        assert!(std::fs::read(rig.path("out.raw")).unwrap() == content);
        copy(&["--synchronous", &rig.uri("disk"), "again.raw"]);
        assert!(std::fs::read(rig.path("again.raw")).unwrap() == content);
        rig.settle();
    }
}

#[test]
fn fio_verifies() {
    for inline in MODES {
        let rig = Rig::new(vec![Disk::new("disk", 16 * MIB, inline)]);
        let uri = format!("--uri={}", rig.uri("disk"));
        let arguments = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randrw",
            "--bsrange=4k-128k",
            "--iodepth=32",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--fsync=16",
            "--size=16m",
        ];
        run(rig.directory.path(), "fio", "fio", &arguments);
        rig.settle();
    }
}

#[test]
fn plain_clients_without_structured_replies() {
    // The kernel's way: EXPORT_NAME, simple replies.
    let rig = Rig::new(vec![Disk::new("disk", 4 * MIB, Inline::Mostly)]);
    crate::hostile::with_old_client(&rig, "disk", |client| {
        let data = vec![0x5a; 600 << 10];
        client.write(4096, &data, true);
        assert_eq!(client.read(4096, data.len() as u32), Ok(data));
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
        assert_eq!(client.read(4 * MIB, 512), Err(22));
    });
    rig.settle();
}
