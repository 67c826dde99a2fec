//! Volumes: create, list, show, grow, delete; the write right.

use super::error::{Body, Query, Refused};
use super::hosts::parse;
use super::types::{ApiError, CreateVolume, ResizeVolume, Volume, VolumeEntry, VolumeList};
use super::{State, convert};
use axum::Json;
use axum::extract::{Path, State as Extract};
use pannier_engine::error::ErrorKind;
use pannier_engine::host::NewVolume;
use serde::Deserialize;
use std::sync::Arc;

/// All volumes, as the registry knows them.
#[utoipa::path(get, path = "/v1/volumes", responses((status = 200, body = VolumeList)))]
pub(super) async fn list(Extract(state): Extract<Arc<State>>) -> Json<VolumeList> {
    let directory = state.host.directory();
    let mut volumes: Vec<_> = directory
        .volumes()
        .iter()
        .map(|volume| convert::entry(&volume.record, directory))
        .collect();
    volumes.sort_by(|a, b| a.path.cmp(&b.path));
    Json(VolumeList { volumes })
}

/// Creates a volume on this host.
#[utoipa::path(
    post,
    path = "/v1/volumes",
    request_body = CreateVolume,
    responses((status = 200, body = VolumeEntry), (status = "default", body = ApiError))
)]
pub(super) async fn create(
    Extract(state): Extract<Arc<State>>,
    Body(create): Body<CreateVolume>,
) -> Result<Json<VolumeEntry>, Refused> {
    let new = NewVolume {
        path: parse(&create.path)?,
        size_bytes: create.size_bytes,
        shared: create.shared,
    };
    let record = state.host.create_volume(new).await?;
    Ok(Json(convert::entry(&record, state.host.directory())))
}

/// One volume: where it is, who uses it, how its move is.
#[utoipa::path(
    get,
    path = "/v1/volumes/{path}",
    params(("path" = String, Path, description = "the volume's path")),
    responses((status = 200, body = Volume), (status = 404, body = ApiError))
)]
pub(super) async fn show(
    Extract(state): Extract<Arc<State>>,
    Path(path): Path<String>,
) -> Result<Json<Volume>, Refused> {
    let path = parse(&path)?;
    let mut status = convert::status(state.host.status(Some(&path)).await?);
    let shown = status.volumes.pop();
    shown.map(Json).ok_or_else(|| Refused::new(ErrorKind::NotFound, format!("no volume `{path}`")))
}

/// Grows a volume.
#[utoipa::path(
    patch,
    path = "/v1/volumes/{path}",
    params(("path" = String, Path, description = "the volume's path")),
    request_body = ResizeVolume,
    responses((status = 200), (status = "default", body = ApiError))
)]
pub(super) async fn resize(
    Extract(state): Extract<Arc<State>>,
    Path(path): Path<String>,
    Body(resize): Body<ResizeVolume>,
) -> Result<(), Refused> {
    Ok(state.host.resize_volume(&parse(&path)?, resize.size_bytes).await?)
}

/// How a volume is deleted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Delete {
    /// Even while guests are connected.
    #[serde(default)]
    force: bool,
}

/// Deletes a volume and its data at all sites.
#[utoipa::path(
    delete,
    path = "/v1/volumes/{path}",
    params(("path" = String, Path, description = "the volume's path"), Delete),
    responses((status = 200), (status = "default", body = ApiError))
)]
pub(super) async fn delete(
    Extract(state): Extract<Arc<State>>,
    Path(path): Path<String>,
    Query(delete): Query<Delete>,
) -> Result<(), Refused> {
    Ok(state.host.delete_volume(&parse(&path)?, delete.force).await?)
}

/// Takes the write right from the host that holds it.
#[utoipa::path(
    post,
    path = "/v1/release/{path}",
    params(("path" = String, Path, description = "the volume's path")),
    responses((status = 200), (status = "default", body = ApiError))
)]
pub(super) async fn release(
    Extract(state): Extract<Arc<State>>,
    Path(path): Path<String>,
) -> Result<(), Refused> {
    Ok(state.host.release(&parse(&path)?).await?)
}
