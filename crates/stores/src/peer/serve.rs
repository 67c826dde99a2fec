//! The way in: connections of peers, and what is served on them.

use super::frame::{self, AnswerHeader, Fault, Lengths, RequestHeader, ServiceTag};
use super::{link, tls};
use crate::cluster::{JoinService, certified_host};
use crate::limits::{
    CONNECTIONS_MAX, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, HANDSHAKES_UNPROVEN_MAX, JOIN_LINGER,
    JOIN_TIMEOUT, JOINING_MAX, SERVED_BULK_MAX, SERVED_CONTROL_MAX, SERVED_DEMAND_MAX,
    SERVED_RUN_AHEAD_MAX,
};
use crate::registry;
use bytes::Bytes;
use pannier_core::ids::HostId;
use pannier_engine::error::{Error, ErrorKind, Result};
use pannier_engine::message::Request;
use pannier_engine::port::{Class, PeerService};
use parking_lot::{Mutex, RwLock};
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Application codes with which connections are closed.
pub(super) const CLOSE_STOPPING: VarInt = VarInt::from_u32(1);
const CLOSE_REFUSED: VarInt = VarInt::from_u32(2);
/// Application code with which an incomplete stream is reset.
pub(super) const RESET_ABANDONED: VarInt = VarInt::from_u32(3);

/// What this host does for its peers; each part may come after the transport is bound.
#[derive(Default)]
pub(super) struct Services {
    pub(super) engine: RwLock<Option<Arc<dyn PeerService>>>,
    pub(super) registry: RwLock<Option<registry::Service>>,
    pub(super) join: RwLock<Option<Arc<JoinService>>>,
}

/// The accepting side.
pub(super) struct Server {
    pub(super) services: Arc<Services>,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    joining: Arc<Semaphore>,
    /// What each host has under way; hosts are as many as the authority has let in.
    slots: Mutex<HashMap<HostId, Arc<Slots>>>,
}

/// Bounds on what one host has under way, over all its connections.
struct Slots {
    bulk: Arc<Semaphore>,
    run_ahead: Arc<Semaphore>,
    demand: Arc<Semaphore>,
    control: Arc<Semaphore>,
}

impl Slots {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            bulk: Arc::new(Semaphore::new(SERVED_BULK_MAX)),
            run_ahead: Arc::new(Semaphore::new(SERVED_RUN_AHEAD_MAX)),
            demand: Arc::new(Semaphore::new(SERVED_DEMAND_MAX)),
            control: Arc::new(Semaphore::new(SERVED_CONTROL_MAX)),
        })
    }

    fn of(&self, class: Class) -> Arc<Semaphore> {
        Arc::clone(match class {
            Class::Bulk => &self.bulk,
            Class::RunAhead => &self.run_ahead,
            Class::Demand => &self.demand,
            Class::Control => &self.control,
        })
    }
}

impl Server {
    pub(super) fn new(services: Arc<Services>) -> Arc<Self> {
        Arc::new(Self {
            services,
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            joining: Arc::new(Semaphore::new(JOINING_MAX)),
            slots: Mutex::default(),
        })
    }

    /// Accepts connections until the endpoint is closed.
    pub(super) async fn run(self: Arc<Self>, endpoint: Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let under_way = HANDSHAKES_MAX - self.handshakes.available_permits();
            if under_way >= HANDSHAKES_UNPROVEN_MAX && !incoming.remote_address_validated() {
                // When many shake hands, each must first show that it is where it says it is.
                if incoming.retry().is_err() {
                    tracing::debug!("a connection could not be asked to prove its address");
                }
                continue;
            }
            let permits = (
                Arc::clone(&self.connections).try_acquire_owned(),
                Arc::clone(&self.handshakes).try_acquire_owned(),
            );
            let (Ok(connected), Ok(shaking)) = permits else {
                tracing::warn!(from = %incoming.remote_address(), "too many connections");
                incoming.refuse();
                continue;
            };
            let server = Arc::clone(&self);
            tokio::spawn(async move {
                let from = incoming.remote_address();
                let outcome = tokio::time::timeout(HANDSHAKE_TIMEOUT, incoming).await;
                drop(shaking);
                match outcome {
                    Ok(Ok(connection)) => server.admit(connection).await,
                    Ok(Err(error)) => tracing::info!(%from, %error, "refused a connection"),
                    Err(_elapsed) => tracing::debug!(%from, "a handshake did not end"),
                }
                drop(connected);
            });
        }
    }

    /// Decides by the protocol and the certificate what a connection gets.
    async fn admit(self: Arc<Self>, connection: Connection) {
        let from = connection.remote_address();
        let certificate = leaf(&connection);
        let joins = link::protocol(&connection).as_deref() == Some(tls::ALPN_JOIN);
        match (joins, certificate.as_ref().map(certified_host)) {
            (false, Some(Some(host))) => self.serve_host(host, connection).await,
            (true, None) => self.serve_joining(connection).await,
            (_joins, _certificate) => {
                tracing::info!(%from, "refused a connection without a certificate of this cluster");
                connection.close(CLOSE_REFUSED, b"no certificate of this cluster");
            }
        }
    }

    async fn serve_host(self: Arc<Self>, host: HostId, connection: Connection) {
        tracing::debug!(%host, from = %connection.remote_address(), "accepted a connection");
        let slots = Arc::clone(self.slots.lock().entry(host).or_insert_with(Slots::new));
        loop {
            match connection.accept_bi().await {
                Ok((send, recv)) => {
                    let server = Arc::clone(&self);
                    let slots = Arc::clone(&slots);
                    // Not tied to the connection: a request that has begun is done.
                    tokio::spawn(
                        async move { server.serve_stream(host, &slots, send, recv).await },
                    );
                }
                Err(error) => {
                    let reason = link::explain(&error);
                    tracing::debug!(%host, reason, "an accepted connection ended");
                    return;
                }
            }
        }
    }

    async fn serve_stream(
        &self,
        host: HostId,
        slots: &Slots,
        mut send: SendStream,
        mut recv: RecvStream,
    ) {
        let outcome = async {
            let header = frame::read_header(&mut recv).await?;
            let header = RequestHeader::decode(&header)?;
            // Before its bodies are read: what waits here is held back by flow control.
            let permit = slots.of(header.class).acquire_owned().await;
            let bodies = frame::read_bodies(&mut recv, header.lengths).await?;
            Ok::<_, frame::ReceiveError>((header, permit, bodies))
        };
        let (class, result) = match outcome.await {
            Ok((header, _permit, (head, payload))) => {
                let result = self.dispatch(host, header.service, &head, payload).await;
                (header.class, result)
            }
            Err(frame::ReceiveError::Frame(error)) => {
                tracing::warn!(%host, %error, "a peer sent a bad frame");
                let error = Error::new(ErrorKind::Invalid, format!("frame: {error}"));
                (Class::Control, Err(error))
            }
            Err(error) => {
                tracing::debug!(%host, %error, "a request did not arrive");
                abandon(&mut send);
                return;
            }
        };
        answer(&mut send, class, result).await;
    }

    async fn dispatch(
        &self,
        host: HostId,
        service: ServiceTag,
        head: &[u8],
        payload: Bytes,
    ) -> Result<(Vec<u8>, Bytes)> {
        match service {
            ServiceTag::Engine => {
                let engine =
                    self.services.engine.read().clone().ok_or_else(|| starting("volumes"))?;
                let request: Request = postcard::from_bytes(head).map_err(|error| {
                    Error::new(
                        ErrorKind::Invalid,
                        format!("peer request: {error}; are both hosts of the same version?"),
                    )
                })?;
                let (response, payload) = engine.serve(host, request, payload).await?;
                Ok((super::encode(&response)?, payload))
            }
            ServiceTag::Registry => {
                let registry =
                    self.services.registry.read().clone().ok_or_else(|| starting("registry"))?;
                registry.serve(head).await
            }
            ServiceTag::Join => Err(Error::new(
                ErrorKind::Invalid,
                format!("host {host} is in the cluster already; only new hosts join"),
            )),
        }
    }

    /// One join request, then the connection ends.
    async fn serve_joining(&self, connection: Connection) {
        let from = connection.remote_address();
        let Ok(_permit) = self.joining.try_acquire() else {
            connection.close(CLOSE_REFUSED, b"too many hosts are joining; try again");
            return;
        };
        let served = async {
            let Ok((mut send, mut recv)) = connection.accept_bi().await else { return };
            let result = self.join(&mut recv).await;
            if let Err(error) = &result {
                tracing::info!(%from, %error, "refused a join");
            }
            let result = result.map(|head| (head, Bytes::new()));
            answer(&mut send, Class::Control, result).await;
            // The other side closes when it has read the answer; if it does not, it has had time.
            tokio::select! {
                _reason = connection.closed() => {}
                () = async {
                    drop(send.stopped().await);
                    tokio::time::sleep(JOIN_LINGER).await;
                } => {}
            }
        };
        if tokio::time::timeout(JOIN_TIMEOUT, served).await.is_err() {
            tracing::info!(%from, "a join did not end");
        }
        connection.close(CLOSE_REFUSED, b"the join has ended");
    }

    async fn join(&self, recv: &mut RecvStream) -> Result<Vec<u8>> {
        let bad = |error: frame::ReceiveError| {
            Error::new(ErrorKind::Invalid, format!("join request: {error}"))
        };
        let header = frame::read_header(recv).await.map_err(bad)?;
        let header = RequestHeader::decode(&header).map_err(|error| bad(error.into()))?;
        if header.service != ServiceTag::Join || header.lengths.payload != 0 {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a host without a certificate can only join",
            ));
        }
        let (head, _none) = frame::read_bodies(recv, header.lengths).await.map_err(bad)?;
        let service = self.services.join.read().clone().ok_or_else(|| starting("join"))?;
        tokio::task::spawn_blocking(move || service.serve(&head)).await.map_err(|error| {
            Error::new(ErrorKind::Closed, "join: the host is stopping").with_source(error)
        })?
    }
}

fn starting(service: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("{service}: the host does not serve it, or not yet; it may be starting"),
    )
}

/// Sends an answer; a peer that is gone needs none.
async fn answer(send: &mut SendStream, class: Class, result: Result<(Vec<u8>, Bytes)>) {
    let (failed, head, payload) = match result {
        Ok((head, payload)) => match Lengths::of(&head, &payload) {
            Ok(_fits) => (false, head, payload),
            Err(error) => {
                tracing::error!(%error, "an answer is too long");
                let error = Error::new(ErrorKind::Internal, format!("answer: {error}"));
                (true, Fault::encode(&error), Bytes::new())
            }
        },
        Err(error) => (true, Fault::encode(&error), Bytes::new()),
    };
    let sent = async {
        let lengths = Lengths::of(&head, &payload).ok()?;
        send.set_priority(frame::priority(class)).ok()?;
        let header = AnswerHeader { failed, lengths };
        frame::write(send, header.encode(), &head, payload).await.ok()
    };
    if sent.await.is_none() {
        tracing::debug!("nobody takes an answer");
        abandon(send);
    }
}

/// Ends a stream so that the peer does not take what was sent for the whole.
fn abandon(send: &mut SendStream) {
    // Failing means that it has ended already.
    drop(send.reset(RESET_ABANDONED));
}

/// The certificate that the peer proved to hold the key of.
fn leaf(connection: &Connection) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.first().cloned()
}
