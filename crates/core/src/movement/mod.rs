//! What to fetch, in which order, and how much at once. Pure: requests and answers are passed in,
//! what to ask for is handed out.
//!
//! - [`Planner`]: classes, order, one flight per page, and the bound on what is in flight;
//! - [`Window`]: the measured bandwidth-delay product that bounds it;
//! - [`RunAhead`]: sees that a reader is sequential and says what to get before it asks.

mod flight;
pub mod limits;
mod run_ahead;
mod window;

pub use flight::{Ask, AskId, Class, Outcome, Planner, Token};
pub use run_ahead::RunAhead;
pub use window::{Sent, Window};

#[cfg(test)]
mod tests;
