//! Segment files that were written once before: a flush into one of them needs no commit of the
//! file system's journal. Also the reserve for what must be written on a full disk.

use crate::context::LocalConfig;
use crate::disk::Disk;
use crate::error::Result;
use std::path::Path;

/// The host's pool of segment files.
pub struct Pool {}

impl Pool {
    /// Opens the pool's directory.
    ///
    /// # Errors
    /// `NoSpace` or `Unavailable`.
    pub fn open(_disk: &Disk, _dir: &Path, _config: &LocalConfig) -> Result<Self> {
        Ok(Self {})
    }

    /// Frees the reserved space.
    pub fn release_reserve(&self) {}

    /// Reserves the space again, if the disk has it.
    pub fn take_reserve(&self) {}
}
