//! `pannier serve`: the daemon.

mod lock;
mod origin;
mod sockets;
mod supervise;
mod wire;

#[cfg(test)]
pub(crate) use wire::{Parts, start};

use crate::cli::args::Serve;
use crate::config::Config;
use crate::output::Failure;
use crate::telemetry;
use pannier_engine::error::ErrorKind;
use sockets::Sockets;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long requests under way may take once the daemon was told to stop.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Runs the daemon until it is told to stop.
pub(crate) fn run(dir: PathBuf, args: Serve) -> Result<(), Failure> {
    let supervise = args.supervise;
    let config = with_flags(Config::read(&dir)?, args);
    telemetry::log_to_stderr(&config.log.level, config.log.format)?;
    let dir = std::path::absolute(&dir)
        .map_err(|error| Failure::io(format!("cannot name {}", dir.display()), error))?;
    let inherited = sockets::inherited()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("pannier")
        .build()
        .map_err(|error| Failure::io("cannot start the runtime", error))?;
    if supervise {
        let sockets = {
            // Held only while leftovers are replaced: the child takes it.
            let _lock = lock::acquire(&dir)?;
            sockets::open(&dir, &config, inherited)?
        };
        let args = std::env::args_os().skip(1).filter(|arg| arg != "--supervise").collect();
        let outcome = runtime.block_on(supervise::run(&sockets, args));
        remove(&sockets.bound);
        return outcome;
    }
    let lock = lock::acquire(&dir)?;
    let sockets = sockets::open(&dir, &config, inherited)?;
    let bound = sockets.bound.clone();
    let outcome = runtime.block_on(Box::pin(serve(&dir, config, sockets)));
    remove(&bound);
    // What still waits (a peer, a blocked read) ends with the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(lock);
    outcome
}

/// The configuration with what the command line says.
fn with_flags(mut config: Config, args: Serve) -> Config {
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    config.advertise = args.advertise.or(config.advertise);
    config.nbd_listen = args.nbd_listen.or(config.nbd_listen);
    config.store = args.store.or(config.store);
    config.peers.extend(args.peers);
    if let Some(size) = args.cache_size {
        config.cache.size = size;
    }
    if let Some(level) = args.log_level {
        config.log.level = level;
    }
    if let Some(format) = args.log_format {
        config.log.format = format;
    }
    config
}

fn remove(paths: &[PathBuf]) {
    for path in paths {
        // A socket that is left is replaced at the next start.
        drop(std::fs::remove_file(path));
    }
}

async fn serve(dir: &Path, config: Config, sockets: Sockets) -> Result<(), Failure> {
    let metrics = telemetry::collect_metrics()?;
    let watch = |kind| signal(kind).map_err(|error| Failure::io("cannot watch for signals", error));
    let mut terminate = watch(SignalKind::terminate())?;
    let mut interrupt = watch(SignalKind::interrupt())?;
    let stop = CancellationToken::new();

    let parts = tokio::select! {
        parts = wire::start(dir, &config) => parts?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let Sockets { nbd, api, nbd_path, nbd_address, .. } = sockets;
    let state = parts.api_state(dir, metrics, nbd_path, nbd_address);
    let mut nbd = tokio::spawn(parts.nbd().serve(nbd, stop.child_token()));
    let mut api = tokio::spawn(crate::api::serve(api, state, stop.child_token()));
    let mut starting = std::pin::pin!(async {
        // Clients that have waited are served meanwhile, and their volumes come first.
        parts.settled().await?;
        ready(&parts);
        std::future::pending::<Result<(), Failure>>().await
    });

    let outcome = tokio::select! {
        failed = &mut starting => failed,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = &mut nbd => {
            Err(ended_early("NBD", ended.map(|ended| ended.map_err(Failure::from))))
        }
        ended = &mut api => Err(ended_early("API", ended)),
    };
    // Not being heard by the init system changes nothing here.
    drop(sd_notify::notify(&[sd_notify::NotifyState::Stopping]));
    tracing::info!("stopping: requests under way are finished");
    stop.cancel();
    if outcome.is_ok() {
        let drained = tokio::time::timeout(DRAIN_MAX, futures::future::join(nbd, api)).await;
        if drained.is_err() {
            tracing::info!("some requests did not end in time; their clients will repeat them");
        }
    }
    parts.stop().await?;
    tracing::info!("stopped");
    outcome
}

/// Tells whoever started us that guests can connect.
fn ready(parts: &wire::Parts) {
    let mut stdout = std::io::stdout().lock();
    // A parent that does not listen misses the line and nothing else.
    drop(writeln!(stdout, "READY").and_then(|()| stdout.flush()));
    drop(sd_notify::notify(&[sd_notify::NotifyState::Ready]));
    parts.log_ready();
}

fn ended_early(what: &str, ended: Result<Result<(), Failure>, tokio::task::JoinError>) -> Failure {
    let cause = match ended {
        Ok(Ok(())) => "it ended".to_owned(),
        Ok(Err(failure)) => failure.0.message,
        Err(error) => error.to_string(),
    };
    Failure::new(ErrorKind::Internal, format!("the {what} server ended: {cause}"))
}
