//! The invariants.

use super::world::{Entry, Host, Phase, Scenario, Shared, World};

type Checked = Result<(), String>;

/// Checks what must hold in every state: what guests notice, and unless `guests_only` what leads
/// there.
pub(super) fn check(world: &World, guests_only: bool) -> Checked {
    check_reads(world)?;
    check_writers(world)?;
    if guests_only { Ok(()) } else { check_hosts(world) }
}

/// A guest that reads now, at whichever host serves its session, sees every acknowledged write, and
/// every write that it was acknowledged itself.
fn check_reads(world: &World) -> Checked {
    let kept = world.truth.get().kept;
    for (attachment, guest) in world.guests.get().iter().enumerate() {
        if guest.phase != Phase::Open {
            continue;
        }
        for (index, host) in world.hosts.iter().map(Shared::get).enumerate() {
            if !host.here || !host.session_counts(attachment as u8, guest.session) {
                continue;
            }
            let must = kept | guest.acknowledged;
            if host.operations() & must != must {
                return Err(format!(
                    "the guest of host {attachment} reads at host {index} without acknowledged \
                     writes ({:#b} is there, {must:#b} was acknowledged)",
                    host.operations()
                ));
            }
        }
    }
    Ok(())
}

/// Of a volume that is not shared, no two guests are acknowledged writes at the same time.
fn check_writers(world: &World) -> Checked {
    let (truth, guests) = (world.truth.get(), world.guests.get());
    let Some(writer) = truth.writer else { return Ok(()) };
    for (other, guest) in guests.iter().enumerate() {
        let both = guest.acknowledged & truth.intruded != 0
            && guests[usize::from(writer)].acknowledged != 0;
        if other != usize::from(writer) && both {
            return Err(format!(
                "the guests of hosts {writer} and {other} both write, and are acknowledged"
            ));
        }
    }
    Ok(())
}

/// At most one host executes requests, and that one has every acknowledged write.
fn check_hosts(world: &World) -> Checked {
    let owners = world.executing();
    if owners.len() > 1 {
        return Err(format!("hosts {owners:?} execute requests at the same time"));
    }
    let kept = world.truth.get().kept;
    for owner in owners {
        let has = world.hosts[owner].get().operations();
        if has & kept != kept {
            return Err(format!(
                "host {owner} serves without acknowledged writes (has {has:#b}, must have \
                 {kept:#b})"
            ));
        }
    }
    Ok(())
}

/// Checks that the write may be executed by the host, whose log is still without it.
pub(super) fn check_write(
    world: &mut World,
    scenario: &Scenario,
    host: usize,
    entry: Entry,
) -> Checked {
    let log = &world.hosts[host].get().log;
    let same = |old: &&Entry| old.operation == entry.operation;
    if let Some(old) = log.iter().find(same)
        && (old.attachment, old.session) != (entry.attachment, entry.session)
        && old.attachment != entry.attachment
    {
        return Err(format!("{entry:?} is executed twice, first as {old:?}"));
    }
    if log.contains(&entry) {
        return Err(format!("{entry:?} is executed twice"));
    }
    let bit = 1_u16 << entry.operation;
    if world.truth.get().acknowledged & bit != 0 {
        return Err(format!("{entry:?} is executed after it was acknowledged"));
    }
    let guest = &world.guests.get()[usize::from(entry.attachment)];
    let has = world.hosts[host].get().operations();
    let owed = guest.acknowledged;
    if has & owed != owed {
        return Err(format!(
            "the guest of host {} goes on without writes that it was acknowledged",
            entry.attachment
        ));
    }
    check_address(world, host, entry)?;
    check_writer(world, scenario, entry)
}

/// An address means one thing for ever: caches and stores go by it and never ask again.
fn check_address(world: &mut World, host: usize, entry: Entry) -> Checked {
    let it: &Host = world.hosts[host].get();
    let (epoch, incarnation) = it.appends;
    let address = (epoch, incarnation, it.log.len() as u8);
    let before = world.truth.get().addresses.get(&address).copied();
    match before {
        Some(old) if old != entry.operation && world.truth.get().acknowledged & 1 << old != 0 => {
            Err(format!("{address:?} means write {old}, which was acknowledged, and {entry:?}"))
        }
        Some(_) | None => {
            world.truth.change(|truth| truth.addresses.insert(address, entry.operation));
            Ok(())
        }
    }
}

/// Checks that the attachment may write, and keeps the books on who may.
fn check_writer(world: &mut World, scenario: &Scenario, entry: Entry) -> Checked {
    let truth = world.truth.get();
    let declared = truth.declared.contains(&entry.attachment);
    match truth.writer {
        Some(writer) if writer == entry.attachment => Ok(()),
        Some(writer) if !declared => {
            if !scenario.guests_only {
                return Err(format!("{entry:?} is executed while attachment {writer} may write"));
            }
            world.truth.change(|truth| truth.intruded |= 1 << entry.operation);
            Ok(())
        }
        Some(_) | None => {
            world.truth.change(|truth| {
                truth.declared.retain(|target| *target != entry.attachment);
                truth.writer = Some(entry.attachment);
            });
            Ok(())
        }
    }
}
