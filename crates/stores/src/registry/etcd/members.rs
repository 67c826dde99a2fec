//! etcd's members, asked in turn.
//!
//! Each member has a client of its own, so that one that hangs holds up nobody else and a message
//! can say which member said what.

use super::api::Client;
use super::url::EtcdUrl;
use crate::limits::{ETCD_COMMIT, ETCD_CONNECT, ETCD_PATIENCE, ETCD_PAUSE, ETCD_PING, ETCD_TRY};
use pannier_engine::error::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Endpoint;
use tonic::{Code, Status};

/// What a request that failed on the way may have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Asking twice is as good as once.
    Freely,
    /// Only what was surely not executed is asked again.
    Unsent,
}

/// The members, and which of them answered last.
pub(super) struct Members {
    /// For messages.
    name: String,
    members: Vec<Member>,
    first: AtomicUsize,
    user: Option<(String, String)>,
}

struct Member {
    name: String,
    endpoint: Endpoint,
    /// Absent until it is asked, and after it has failed: the next connects and logs in anew.
    client: Mutex<Option<Client>>,
}

/// Why one member did not do what it was asked.
struct Failed {
    cause: String,
    /// The request was surely not executed.
    unsent: bool,
    /// Another member, or the same one later, would say the same.
    refused: bool,
}

impl Members {
    pub(super) fn new(url: &EtcdUrl) -> Result<Self> {
        let member = |name: &String| {
            let (interval, patience) = ETCD_PING;
            let endpoint = url
                .endpoint(name)?
                .connect_timeout(ETCD_CONNECT)
                .http2_keep_alive_interval(interval)
                .keep_alive_timeout(patience)
                // etcd takes pings on a connection without requests for an attack.
                .keep_alive_while_idle(false);
            Ok(Member { name: name.clone(), endpoint, client: Mutex::new(None) })
        };
        Ok(Self {
            name: url.name(),
            members: url.members().iter().map(member).collect::<Result<_>>()?,
            first: AtomicUsize::new(0),
            user: url.user()?,
        })
    }

    /// Asks one member after the other, from the one that answered last, until one answers; for as
    /// long as an election takes, then the registry is `Unavailable`.
    pub(super) async fn call<T, F, Fut>(&self, repeat: Repeat, ask: F) -> Result<T>
    where
        F: Fn(Client) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, Status>> + Send,
        T: Send,
    {
        let give_up = Instant::now() + ETCD_PATIENCE;
        let within = if repeat == Repeat::Freely { ETCD_TRY } else { ETCD_COMMIT };
        let mut causes = vec![String::new(); self.members.len()];
        loop {
            let first = self.first.load(Ordering::Relaxed);
            for turn in 0..self.members.len() {
                let at = (first + turn) % self.members.len();
                let failed = match self.ask_one(&self.members[at], within, &ask).await {
                    Ok(answer) => {
                        self.first.store(at, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Err(failed) => failed,
                };
                self.first.store((at + 1) % self.members.len(), Ordering::Relaxed);
                if failed.refused {
                    return Err(self.error(&failed.cause));
                }
                if repeat == Repeat::Unsent && !failed.unsent {
                    let (member, cause) = (&self.members[at].name, failed.cause);
                    return Err(self.error(&format!(
                        "{member}: {cause}; whether it has done what was asked is not known"
                    )));
                }
                causes[at] = failed.cause;
                if Instant::now() >= give_up {
                    return Err(self.away(&causes));
                }
            }
            sleep(ETCD_PAUSE).await;
        }
    }

    /// The member that is asked first.
    #[cfg(test)]
    pub(super) fn first(&self) -> usize {
        self.first.load(Ordering::Relaxed)
    }

    async fn ask_one<T, F, Fut>(
        &self,
        member: &Member,
        within: Duration,
        ask: &F,
    ) -> Result<T, Failed>
    where
        F: Fn(Client) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, Status>> + Send,
        T: Send,
    {
        let attempt = async {
            let known = member.client.lock().clone();
            let client = match known {
                Some(client) => client,
                None => self.connect(member).await?,
            };
            ask(client).await.map_err(|status| Failed::new(&status))
        };
        let outcome = timeout(within, attempt).await.unwrap_or_else(|_elapsed| {
            let cause = format!("no answer within {} s", within.as_secs());
            Err(Failed { cause, unsent: false, refused: false })
        });
        if outcome.is_err() {
            *member.client.lock() = None;
        }
        outcome
    }

    async fn connect(&self, member: &Member) -> Result<Client, Failed> {
        let channel = member.endpoint.connect().await.map_err(|error| Failed {
            cause: innermost(&error),
            unsent: true,
            refused: false,
        })?;
        let mut client = Client::new(channel);
        if let Some((name, password)) = &self.user {
            let logged_in = client.log_in(name, password).await;
            logged_in.map_err(|status| Failed { unsent: true, ..Failed::new(&status) })?;
        }
        *member.client.lock() = Some(client.clone());
        Ok(client)
    }

    /// Nobody answers.
    fn away(&self, causes: &[String]) -> Error {
        let said: Vec<_> = self
            .members
            .iter()
            .zip(causes)
            .filter(|(_, cause)| !cause.is_empty())
            .map(|(member, cause)| format!("{}: {cause}", member.name))
            .collect();
        self.error(&format!(
            "no member serves it ({}); most members must run, reach each other, and be reached \
             from here",
            said.join("; ")
        ))
    }

    /// Whatever the cause, the registry is not to be had.
    pub(super) fn error(&self, cause: &str) -> Error {
        Error::new(ErrorKind::Unavailable, format!("registry {}: {cause}", self.name))
    }
}

impl Failed {
    fn new(status: &Status) -> Self {
        let (unsent, refused) = match status.code() {
            // A member without a leader looks at nothing.
            Code::Unavailable => {
                (status.message() == "etcdserver: no leader" || never_left(status), false)
            }
            // The token has expired: the next client logs in anew.
            Code::Unauthenticated => (true, false),
            Code::InvalidArgument
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::Unimplemented => (true, true),
            _other => (false, false),
        };
        Self { cause: cause(status), unsent, refused }
    }
}

/// Whether there was no connection to send the request by.
fn never_left(status: &Status) -> bool {
    chain(status).any(|error| error.is::<tonic::ConnectError>())
}

fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The innermost cause; those around it say `transport error`.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    chain(error).last().map_or_else(String::new, ToString::to_string)
}

/// What went wrong, for people.
pub(super) fn cause(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => innermost(source),
        None => status.message().to_owned(),
    }
}
