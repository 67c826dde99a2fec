//! The rules of a volume: ownership, order, handover.

pub mod order;
pub mod ownership;
mod position;
pub mod session;

pub use position::Position;
