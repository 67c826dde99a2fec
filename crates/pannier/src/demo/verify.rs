//! The proof: the whole disk, read at the target alone, against what the guest was told is written.

use super::guest::{Disk, RECORD_SLOTS, record};
use super::image::search_path;
use crate::output::{Bar, Failure};
use pannier_core::units::BLOCK_BYTES;
use pannier_exports::nbd::client::Client;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Bytes read at once.
const PIECE_BYTES: u64 = 1 << 20;

/// What the comparison found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Verdict {
    /// Blocks of the image that read differently.
    pub(super) blocks_differing: u64,
    /// Slots whose newest acknowledged record is not there.
    pub(super) records_lost: u64,
    /// What `e2fsck -fn` says of the file system; `None` where there is none, or no e2fsck.
    pub(super) file_system_clean: Option<bool>,
}

impl Verdict {
    pub(super) fn is_good(&self) -> bool {
        self.blocks_differing == 0
            && self.records_lost == 0
            && self.file_system_clean != Some(false)
    }
}

/// Reads the whole disk at the target into `copy`, and judges it.
pub(super) async fn judge(
    disk: &Disk,
    records: &[u64],
    copy: &Path,
    bar: &Bar,
) -> Result<Verdict, Failure> {
    let mut client = Client::connect_unix(&disk.target, disk.export)
        .await
        .map_err(|error| Failure::io("cannot connect to the target", error))?;
    let image =
        File::open(&disk.image).map_err(|error| Failure::io("cannot open the image", error))?;
    let out = File::create(copy).map_err(|error| Failure::io("cannot make the copy", error))?;
    let sized = out.set_len(disk.image_bytes);
    sized.map_err(|error| Failure::io("cannot size the copy", error))?;
    let mut verdict = Verdict::default();
    let mut offset = 0;
    let mut expected = vec![0; PIECE_BYTES as usize];
    let mut found = vec![0; PIECE_BYTES as usize];
    while offset < disk.ring() {
        let length = PIECE_BYTES.min(disk.ring() - offset) as usize;
        let (expected, found) = (&mut expected[..length], &mut found[..length]);
        client
            .read(offset, found)
            .await
            .map_err(|error| Failure::io("the disk cannot be read at the target", error))?;
        expected.fill(0);
        let in_image = length.min((disk.image_bytes - offset) as usize);
        image
            .read_exact_at(&mut expected[..in_image], offset)
            .and_then(|()| write_sparse(&out, &found[..in_image], offset))
            .map_err(|error| Failure::io("cannot compare with the image", error))?;
        let block = BLOCK_BYTES as usize;
        let pairs = expected.chunks(block).zip(found.chunks(block));
        verdict.blocks_differing += pairs.filter(|(one, other)| one != other).count() as u64;
        offset += length as u64;
        bar.set(offset);
    }
    let mut ring = vec![0; (RECORD_SLOTS * BLOCK_BYTES) as usize];
    client
        .read(disk.ring(), &mut ring)
        .await
        .map_err(|error| Failure::io("the records cannot be read at the target", error))?;
    for (block, number) in ring.chunks(BLOCK_BYTES as usize).zip(records) {
        let there = match number {
            0 => block.iter().all(|byte| *byte == 0),
            number => block == record(*number),
        };
        verdict.records_lost += u64::from(!there);
    }
    client.disconnect().await.map_err(|error| Failure::io("cannot disconnect", error))?;
    verdict.file_system_clean = check_file_system(copy, &image);
    Ok(verdict)
}

fn write_sparse(out: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    for (index, piece) in bytes.chunks(64 << 10).enumerate() {
        if piece.iter().any(|byte| *byte != 0) {
            out.write_all_at(piece, offset + (index as u64 * (64 << 10)))?;
        }
    }
    Ok(())
}

/// Has e2fsck check the copy, if the image holds an ext file system.
fn check_file_system(copy: &Path, image: &File) -> Option<bool> {
    let mut magic = [0; 2];
    image.read_exact_at(&mut magic, 1080).ok()?;
    if magic != [0x53, 0xef] {
        return None;
    }
    let status = Command::new("e2fsck")
        .args(["-f", "-n"])
        .arg(copy)
        .env("PATH", search_path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .ok()?;
    Some(status.success())
}
