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
    let before: Volume = client.get(&volume::url(&args.path)).await?;
    let goal = Goal { site: site.clone(), host: host.clone(), epoch_before: before.epoch };
    let begin = BeginMove { site: site.clone(), host, at_first_write: args.at_first_write };
    let started = Instant::now();
    client.send::<_, ()>(Method::POST, &url, &begin).await?;
    let default = if args.at_first_write { Wait::Declared } else { Wait::Switched };
    let wait = args.wait.unwrap_or(default);
    let moved = tokio::select! {
        moved = follow(client, &args.path, &goal, wait, printer) => moved?,
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

/// Where a move ends.
struct Goal {
    site: String,
    /// The host, if one was named.
    host: Option<String>,
    /// Epoch before the move: what is said of that one is not this move's work, not even at the
    /// same site.
    epoch_before: u64,
}

impl Goal {
    /// Whether the volume's owner is where the move goes, by this move.
    fn is_owner(&self, shown: &Volume) -> bool {
        let host = self.host.as_ref().is_none_or(|host| shown.owner == *host);
        shown.site == self.site && host && shown.epoch > self.epoch_before
    }

    /// Whether the move is where `wait` says.
    fn is_reached(&self, shown: &Volume, wait: Wait) -> bool {
        match wait {
            Wait::Declared => true,
            Wait::Switched => self.is_owner(shown) && !in_switch(shown.movement.as_ref()),
            Wait::Independent => {
                let home = shown.homes.iter().find(|home| home.site == self.site);
                self.is_owner(shown) && home.is_some_and(|home| home.independent)
            }
        }
    }
}

/// Follows the move until it is where `wait` says; returns the volume as it then is.
async fn follow(
    client: &Client,
    path: &VolumePath,
    goal: &Goal,
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
        if goal.is_reached(&shown, wait) {
            bars.finish();
            return Ok(shown);
        }
        begun |= shown.movement.is_some();
        if begun && shown.movement.is_none() && !goal.is_owner(&shown) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::Home;

    /// A volume at site `west`, which depends on no other.
    fn shown(owner: &str, epoch: u64) -> Volume {
        let home = Home {
            site: "west".to_owned(),
            checkpoint_epoch: Some(epoch),
            checkpoint_sequence: Some(1),
            independent: true,
        };
        Volume {
            id: "1".to_owned(),
            path: "/v".to_owned(),
            size_bytes: 4096,
            shared: false,
            owner: owner.to_owned(),
            site: "west".to_owned(),
            epoch,
            places: Vec::new(),
            homes: vec![home],
            movement: None,
        }
    }

    #[test]
    fn a_move_within_a_site_is_over_at_its_host_and_in_a_later_epoch() {
        let goal = |site: &str, host: Option<&str>| Goal {
            site: site.to_owned(),
            host: host.map(str::to_owned),
            epoch_before: 4,
        };
        for (goal, owner, epoch, reached) in [
            (goal("west", Some("w2")), "w1", 4, false),
            (goal("west", Some("w2")), "w2", 4, false),
            (goal("west", Some("w2")), "w3", 5, false),
            (goal("west", Some("w2")), "w2", 5, true),
            (goal("west", None), "w1", 4, false),
            (goal("west", None), "w1", 5, true),
            (goal("east", None), "w1", 5, false),
        ] {
            for wait in [Wait::Switched, Wait::Independent] {
                let found = goal.is_reached(&shown(owner, epoch), wait);
                assert_eq!(found, reached, "{owner} in epoch {epoch}, {wait:?}");
            }
        }
    }
}
