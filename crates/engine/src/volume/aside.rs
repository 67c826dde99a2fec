//! What is no part of the volume any more, kept under its name in `aside/` for whoever asks.
//!
//! What recovery finds behind a break, or no part of the log, lies directly in `aside/`: every
//! crash may add some, no flush has covered it, and beyond [`limits::ASIDE_BYTES_MAX`] the oldest
//! goes. Damaged files and the tails of ended epochs may be the last copy of what a guest was
//! promised: they get directories of their own, and only an operator removes them.

use super::Volume;
use super::log::Position;
use crate::error::{Error, Result};
use crate::limits;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

impl Volume {
    /// Moves a file of the volume to `aside/`, under its name.
    pub(crate) fn set_aside(&self, path: &Path) -> Result<()> {
        let bytes = std::fs::metadata(path).map_or(0, |known| known.len());
        self.make_way(bytes)?;
        self.move_into(&self.aside(), path)
    }

    /// Moves a file that is damaged to where such are kept. Each file comes here once, so that they
    /// are no more than the volume has.
    pub(crate) fn set_damaged_aside(&self, path: &Path) -> Result<()> {
        self.move_into(&self.aside().join("damaged"), path)
    }

    /// Moves a file to where the tail of an ended epoch is kept: what lies beyond a position.
    pub(super) fn set_tail_aside(&self, position: Position, path: &Path) -> Result<()> {
        let beyond = self.aside().join(format!("beyond-{}", position.sequence().0));
        self.move_into(&beyond, path)
    }

    /// Copies a file that will be sealed at a prefix to `aside/`.
    pub(super) fn copy_aside(&self, path: &Path) -> Result<()> {
        let what = |e| Error::io(format!("copy {} aside", path.display()), e);
        self.make_way(std::fs::metadata(path).map_err(what)?.len())?;
        let aside = self.aside();
        self.context.disk.create_dir(&aside)?;
        let to = aside.join(path.file_name().unwrap_or_default());
        std::fs::copy(path, &to).map(|_bytes| ()).map_err(what)
    }

    fn aside(&self) -> PathBuf {
        self.dir.join("aside")
    }

    fn move_into(&self, aside: &Path, path: &Path) -> Result<()> {
        self.context.disk.create_dir(aside)?;
        let name = path.file_name().unwrap_or_default();
        let mut to = aside.join(name);
        let mut number = 1;
        while to.exists() {
            let mut numbered = name.to_owned();
            numbered.push(format!(".{number}"));
            to = aside.join(numbered);
            number += 1;
        }
        self.context.disk.rename(path, &to)
    }

    /// Removes the oldest files until so many bytes more are within the bound.
    fn make_way(&self, bytes: u64) -> Result<()> {
        let mut files: Vec<(SystemTime, PathBuf, u64)> = Vec::new();
        for path in self.context.disk.list(&self.aside())? {
            let what = |e| Error::io(format!("look at {}", path.display()), e);
            let known = std::fs::symlink_metadata(&path).map_err(what)?;
            if known.is_file() {
                files.push((known.modified().map_err(what)?, path, known.len()));
            }
        }
        files.sort();
        let mut all = bytes + files.iter().map(|(_, _, bytes)| bytes).sum::<u64>();
        for (_, path, bytes) in files {
            if all <= limits::ASIDE_BYTES_MAX {
                break;
            }
            tracing::warn!(file = %path.display(), "too much is set aside; the oldest is removed");
            self.context.disk.remove(&path)?;
            all -= bytes;
        }
        Ok(())
    }
}
