//! Errors of the API: a status for machines, `{kind, message}` for the caller.

use super::types::ApiError;
use crate::output::Failure;
use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use pannier_engine::error::{Error, ErrorKind};
use serde::de::DeserializeOwned;

/// A failed request.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    failure: Failure,
}

/// The HTTP status of a kind.
fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Fenced => StatusCode::CONFLICT,
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::Closed => StatusCode::GONE,
        ErrorKind::Corrupt | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl Refused {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { status: status(kind), failure: Failure::new(kind, message) }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        if matches!(error.kind(), ErrorKind::Internal | ErrorKind::Corrupt) {
            tracing::error!(%error, "an API request failed");
        }
        Self::new(error.kind(), error.context())
    }
}

macro_rules! from_rejection {
    ($($rejection:ty),*) => {$(
        impl From<$rejection> for Refused {
            fn from(rejection: $rejection) -> Self {
                let failure = Failure::invalid(rejection.body_text());
                Self { status: rejection.status(), failure }
            }
        }
    )*};
}
from_rejection!(JsonRejection, QueryRejection);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Failure(ApiError { kind, message }) = self.failure;
        (self.status, Json(ApiError { kind, message })).into_response()
    }
}

pub(super) async fn no_route(uri: Uri) -> Refused {
    let message =
        format!("there is no `{}` here; /v1/openapi.json tells what there is", uri.path());
    Refused::new(ErrorKind::NotFound, message)
}

pub(super) async fn no_method(method: Method, uri: Uri) -> Refused {
    Refused {
        status: StatusCode::METHOD_NOT_ALLOWED,
        failure: Failure::invalid(format!(
            "`{}` does not take {method}; /v1/openapi.json tells what it takes",
            uri.path()
        )),
    }
}

/// `axum::Json` whose rejections are errors of the API.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        Ok(Self(Json::from_request(request, state).await?.0))
    }
}

/// `axum::extract::Query` whose rejections are errors of the API.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        Ok(Self(axum::extract::Query::from_request_parts(parts, state).await?.0))
    }
}
