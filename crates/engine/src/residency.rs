//! Which segment files a host keeps beyond what it must: evicted whole, oldest first, once stored.

use crate::volume::Volume;
use crate::volume::segment::Segment;
use pannier_core::cache::{Fifo, Policy};
use pannier_core::ids::{SegmentId, VolumeId};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// The segment files of all volumes of a host.
#[derive(Default)]
pub(crate) struct Residency {
    volumes: Mutex<HashMap<VolumeId, Weak<Volume>>>,
    files: Mutex<Fifo<SegmentId>>,
}

impl Residency {
    /// A volume is open here, with the files it has.
    pub(crate) fn add_volume(&self, volume: &Arc<Volume>) {
        self.volumes.lock().insert(volume.id(), Arc::downgrade(volume));
        let with_file: Vec<_> = {
            let state = volume.map.read();
            let live = state.live().filter(|(segment, _)| segment.has_file());
            live.map(|(segment, _)| segment.name).collect()
        };
        let mut files = self.files.lock();
        for name in with_file {
            files.insert(SegmentId { volume: volume.id(), name });
        }
    }

    /// A segment with a file was sealed.
    pub(crate) fn note(&self, volume: &Volume, segment: &Segment) {
        if segment.has_file() {
            self.files.lock().insert(SegmentId { volume: volume.id(), name: segment.name });
        }
    }

    /// A segment has no file any more.
    pub(crate) fn forget(&self, segment: SegmentId) {
        self.files.lock().remove(&segment);
    }

    /// A volume is deleted.
    pub(crate) fn forget_volume(&self, id: VolumeId) {
        self.volumes.lock().remove(&id);
    }

    fn volume(&self, id: VolumeId) -> Option<Arc<Volume>> {
        self.volumes.lock().get(&id)?.upgrade()
    }

    /// Whether this site's store has a segment. One of a volume that is not open here may leave: no
    /// guest waits for it, and its owner has it.
    pub(crate) fn is_stored(&self, id: &SegmentId) -> bool {
        let Some(volume) = self.volume(id.volume) else { return true };
        let state = volume.map.read();
        state.named(id.name).is_none_or(|segment| segment.is_stored())
    }

    /// Gives files back while there are more bytes of files and lines than `bytes_max`; blocks.
    pub(crate) fn evict(&self, file_bytes: u64, line_bytes: u64, bytes_max: u64) {
        loop {
            let victim = {
                let mut files = self.files.lock();
                if files.len() as u64 * file_bytes + line_bytes <= bytes_max {
                    return;
                }
                files.evict(&mut |id| self.volume(id.volume).is_none() || self.is_stored(id))
            };
            let Some(id) = victim else { return };
            let Some(volume) = self.volume(id.volume) else { continue };
            if let Err(error) = volume.evict_file(id.name) {
                tracing::warn!(segment = %id, %error, "a segment file is not evicted");
            }
        }
    }
}
