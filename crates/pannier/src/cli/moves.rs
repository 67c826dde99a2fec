//! `pannier move` and `pannier takeover`.

use super::args::{Move, Takeover, Wait};
use super::{status, volume};
use crate::api::types::{BeginMove, BeginTakeover, Movement, Volume};
use crate::client::{Client, encode_path};
use crate::output::{Failure, Printer};
use hyper::Method;
use pannier_core::record::VolumePath;
use pannier_engine::error::ErrorKind;
use std::time::{Duration, Instant};

/// How often the state of a move is asked for.
const POLL: Duration = Duration::from_millis(100);

/// How long the daemon may be away while a move is followed: a restart takes less.
const AWAY_MAX: Duration = Duration::from_secs(30);

pub(super) async fn run(client: &Client, args: Move, printer: &Printer) -> Result<(), Failure> {
    let url = format!("/v1/moves{}", encode_path(args.path.as_str()));
    let Some(to) = &args.to else {
        client.call::<()>(Method::DELETE, &url).await?;
        let result = serde_json::json!({ "path": args.path.as_str(), "aborted": true });
        printer.result(&result, || format!("{}: the move is called off", args.path));
        return Ok(());
    };
    let (site, host) = match to.split_once('/') {
        Some((site, host)) => (site.to_owned(), Some(host.to_owned())),
        None => (to.clone(), None),
    };
    let begin = BeginMove { site: site.clone(), host, at_first_write: args.at_first_write };
    let started = Instant::now();
    client.send::<_, ()>(Method::POST, &url, &begin).await?;
    let default = if args.at_first_write { Wait::Declared } else { Wait::Switched };
    let wait = args.wait.unwrap_or(default);
    let moved = tokio::select! {
        moved = follow(client, &args.path, &site, wait, printer) => moved?,
        _ = tokio::signal::ctrl_c() => {
            printer.line(&format!(
                "the move of {} goes on; `pannier status {0}` shows it, `pannier move {0} --abort` \
                 calls it off before the switch",
                args.path
            ));
            return Ok(());
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    let result = serde_json::json!({ "volume": moved, "seconds": seconds });
    printer.result(&result, || match wait {
        Wait::Declared => format!(
            "{}: the move to {to} is declared; it switches at the guest's first write there",
            args.path
        ),
        Wait::Switched => format!(
            "{} is at {site} since {seconds:.1} s after the command, on {}; its data follows \
             (`pannier status {0}`)",
            args.path, moved.owner
        ),
        Wait::Independent => format!(
            "{} is at {site}, and nothing depends on another site: verified after {seconds:.1} s",
            args.path
        ),
    });
    Ok(())
}

/// Follows the move until it is where `wait` says; returns the volume as it then is.
async fn follow(
    client: &Client,
    path: &VolumePath,
    site: &str,
    wait: Wait,
    printer: &Printer,
) -> Result<Volume, Failure> {
    let url = volume::url(path);
    let mut bars = Bars::new(printer);
    let mut answered = Instant::now();
    let mut begun = false;
    loop {
        let shown: Volume = match client.get(&url).await {
            Ok(shown) => shown,
            Err(failure) if failure.0.kind == "unavailable" && answered.elapsed() < AWAY_MAX => {
                tokio::time::sleep(POLL).await;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        answered = Instant::now();
        let at_site = shown.site == site;
        let home = shown.homes.iter().find(|home| home.site == site);
        let independent = at_site && home.is_some_and(|home| home.independent);
        let done = match wait {
            Wait::Declared => true,
            Wait::Switched => at_site && !in_switch(shown.movement.as_ref()),
            Wait::Independent => independent,
        };
        if done {
            bars.finish();
            return Ok(shown);
        }
        begun |= shown.movement.is_some();
        if begun && shown.movement.is_none() && !at_site {
            return Err(Failure::new(
                ErrorKind::Closed,
                format!(
                    "the move of {path} was called off; the volume is still on {}",
                    shown.owner
                ),
            ));
        }
        if let Some(movement) = &shown.movement {
            bars.show(movement);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn in_switch(movement: Option<&Movement>) -> bool {
    movement.is_some_and(|movement| matches!(movement.phase.as_str(), "preparing" | "switching"))
}

/// The bar of the phase that the move is in.
struct Bars<'a> {
    printer: &'a Printer,
    phase: String,
    bar: Option<crate::output::Bar>,
}

impl<'a> Bars<'a> {
    fn new(printer: &'a Printer) -> Self {
        Self { printer, phase: String::new(), bar: None }
    }

    fn show(&mut self, movement: &Movement) {
        if self.phase != movement.phase {
            self.finish();
            self.phase.clone_from(&movement.phase);
            self.bar = Some(if movement.total_bytes > 0 {
                self.printer.bytes_bar(&movement.phase, movement.total_bytes)
            } else {
                self.printer.spinner(&movement.phase)
            });
        }
        if let Some(bar) = &self.bar {
            bar.set_total(movement.total_bytes);
            bar.set(movement.done_bytes);
            if let Some(cause) = &movement.waiting_for {
                bar.set_message(format!("{}: waiting for {cause}", movement.phase));
            }
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}

pub(super) async fn takeover(
    client: &Client,
    args: Takeover,
    printer: &Printer,
) -> Result<(), Failure> {
    let url = format!("/v1/takeovers{}", encode_path(args.path.as_str()));
    let begin = BeginTakeover { fenced: args.fenced };
    client.send::<_, ()>(Method::POST, &url, &begin).await?;
    let shown: Volume = client.get(&volume::url(&args.path)).await?;
    printer.result(&shown, || status::volume(&shown));
    Ok(())
}
