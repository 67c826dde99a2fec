//! The registry transactions over a volume's record, as pure functions. A caller reads the record,
//! applies one, and commits the result on the condition that the record has not changed meanwhile.

use super::rules::Rules;
use crate::ids::{Epoch, HostId, SiteName};
use crate::record::{EpochEnd, Home, PublishedCheckpoint, Transit, VolumeRecord};
use crate::volume::Position;
use std::collections::BTreeSet;

/// What a transit shall be like; see [`Transit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Plan {
    /// A migration is declared: the first writer at the target takes the write right, once.
    pub declared: bool,
    /// The switch waits for that write.
    pub waits_for_write: bool,
}

/// A transaction of the ownership machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Change {
    /// [`begin_transit`].
    Begin {
        /// The owner, which gives.
        from: HostId,
        /// The host that takes.
        to: HostId,
        /// What is planned.
        plan: Plan,
    },
    /// [`settle`].
    Settle {
        /// The taker, owner by GRANT.
        owner: HostId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// [`abort`].
    Abort {
        /// The giver.
        by: HostId,
        /// The reserved epoch.
        epoch: Epoch,
    },
    /// [`takeover`].
    Takeover {
        /// The new owner.
        by: HostId,
        /// Hosts that are out, on the operator's word.
        fenced: BTreeSet<HostId>,
        /// Where the new owner's log ends.
        end: Position,
    },
}

/// Why a transaction, or a command, cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// Another host owns the volume.
    #[error("host {owner} owns the volume under epoch {epoch}")]
    NotOwner {
        /// The owner.
        owner: HostId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// A transit is under way.
    #[error(
        "the volume is already on its way from host {} to host {}; wait for it or abort it",
        .0.from, .0.to
    )]
    InTransit(Transit),
    /// There is no such transit.
    #[error("no change of owner is under way")]
    NoTransit,
    /// The giver has granted; only the taker can give the volume back.
    #[error("host {to} was given the volume under epoch {epoch}; move it back from there")]
    Granted {
        /// The taker.
        to: HostId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// The host is the owner already.
    #[error("host {0} owns the volume already")]
    AlreadyThere(HostId),
    /// A takeover needs the operator's word about this host.
    #[error("host {0} may own the volume; make sure that it is off, and say so with --fenced")]
    NotFenced(HostId),
    /// A higher epoch is registered.
    #[error("epoch {0} owns the volume")]
    Superseded(Epoch),
    /// A volume only grows.
    #[error("the volume has {size_bytes} bytes and cannot shrink")]
    Shrink {
        /// Its size.
        size_bytes: u64,
    },
    /// Older than what is published.
    #[error("a newer checkpoint is published")]
    OldCheckpoint,
    /// The volume has failed on its owner's host.
    #[error(
        "its disk has failed on the host that owns it, and what it has cannot be handed over; it \
         can still be read. Mend the disk, restart that host's daemon and move it then, or stop \
         that host and take the volume over elsewhere"
    )]
    DiskFailed,
    /// The machine is busy with a change that must end first.
    #[error("a change of owner is under way on this host; try again")]
    Busy,
}

/// Applies a machine's change.
///
/// # Errors
/// As the change's own function.
pub fn apply(
    record: &VolumeRecord,
    change: &Change,
    rules: &Rules,
) -> Result<VolumeRecord, Refusal> {
    match change {
        Change::Begin { from, to, plan } => begin(record, *from, *to, *plan, rules),
        Change::Settle { owner, epoch } => settle(record, *owner, *epoch),
        Change::Abort { by, epoch } => abort(record, *by, *epoch, rules),
        Change::Takeover { by, fenced, end } => takeover(record, *by, fenced, *end, rules),
    }
}

fn owned_by(record: &VolumeRecord, host: HostId) -> Result<(), Refusal> {
    if record.owner == host {
        return Ok(());
    }
    Err(Refusal::NotOwner { owner: record.owner, epoch: record.epoch })
}

fn reserve(record: &VolumeRecord, rules: &Rules) -> Epoch {
    if rules.epochs_never_reused { record.reserved.next() } else { record.epoch.next() }
}

/// Registers a transit from the owner to another host and reserves an epoch for it.
///
/// # Errors
/// [`Refusal::NotOwner`], [`Refusal::InTransit`], [`Refusal::AlreadyThere`].
pub fn begin_transit(
    record: &VolumeRecord,
    from: HostId,
    to: HostId,
    plan: Plan,
) -> Result<VolumeRecord, Refusal> {
    begin(record, from, to, plan, &Rules::ALL)
}

fn begin(
    record: &VolumeRecord,
    from: HostId,
    to: HostId,
    plan: Plan,
    rules: &Rules,
) -> Result<VolumeRecord, Refusal> {
    owned_by(record, from)?;
    if let Some(transit) = &record.transit {
        return Err(Refusal::InTransit(transit.clone()));
    }
    if from == to {
        return Err(Refusal::AlreadyThere(to));
    }
    let epoch = reserve(record, rules);
    let Plan { declared, waits_for_write } = plan;
    Ok(VolumeRecord {
        reserved: epoch.max(record.reserved),
        transit: Some(Transit { from, to, epoch, declared, waits_for_write }),
        ..record.clone()
    })
}

/// Registers the taker of a transit as the owner. Settled already, nothing changes.
///
/// # Errors
/// [`Refusal::Superseded`] when the transit is no longer there: a takeover came before.
pub fn settle(record: &VolumeRecord, owner: HostId, epoch: Epoch) -> Result<VolumeRecord, Refusal> {
    if record.owner == owner && record.epoch == epoch {
        return Ok(record.clone());
    }
    let open = record.transit.as_ref().is_some_and(|t| t.to == owner && t.epoch == epoch);
    if !open {
        return Err(Refusal::Superseded(record.epoch));
    }
    Ok(VolumeRecord { owner, epoch, transit: None, ..record.clone() })
}

/// Ends a transit that its giver has durably aborted. Its epoch stays reserved for ever.
///
/// # Errors
/// [`Refusal::NoTransit`] when it is not there, [`Refusal::NotOwner`] when `by` is not its giver.
pub fn abort(
    record: &VolumeRecord,
    by: HostId,
    epoch: Epoch,
    rules: &Rules,
) -> Result<VolumeRecord, Refusal> {
    let Some(transit) = record.transit.as_ref().filter(|t| t.epoch == epoch) else {
        return Err(Refusal::NoTransit);
    };
    if rules.only_giver_aborts {
        owned_by(record, by)?;
        assert_eq!(transit.from, by, "the giver of a registered transit is the registered owner");
    }
    Ok(VolumeRecord { transit: None, ..record.clone() })
}

/// Makes `by` the owner under a new epoch and records where the log of the old one ends. Needs
/// every host that may own the volume, other than `by`, in `fenced`: the owner, and during a
/// transit giver and taker.
///
/// # Errors
/// [`Refusal::NotFenced`].
pub fn takeover(
    record: &VolumeRecord,
    by: HostId,
    fenced: &BTreeSet<HostId>,
    end: Position,
    rules: &Rules,
) -> Result<VolumeRecord, Refusal> {
    let taker = record.transit.as_ref().filter(|_| rules.transit_counts_both).map(|t| t.to);
    let must_be_out = [Some(record.owner), taker].into_iter().flatten().filter(|h| *h != by);
    for host in must_be_out {
        if !fenced.contains(&host) {
            return Err(Refusal::NotFenced(host));
        }
    }
    let epoch = reserve(record, rules);
    Ok(VolumeRecord {
        owner: by,
        epoch,
        reserved: epoch.max(record.reserved),
        transit: None,
        ended: Some(EpochEnd { epoch: record.epoch, by: epoch, position: end }),
        ..record.clone()
    })
}

/// Registers the size that the owner's log has reached.
///
/// # Errors
/// [`Refusal::NotOwner`], [`Refusal::Superseded`], [`Refusal::Shrink`].
pub fn set_size(
    record: &VolumeRecord,
    owner: HostId,
    epoch: Epoch,
    size_bytes: u64,
) -> Result<VolumeRecord, Refusal> {
    may_publish(record, owner, epoch)?;
    if size_bytes < record.size_bytes {
        return Err(Refusal::Shrink { size_bytes: record.size_bytes });
    }
    Ok(VolumeRecord { size_bytes, ..record.clone() })
}

/// The registered owner under its epoch, or the taker of the registered transit under the reserved
/// one: it owns the volume already when it gets here before its settle.
fn may_publish(record: &VolumeRecord, host: HostId, epoch: Epoch) -> Result<(), Refusal> {
    let taker = record.transit.as_ref().is_some_and(|t| t.to == host && t.epoch == epoch);
    if taker {
        return Ok(());
    }
    if record.epoch != epoch {
        return Err(Refusal::Superseded(record.epoch));
    }
    owned_by(record, host)
}

/// Publishes a checkpoint that is durable in the site's store, fenced by the epoch of the owner
/// that made it. The site stays `independent` only if it was, and if the caller knows that
/// everything this checkpoint names beyond the one before is in the site's own store (`complete`).
///
/// # Errors
/// [`Refusal::Superseded`], [`Refusal::NotOwner`], [`Refusal::OldCheckpoint`].
pub fn publish_checkpoint(
    record: &VolumeRecord,
    owner: HostId,
    site: &SiteName,
    checkpoint: PublishedCheckpoint,
    complete: bool,
) -> Result<VolumeRecord, Refusal> {
    may_publish(record, owner, checkpoint.epoch)?;
    let published = record.homes.get(site).and_then(|home| home.checkpoint.as_ref());
    if published == Some(&checkpoint) {
        return Ok(record.clone());
    }
    let newer = |old: &PublishedCheckpoint| {
        (old.epoch, old.through) > (checkpoint.epoch, checkpoint.through)
    };
    if published.is_some_and(newer) {
        return Err(Refusal::OldCheckpoint);
    }
    let mut next = record.clone();
    let home = next.homes.entry(site.clone()).or_default();
    *home = Home { checkpoint: Some(checkpoint), independent: home.independent && complete };
    Ok(next)
}

/// Records that every block named by `checkpoint` was verified in the site's own store.
///
/// # Errors
/// [`Refusal::OldCheckpoint`] when the site has published another checkpoint meanwhile.
pub fn set_independent(
    record: &VolumeRecord,
    site: &SiteName,
    checkpoint: &PublishedCheckpoint,
) -> Result<VolumeRecord, Refusal> {
    let mut next = record.clone();
    match next.homes.get_mut(site) {
        Some(home) if home.checkpoint.as_ref() == Some(checkpoint) => home.independent = true,
        Some(_) | None => return Err(Refusal::OldCheckpoint),
    }
    Ok(next)
}
