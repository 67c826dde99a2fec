//! The invariants.

use super::world::{Entry, HOSTS, Host, Shared, World};

/// Checks what must hold in every state.
pub(super) fn check(world: &World) -> Result<(), String> {
    let executes = |host: &Shared<Host>| {
        host.get().machine.as_ref().is_some_and(|machine| machine.appends_under().is_some())
    };
    let owners: Vec<usize> = (0..HOSTS).filter(|&host| executes(&world.hosts[host])).collect();
    if owners.len() > 1 {
        return Err(format!("hosts {owners:?} execute requests at the same time"));
    }
    let kept = world.truth.get().kept;
    for (index, host) in world.hosts.iter().map(Shared::get).enumerate() {
        let answers = host.machine.as_ref().is_some_and(|machine| machine.answers_reads());
        if answers && host.operations() & kept != kept {
            return Err(format!(
                "host {index} answers reads without acknowledged writes (has {:#b}, must have \
                 {kept:#b})",
                host.operations()
            ));
        }
    }
    Ok(())
}

/// Checks that the write may be executed by the host, whose log is still without it.
pub(super) fn check_write(world: &mut World, host: usize, entry: Entry) -> Result<(), String> {
    let log = &world.hosts[host].get().log;
    if log.contains(&entry) {
        return Err(format!("{entry:?} is applied twice"));
    }
    let same = |old: &&Entry| old.operation == entry.operation;
    if let Some(old) = log.iter().find(same)
        && old.attachment != entry.attachment
    {
        return Err(format!("{entry:?} is applied twice, first as {old:?}"));
    }
    let bit = 1_u16 << entry.operation;
    if world.truth.get().acknowledged & bit != 0 {
        return Err(format!("{entry:?} is applied after it was acknowledged"));
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
    check_writer(world, entry)
}

/// Checks that the attachment may write, and keeps the books on who may.
fn check_writer(world: &mut World, entry: Entry) -> Result<(), String> {
    let truth = world.truth.get();
    let declared = truth.declared.iter().position(|target| *target == entry.attachment);
    match truth.writer {
        Some(writer) if writer == entry.attachment => Ok(()),
        None => {
            world.truth.change(|truth| truth.writer = Some(entry.attachment));
            Ok(())
        }
        Some(writer) => match declared {
            Some(index) => {
                world.truth.change(|truth| {
                    truth.declared.remove(index);
                    truth.writer = Some(entry.attachment);
                });
                Ok(())
            }
            None => Err(format!("{entry:?} is applied while attachment {writer} may write")),
        },
    }
}
