//! From what the engine tells to what the API says.

use super::types;
use pannier_core::ids::HostId;
use pannier_core::record::VolumeRecord;
use pannier_engine::directory::Directory;
use pannier_engine::status::{
    HostStatus, MovePhase, MoveStatus, Place, Role, Status, VolumeStatus,
};
use std::collections::BTreeMap;

/// Names and sites of hosts by id.
struct Hosts(BTreeMap<HostId, (String, String)>);

impl Hosts {
    fn of(hosts: &[HostStatus]) -> Self {
        let named = |host: &HostStatus| (host.id, (host.name.clone(), host.site.to_string()));
        Self(hosts.iter().map(named).collect())
    }

    fn name(&self, id: HostId) -> String {
        self.0.get(&id).map_or_else(|| id.to_string(), |(name, _)| name.clone())
    }

    fn site(&self, id: HostId) -> String {
        self.0.get(&id).map_or_else(String::new, |(_, site)| site.clone())
    }
}

pub(super) fn status(status: Status) -> types::Status {
    let hosts = Hosts::of(&status.hosts);
    types::Status {
        host: hosts.name(status.host),
        registry: types::Registry {
            reachable: status.registry.reachable,
            revision: status.registry.revision,
        },
        sites: status
            .sites
            .iter()
            .map(|site| types::Site {
                name: site.name.to_string(),
                hosts: site.hosts.iter().map(|host| hosts.name(*host)).collect(),
            })
            .collect(),
        hosts: status
            .hosts
            .iter()
            .map(|host| types::Host {
                id: host.id.to_string(),
                name: host.name.clone(),
                site: host.site.to_string(),
                address: host.address.clone(),
                reachable: host.reachable,
                alive: host.alive,
                rtt_ms: host.rtt_ms,
            })
            .collect(),
        volumes: status.volumes.into_iter().map(|shown| volume(shown, &hosts)).collect(),
    }
}

fn volume(volume: VolumeStatus, hosts: &Hosts) -> types::Volume {
    types::Volume {
        id: volume.id.to_string(),
        path: volume.path.to_string(),
        size_bytes: volume.size_bytes,
        shared: volume.shared,
        owner: hosts.name(volume.owner),
        site: hosts.site(volume.owner),
        epoch: volume.epoch.0,
        places: volume.places.iter().map(|shown| place(shown, hosts)).collect(),
        homes: volume
            .homes
            .iter()
            .map(|home| types::Home {
                site: home.site.to_string(),
                checkpoint_epoch: home.checkpoint.map(|(epoch, _)| epoch.0),
                checkpoint_sequence: home.checkpoint.map(|(_, sequence)| sequence.0),
                independent: home.independent,
            })
            .collect(),
        movement: volume.movement.map(|shown| movement(shown, hosts)),
    }
}

fn place(place: &Place, hosts: &Hosts) -> types::Place {
    types::Place {
        host: hosts.name(place.host),
        site: hosts.site(place.host),
        role: match place.role {
            Role::Owner => "owner",
            Role::Follower => "follower",
            Role::Switching => "switching",
            Role::None => "none",
        }
        .to_owned(),
        live_bytes: place.live_bytes,
        resident_bytes: place.resident_bytes,
        stored_bytes: place.stored_bytes,
        missing_bytes: place.missing_bytes,
        connections: place.connections,
        holds_write_right: place.holds_write_right,
        obstacle: place.obstacle.clone(),
    }
}

fn movement(movement: MoveStatus, hosts: &Hosts) -> types::Movement {
    types::Movement {
        from: movement.from.map(|from| hosts.name(from)),
        to: hosts.name(movement.to),
        to_site: hosts.site(movement.to),
        phase: match movement.phase {
            MovePhase::Preparing => "preparing",
            MovePhase::Switching => "switching",
            MovePhase::Hydrating => "hydrating",
            MovePhase::Verifying => "verifying",
            MovePhase::Independent => "independent",
        }
        .to_owned(),
        at_first_write: movement.at_first_write,
        total_bytes: movement.total_bytes,
        done_bytes: movement.done_bytes,
        wire_bytes: movement.wire_bytes,
        bytes_per_second: movement.bytes_per_second,
        eta_seconds: movement.eta_seconds,
        demand_fetches: movement.demand_fetches,
        waiting_for: movement.waiting_for,
    }
}

/// A record as an entry of a list.
pub(super) fn entry(record: &VolumeRecord, directory: &Directory) -> types::VolumeEntry {
    let site = directory.host(record.owner).map_or_else(String::new, |host| host.site.to_string());
    types::VolumeEntry {
        id: record.id.to_string(),
        path: record.path.to_string(),
        size_bytes: record.size_bytes,
        owner: directory.host_name(record.owner),
        site,
        moving_to: record.transit.as_ref().map(|transit| directory.host_name(transit.to)),
        independent_at: record
            .homes
            .keys()
            .filter(|site| record.is_independent_at(site))
            .map(ToString::to_string)
            .collect(),
    }
}
