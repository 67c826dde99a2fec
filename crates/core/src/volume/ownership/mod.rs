//! Ownership of one volume, as one host sees it: a pure state machine.
//!
//! A host is owner, follower, giver or taker of a transit, has granted, or is fenced. What must
//! survive a crash is [`LocalState`]; the machine hands it out to be made durable and acts on it
//! only then. The registry's record is changed by the pure functions in [`transaction`].

mod attach;
mod giver;
mod machine;
mod message;
mod rules;
mod state;
mod taker;
pub mod transaction;

pub use machine::Machine;
pub use message::{Command, Effect, Event, Grant, GrantAnswer, Message, Outcome, Route};
pub use rules::Rules;
pub use state::{
    BootId, LocalState, Right, Role, SESSIONS_MAX, STATE_BYTES_MAX, Session, Sessions, StateError,
};

#[cfg(test)]
mod tests;
