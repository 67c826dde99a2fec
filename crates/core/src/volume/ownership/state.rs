//! What a host keeps durably about its part in a volume's ownership, and its bytes.

use super::message::Grant;
use crate::ids::{Epoch, HostId, Incarnation, SessionId, VolumeId};
use crate::record::Transit;
use crate::volume::Position;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// One boot of a host's kernel (`/proc/sys/kernel/random/boot_id`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BootId(pub u128);

/// The write right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Right {
    /// The host whose attachment holds it; `None`: the first that writes takes it.
    pub holder: Option<HostId>,
    /// The target of a declared migration, whose first write takes the right from its holder. Spent
    /// by that write.
    pub declared: Option<HostId>,
    /// Whether all attachments may write.
    pub shared: bool,
}

/// The newest session of an attachment. It is kept when it is closed, so that an older one that
/// arrives late is not taken for a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Session {
    /// The session.
    pub id: SessionId,
    /// Whether it is open.
    pub open: bool,
}

/// Sessions that may be open at once: a state and a checkpoint's root stay small, and what they
/// have applied is never forgotten while they are open. One more is refused.
pub const SESSIONS_MAX: usize = 1024;

/// The newest session of each attachment, by its host: as many as the cluster has hosts, at most.
pub type Sessions = BTreeMap<HostId, Session>;

/// A host's part in a volume's ownership.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// It owns nothing.
    Follower {
        /// Whom it gave the volume to last, so that requests find the way while the registry is
        /// away.
        gave_to: Option<HostId>,
    },
    /// It created the volume, empty, and owns it as soon as the registry says so.
    Creating,
    /// It asks the registry to make it the owner by takeover, until that is answered for certain.
    Claiming {
        /// Where its log ends.
        at: Position,
        /// Hosts that are out, on the operator's word.
        fenced: BTreeSet<HostId>,
        /// The epoch that it gave away and the GRANT that it goes on repeating if the claim fails.
        granted: Option<(Epoch, Grant)>,
    },
    /// It owns the volume.
    Owner {
        /// Under this epoch.
        epoch: Epoch,
        /// The incarnation that appends, or will as soon as this is durable.
        incarnation: Incarnation,
        /// The transit in which it is the giver, not yet granted.
        transit: Option<Transit>,
    },
    /// It gave the volume away: it neither appends, acknowledges nor answers reads.
    Granted {
        /// The epoch that it had.
        epoch: Epoch,
        /// What it gave, repeated until answered.
        grant: Grant,
    },
    /// Its epoch was ended by a takeover; what it has beyond the recorded end goes aside.
    Fenced {
        /// The epoch that it had.
        epoch: Epoch,
        /// Where the registry says that its log ended, if it does.
        end: Option<Position>,
    },
}

/// All that is durable: the file `state` of the volume's directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LocalState {
    /// The volume.
    pub volume: VolumeId,
    /// The boot in which this was written.
    pub boot: BootId,
    /// The highest epoch known, by ownership or by the registry.
    pub known: Epoch,
    /// Transits of this host up to this reserved epoch will never be granted.
    pub aborted: Epoch,
    /// The transit to this host that was read from the registry last, in the boot named by `boot`.
    pub transit_read: Option<Transit>,
    /// The epoch of the last takeover in this ownership's past, 0 when there was none. Attachments
    /// made before it do not count; counts at the owner.
    pub lineage: Epoch,
    /// The part.
    pub role: Role,
    /// Who may write; counts at the owner.
    pub right: Right,
    /// The newest session of each attachment; counts at the owner.
    pub sessions: Sessions,
}

impl LocalState {
    /// A host that owns nothing.
    #[must_use]
    pub fn follower(volume: VolumeId, boot: BootId) -> Self {
        Self {
            volume,
            boot,
            known: Epoch(0),
            aborted: Epoch(0),
            transit_read: None,
            lineage: Epoch(0),
            role: Role::Follower { gave_to: None },
            right: Right::default(),
            sessions: BTreeMap::new(),
        }
    }

    /// The state from which a new, empty volume is created: it becomes the owner once the registry
    /// names it.
    #[must_use]
    pub fn creating(volume: VolumeId, boot: BootId) -> Self {
        Self { role: Role::Creating, ..Self::follower(volume, boot) }
    }
}

/// First bytes of the file.
const MAGIC: [u8; 8] = *b"PNRstate";

/// Version of the format.
const VERSION: u16 = 1;

/// Bytes before the body: magic, version, body length.
const HEAD_BYTES: usize = 14;

/// A state file larger than this is not one: it holds a few dozen bytes, and 16 per attachment.
pub const STATE_BYTES_MAX: usize = 1 << 20;

/// Why bytes are not a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Not this kind of file.
    #[error("it does not begin as an ownership state does")]
    Magic,
    /// Written by a version that this one does not know.
    #[error("it has format version {0}, this version reads up to 1; upgrade this host")]
    Version(u16),
    /// Too short, too long, or its CRC does not match.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

fn crc32c(bytes: &[u8]) -> u32 {
    // The 32-bit algorithms leave the upper half zero.
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    (crc & u64::from(u32::MAX)) as u32
}

impl LocalState {
    /// Its bytes: magic (8), version (u16), body length (u32), body (postcard), CRC32C of all
    /// before it (u32). Integers are little-endian.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let body = postcard::to_stdvec(self).unwrap_or_default();
        assert!(!body.is_empty() && body.len() <= STATE_BYTES_MAX, "a state is small and encodes");
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len() + 4);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&body);
        let crc = crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the bytes of [`LocalState::encode`].
    ///
    /// # Errors
    /// [`StateError`], each of which means that the host must not act on this volume.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let head: &[u8; HEAD_BYTES] = bytes.first_chunk().ok_or(StateError::Magic)?;
        if head[..8] != MAGIC {
            return Err(StateError::Magic);
        }
        let version = u16::from_le_bytes([head[8], head[9]]);
        if version != VERSION {
            return Err(StateError::Version(version));
        }
        let body_bytes = u32::from_le_bytes([head[10], head[11], head[12], head[13]]) as usize;
        if body_bytes > STATE_BYTES_MAX || bytes.len() != HEAD_BYTES + body_bytes + 4 {
            return Err(StateError::Damaged("its length is wrong"));
        }
        let (covered, crc) = bytes.split_at(HEAD_BYTES + body_bytes);
        if crc != crc32c(covered).to_le_bytes() {
            return Err(StateError::Damaged("its CRC does not match"));
        }
        let (state, rest) = postcard::take_from_bytes::<Self>(&covered[HEAD_BYTES..])
            .map_err(|_cause| StateError::Damaged("its body does not decode"))?;
        if !rest.is_empty() {
            return Err(StateError::Damaged("it has bytes behind its body"));
        }
        Ok(state)
    }
}
