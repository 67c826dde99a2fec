//! The daemon, the cluster's status, tokens, metrics.

use super::error::{Body, Refused};
use super::types::{ApiError, Daemon, MakeToken, Status, Token};
use super::{State, convert};
use axum::Json;
use axum::extract::{Path, State as Extract};
use metrics::gauge;
use pannier_core::record::VolumePath;
use pannier_engine::error::ErrorKind;
use pannier_engine::host::Host;
use pannier_engine::status::Role;
use std::sync::Arc;
use std::time::Duration;

/// Longest that a token may be good for: a month.
const TOKEN_SECONDS_MAX: u64 = 30 * 24 * 3600;

/// The daemon that answers.
#[utoipa::path(get, path = "/v1/daemon", responses((status = 200, body = Daemon)))]
pub(super) async fn daemon(Extract(state): Extract<Arc<State>>) -> Json<Daemon> {
    Json(Daemon {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: state.host.id().to_string(),
        name: state.host.directory().host_name(state.host.id()),
        site: state.site.clone(),
        dir: state.dir.display().to_string(),
        nbd_socket: state.nbd_socket.display().to_string(),
        nbd_address: state.nbd_address.clone(),
        pid: std::process::id(),
    })
}

/// Makes a token with which one host can join.
#[utoipa::path(
    post,
    path = "/v1/tokens",
    request_body = MakeToken,
    responses((status = 200, body = Token), (status = "4XX", body = ApiError))
)]
pub(super) async fn make_token(
    Extract(state): Extract<Arc<State>>,
    Body(make): Body<MakeToken>,
) -> Result<Json<Token>, Refused> {
    if !(1..=TOKEN_SECONDS_MAX).contains(&make.valid_seconds) {
        return Err(Refused::invalid(format!(
            "a token is good for 1 to {TOKEN_SECONDS_MAX} seconds, not {}",
            make.valid_seconds
        )));
    }
    let dir = state.dir.clone();
    let valid = Duration::from_secs(make.valid_seconds);
    let made = tokio::task::spawn_blocking(move || crate::cli::host::issue(&dir, valid)).await;
    match made {
        Ok(Ok(token)) => Ok(Json(token)),
        Ok(Err(failure)) => Err(Refused::invalid(failure.0.message)),
        Err(error) => Err(Refused::new(ErrorKind::Internal, error.to_string())),
    }
}

/// Sites, hosts and all volumes.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
pub(super) async fn status(Extract(state): Extract<Arc<State>>) -> Result<Json<Status>, Refused> {
    Ok(Json(convert::status(state.host.status(None).await?)))
}

/// The same with one volume.
#[utoipa::path(
    get,
    path = "/v1/status/{path}",
    params(("path" = String, Path, description = "the volume's path")),
    responses((status = 200, body = Status), (status = 404, body = ApiError))
)]
pub(super) async fn status_of(
    Extract(state): Extract<Arc<State>>,
    Path(path): Path<String>,
) -> Result<Json<Status>, Refused> {
    let path = parse(&path)?;
    Ok(Json(convert::status(state.host.status(Some(&path)).await?)))
}

/// What Prometheus scrapes.
pub(super) async fn metrics(Extract(state): Extract<Arc<State>>) -> String {
    gauges(&state.host);
    state.metrics.run_upkeep();
    state.metrics.render()
}

/// What is read off when it is asked for.
fn gauges(host: &Host) {
    let flag = |set: bool| if set { 1.0 } else { 0.0 };
    gauge!("pannier_registry_reachable").set(flag(host.directory().reachable()));
    for (path, place) in host.places() {
        let path = path.to_string();
        let bytes = [
            ("live", place.live_bytes),
            ("resident", place.resident_bytes),
            ("stored", place.stored_bytes),
            ("missing", place.missing_bytes),
        ];
        for (kind, count) in bytes {
            gauge!("pannier_volume_bytes", "volume" => path.clone(), "kind" => kind)
                .set(count as f64);
        }
        let owner = flag(place.role == Role::Owner);
        gauge!("pannier_volume_owned", "volume" => path.clone()).set(owner);
        let connections = f64::from(place.connections);
        gauge!("pannier_volume_connections", "volume" => path).set(connections);
    }
}

/// A volume's path in a URL.
pub(super) fn parse(path: &str) -> Result<VolumePath, Refused> {
    VolumePath::parse(path).map_err(|error| Refused::invalid(error.to_string()))
}
