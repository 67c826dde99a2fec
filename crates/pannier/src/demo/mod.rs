//! `pannier demo`: two sites on this machine, a link between them, and a disk that moves in use.
//!
//! Everything in it is real: two daemons, a WAN of given delay and rate that all their datagrams
//! pass, a guest on NBD. The source is killed and its directory removed before the proof.

mod guest;
mod image;
mod options;
mod plot;
mod report;
mod run;
mod site;
mod verify;
mod watch;

use crate::output::{Failure, Printer};
use options::Link;
use pannier_engine::error::ErrorKind;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

/// What the demo is asked to show.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The raw image to move [default: an ext4 image made from this machine's files]
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// Round trip time of the link between the sites
    #[arg(long, default_value = "40ms", value_name = "TIME")]
    pub(crate) rtt: String,
    /// Rate of the link
    #[arg(long, default_value = "200mbit", value_name = "RATE")]
    pub(crate) rate: String,
    /// Share of packets that the link loses, such as 0.5%
    #[arg(long, value_name = "SHARE")]
    pub(crate) loss: Option<String>,
    /// Write a report with plots to this HTML file
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
}

/// Runs the demo. Its daemons and its directory are gone when this returns, however it ends.
pub(crate) async fn run(args: Args, printer: &Printer) -> Result<(), Failure> {
    let link = Link::parse(&args.rtt, &args.rate, args.loss.as_deref())?;
    if let Some(report) = &args.report {
        // Better now than after two minutes.
        std::fs::write(report, "")
            .map_err(|error| Failure::io(format!("cannot write {}", report.display()), error))?;
    }
    let root = tempfile::Builder::new()
        .prefix("pannier-demo-")
        .tempdir()
        .map_err(|error| Failure::io("cannot make a directory for the demo", error))?;
    let listen =
        |kind| signal(kind).map_err(|error| Failure::io("cannot listen for signals", error));
    // Before anything starts: a signal that nobody listens to would end the demo without it.
    let mut interrupted_by_key = listen(SignalKind::interrupt())?;
    let mut terminated = listen(SignalKind::terminate())?;
    let mut hung_up = listen(SignalKind::hangup())?;
    let interrupted = || Failure::new(ErrorKind::Closed, "the demo was interrupted and is removed");
    let outcome = tokio::select! {
        outcome = Box::pin(run::show(&args, link, root.path(), printer)) => outcome,
        _ = interrupted_by_key.recv() => Err(interrupted()),
        _ = terminated.recv() => Err(interrupted()),
        _ = hung_up.recv() => Err(interrupted()),
    };
    let removed = root.close();
    let figures = outcome?;
    removed.map_err(|error| Failure::io("cannot remove the demo's directory", error))?;
    printer.result(&figures, || figures.text());
    if figures.verified {
        Ok(())
    } else {
        Err(Failure::new(ErrorKind::Corrupt, "the disk at the target is not what was written"))
    }
}
