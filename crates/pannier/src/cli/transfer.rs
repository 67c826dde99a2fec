//! `pannier volume import` and `export`: raw image files in and out. What is sparse, or zero, is
//! neither sent nor written.

use crate::api::extents::{self, Decoder, PIECE_BYTES, Piece};
use crate::api::types::Volume;
use crate::client::{Client, encode_path};
use crate::output::{Bar, Failure, Printer, bytes};
use ::bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Method;
use pannier_core::record::VolumePath;
use pannier_core::units::{BLOCK_BYTES, SECTOR_BYTES};
use rustix::fs::SeekFrom;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// Pieces read ahead of the daemon: bounds the memory to 8 MiB.
const PIECES_AHEAD: usize = 8;

fn data_url(path: &VolumePath) -> String {
    format!("/v1/data{}", encode_path(path.as_str()))
}

pub(super) async fn import(
    client: &Client,
    file: &Path,
    path: &VolumePath,
    printer: &Printer,
) -> Result<(), Failure> {
    let image = open_image(file)?;
    let file_bytes = image_bytes(&image, file)?;
    let size_bytes = file_bytes.next_multiple_of(SECTOR_BYTES);
    let quiet = Printer::quiet();
    super::volume::create(client, path, size_bytes, false, &quiet).await?;
    let outcome = tokio::select! {
        outcome = fill(client, image, file, path, size_bytes, printer) => outcome,
        _ = tokio::signal::ctrl_c() => Err(Failure::invalid("interrupted")),
    };
    let sent = match outcome {
        Ok(sent) => sent,
        Err(Failure(mut error)) => {
            // Half a disk is of no use to anybody.
            let url = format!("{}?force=true", super::volume::url(path));
            error.message = match client.call::<()>(Method::DELETE, &url).await {
                Ok(()) => format!("{}; the unfinished volume {path} was removed", error.message),
                Err(Failure(left)) => format!(
                    "{}; the unfinished volume {path} is still there ({}): delete it",
                    error.message, left.message
                ),
            };
            return Err(Failure(error));
        }
    };
    let result = serde_json::json!({
        "path": path.as_str(),
        "size_bytes": size_bytes,
        "file_bytes": file_bytes,
        "data_bytes": sent,
    });
    printer.result(&result, || {
        let padded = if size_bytes == file_bytes {
            String::new()
        } else {
            format!("; the file's {file_bytes} bytes were padded with zeroes to whole sectors")
        };
        let (size, data) = (bytes(size_bytes), bytes(sent));
        format!("imported {} as {path}: {size}, {data} of data{padded}", file.display())
    });
    Ok(())
}

fn open_image(file: &Path) -> Result<File, Failure> {
    let image = File::open(file)
        .map_err(|error| Failure::io(format!("cannot open {}", file.display()), error))?;
    let mut magic = [0; 4];
    if image.read_exact_at(&mut magic, 0).is_ok() && &magic == b"QFI\xfb" {
        return Err(Failure::invalid(format!(
            "{} is a qcow2 image and import takes raw ones; convert it with `qemu-img convert`, or \
             create a volume and let `qemu-img convert -n` write it over NBD (docs/operations.md)",
            file.display()
        )));
    }
    Ok(image)
}

/// The size of a raw image; what is none is refused.
pub(crate) fn image_size(file: &Path) -> Result<u64, Failure> {
    image_bytes(&open_image(file)?, file)
}

/// The size of a file or a block device.
fn image_bytes(image: &File, file: &Path) -> Result<u64, Failure> {
    let fail = |error| Failure::io(format!("cannot measure {}", file.display()), error);
    if image.metadata().map_err(fail)?.is_dir() {
        return Err(Failure::invalid(format!(
            "{} is a folder; name a raw image or a block device",
            file.display()
        )));
    }
    let size = rustix::fs::seek(image, SeekFrom::End(0)).map_err(|error| fail(error.into()))?;
    if size == 0 {
        return Err(Failure::invalid(format!(
            "{} is empty; a volume has at least one sector",
            file.display()
        )));
    }
    Ok(size)
}

async fn fill(
    client: &Client,
    image: File,
    file: &Path,
    path: &VolumePath,
    size_bytes: u64,
    printer: &Printer,
) -> Result<u64, Failure> {
    let bar = printer.bytes_bar("importing", size_bytes);
    let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
    let position = Arc::new(AtomicU64::new(0));
    let reader = {
        let (position, name) = (position.clone(), file.to_owned());
        tokio::task::spawn_blocking(move || {
            read_image(&image, size_bytes, &sender, &position, &name)
        })
    };
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let url = data_url(path);
    let upload = client.upload(&url, stream);
    let uploaded = with_bar(&bar, &position, upload).await;
    bar.finish();
    let read = reader.await.map_err(|error| Failure::invalid(format!("{error}")))?;
    match (read, uploaded) {
        // The reader's error is the cause of the daemon's complaint about a stream without its end.
        (Err(failure), _) => Err(failure),
        (Ok(_), Err(failure)) => Err(failure),
        (Ok(sent), Ok(())) => Ok(sent),
    }
}

/// Waits for `work` while the bar follows `position`.
async fn with_bar<T>(bar: &Bar, position: &AtomicU64, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = tick.tick() => bar.set(position.load(Ordering::Relaxed)),
        }
    }
}

/// Reads the image's data and passes it on as encoded pieces; returns how many bytes that were.
/// Ends early, without an error, when nobody takes them any more.
fn read_image(
    image: &File,
    size_bytes: u64,
    sender: &mpsc::Sender<Bytes>,
    position: &AtomicU64,
    name: &Path,
) -> Result<u64, Failure> {
    let fail = |error| Failure::io(format!("cannot read {}", name.display()), error);
    let mut sent = 0;
    let mut at = 0;
    let mut buffer = vec![0; PIECE_BYTES];
    while let Some((start, end)) = next_data(image, at, size_bytes).map_err(fail)? {
        let mut offset = start / BLOCK_BYTES * BLOCK_BYTES;
        while offset < end {
            let whole = (end - offset).next_multiple_of(BLOCK_BYTES);
            let length = whole.min(PIECE_BYTES as u64).min(size_bytes - offset);
            let piece = &mut buffer[..length as usize];
            read_padded(image, piece, offset).map_err(fail)?;
            for (from, part) in extents::data_parts(piece) {
                sent += part.len() as u64;
                let header = extents::header(offset + from as u64, part.len());
                let encoded = Bytes::from([&header[..], part].concat());
                if sender.blocking_send(encoded).is_err() {
                    return Ok(sent);
                }
            }
            offset += length;
            position.store(offset, Ordering::Relaxed);
        }
        at = offset;
    }
    position.store(size_bytes, Ordering::Relaxed);
    drop(sender.blocking_send(Bytes::copy_from_slice(&extents::header(size_bytes, 0))));
    Ok(sent)
}

/// The next run of data at or behind `at`. A file system without holes has one run.
fn next_data(image: &File, at: u64, end: u64) -> std::io::Result<Option<(u64, u64)>> {
    if at >= end {
        return Ok(None);
    }
    match rustix::fs::seek(image, SeekFrom::Data(at)) {
        Ok(start) => {
            let stop = rustix::fs::seek(image, SeekFrom::Hole(start)).unwrap_or(end);
            Ok((start < end).then_some((start, stop.min(end))))
        }
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(rustix::io::Errno::INVAL) => Ok(Some((at, end))),
        Err(error) => Err(error.into()),
    }
}

/// Reads a whole piece; what lies behind the file's end is zero.
fn read_padded(image: &File, piece: &mut [u8], offset: u64) -> std::io::Result<()> {
    let mut done = 0;
    while done < piece.len() {
        match image.read_at(&mut piece[done..], offset + done as u64) {
            Ok(0) => {
                piece[done..].fill(0);
                return Ok(());
            }
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(super) async fn export(
    client: &Client,
    path: &VolumePath,
    file: &Path,
    overwrite: bool,
    printer: &Printer,
) -> Result<(), Failure> {
    if file.exists() && !overwrite {
        return Err(Failure::invalid(format!(
            "{} exists; choose another file, or replace it with --overwrite",
            file.display()
        )));
    }
    let volume: Volume = client.get(&super::volume::url(path)).await?;
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part).to_owned();
    let outcome = tokio::select! {
        outcome = receive(client, path, &part, volume.size_bytes, printer) => outcome,
        _ = tokio::signal::ctrl_c() => Err(Failure::invalid("interrupted")),
    };
    let received = match outcome {
        Ok(received) => received,
        Err(failure) => {
            drop(std::fs::remove_file(&part));
            return Err(failure);
        }
    };
    std::fs::rename(&part, file)
        .map_err(|error| Failure::io(format!("cannot name {}", file.display()), error))?;
    let result = serde_json::json!({
        "path": path.as_str(),
        "size_bytes": volume.size_bytes,
        "data_bytes": received,
    });
    printer.result(&result, || {
        let (size, data) = (bytes(volume.size_bytes), bytes(received));
        format!("exported {path} to {}: {size}, {data} of data", file.display())
    });
    Ok(())
}

async fn receive(
    client: &Client,
    path: &VolumePath,
    file: &Path,
    size_bytes: u64,
    printer: &Printer,
) -> Result<u64, Failure> {
    let fail = |error| Failure::io(format!("cannot write {}", file.display()), error);
    let image = Arc::new(File::create(file).map_err(fail)?);
    image.set_len(size_bytes).map_err(fail)?;
    let bar = printer.bytes_bar("exporting", size_bytes);
    let broken = |cause: String| {
        Failure::new(
            pannier_engine::error::ErrorKind::Unavailable,
            format!("the export of {path} broke off: {cause}; repeat the command"),
        )
    };
    let mut body = client.download(&data_url(path)).await?;
    let mut decoder = Decoder::default();
    let mut received = 0;
    let mut ended = false;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        decoder.push(&data);
        while let Some(piece) = decoder.next().map_err(broken)? {
            let Piece::Data { offset, bytes } = piece else {
                ended = true;
                continue;
            };
            if offset.saturating_add(bytes.len() as u64) > size_bytes {
                return Err(broken("it has data behind the volume's end".to_owned()));
            }
            received += bytes.len() as u64;
            bar.set(offset);
            let image = image.clone();
            tokio::task::spawn_blocking(move || image.write_all_at(&bytes, offset))
                .await
                .map_err(|error| broken(error.to_string()))?
                .map_err(fail)?;
        }
    }
    if !ended {
        return Err(broken("the daemon ended it early; its log says why".to_owned()));
    }
    bar.finish();
    image.sync_all().map_err(fail)?;
    Ok(received)
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
