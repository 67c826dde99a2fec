//! A thread of low priority for work that costs much computation: it yields to whoever serves
//! guests.

use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use std::sync::mpsc;
use tokio::sync::oneshot;

type Work = Box<dyn FnOnce() + Send>;

/// A thread of low priority with its queue. Its callers wait for their work, so the queue is
/// bounded by their number.
pub(crate) struct Worker {
    queue: mpsc::Sender<Work>,
}

impl Worker {
    /// Starts the thread; it ends when the worker is dropped.
    ///
    /// # Errors
    /// `Unavailable` when no thread can be had.
    pub(crate) fn start(name: &str) -> Result<Self> {
        let (queue, work) = mpsc::channel::<Work>();
        let run = move || {
            lower_priority();
            work.into_iter().for_each(|work| work());
        };
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        started.map_err(|e| Error::io(format!("start the thread {name}"), e))?;
        Ok(Self { queue })
    }

    /// Runs work on the thread and waits for it.
    ///
    /// # Errors
    /// What the work fails with; `Internal` when it panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (done, result) = oneshot::channel();
        let work: Work = Box::new(move || {
            if done.send(work()).is_err() {
                tracing::debug!("nobody waits for a background result any more");
            }
        });
        let lost = || Error::new(ErrorKind::Internal, "a background thread has ended");
        self.queue.send(work).map_err(|_ended| lost())?;
        result.await.map_err(|_ended| lost())?
    }
}

/// Gives the calling thread a low priority.
pub(crate) fn lower_priority() {
    let thread = Some(rustix::thread::gettid());
    if let Err(error) = rustix::process::setpriority_process(thread, limits::WORKER_NICE) {
        tracing::debug!(%error, "a background thread keeps the normal priority");
    }
}
