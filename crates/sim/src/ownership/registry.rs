//! The registry's side.

use super::world::{Packet, Registered, Scenario, Shared, World, host_index};
use pannier_core::record::VolumeRecord;
use pannier_core::volume::ownership::transaction::{self, Change};
use std::rc::Rc;

impl World {
    /// A transaction arrives.
    pub(super) fn commit(
        &mut self,
        scenario: &Scenario,
        (from, life): (usize, u8),
        expect: u64,
        change: &Change,
    ) {
        let revision = self.revision() as u64;
        if revision != expect && scenario.contracts.conditional_transactions {
            return;
        }
        match transaction::apply(self.record(), change, &scenario.rules) {
            Ok(next) => self.registered(next, change),
            Err(refusal) => self.send(Packet::Refused { to: from, life, at: expect, refusal }),
        }
    }

    fn registered(&mut self, next: VolumeRecord, change: &Change) {
        if next == *self.record() {
            return;
        }
        self.history.change(|history| history.push(Rc::new(Registered(next))));
        match change {
            Change::Takeover { by, end, .. } => {
                // What the new owner's log lacks is lost, on the operator's word.
                let taker = self.hosts[host_index(*by)].get();
                let kept: u16 = taker.log[..taker.log.len().min(end.entries as usize)]
                    .iter()
                    .fold(0, |bits, entry| bits | 1 << entry.operation);
                self.truth.change(|truth| {
                    truth.kept &= kept;
                    truth.lost |= ((1 << truth.operations) - 1) & !kept;
                    truth.writer = None;
                });
            }
            Change::Begin { .. } | Change::Settle { .. } | Change::Abort { .. } => {}
        }
    }

    /// What a loss of unsynced entries takes away that no other log has, of writes that only the
    /// host's own guest was acknowledged: that guest has died with it.
    pub(super) fn lost(&mut self, host: usize, lost: &[super::world::Entry]) {
        let others = (0..self.hosts.len()).filter(|other| *other != host);
        let elsewhere = others
            .map(|other| self.hosts[other].get())
            .fold(self.hosts[host].get().operations(), |bits, other| bits | other.operations());
        let own = lost
            .iter()
            .filter(|entry| usize::from(entry.attachment) == host)
            .fold(0_u16, |bits, entry| bits | 1 << entry.operation);
        self.truth.change(|truth| truth.kept &= !(own & !elsewhere));
    }

    /// Packets with this content's kind, for the actions.
    pub(super) fn packet(&self, index: u8) -> &Packet {
        Shared::get(&self.packets[usize::from(index)])
    }
}
