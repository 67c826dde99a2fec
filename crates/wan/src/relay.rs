//! Relays: what comes in at a listening address goes over a link to a target, and answers come back
//! over another. Every source has a socket of its own towards the target, as behind a NAT.

use crate::limits;
use crate::link::{Link, LinkConfig};
use rustix::net::sockopt;
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Two sites' WAN: one link per direction, shared by the relays of both sites.
#[derive(Clone)]
pub struct Wan {
    /// From the first site to the second.
    pub forth: Link,
    /// From the second site to the first.
    pub back: Link,
}

impl Wan {
    /// A WAN that is the same in both directions.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(config: LinkConfig) -> io::Result<Self> {
        Ok(Self { forth: Link::new(config)?, back: Link::new(config)? })
    }

    /// The relay through which the first site reaches a host of the second.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn relay_to_second(&self, listen: SocketAddr, target: SocketAddr) -> io::Result<Relay> {
        Relay::with_links(listen, target, self.forth.clone(), self.back.clone())
    }

    /// The relay through which the second site reaches a host of the first.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn relay_to_first(&self, listen: SocketAddr, target: SocketAddr) -> io::Result<Relay> {
        Relay::with_links(listen, target, self.back.clone(), self.forth.clone())
    }

    /// Cuts both directions.
    pub fn cut(&self) {
        self.forth.cut();
        self.back.cut();
    }

    /// Mends both directions.
    pub fn restore(&self) {
        self.forth.restore();
        self.back.restore();
    }

    /// Bytes that entered the links, both directions.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.forth.stats().bytes + self.back.stats().bytes
    }
}

/// A running relay; dropping it stops it.
pub struct Relay {
    address: SocketAddr,
    to_target: Link,
    from_target: Link,
    stop: Arc<AtomicBool>,
    receiver: Option<JoinHandle<()>>,
}

impl Relay {
    /// A relay with links of its own, the same in both directions. `listen` may have port 0, see
    /// [`Relay::address`].
    ///
    /// # Errors
    /// When the address cannot be bound or a thread cannot be started.
    pub fn start(listen: SocketAddr, target: SocketAddr, config: LinkConfig) -> io::Result<Self> {
        Self::with_links(listen, target, Link::new(config)?, Link::new(config)?)
    }

    /// A relay over links that it shares with others.
    ///
    /// # Errors
    /// As [`Relay::start`].
    pub fn with_links(
        listen: SocketAddr,
        target: SocketAddr,
        to_target: Link,
        from_target: Link,
    ) -> io::Result<Self> {
        let socket = Arc::new(bind(listen)?);
        let address = socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut mappings = Mappings {
            listening: Arc::clone(&socket),
            target,
            from_target: from_target.clone(),
            stop: Arc::clone(&stop),
            sockets: HashMap::new(),
            receivers: Vec::new(),
        };
        let (link, stopping) = (to_target.clone(), Arc::clone(&stop));
        let receive = move || {
            receive(&socket, &stopping, |data, source| {
                if let Some(mapped) = mappings.socket_of(source) {
                    link.send(data, &mapped, None);
                }
            });
            mappings.join();
        };
        let receiver = thread::Builder::new().name("wan-relay".to_owned()).spawn(receive)?;
        Ok(Self { address, to_target, from_target, stop, receiver: Some(receiver) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The link towards the target.
    #[must_use]
    pub fn to_target(&self) -> &Link {
        &self.to_target
    }

    /// The link back.
    #[must_use]
    pub fn from_target(&self) -> &Link {
        &self.from_target
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(receiver) = self.receiver.take()
            && receiver.join().is_err()
        {
            tracing::error!("a relay's thread has panicked");
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_read_timeout(Some(limits::STOP_INTERVAL))?;
    // The kernel gives what it allows.
    sockopt::set_socket_recv_buffer_size(&socket, limits::SOCKET_BUFFER_BYTES)?;
    sockopt::set_socket_send_buffer_size(&socket, limits::SOCKET_BUFFER_BYTES)?;
    Ok(socket)
}

/// Hands on what a socket receives until `stop` is set.
fn receive(socket: &UdpSocket, stop: &AtomicBool, mut each: impl FnMut(&[u8], SocketAddr)) {
    let mut buffer = vec![0; limits::DATAGRAM_BYTES_MAX];
    while !stop.load(Ordering::Relaxed) {
        // Errors are time-outs, or an ICMP message about an earlier datagram: neither ends a relay.
        if let Ok((length, source)) = socket.recv_from(&mut buffer) {
            each(&buffer[..length], source);
        }
    }
}

/// The sockets towards a target, one per source.
struct Mappings {
    listening: Arc<UdpSocket>,
    target: SocketAddr,
    from_target: Link,
    stop: Arc<AtomicBool>,
    sockets: HashMap<SocketAddr, Arc<UdpSocket>>,
    receivers: Vec<JoinHandle<()>>,
}

impl Mappings {
    fn socket_of(&mut self, source: SocketAddr) -> Option<Arc<UdpSocket>> {
        if let Some(socket) = self.sockets.get(&source) {
            return Some(Arc::clone(socket));
        }
        if self.sockets.len() >= limits::MAPPINGS_MAX {
            tracing::warn!(%source, "the relay has no room for another source");
            return None;
        }
        match self.map(source) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%source, %error, "the relay cannot take another source");
                None
            }
        }
    }

    fn map(&mut self, source: SocketAddr) -> io::Result<Arc<UdpSocket>> {
        let any: SocketAddr = match self.target {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = Arc::new(bind(any)?);
        socket.connect(self.target)?;
        let (listening, link) = (Arc::clone(&self.listening), self.from_target.clone());
        let (mapped, stop) = (Arc::clone(&socket), Arc::clone(&self.stop));
        let back = move || {
            receive(&mapped, &stop, |data, _target| link.send(data, &listening, Some(source)));
        };
        let receiver = thread::Builder::new().name("wan-mapping".to_owned()).spawn(back)?;
        self.receivers.push(receiver);
        self.sockets.insert(source, Arc::clone(&socket));
        Ok(socket)
    }

    fn join(self) {
        for receiver in self.receivers {
            if receiver.join().is_err() {
                tracing::error!("a relay's thread has panicked");
            }
        }
    }
}
