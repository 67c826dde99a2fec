//! `pannier status`: the cluster, or one volume, for people.

use super::args::Status as Args;
use crate::api::types::{Movement, Place, Status, Volume};
use crate::client::{Client, encode_path};
use crate::output::{Failure, Printer, bytes, table};

pub(super) async fn run(client: &Client, args: Args, printer: &Printer) -> Result<(), Failure> {
    let url = match &args.path {
        Some(path) => format!("/v1/status{}", encode_path(path.as_str())),
        None => "/v1/status".to_owned(),
    };
    let status: Status = client.get(&url).await?;
    printer.result(&status, || match (&args.path, &status.volumes[..]) {
        (Some(_), [only]) => volume(only),
        _ => cluster(&status),
    });
    Ok(())
}

fn cluster(status: &Status) -> String {
    let rows: Vec<_> = status
        .hosts
        .iter()
        .map(|host| {
            let state = match (host.reachable, host.rtt_ms) {
                _ if host.name == status.host => "this host".to_owned(),
                (true, Some(rtt_ms)) => format!("reachable, {rtt_ms:.1} ms"),
                (true, None) => "reachable".to_owned(),
                (false, _) if host.alive == Some(true) => {
                    "does not answer; alive, says the registry".to_owned()
                }
                (false, _) if host.alive == Some(false) => "does not answer; not alive".to_owned(),
                (false, _) => "does not answer".to_owned(),
            };
            vec![host.site.clone(), host.name.clone(), host.address.clone(), state]
        })
        .collect();
    let mut text = table(&["SITE", "HOST", "ADDRESS", ""], &rows);
    if !status.registry.reachable {
        text.push_str(
            "\n\nThe registry does not answer. Volumes go on serving; create, delete and new moves \
             wait for it.\nWhat is shown is this host's copy.",
        );
    }
    if status.volumes.is_empty() {
        text.push_str("\n\nno volumes yet");
        return text;
    }
    let rows: Vec<_> = status
        .volumes
        .iter()
        .map(|volume| {
            vec![
                volume.path.clone(),
                bytes(volume.size_bytes),
                format!("{}/{}", volume.site, volume.owner),
                volume.epoch.to_string(),
                whereabouts(volume),
                going_on(volume).map_or_else(String::new, movement),
            ]
        })
        .collect();
    let head = ["VOLUME", "SIZE", "OWNER", "EPOCH", "DATA", ""];
    text.push_str("\n\n");
    text.push_str(&table(&head, &rows));
    text
}

/// Where the bytes are, in a word per site.
fn whereabouts(volume: &Volume) -> String {
    let Some(owner) = volume.places.iter().find(|place| place.host == volume.owner) else {
        return "owner does not answer".to_owned();
    };
    let proven = volume.homes.iter().any(|home| home.site == volume.site && home.independent);
    let independent = proven && owner.stored_bytes == owner.live_bytes;
    match (owner.live_bytes, owner.missing_bytes) {
        (0, _) => "empty".to_owned(),
        (live, 0) if independent => format!("{} at {}, verified", bytes(live), volume.site),
        // What is not in the store yet is what was written here since.
        (live, 0) if proven => format!(
            "{} at {}, {} not in its store yet",
            bytes(live),
            volume.site,
            bytes(live - owner.stored_bytes.min(live))
        ),
        (live, 0) => format!("{} at {}", bytes(live), volume.site),
        (live, missing) => {
            format!("{} of {} at {}", bytes(live - missing.min(live)), bytes(live), volume.site)
        }
    }
}

/// The move under way; one that has ended is told with the volume only.
fn going_on(volume: &Volume) -> Option<&Movement> {
    volume.movement.as_ref().filter(|movement| movement.phase != "independent")
}

fn movement(movement: &Movement) -> String {
    if movement.phase == "independent" {
        return format!("done: {} depends on no other site", movement.to_site);
    }
    let mut text = format!("{} to {}/{}", movement.phase, movement.to_site, movement.to);
    if movement.total_bytes > 0 {
        let share = movement.done_bytes as f64 / movement.total_bytes as f64 * 100.0;
        text.push_str(&format!(" {share:.0} %"));
    }
    if movement.bytes_per_second > 0.0 {
        text.push_str(&format!(", {}/s", bytes(movement.bytes_per_second as u64)));
    }
    if let Some(seconds) = movement.eta_seconds {
        text.push_str(&format!(", {seconds:.0} s left"));
    }
    if let Some(cause) = &movement.waiting_for {
        text.push_str(&format!(", waiting for {cause}"));
    }
    text
}

/// One volume.
pub(super) fn volume(volume: &Volume) -> String {
    let mut lines = vec![
        format!("{}  ({})", volume.path, volume.id),
        format!("  size    {}{}", bytes(volume.size_bytes), shared(volume)),
        format!("  owner   {}/{}, epoch {}", volume.site, volume.owner, volume.epoch),
    ];
    lines.push(format!("  data    {}", whereabouts(volume)));
    if let Some(moving) = &volume.movement {
        let from = moving.from.as_ref().map_or_else(String::new, |from| format!(", from {from}"));
        lines.push(format!("  move    {}{from}", movement(moving)));
        if moving.wire_bytes > 0 {
            lines.push(format!(
                "          {} over the network, {} guest reads waited for it",
                bytes(moving.wire_bytes),
                moving.demand_fetches
            ));
        }
    }
    let places: Vec<_> = volume.places.iter().map(place).collect();
    if !places.is_empty() {
        let head =
            ["HOST", "ROLE", "LIVE", "RESIDENT", "IN STORE", "MISSING", "GUESTS", "WRITE RIGHT"];
        lines.push(String::new());
        lines.push(table(&head, &places));
    }
    for obstacle in volume.places.iter().filter_map(|place| place.obstacle.as_ref()) {
        lines.push(format!("\n{obstacle}"));
    }
    let homes: Vec<_> = volume
        .homes
        .iter()
        .map(|home| {
            let checkpoint = match (home.checkpoint_epoch, home.checkpoint_sequence) {
                (Some(epoch), Some(sequence)) => format!("epoch {epoch}, segment {sequence}"),
                _ => "none yet".to_owned(),
            };
            let independent = if home.independent { "yes, verified" } else { "not yet" };
            vec![home.site.clone(), checkpoint, independent.to_owned()]
        })
        .collect();
    if !homes.is_empty() {
        lines.push(String::new());
        lines.push(table(&["HOME", "CHECKPOINT", "INDEPENDENT"], &homes));
    }
    lines.join("\n")
}

fn shared(volume: &Volume) -> &'static str {
    if volume.shared { ", shared" } else { "" }
}

fn place(place: &Place) -> Vec<String> {
    vec![
        format!("{}/{}", place.site, place.host),
        place.role.clone(),
        bytes(place.live_bytes),
        bytes(place.resident_bytes),
        bytes(place.stored_bytes),
        bytes(place.missing_bytes),
        place.connections.to_string(),
        if place.holds_write_right { "held here".to_owned() } else { String::new() },
    ]
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
