//! `pannier demo`: two sites on this machine, a link between them, and a disk that moves in use.

use crate::output::{Failure, Printer};
use std::path::PathBuf;

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

/// Runs the demo.
pub(crate) async fn run(args: Args, printer: &Printer) -> Result<(), Failure> {
    printer.line(&format!("link: {} round trip, {}", args.rtt, args.rate));
    Ok(())
}
