//! The project's own commands. `cargo xtask test` is what a change must pass.

#![expect(clippy::print_stdout, reason = "a command line tool prints")]

mod bench;
mod packages;
mod run;
mod tidy;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Format, lints and tidy: a minute before a commit
    Check,
    /// Everything: packages, format, lints, tidy, unit tests, exploration, real clients
    Test,
    /// The same, as continuous integration runs it
    Ci,
    /// The house rules alone: floors, lengths, links, words, licences
    Tidy,
    /// The tests with real clients and real processes alone
    E2e {
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// A test at full length, with the release build
    Soak {
        /// What to repeat
        #[command(subcommand)]
        what: Soak,
    },
    /// Measure the whole system against its peer, as ratios
    Bench {
        /// What to measure
        #[command(subcommand)]
        what: bench::Bench,
    },
    /// Install the Debian packages that the tests need
    Install,
}

#[derive(Debug, Subcommand)]
enum Soak {
    /// Kill the daemon under load at random moments
    Kill9 {
        /// How many times
        #[arg(long, default_value_t = 50)]
        rounds: u32,
    },
    /// Move a volume under load, back and forth, at 20 ms and at 100 ms of round trip
    Moves {
        /// How many moves per round trip time
        #[arg(long, default_value_t = 20)]
        rounds: u32,
    },
}

fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<()> {
    match command {
        Command::Check => run::check(),
        Command::Test | Command::Ci => run::test(),
        Command::Tidy => tidy::run(),
        Command::E2e { filter } => run::e2e(filter.as_deref()),
        Command::Soak { what: Soak::Kill9 { rounds } } => {
            run::crash_images(rounds)?;
            run::soak("kill_9_loses", "PANNIER_E2E_KILLS", rounds)
        }
        Command::Soak { what: Soak::Moves { rounds } } => {
            run::soak("back_and_forth", "PANNIER_E2E_MOVES", rounds)
        }
        Command::Bench { what } => bench::run(what),
        Command::Install => packages::install(),
    }
}
