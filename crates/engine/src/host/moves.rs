//! Moves and takeovers, as operators ask for them.

use super::Host;
use super::peers::HostRequest;
use crate::error::{Error, ErrorKind, Result};
use pannier_core::ids::{HostId, SiteName, VolumeId};
use pannier_core::record::{HostRecord, VolumePath};
use pannier_core::volume::ownership::transaction::{Plan, Refusal, begin_transit};
use std::collections::BTreeSet;

/// Where a volume is to be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The site.
    pub site: SiteName,
    /// A host of that site, by name; without it, one that answers.
    pub host: Option<String>,
}

/// When the right to append changes hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwitchAt {
    /// As soon as the target has caught up.
    Once,
    /// At the first write at the target: what a hypervisor's migration hook asks for.
    FirstWrite,
}

impl Host {
    /// Begins a move; it is registered when this returns.
    ///
    /// # Errors
    /// `NotFound` for the volume, site or host; `Invalid` when it is there already or on its way;
    /// `Unavailable` while the owner, the target or the registry is away, or when the volume's disk
    /// has failed on the owner.
    pub async fn move_volume(
        &self,
        path: &VolumePath,
        to: &Destination,
        switch: SwitchAt,
    ) -> Result<()> {
        let found = self.directory.find(path).await?.record;
        let found = self.directory.fresh_volume(found.id).await?.record;
        let target = self.choose(path, found.owner, to).await?;
        if target.id == found.owner {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("volume `{path}` is on host {} already", target.name),
            ));
        }
        for host in [found.owner, target.id] {
            if !self.answers(host).await {
                return Err(self.silent(path, host, host == found.owner));
            }
        }
        self.at_owner(&found, HostRequest::Movable { volume: found.id }).await?;
        let plan = Plan { declared: true, waits_for_write: switch == SwitchAt::FirstWrite };
        self.directory
            .update_volume(found.id, |record| {
                let begun = begin_transit(record, record.owner, target.id, plan);
                *record = begun.map_err(|refusal| self.refused(path, &refusal))?;
                Ok(())
            })
            .await?;
        tracing::info!(volume = %path, to = target.name, "a move is registered");
        Ok(())
    }

    /// The host that a move goes to.
    async fn choose(
        &self,
        path: &VolumePath,
        owner: HostId,
        to: &Destination,
    ) -> Result<HostRecord> {
        let hosts = self.directory.hosts();
        let there: Vec<_> = hosts.iter().filter(|host| host.site == to.site).cloned().collect();
        if there.is_empty() {
            let sites: Vec<_> =
                self.directory.sites().into_iter().map(|site| site.name.to_string()).collect();
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "there is no host at site `{}`; sites with hosts are {}",
                    to.site,
                    sites.join(", ")
                ),
            ));
        }
        if let Some(name) = &to.host {
            return there.iter().find(|host| host.name == *name).cloned().ok_or_else(|| {
                let names: Vec<_> = there.iter().map(|host| host.name.as_str()).collect();
                Error::new(
                    ErrorKind::NotFound,
                    format!(
                        "there is no host `{name}` at site `{}`; its hosts are {}",
                        to.site,
                        names.join(", ")
                    ),
                )
            });
        }
        if there.iter().any(|host| host.id == owner) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "volume `{path}` is at site {} already, on host {}; name a host \
                     (`--to {}/HOST`) to move it within the site",
                    to.site,
                    self.directory.host_name(owner),
                    to.site
                ),
            ));
        }
        for host in &there {
            if self.answers(host.id).await {
                return Ok(host.clone());
            }
        }
        Err(self.silent(path, there[0].id, false))
    }

    fn silent(&self, path: &VolumePath, host: HostId, owner: bool) -> Error {
        let name = self.directory.host_name(host);
        let way_out = if owner {
            format!(
                "which owns `{path}`; start it. If it is lost for good, make sure that it is off \
                 and take the volume over elsewhere: `pannier takeover {path} --fenced {name}`"
            )
        } else {
            "the target; start it, or mend the link to it, and repeat the command".to_owned()
        };
        let context = format!("no answer from host {name}, {way_out}");
        Error::new(ErrorKind::Unavailable, context)
    }

    /// A refusal, with names in place of ids.
    fn refused(&self, path: &VolumePath, refusal: &Refusal) -> Error {
        let name = |host: &HostId| self.directory.host_name(*host);
        let cause = match refusal {
            Refusal::InTransit(transit) => format!(
                "it is on its way from host {} to host {} already; wait for it, or call it off \
                 with `pannier move {path} --abort`",
                name(&transit.from),
                name(&transit.to)
            ),
            Refusal::NotOwner { owner, .. } if *owner == self.id => format!(
                "host {0} owns it and does not act as its owner; `pannier status {path}` says why. \
                 If that stays, take the volume over on a host that has a copy, which ends the \
                 move: `pannier takeover {path} --fenced {0}`",
                name(owner)
            ),
            Refusal::NotOwner { owner, .. } => {
                format!("host {} owns it by now; repeat the command", name(owner))
            }
            Refusal::AlreadyThere(host) => format!("it is on host {} already", name(host)),
            Refusal::NotFenced(host) => format!(
                "host {0} may own it; make sure that it is out (power off), and say so with \
                 `--fenced {0}`",
                name(host)
            ),
            Refusal::Granted { to, .. } => {
                format!("host {} has been given it already; move it back from there", name(to))
            }
            other => other.to_string(),
        };
        Error::new(ErrorKind::Invalid, format!("volume `{path}`: {cause}"))
            .with_source(refusal.clone())
    }

    /// The error of an ownership command, in an operator's words.
    fn in_words(&self, path: &VolumePath, error: Error) -> Error {
        let refusal = std::error::Error::source(&error)
            .and_then(|source| source.downcast_ref::<Refusal>())
            .cloned();
        match refusal {
            Some(refusal) => self.refused(path, &refusal),
            None => error,
        }
    }

    /// Calls off a move that has not switched yet.
    ///
    /// # Errors
    /// `Invalid` when there is none or it has switched; `Unavailable` while the owner is away.
    pub async fn abort_move(&self, path: &VolumePath) -> Result<()> {
        let found = self.directory.find(path).await?.record;
        self.at_owner(&found, HostRequest::Abort { volume: found.id }).await
    }

    /// Whether the volume can be handed over by this host, its owner.
    pub(super) fn movable_here(&self, volume: VolumeId) -> Result<()> {
        let Some(cause) = self.locals.known(volume).and_then(|local| local.failure()) else {
            return Ok(());
        };
        let context = format!("volume {volume}: {}. The cause: {cause}", Refusal::DiskFailed);
        Err(Error::new(ErrorKind::Unavailable, context).with_source(cause))
    }

    /// Carries an abort out: this host is the owner.
    pub(super) async fn abort_here(&self, volume: VolumeId) -> Result<()> {
        let Some(found) = self.directory.volume(volume) else {
            return Err(self.not_owner(volume));
        };
        let aborted = self.owners.abort(volume).await;
        aborted.map(|_| ()).map_err(|error| self.in_words(&found.record.path, error))
    }

    /// Makes this host the owner without the old owner's word. `fenced` names the hosts that are
    /// out, on the operator's word.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` when a host that may own it is not named, `Unavailable` while the
    /// registry is away.
    pub async fn take_over(&self, path: &VolumePath, fenced: &[String]) -> Result<()> {
        let found = self.directory.find(path).await?.record;
        let hosts = self.directory.hosts();
        let mut out = BTreeSet::new();
        for name in fenced {
            let host = hosts.iter().find(|host| host.name == *name).ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("there is no host `{name}`; `pannier status` shows the hosts"),
                )
            })?;
            out.insert(host.id);
        }
        self.open_volume(found.id).await?;
        let taken = self.owners.take_over(found.id, out).await;
        taken.map(|_| ()).map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                let context = format!(
                    "nothing of volume `{path}` is on this host; take it over on the host that it \
                     was being moved to, or that held it before"
                );
                return Error::new(ErrorKind::NotFound, context).with_source(error);
            }
            self.in_words(path, error)
        })?;
        tracing::info!(volume = %path, "taken over");
        self.await_owner(found.id).await;
        Ok(())
    }
}
