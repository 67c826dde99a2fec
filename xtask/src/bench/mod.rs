//! Whole-system benches: always against the peer in the same run, printed as ratios.

pub(crate) mod nbd;
mod server;

use anyhow::Result;
use clap::Subcommand;

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// NBD against nbdkit's file plugin on the same disk
    Nbd(nbd::Args),
}

/// Runs a bench.
pub(crate) fn run(bench: Bench) -> Result<()> {
    match bench {
        Bench::Nbd(args) => nbd::run(&args),
    }
}
