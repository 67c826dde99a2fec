//! What the machine is told and what it says: commands, events, effects, messages between hosts.

use super::state::{LocalState, Right, Sessions};
use super::transaction::{Change, Plan, Refusal};
use crate::ids::{Epoch, HostId, Incarnation, SessionId};
use crate::record::VolumeRecord;
use crate::volume::Position;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The right to append, handed from one host to another. Sent by the giver only, to the taker only,
/// after it is durable at the giver, and repeated until it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grant {
    /// The host that gives.
    pub from: HostId,
    /// The host that takes.
    pub to: HostId,
    /// The epoch that the taker owns the volume under.
    pub epoch: Epoch,
    /// Where the giver's log ends.
    pub position: Position,
    /// The volume's size there.
    pub size_bytes: u64,
    /// Who may write.
    pub right: Right,
    /// The epoch of the last takeover, 0 when there was none.
    pub lineage: Epoch,
    /// The newest session of each attachment.
    pub sessions: Sessions,
}

/// A taker's answer to a GRANT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GrantAnswer {
    /// It is durable here; or a higher epoch is known, so that it will never matter again.
    Final,
    /// Not yet: the transit has not been read from the registry in this boot. Send it again.
    TransitUnread,
}

/// What machines on different hosts say to each other. Every message may be lost, repeated, delayed
/// and reordered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Message {
    /// Giver to taker.
    Grant(Grant),
    /// Taker to giver.
    GrantAnswer {
        /// The epoch of the GRANT.
        epoch: Epoch,
        /// The answer.
        answer: GrantAnswer,
    },
    /// Taker to giver: it has caught up, the switch can come.
    AskSwitch {
        /// The transit's reserved epoch.
        epoch: Epoch,
    },
}

/// What an operator, a hypervisor's hook or the host asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Command {
    /// Begin a transit to another host.
    Prepare {
        /// The host that will own the volume.
        to: HostId,
        /// What is planned.
        plan: Plan,
    },
    /// Hand over now.
    Switch,
    /// End the transit before the handover.
    Abort,
    /// Become the owner without a GRANT. The hosts named are out: their power is off, or whatever
    /// runs there can reach neither guests nor stores any more.
    Takeover {
        /// Hosts that are out, on the operator's word.
        fenced: BTreeSet<HostId>,
    },
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody asks for a change of ownership.
    Command(Command),
    /// The volume's record, read from the registry itself (not from a cache) by this daemon.
    Record {
        /// The revision of its key.
        revision: u64,
        /// The record.
        record: Box<VolumeRecord>,
    },
    /// What was asked of the registry last is done; the record was given before this.
    Committed,
    /// The transaction asked for last was refused; the record was given before this.
    Refused(Refusal),
    /// The registry is away; the transaction asked for last may or may not have happened.
    RegistryAway,
    /// The state handed out by [`Effect::Persist`] is durable.
    Persisted,
    /// The volume now appends.
    Started,
    /// The volume no longer appends: all admitted requests are done, everything is durable, the
    /// last segment is sealed.
    Stopped {
        /// Where the log ends.
        position: Position,
        /// The volume's size there.
        size_bytes: u64,
    },
    /// The volume could not be started; it does not append.
    Failed,
    /// The volume could not be stopped, since its disk has failed: it takes no more writes, and
    /// serves reads as before.
    StopFailed,
    /// The volume has the log up to the position asked for by [`Effect::CatchUp`].
    CaughtUp {
        /// That position.
        position: Position,
    },
    /// The volume's log ends here, durably, and nothing is added to it by following any more: the
    /// answer to [`Effect::FindEnd`].
    LogEnds {
        /// Its end.
        position: Position,
    },
    /// A message from another host.
    Peer {
        /// The authenticated sender.
        from: HostId,
        /// What it says.
        message: Message,
    },
    /// A deadline given by `poll_deadline` has come.
    Timer,
    /// An attachment opens a session, which ends the one that it had before.
    OpenSession {
        /// The host whose attachment it is.
        attachment: HostId,
        /// The new session; sessions of one attachment only grow.
        session: SessionId,
        /// The epoch of the last takeover known when the guest was attached, 0 for none.
        lineage: Epoch,
    },
    /// The attachment is gone: its session ends and the write right, if it holds it, is free.
    CloseSession {
        /// The host whose attachment it was.
        attachment: HostId,
        /// The session that ends.
        session: SessionId,
    },
    /// This host's own attachment has lost its last connection: the right, if it holds it, is free.
    ReleaseRight {
        /// The host whose attachment it is.
        attachment: HostId,
    },
    /// An attachment without the write right wants to write.
    AskRight {
        /// The host whose attachment it is.
        attachment: HostId,
    },
    /// All writes that the attachment had admitted are done, and it admits no more.
    RightWithdrawn {
        /// The host whose attachment it is.
        attachment: HostId,
    },
    /// What lies beyond the end of the ended epoch is set aside.
    TailAside,
}

/// Where this host's requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// They are executed here.
    Here {
        /// The epoch they are acknowledged under.
        epoch: Epoch,
    },
    /// They are forwarded to the host that is the owner as far as this host knows.
    Forward {
        /// That host.
        to: HostId,
    },
    /// They wait: a change of owner is under way or nothing is known yet.
    Wait,
}

/// Something to do. Effects are executed in order; those that take time report by an [`Event`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Make the state durable; then [`Event::Persisted`]. One is in flight at a time.
    Persist(Box<LocalState>),
    /// Change the volume's record if its revision is still the one given last; then
    /// [`Event::Record`] with what it is now and [`Event::Committed`] or [`Event::Refused`], or
    /// [`Event::RegistryAway`]. One `Registry` or `Read` is in flight at a time.
    Registry(Change),
    /// Read the volume's record; then [`Event::Record`] and [`Event::Committed`], or
    /// [`Event::RegistryAway`].
    Read,
    /// Send a message; it may get lost.
    Send {
        /// To this host.
        to: HostId,
        /// This.
        message: Message,
    },
    /// Begin to append; then [`Event::Started`] or [`Event::Failed`].
    Start {
        /// Under this epoch.
        epoch: Epoch,
        /// And incarnation.
        incarnation: Incarnation,
        /// The log must end here; what lies beyond is set aside. `None`: wherever it ends.
        at: Option<Position>,
    },
    /// Drain, sync, seal and stop appending; then [`Event::Stopped`] or [`Event::StopFailed`].
    Stop,
    /// Follow the owner's log from now on.
    Follow {
        /// The owner.
        from: HostId,
    },
    /// Follow no more, and do not catch up with what [`Effect::CatchUp`] has asked for.
    Unfollow,
    /// Wait until nothing that following or catching up had begun goes on, and find where the log
    /// ends; then [`Event::LogEnds`].
    FindEnd,
    /// Bring the log up to the position; then [`Event::CaughtUp`]. It may take as long as it takes.
    CatchUp {
        /// Who has it.
        from: HostId,
        /// Where it ends.
        position: Position,
    },
    /// This host's requests now go there.
    Route(Route),
    /// The session is open; the one given as `ended`, if any, is over and executes nothing more.
    SessionOpened {
        /// The host whose attachment it is.
        attachment: HostId,
        /// Its session.
        session: SessionId,
        /// The session that it ended.
        ended: Option<SessionId>,
    },
    /// The attachment holds no session that counts here: it was ended, or made before a takeover. A
    /// running guest must not go on with it.
    SessionEnded {
        /// The host whose attachment it is.
        attachment: HostId,
        /// The session that is over.
        session: SessionId,
    },
    /// The session is not open: as many as there may be are ([`super::SESSIONS_MAX`]). It may ask
    /// again.
    SessionRefused {
        /// The host whose attachment it is.
        attachment: HostId,
        /// The session.
        session: SessionId,
    },
    /// Let the attachment's admitted writes finish and admit no more; then
    /// [`Event::RightWithdrawn`].
    WithdrawRight {
        /// The host whose attachment it is.
        attachment: HostId,
    },
    /// The write right is durably with `holder`, or free (`None`), which need not be durable. Only
    /// the holder's attachment may write, unless the volume is shared. Those that wait may ask
    /// again when it becomes free.
    RightHeld {
        /// The host whose attachment holds it.
        holder: Option<HostId>,
        /// Whether the volume is shared, so that every attachment may write.
        shared: bool,
    },
    /// Set aside, by name, what the log has beyond `end`; then [`Event::TailAside`]. The log is
    /// then as it was recorded in the registry.
    SetTailAside {
        /// Where the ended epoch's log ends; `None` when that is not recorded any more: then
        /// nothing of it that the new log does not name counts.
        end: Option<Position>,
    },
    /// The outcome of a command.
    Done(Outcome),
}

/// How a command, or the handover that it began, went on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The transit is registered and known here.
    Prepared {
        /// Its reserved epoch.
        epoch: Epoch,
    },
    /// GRANT was answered: the taker owns the volume.
    Switched {
        /// Under this epoch.
        epoch: Epoch,
    },
    /// The transit is aborted; this host goes on as the owner.
    Aborted {
        /// The epoch that had been reserved.
        epoch: Epoch,
    },
    /// This host has become the owner.
    Owner {
        /// Under this epoch.
        epoch: Epoch,
    },
    /// Another epoch owns the volume; this host's stale tail is set aside.
    Fenced {
        /// The epoch that owns it.
        by: Epoch,
    },
    /// The command cannot be done.
    Refused(Refusal),
    /// The registry is away; the command can be tried again.
    RegistryAway,
}
