//! The rules of a volume: ownership, sessions, handover.

pub mod ownership;
mod position;
pub mod session;

pub use position::Position;
