//! Attachments at the owner: their sessions and the write right.

use super::machine::Machine;
use super::message::Effect;
use super::state::{Role, SESSIONS_MAX, Session};
use crate::ids::{Epoch, HostId, SessionId};
use std::collections::BTreeMap;

impl Machine {
    /// The sessions that count here now, by attachment.
    #[must_use]
    pub fn open_sessions(&self) -> BTreeMap<HostId, SessionId> {
        if !self.executes() {
            return BTreeMap::new();
        }
        let durable = |attachment, session| {
            !self.rules.sessions_are_durable
                || self.durable.sessions.get(attachment) == Some(session)
        };
        let sessions = self.state.sessions.iter().filter(|(_, session)| session.open);
        sessions
            .filter(|(attachment, session)| durable(*attachment, *session))
            .map(|(attachment, session)| (*attachment, session.id))
            .collect()
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
        let over = newest.is_some_and(over) && self.rules.new_session_ends_old;
        if stale || over {
            self.effects.push_back(Effect::SessionEnded { attachment, session });
            return;
        }
        let others =
            self.state.sessions.iter().filter(|(of, known)| known.open && **of != attachment);
        if others.count() >= SESSIONS_MAX {
            self.effects.push_back(Effect::SessionRefused { attachment, session });
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
        self.free_right(attachment);
    }

    pub(super) fn handle_release_right(&mut self, attachment: HostId) {
        if matches!(self.state.role, Role::Owner { .. }) {
            self.free_right(attachment);
        }
    }

    /// Told at once: the next session of the same attachment must not write by the right of this
    /// one, however soon another attachment gets it.
    fn free_right(&mut self, attachment: HostId) {
        let right = &mut self.state.right;
        if right.holder == Some(attachment) {
            right.holder = None;
            let shared = right.shared;
            self.right_told = Some((None, shared || !self.rules.one_writer));
            self.effects.push_back(Effect::RightHeld { holder: None, shared });
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
        let told = (holder, self.state.right.shared || !self.rules.one_writer);
        if durable && self.passing.is_none() && self.right_told != Some(told) {
            self.right_told = Some(told);
            self.effects.push_back(Effect::RightHeld { holder, shared: told.1 });
        }
    }
}
