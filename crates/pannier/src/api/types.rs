//! What the API says and is told: stable names, shared by the server, the CLI and the web page.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ApiError {
    /// What the caller can do: `unavailable`, `fenced`, `invalid`, `not_found`, `corrupt`,
    /// `no_space`, `closed` or `internal`.
    pub(crate) kind: String,
    /// The thing, the cause and the way out.
    pub(crate) message: String,
}

/// A volume to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateVolume {
    /// Its path, such as `/vms/web/disk0`.
    pub(crate) path: String,
    /// Its size in bytes, a multiple of 512.
    pub(crate) size_bytes: u64,
    /// Whether several hosts may write at once.
    #[serde(default)]
    pub(crate) shared: bool,
}

/// A new size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResizeVolume {
    /// In bytes, a multiple of 512, at least the present size.
    pub(crate) size_bytes: u64,
}

/// A move to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BeginMove {
    /// The site to move to.
    pub(crate) site: String,
    /// The host there; without it, one that answers.
    #[serde(default)]
    pub(crate) host: Option<String>,
    /// Switch at the first write at the target, not as soon as possible.
    #[serde(default)]
    pub(crate) at_first_write: bool,
}

/// A takeover from hosts that are lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BeginTakeover {
    /// Names of the hosts that are out, on the operator's word.
    pub(crate) fenced: Vec<String>,
}

/// A token to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MakeToken {
    /// How long it is good for, in seconds.
    pub(crate) valid_seconds: u64,
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Token {
    /// What `pannier join --token` is given.
    pub(crate) token: String,
}

/// The daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Daemon {
    /// Its version.
    pub(crate) version: String,
    /// The host's id.
    pub(crate) host: String,
    /// The host's name.
    pub(crate) name: String,
    /// The host's site.
    pub(crate) site: String,
    /// Its directory.
    pub(crate) dir: String,
    /// Its NBD unix socket.
    pub(crate) nbd_socket: String,
    /// The TCP address on which it serves NBD.
    pub(crate) nbd_address: Option<String>,
    /// Its process id.
    pub(crate) pid: u32,
}

/// The cluster as the asked host sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Status {
    /// Name of the host that tells.
    pub(crate) host: String,
    /// The registry.
    pub(crate) registry: Registry,
    /// All sites.
    pub(crate) sites: Vec<Site>,
    /// All hosts.
    pub(crate) hosts: Vec<Host>,
    /// The volumes asked for, by path.
    pub(crate) volumes: Vec<Volume>,
}

/// The registry as the asked host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Registry {
    /// Whether it answered when last asked.
    pub(crate) reachable: bool,
    /// The revision up to which the host's copy has everything.
    pub(crate) revision: u64,
}

/// A site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Site {
    /// Its name.
    pub(crate) name: String,
    /// Names of its hosts.
    pub(crate) hosts: Vec<String>,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Host {
    /// Its id.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: String,
    /// Its site.
    pub(crate) site: String,
    /// Where its peers reach it.
    pub(crate) address: String,
    /// Whether it answered just now.
    pub(crate) reachable: bool,
    /// Whether it has told the registry within the last minute that it is alive; none where the
    /// registry does not keep that, or is away.
    pub(crate) alive: Option<bool>,
    /// Round trip to it in milliseconds.
    pub(crate) rtt_ms: Option<f64>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Volume {
    /// Its id.
    pub(crate) id: String,
    /// Its path.
    pub(crate) path: String,
    /// Its size in bytes.
    pub(crate) size_bytes: u64,
    /// Whether several hosts may write at once.
    pub(crate) shared: bool,
    /// Name of the host that owns it.
    pub(crate) owner: String,
    /// The owner's site.
    pub(crate) site: String,
    /// Epoch of the owner.
    pub(crate) epoch: u64,
    /// What each reachable host that has something of it holds and does.
    pub(crate) places: Vec<Place>,
    /// What each site's store holds.
    pub(crate) homes: Vec<Home>,
    /// The move under way, or the last one's result at its target.
    pub(crate) movement: Option<Movement>,
}

/// What one host holds of a volume and does for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Place {
    /// Name of the host.
    pub(crate) host: String,
    /// Its site.
    pub(crate) site: String,
    /// `owner`, `follower`, `switching` or `none`.
    pub(crate) role: String,
    /// Bytes that the volume's map names.
    pub(crate) live_bytes: u64,
    /// Of these, bytes that the host reads without a network.
    pub(crate) resident_bytes: u64,
    /// Of these, bytes in the site's own store.
    pub(crate) stored_bytes: u64,
    /// Of these, bytes that neither the host nor its site's store holds.
    pub(crate) missing_bytes: u64,
    /// Connections of guests there.
    pub(crate) connections: u32,
    /// Whether the write right is held there.
    pub(crate) holds_write_right: bool,
    /// What keeps the host from doing its part, with the way out.
    #[serde(default)]
    pub(crate) obstacle: Option<String>,
}

/// What a site's store holds of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Home {
    /// The site.
    pub(crate) site: String,
    /// Epoch of the newest checkpoint there.
    pub(crate) checkpoint_epoch: Option<u64>,
    /// Last sequence of the log that it contains.
    pub(crate) checkpoint_sequence: Option<u64>,
    /// Whether every block, as of a checkpoint of the present epoch, was verified in the site's own
    /// store: nothing of the volume depends on another site.
    pub(crate) independent: bool,
}

/// A move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Movement {
    /// Name of the source, while it is known.
    pub(crate) from: Option<String>,
    /// Name of the target.
    pub(crate) to: String,
    /// The target's site.
    pub(crate) to_site: String,
    /// `preparing`, `switching`, `hydrating`, `verifying` or `independent`.
    pub(crate) phase: String,
    /// Whether the switch waits for the first write at the target.
    pub(crate) at_first_write: bool,
    /// Bytes that the target's site has to hold at the end.
    pub(crate) total_bytes: u64,
    /// Of these, bytes that it holds.
    pub(crate) done_bytes: u64,
    /// Bytes received from peers for it, as they crossed the network.
    pub(crate) wire_bytes: u64,
    /// Recent rate in bytes per second.
    pub(crate) bytes_per_second: f64,
    /// Expected seconds until this phase ends.
    pub(crate) eta_seconds: Option<f64>,
    /// Guests' reads that waited for another site since the switch.
    pub(crate) demand_fetches: u64,
    /// Why it does not get on just now.
    pub(crate) waiting_for: Option<String>,
}

/// Volumes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct VolumeList {
    /// By path.
    pub(crate) volumes: Vec<VolumeEntry>,
}

/// A volume in a list: what the registry knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct VolumeEntry {
    /// Its id.
    pub(crate) id: String,
    /// Its path.
    pub(crate) path: String,
    /// Its size in bytes.
    pub(crate) size_bytes: u64,
    /// Name of the host that owns it.
    pub(crate) owner: String,
    /// The owner's site.
    pub(crate) site: String,
    /// Name of the host that it is moving to.
    pub(crate) moving_to: Option<String>,
    /// Sites that hold all of it, verified.
    pub(crate) independent_at: Vec<String>,
}
