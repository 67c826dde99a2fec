use super::*;
use clap::CommandFactory;

fn parse(line: &str) -> Result<Cli, String> {
    let words = std::iter::once("pannier").chain(line.split_whitespace());
    Cli::try_parse_from(words).map_err(|error| error.to_string())
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn lines_that_are_commands() {
    for line in [
        "init --dir D --site west",
        "init --dir D --site west --listen 127.0.0.1:0",
        "token --dir D",
        "token --dir D --valid 10m -o json",
        "join --dir D2 --site east --token T --listen 0.0.0.0:7811",
        "serve --dir D",
        "serve --dir D --nbd-listen 127.0.0.1:10809 --peer a=127.0.0.1:9 --peer b=127.0.0.1:8",
        "volume create /vms/web/disk0 --size 20G",
        "volume list -o json",
        "volume show vms/web/disk0",
        "volume delete /a",
        "volume resize /a +1G",
        "volume import disk.raw /a",
        "volume export /a disk.raw",
        "volume xml /a",
        "volume qemu /a",
        "volume release /a",
        "move /a --to east",
        "move /a --to east/h2 --wait independent",
        "move /a --to east --at-first-write",
        "move /a --abort",
        "takeover /a --fenced h1",
        "status",
        "status /a -o json",
        "-o json status",
        "demo",
        "demo --rtt 40ms --rate 200mbit --report out.html -o json",
    ] {
        if let Err(error) = parse(line) {
            panic!("`{line}` is refused: {error}");
        }
    }
}

#[test]
fn lines_that_are_not_say_why() {
    for (line, part) in [
        ("init --dir D", "--site"),
        ("join --dir D --site east", "--token"),
        ("volume create /a", "--size"),
        ("volume create /a --size huge", "20G"),
        ("volume create /a//b --size 1G", "empty part"),
        ("volume create a@b --size 1G", "/vms/web/disk0"),
        ("move /a", "--to"),
        ("move /a --to east --abort", "cannot be used with"),
        ("move /a --to east --wait forever", "independent"),
        ("takeover /a", "--fenced"),
        ("serve --peer x", "HOST=ADDR:PORT"),
        ("volumes", "volume"),
    ] {
        let error = parse(line).err().unwrap_or_else(|| panic!("`{line}` is accepted"));
        assert!(error.contains(part), "`{line}`: {error}");
    }
}
