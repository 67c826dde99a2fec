//! What hosts ask of each other on behalf of operators, and the dispatch of all peer requests.

use super::Host;
use super::report::Report;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Request, Response};
use crate::port::{Class, PeerService};
use async_trait::async_trait;
use bytes::Bytes;
use pannier_core::ids::{HostId, VolumeId};
use pannier_core::record::VolumeRecord;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a host may take to answer that it is there. A far one answers in a third of it.
const PING_MAX: Duration = Duration::from_secs(2);

/// How long a host may take to carry an operator's request out.
const REQUEST_MAX: Duration = Duration::from_secs(30);

/// An operator's request to another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum HostRequest {
    /// What it has of volumes and does for them: of one, or of all behind `after`.
    Report {
        /// Only this one.
        only: Option<VolumeId>,
        /// Those behind this id.
        after: Option<VolumeId>,
    },
    /// As the owner, take the write right from its holder.
    Release {
        /// The volume.
        volume: VolumeId,
    },
    /// As the owner, call the move off.
    Abort {
        /// The volume.
        volume: VolumeId,
    },
    /// As the owner, say whether the volume can be handed over.
    Movable {
        /// The volume.
        volume: VolumeId,
    },
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum HostAnswer {
    /// Done.
    Done,
    /// Answer to [`HostRequest::Report`].
    Report(Report),
}

impl Host {
    /// Carries an operator's request out on this host.
    async fn carry_out(&self, request: HostRequest) -> Result<HostAnswer> {
        match request {
            HostRequest::Report { only, after } => Ok(HostAnswer::Report(self.report(only, after))),
            HostRequest::Release { volume } => {
                self.release_here(volume).await.map(|()| HostAnswer::Done)
            }
            HostRequest::Abort { volume } => {
                self.abort_here(volume).await.map(|()| HostAnswer::Done)
            }
            HostRequest::Movable { volume } => self.movable_here(volume).map(|()| HostAnswer::Done),
        }
    }

    /// Sends an operator's request to a host, or carries it out here when that is this host.
    pub(super) async fn ask(&self, host: HostId, request: HostRequest) -> Result<HostAnswer> {
        if host == self.id {
            return self.carry_out(request).await;
        }
        let encoded = postcard::to_stdvec(&request).map_err(|error| {
            Error::new(ErrorKind::Internal, format!("a request does not encode: {error}"))
        })?;
        let request = Request::Host { request: encoded };
        let call = self.peers.call(host, Class::Control, request, Bytes::new());
        let name = || self.directory.host_name(host);
        let (_, payload) = tokio::time::timeout(REQUEST_MAX, call).await.map_err(|elapsed| {
            let context = format!("no answer from host {} within 30 s", name());
            Error::new(ErrorKind::Unavailable, context).with_source(elapsed)
        })??;
        postcard::from_bytes(&payload).map_err(|error| {
            let context = format!(
                "the answer of host {} is not understood ({error}); run the same version on all \
                 hosts",
                name()
            );
            Error::new(ErrorKind::Unavailable, context)
        })
    }

    /// Sends a request to a volume's owner.
    pub(super) async fn at_owner(&self, record: &VolumeRecord, request: HostRequest) -> Result<()> {
        self.ask(record.owner, request).await.map(|_done| ()).map_err(|error| {
            if error.kind() != ErrorKind::Unavailable || record.owner == self.id {
                return error;
            }
            let context = format!(
                "host {}, which owns `{}`, cannot do this now: {error}",
                self.directory.host_name(record.owner),
                record.path
            );
            Error::new(ErrorKind::Unavailable, context).with_source(error)
        })
    }

    /// Whether a host answers.
    pub(super) async fn answers(&self, host: HostId) -> bool {
        if host == self.id {
            return true;
        }
        let ping = self.peers.call(host, Class::Control, Request::Ping, Bytes::new());
        matches!(tokio::time::timeout(PING_MAX, ping).await, Ok(Ok(_)))
    }
}

#[async_trait]
impl PeerService for Host {
    async fn serve(
        &self,
        from: HostId,
        request: Request,
        payload: Bytes,
    ) -> Result<(Response, Bytes)> {
        match request {
            Request::Ownership { volume, message } => {
                self.owners.peer(from, volume, &message, payload).await?;
                Ok((Response::Ownership { message: Vec::new() }, Bytes::new()))
            }
            Request::Host { request } => {
                let request = postcard::from_bytes(&request).map_err(|error| {
                    let context = format!(
                        "a request of host {from} is not understood ({error}); run the same \
                         version on all hosts"
                    );
                    Error::new(ErrorKind::Invalid, context)
                })?;
                let answer = self.carry_out(request).await?;
                let payload = postcard::to_stdvec(&answer).map_err(|error| {
                    Error::new(ErrorKind::Internal, format!("an answer does not encode: {error}"))
                })?;
                Ok((Response::Host, payload.into()))
            }
            request => self.mover.serve(from, request, payload).await,
        }
    }
}
