//! The taker's side: GRANT, catching up, settle; and ownership by creation or takeover.

use super::machine::{Appending, Catching, Machine, Seen};
use super::message::{Effect, Grant, GrantAnswer, Message, Outcome};
use super::state::{Right, Role};
use super::transaction::{Change, Refusal};
use crate::ids::{Epoch, HostId, Incarnation};
use crate::volume::Position;
use std::collections::BTreeSet;

impl Machine {
    pub(super) fn handle_peer(&mut self, from: HostId, message: Message) {
        match message {
            Message::Grant(grant) if grant.from == from && grant.to == self.me => {
                self.handle_grant(grant);
            }
            Message::GrantAnswer { epoch, answer: GrantAnswer::Final } => {
                match &mut self.state.role {
                    Role::Granted { grant, .. } if grant.epoch == epoch && grant.to == from => {
                        self.grant_is_final();
                    }
                    Role::Claiming { granted: granted @ Some(_), .. } => {
                        let answered =
                            |(_, grant): &(Epoch, Grant)| grant.epoch == epoch && grant.to == from;
                        if granted.as_ref().is_some_and(answered) {
                            *granted = None;
                        }
                    }
                    Role::Granted { .. }
                    | Role::Owner { .. }
                    | Role::Follower { .. }
                    | Role::Creating
                    | Role::Claiming { .. }
                    | Role::Fenced { .. } => {}
                }
            }
            Message::AskSwitch { epoch } => self.handle_ask_switch(from, epoch),
            Message::GrantAnswer { answer: GrantAnswer::TransitUnread, .. } | Message::Grant(_) => {
            }
        }
    }

    fn handle_grant(&mut self, grant: Grant) {
        if self.knows(&grant) {
            if self.durable.known >= grant.epoch {
                self.answer(grant.from, grant.epoch, GrantAnswer::Final);
            }
            return;
        }
        // An owner, a giver or a claimer of a lower epoch takes no GRANT until that is over.
        let follower = matches!(self.state.role, Role::Follower { .. });
        let waits = !follower || self.taking_over.is_some();
        if waits || self.catching.is_some() || self.appending != Appending::No {
            return;
        }
        let read = self
            .state
            .transit_read
            .as_ref()
            .is_some_and(|t| t.epoch == grant.epoch && t.from == grant.from);
        if !read && self.rules.transit_read_in_this_boot {
            self.read_wanted = true;
            self.answer(grant.from, grant.epoch, GrantAnswer::TransitUnread);
            return;
        }
        if self.rules.caught_up_before_accepted {
            let (from, position) = (grant.from, grant.position);
            self.catching = Some(Catching { grant });
            self.effects.push_back(Effect::CatchUp { from, position });
        } else {
            self.accept(grant);
        }
    }

    fn knows(&self, grant: &Grant) -> bool {
        if self.rules.refuse_known_epochs {
            return self.state.known >= grant.epoch;
        }
        matches!(&self.state.role, Role::Owner { epoch, .. } if *epoch == grant.epoch)
    }

    fn answer(&mut self, to: HostId, epoch: Epoch, answer: GrantAnswer) {
        let message = Message::GrantAnswer { epoch, answer };
        self.effects.push_back(Effect::Send { to, message });
    }

    pub(super) fn handle_caught_up(&mut self, position: Position) {
        if let Some(catching) = self.catching.take_if(|c| c.grant.position == position)
            && !self.knows(&catching.grant)
        {
            self.accept(catching.grant);
        }
    }

    fn accept(&mut self, grant: Grant) {
        self.own(grant.epoch, grant.position);
        self.state.right = grant.right;
        self.state.sessions = grant.sessions;
        self.state.lineage = grant.lineage;
        self.answer_to = Some((grant.from, grant.epoch));
        if !self.rules.accepted_before_reply {
            self.durable = self.state.clone();
        }
    }

    /// Ownership of a new epoch, with the log ending here.
    fn own(&mut self, epoch: Epoch, at: Position) {
        assert!(
            epoch > self.state.known || !self.rules.refuse_known_epochs,
            "ownership only goes to higher epochs"
        );
        self.state.role = Role::Owner { epoch, incarnation: Incarnation(1), transit: None };
        self.state.known = self.state.known.max(epoch);
        self.state.boot = self.boot;
        self.confirmed = true;
        self.incarnation_used = false;
        self.start_at = Some(at);
        self.start_held = None;
        self.start_failures = 0;
        self.switch_wanted = false;
        self.passing = None;
        self.right_told = None;
    }

    pub(super) fn advance_taker(&mut self) {
        let known = self.durable.known;
        if let Some((to, epoch)) = self.answer_to.take_if(|(_, epoch)| known >= *epoch) {
            self.answer(to, epoch, GrantAnswer::Final);
            self.done(Outcome::Owner { epoch });
        }
        self.advance_following();
    }

    fn advance_following(&mut self) {
        let follower =
            matches!(self.state.role, Role::Follower { .. }) && self.taking_over.is_none();
        let known = self.state.known;
        // A claim, or a higher epoch: the log that was caught up with is not this host's any more.
        let over = |c: &Catching| !follower || self.knows(&c.grant);
        let given_up = self.catching.as_ref().is_some_and(over);
        if given_up {
            self.catching = None;
        }
        let transit = self.seen.as_ref().and_then(|seen| seen.transit.as_ref());
        let giver = transit.filter(|t| t.to == self.me && t.epoch > known).map(|t| t.from);
        let catching = self.catching.as_ref().map(|catching| catching.grant.from);
        let wanted = catching.or(giver).filter(|_| follower);
        if given_up || wanted != self.following {
            self.following = wanted;
            if given_up || wanted.is_none() {
                self.effects.push_back(Effect::Unfollow);
            }
            if let Some(from) = wanted {
                self.effects.push_back(Effect::Follow { from });
            }
        }
    }

    /// The owner of an unregistered epoch registers it.
    pub(super) fn due_settle(&self, seen: &Seen) -> Option<Change> {
        match &self.durable.role {
            Role::Owner { epoch, .. } if self.confirmed && seen.epoch < *epoch => {
                Some(Change::Settle { owner: self.me, epoch: *epoch })
            }
            Role::Owner { .. }
            | Role::Follower { .. }
            | Role::Creating
            | Role::Claiming { .. }
            | Role::Granted { .. }
            | Role::Fenced { .. } => None,
        }
    }

    pub(super) fn command_takeover(&mut self, fenced: BTreeSet<HostId>) {
        match &self.state.role {
            // The claim names where the log ends: what is followed must not move that any more.
            Role::Follower { .. } if self.taking_over.is_none() => {
                self.taking_over = Some(fenced);
                self.advance_following();
                self.effects.push_back(Effect::FindEnd);
            }
            Role::Granted { epoch, grant } => {
                let (at, granted) = (grant.position, (*epoch, grant.clone()));
                self.claim(at, fenced, Some(granted));
            }
            Role::Owner { .. } => {
                self.done(Outcome::Refused(Refusal::AlreadyThere(self.me)));
            }
            Role::Follower { .. }
            | Role::Claiming { .. }
            | Role::Creating
            | Role::Fenced { .. } => self.done(Outcome::Refused(Refusal::Busy)),
        }
    }

    pub(super) fn handle_log_ends(&mut self, position: Position) {
        if let Some(fenced) = self.taking_over.take() {
            self.claim(position, fenced, None);
        }
    }

    fn claim(&mut self, at: Position, fenced: BTreeSet<HostId>, granted: Option<(Epoch, Grant)>) {
        self.state.role = Role::Claiming { at, fenced, granted };
        if !self.rules.takeover_registered_first {
            self.own(self.state.known.next(), at);
        }
    }

    pub(super) fn due_claim(&self) -> Option<Change> {
        match &self.durable.role {
            Role::Claiming { at, fenced, .. } if self.durable.role == self.state.role => {
                Some(Change::Takeover { by: self.me, fenced: fenced.clone(), end: *at })
            }
            Role::Owner { .. }
            | Role::Follower { .. }
            | Role::Creating
            | Role::Claiming { .. }
            | Role::Granted { .. }
            | Role::Fenced { .. } => None,
        }
    }

    pub(super) fn claim_failed(&mut self, refusal: Refusal) {
        if let Role::Claiming { granted, .. } = &mut self.state.role {
            self.state.role = match granted.take() {
                Some((epoch, grant)) => Role::Granted { epoch, grant },
                None => Role::Follower { gave_to: None },
            };
            self.grant_sent = false;
            self.done(Outcome::Refused(refusal));
        }
    }

    /// The registry names this host the owner of an epoch that it asked for.
    pub(super) fn adopt_ownership(&mut self, seen: &Seen) {
        if seen.owner != self.me || seen.epoch <= self.state.known {
            return;
        }
        let (at, lineage) = match (&self.state.role, &seen.ended) {
            (Role::Creating, None) => (Position::START, Epoch(0)),
            (Role::Claiming { at, .. }, Some(end)) if end.by == seen.epoch => {
                assert_eq!(end.position, *at, "a takeover registers the position of its claim");
                (*at, seen.epoch)
            }
            (
                Role::Creating
                | Role::Claiming { .. }
                | Role::Owner { .. }
                | Role::Follower { .. }
                | Role::Granted { .. }
                | Role::Fenced { .. },
                _,
            ) => return,
        };
        self.own(seen.epoch, at);
        self.state.lineage = lineage;
        self.state.right = Right { shared: seen.shared, ..Right::default() };
        self.state.sessions.clear();
        self.done(Outcome::Owner { epoch: seen.epoch });
    }
}
