//! How far a volume's log is acknowledged, noted in the page cache: a file that is never synced.
//!
//! What a daemon has written outlives it in the page cache, so as long as the machine has not
//! booted again the log must reach as far as was noted. Then nothing is torn and nothing may be
//! missing: a log that ends before is damaged, and is not taken for one that a crash has cut off.
//!
//! The file `written`: the boot's id (16 bytes), the sequence of the last segment (8), its entries
//! (4), numbers in big endian.

use super::Volume;
use super::log::Position;
use crate::boot::boot;
use crate::error::{Error, ErrorKind, Result};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const NAME: &str = "written";
const BOOT_BYTES: usize = 16;
const POSITION_BYTES: usize = 12;

/// The file of a volume that appends.
pub(crate) struct Mark(File);

impl Mark {
    /// Begins to note, from a position on. `None` when nothing can be noted.
    pub(super) fn begin(dir: &Path, position: Position) -> Option<Self> {
        let path = dir.join(NAME);
        let write = || -> io::Result<File> {
            let boot = boot().map_err(io::Error::other)?.0.to_be_bytes();
            let file = File::options().write(true).create(true).truncate(false).open(&path)?;
            file.write_all_at(&[&boot[..], &encode(position)].concat(), 0)?;
            Ok(file)
        };
        match write() {
            Ok(file) => Some(Self(file)),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "the end of the log is not noted");
                std::fs::remove_file(&path).ok();
                None
            }
        }
    }

    /// Notes how far the log is written.
    pub(super) fn note(&self, position: Position) -> io::Result<()> {
        self.0.write_all_at(&encode(position), BOOT_BYTES as u64)
    }
}

fn encode(position: Position) -> [u8; POSITION_BYTES] {
    let mut bytes = [0; POSITION_BYTES];
    bytes[..8].copy_from_slice(&position.sequence().0.to_be_bytes());
    bytes[8..].copy_from_slice(&position.entries.to_be_bytes());
    bytes
}

/// What was noted in this boot of the machine, if anything was.
pub(super) struct Noted([u8; POSITION_BYTES]);

impl Noted {
    /// Reads it.
    ///
    /// # Errors
    /// `Unavailable`.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| Error::io(format!("read {}", path.display()), e))?,
        };
        let Some((in_boot, noted)) = bytes.split_first_chunk::<BOOT_BYTES>() else {
            return Ok(None);
        };
        let is_this_boot = *in_boot == boot()?.0.to_be_bytes();
        Ok(noted.try_into().ok().filter(|_noted| is_this_boot).map(Self))
    }

    /// Checks that the recovered log has it.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(super) fn check(&self, volume: &Volume) -> Result<()> {
        if encode(volume.journal.lock().end) >= self.0 {
            return Ok(());
        }
        let text = format!(
            "the log of volume {} ends before what was acknowledged since this machine has \
             booted: a segment file in {} is damaged or gone; put it back, or take the volume over \
             from another copy; to go on without what is lost, remove {}",
            volume.id,
            volume.dir.join("segments").display(),
            volume.dir.join(NAME).display()
        );
        Err(Error::new(ErrorKind::Corrupt, text))
    }
}

/// Forgets what was noted: the log is cut on purpose.
///
/// # Errors
/// `Unavailable`.
pub(super) fn remove(dir: &Path) -> Result<()> {
    let path = dir.join(NAME);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

impl Volume {
    /// Notes the end of the log, which is about to be acknowledged.
    pub(super) fn note_written(&self, journal: &mut super::journal::Journal) {
        let position = journal.position();
        let Some(Err(error)) = journal.mark.as_ref().map(|mark| mark.note(position)) else {
            return;
        };
        tracing::debug!(volume = %self.id, %error, "the end of the log is not noted any more");
        journal.mark = None;
        if let Err(error) = remove(&self.dir) {
            tracing::warn!(volume = %self.id, %error, "an old end of the log stays noted");
        }
    }
}
