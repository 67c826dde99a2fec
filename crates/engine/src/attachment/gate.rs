//! The write right's gate: it admits an attachment's writes, and knows how many are under way.

use crate::mover::limits;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// Top bit of a gate's state: it is open.
const OPEN: u64 = 1 << 63;

/// Admits an attachment's writes while it holds the write right, and knows how many are under way.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// [`OPEN`], and the number of writes under way.
    state: AtomicU64,
    emptied: Notify,
}

impl Gate {
    /// Admits a write, if the gate is open.
    #[inline]
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Pass> {
        self.admit().then(|| Pass(self.clone()))
    }

    /// Admits a write without taking a handle, which spares the fast path a second counter.
    #[inline]
    pub(crate) fn enter_inline(&self) -> Option<InlinePass<'_>> {
        // Not `then_some`: it would make the pass in any case, and dropping it counts a write that
        // was never admitted.
        self.admit().then(|| InlinePass(self))
    }

    #[inline]
    fn admit(&self) -> bool {
        if self.state.fetch_add(1, Ordering::AcqRel) & OPEN != 0 {
            return true;
        }
        self.leave();
        false
    }

    #[inline]
    fn leave(&self) {
        let before = self.state.fetch_sub(1, Ordering::AcqRel);
        assert!(before & !OPEN > 0, "more writes have left the gate than were admitted");
        if before == 1 {
            self.emptied.notify_waiters();
        }
    }

    pub(crate) fn open(&self) {
        self.state.fetch_or(OPEN, Ordering::AcqRel);
    }

    pub(crate) fn shut(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state.load(Ordering::Acquire) & OPEN != 0
    }

    /// Waits until no write is under way, or the gate is open again.
    pub(crate) async fn idle(&self) {
        loop {
            let emptied = self.emptied.notified();
            let state = self.state.load(Ordering::Acquire);
            if state == 0 || state & OPEN != 0 {
                return;
            }
            // A write that is refused at this moment counts for an instant without a notice.
            if tokio::time::timeout(limits::RECHECK, emptied).await.is_err() {
                continue;
            }
        }
    }
}

/// An admitted write that is under way.
#[derive(Debug)]
pub(crate) struct Pass(Arc<Gate>);

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// An admitted write that is under way, within one call.
#[derive(Debug)]
pub(crate) struct InlinePass<'a>(&'a Gate);

impl Drop for InlinePass<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::Gate;
    use std::sync::Arc;

    #[test]
    fn a_shut_gate_refuses_every_time() {
        let gate = Arc::new(Gate::default());
        for _try in 0..3 {
            assert!(gate.enter_inline().is_none(), "inline");
            assert!(gate.enter().is_none(), "with a handle");
            assert!(!gate.is_open(), "a refusal leaves the gate shut");
        }
    }

    #[tokio::test]
    async fn a_withdrawal_waits_for_what_was_admitted() {
        let gate = Arc::new(Gate::default());
        gate.open();
        let (pass, inline) = (gate.enter(), gate.enter_inline());
        assert!(pass.is_some() && inline.is_some(), "an open gate admits");
        gate.shut();
        assert!(futures::poll!(std::pin::pin!(gate.idle())).is_pending(), "two are under way");
        drop(inline);
        assert!(futures::poll!(std::pin::pin!(gate.idle())).is_pending(), "one is under way");
        drop(pass);
        gate.idle().await;
    }
}
