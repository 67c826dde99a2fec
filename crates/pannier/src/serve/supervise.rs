//! `serve --supervise`: a small parent that holds the listening sockets and starts the daemon again
//! when it dies. A client that connects meanwhile waits in the sockets' backlog and is not refused.

use super::sockets::Sockets;
use crate::output::Failure;
use pannier_engine::error::ErrorKind;
use pannier_exports::nbd::Listener;
use rustix::process::{Pid, Signal};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// A daemon that lived at least this long is started again at once.
const STABLE: Duration = Duration::from_secs(10);
/// Longest pause between starts of a daemon that dies at once.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Runs the daemon as a child, again and again, until it ends well or we are told to stop.
pub(super) async fn run(sockets: &Sockets, args: Vec<std::ffi::OsString>) -> Result<(), Failure> {
    let watch = |kind| signal(kind).map_err(|error| Failure::io("cannot watch for signals", error));
    let mut terminate = watch(SignalKind::terminate())?;
    let mut interrupt = watch(SignalKind::interrupt())?;
    let mut ended = watch(SignalKind::child())?;
    let mut pause = Duration::from_millis(50);
    loop {
        let started = Instant::now();
        let mut child = start(sockets, &args)?;
        let mut stopping = false;
        let status = loop {
            if let Some(status) = child
                .try_wait()
                .map_err(|error| Failure::io("cannot wait for the daemon", error))?
            {
                break status;
            }
            tokio::select! {
                _ = ended.recv() => {}
                _ = terminate.recv() => stopping = stop(&child),
                _ = interrupt.recv() => stopping = stop(&child),
            }
        };
        if stopping || status.success() {
            return Ok(());
        }
        if status.code() == Some(1) && started.elapsed() < Duration::from_secs(1) {
            // It has said why itself, and would again.
            return Err(Failure::new(ErrorKind::Unavailable, "the daemon did not start"));
        }
        tracing::warn!(%status, "the daemon died and is started again");
        if started.elapsed() > STABLE {
            pause = Duration::from_millis(50);
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn stop(child: &Child) -> bool {
    if let Some(pid) = Pid::from_raw(child.id() as i32)
        && let Err(error) = rustix::process::kill_process(pid, Signal::TERM)
    {
        tracing::debug!(%error, "the daemon had ended already");
    }
    true
}

/// Starts the daemon with the sockets as inherited descriptors.
fn start(sockets: &Sockets, args: &[std::ffi::OsString]) -> Result<Child, Failure> {
    // Kept open over the child's exec; closed here when this function returns.
    let mut inherited: Vec<(&str, OwnedFd)> = vec![("api", inheritable(&sockets.api)?)];
    for listener in &sockets.nbd {
        let fd = match listener {
            Listener::Unix(socket) => inheritable(socket)?,
            Listener::Tcp(socket) => inheritable(socket)?,
        };
        inherited.push(("nbd", fd));
    }
    let numbers: Vec<_> =
        inherited.iter().map(|(name, fd)| format!("{name}:{}", fd.as_raw_fd())).collect();
    let program = std::env::current_exe()
        .map_err(|error| Failure::io("cannot find the program's own file", error))?;
    Command::new(program)
        .args(args)
        .env(super::sockets::PASSED, numbers.join(","))
        .spawn()
        .map_err(|error| Failure::io("cannot start the daemon", error))
}

/// A copy of a socket's descriptor that a child inherits.
fn inheritable(socket: &impl AsFd) -> Result<OwnedFd, Failure> {
    rustix::io::dup(socket).map_err(|error| Failure::io("cannot pass a socket on", error.into()))
}
