//! A number of a forwarding session, from its first sending to its answer.

use crate::attachment::{Route, news};
use crate::error::Result;
use crate::message::{ForwardOp, Request, Response};
use crate::mover::{Mover, Room, limits};
use crate::port::Class;
use bytes::Bytes;
use pannier_core::ids::{HostId, RequestNumber, SessionId};
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// A request number that is in use, from its first sending to its answer.
pub(crate) struct Numbered {
    pub(super) mover: Arc<Mover>,
    pub(super) room: Arc<Room>,
    pub(super) session: SessionId,
    pub(super) number: RequestNumber,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

impl Numbered {
    /// The request was answered: the number is used up.
    pub(super) fn answered(mut self) {
        self.permit = None;
    }
}

impl Drop for Numbered {
    /// A number that was not answered is filled in the background.
    fn drop(&mut self) {
        let (Some(permit), Ok(runtime)) =
            (self.permit.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let skip = Self {
            mover: self.mover.clone(),
            room: self.room.clone(),
            session: self.session,
            number: self.number,
            permit: None,
        };
        // Detached: it ends by itself, with the session at the latest.
        drop(runtime.spawn(async move {
            skip.fill().await;
            drop(permit);
        }));
    }
}

impl Numbered {
    /// Uses the number up without doing anything, wherever the volume is.
    async fn fill(&self) {
        let (mover, room) = (&self.mover, &self.room);
        while !mover.closed.is_cancelled() && room.forwarder.is_current(self.session) {
            let mut changes = room.changed.subscribe();
            let route = room.route.load_full();
            let done = match &*route {
                Route::Local(_) => {
                    let here = self.here(ForwardOp::Skip, Bytes::new()).await;
                    matches!(here, Ok(Response::Done { .. } | Response::NoSession { .. }))
                }
                Route::Forward(host) => {
                    let host = room.forwarder.target(*host);
                    let request = self.request(ForwardOp::Skip, host);
                    let call = mover.peers.call(host, Class::Control, request, Bytes::new());
                    matches!(
                        call.await,
                        Ok((Response::Done { .. } | Response::NoSession { .. }, _))
                    )
                }
                Route::Switching => false,
                Route::Ended(_) => true,
            };
            if done {
                return;
            }
            news(&mut changes, limits::RETRY_MAX).await;
        }
    }

    /// Executes something under the number at this host, the owner.
    pub(super) async fn here(&self, op: ForwardOp, payload: Bytes) -> Result<Response> {
        let (mover, key) = (&self.mover, (self.session, self.number));
        let host = mover.host();
        let open = self.room.forwarder.opening(self.session, host);
        let answer = mover.serve_change(host, self.room.id, key, (open, op), payload).await?;
        Ok(answer.0)
    }

    pub(super) fn request(&self, op: ForwardOp, host: HostId) -> Request {
        let (volume, session, number) = (self.room.id, self.session, self.number);
        let open = self.room.forwarder.opening(session, host);
        Request::Forward { volume, session, number, open, op }
    }
}
