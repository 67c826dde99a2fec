//! The UDP socket under QUIC.

use crate::limits::SOCKET_BUFFER_BYTES;
use pannier_engine::error::{Error, ErrorKind, Result};
use quinn::{Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

/// An endpoint on `listen`, with kernel buffers that hold a burst.
pub(super) fn endpoint(listen: SocketAddr, server: Option<ServerConfig>) -> Result<Endpoint> {
    let fail = |error: std::io::Error| {
        let way_out = match error.kind() {
            std::io::ErrorKind::AddrInUse => "; another process listens there",
            std::io::ErrorKind::AddrNotAvailable => "; no interface of this host has it",
            _other => "",
        };
        Error::new(
            ErrorKind::Unavailable,
            format!("listen for peers on UDP {listen}: {error}{way_out}"),
        )
        .with_source(error)
    };
    let socket = UdpSocket::bind(listen).map_err(fail)?;
    let asked = [
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES),
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES),
    ];
    // The kernel gives what it may; less only costs throughput.
    if let Some(error) = asked.into_iter().find_map(std::result::Result::err) {
        tracing::debug!(%error, "the UDP socket keeps its buffers");
    }
    Endpoint::new(EndpointConfig::default(), server, socket, Arc::new(TokioRuntime)).map_err(fail)
}
