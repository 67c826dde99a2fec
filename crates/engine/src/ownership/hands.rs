//! What the driver does with its hands: the local volume, the guests, the state file.

use crate::error::Result;
use async_trait::async_trait;
use bytes::Bytes;
use pannier_core::ids::{Epoch, HostId, Incarnation, SessionId, VolumeId};
use pannier_core::volume::Position;
use pannier_core::volume::ownership::{LocalState, Route};
use std::collections::BTreeSet;

/// The parts of a host that the ownership driver acts on. All calls name the volume.
#[async_trait]
pub trait Hands: Send + Sync + 'static {
    /// The state found on disk, `None` when there is none.
    ///
    /// # Errors
    /// `Corrupt` when it cannot be read as one: the host must not act on the volume.
    fn load(&self, volume: VolumeId) -> Result<Option<LocalState>>;

    /// Makes the state durable. A failure may or may not have; it is called again.
    ///
    /// # Errors
    /// `NoSpace`, `Unavailable`.
    async fn persist(&self, state: LocalState) -> Result<()>;

    /// Begins to append. With `at`, the log must end there. `sessions` are those that are open:
    /// what others have applied need not be known any more.
    ///
    /// # Errors
    /// Any; the volume then does not append.
    async fn start(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        incarnation: Incarnation,
        at: Option<Position>,
        sessions: BTreeSet<SessionId>,
    ) -> Result<()>;

    /// Drains, syncs, seals and stops; answers where the log ends, and the size in bytes.
    ///
    /// # Errors
    /// Any; the volume then takes no more writes, and serves reads.
    async fn stop(&self, volume: VolumeId) -> Result<(Position, u64)>;

    /// The end of the log that `to` lacks, as far as one message carries it. May be empty.
    async fn tail(&self, volume: VolumeId, to: HostId) -> Bytes;

    /// Brings the log up to `position`, which `from` has; `tail` is what came with GRANT.
    ///
    /// # Errors
    /// Any that may pass; it is called again, without the tail.
    async fn catch_up(
        &self,
        volume: VolumeId,
        from: HostId,
        position: Position,
        tail: Bytes,
    ) -> Result<()>;

    /// The end of the durable log here.
    ///
    /// # Errors
    /// `NotFound` when nothing of the volume is here.
    async fn position(&self, volume: VolumeId) -> Result<Position>;

    /// Follows no more. When it returns nothing that following had begun goes on, and the log ends
    /// here.
    ///
    /// # Errors
    /// As [`Hands::position`]; it is called again.
    async fn end_following(&self, volume: VolumeId) -> Result<Position>;

    /// Follows the owner's log.
    fn follow(&self, volume: VolumeId, from: HostId);

    /// Follows no more.
    fn unfollow(&self, volume: VolumeId);

    /// Returns once the followed log was, at one moment, all here but for little.
    async fn caught_up(&self, volume: VolumeId);

    /// Where requests of this host's guests, and of other hosts, go from now on.
    fn route(&self, volume: VolumeId, route: Route);

    /// Who may write; `shared`: everybody.
    fn right_held(&self, volume: VolumeId, holder: Option<HostId>, shared: bool);

    /// Lets the attachment's admitted writes finish and admits no more.
    async fn withdraw_right(&self, volume: VolumeId, attachment: HostId);

    /// A newer session of its attachment has ended the session: it executes nothing more here.
    fn session_ended(&self, volume: VolumeId, session: SessionId);

    /// Renames what the log has beyond `end`.
    ///
    /// # Errors
    /// Any; it is called again.
    async fn set_tail_aside(
        &self,
        volume: VolumeId,
        ended: Epoch,
        end: Option<Position>,
    ) -> Result<()>;
}
