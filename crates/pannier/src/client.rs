//! The API's client over the daemon's unix socket: what the CLI uses, and nothing else.

use crate::api::types::ApiError;
use crate::output::Failure;
use bytes::Bytes;
use futures::Stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use pannier_engine::error::ErrorKind;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// Where the daemon of the system service listens.
pub(crate) const SYSTEM_SOCKET: &str = "/run/pannier/api.sock";

/// Where the system service keeps its host.
pub(crate) const SYSTEM_DIR: &str = "/var/lib/pannier";

/// Name of the API socket in a host's directory.
pub(crate) const API_SOCKET: &str = "api.sock";

/// Longest answer that is no data stream: a status of 10,000 volumes fits.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A daemon's API.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
    dir: Option<PathBuf>,
}

impl Client {
    /// The daemon of `dir`; without one, the system's.
    pub(crate) fn find(dir: Option<&Path>) -> Self {
        match dir {
            Some(dir) => Self { socket: dir.join(API_SOCKET), dir: Some(dir.to_owned()) },
            None if Path::new(SYSTEM_SOCKET).exists() => {
                Self { socket: SYSTEM_SOCKET.into(), dir: None }
            }
            None => {
                let dir = PathBuf::from(SYSTEM_DIR);
                Self { socket: dir.join(API_SOCKET), dir: None }
            }
        }
    }

    /// Asks, and reads the answer as `T`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.json(Method::GET, path, None::<&()>).await
    }

    /// Sends a document, and reads the answer as `T`.
    pub(crate) async fn send<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<T, Failure> {
        self.json(method, path, Some(body)).await
    }

    /// Asks for a change that needs no document.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, Failure> {
        self.json(method, path, None::<&()>).await
    }

    /// Sends a stream of bytes.
    pub(crate) async fn upload(
        &self,
        path: &str,
        parts: impl Stream<Item = Bytes> + Send + Sync + 'static,
    ) -> Result<(), Failure> {
        use futures::StreamExt as _;
        let parts = parts.map(|part| Ok::<_, Infallible>(Frame::data(part)));
        let body = BodyExt::boxed(StreamBody::new(parts));
        let response = self.request(Method::PUT, path, "application/octet-stream", body).await?;
        let (_, _) = self.collect(response).await?;
        Ok(())
    }

    /// Asks for a stream of bytes.
    pub(crate) async fn download(&self, path: &str) -> Result<Incoming, Failure> {
        let empty = BodyExt::boxed(Full::new(Bytes::new()));
        let response = self.request(Method::GET, path, "application/json", empty).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        match self.collect(response).await {
            Err(failure) => Err(failure),
            Ok(_) => Err(self.broken("an error without a cause")),
        }
    }

    async fn json<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, Failure> {
        let bytes = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| self.broken(error))?,
            None => Vec::new(),
        };
        let body = BodyExt::boxed(Full::new(Bytes::from(bytes)));
        let response = self.request(method, path, "application/json", body).await?;
        let (_, bytes) = self.collect(response).await?;
        let bytes = if bytes.is_empty() { Bytes::from_static(b"null") } else { bytes };
        serde_json::from_slice(&bytes).map_err(|error| self.broken(error))
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        content: &str,
        body: BoxBody<Bytes, Infallible>,
    ) -> Result<Response<Incoming>, Failure> {
        let stream =
            UnixStream::connect(&self.socket).await.map_err(|error| self.no_daemon(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        // Ends with the sender; what goes wrong shows in the answer.
        tokio::spawn(async move { drop(connection.await) });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "pannier")
            .header("content-type", content)
            .body(body)
            .map_err(|error| self.broken(error))?;
        sender.send_request(request).await.map_err(|error| self.broken(error))
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<(StatusCode, Bytes), Failure> {
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let bytes = body.collect().await.map_err(|error| self.broken(error))?.to_bytes();
        if status.is_success() {
            return Ok((status, bytes));
        }
        Err(match serde_json::from_slice::<ApiError>(&bytes) {
            Ok(error) => Failure(error),
            Err(_no_document) => self.broken(format!("HTTP status {status}")),
        })
    }

    fn no_daemon(&self, error: &std::io::Error) -> Failure {
        let socket = self.socket.display();
        let dir = self.dir.as_deref();
        let message = match (error.kind(), dir) {
            (std::io::ErrorKind::PermissionDenied, _) => {
                format!("no permission to use {socket}; run as the user of the daemon, or as root")
            }
            (_, Some(dir)) if !dir.join(crate::config::FILE).exists() => format!(
                "{} is not a host's directory; make one with `pannier init` or `pannier join`",
                dir.display()
            ),
            (_, Some(dir)) => format!(
                "no daemon answers on {socket} ({error}); start it with `pannier serve --dir {}`",
                dir.display()
            ),
            (_, None) => format!(
                "no daemon answers on {socket} ({error}); name a host's directory with --dir or \
                 PANNIER_DIR, or start the service"
            ),
        };
        Failure::new(ErrorKind::Unavailable, message)
    }

    fn broken(&self, error: impl std::fmt::Display) -> Failure {
        Failure::new(
            ErrorKind::Unavailable,
            format!(
                "the daemon on {} broke off ({error}); see its log, and repeat the command",
                self.socket.display()
            ),
        )
    }
}

/// A path in a URL: everything but unreserved characters and slashes is percent-encoded.
pub(crate) fn encode_path(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_urls() {
        assert_eq!(encode_path("/vms/a b?ü"), "/vms/a%20b%3F%C3%BC");
    }

    #[tokio::test]
    async fn a_daemon_that_is_not_there_is_named_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let client = Client::find(Some(dir.path()));
        let failure = client.get::<()>("/v1/status").await.unwrap_err();
        assert!(failure.0.message.contains("pannier init"), "{failure:?}");
        std::fs::write(dir.path().join(crate::config::FILE), "").unwrap();
        let failure = client.get::<()>("/v1/status").await.unwrap_err();
        assert_eq!(failure.0.kind, "unavailable");
        assert!(failure.0.message.contains("pannier serve --dir"), "{failure:?}");
    }
}
