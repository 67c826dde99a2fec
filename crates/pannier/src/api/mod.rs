//! The HTTP API: JSON under `/v1`, data streams, metrics, the status page. The CLI and the page use
//! nothing else.

mod convert;
mod data;
mod error;
pub(crate) mod extents;
mod hosts;
mod moves;
pub(crate) mod types;
mod volumes;

use crate::output::Failure;
use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use metrics_exporter_prometheus::PrometheusHandle;
use pannier_engine::host::Host;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;

/// What the API works on.
pub(crate) struct State {
    pub(crate) host: Arc<Host>,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) dir: PathBuf,
    pub(crate) site: String,
    pub(crate) nbd_socket: PathBuf,
    pub(crate) nbd_address: Option<String>,
}

/// The API's description.
#[derive(OpenApi)]
#[openapi(
    info(title = "Pannier", description = "The API of a Pannier daemon, on its unix socket."),
    paths(
        hosts::daemon,
        hosts::make_token,
        hosts::status,
        hosts::status_of,
        volumes::list,
        volumes::create,
        volumes::show,
        volumes::resize,
        volumes::delete,
        volumes::release,
        moves::begin,
        moves::abort,
        moves::take_over,
        data::export,
        data::import,
    )
)]
struct Description;

/// The routes.
pub(crate) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/", get(crate::web::page))
        .route("/metrics", get(hosts::metrics))
        .route("/v1/openapi.json", get(|| async { axum::Json(Description::openapi()) }))
        .route("/v1/daemon", get(hosts::daemon))
        .route("/v1/tokens", post(hosts::make_token))
        .route("/v1/status", get(hosts::status))
        .route("/v1/status/{*path}", get(hosts::status_of))
        .route("/v1/volumes", get(volumes::list).post(volumes::create))
        .route(
            "/v1/volumes/{*path}",
            get(volumes::show).patch(volumes::resize).delete(volumes::delete),
        )
        .route("/v1/release/{*path}", post(volumes::release))
        .route("/v1/moves/{*path}", post(moves::begin).delete(moves::abort))
        .route("/v1/takeovers/{*path}", post(moves::take_over))
        .route("/v1/data/{*path}", get(data::export).put(data::import))
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::no_method)
        .layer(middleware::from_fn(log))
        .with_state(state)
}

/// Serves the API until `stop`; requests under way are finished.
pub(crate) async fn serve(
    socket: std::os::unix::net::UnixListener,
    state: Arc<State>,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let fail = |error| Failure::io("the API socket", error);
    socket.set_nonblocking(true).map_err(fail)?;
    let listener = tokio::net::UnixListener::from_std(socket).map_err(fail)?;
    axum::serve(listener, router(state))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .map_err(fail)
}

async fn log(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    tracing::debug!(%method, path, status = response.status().as_u16(), "API");
    response
}

#[cfg(test)]
mod tests;
