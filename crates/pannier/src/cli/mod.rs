//! The commands. All but `init`, `join`, `serve` and `demo` use the daemon's API and nothing else.

pub(crate) mod args;
mod guest;
pub(crate) mod host;
mod moves;
pub(crate) mod size;
mod status;
pub(crate) mod transfer;
mod volume;

pub(crate) use args::{Cli, Output};

use crate::client::{Client, SYSTEM_DIR};
use crate::demo;
use crate::output::{Failure, Printer};
use args::Command;
use pannier_engine::error::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Exit code of a command that failed; clap's is 2 for wrong usage.
const FAILED: u8 = 1;

/// Runs the command and returns the program's exit code.
pub(crate) fn run(cli: Cli) -> ExitCode {
    let printer = Printer::new(cli.output);
    let outcome = match cli.command {
        // Forks before threads exist, or builds a runtime of its own size.
        Command::Serve(args) => crate::serve::run(dir_of_host(cli.dir.as_deref()), args),
        command => runtime().and_then(|runtime| {
            runtime.block_on(Box::pin(execute(command, cli.dir.as_deref(), &printer)))
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            printer.failure(&failure);
            ExitCode::from(FAILED)
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
        Failure::new(ErrorKind::Internal, format!("cannot start the runtime: {error}"))
    })
}

pub(crate) async fn execute(
    command: Command,
    dir: Option<&Path>,
    printer: &Printer,
) -> Result<(), Failure> {
    let client = Client::find(dir);
    match command {
        Command::Init(args) => host::init(&dir_of_host(dir), args, printer).await,
        Command::Token(args) => host::token(dir, args, printer).await,
        Command::Join(args) => host::join(&dir_of_host(dir), args, printer).await,
        Command::Volume(args) => volume::run(&client, args, printer).await,
        Command::Move(args) => moves::run(&client, args, printer).await,
        Command::Takeover(args) => moves::takeover(&client, args, printer).await,
        Command::Status(args) => status::run(&client, args, printer).await,
        Command::Demo(args) => Box::pin(demo::run(args, printer)).await,
        Command::Serve(_) => Err(Failure::new(ErrorKind::Internal, "serve runs on its own")),
    }
}

/// The directory that a host command works on.
fn dir_of_host(dir: Option<&Path>) -> PathBuf {
    dir.map_or_else(|| PathBuf::from(SYSTEM_DIR), Path::to_owned)
}
