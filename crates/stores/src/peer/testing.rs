//! A relay that can cut a link, and services, for tests.

use super::Transport;
use crate::cluster::Identity;
use async_trait::async_trait;
use bytes::Bytes;
use pannier_core::ids::HostId;
use pannier_engine::error::{Error, Result};
use pannier_engine::message::{Request, Response};
use pannier_engine::port::PeerService;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// A transport on a free port of the loopback.
pub(crate) fn bind(identity: &Identity) -> Transport {
    Transport::bind("127.0.0.1:0".parse().unwrap(), identity).unwrap()
}

/// Passes datagrams to one address and back, until it is cut. Whoever dials it is given an own
/// port towards the target, as a NAT would.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    cut: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = front.local_addr().unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let is_cut = Arc::clone(&cut);
        let task = tokio::spawn(async move {
            let mut ways: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
            let mut buffer = vec![0; 65_536];
            loop {
                let (length, from) = front.recv_from(&mut buffer).await.unwrap();
                if is_cut.load(Ordering::Relaxed) {
                    continue;
                }
                if let Entry::Vacant(way) = ways.entry(from) {
                    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                    back.connect(target).await.unwrap();
                    way.insert(Arc::clone(&back));
                    let (front, is_cut) = (Arc::clone(&front), Arc::clone(&is_cut));
                    tokio::spawn(async move {
                        let mut buffer = vec![0; 65_536];
                        loop {
                            // A refusal of the target's host is no end.
                            let Ok(length) = back.recv(&mut buffer).await else { continue };
                            if !is_cut.load(Ordering::Relaxed) {
                                front.send_to(&buffer[..length], from).await.unwrap();
                            }
                        }
                    });
                }
                drop(ways[&from].send(&buffer[..length]).await);
            }
        });
        Self { address, cut, task }
    }

    pub(crate) fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Serve = dyn Fn(HostId, Bytes) -> Result<Bytes> + Send + Sync;

/// A service that counts what it serves and answers by a function.
pub(crate) struct Counting {
    pub(crate) served: AtomicUsize,
    pub(crate) under_way: AtomicUsize,
    pub(crate) under_way_max: AtomicUsize,
    /// Requests wait here while it is set.
    pub(crate) gate: tokio::sync::RwLock<()>,
    serve: Box<Serve>,
}

impl Counting {
    pub(crate) fn new(
        serve: impl Fn(HostId, Bytes) -> Result<Bytes> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            served: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            under_way_max: AtomicUsize::new(0),
            gate: tokio::sync::RwLock::new(()),
            serve: Box::new(serve),
        })
    }

    /// Answers with what was sent.
    pub(crate) fn echo() -> Arc<Self> {
        Self::new(|_from, payload| Ok(payload))
    }

    /// Answers with an error.
    pub(crate) fn failing(error: Error) -> Arc<Self> {
        Self::new(move |_from, _payload| Err(error.clone()))
    }
}

#[async_trait]
impl PeerService for Counting {
    async fn serve(
        &self,
        from: HostId,
        _request: Request,
        payload: Bytes,
    ) -> Result<(Response, Bytes)> {
        self.served.fetch_add(1, Ordering::SeqCst);
        let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.under_way_max.fetch_max(now, Ordering::SeqCst);
        drop(self.gate.read().await);
        let answer = (self.serve)(from, payload);
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        Ok((Response::Pong, answer?))
    }
}
