//! The giver's side: transit, switch, `granted`, GRANT, abort.

use super::machine::{Appending, Machine, Seen};
use super::message::{Effect, Grant, Message, Outcome};
use super::state::Role;
use super::transaction::{Change, Plan, Refusal};
use crate::ids::{Epoch, HostId};
use crate::record::Transit;
use crate::units::Time;
use crate::volume::Position;

impl Machine {
    pub(super) fn command_prepare(&mut self, to: HostId, plan: Plan) {
        let refusal = match &self.state.role {
            Role::Owner { .. } if to == self.me => Refusal::AlreadyThere(to),
            Role::Owner { transit: Some(transit), .. } => {
                if (transit.to, transit.declared) == (to, plan.declared) {
                    self.done(Outcome::Prepared { epoch: transit.epoch });
                    return;
                }
                Refusal::InTransit(transit.clone())
            }
            Role::Owner { transit: None, .. } if self.seen.is_none() => {
                self.done(Outcome::RegistryAway);
                return;
            }
            Role::Owner { transit: None, .. } => {
                self.begin_wanted = Some((to, plan));
                return;
            }
            Role::Granted { .. }
            | Role::Follower { .. }
            | Role::Creating
            | Role::Claiming { .. }
            | Role::Fenced { .. } => self.not_owner(),
        };
        self.done(Outcome::Refused(refusal));
    }

    pub(super) fn command_switch(&mut self) {
        let refusal = match &self.state.role {
            Role::Owner { transit: Some(_), .. } => {
                self.switch_wanted = true;
                return;
            }
            // Asked again: the answer comes when GRANT is answered.
            Role::Granted { .. } => return,
            Role::Owner { transit: None, .. } => Refusal::NoTransit,
            Role::Follower { .. }
            | Role::Creating
            | Role::Claiming { .. }
            | Role::Fenced { .. } => self.not_owner(),
        };
        self.done(Outcome::Refused(refusal));
    }

    /// The taker has caught up and asks for the switch.
    pub(super) fn handle_ask_switch(&mut self, from: HostId, epoch: Epoch) {
        if let Role::Owner { transit: Some(transit), .. } = &self.state.role
            && (transit.to, transit.epoch) == (from, epoch)
        {
            self.switch_wanted = true;
        }
    }

    pub(super) fn command_abort(&mut self) {
        let refusal = match &self.state.role {
            Role::Owner { transit: Some(transit), .. } => {
                let transit = transit.clone();
                self.abort_transit(&transit);
                return;
            }
            Role::Granted { epoch, grant } => {
                if !self.rules.no_abort_after_granted {
                    let (epoch, grant) = (*epoch, grant.clone());
                    self.take_back(epoch, &grant);
                    return;
                }
                Refusal::Granted { to: grant.to, epoch: grant.epoch }
            }
            Role::Owner { transit: None, .. } => Refusal::NoTransit,
            Role::Follower { .. }
            | Role::Creating
            | Role::Claiming { .. }
            | Role::Fenced { .. } => self.not_owner(),
        };
        self.done(Outcome::Refused(refusal));
    }

    /// What the missing rule `no_abort_after_granted` forbids.
    fn take_back(&mut self, epoch: Epoch, grant: &Grant) {
        // Far from all that were used: two writers are the harm, not one name for two segments.
        let incarnation = crate::ids::Incarnation(1000);
        self.state.role = Role::Owner { epoch, incarnation, transit: None };
        self.state.aborted = grant.epoch;
        self.state.right = grant.right;
        self.state.sessions = grant.sessions.clone();
        self.switch_wanted = false;
        self.incarnation_used = true;
    }

    fn abort_transit(&mut self, transit: &Transit) {
        self.state.aborted = self.state.aborted.max(transit.epoch);
        self.switch_wanted = false;
        self.abort_told = Some(transit.epoch);
        if self.state.right.declared == Some(transit.to) {
            self.state.right.declared = None;
        }
        if let Role::Owner { transit, .. } = &mut self.state.role {
            *transit = None;
        }
    }

    fn not_owner(&self) -> Refusal {
        self.seen.as_ref().map_or(Refusal::Busy, |seen| Refusal::NotOwner {
            owner: seen.owner,
            epoch: seen.epoch,
        })
    }

    /// Whether a switch is under way, so that the volume shall not append.
    pub(super) fn switching(&self) -> bool {
        let transit = matches!(self.state.role, Role::Owner { transit: Some(_), .. });
        transit && self.switch_wanted && self.confirmed
    }

    /// The owner learns of its transit from the registry, whoever registered it.
    pub(super) fn adopt_transit(&mut self, seen: &Seen) {
        let Some(transit) = &seen.transit else { return };
        if transit.to == self.me {
            self.state.transit_read = Some(transit.clone());
        }
        if let Role::Owner { epoch, transit: known, .. } = &mut self.state.role
            && *epoch == seen.epoch
            && transit.from == self.me
            && transit.epoch > self.state.aborted
            && known.is_none()
        {
            *known = Some(transit.clone());
            // A target that holds the right already has nothing to take: what waits for its first
            // write comes at once.
            let held = transit.declared && self.state.right.holder == Some(transit.to);
            self.state.right.declared = (transit.declared && !held).then_some(transit.to);
            self.switch_wanted |= held && transit.waits_for_write;
            self.done(Outcome::Prepared { epoch: transit.epoch });
        }
    }

    pub(super) fn handle_stopped(&mut self, position: Position, size_bytes: u64) {
        if self.appending != Appending::Stopping {
            return;
        }
        self.appending = Appending::No;
        if !self.switching() {
            return;
        }
        let Role::Owner { epoch, transit: Some(transit), .. } = &self.state.role else { return };
        let keep = |on: bool| on.then_some(());
        let right = keep(self.rules.right_travels).map(|()| self.state.right).unwrap_or_default();
        let sessions = keep(self.rules.sessions_travel)
            .map(|()| self.state.sessions.clone())
            .unwrap_or_default();
        let grant = Grant {
            from: self.me,
            to: transit.to,
            epoch: transit.epoch,
            position,
            size_bytes,
            right,
            lineage: self.state.lineage,
            sessions,
        };
        self.state.role = Role::Granted { epoch: *epoch, grant };
        self.grant_sent = false;
        self.switch_wanted = false;
        self.passing = None;
        self.opening.clear();
    }

    /// What the log has cannot be given: it is not durable, and where it ends not certain. The
    /// transit is over, or its taker would ask for the switch again and again and stop the reads
    /// that still go on.
    pub(super) fn handle_stop_failed(&mut self, now: Time) {
        if self.appending != Appending::Stopping {
            return;
        }
        let Role::Owner { transit, .. } = &self.state.role else {
            self.handle_failed(now);
            return;
        };
        self.appending = Appending::Yes;
        if let Some(transit) = transit.clone().filter(|_| self.switch_wanted) {
            self.abort_transit(&transit);
            self.done(Outcome::Refused(Refusal::DiskFailed));
        }
    }

    pub(super) fn advance_giver(&mut self) {
        let view = if self.rules.granted_before_grant { &self.durable } else { &self.state };
        if let (Role::Granted { grant, .. }, Role::Granted { .. }) = (&view.role, &self.state.role)
            && !self.grant_sent
        {
            self.grant_sent = true;
            let message = Message::Grant(grant.clone());
            self.effects.push_back(Effect::Send { to: grant.to, message });
        }
        if let Some(epoch) = self.abort_told
            && self.durable.aborted >= epoch
        {
            self.abort_told = None;
            self.done(Outcome::Aborted { epoch });
        }
    }

    /// The taker owns the volume, or an even newer epoch is known.
    pub(super) fn grant_is_final(&mut self) {
        if let Role::Granted { grant, .. } = &self.state.role {
            let (to, epoch) = (grant.to, grant.epoch);
            self.state.known = self.state.known.max(epoch);
            self.state.role = Role::Follower { gave_to: Some(to) };
            self.state.sessions.clear();
            self.done(Outcome::Switched { epoch });
        }
    }

    /// A registered transit of this host that it has durably aborted.
    pub(super) fn due_abort(&self, seen: &Seen) -> Option<Change> {
        let view = if self.rules.abort_before_registered { &self.durable } else { &self.state };
        let transit = seen.transit.as_ref()?;
        let aborted = transit.from == self.me && transit.epoch <= view.aborted;
        aborted.then_some(Change::Abort { by: self.me, epoch: transit.epoch })
    }
}
