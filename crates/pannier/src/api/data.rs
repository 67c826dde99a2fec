//! A volume's data in and out, as the stream of [`super::extents`].

use super::State;
use super::error::Refused;
use super::extents::{self, Decoder, PIECE_BYTES, Piece};
use super::hosts::parse;
use super::types::ApiError;
use axum::body::Body;
use axum::extract::{Path, State as Extract};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt as _;
use pannier_engine::error::{Error, ErrorKind};
use pannier_engine::port::{BlockDevice, Devices as _, ExtentState};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Pieces read ahead of a slow receiver, and written at once: bounds the memory to 8 MiB.
const PIECES_AHEAD: usize = 8;

/// Runs of one status question.
const EXTENTS_MAX: usize = 1024;

/// Bytes of one status question.
const STATUS_BYTES: u64 = 1 << 30;

/// Reads a volume: a stream of what is not zero.
#[utoipa::path(
    get,
    path = "/v1/data/{path}",
    params(("path" = String, Path, description = "the volume's path")),
    responses(
        (
            status = 200,
            content_type = "application/octet-stream",
            description = "pieces: offset u64, length u64 (little-endian), bytes; ended by a piece \
                           of length 0"
        ),
        (status = "default", body = ApiError)
    )
)]
pub(super) async fn export(
    Extract(state): Extract<Arc<State>>,
    Path(path): Path<String>,
) -> Result<Response, Refused> {
    let path = parse(&path)?;
    let device = state.host.open(path.as_str()).await?;
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(PIECES_AHEAD);
    tokio::spawn(async move {
        if let Err(error) = send_all(&device, &sender).await {
            tracing::info!(%path, %error, "an export ended early");
            // A receiver that has gone needs no error.
            drop(sender.send(Err(std::io::Error::other(error.to_string()))).await);
        }
    });
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let response = Response::builder()
        .header("content-type", "application/octet-stream")
        .body(Body::from_stream(stream));
    response.map_err(|error| Refused::new(ErrorKind::Internal, error.to_string()))
}

async fn send_all<D: BlockDevice>(
    device: &D,
    sender: &mpsc::Sender<Result<Bytes, std::io::Error>>,
) -> Result<(), Error> {
    let size_bytes = device.size_bytes();
    let gone = || Error::new(ErrorKind::Closed, "the receiver has gone");
    let mut at = 0;
    while at < size_bytes {
        let length = (size_bytes - at).min(STATUS_BYTES);
        let runs = device.block_status(at, length, EXTENTS_MAX).await?;
        if runs.is_empty() {
            return Err(Error::new(ErrorKind::Internal, "a volume told no state of its blocks"));
        }
        for run in runs {
            let end = at + run.length;
            while run.state == ExtentState::Data && at < end {
                let length = (end - at).min(PIECE_BYTES as u64);
                let mut buffer = vec![0; length as usize];
                device.read(at, &mut buffer).await?;
                for (from, part) in extents::data_parts(&buffer) {
                    let header = extents::header(at + from as u64, part.len());
                    let piece = Bytes::from([&header[..], part].concat());
                    sender.send(Ok(piece)).await.map_err(|_closed| gone())?;
                }
                at += length;
            }
            at = end;
        }
    }
    let end = Bytes::copy_from_slice(&extents::header(size_bytes, 0));
    sender.send(Ok(end)).await.map_err(|_closed| gone())
}

/// Writes into a volume: a stream of pieces. Everything is durable when this returns.
#[utoipa::path(
    put,
    path = "/v1/data/{path}",
    params(("path" = String, Path, description = "the volume's path")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200), (status = "default", body = ApiError))
)]
pub(super) async fn import(
    Extract(state): Extract<Arc<State>>,
    Path(path): Path<String>,
    body: Body,
) -> Result<(), Refused> {
    let device = Arc::new(state.host.open(parse(&path)?.as_str()).await?);
    let size_bytes = device.size_bytes();
    let broken = |cause: String| Refused::invalid(format!("the data stream is broken: {cause}"));
    let mut stream = body.into_data_stream();
    let mut decoder = Decoder::default();
    let mut writes = JoinSet::new();
    let mut ended = false;
    while let Some(part) = stream.next().await {
        decoder.push(&part.map_err(|error| broken(error.to_string()))?);
        while let Some(piece) = decoder.next().map_err(broken)? {
            let Piece::Data { offset, bytes } = piece else {
                ended = true;
                continue;
            };
            if offset.saturating_add(bytes.len() as u64) > size_bytes {
                return Err(broken(format!("a piece at {offset} lies behind the volume's end")));
            }
            while writes.len() >= PIECES_AHEAD {
                finish_one(&mut writes).await?;
            }
            let device = device.clone();
            writes.spawn(async move { device.write(offset, bytes, false).await });
        }
    }
    while !writes.is_empty() {
        finish_one(&mut writes).await?;
    }
    if !ended {
        return Err(broken("it has no end".to_owned()));
    }
    device.flush().await?;
    Ok(())
}

async fn finish_one(writes: &mut JoinSet<Result<(), Error>>) -> Result<(), Refused> {
    match writes.join_next().await {
        None => Ok(()),
        Some(Ok(done)) => done.map_err(Refused::from),
        Some(Err(error)) => Err(Refused::new(ErrorKind::Internal, error.to_string())),
    }
}
