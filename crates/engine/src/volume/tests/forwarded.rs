//! Forwarded changes at the owner: what is acknowledged is durable, and sessions do not overlap.

use super::*;
use crate::attachment::Gate;
use crate::disk::{DiskOp, Observer};
use crate::message::Response;
use crate::serve::Changes;
use crate::volume::log::Operation;
use pannier_core::ids::{RequestNumber, SessionId};
use std::io;
use std::time::Duration;

const GUEST: HostId = HostId(9);
const OLD: SessionId = SessionId(1);
const NEW: SessionId = SessionId(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_remembered_while_it_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let context = host(dir.path(), small(), &Arc::default(), Disk::default());
    let volume = created(&context, 1 << 20).await;
    let first = RequestNumber(1);
    let mark = |session| {
        let volume = Arc::clone(&volume);
        async move {
            volume.write_in_session(SessionId(session), first..=first, &[]).await.unwrap();
        }
    };
    for session in (1..=1100).step_by(100) {
        futures::future::join_all((session..session + 100).map(mark)).await;
    }
    assert_eq!(volume.sessions().get(&SessionId(1)), Some(&first), "its guest is still there");
    volume.stop_append().await.unwrap();
    volume.keep_sessions(&[SessionId(1), SessionId(700)].into());
    volume.begin_append(Epoch(1), Incarnation(9)).await.unwrap();
    assert_eq!(
        volume.sessions().keys().copied().collect::<Vec<_>>(),
        [SessionId(1), SessionId(700)]
    );
}

/// A disk whose syncs take as long as the test likes; and whether one does.
#[derive(Default)]
pub(super) struct Slow(pub(super) AtomicBool, pub(super) AtomicBool);

impl Observer for Slow {
    fn before(&self, op: &DiskOp<'_>) -> io::Result<()> {
        while matches!(op, DiskOp::Sync { .. }) && self.0.load(Ordering::Relaxed) {
            self.1.store(true, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

struct Owner {
    slow: Arc<Slow>,
    volume: Arc<Volume>,
    changes: Arc<Changes>,
    gate: Arc<Gate>,
    _dir: tempfile::TempDir,
}

impl Owner {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let slow = Arc::new(Slow::default());
        let disk = Disk::observed(Arc::clone(&slow) as Arc<dyn Observer>);
        let context = host(dir.path(), small(), &Arc::default(), disk);
        let volume = created(&context, 1 << 20).await;
        // The segment behind the first is prepared, so that the next syncs are of the log.
        volume.write(0, pattern(1, 4096), true).await.unwrap();
        let gate = Arc::new(Gate::default());
        gate.open();
        Self { slow, volume, changes: Arc::default(), gate, _dir: dir }
    }

    /// Sends a request of a session: its first, a write to the same block.
    fn send(&self, session: SessionId) -> tokio::task::JoinHandle<Result<Response>> {
        let (changes, volume, gate) =
            (self.changes.clone(), self.volume.clone(), self.gate.clone());
        let write = Operation::Write { offset: 8192, data: pattern(session.0, 4096) };
        tokio::spawn(async move {
            let key = (session, RequestNumber(1));
            changes.execute(&volume, (GUEST, gate), key, vec![write]).await
        })
    }

    fn applied(&self, session: SessionId) -> bool {
        self.volume.sessions().contains_key(&session)
    }

    async fn until_applied(&self, session: SessionId) {
        while !self.applied(session) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn is_done(answer: Result<Response>) -> bool {
    matches!(answer, Ok(Response::Done { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_again_is_answered_when_it_is_durable() {
    let owner = Owner::new().await;
    owner.slow.0.store(true, Ordering::Relaxed);
    let first = owner.send(OLD);
    owner.until_applied(OLD).await;
    let again = owner.send(OLD);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!again.is_finished() && !first.is_finished(), "it is applied, and not durable");
    owner.slow.0.store(false, Ordering::Relaxed);
    assert!(is_done(first.await.unwrap()));
    assert!(is_done(again.await.unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_session_waits_for_what_the_old_one_has_begun() {
    let owner = Owner::new().await;
    owner.slow.0.store(true, Ordering::Relaxed);
    let old = owner.send(OLD);
    owner.until_applied(OLD).await;
    owner.changes.forget(OLD);
    let new = owner.send(NEW);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!owner.applied(NEW), "the old session still executes a write to the same block");
    owner.slow.0.store(false, Ordering::Relaxed);
    assert!(is_done(new.await.unwrap()));
    assert!(is_done(old.await.unwrap()), "it was executed and is durable");
    assert_eq!(read(&owner.volume, 8192, 4096).await, pattern(NEW.0, 4096));
    // Not even under a number that is not known any more is an ended session's request executed.
    owner.volume.end_session(OLD);
    let late = owner.send(OLD).await.unwrap();
    assert!(matches!(late, Ok(Response::Busy { .. })), "{late:?}");
    assert_eq!(read(&owner.volume, 8192, 4096).await, pattern(NEW.0, 4096));
}
