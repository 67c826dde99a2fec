//! Attachments at the owner: their sessions and the write right.

use super::machine::Machine;
use super::message::Effect;
use super::state::{Role, Session};
use crate::ids::{Epoch, HostId, SessionId};
use std::collections::BTreeMap;

/// What the owner does with a request that another host has forwarded, or any host with its own
/// guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Admission {
    /// Execute it here.
    Execute,
    /// It is a write and its attachment does not hold the write right: ask for it and wait.
    AskRight,
    /// Its session does not count: it is over, or was never opened here.
    NoSession,
    /// This host executes nothing now. A guest's own request goes where the route says; a forwarded
    /// one is answered `moved`.
    Moved,
    /// Send it on. Only a guest's own request ever is.
    Forward,
}

impl Machine {
    /// What to do with a request of an attachment's session. `forwarded`: it came from another
    /// host.
    #[must_use]
    pub fn admit(
        &self,
        attachment: HostId,
        session: SessionId,
        writes: bool,
        forwarded: bool,
    ) -> Admission {
        if self.appends_under().is_none() {
            let onward = forwarded && self.rules.forwarded_once;
            return if onward { Admission::Moved } else { Admission::Forward };
        }
        if !self.session_counts(attachment, session) {
            return Admission::NoSession;
        }
        if writes && !self.may_write(attachment) {
            return Admission::AskRight;
        }
        Admission::Execute
    }

    fn session_counts(&self, attachment: HostId, session: SessionId) -> bool {
        let newest = self.state.sessions.get(&attachment);
        let durable = self.durable.sessions.get(&attachment);
        let wanted = Session { id: session, open: true };
        let mut counts = newest == Some(&wanted);
        if self.rules.sessions_are_durable {
            counts &= durable == Some(&wanted);
        }
        if !self.rules.new_session_ends_old {
            counts |= newest.is_some_and(|newest| session < newest.id);
        }
        if !self.rules.takeover_ends_sessions {
            counts |= newest.is_none();
        }
        counts
    }

    /// The sessions that count here now, by attachment.
    #[must_use]
    pub fn open_sessions(&self) -> BTreeMap<HostId, SessionId> {
        if self.appends_under().is_none() {
            return BTreeMap::new();
        }
        let newest = self.state.sessions.iter().map(|(attachment, it)| (*attachment, it.id));
        newest.filter(|(attachment, session)| self.session_counts(*attachment, *session)).collect()
    }

    fn may_write(&self, attachment: HostId) -> bool {
        let right = &self.state.right;
        if right.shared || !self.rules.one_writer {
            return true;
        }
        let durable = self.durable.right.holder == Some(attachment) || !self.rules.right_is_durable;
        let leaving = self.passing.is_some_and(|(from, _)| from == attachment);
        right.holder == Some(attachment) && durable && !leaving
    }

    pub(super) fn handle_open_session(
        &mut self,
        attachment: HostId,
        session: SessionId,
        lineage: Epoch,
    ) {
        if self.appends_under().is_none() {
            return;
        }
        let newest = self.state.sessions.get(&attachment).copied();
        let stale = lineage < self.state.lineage && self.rules.takeover_ends_sessions;
        let over = |newest: Session| newest.id > session || (newest.id == session && !newest.open);
        if stale || newest.is_some_and(over) {
            self.effects.push_back(Effect::SessionEnded { attachment, session });
            return;
        }
        let ended = newest.filter(|old| old.open && old.id != session).map(|old| old.id);
        self.state.sessions.insert(attachment, Session { id: session, open: true });
        self.opening.insert(attachment, (session, ended));
    }

    pub(super) fn handle_close_session(&mut self, attachment: HostId, session: SessionId) {
        let owner = matches!(self.state.role, Role::Owner { .. });
        let wanted = Session { id: session, open: true };
        if !owner || self.state.sessions.get(&attachment) != Some(&wanted) {
            return;
        }
        self.state.sessions.insert(attachment, Session { id: session, open: false });
        self.opening.remove(&attachment);
        if self.state.right.holder == Some(attachment) {
            self.state.right.holder = None;
        }
    }

    pub(super) fn handle_release_right(&mut self, attachment: HostId) {
        let owner = matches!(self.state.role, Role::Owner { .. });
        if owner && self.state.right.holder == Some(attachment) {
            self.state.right.holder = None;
        }
    }

    pub(super) fn handle_ask_right(&mut self, attachment: HostId) {
        if self.appends_under().is_none() || self.passing.is_some() {
            return;
        }
        let right = &mut self.state.right;
        if right.shared {
            self.right_told = None;
            return;
        }
        match right.holder {
            None => {
                right.holder = Some(attachment);
                self.declaration_spent(attachment);
            }
            Some(holder) if holder == attachment => self.right_told = None,
            Some(holder) if right.declared == Some(attachment) => {
                self.passing = Some((holder, attachment));
                self.effects.push_back(Effect::WithdrawRight { attachment: holder });
                if !self.rules.right_withdrawn_first {
                    self.pass_right();
                }
            }
            Some(_) => {}
        }
    }

    pub(super) fn handle_right_withdrawn(&mut self, attachment: HostId) {
        let owner = matches!(self.state.role, Role::Owner { .. });
        if owner && self.passing.is_some_and(|(from, _)| from == attachment) {
            self.pass_right();
        }
    }

    fn pass_right(&mut self) {
        if let Some((_, to)) = self.passing.take() {
            self.state.right.holder = Some(to);
            self.declaration_spent(to);
        }
    }

    /// The target of a declared migration has taken the right; if the switch waited for that, it
    /// comes now.
    fn declaration_spent(&mut self, holder: HostId) {
        if self.state.right.declared != Some(holder) {
            return;
        }
        if self.rules.declared_once {
            self.state.right.declared = None;
        }
        if let Role::Owner { transit: Some(transit), .. } = &self.state.role
            && transit.to == holder
            && transit.waits_for_write
        {
            self.switch_wanted = true;
        }
    }

    pub(super) fn advance_attachments(&mut self) {
        if self.appends_under().is_none() {
            return;
        }
        let view = if self.rules.sessions_are_durable { &self.durable } else { &self.state };
        let ready = |attachment: &HostId, session: &SessionId| {
            view.sessions.get(attachment) == Some(&Session { id: *session, open: true })
        };
        let effects = &mut self.effects;
        self.opening.retain(|attachment, (session, ended)| {
            let is_ready = ready(attachment, session);
            if is_ready {
                effects.push_back(Effect::SessionOpened {
                    attachment: *attachment,
                    session: *session,
                    ended: *ended,
                });
            }
            !is_ready
        });
        let holder = self.state.right.holder;
        let durable = self.durable.right.holder == holder || !self.rules.right_is_durable;
        let told = (holder, self.state.right.shared);
        if durable && self.passing.is_none() && self.right_told != Some(told) {
            self.right_told = Some(told);
            self.effects.push_back(Effect::RightHeld { holder, shared: told.1 });
        }
    }
}
