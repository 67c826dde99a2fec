//! The server: accepts on the listeners it was given, until it is told to stop.

use super::connection::{self, Break, Counters, Shared};
use super::handshake::negotiate;
use super::limits;
use super::socket::Socket;
use pannier_engine::error::{Error, Result};
use pannier_engine::port::Devices;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A listening socket, made elsewhere: bound by the daemon, inherited, or passed by the init
/// system.
#[derive(Debug)]
pub enum Listener {
    /// A unix stream socket.
    Unix(std::os::unix::net::UnixListener),
    /// A TCP socket.
    Tcp(std::net::TcpListener),
}

impl From<std::os::unix::net::UnixListener> for Listener {
    fn from(listener: std::os::unix::net::UnixListener) -> Self {
        Self::Unix(listener)
    }
}

impl From<std::net::TcpListener> for Listener {
    fn from(listener: std::net::TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

/// A listener on the runtime.
enum Accepting {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Accepting {
    fn new(listener: Listener) -> io::Result<Self> {
        match listener {
            Listener::Unix(socket) => {
                socket.set_nonblocking(true)?;
                UnixListener::from_std(socket).map(Self::Unix)
            }
            Listener::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                TcpListener::from_std(socket).map(Self::Tcp)
            }
        }
    }

    async fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Self::Unix(listener) => {
                let (socket, _unnamed) = listener.accept().await?;
                let pid = socket.peer_cred().ok().and_then(|cred| cred.pid());
                let peer = pid.map_or_else(|| "unix".to_owned(), |pid| format!("pid {pid}"));
                Ok((Socket::Unix(socket), peer))
            }
            Self::Tcp(listener) => {
                let (socket, address) = listener.accept().await?;
                Ok((Socket::Tcp(socket), address.to_string()))
            }
        }
    }
}

/// The NBD server of a host: every device by name, on any number of sockets.
#[derive(Debug)]
pub struct Server<D> {
    devices: Arc<D>,
    handshake_time_max: Duration,
}

impl<D: Devices> Server<D> {
    /// A server of these devices.
    #[must_use]
    pub fn new(devices: Arc<D>) -> Self {
        Self { devices, handshake_time_max: limits::HANDSHAKE_TIME_MAX }
    }

    /// Gives clients this long to choose an export, instead of [`limits::HANDSHAKE_TIME_MAX`].
    #[must_use]
    pub fn with_handshake_time_max(mut self, time: Duration) -> Self {
        self.handshake_time_max = time;
        self
    }

    /// Serves on the listeners until `shutdown` is cancelled; then accepts no more, lets every
    /// connection answer what it has received (for at most [`limits::DRAIN_TIME_MAX`]), closes and
    /// returns.
    ///
    /// # Errors
    /// `Unavailable` when a listener cannot be used.
    pub async fn serve(self, listeners: Vec<Listener>, shutdown: CancellationToken) -> Result<()> {
        let mut accepting = Vec::with_capacity(listeners.len());
        for listener in listeners {
            let ready = Accepting::new(listener).map_err(|error| Error::io("NBD listener", error));
            accepting.push(ready?);
        }
        let units = limits::SERVER_BYTES_MAX / limits::CHARGE_UNIT_BYTES;
        let house = Arc::new(House {
            devices: self.devices,
            handshake_time_max: self.handshake_time_max,
            shared: Shared {
                memory: Arc::new(Semaphore::new(units)),
                counters: Counters::new(),
                shutdown: shutdown.clone(),
            },
            places: Arc::new(Semaphore::new(limits::CONNECTIONS_MAX)),
            connections: TaskTracker::new(),
            abandon: CancellationToken::new(),
            count: AtomicU64::new(0),
        });
        let mut loops = JoinSet::new();
        for listener in accepting {
            loops.spawn(Arc::clone(&house).accept(listener));
        }
        shutdown.cancelled().await;
        while let Some(ended) = loops.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "NBD accept loop failed");
            }
        }
        house.connections.close();
        let drained = house.connections.wait();
        if tokio::time::timeout(limits::DRAIN_TIME_MAX, drained).await.is_err() {
            let count = house.connections.len();
            tracing::warn!(count, "NBD connections did not drain in time and are cut");
            house.abandon.cancel();
            house.connections.wait().await;
        }
        Ok(())
    }
}

/// What accept loops and connections share.
struct House<D> {
    devices: Arc<D>,
    handshake_time_max: Duration,
    shared: Shared,
    places: Arc<Semaphore>,
    connections: TaskTracker,
    /// Cancelled when draining has taken too long.
    abandon: CancellationToken,
    count: AtomicU64,
}

impl<D: Devices> House<D> {
    async fn accept(self: Arc<Self>, listener: Accepting) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.shared.shutdown.cancelled() => return,
                accepted = self.next(&listener) => accepted,
            };
            match accepted {
                Ok((socket, peer, place)) => {
                    let connection = Arc::clone(&self).serve(socket, peer, place);
                    self.connections.spawn(connection);
                }
                Err(error) => {
                    tracing::warn!(%error, "NBD connection not accepted");
                    tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// The next connection, once there is a place for it.
    ///
    /// # Cancel safety
    /// A connection is either returned or still waits in the listener's queue.
    async fn next(
        &self,
        listener: &Accepting,
    ) -> io::Result<(Socket, String, OwnedSemaphorePermit)> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(io::Error::other)?;
        let (socket, peer) = listener.accept().await?;
        Ok((socket, peer, place))
    }

    async fn serve(self: Arc<Self>, socket: Socket, peer: String, place: OwnedSemaphorePermit) {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let open = metrics::gauge!("pannier_nbd_connections");
        open.increment(1.0);
        let ended = tokio::select! {
            biased;
            () = self.abandon.cancelled() => Ok(()),
            ended = self.converse(socket, &peer, number) => ended,
        };
        open.decrement(1.0);
        drop(place);
        match ended {
            Ok(()) => tracing::debug!(number, peer, "NBD connection closed"),
            Err(error @ (Break::Malformed(_) | Break::Slow | Break::Unread)) => {
                tracing::warn!(number, peer, cause = %error, "NBD client dropped");
            }
            Err(error @ (Break::Lost(_) | Break::Refused(_))) => {
                tracing::info!(number, peer, cause = %error, "NBD connection ended");
            }
        }
    }

    async fn converse(&self, mut socket: Socket, peer: &str, number: u64) -> Result<(), Break> {
        socket.tune();
        let deadline = Instant::now() + self.handshake_time_max;
        let negotiated = tokio::select! {
            biased;
            () = self.shared.shutdown.cancelled() => return Ok(()),
            negotiated = negotiate(&mut socket, &*self.devices, deadline) => negotiated?,
        };
        let Some(session) = negotiated else { return Ok(()) };
        let (export, structured) = (session.name.as_str(), session.structured);
        tracing::debug!(number, peer, export, structured, "NBD connection serves");
        connection::serve(socket, session, &self.shared).await
    }
}
