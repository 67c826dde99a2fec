//! `cargo xtask bench nbd`: Pannier's NBD export against nbdkit's file plugin, on the same disk, in
//! the same run, by fio's NBD engine.
//!
//! Every cell is measured in turns, A B A B, because disks and machines drift. What is read was
//! written with the cell's block size, on both sides.

use super::server::{Server, pannier};
use crate::run::root;
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How the result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table.
    Text,
    /// One JSON document.
    Json,
}

/// What is measured, and how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How the result is written
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    /// Rounds of A and B per cell
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Size of each disk in MiB
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(64..))]
    mebibytes: u32,
    /// A folder on the disk to measure [default: the workspace's target]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The daemon to measure [default: build it in release mode]
    #[arg(long)]
    program: Option<PathBuf>,
    /// Fail when a cell's ratio is below this
    #[arg(long, default_value_t = 0.7)]
    least: f64,
    /// Only cells whose name contains this
    #[arg(long)]
    only: Option<String>,
}

/// One workload.
#[derive(Debug, Clone, Copy)]
struct Cell {
    name: &'static str,
    /// fio's word for it.
    pattern: &'static str,
    block: &'static str,
    depth: u32,
}

const CELLS: [Cell; 6] = [
    Cell { name: "read 4k random, depth 1", pattern: "randread", block: "4k", depth: 1 },
    Cell { name: "read 4k random, depth 32", pattern: "randread", block: "4k", depth: 32 },
    Cell { name: "read 256k sequential", pattern: "read", block: "256k", depth: 4 },
    Cell { name: "write 4k random, depth 1", pattern: "randwrite", block: "4k", depth: 1 },
    Cell { name: "write 4k random, depth 32", pattern: "randwrite", block: "4k", depth: 32 },
    Cell { name: "write 256k sequential", pattern: "write", block: "256k", depth: 4 },
];

/// One measurement.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    mib_per_second: f64,
    requests_per_second: f64,
    latency_us_p99: f64,
    cpu_seconds: f64,
}

/// One server's measurements of one cell.
struct Series(Vec<Run>);

impl Series {
    fn median(&self, of: fn(&Run) -> f64) -> f64 {
        let mut values: Vec<f64> = self.0.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len() % 2 == 1 {
            values[middle]
        } else {
            values[middle - 1..=middle].iter().sum::<f64>() / 2.0
        }
    }

    fn spread(&self, of: fn(&Run) -> f64) -> (f64, f64) {
        let values = self.0.iter().map(of);
        values.fold((f64::INFINITY, 0.0), |(least, most), v| (least.min(v), f64::max(most, v)))
    }

    fn json(&self) -> Value {
        let (least, most) = self.spread(|run| run.mib_per_second);
        json!({
            "mib_per_second": self.median(|run| run.mib_per_second),
            "mib_per_second_min": least,
            "mib_per_second_max": most,
            "requests_per_second": self.median(|run| run.requests_per_second),
            "latency_us_p99": self.median(|run| run.latency_us_p99),
            "server_cpu_seconds": self.median(|run| run.cpu_seconds),
        })
    }
}

/// Runs the bench and prints its result.
pub(crate) fn run(args: &Args) -> Result<()> {
    let program = match &args.program {
        Some(program) => program.clone(),
        None => build()?,
    };
    let parent = args.dir.clone().unwrap_or_else(|| root().join("target"));
    std::fs::create_dir_all(&parent).with_context(|| parent.display().to_string())?;
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(&parent)?;
    let (ours, peers) = (dir.path().join("ours"), dir.path().join("peer"));
    std::fs::create_dir(&peers)?;
    let bytes = u64::from(args.mebibytes) << 20;
    for block in ["4k", "256k"] {
        std::fs::File::create(peers.join(block))?.set_len(bytes)?;
    }
    let servers = [Server::pannier(&program, &ours)?, Server::nbdkit(&peers)?];
    for block in ["4k", "256k"] {
        pannier(&program, &ours, &["volume", "create", block, "--size", &bytes.to_string()])?;
        for server in &servers {
            fill(server, block, args.mebibytes)?;
        }
    }
    let (mut results, mut short) = (Vec::new(), Vec::new());
    let chosen = |cell: &&Cell| args.only.as_deref().is_none_or(|part| cell.name.contains(part));
    for cell in CELLS.iter().filter(chosen) {
        let [ours, peer] = measure(args, &servers, cell)?;
        let rate = |series: &Series| series.median(|run| run.mib_per_second);
        let ratio = rate(&ours) / rate(&peer);
        if args.output == Output::Text {
            print_row(cell, &ours, &peer, ratio, results.is_empty());
        }
        if ratio < args.least {
            short.push(format!("{}: {ratio:.2}", cell.name));
        }
        results.push(json!({
            "cell": cell.name, "pannier": ours.json(), "nbdkit": peer.json(), "ratio": ratio,
        }));
    }
    if args.output == Output::Json {
        let head = json!({ "rounds": args.rounds, "seconds": args.seconds, "cells": results });
        println!("{}", serde_json::to_string_pretty(&head)?);
    }
    if !short.is_empty() {
        bail!("below {} of nbdkit: {}", args.least, short.join(", "));
    }
    Ok(())
}

/// Builds the daemon in release mode and returns its path.
fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "-p", "pannier", "--message-format", "json"])
        .current_dir(root())
        .stderr(Stdio::inherit())
        .output()
        .context("cargo does not start")?;
    if !output.status.success() {
        bail!("the daemon does not build");
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut programs = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    programs.next_back().context("cargo built no program")
}

fn fio(server: &Server, export: &str, arguments: &[&str]) -> Result<Value> {
    let output = Command::new("fio")
        .args(["--name=bench", "--ioengine=nbd", "--output-format=json", "--randrepeat=0"])
        .arg(format!("--uri={}", server.uri(export)))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("fio does not start; install the package fio")?;
    if !output.status.success() {
        bail!("fio {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    // fio writes notes before the document.
    let text = String::from_utf8_lossy(&output.stdout);
    let begin = text.find('{').context("fio wrote no JSON")?;
    serde_json::from_str(&text[begin..]).context("fio's JSON")
}

/// Writes the whole disk in blocks of the cell's size, and flushes.
fn fill(server: &Server, block: &str, mebibytes: u32) -> Result<()> {
    let (size, block_size) = (format!("--size={mebibytes}m"), format!("--bs={block}"));
    let whole = ["--rw=write", "--iodepth=16", "--end_fsync=1", "--refill_buffers"];
    fio(server, block, &[&whole[..], &[&size, &block_size]].concat()).map(drop)
}

/// Measures a cell in turns.
fn measure(args: &Args, servers: &[Server; 2], cell: &Cell) -> Result<[Series; 2]> {
    let mut series = [Series(Vec::new()), Series(Vec::new())];
    for _round in 0..args.rounds {
        for (server, series) in servers.iter().zip(&mut series) {
            series.0.push(measure_once(args, server, cell)?);
        }
    }
    Ok(series)
}

fn measure_once(args: &Args, server: &Server, cell: &Cell) -> Result<Run> {
    // What the other server has left to write is not ours to wait for.
    settle(args.dir.as_deref().unwrap_or(Path::new(".")));
    let before = server.cpu_seconds()?;
    let arguments = [
        format!("--rw={}", cell.pattern),
        format!("--bs={}", cell.block),
        format!("--iodepth={}", cell.depth),
        format!("--runtime={}", args.seconds),
        format!("--size={}m", args.mebibytes),
        "--time_based".to_owned(),
        "--refill_buffers".to_owned(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = fio(server, cell.block, &arguments)?;
    let side = if cell.pattern.ends_with("read") { "read" } else { "write" };
    let job = &result["jobs"][0][side];
    let number = |value: &Value| value.as_f64().context("a figure is missing in fio's JSON");
    Ok(Run {
        mib_per_second: number(&job["bw_bytes"])? / f64::from(1 << 20),
        requests_per_second: number(&job["iops"])?,
        latency_us_p99: number(&job["clat_ns"]["percentile"]["99.000000"])? / 1000.0,
        cpu_seconds: server.cpu_seconds()? - before,
    })
}

/// Waits until the kernel has written what it holds.
fn settle(dir: &Path) {
    // A disk that cannot be synced is measured as it is.
    drop(Command::new("sync").arg("--file-system").arg(dir).status());
}

fn print_row(cell: &Cell, ours: &Series, peer: &Series, ratio: f64, first: bool) {
    if first {
        println!(
            "{:<26} {:>26} {:>26} {:>7} {:>14}",
            "MiB/s: median (min..max)", "pannier", "nbdkit file", "ratio", "server CPU s"
        );
    }
    let show = |series: &Series| {
        let (least, most) = series.spread(|run| run.mib_per_second);
        format!("{:.0} ({least:.0}..{most:.0})", series.median(|run| run.mib_per_second))
    };
    let cpu = |series: &Series| series.median(|run| run.cpu_seconds);
    println!(
        "{:<26} {:>26} {:>26} {ratio:>7.2} {:>6.2} : {:>5.2}",
        cell.name,
        show(ours),
        show(peer),
        cpu(ours),
        cpu(peer)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        let run = |rate: f64| Run { mib_per_second: rate, ..Run::default() };
        let odd = Series(vec![run(3.0), run(1.0), run(2.0)]);
        assert_eq!(odd.median(|run| run.mib_per_second), 2.0);
        assert_eq!(odd.spread(|run| run.mib_per_second), (1.0, 3.0));
        let even = Series(vec![run(4.0), run(1.0), run(2.0), run(3.0)]);
        assert_eq!(even.median(|run| run.mib_per_second), 2.5);
    }
}
