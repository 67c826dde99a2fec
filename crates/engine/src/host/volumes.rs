//! Volumes as operators handle them: create, grow, delete, release.

use super::Host;
use super::peers::HostRequest;
use crate::error::{Error, ErrorKind, Result};
use crate::ownership::Part;
use crate::volume::Volume;
use pannier_core::ids::VolumeId;
use pannier_core::map::SIZE_BLOCKS_MAX;
use pannier_core::record::{VolumePath, VolumeRecord};
use pannier_core::units::{BLOCK_BYTES, SECTOR_BYTES};
use std::time::Duration;

/// Largest volume: what a map can have.
const SIZE_BYTES_MAX: u64 = SIZE_BLOCKS_MAX * BLOCK_BYTES;

/// How long a new owner may take until it appends: a few syncs.
pub(super) const SETTLE_MAX: Duration = Duration::from_secs(10);

/// What a new volume is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// Its path.
    pub path: VolumePath,
    /// Its size in bytes, a multiple of 512.
    pub size_bytes: u64,
    /// Whether several attachments may write at once.
    pub shared: bool,
}

fn check_size(size_bytes: u64) -> Result<()> {
    let fail = |cause: String| Err(Error::new(ErrorKind::Invalid, cause));
    if size_bytes == 0 {
        return fail("a volume has at least 512 bytes; give it a size such as 20G".to_owned());
    }
    if size_bytes > SIZE_BYTES_MAX {
        let tebibytes = SIZE_BYTES_MAX >> 40;
        return fail(format!(
            "{size_bytes} bytes are more than the largest volume has ({tebibytes} TiB); take less"
        ));
    }
    if !size_bytes.is_multiple_of(SECTOR_BYTES) {
        let next = size_bytes.next_multiple_of(SECTOR_BYTES);
        return fail(format!("{size_bytes} bytes are not whole 512-byte sectors; take {next}"));
    }
    Ok(())
}

impl Host {
    /// Creates a volume, owned by this host.
    ///
    /// # Errors
    /// `Invalid` for a path that is taken or a size that cannot be, `NoSpace`, `Unavailable` while
    /// the registry is away.
    pub async fn create_volume(&self, new: NewVolume) -> Result<VolumeRecord> {
        check_size(new.size_bytes)?;
        // Asked first, so that nothing is made when the registry is away or the path is taken.
        self.directory.refresh().await?;
        if let Some(found) = self.directory.volume_at(&new.path) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "there is already a volume `{}`, on host {}; choose another path, or delete it \
                     first",
                    new.path,
                    self.directory.host_name(found.record.owner)
                ),
            ));
        }
        let id = VolumeId(uuid::Uuid::new_v4().as_u128());
        let mut record = VolumeRecord::new(id, new.path, new.size_bytes, self.id);
        record.shared = new.shared;
        self.locals.put(Volume::create(&self.context, id, record.size_bytes).await?);
        let registered = async {
            self.owners.create(id).await?;
            self.directory.create_volume(&record).await
        };
        if let Err(error) = registered.await {
            // Where only the answer was lost, the registry has the volume, and it is here alone:
            // the watch tells. Where it has not, the next start sweeps it away.
            if error.kind() != ErrorKind::Unavailable {
                self.remove(id).await;
            }
            return Err(error);
        }
        self.await_owner(id).await;
        Ok(record)
    }

    /// Waits, a short while, until this host appends to a volume that it has just become the owner
    /// of.
    pub(super) async fn await_owner(&self, volume: VolumeId) {
        let Some(mut view) = self.owners.watch(volume) else { return };
        let settled = view.wait_for(|view| view.part == Part::Owner || view.obstacle.is_some());
        if tokio::time::timeout(SETTLE_MAX, settled).await.is_err() {
            tracing::info!(%volume, "this host owns the volume and does not append to it yet");
        }
    }

    /// Deletes a volume and its data at all sites. Hosts that are away do so when they are back.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` while guests are connected or a move is under way (unless
    /// `force`), or the registry is away.
    pub async fn delete_volume(&self, path: &VolumePath, force: bool) -> Result<()> {
        let found = self.directory.find(path).await?.record;
        if !force {
            self.check_unused(&found).await?;
        }
        let moving = |record: &VolumeRecord| match &record.transit {
            Some(transit) if !force => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "volume `{}` is moving to host {}; wait for it, call it off with `pannier move \
                     {} --abort`, or delete it with --force",
                    record.path,
                    self.directory.host_name(transit.to),
                    record.path
                ),
            )),
            _ => Ok(()),
        };
        self.directory.delete_volume(found.id, moving).await?;
        self.remove(found.id).await;
        Ok(())
    }

    async fn check_unused(&self, record: &VolumeRecord) -> Result<()> {
        let reports = self.reports(Some(record.id)).await;
        for (host, report) in reports {
            let Some(report) = report else { continue };
            let connections: u32 = report.places.iter().map(|place| place.connections).sum();
            if connections > 0 {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "volume `{}` is in use: {connections} connections on host {}; disconnect \
                         them, or delete it with --force",
                        record.path,
                        self.directory.host_name(host)
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Grows a volume.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for a size that is smaller or cannot be, `Unavailable` while the owner
    /// or the registry is away.
    pub async fn resize_volume(&self, path: &VolumePath, size_bytes: u64) -> Result<()> {
        check_size(size_bytes)?;
        let found = self.directory.find(path).await?.record;
        let found = self.directory.fresh_volume(found.id).await?.record;
        if size_bytes < found.size_bytes {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "volume `{path}` has {} bytes and cannot shrink to {size_bytes}; shrink the \
                     file system and copy it to a smaller volume instead",
                    found.size_bytes
                ),
            ));
        }
        self.open_volume(found.id).await?;
        self.mover.connect(found.id, found.size_bytes).resize(size_bytes).await?;
        self.directory.grow_volume(found.id, size_bytes).await
    }

    /// Takes the write right from whoever holds it, so that the next writer gets it.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable` while the owner is away.
    pub async fn release(&self, path: &VolumePath) -> Result<()> {
        let found = self.directory.find(path).await?.record;
        self.at_owner(&found, HostRequest::Release { volume: found.id }).await
    }

    /// Carries a release out: this host is the owner.
    pub(super) async fn release_here(&self, volume: VolumeId) -> Result<()> {
        let view = self.owners.view(volume).filter(|view| view.part == Part::Owner);
        let Some(view) = view else { return Err(self.not_owner(volume)) };
        let Some(holder) = view.right.holder else { return Ok(()) };
        // What the holder was admitted lands before anybody else's; its session goes on, and its
        // next write asks for the right as any other's does.
        self.mover.withdraw_right(volume, holder).await;
        self.owners.release_right(volume, holder).await
    }

    pub(super) fn not_owner(&self, volume: VolumeId) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            format!("host {} does not own volume {volume} now; repeat the command", self.id),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_cannot_be_say_which_can() {
        for (size_bytes, part) in [
            (0, "20G"),
            (513, "take 1024"),
            (SIZE_BYTES_MAX - 1, &*format!("take {SIZE_BYTES_MAX}")),
            (SIZE_BYTES_MAX + 512, "256 TiB"),
            (SIZE_BYTES_MAX + 1, "256 TiB"),
            (i64::MAX as u64, "256 TiB"),
            (u64::MAX, "256 TiB"),
        ] {
            let refused = check_size(size_bytes).unwrap_err();
            assert!(refused.context().contains(part), "{refused}");
        }
        check_size(SIZE_BYTES_MAX).unwrap();
    }
}
