//! The image that moves: given, or made from files of this machine; and the least that could move.

use crate::output::Failure;
use pannier_core::units::BLOCK_BYTES;
use pannier_engine::error::ErrorKind;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Size in bytes of the default image.
const IMAGE_BYTES: u64 = 1 << 30;

/// Bytes of files in it; the rest is the file system's own, and free.
const CONTENT_BYTES: u64 = 720 << 20;

/// Most files in it: what `mkfs.ext4` packs within seconds.
const FILES_MAX: usize = 20_000;

/// Where the files come from, in this order.
const SOURCES: [&str; 5] = ["/usr/lib", "/usr/share", "/usr/bin", "/usr/include", "/usr/local"];

/// Largest file that is taken, so that the image holds many kinds.
const FILE_BYTES_MAX: u64 = 24 << 20;

/// Frame in which the floor is compressed: that of stored segments.
const FRAME_BYTES: usize = 64 << 10;

/// Makes an ext4 image of about 1 GiB from files of this machine.
pub(super) fn make(dir: &Path) -> Result<PathBuf, Failure> {
    let staged = dir.join("files");
    let image = dir.join("image.raw");
    stage(&staged).map_err(|error| Failure::io("cannot collect files for the image", error))?;
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-L", "pannier-demo", "-E", "root_owner=0:0", "-d"])
        .arg(&staged)
        .arg(&image)
        .arg(format!("{}k", IMAGE_BYTES / 1024))
        .stdin(Stdio::null())
        .env("PATH", search_path())
        .output();
    let output = match made {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Failure::new(
                ErrorKind::NotFound,
                "mkfs.ext4 is not installed, which makes the demo's image: install the package \
                 e2fsprogs, or give a raw image with --image FILE",
            ));
        }
        Err(error) => return Err(Failure::io("cannot run mkfs.ext4", error)),
    };
    if !output.status.success() {
        let cause = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::new(
            ErrorKind::Internal,
            format!("mkfs.ext4 could not make the image: {}; give one with --image", cause.trim()),
        ));
    }
    fs::remove_dir_all(&staged)
        .map_err(|error| Failure::io("cannot remove staged files", error))?;
    Ok(image)
}

/// Where programs are looked for: system programs are not on everybody's path.
pub(super) fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}

/// Collects files into one folder, by hard links where that is allowed.
fn stage(into: &Path) -> io::Result<()> {
    fs::create_dir_all(into)?;
    let (mut bytes, mut count) = (0, 0);
    let mut folders: Vec<PathBuf> = SOURCES.iter().rev().map(PathBuf::from).collect();
    while let Some(folder) = folders.pop() {
        // What cannot be read is left out.
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            }
            let Ok(about) = entry.metadata() else { continue };
            let size = about.len().next_multiple_of(BLOCK_BYTES);
            let fits = about.len() <= FILE_BYTES_MAX && bytes + size <= CONTENT_BYTES;
            if !kind.is_file() || about.mode() & 0o444 != 0o444 || !fits || about.len() == 0 {
                continue;
            }
            let name = format!("{count:05}-{}", entry.file_name().to_string_lossy());
            let target = into.join(format!("{:02}", count / 256)).join(&name);
            if count % 256 == 0 {
                fs::create_dir_all(into.join(format!("{:02}", count / 256)))?;
            }
            let linked = fs::hard_link(entry.path(), &target);
            if linked.is_err() && fs::copy(entry.path(), &target).is_err() {
                continue;
            }
            bytes += size;
            count += 1;
            if count == FILES_MAX {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// What an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Content {
    /// Its size in bytes.
    pub(super) image_bytes: u64,
    /// Bytes of blocks that are not zero.
    pub(super) data_bytes: u64,
    /// Its unique non-zero blocks in disk order, in frames of 64 KiB, each compressed by zstd at
    /// level 3: the least that has to cross the link.
    pub(super) floor_bytes: u64,
}

/// Measures an image.
pub(super) fn measure(image: &Path) -> io::Result<Content> {
    let file = File::open(image)?;
    let image_bytes = file.metadata()?.len();
    let mut content = Content { image_bytes, ..Content::default() };
    let mut seen = HashSet::new();
    let mut frame = Vec::with_capacity(FRAME_BYTES);
    let mut compressor = zstd::bulk::Compressor::new(3)?;
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < image_bytes {
        let length = buffer.len().min((image_bytes - offset) as usize);
        file.read_exact_at(&mut buffer[..length], offset)?;
        offset += length as u64;
        for block in buffer[..length].chunks(BLOCK_BYTES as usize) {
            if block.iter().all(|byte| *byte == 0) {
                continue;
            }
            content.data_bytes += block.len() as u64;
            if !seen.insert(*blake3::hash(block).as_bytes()) {
                continue;
            }
            frame.extend_from_slice(block);
            if frame.len() >= FRAME_BYTES {
                content.floor_bytes += compressor.compress(&frame)?.len() as u64;
                frame.clear();
            }
        }
    }
    if !frame.is_empty() {
        content.floor_bytes += compressor.compress(&frame)?.len() as u64;
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_counts_unique_blocks_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let mut random = vec![0; 4096];
        rand::Rng::fill(&mut rand::rng(), &mut random[..]);
        let zero = vec![0; 4096];
        let image = [&random[..], &zero, &random, &zero, &random].concat();
        fs::write(&path, &image).unwrap();
        let content = measure(&path).unwrap();
        assert_eq!(content.image_bytes, 5 * 4096);
        assert_eq!(content.data_bytes, 3 * 4096);
        assert!((4096..4200).contains(&content.floor_bytes), "{content:?}");
    }
}
