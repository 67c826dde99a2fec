//! One direction of a WAN.

use crate::limits;
use parking_lot::{Condvar, Mutex};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// What a link is like. All of it can be changed while the link is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkConfig {
    /// Time that a datagram travels, one way.
    pub delay: Duration,
    /// Rate in bits per second; `None` for no limit.
    pub rate_bits: Option<u64>,
    /// Queue in front of the link in bytes, beyond which datagrams are dropped. `None` for the
    /// default: one bandwidth-delay product of the round trip, at least 32 full frames.
    pub queue_bytes: Option<u64>,
    /// Share of datagrams that are lost at random, 0 to 1.
    pub loss: f64,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self { delay: Duration::ZERO, rate_bits: None, queue_bytes: None, loss: 0.0 }
    }
}

impl LinkConfig {
    fn queue(&self, rate: u64) -> u64 {
        let product = rate / 8 * (2 * self.delay).as_micros() as u64 / 1_000_000;
        let smallest = limits::QUEUE_FRAMES_MIN * limits::FRAME_BYTES;
        self.queue_bytes.unwrap_or(product.max(smallest))
    }
}

/// What a link has carried. Bytes include the IP and UDP headers, as a link would count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkStats {
    /// Datagrams that entered the link.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Datagrams dropped: by a full queue, by chance, by a cut.
    pub dropped_packets: u64,
    /// Their bytes.
    pub dropped_bytes: u64,
}

/// A datagram under way.
struct Flight {
    arrival: Instant,
    data: Vec<u8>,
    socket: Arc<UdpSocket>,
    /// `None` when the socket is connected.
    to: Option<SocketAddr>,
}

struct State {
    config: LinkConfig,
    cut: bool,
    stats: LinkStats,
    flights: VecDeque<Flight>,
    held_bytes: usize,
    /// When the link has sent all that was queued.
    free_at: Instant,
    random: SmallRng,
}

struct Shared {
    state: Mutex<State>,
    news: Condvar,
}

/// One direction of a WAN; clones are the same link. Its thread ends with the last of them.
#[derive(Clone)]
pub struct Link(Arc<Shared>);

impl Link {
    /// A link, with the thread that delivers its datagrams.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new(config: LinkConfig) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                config,
                cut: false,
                stats: LinkStats::default(),
                flights: VecDeque::new(),
                held_bytes: 0,
                free_at: Instant::now(),
                // A fixed seed: a test that loses datagrams loses the same share on each run.
                random: SmallRng::seed_from_u64(1),
            }),
            news: Condvar::new(),
        });
        let weak = Arc::downgrade(&shared);
        thread::Builder::new().name("wan-link".to_owned()).spawn(move || deliver(&weak))?;
        Ok(Self(shared))
    }

    /// Cuts the link: what is under way is lost, and all that comes until [`Link::restore`].
    pub fn cut(&self) {
        let mut state = self.0.state.lock();
        state.cut = true;
        let lost = std::mem::take(&mut state.flights);
        state.held_bytes = 0;
        state.stats.dropped_packets += lost.len() as u64;
        state.stats.dropped_bytes +=
            lost.iter().map(|flight| wire_bytes(flight.data.len(), &flight.socket)).sum::<u64>();
    }

    /// Mends a cut link.
    pub fn restore(&self) {
        self.0.state.lock().cut = false;
    }

    /// Changes what the link is like, for what comes from now on.
    pub fn configure(&self, config: LinkConfig) {
        self.0.state.lock().config = config;
    }

    /// What the link is like now.
    #[must_use]
    pub fn config(&self) -> LinkConfig {
        self.0.state.lock().config
    }

    /// What it has carried since it was made.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        self.0.state.lock().stats
    }

    /// Sends a datagram over the link, to be put out on `socket` at the far end.
    pub(crate) fn send(&self, data: &[u8], socket: &Arc<UdpSocket>, to: Option<SocketAddr>) {
        let now = Instant::now();
        let bytes = wire_bytes(data.len(), socket);
        let mut state = self.0.state.lock();
        let Some(arrival) = state.admit(now, bytes, data.len()) else {
            state.stats.dropped_packets += 1;
            state.stats.dropped_bytes += bytes;
            return;
        };
        state.stats.packets += 1;
        state.stats.bytes += bytes;
        state.held_bytes += data.len();
        let flight = Flight { arrival, data: data.to_vec(), socket: Arc::clone(socket), to };
        state.flights.push_back(flight);
        if state.flights.len() == 1 {
            self.0.news.notify_one();
        }
    }
}

/// Bytes of a datagram on the wire: with its IP and UDP headers.
fn wire_bytes(data_bytes: usize, socket: &UdpSocket) -> u64 {
    let headers = match socket.local_addr() {
        Ok(SocketAddr::V6(_)) => 48,
        Ok(SocketAddr::V4(_)) | Err(_) => 28,
    };
    data_bytes as u64 + headers
}

impl State {
    /// When a datagram that comes now arrives; `None` when it is dropped.
    fn admit(&mut self, now: Instant, bytes: u64, data_bytes: usize) -> Option<Instant> {
        let loss = self.config.loss.clamp(0.0, 1.0);
        if self.cut || (loss > 0.0 && self.random.random_bool(loss)) {
            return None;
        }
        if self.held_bytes + data_bytes > limits::HELD_BYTES_MAX {
            return None;
        }
        let mut sent = now;
        if let Some(rate) = self.config.rate_bits.map(|rate| rate.max(1)) {
            let begin = self.free_at.max(now);
            let queued = (begin - now).as_nanos() * u128::from(rate) / 8 / 1_000_000_000;
            if queued + u128::from(bytes) > u128::from(self.config.queue(rate)) {
                return None;
            }
            let nanos = u128::from(bytes) * 8 * 1_000_000_000 / u128::from(rate);
            sent = begin + Duration::from_nanos(nanos as u64);
            self.free_at = sent;
        }
        // Order is kept when the delay becomes shorter.
        let last = self.flights.back().map_or(now, |flight| flight.arrival);
        Some((sent + self.config.delay).max(last))
    }
}

/// Puts datagrams out when they arrive, until the link is dropped.
fn deliver(link: &Weak<Shared>) {
    let mut due = Vec::new();
    while let Some(shared) = link.upgrade() {
        let mut state = shared.state.lock();
        let horizon = Instant::now() + limits::BATCH;
        while state.flights.front().is_some_and(|flight| flight.arrival <= horizon) {
            due.extend(state.flights.pop_front());
        }
        state.held_bytes -= due.iter().map(|flight: &Flight| flight.data.len()).sum::<usize>();
        if due.is_empty() {
            let until = Instant::now() + limits::STOP_INTERVAL;
            let next = state.flights.front().map_or(until, |flight| flight.arrival.min(until));
            shared.news.wait_until(&mut state, next);
            continue;
        }
        drop(state);
        for flight in due.drain(..) {
            let sent = match flight.to {
                Some(to) => flight.socket.send_to(&flight.data, to),
                None => flight.socket.send(&flight.data),
            };
            if let Err(error) = sent {
                // As on a real network: nobody there, nobody told.
                tracing::trace!(%error, "datagram not delivered");
            }
        }
    }
}
