//! A load that verifies: random writes, reads, flushes, discards and zeroes, several in flight,
//! each read checked against the model, each latency kept. It reconnects when its connection
//! breaks, and goes to another host when it is told to, as a guest that migrates does.

use crate::model::{Model, SECTOR, ZERO, fill};
use crate::nbd_client::{Address, Client, Command, FUA, NO_HOLE};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a load does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where it connects first.
    pub address: Address,
    /// The export.
    pub export: String,
    /// Size of the part of the disk that it uses, in bytes.
    pub size_bytes: u64,
    /// Most requests in flight.
    pub depth: usize,
    /// Longest pause that a request may have before the load fails.
    pub patience: Duration,
    /// Whether a broken connection is made again.
    pub reconnect: bool,
    /// Pause after each request, for a load that leaves the machine time for others.
    pub pace: Duration,
    /// Seed of its choices.
    pub seed: u64,
}

/// A request that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// When it was sent.
    pub sent: Instant,
    /// How long it took.
    pub took: Duration,
    /// Whether it needed no byte from elsewhere: a flush, or a change of whole blocks.
    pub is_local: bool,
}

/// What a load did.
#[derive(Debug)]
pub struct Report {
    /// Every request that was answered, in the order of the answers.
    pub done: Vec<Done>,
    /// How many times it connected.
    pub connections: u32,
    /// Bytes written and acknowledged.
    pub written_bytes: u64,
    /// When it went to another host, each time: the last answer at the one before.
    pub hops: Vec<Instant>,
    /// What may be on the disk now.
    pub model: Model,
}

impl Report {
    /// The longest time that a request took.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.done.iter().map(|done| done.took).max().unwrap_or_default()
    }

    /// The longest time that a request took which was sent within `window` of `from` and needed no
    /// byte from elsewhere.
    #[must_use]
    pub fn stall(&self, from: Instant, window: Duration) -> Duration {
        let within = |done: &&Done| done.is_local && done.sent >= from && done.sent < from + window;
        self.done.iter().filter(within).map(|done| done.took).max().unwrap_or_default()
    }
}

enum Order {
    /// Finish what is in flight, go on at another host.
    Hop(Address, Sender<()>),
    /// Finish what is in flight and report.
    Stop,
}

/// A load that runs.
pub struct Load {
    thread: JoinHandle<Result<Report, String>>,
    orders: Sender<Order>,
}

impl Load {
    /// Starts a load on a disk that holds what the model says.
    #[must_use]
    pub fn start(plan: Plan, model: Model) -> Self {
        let (orders, inbox) = channel();
        let thread = std::thread::spawn(move || Worker::new(plan, model, inbox).run());
        Self { thread, orders }
    }

    /// Makes it go on at another host, and waits until the first request was answered there.
    ///
    /// # Panics
    /// When the load has failed.
    pub fn hop(&self, to: Address) {
        let (sender, arrived) = channel();
        // A load that has failed answers below.
        self.orders.send(Order::Hop(to, sender)).ok();
        assert!(
            arrived.recv_timeout(Duration::from_secs(60)).is_ok(),
            "the load has failed before it went to the other host; its report says why"
        );
    }

    /// Whether it has ended, which before [`Load::stop`] means that it has failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Tells it to end and does not wait: what it finds broken it connects again, and then does
    /// nothing more. [`Load::stop`] has its report.
    pub fn end(&self) {
        // A load that has failed hears no more.
        self.orders.send(Order::Stop).ok();
    }

    /// Ends it.
    ///
    /// # Errors
    /// The mismatch or the error that it found.
    pub fn stop(self) -> Result<Report, String> {
        self.end();
        self.thread.join().map_err(|_panic| "the load panicked".to_owned())?
    }
}

struct Flight {
    command: Command,
    first: u64,
    count: u64,
    stamp: u64,
    sent: Instant,
}

struct Worker {
    plan: Plan,
    model: Model,
    inbox: Receiver<Order>,
    random: StdRng,
    flights: BTreeMap<u64, Flight>,
    report: Report,
    last_answer: Instant,
    /// Told at the first answer from the host that it goes to.
    arriving: Option<Sender<()>>,
    /// The connection to that host, made before the old one is left, as QEMU's target does.
    ahead: Option<Client>,
    stopping: bool,
}

impl Worker {
    fn new(plan: Plan, model: Model, inbox: Receiver<Order>) -> Self {
        let random = StdRng::seed_from_u64(plan.seed);
        let report = Report {
            done: Vec::new(),
            connections: 0,
            written_bytes: 0,
            hops: Vec::new(),
            model: Model::new(0),
        };
        Self {
            plan,
            model,
            inbox,
            random,
            flights: BTreeMap::new(),
            report,
            last_answer: Instant::now(),
            arriving: None,
            ahead: None,
            stopping: false,
        }
    }

    fn run(mut self) -> Result<Report, String> {
        while !self.stopping {
            let mut client = match self.ahead.take() {
                Some(client) => client,
                None => self.connect()?,
            };
            match self.drive(&mut client) {
                // The server may have gone away already.
                Ok(()) => drop(client.disconnect()),
                Err(Broken::Connection(_)) if self.plan.reconnect => {
                    // What was in flight may have happened; the model keeps it as possible.
                    self.flights.clear();
                }
                Err(Broken::Connection(error)) => return Err(format!("the connection: {error}")),
                Err(Broken::Disk(what)) => return Err(what),
            }
        }
        Ok(Report { model: self.model, ..self.report })
    }

    fn connect(&mut self) -> Result<Client, String> {
        let deadline = Instant::now() + self.plan.patience;
        loop {
            let Plan { address, export, patience, .. } = &self.plan;
            match Client::connect(address, export, true, *patience) {
                Ok(client) => {
                    self.report.connections += 1;
                    return Ok(client);
                }
                Err(error) if Instant::now() > deadline || !self.plan.reconnect => {
                    return Err(format!("cannot connect to {address:?}: {error}"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Works until told to hop or to stop; nothing is in flight when it returns.
    fn drive(&mut self, client: &mut Client) -> Result<(), Broken> {
        loop {
            match self.inbox.try_recv() {
                Ok(Order::Hop(address, sender)) => {
                    self.plan.address = address;
                    self.ahead = Some(self.connect().map_err(Broken::Disk)?);
                    self.arriving = Some(sender);
                    self.finish_flights(client)?;
                    self.report.hops.push(self.last_answer);
                    return Ok(());
                }
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) => {
                    self.stopping = true;
                    return self.finish_flights(client);
                }
                Err(TryRecvError::Empty) => {}
            }
            while self.flights.len() < self.plan.depth {
                self.send_one(client)?;
            }
            self.receive_one(client)?;
            if let Some(sender) = self.arriving.take() {
                // The test may wait no more.
                sender.send(()).ok();
            }
            if !self.plan.pace.is_zero() {
                std::thread::sleep(self.plan.pace);
            }
        }
    }

    fn finish_flights(&mut self, client: &mut Client) -> Result<(), Broken> {
        while !self.flights.is_empty() {
            self.receive_one(client)?;
        }
        Ok(())
    }

    /// A range that no request in flight touches.
    fn free_range(&mut self) -> (u64, u64) {
        let sectors = self.plan.size_bytes / SECTOR as u64;
        loop {
            // Mostly whole blocks, as guests do; some odd sectors.
            let (first, count) = if self.random.random_ratio(1, 8) {
                (self.random.random_range(0..sectors), self.random.random_range(1..=24))
            } else {
                let block = self.random.random_range(0..sectors / 8);
                (block * 8, 8 * [1, 1, 1, 2, 4, 16][self.random.random_range(0..6)])
            };
            let count = count.min(sectors - first);
            let is_free = self.flights.values().all(|flight| {
                first + count <= flight.first || flight.first + flight.count <= first
            });
            if is_free {
                return (first, count);
            }
        }
    }

    fn send_one(&mut self, client: &mut Client) -> Result<(), Broken> {
        let (command, flags) = match self.random.random_range(0..100) {
            0..45 => (Command::Write, 0),
            45..50 => (Command::Write, FUA),
            50..90 => (Command::Read, 0),
            90..94 => (Command::Flush, 0),
            94..97 => (Command::Trim, 0),
            97..99 => (Command::WriteZeroes, 0),
            _ => (Command::WriteZeroes, NO_HOLE),
        };
        let (first, count) = if command == Command::Flush { (0, 0) } else { self.free_range() };
        let mut data = Vec::new();
        let mut stamp = ZERO;
        match command {
            Command::Write => {
                stamp = self.model.sent(first, count);
                data.resize(count as usize * SECTOR, 0);
                for (offset, sector) in data.chunks_exact_mut(SECTOR).enumerate() {
                    fill(sector, first + offset as u64, stamp);
                }
            }
            Command::Trim | Command::WriteZeroes => self.model.sent_as(first, count, ZERO),
            _ => {}
        }
        let (offset, length) = (first * SECTOR as u64, count as u32 * SECTOR as u32);
        let sent = Instant::now();
        let cookie = client.send(command, flags, offset, length, &data)?;
        self.flights.insert(cookie, Flight { command, first, count, stamp, sent });
        Ok(())
    }

    fn receive_one(&mut self, client: &mut Client) -> Result<(), Broken> {
        let reply = client.receive()?;
        let flight = self.flights.remove(&reply.cookie).expect("the client knows its cookies");
        let Flight { command, first, count, stamp, sent } = flight;
        if reply.error != 0 {
            let error = reply.error;
            return Err(Broken::Disk(format!("{command:?} {first}+{count}: error {error}")));
        }
        match command {
            Command::Read => self
                .model
                .read(first, &reply.data)
                .map_err(|mismatch| Broken::Disk(format!("read {first}+{count}: {mismatch:?}")))?,
            Command::Write => {
                self.model.acknowledged(first, count, stamp);
                self.report.written_bytes += count * SECTOR as u64;
            }
            Command::Trim | Command::WriteZeroes => self.model.acknowledged(first, count, ZERO),
            _ => {}
        }
        let now = Instant::now();
        let is_local = match command {
            Command::Flush => true,
            Command::Read => false,
            _ => first % 8 == 0 && count % 8 == 0,
        };
        self.report.done.push(Done { sent, took: now - sent, is_local });
        self.last_answer = now;
        Ok(())
    }
}

enum Broken {
    Connection(io::Error),
    Disk(String),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

/// Reads a whole disk and checks it against the model.
///
/// # Panics
/// When it has another content than it may have, or cannot be read.
pub fn verify_all(address: &Address, export: &str, model: &mut Model) {
    let mut client = Client::connect(address, export, true, Duration::from_secs(60))
        .unwrap_or_else(|error| panic!("cannot connect to {address:?}: {error}"));
    let chunk = 256 << 10;
    let size = model.sectors() * SECTOR as u64;
    let mut at = 0;
    while at < size {
        let length = chunk.min(size - at);
        let data = client
            .read(at, length as u32)
            .unwrap_or_else(|error| panic!("read of {length} bytes at {at}: {error}"));
        if let Err(mismatch) = model.read(at / SECTOR as u64, &data) {
            panic!("{export}: {mismatch:?}");
        }
        at += length;
    }
    client.disconnect().expect("the goodbye is sent");
}
