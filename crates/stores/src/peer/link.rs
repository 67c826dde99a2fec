//! The way out to one peer: a connection that is made when it is first needed and kept.
//!
//! One task per link connects, waits until the connection is lost, and connects again. Callers wait
//! for the end of the attempt that is under way, not longer: whoever can ask somebody else soon
//! hears that this peer is away.

use crate::cluster::host_name;
use crate::limits::{CONNECT_PAUSE, CONNECT_TIMEOUT, RECONNECT_FOR};
use pannier_core::ids::HostId;
use pannier_engine::error::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use quinn::{ConnectError, Connection, ConnectionError, Endpoint};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// What is known of the way to a peer.
#[derive(Debug, Clone)]
struct State {
    connection: Option<Connection>,
    /// Attempts that have ended.
    attempts: u64,
    /// Why the last one failed.
    error: Option<Error>,
    /// Whether the task runs.
    running: bool,
}

/// Why a connection is no longer used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Lost,
    /// The peer has another address now.
    Moved,
    /// This host closes its endpoint.
    Stopping,
}

/// The way out to one peer.
#[derive(Debug)]
pub(super) struct Link {
    host: HostId,
    endpoint: Endpoint,
    address: Mutex<String>,
    state: watch::Sender<State>,
    /// Somebody asks for a connection, or the address changed: no more pausing.
    wanted: Notify,
    moved: Notify,
}

impl Link {
    pub(super) fn new(endpoint: Endpoint, host: HostId, address: &str) -> Arc<Self> {
        let state = State { connection: None, attempts: 0, error: None, running: false };
        Arc::new(Self {
            host,
            endpoint,
            address: Mutex::new(address.to_owned()),
            state: watch::Sender::new(state),
            wanted: Notify::new(),
            moved: Notify::new(),
        })
    }

    /// The peer is now at `address`. Requests under way end on the old connection.
    pub(super) fn set_address(&self, address: &str) {
        let mut current = self.address.lock();
        if *current != address {
            address.clone_into(&mut current);
            drop(current);
            self.moved.notify_one();
        }
    }

    pub(super) fn address(&self) -> String {
        self.address.lock().clone()
    }

    /// The connection, if there is one.
    pub(super) fn connected(&self) -> Option<Connection> {
        let state = self.state.borrow();
        state.connection.clone().filter(|connection| connection.close_reason().is_none())
    }

    /// The connection, made if there is none.
    ///
    /// # Cancel safety
    /// The attempt goes on without the caller.
    pub(super) async fn connection(self: &Arc<Self>) -> Result<Connection> {
        if let Some(connection) = self.connected() {
            return Ok(connection);
        }
        let mut state = self.state.subscribe();
        let before = state.borrow_and_update().attempts;
        self.start();
        self.wanted.notify_one();
        let settled = state
            .wait_for(|state| {
                let alive = state
                    .connection
                    .as_ref()
                    .is_some_and(|connection| connection.close_reason().is_none());
                alive || state.attempts > before
            })
            .await;
        match settled {
            Ok(state) => match (&state.connection, &state.error) {
                (Some(connection), _) => Ok(connection.clone()),
                (None, Some(error)) => Err(error.clone()),
                (None, None) => Err(self.unreachable("no connection")),
            },
            Err(_closed) => Err(self.unreachable("this host is stopping")),
        }
    }

    /// Starts the task if it does not run.
    fn start(self: &Arc<Self>) {
        let starts = self.state.send_if_modified(|state| {
            let starts = !state.running;
            state.running = true;
            starts
        });
        if starts {
            let link = Arc::clone(self);
            tokio::spawn(async move { link.run().await });
        }
    }

    async fn run(self: Arc<Self>) {
        let mut retry_until = Instant::now();
        let mut pause = CONNECT_PAUSE;
        loop {
            let began = Instant::now();
            let outcome = tokio::select! {
                outcome = self.connect() => outcome,
                // The attempt goes to an address that is no longer the peer's.
                () = self.moved.notified() => continue,
            };
            match outcome {
                Ok(connection) => {
                    tracing::debug!(host = %self.host, address = %self.address(), "connected");
                    self.state.send_modify(|state| {
                        state.connection = Some(connection.clone());
                        state.attempts += 1;
                        state.error = None;
                    });
                    let end = self.watch(connection).await;
                    retry_until = Instant::now() + RECONNECT_FOR;
                    if end == End::Stopping {
                        self.state.send_modify(|state| state.running = false);
                        return;
                    }
                    if end == End::Moved || began.elapsed() >= CONNECT_TIMEOUT {
                        pause = CONNECT_PAUSE;
                        continue;
                    }
                }
                Err(error) => {
                    tracing::debug!(host = %self.host, %error, "no connection");
                    let stops = error.kind() == ErrorKind::Closed || Instant::now() >= retry_until;
                    self.state.send_modify(|state| {
                        state.attempts += 1;
                        state.error = Some(error);
                        state.running = !stops;
                    });
                    if stops {
                        return;
                    }
                }
            }
            // A peer that is silent is asked again soon, in case its link is back; one that
            // refuses us, ever less often.
            let refused = began.elapsed() < CONNECT_TIMEOUT;
            pause = if refused { (pause * 2).min(CONNECT_TIMEOUT) } else { CONNECT_PAUSE };
            self.rest(pause).await;
        }
    }

    /// Waits before the next attempt; a caller shortens the wait, but does not skip it.
    async fn rest(&self, pause: Duration) {
        tokio::time::sleep(CONNECT_PAUSE).await;
        tokio::select! {
            () = tokio::time::sleep(pause.saturating_sub(CONNECT_PAUSE)) => {}
            () = self.wanted.notified() => {}
            () = self.moved.notified() => {}
        }
    }

    /// Waits until the connection is no longer to be used.
    async fn watch(&self, connection: Connection) -> End {
        let end = tokio::select! {
            reason = connection.closed() => match reason {
                ConnectionError::LocallyClosed => End::Stopping,
                reason => {
                    tracing::info!(host = %self.host, address = %self.address(),
                        reason = explain(&reason), "connection lost; connecting again");
                    End::Lost
                }
            },
            () = self.moved.notified() => End::Moved,
        };
        self.state.send_modify(|state| state.connection = None);
        end
    }

    /// One attempt.
    async fn connect(&self) -> Result<Connection> {
        let address = self.address();
        let attempt = connect(&self.endpoint, None, &address, self.host);
        match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(Failure::Stopping)) => {
                Err(Error::new(ErrorKind::Closed, "peers: this host is stopping"))
            }
            Ok(Err(Failure::Cause(cause))) => Err(self.unreachable(&cause)),
            Err(_elapsed) => {
                Err(self.unreachable("no answer; is it running, and its UDP port open?"))
            }
        }
    }

    fn unreachable(&self, cause: &str) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            format!("host {} at {}: {cause}", self.host, self.address()),
        )
    }
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// This host closes its endpoint: no attempt can work any more.
    #[error("this host is stopping")]
    Stopping,
    #[error("{0}")]
    Cause(String),
}

/// Connects to `host` at `address`, with the endpoint's configuration or another.
pub(super) async fn connect(
    endpoint: &Endpoint,
    config: Option<quinn::ClientConfig>,
    address: &str,
    host: HostId,
) -> Result<Connection, Failure> {
    let ipv6 = endpoint.local_addr().is_ok_and(|local| local.is_ipv6());
    let found: Vec<SocketAddr> = tokio::net::lookup_host(address)
        .await
        .map_err(|error| Failure::Cause(format!("the address cannot be resolved: {error}")))?
        .collect();
    let remote = found.iter().find(|found| ipv6 || found.is_ipv4()).ok_or_else(|| {
        let cause = "the address has no IPv4 form, and this host listens on IPv4 only";
        Failure::Cause(cause.to_owned())
    })?;
    let name = host_name(host);
    let connecting = match config {
        Some(config) => endpoint.connect_with(config, *remote, &name),
        None => endpoint.connect(*remote, &name),
    };
    let connecting = connecting.map_err(|error| match error {
        ConnectError::EndpointStopping => Failure::Stopping,
        error => Failure::Cause(error.to_string()),
    })?;
    connecting.await.map_err(|error| match error {
        ConnectionError::LocallyClosed => Failure::Stopping,
        error => Failure::Cause(explain(&error)),
    })
}

/// A lost or refused connection in words.
pub(super) fn explain(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TimedOut => "the link is cut, or the peer is gone".to_owned(),
        ConnectionError::ConnectionClosed(close) => {
            // TLS alerts travel as 0x100 + alert.
            match u64::from(close.error_code).checked_sub(0x100) {
                Some(42..=46 | 48 | 116) => {
                    format!("it does not accept this host's certificate ({close})")
                }
                _other => format!("it closed the connection: {close}"),
            }
        }
        ConnectionError::ApplicationClosed(close) => {
            format!("it closed the connection: {}", String::from_utf8_lossy(&close.reason))
        }
        ConnectionError::TransportError(error) => {
            if u64::from(error.code) & !0xff == 0x100 {
                format!("it is not that host of this cluster ({error})")
            } else {
                error.to_string()
            }
        }
        ConnectionError::LocallyClosed => "this host is stopping".to_owned(),
        ConnectionError::VersionMismatch
        | ConnectionError::Reset
        | ConnectionError::CidsExhausted => error.to_string(),
    }
}

/// The protocol that was agreed on with the peer.
pub(super) fn protocol(connection: &Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?;
    data.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol.clone()
}
