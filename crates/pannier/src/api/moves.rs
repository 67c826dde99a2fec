//! Moves and takeovers.

use super::State;
use super::error::{Body, Refused};
use super::hosts::parse;
use super::types::{ApiError, BeginMove, BeginTakeover};
use axum::extract::{Path, State as Extract};
use pannier_core::ids::SiteName;
use pannier_engine::host::{Destination, SwitchAt};
use std::sync::Arc;

/// Begins a move. It is registered when this returns; the volume's `movement` shows how it goes on.
#[utoipa::path(
    post,
    path = "/v1/moves/{path}",
    params(("path" = String, Path, description = "the volume's path")),
    request_body = BeginMove,
    responses((status = 200), (status = "default", body = ApiError))
)]
pub(super) async fn begin(
    Extract(state): Extract<Arc<State>>,
    Path(path): Path<String>,
    Body(begin): Body<BeginMove>,
) -> Result<(), Refused> {
    let to = Destination { site: SiteName(begin.site), host: begin.host };
    let switch = if begin.at_first_write { SwitchAt::FirstWrite } else { SwitchAt::Once };
    Ok(state.host.move_volume(&parse(&path)?, &to, switch).await?)
}

/// Calls off a move that has not switched yet.
#[utoipa::path(
    delete,
    path = "/v1/moves/{path}",
    params(("path" = String, Path, description = "the volume's path")),
    responses((status = 200), (status = "default", body = ApiError))
)]
pub(super) async fn abort(
    Extract(state): Extract<Arc<State>>,
    Path(path): Path<String>,
) -> Result<(), Refused> {
    Ok(state.host.abort_move(&parse(&path)?).await?)
}

/// Makes this host the owner, on the operator's word that the named hosts are out.
#[utoipa::path(
    post,
    path = "/v1/takeovers/{path}",
    params(("path" = String, Path, description = "the volume's path")),
    request_body = BeginTakeover,
    responses((status = 200), (status = "default", body = ApiError))
)]
pub(super) async fn take_over(
    Extract(state): Extract<Arc<State>>,
    Path(path): Path<String>,
    Body(begin): Body<BeginTakeover>,
) -> Result<(), Refused> {
    Ok(state.host.take_over(&parse(&path)?, &begin.fenced).await?)
}
