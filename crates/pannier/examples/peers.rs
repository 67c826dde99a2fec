//! Measures the peer transport: throughput of bulk, and what a demand read waits while bulk runs,
//! over loopback or an emulated WAN, by congestion controller and by bytes of bulk in flight.
//!
//!     cargo run --release -p pannier --example peers -- --rtt-ms 40 --rate-mbit 200
//!
//! Both hosts and the WAN run in this process. The link loses nothing but what its queue, one
//! bandwidth-delay product, does not hold.
#![expect(clippy::print_stdout, reason = "its figures are its output")]

use anyhow::{Context, Result};
use async_trait::async_trait;
use bytes::Bytes;
use clap::Parser;
use pannier_core::ids::HostId;
use pannier_engine::error::Result as EngineResult;
use pannier_engine::message::{Request, Response};
use pannier_engine::port::{Class, PeerService, Peers};
use pannier_stores::cluster::{self, Identity, JoinService, TokenBook};
use pannier_stores::peer::{Congestion, Transport};
use pannier_wan::{LinkConfig, Wan};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Measures the peer transport.
#[derive(Parser)]
struct Options {
    /// Round trip time in milliseconds; 0 with rate 0 is loopback without a relay.
    #[arg(long, default_value_t = 40)]
    rtt_ms: u64,
    /// Rate in Mbit/s; 0 for no limit.
    #[arg(long, default_value_t = 200)]
    rate_mbit: u64,
    /// Seconds of each measurement, after two of warming up.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Bulk in flight in KiB, several; 0 is 64 MiB, more than any window.
    #[arg(long, value_delimiter = ',', default_values_t = [0])]
    flight_kib: Vec<usize>,
    /// Bytes of one bulk answer in KiB.
    #[arg(long, default_value_t = 256)]
    piece_kib: usize,
    /// Controllers: cubic, newreno, bbr.
    #[arg(long, value_delimiter = ',', default_value = "cubic,newreno,bbr")]
    controllers: Vec<String>,
    /// Share of datagrams that are lost.
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
}

/// Answers with as many bytes as the payload's first four say.
struct Source(Bytes);

#[async_trait]
impl PeerService for Source {
    async fn serve(
        &self,
        _from: HostId,
        _request: Request,
        payload: Bytes,
    ) -> EngineResult<(Response, Bytes)> {
        let length = payload.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize);
        Ok((Response::Pong, self.0.slice(..length.min(self.0.len()))))
    }
}

async fn fetch(from: &Transport, host: HostId, class: Class, length: usize) -> Result<usize> {
    let ask = Bytes::copy_from_slice(&u32::try_from(length)?.to_le_bytes());
    let (_pong, payload) = from.call(host, class, Request::Ping, ask).await?;
    Ok(payload.len())
}

/// Identities of two hosts of a new cluster.
async fn identities(directory: &Path) -> Result<(Identity, Identity)> {
    let first = cluster::init(&directory.join("1"), "127.0.0.1:1")?;
    let transport = Transport::bind("127.0.0.1:0".parse()?, &first)?;
    transport.serve_join(JoinService::open(&first)?);
    let token = TokenBook::open(&first)?.issue(&transport.address().to_string(), None)?;
    let second = cluster::join(&directory.join("2"), &token).await?;
    transport.close().await;
    Ok((first, second))
}

struct Outcome {
    bulk_mbit: f64,
    /// Demand latencies in ms, sorted; alone and while bulk runs.
    alone: Vec<f64>,
    under_bulk: Vec<f64>,
    lost_share: f64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (alone, loaded) = (&self.alone, &self.under_bulk);
        write!(
            f,
            "{:>11.1}  {:>8.1}/{:>8.1}  {:>8.1}/{:>8.1}/{:>8.1}  {:>6.3} %",
            self.bulk_mbit,
            quantile(alone, 0.5),
            quantile(alone, 0.99),
            quantile(loaded, 0.5),
            quantile(loaded, 0.99),
            quantile(loaded, 1.0),
            self.lost_share * 100.0
        )
    }
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = ((sorted.len().saturating_sub(1)) as f64 * share) as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Demand reads of 4 KiB, one after another, for a while.
async fn demand(from: &Transport, host: HostId, during: Duration) -> Result<Vec<f64>> {
    let end = Instant::now() + during;
    let mut latencies = Vec::new();
    while Instant::now() < end {
        let asked = Instant::now();
        fetch(from, host, Class::Demand, 4096).await?;
        latencies.push(asked.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    latencies.sort_by(f64::total_cmp);
    Ok(latencies)
}

async fn measure(options: &Options, controller: Congestion, flight: usize) -> Result<Outcome> {
    let directory = tempfile::tempdir()?;
    let (first, second) = identities(directory.path()).await?;
    let listen = "127.0.0.1:0".parse()?;
    let source = Transport::bind_with(listen, &first, controller)?;
    let bytes: Vec<u8> = (0..options.piece_kib << 10).map(|_| rand::random()).collect();
    source.serve_engine(Arc::new(Source(bytes.into())));
    let target = Transport::bind_with(listen, &second, controller)?;
    let rate_bits = (options.rate_mbit > 0).then_some(options.rate_mbit * 1_000_000);
    let delay = Duration::from_micros(options.rtt_ms * 500);
    let wan = Wan::new(LinkConfig { delay, rate_bits, queue_bytes: None, loss: options.loss })?;
    let relay = wan.relay_to_first(listen, source.address())?;
    let plain = options.rtt_ms == 0 && options.rate_mbit == 0;
    let address = if plain { source.address() } else { relay.address() };
    let host = source.host();
    target.learn(host, &address.to_string());

    let alone = demand(&target, host, Duration::from_secs(1)).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let received = Arc::new(AtomicU64::new(0));
    let piece = options.piece_kib << 10;
    let pullers: Vec<_> = (0..(flight / piece).max(1))
        .map(|_| {
            let (target, stop, received) = (target.clone(), stop.clone(), received.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let length = fetch(&target, host, Class::Bulk, piece).await?;
                    received.fetch_add(length as u64, Ordering::Relaxed);
                }
                anyhow::Ok(())
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (before, began) = (received.load(Ordering::Relaxed), Instant::now());
    let sent_before = wan.forth.stats().packets + wan.back.stats().packets;
    let under_bulk = demand(&target, host, Duration::from_secs(options.seconds)).await?;
    let bytes = received.load(Ordering::Relaxed) - before;
    let bulk_mbit = bytes as f64 * 8.0 / 1e6 / began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let dropped = wan.forth.stats().dropped_packets + wan.back.stats().dropped_packets;
    let sent = (wan.forth.stats().packets + wan.back.stats().packets - sent_before).max(1);
    for puller in pullers {
        puller.await?.context("bulk")?;
    }
    target.close().await;
    source.close().await;
    Ok(Outcome { bulk_mbit, alone, under_bulk, lost_share: dropped as f64 / sent as f64 })
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let delay = options.rtt_ms as usize;
    let product_kib = options.rate_mbit as usize * 1000 / 8 * delay / 1024;
    println!(
        "rtt {} ms, rate {} Mbit/s, one bandwidth-delay product {product_kib} KiB",
        options.rtt_ms, options.rate_mbit
    );
    println!(
        "{:<10}  {:>10}  {:>11}  {:>17}  {:>26}  {:>8}",
        "controller",
        "bulk KiB",
        "bulk Mbit/s",
        "demand alone ms",
        "demand under bulk ms",
        "dropped"
    );
    println!(
        "{:<10}  {:>10}  {:>11}  {:>17}  {:>26}",
        "", "in flight", "", "p50/p99", "p50/p99/max"
    );
    for name in &options.controllers {
        let controller = match name.as_str() {
            "cubic" => Congestion::Cubic,
            "newreno" => Congestion::NewReno,
            "bbr" => Congestion::Bbr,
            other => anyhow::bail!("no controller `{other}`: cubic, newreno or bbr"),
        };
        for kib in &options.flight_kib {
            let flight = if *kib == 0 { 64 << 20 } else { kib << 10 };
            let outcome = measure(&options, controller, flight).await?;
            println!("{name:<10}  {:>10}  {outcome}", flight >> 10);
        }
    }
    Ok(())
}
