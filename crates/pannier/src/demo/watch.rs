//! Watches the move as an operator would: over the target's API, and at the link.

use super::site::Site;
use crate::api::types::Volume;
use crate::client::encode_path;
use crate::output::Failure;
use pannier_wan::Wan;
use std::time::Instant;

/// The move at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Point {
    /// Seconds on the demo's clock.
    pub(super) at: f64,
    /// Bytes that the volume's map names.
    pub(super) live: u64,
    /// Of these, bytes that the target reads without the link.
    pub(super) resident: u64,
    /// Of these, bytes in the target site's own store.
    pub(super) stored: u64,
    /// Bytes over the link so far, towards the target and back.
    pub(super) forth: u64,
    pub(super) back: u64,
}

/// What the target's daemon says and the link has counted.
pub(super) struct View {
    pub(super) point: Point,
    pub(super) volume: Volume,
}

impl View {
    /// Asks the target.
    pub(super) async fn take(
        target: &Site,
        export: &str,
        wan: &Wan,
        clock: Instant,
    ) -> Result<Self, Failure> {
        let volume: Volume =
            target.api().get(&format!("/v1/volumes/{}", encode_path(export))).await?;
        let place = volume.places.iter().find(|place| place.site == target.name);
        let (live, resident, stored) = place.map_or((0, 0, 0), |place| {
            (place.live_bytes, place.resident_bytes, place.stored_bytes)
        });
        let point = Point {
            at: clock.elapsed().as_secs_f64(),
            live,
            resident,
            stored,
            forth: wan.forth.stats().bytes,
            back: wan.back.stats().bytes,
        };
        Ok(Self { point, volume })
    }

    /// Whether the target follows the owner, so that a switch is short.
    pub(super) fn follows(&self, target: &Site) -> bool {
        let places = &self.volume.places;
        places.iter().any(|place| place.site == target.name && place.role == "follower")
    }

    /// Whether the target owns the volume.
    pub(super) fn switched(&self, target: &Site) -> bool {
        self.volume.site == target.name
    }

    /// Whether nothing depends on the source any more.
    pub(super) fn independent(&self, target: &Site) -> bool {
        let homes = &self.volume.homes;
        self.switched(target)
            && homes.iter().any(|home| home.site == target.name && home.independent)
    }

    /// Guests' reads that waited for another site since the switch.
    pub(super) fn wan_reads(&self) -> u64 {
        self.volume.movement.as_ref().map_or(0, |movement| movement.demand_fetches)
    }

    /// Bytes that the target's site is to hold, and holds.
    pub(super) fn progress(&self) -> (u64, u64) {
        let movement = self.volume.movement.as_ref();
        movement.map_or((0, 0), |movement| (movement.total_bytes, movement.done_bytes))
    }
}
