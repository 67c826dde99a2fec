//! What a host can tell about the cluster: plain data, serialisable, also exchanged between hosts.

use pannier_core::ids::{Epoch, HostId, Sequence, SiteName, VolumeId};
use pannier_core::record::VolumePath;
use serde::{Deserialize, Serialize};

/// The cluster as one host sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The host that tells.
    pub host: HostId,
    /// Its boot-independent facts about the registry.
    pub registry: RegistryStatus,
    /// All sites.
    pub sites: Vec<SiteStatus>,
    /// All hosts.
    pub hosts: Vec<HostStatus>,
    /// The volumes asked for, by path.
    pub volumes: Vec<VolumeStatus>,
}

/// The registry as one host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryStatus {
    /// Whether it answered when last asked.
    pub reachable: bool,
    /// Up to which revision this host's copy has everything.
    pub revision: u64,
}

/// A site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteStatus {
    /// Its name.
    pub name: SiteName,
    /// Its hosts.
    pub hosts: Vec<HostId>,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its identity.
    pub id: HostId,
    /// Its name for people.
    pub name: String,
    /// Its site.
    pub site: SiteName,
    /// Where its peers reach it.
    pub address: String,
    /// Whether it answered just now.
    pub reachable: bool,
    /// Whether it has told the registry lately that it is alive; `None` when that is not known.
    pub alive: Option<bool>,
    /// Round trip to it in milliseconds; none for the host that tells and for one that is away.
    pub rtt_ms: Option<f64>,
}

/// What a host is to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// It appends.
    Owner,
    /// It follows the owner's log, to take over.
    Follower,
    /// It has given the volume away and the taker has not registered it yet, or it takes it and
    /// does not append yet.
    Switching,
    /// It holds data, or nothing, and forwards.
    None,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its identity.
    pub id: VolumeId,
    /// Its path.
    pub path: VolumePath,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whether several attachments may write at once.
    pub shared: bool,
    /// The registered owner.
    pub owner: HostId,
    /// The registered epoch.
    pub epoch: Epoch,
    /// What each reachable host that has something of it holds and does.
    pub places: Vec<Place>,
    /// What each site's store holds.
    pub homes: Vec<HomeStatus>,
    /// The move under way.
    pub movement: Option<MoveStatus>,
}

/// What one host holds of a volume and does for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The host.
    pub host: HostId,
    /// What it is to the volume.
    pub role: Role,
    /// The epoch under which it appends, or last did.
    pub epoch: Epoch,
    /// Bytes that the volume's map names: what the disk really holds.
    pub live_bytes: u64,
    /// Of these, bytes that this host reads without a network.
    pub resident_bytes: u64,
    /// Of these, bytes in the site's own store.
    pub stored_bytes: u64,
    /// Of these, bytes that neither this host nor its site's store holds.
    pub missing_bytes: u64,
    /// Connections of guests here.
    pub connections: u32,
    /// Whether the attachment here holds the write right.
    pub holds_write_right: bool,
    /// What keeps the host from doing its part, with the way out.
    pub obstacle: Option<String>,
}

/// What a site's store holds of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeStatus {
    /// The site.
    pub site: SiteName,
    /// Epoch and last sequence of the newest checkpoint there.
    pub checkpoint: Option<(Epoch, Sequence)>,
    /// Whether every block that a root of the volume names, as of a checkpoint of the present
    /// epoch, was verified in the site's own store. What an older epoch's checkpoint was worth
    /// counts no more: another site may have written since.
    pub independent: bool,
}

/// How far a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum MovePhase {
    /// The target follows and catches up; the source still appends.
    Preparing,
    /// The right to append changes hands.
    Switching,
    /// The target appends; its site does not hold everything yet.
    Hydrating,
    /// Everything is in the target site's store and is being read back and verified.
    Verifying,
    /// The target's site holds everything, verified.
    Independent,
}

/// A move under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MoveStatus {
    /// The source; not known any more when the target was restarted behind the switch.
    pub from: Option<HostId>,
    /// The target.
    pub to: HostId,
    /// How far it is.
    pub phase: MovePhase,
    /// Whether the switch waits for the first write at the target.
    pub at_first_write: bool,
    /// Bytes that the target's site has to hold at the end.
    pub total_bytes: u64,
    /// Of these, bytes that it holds.
    pub done_bytes: u64,
    /// Bytes received from peers for it, as they crossed the network.
    pub wire_bytes: u64,
    /// Recent rate in bytes per second.
    pub bytes_per_second: f64,
    /// Expected time until the end of this phase in seconds, once a rate is known.
    pub eta_seconds: Option<f64>,
    /// Guests' reads that waited for another site since the switch.
    pub demand_fetches: u64,
    /// Why it does not get on just now, when it does not.
    pub waiting_for: Option<String>,
}
