//! Status: what this host has of volumes and does for them, and the cluster put together from what
//! all hosts tell.

use super::Host;
use super::peers::{HostAnswer, HostRequest};
use crate::error::{Error, ErrorKind, Result};
use crate::message::{MoveProgress, Phase};
use crate::ownership::{Part, View};
use crate::status::{
    HomeStatus, HostStatus, MovePhase, MoveStatus, Place, RegistryStatus, Role, SiteStatus, Status,
    VolumeStatus,
};
use futures::StreamExt as _;
use pannier_core::ids::{HostId, VolumeId};
use pannier_core::record::{VolumePath, VolumeRecord};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Places in one report: about 150 bytes each, a small part of a message.
const PLACES_MAX: usize = 2048;

/// Reports asked for of one host for one status: 20,000 volumes there.
const REPORTS_MAX: usize = 10;

/// Hosts asked at once.
const ASKED_MAX: usize = 32;

/// How long a host may take to report before the status says that it does not answer.
const REPORT_WAIT: Duration = Duration::from_secs(2);

/// What one host has and does.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Report {
    /// The volumes' ids, one per place.
    pub(super) volumes: Vec<VolumeId>,
    /// What it has of each.
    pub(super) places: Vec<Place>,
    /// How far moves to it are, with the source where it is known.
    pub(super) moves: Vec<(VolumeId, Option<HostId>, MoveProgress)>,
    /// Of the volumes that it owns, the hosts whose attachments hold the write right.
    holders: Vec<(VolumeId, HostId)>,
    /// Volumes of which it has handed over, or is about to.
    pub(super) switching: Vec<VolumeId>,
    /// Whether more places follow.
    more: bool,
}

impl Host {
    /// What this host has of one volume, or of those behind `after`.
    pub(super) fn report(&self, only: Option<VolumeId>, after: Option<VolumeId>) -> Report {
        let mut report = Report::default();
        let mut volumes: Vec<_> = match only {
            Some(volume) => vec![volume],
            None => self.directory.volumes().iter().map(|found| found.record.id).collect(),
        };
        volumes.retain(|volume| after.is_none_or(|after| *volume > after));
        volumes.sort();
        for volume in volumes {
            let Some((place, view)) = self.place(volume) else { continue };
            if report.places.len() == PLACES_MAX {
                report.more = true;
                break;
            }
            let progress = self.mover.progress(volume);
            let source = self.came_from.lock().get(&volume).copied();
            if progress.phase != Phase::None && (source.is_some() || progress.wire_bytes > 0) {
                report.moves.push((volume, source, progress));
            }
            if place.role == Role::Switching || view.part == Part::Granted {
                report.switching.push(volume);
            }
            if let (Part::Owner, Some(holder)) = (view.part, view.right.holder) {
                report.holders.push((volume, holder));
            }
            report.volumes.push(volume);
            report.places.push(place);
        }
        report
    }

    /// What this host holds of its volumes and does for them, by path; for metrics.
    #[must_use]
    pub fn places(&self) -> Vec<(VolumePath, Place)> {
        let volumes = self.directory.volumes();
        let place = |record: VolumeRecord| Some((record.path, self.place(record.id)?.0));
        volumes.into_iter().filter_map(|found| place(found.record)).collect()
    }

    fn place(&self, volume: VolumeId) -> Option<(Place, View)> {
        let local = self.locals.known(volume);
        let connections = self.mover.connections(volume);
        let view = self.owners.view(volume).unwrap_or_default();
        let role = match view.part {
            Part::Owner => Role::Owner,
            Part::Follower => Role::Follower,
            Part::Waiting | Part::Granted => Role::Switching,
            Part::None | Part::Fenced => Role::None,
        };
        let nothing = local.is_none() && connections == 0 && view.obstacle.is_none();
        if nothing && role == Role::None {
            return None;
        }
        let stats = local.map(|local| local.stats()).unwrap_or_default();
        let place = Place {
            host: self.id,
            role,
            epoch: view.epoch,
            live_bytes: stats.live_bytes,
            resident_bytes: stats.resident_bytes.min(stats.live_bytes),
            stored_bytes: stats.stored_bytes.min(stats.live_bytes),
            missing_bytes: stats
                .live_bytes
                .saturating_sub(stats.resident_bytes.max(stats.stored_bytes)),
            connections: u32::try_from(connections).unwrap_or(u32::MAX),
            holds_write_right: view.part == Part::Owner && view.right.holder == Some(self.id),
            obstacle: view.obstacle.clone().or_else(|| self.mover.obstacle(volume)),
        };
        Some((place, view))
    }

    /// What every host tells of one volume or of all; `None` from those that do not answer.
    pub(super) async fn reports(&self, only: Option<VolumeId>) -> BTreeMap<HostId, Option<Report>> {
        let mut hosts: Vec<_> = self.directory.hosts().iter().map(|host| host.id).collect();
        if !hosts.contains(&self.id) {
            hosts.push(self.id);
        }
        let ask = hosts.into_iter().map(|host| async move {
            let report = tokio::time::timeout(REPORT_WAIT, self.whole_report(host, only)).await;
            (host, report.ok().and_then(Result::ok))
        });
        futures::stream::iter(ask).buffer_unordered(ASKED_MAX).collect().await
    }

    async fn whole_report(&self, host: HostId, only: Option<VolumeId>) -> Result<Report> {
        let mut whole = Report::default();
        for _ in 0..REPORTS_MAX {
            let after = whole.volumes.last().copied();
            let HostAnswer::Report(part) =
                self.ask(host, HostRequest::Report { only, after }).await?
            else {
                return Err(Error::new(ErrorKind::Internal, "the answer is not a report"));
            };
            whole.volumes.extend(part.volumes);
            whole.places.extend(part.places);
            whole.moves.extend(part.moves);
            whole.switching.extend(part.switching);
            whole.holders.extend(part.holders);
            if !part.more {
                break;
            }
        }
        Ok(whole)
    }

    /// The cluster, with all volumes or one.
    ///
    /// # Errors
    /// `NotFound` for a volume that is not there.
    pub async fn status(&self, only: Option<&VolumePath>) -> Result<Status> {
        let mut records: Vec<VolumeRecord> = match only {
            Some(path) => vec![self.directory.find(path).await?.record],
            None => self.directory.volumes().into_iter().map(|found| found.record).collect(),
        };
        records.sort_by(|a, b| a.path.cmp(&b.path));
        let only = only.and_then(|_| records.first().map(|record| record.id));
        let reports = self.reports(only).await;
        let mut known = Told::default();
        let mut answered = Vec::new();
        for (host, report) in reports {
            let Some(report) = report else { continue };
            answered.push(host);
            known.take(host, report);
        }
        let hosts = self.directory.hosts();
        let sites = self
            .directory
            .sites()
            .into_iter()
            .map(|site| SiteStatus {
                hosts: hosts.iter().filter(|host| host.site == site.name).map(|h| h.id).collect(),
                name: site.name,
            })
            .collect();
        let host_status = |host: &pannier_core::record::HostRecord| HostStatus {
            id: host.id,
            name: host.name.clone(),
            site: host.site.clone(),
            address: host.address.clone(),
            reachable: answered.contains(&host.id),
            alive: self.directory.alive(host.id),
            rtt_ms: (host.id != self.id && answered.contains(&host.id))
                .then(|| self.peers.rtt(host.id))
                .flatten()
                .map(|rtt| rtt.as_secs_f64() * 1000.0),
        };
        let mut host_list: Vec<_> = hosts.iter().map(host_status).collect();
        host_list.sort_by(|a, b| (&a.site, &a.name).cmp(&(&b.site, &b.name)));
        Ok(Status {
            host: self.id,
            registry: RegistryStatus {
                reachable: self.directory.reachable(),
                revision: self.directory.revision().0,
            },
            sites,
            hosts: host_list,
            volumes: records.iter().map(|record| known.volume(record)).collect(),
        })
    }
}

/// What all hosts have told, by volume.
#[derive(Default)]
struct Told {
    places: BTreeMap<VolumeId, Vec<Place>>,
    moves: BTreeMap<(VolumeId, HostId), (Option<HostId>, MoveProgress)>,
    switching: BTreeMap<VolumeId, Vec<HostId>>,
    holders: BTreeMap<VolumeId, HostId>,
}

impl Told {
    fn take(&mut self, host: HostId, report: Report) {
        for (volume, place) in report.volumes.into_iter().zip(report.places) {
            self.places.entry(volume).or_default().push(place);
        }
        for (volume, source, progress) in report.moves {
            self.moves.insert((volume, host), (source, progress));
        }
        self.holders.extend(report.holders);
        for volume in report.switching {
            self.switching.entry(volume).or_default().push(host);
        }
    }

    fn volume(&self, record: &VolumeRecord) -> VolumeStatus {
        VolumeStatus {
            id: record.id,
            path: record.path.clone(),
            size_bytes: record.size_bytes,
            shared: record.shared,
            owner: record.owner,
            epoch: record.epoch,
            places: self.places(record.id),
            homes: record
                .homes
                .iter()
                .map(|(site, home)| HomeStatus {
                    site: site.clone(),
                    checkpoint: home.checkpoint.as_ref().map(|it| (it.epoch, it.through)),
                    independent: record.is_independent_at(site),
                })
                .collect(),
            movement: self.movement(record),
        }
    }

    fn places(&self, volume: VolumeId) -> Vec<Place> {
        let mut places = self.places.get(&volume).cloned().unwrap_or_default();
        for place in &mut places {
            // The owner knows.
            place.holds_write_right = self.holders.get(&volume) == Some(&place.host);
        }
        places
    }

    fn movement(&self, record: &VolumeRecord) -> Option<MoveStatus> {
        let transit = record.transit.as_ref();
        let to = transit.map_or(record.owner, |transit| transit.to);
        let told = self.moves.get(&(record.id, to)).copied();
        let (source, progress) = told.unwrap_or_default();
        let phase = match (transit, progress.phase) {
            (None, Phase::None) => return None,
            // The taker has switched and is only about to register it.
            (_, Phase::Hydrating) => MovePhase::Hydrating,
            (_, Phase::Publishing | Phase::Verifying) => MovePhase::Verifying,
            (None, Phase::Independent) => MovePhase::Independent,
            (_, Phase::Switching) => MovePhase::Switching,
            (Some(transit), Phase::None | Phase::Following | Phase::Independent) => {
                let switching = self.switching.get(&record.id);
                if switching.is_some_and(|hosts| hosts.contains(&transit.from)) {
                    MovePhase::Switching
                } else {
                    MovePhase::Preparing
                }
            }
            (None, Phase::Following) => return None,
        };
        let before_switch = phase <= MovePhase::Switching;
        Some(MoveStatus {
            from: transit.map(|transit| transit.from).or(source),
            to,
            phase,
            at_first_write: transit.is_some_and(|transit| transit.waits_for_write),
            total_bytes: progress.bytes_total,
            done_bytes: progress.bytes_done,
            wire_bytes: progress.wire_bytes,
            bytes_per_second: progress.rate_bytes as f64,
            eta_seconds: progress.eta_ms.map(|millis| millis as f64 / 1000.0),
            demand_fetches: progress.demand_fetches,
            waiting_for: self.waiting_for(record, to, told.is_some(), before_switch),
        })
    }

    /// Why a move does not get on just now, as far as that can be told from here.
    fn waiting_for(
        &self,
        record: &VolumeRecord,
        to: HostId,
        told: bool,
        before_switch: bool,
    ) -> Option<String> {
        let places = self.places.get(&record.id);
        if !before_switch {
            return places?.iter().find(|place| place.host == to)?.obstacle.clone();
        }
        let transit = record.transit.as_ref()?;
        let there = |host| places.is_some_and(|all| all.iter().any(|place| place.host == host));
        if !told && !there(to) {
            return Some("the target host".to_owned());
        }
        if !there(transit.from) {
            return Some("the source host".to_owned());
        }
        transit.waits_for_write.then(|| "the first write at the target".to_owned())
    }
}
