//! How the driver executes the machine's effects.

use super::driver::{Driver, Ended, Tools};
use crate::directory::Registered;
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::message::Request;
use crate::port::Class;
use bytes::Bytes;
use pannier_core::ids::{Epoch, HostId, Incarnation, SessionId};
use pannier_core::record::VolumeRecord;
use pannier_core::volume::Position;
use pannier_core::volume::ownership::transaction::{self, Change, Refusal};
use pannier_core::volume::ownership::{Effect, Event, LocalState, Message, Rules, SESSIONS_MAX};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio_util::task::TaskTracker;

/// Executes one effect: what is quick at once, what takes time in a task that reports.
pub(super) fn execute(driver: &mut Driver, effect: Effect) {
    let tools = driver.tools.clone();
    let volume = tools.volume;
    match effect {
        Effect::Persist(state) => driver.spawn_event(persist(tools, *state)),
        Effect::Registry(change) => {
            let base = driver.base.clone();
            driver.tasks.spawn(commit(tools, base, change));
        }
        Effect::Read => {
            driver.tasks.spawn(read(tools));
        }
        Effect::Send { to, message } => send(driver, to, message),
        Effect::Start { epoch, incarnation, at } => {
            let sessions = driver.machine.state().sessions.values().filter(|session| session.open);
            let sessions = sessions.map(|session| session.id).collect();
            driver.tasks.spawn(start(tools, (epoch, incarnation), at, sessions));
        }
        Effect::Stop => driver.spawn_event(stop(tools)),
        Effect::Follow { from } => follow(driver, from),
        Effect::Unfollow => {
            // Catching up follows by itself, and would go on under an owner that has taken over.
            for task in [driver.asking_switch.take(), driver.catching.take()].into_iter().flatten()
            {
                task.abort();
            }
            tools.hands.unfollow(volume);
        }
        Effect::FindEnd => driver.spawn_event(find_end(tools, driver.catching_runs.clone())),
        Effect::CatchUp { from, position } => catch_up(driver, from, position),
        Effect::Route(route) => tools.hands.route(volume, route),
        Effect::SessionOpened { attachment, session, ended } => {
            if let Some(ended) = ended {
                tools.hands.session_ended(volume, ended);
            }
            driver.session_answer(attachment, session, &Ok(()));
        }
        Effect::SessionEnded { attachment, session } => {
            let context = format!(
                "session {} of host {attachment} is over: a newer one is open, or volume {volume} \
                 was taken over since",
                session.0
            );
            let answer = Err(Error::new(ErrorKind::Fenced, context));
            driver.session_answer(attachment, session, &answer);
        }
        Effect::SessionRefused { attachment, session } => {
            refuse_session(driver, attachment, session);
        }
        Effect::WithdrawRight { attachment } => driver.spawn_event(async move {
            tools.hands.withdraw_right(volume, attachment).await;
            Event::RightWithdrawn { attachment }
        }),
        Effect::RightHeld { holder, shared } => {
            tools.hands.right_held(volume, holder, shared);
            driver.right_answer(holder, shared);
        }
        Effect::SetTailAside { end } => {
            let ended = driver.ended_epoch();
            driver.spawn_event(set_tail_aside(tools, ended, end));
        }
        Effect::Done(outcome) => driver.outcome(outcome),
    }
}

fn refuse_session(driver: &mut Driver, attachment: HostId, session: SessionId) {
    let volume = driver.tools.volume;
    let context = format!(
        "volume {volume} is in use on {SESSIONS_MAX} other hosts, the most that there may be; host \
         {attachment} waits until guests on one of them disconnect"
    );
    tracing::warn!(%volume, host = %attachment, "{context}");
    let answer = Err(Error::new(ErrorKind::Unavailable, context));
    driver.session_answer(attachment, session, &answer);
}

async fn persist(tools: Arc<Tools>, state: LocalState) -> Event {
    loop {
        match tools.hands.persist(state.clone()).await {
            Ok(()) => return Event::Persisted,
            Err(error) => {
                tracing::error!(volume = %tools.volume, %error,
                    "the ownership state cannot be written; the volume waits");
                tokio::time::sleep(limits::OWNERSHIP_RETRY).await;
            }
        }
    }
}

async fn start(
    tools: Arc<Tools>,
    (epoch, incarnation): (Epoch, Incarnation),
    at: Option<Position>,
    sessions: BTreeSet<SessionId>,
) -> Ended {
    match tools.hands.start(tools.volume, epoch, incarnation, at, sessions).await {
        Ok(()) => Ended::Event(Event::Started),
        Err(error) => Ended::NotStarted(error),
    }
}

async fn stop(tools: Arc<Tools>) -> Event {
    match tools.hands.stop(tools.volume).await {
        Ok((position, size_bytes)) => Event::Stopped { position, size_bytes },
        Err(error) => {
            tracing::error!(
                volume = %tools.volume, %error,
                "the volume cannot be handed over; reads go on"
            );
            Event::StopFailed
        }
    }
}

async fn find_end(tools: Arc<Tools>, catching: TaskTracker) -> Event {
    // An aborted task ends where it waits next, not where it is.
    catching.close();
    catching.wait().await;
    catching.reopen();
    loop {
        match tools.hands.end_following(tools.volume).await {
            Ok(position) => return Event::LogEnds { position },
            Err(error) => {
                tracing::error!(volume = %tools.volume, %error, "where the log ends is not known");
                tokio::time::sleep(limits::OWNERSHIP_RETRY).await;
            }
        }
    }
}

async fn set_tail_aside(tools: Arc<Tools>, ended: Epoch, end: Option<Position>) -> Event {
    while let Err(error) = tools.hands.set_tail_aside(tools.volume, ended, end).await {
        tracing::error!(volume = %tools.volume, %error, "the stale tail cannot be set aside");
        tokio::time::sleep(limits::OWNERSHIP_RETRY).await;
    }
    Event::TailAside
}

/// What is told when the registry does not answer.
fn away(tools: &Tools, error: &Error) -> Ended {
    tracing::debug!(volume = %tools.volume, %error, "the registry does not answer");
    Ended::Registry { found: None, end: Event::RegistryAway }
}

async fn read(tools: Arc<Tools>) -> Ended {
    match tools.directory.fresh_volume(tools.volume).await {
        Ok(found) => Ended::Registry { found: Some(Box::new(found)), end: Event::Committed },
        Err(error) => away(&tools, &error),
    }
}

/// One transaction, on the condition that the record is still the one that the machine saw.
async fn commit(
    tools: Arc<Tools>,
    base: Option<Registered<VolumeRecord>>,
    change: Change,
) -> Ended {
    let mut refused: Option<Refusal> = None;
    let updated = tools
        .directory
        .update_volume(tools.volume, |record| -> Result<()> {
            if base.as_ref().is_none_or(|base| base.record != *record) {
                return Err(Error::new(ErrorKind::Invalid, "the record has changed meanwhile"));
            }
            match transaction::apply(record, &change, &Rules::ALL) {
                Ok(next) => *record = next,
                Err(refusal) => {
                    let context = refusal.to_string();
                    refused = Some(refusal);
                    return Err(Error::new(ErrorKind::Invalid, context));
                }
            }
            Ok(())
        })
        .await;
    match (updated, refused) {
        (Ok(((), found)), _) => {
            Ended::Registry { found: Some(Box::new(found)), end: Event::Committed }
        }
        (Err(_), Some(refusal)) => {
            let found = tools.directory.volume(tools.volume).map(Box::new);
            Ended::Registry { found, end: Event::Refused(refusal) }
        }
        (Err(error), None) if error.kind() == ErrorKind::Invalid => {
            let found = tools.directory.volume(tools.volume).map(Box::new);
            Ended::Registry { found, end: Event::Committed }
        }
        (Err(error), None) => away(&tools, &error),
    }
}

fn send(driver: &mut Driver, to: HostId, message: Message) {
    let tools = driver.tools.clone();
    let is_grant = matches!(message, Message::Grant(_));
    if is_grant && std::mem::replace(&mut driver.sending_grant, true) {
        return;
    }
    driver.tasks.spawn(async move {
        let payload =
            if is_grant { tools.hands.tail(tools.volume, to).await } else { Bytes::new() };
        call(&tools, to, &message, payload).await;
        if is_grant { Ended::GrantSent } else { Ended::Quiet }
    });
}

/// Sends a message once; it may get lost.
async fn call(tools: &Tools, to: HostId, message: &Message, payload: Bytes) {
    let Ok(message) = encode(message) else { return };
    let request = Request::Ownership { volume: tools.volume, message };
    let call = tools.peers.call(to, Class::Control, request, payload);
    match tokio::time::timeout(limits::OWNERSHIP_CALL, call).await {
        Ok(Ok(_taken)) => {}
        Ok(Err(error)) => {
            tracing::debug!(volume = %tools.volume, host = %to, %error, "message not delivered");
        }
        Err(_elapsed) => {
            tracing::debug!(volume = %tools.volume, host = %to, "message not answered in time");
        }
    }
}

/// A message's bytes: a version byte, then postcard.
pub(super) fn encode(message: &Message) -> Result<Vec<u8>> {
    postcard::to_extend(message, vec![MESSAGE_VERSION]).map_err(|error| {
        Error::new(ErrorKind::Internal, "an ownership message does not encode").with_source(error)
    })
}

/// Reads [`encode`]'s bytes.
pub(super) fn decode(bytes: &[u8]) -> Result<Message> {
    let invalid = |cause: &str| {
        Error::new(ErrorKind::Invalid, format!("an ownership message is not one: {cause}"))
    };
    match bytes.split_first() {
        Some((&MESSAGE_VERSION, body)) => match postcard::take_from_bytes(body) {
            Ok((message, [])) => Ok(message),
            Ok(_longer) => Err(invalid("it has bytes behind its end")),
            Err(_cause) => Err(invalid("it does not decode")),
        },
        Some((version, _)) => Err(invalid(&format!("version {version}, this host speaks 1"))),
        None => Err(invalid("it is empty")),
    }
}

const MESSAGE_VERSION: u8 = 1;

fn follow(driver: &mut Driver, from: HostId) {
    let tools = driver.tools.clone();
    tools.hands.follow(tools.volume, from);
    if let Some(task) = driver.asking_switch.take() {
        task.abort();
    }
    let Some(transit) = driver.machine.transit().filter(|t| t.to == tools.me) else { return };
    if transit.waits_for_write {
        return;
    }
    let message = Message::AskSwitch { epoch: transit.epoch };
    let task = driver.tasks.spawn(async move {
        tools.hands.caught_up(tools.volume).await;
        // Until following ends: the giver may restart and forget that it was asked.
        loop {
            call(&tools, from, &message, Bytes::new()).await;
            tokio::time::sleep(limits::OWNERSHIP_ASK_SWITCH).await;
        }
    });
    driver.asking_switch = Some(task);
}

fn catch_up(driver: &mut Driver, from: HostId, position: Position) {
    let tools = driver.tools.clone();
    if let Some(task) = driver.catching.take() {
        task.abort();
    }
    let run = driver.catching_runs.token();
    let tail = driver.tail.take().filter(|(at, _)| *at == position).map(|(_, tail)| tail);
    let task = driver.tasks.spawn(async move {
        let _run = run;
        let mut tail = tail.unwrap_or_default();
        loop {
            let bytes = std::mem::take(&mut tail);
            match tools.hands.catch_up(tools.volume, from, position, bytes).await {
                Ok(()) => return Ended::Event(Event::CaughtUp { position }),
                Err(error) => {
                    tracing::warn!(volume = %tools.volume, host = %from, %error,
                        "the log's end cannot be had yet; the handover waits for it");
                    tokio::time::sleep(limits::OWNERSHIP_RETRY).await;
                }
            }
        }
    });
    driver.catching = Some(task);
}
