//! The UDP socket under QUIC.

use crate::cluster::Identity;
use crate::limits::SOCKET_BUFFER_BYTES;
use pannier_engine::error::{Error, ErrorKind, Result};
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{
    ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, ServerConfig, TokioRuntime,
};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of our connection ids.
const CONNECTION_ID_BYTES: usize = 8;
/// Bytes of a stateless reset token's MAC, of which QUIC uses the first half.
const MAC_BYTES: usize = 32;

/// Purpose of the key that is derived for stateless resets (RFC 9000, section 10.3).
const RESET_KEY_CONTEXT: &str = "pannier 2026 quic stateless reset key";

/// An endpoint on `listen`, with kernel buffers that hold a burst; a server when `server` is given.
pub(super) fn endpoint(listen: SocketAddr, server: Option<ServerConfig>) -> Result<Endpoint> {
    bind(listen, EndpointConfig::default(), server)
}

/// A host's endpoint. Its stateless resets are keyed by its identity, so that after a crash it
/// tells its peers at once that their connections are gone; they would else wait for the idle
/// timeout.
pub(super) fn host_endpoint(
    listen: SocketAddr,
    identity: &Identity,
    server: ServerConfig,
) -> Result<Endpoint> {
    let key = blake3::derive_key(RESET_KEY_CONTEXT, identity.key().secret_der());
    let mut config = EndpointConfig::new(Arc::new(ResetKey(key)));
    // The default's ids are keyed anew at each start, and others are not answered.
    config.cid_generator(|| Box::new(RandomIds));
    bind(listen, config, Some(server))
}

fn bind(
    listen: SocketAddr,
    config: EndpointConfig,
    server: Option<ServerConfig>,
) -> Result<Endpoint> {
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
    Endpoint::new(config, server, socket, Arc::new(TokioRuntime)).map_err(fail)
}

/// Keyed BLAKE3 as the MAC of stateless reset tokens.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        MAC_BYTES
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // Hashes compare in constant time.
        if blake3::keyed_hash(&self.0, data) == *signature { Ok(()) } else { Err(CryptoError) }
    }
}

/// Connection ids that every incarnation of this host takes for possible.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; CONNECTION_ID_BYTES]>())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
