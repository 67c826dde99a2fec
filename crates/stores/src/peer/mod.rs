//! The other hosts of the cluster, over QUIC with mutual TLS.
//!
//! One UDP socket serves both ways. Each direction between two hosts has its own connection, made
//! at the first call and kept; a request is one bidirectional stream, prioritised by its class. A
//! peer's address is only where packets are sent: who it is, its certificate says. So traffic may
//! pass relays, and addresses may change.

pub(crate) mod frame;
mod link;
mod serve;
mod socket;
mod tls;
mod tuning;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use tuning::Congestion;

use crate::cluster::{Identity, JoinService};
use crate::limits::{CALL_TIMEOUT, CLOSE_TIMEOUT, JOIN_TIMEOUT};
use crate::registry;
use async_trait::async_trait;
use bytes::Bytes;
use frame::{AnswerHeader, Fault, Lengths, RequestHeader, ServiceTag};
use link::Link;
use pannier_core::ids::HostId;
use pannier_engine::error::{Error, ErrorKind, Result};
use pannier_engine::message::{Request, Response};
use pannier_engine::port::{Class, PeerService, Peers};
use parking_lot::RwLock;
use quinn::{Connection, Endpoint, SendStream};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// This host's side of all connections with its peers. Clones are the same transport.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
}

struct Inner {
    host: HostId,
    endpoint: Endpoint,
    address: SocketAddr,
    services: Arc<serve::Services>,
    links: RwLock<HashMap<HostId, Arc<Link>>>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transport(host {} on {})", self.inner.host, self.inner.address)
    }
}

/// How the way to a peer is, for status.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkStatus {
    /// The peer.
    pub host: HostId,
    /// Where it is reached.
    pub address: String,
    /// Smoothed round trip time; `None` while there is no connection.
    pub rtt: Option<Duration>,
    /// Bytes sent on the present connection, with all headers above UDP.
    pub sent_bytes: u64,
    /// Bytes received on the present connection, with all headers above UDP.
    pub received_bytes: u64,
    /// Packets lost on the present connection, of those sent.
    pub lost_packets: u64,
}

impl Transport {
    /// Listens on `listen` (UDP) and serves authenticated peers as soon as services are set. Must
    /// be called within a tokio runtime.
    ///
    /// # Errors
    /// `Unavailable` when the address cannot be bound, `Corrupt` when the identity's certificates
    /// do not work.
    pub fn bind(listen: SocketAddr, identity: &Identity) -> Result<Self> {
        Self::bind_with(listen, identity, Congestion::default())
    }

    /// The same with a chosen congestion controller.
    ///
    /// # Errors
    /// As [`Transport::bind`].
    pub fn bind_with(
        listen: SocketAddr,
        identity: &Identity,
        congestion: Congestion,
    ) -> Result<Self> {
        let transport = Arc::new(tuning::transport(congestion));
        let mut server = tls::server(identity, identity.holds_authority())?;
        server.transport_config(Arc::clone(&transport));
        let mut client = tls::client(identity)?;
        client.transport_config(transport);
        let mut endpoint = socket::host_endpoint(listen, identity, server)?;
        endpoint.set_default_client_config(client);
        let address = endpoint
            .local_addr()
            .map_err(|error| Error::io(format!("peer address {listen}"), error))?;
        let services = Arc::new(serve::Services::default());
        tokio::spawn(serve::Server::new(Arc::clone(&services)).run(endpoint.clone()));
        let host = identity.host();
        let links = RwLock::default();
        Ok(Self { inner: Arc::new(Inner { host, endpoint, address, services, links }) })
    }

    /// This host.
    #[must_use]
    pub fn host(&self) -> HostId {
        self.inner.host
    }

    /// The address that is listened on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// Serves the engine's requests. Until this is called peers hear `Unavailable`.
    pub fn serve_engine(&self, service: Arc<dyn PeerService>) {
        *self.inner.services.engine.write() = Some(service);
    }

    /// Serves this host's registry.
    pub fn serve_registry(&self, service: registry::Service) {
        *self.inner.services.registry.write() = Some(service);
    }

    /// Lets hosts with a token join.
    pub fn serve_join(&self, service: JoinService) {
        *self.inner.services.join.write() = Some(Arc::new(service));
    }

    /// How the ways to all known peers are, by host.
    #[must_use]
    pub fn links(&self) -> Vec<LinkStatus> {
        let links: Vec<_> =
            self.inner.links.read().iter().map(|(host, link)| (*host, Arc::clone(link))).collect();
        let mut status: Vec<LinkStatus> = links
            .into_iter()
            .map(|(host, link)| {
                let connection = link.connected();
                let stats = connection.as_ref().map(Connection::stats);
                LinkStatus {
                    host,
                    address: link.address(),
                    rtt: connection.map(|connection| connection.rtt()),
                    sent_bytes: stats.as_ref().map_or(0, |stats| stats.udp_tx.bytes),
                    received_bytes: stats.as_ref().map_or(0, |stats| stats.udp_rx.bytes),
                    lost_packets: stats.as_ref().map_or(0, |stats| stats.path.lost_packets),
                }
            })
            .collect();
        status.sort_unstable_by_key(|status| status.host);
        status
    }

    /// Stops: drops the services, closes all connections, and gives peers a moment to hear so.
    pub async fn close(&self) {
        *self.inner.services.engine.write() = None;
        *self.inner.services.registry.write() = None;
        *self.inner.services.join.write() = None;
        self.inner.endpoint.close(serve::CLOSE_STOPPING, b"the host is stopping");
        let told = tokio::time::timeout(CLOSE_TIMEOUT, self.inner.endpoint.wait_idle()).await;
        if told.is_err() {
            tracing::debug!("some peers may not have heard that this host stops");
        }
    }

    fn link(&self, host: HostId) -> Result<Arc<Link>> {
        self.inner.links.read().get(&host).cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                format!("host {host}: its address is not known yet; has it joined?"),
            )
        })
    }

    /// Sends a request to a service of a peer and waits for the answer.
    pub(crate) async fn exchange(
        &self,
        host: HostId,
        service: ServiceTag,
        class: Class,
        head: Vec<u8>,
        payload: Bytes,
    ) -> Result<(Bytes, Bytes)> {
        let too_long = |error: frame::FrameError| {
            Error::new(ErrorKind::Invalid, format!("request to host {host}: {error}"))
        };
        let lengths = Lengths::of(&head, &payload).map_err(too_long)?;
        let link = self.link(host)?;
        let connection = link.connection().await?;
        let header = RequestHeader { service, class, lengths };
        let exchange = exchange_on(&connection, header, &head, payload);
        match tokio::time::timeout(CALL_TIMEOUT, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(broken)) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("host {host} at {}: {}", link.address(), broken.explain(&connection)),
            )),
            Err(elapsed) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("host {host}: no answer within {} s", CALL_TIMEOUT.as_secs()),
            )
            .with_source(elapsed)),
        }
    }
}

#[async_trait]
impl Peers for Transport {
    async fn call(
        &self,
        host: HostId,
        class: Class,
        request: Request,
        payload: Bytes,
    ) -> Result<(Response, Bytes)> {
        let head = encode(&request)?;
        let (head, payload) = self.exchange(host, ServiceTag::Engine, class, head, payload).await?;
        let response = postcard::from_bytes(&head).map_err(|error| {
            Error::new(
                ErrorKind::Invalid,
                format!("answer of host {host}: {error}; are both hosts of the same version?"),
            )
        })?;
        Ok((response, payload))
    }

    fn learn(&self, host: HostId, address: &str) {
        if host == self.inner.host {
            return;
        }
        let mut links = self.inner.links.write();
        match links.get(&host) {
            Some(link) => link.set_address(address),
            None => {
                links.insert(host, Link::new(self.inner.endpoint.clone(), host, address));
            }
        }
    }

    fn rtt(&self, host: HostId) -> Option<Duration> {
        Some(self.link(host).ok()?.connected()?.rtt())
    }
}

/// Encodes a message of the engine.
pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>> {
    postcard::to_stdvec(message).map_err(|error| {
        Error::new(ErrorKind::Internal, format!("peer message: {error}")).with_source(error)
    })
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("connection lost: {0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("request not sent: {0}")]
    Write(#[from] quinn::WriteError),
    #[error("no answer: {0}")]
    Receive(#[from] frame::ReceiveError),
}

impl Broken {
    fn explain(&self, connection: &Connection) -> String {
        match connection.close_reason() {
            Some(reason) => link::explain(&reason),
            None => self.to_string(),
        }
    }
}

/// A stream that is reset unless its frame was written whole.
struct Unfinished<'a> {
    stream: &'a mut SendStream,
    done: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.done {
            // Failing means that it has ended already.
            drop(self.stream.reset(serve::RESET_ABANDONED));
        }
    }
}

type Answer = Result<(Bytes, Bytes)>;

/// One exchange on a connection: the outer result is the link's, the inner the service's.
async fn exchange_on(
    connection: &Connection,
    header: RequestHeader,
    head: &[u8],
    payload: Bytes,
) -> Result<Answer, Broken> {
    let (mut send, mut recv) = connection.open_bi().await?;
    // A stream that was just opened takes a priority.
    drop(send.set_priority(frame::priority(header.class)));
    let mut unfinished = Unfinished { stream: &mut send, done: false };
    let written = frame::write(unfinished.stream, header.encode(), head, payload).await;
    unfinished.done = written.is_ok();
    match written {
        // A service that has heard enough stops the stream and answers all the same.
        Ok(()) | Err(quinn::WriteError::Stopped(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let answer = frame::read_header(&mut recv).await?;
    let answer = AnswerHeader::decode(&answer).map_err(frame::ReceiveError::from)?;
    let (head, payload) = frame::read_bodies(&mut recv, answer.lengths).await?;
    Ok(if answer.failed { Err(Fault::decode(&head)) } else { Ok((head, payload)) })
}

/// Sends a join request to `host` at `address`, which must be of the authority with this
/// fingerprint.
pub(crate) async fn ask_to_join(
    host: HostId,
    address: &str,
    authority: [u8; 32],
    head: Vec<u8>,
) -> Result<Bytes> {
    let fail = |cause: String| {
        Error::new(ErrorKind::Unavailable, format!("join through {address}: {cause}"))
    };
    let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let any: SocketAddr = any.parse().map_err(|error| fail(format!("{error}")))?;
    let endpoint = socket::endpoint(any, None)?;
    let mut config = tls::joining_client(authority)?;
    config.transport_config(Arc::new(tuning::transport(Congestion::default())));
    let asked = async {
        let connection = link::connect(&endpoint, Some(config), address, host)
            .await
            .map_err(|failure| fail(failure.to_string()))?;
        let lengths = Lengths::of(&head, &[]).map_err(|error| fail(error.to_string()))?;
        let header = RequestHeader { service: ServiceTag::Join, class: Class::Control, lengths };
        let answer = exchange_on(&connection, header, &head, Bytes::new())
            .await
            .map_err(|broken| fail(broken.explain(&connection)))?;
        connection.close(serve::CLOSE_STOPPING, b"joined");
        answer.map(|(head, _payload)| head)
    };
    let outcome = tokio::time::timeout(JOIN_TIMEOUT, asked).await.unwrap_or_else(|_elapsed| {
        Err(fail("no answer; is `pannier serve` running there, and its UDP port open?".to_owned()))
    });
    endpoint.close(serve::CLOSE_STOPPING, b"");
    endpoint.wait_idle().await;
    outcome
}
