//! What a full disk does to fetching: what guests wait for goes through without being kept, the
//! rest waits until there is room.

use super::Fetcher;
use crate::error::Error;
use crate::mover::{Mover, limits};
use crate::volume::Volume;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::time::Instant;

impl Fetcher {
    pub(crate) fn full_until(&self) -> Option<Instant> {
        *self.full_until.lock()
    }

    /// Takes note of how what has come was taken: the disk refused it, or kept it.
    pub(super) fn note_taken(&self, volume: &Volume, refused: Option<&Error>) {
        match refused {
            Some(error) => self.note_full(volume, error),
            None => {
                let mut full = self.full_until.lock();
                // A refusal counts for a while: on a full disk there is room for some things.
                if full.is_some_and(|until| until <= Instant::now()) {
                    *full = None;
                }
            }
        }
    }

    /// Takes note that what arrives has no place: only what guests wait for is sent for until it
    /// may have one again. Says so once until something has.
    pub(super) fn note_full(&self, volume: &Volume, error: &Error) {
        let next = Instant::now() + limits::FULL_PAUSE;
        let before = self.full_until.lock().replace(next);
        self.plan.lock().planner.hold_back(true);
        if before.is_some() {
            return;
        }
        tracing::warn!(
            dir = %volume.context().dir.display(), %error,
            "the disk is full: what guests read of other hosts' and the store's data is fetched \
             each time, and moves to this host wait; free space there, or set a smaller cache.size \
             and restart"
        );
        let Ok(mover) = self.mover() else { return };
        if self.waits_for_room.swap(true, Ordering::AcqRel) {
            return;
        }
        // Detached: it ends with the host.
        drop(tokio::spawn(async move {
            tokio::select! {
                () = mover.fetcher.until_room(&mover) => {}
                () = mover.closed.cancelled() => {}
            }
        }));
    }

    /// Sends for everything again when the last refusal is some time ago, until something is kept.
    async fn until_room(&self, mover: &Arc<Mover>) {
        loop {
            let full = self.full_until();
            if let Some(until) = full.filter(|until| *until > Instant::now()) {
                tokio::time::sleep_until(until).await;
                continue;
            }
            mover.context.cache.let_go();
            self.plan.lock().planner.hold_back(false);
            self.pump(mover);
            if full.is_none() {
                self.waits_for_room.store(false, Ordering::Release);
                // Who came just before has counted on this one.
                let again = self.full_until().is_some();
                if !again || self.waits_for_room.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
            tokio::time::sleep(limits::FULL_PAUSE).await;
        }
    }
}
