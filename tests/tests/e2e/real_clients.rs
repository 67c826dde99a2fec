//! The NBD clients that people use.

use pannier_e2e::clients::{must_run, run};
use pannier_e2e::pair::{Single, write_image};
use std::path::Path;
use std::time::Duration;

const IMAGE_BYTES: u64 = 96 << 20;

fn create(single: &Single, path: &str, bytes: u64) -> String {
    single.host.cli(&["volume", "create", path, "--size", &bytes.to_string()]);
    single.host.nbd_uri(path)
}

#[test]
fn qemu_img_copies_raw_and_qcow2_images_in_and_out() {
    let single = Single::start();
    let raw = single.file("image.raw");
    let qcow2 = single.file("image.qcow2");
    write_image(Path::new(&raw), IMAGE_BYTES, 1);
    must_run("qemu-img", &["convert", "-O", "qcow2", &raw, &qcow2]);
    for (format, image, path) in [("raw", &raw, "/images/one"), ("qcow2", &qcow2, "/images/two")] {
        let uri = create(&single, path, IMAGE_BYTES);
        must_run("qemu-img", &["convert", "-n", "-f", format, "-O", "raw", image, &uri]);
        must_run("qemu-img", &["compare", "-f", format, "-F", "raw", image, &uri]);
        let back = single.file(&format!("back.{format}"));
        must_run("qemu-img", &["convert", "-f", "raw", "-O", format, &uri, &back]);
        must_run("qemu-img", &["compare", "-f", format, "-F", format, image, &back]);
    }
    // The comparison can tell: another image is another image.
    let other = single.file("other.raw");
    write_image(Path::new(&other), IMAGE_BYTES, 2);
    let uri = single.host.nbd_uri("/images/one");
    let arguments = ["compare", "-f", "raw", "-F", "raw", &other, &uri];
    assert!(!run("qemu-img", &arguments, Duration::from_secs(60)).success);
    single_stops(single);
}

#[test]
fn import_and_export_keep_an_image_and_its_holes() {
    let single = Single::start();
    let (raw, back) = (single.file("image.raw"), single.file("back.raw"));
    write_image(Path::new(&raw), IMAGE_BYTES, 3);
    single.host.cli(&["volume", "import", &raw, "/images/disk"]);
    single.host.cli(&["volume", "export", "/images/disk", &back]);
    must_run("cmp", &[&raw, &back]);
    let blocks = |path: &str| {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(path).unwrap().blocks()
    };
    let (before, after) = (blocks(&raw), blocks(&back));
    assert!(after <= before + before / 20, "{after} sectors allocated, {before} in the original");
    single_stops(single);
}

#[test]
fn qemu_io_patterns_discard_and_write_zeroes() {
    let single = Single::start();
    let uri = create(&single, "/patterns", 64 << 20);
    let qemu_io = |commands: &[&str]| {
        let mut arguments = vec!["-f", "raw"];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        arguments.push(&uri);
        let text = must_run("qemu-io", &arguments);
        assert!(!text.contains("Pattern verification failed"), "{text}");
        assert!(!text.contains("error"), "{text}");
    };
    // Whole blocks, odd sectors across block borders, a large write.
    qemu_io(&[
        "write -P 0x11 0 64k",
        "write -P 0x22 4096 4096",
        "write -P 0x33 1536 3072",
        "write -P 0x44 8388608 4M",
        "flush",
    ]);
    qemu_io(&[
        "read -P 0x11 0 1536",
        "read -P 0x33 1536 3072",
        "read -P 0x22 4608 3584",
        "read -P 0x11 8192 57344",
        "read -P 0x44 8388608 4M",
        "read -P 0 64k 64k",
    ]);
    // Partial blocks keep what is around them.
    qemu_io(&["discard 512 1024", "write -z 8389120 1024", "write -z -u 9437184 1M"]);
    qemu_io(&[
        "read -P 0x11 0 512",
        "read -P 0 512 1024",
        "read -P 0x33 1536 3072",
        "read -P 0x44 8388608 512",
        "read -P 0 8389120 1024",
        "read -P 0x44 8390144 1047040",
        "read -P 0 9437184 1M",
        "read -P 0x44 10485760 2M",
    ]);
    // FUA, and many requests at once.
    qemu_io(&["write -f -P 0x55 20M 64k", "aio_write -P 0x66 21M 1M", "aio_write -P 0x77 22M 1M"]);
    qemu_io(&["read -P 0x55 20M 64k", "read -P 0x66 21M 1M", "read -P 0x77 22M 1M"]);
    // The same after a restart of the daemon.
    let mut single = single;
    single.host.stop();
    single.host.start();
    qemu_io(&["read -P 0x33 1536 3072", "read -P 0x77 22M 1M", "read -P 0 9437184 1M"]);
    single_stops(single);
}

#[test]
fn nbdinfo_shows_the_map_and_what_the_export_can() {
    let single = Single::start();
    let uri = create(&single, "/map", 16 << 20);
    must_run("qemu-io", &["-f", "raw", "-c", "write -P 1 1M 64k", &uri]);
    must_run("qemu-io", &["-f", "raw", "-c", "write -z 2M 64k", &uri]);
    let map = must_run("nbdinfo", &["--map", &uri]);
    let rows: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    let data: Vec<_> = rows.iter().filter(|row| row[2] == "0").collect();
    assert_eq!(data.len(), 1, "{map}");
    assert_eq!(data[0][..2], ["1048576", "65536"], "{map}");
    let covered: u64 = rows.iter().map(|row| row[1].parse::<u64>().unwrap()).sum();
    assert_eq!(covered, 16 << 20, "{map}");
    let info = must_run("nbdinfo", &["--json", &uri]);
    for can in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn", "can_cache"] {
        assert!(info.contains(&format!("\"{can}\": true")), "{can}: {info}");
    }
    let socket = single.host.nbd_socket();
    let server = format!("nbd+unix://?socket={}", socket.display());
    let list = must_run("nbdinfo", &["--list", &server]);
    assert!(list.contains("map"), "{list}");
    single_stops(single);
}

#[test]
fn nbdcopy_with_many_connections() {
    let single = Single::start();
    let (raw, back) = (single.file("image.raw"), single.file("back.raw"));
    write_image(Path::new(&raw), IMAGE_BYTES, 4);
    let uri = create(&single, "/copy", IMAGE_BYTES);
    let many = ["--connections=4", "--requests=32", "--flush"];
    must_run("nbdcopy", &[&many[..], &[&raw, &uri]].concat());
    must_run("nbdcopy", &[&many[..], &[&uri, &back]].concat());
    must_run("cmp", &[&raw, &back]);
    single_stops(single);
}

#[test]
fn fio_verifies_what_it_wrote() {
    let single = Single::start();
    let uri = create(&single, "/fio", 128 << 20);
    for (name, more) in [
        ("random", &["--rw=randwrite", "--bs=4k", "--iodepth=32"][..]),
        ("mixed", &["--rw=randrw", "--bsrange=512-128k", "--blockalign=512", "--iodepth=16"]),
        ("sequential", &["--rw=write", "--bs=256k", "--iodepth=8"]),
    ] {
        let name = format!("--name={name}");
        let uri = format!("--uri={uri}");
        let arguments = [
            // fio knows an engine's options only behind its name.
            &[&name[..], "--ioengine=nbd", &uri, "--size=48m", "--fsync=64"][..],
            &["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0"],
            more,
        ]
        .concat();
        must_run("fio", &arguments);
    }
    single_stops(single);
}

/// A daemon that has served is also able to stop.
fn single_stops(mut single: Single) {
    single.host.stop();
}
