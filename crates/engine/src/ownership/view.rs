//! What a driver shows of its machine.

use pannier_core::ids::{Epoch, HostId, Incarnation, SessionId};
use pannier_core::record::Transit;
use pannier_core::volume::ownership::{Machine, Right, Role};
use std::collections::BTreeMap;

/// What this host is to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Part {
    /// It owns nothing of it.
    #[default]
    None,
    /// It follows the owner's log, to take over.
    Follower,
    /// It owns the volume but does not append now: it is about to, or the switch is under way, or
    /// the registry has to confirm it after a reboot.
    Waiting,
    /// It appends and serves.
    Owner,
    /// It gave the volume away, and the taker has not answered yet.
    Granted,
    /// Its epoch was ended by a takeover.
    Fenced,
}

/// A driver's view of its volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// What this host is to the volume.
    pub part: Part,
    /// The highest epoch known; the own one when it is the owner.
    pub epoch: Epoch,
    /// The incarnation that appends.
    pub incarnation: Incarnation,
    /// The change of owner known here.
    pub transit: Option<Transit>,
    /// Who may write; counts at the owner.
    pub right: Right,
    /// Sessions that count here.
    pub sessions: BTreeMap<HostId, SessionId>,
    /// Epoch of the last takeover known.
    pub lineage: Epoch,
    /// What keeps this host, the owner, from serving until somebody does something.
    pub obstacle: Option<String>,
}

impl View {
    pub(super) fn of(machine: &Machine, me: HostId) -> Self {
        let state = machine.state();
        let transit = machine.transit().cloned();
        let taker = transit.as_ref().is_some_and(|t| t.to == me && t.epoch > state.known);
        let part = match &state.role {
            Role::Owner { .. } if machine.appends_under().is_some() => Part::Owner,
            Role::Owner { .. } | Role::Creating | Role::Claiming { .. } => Part::Waiting,
            Role::Granted { .. } => Part::Granted,
            Role::Fenced { .. } => Part::Fenced,
            Role::Follower { .. } if taker => Part::Follower,
            Role::Follower { .. } => Part::None,
        };
        Self {
            part,
            epoch: state.known,
            incarnation: machine.appends_under().map_or(Incarnation(0), |(_, number)| number),
            transit,
            right: state.right,
            sessions: machine.open_sessions(),
            lineage: machine.lineage(),
            obstacle: None,
        }
    }
}
