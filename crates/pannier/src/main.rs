//! Storage that goes where the virtual machine goes: the one binary of Pannier.

mod api;
mod cli;
mod client;
mod config;
mod demo;
mod output;
mod serve;
mod telemetry;
mod web;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Usage errors end here, with exit code 2.
    let cli = cli::Cli::parse();
    cli::run(cli)
}
