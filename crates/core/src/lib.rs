//! Pannier's pure core: what is decided, without doing it.
//!
//! No `async`, no clock, no random numbers, no threads, no file system and no network live here:
//! time and events are passed in, effects are handed out. Every machine in this crate can therefore
//! be explored, simulated and replayed by plain calls.
#![forbid(unsafe_code)]
#![warn(clippy::wildcard_enum_match_arm)]

pub mod cache;
pub mod error;
pub mod format;
pub mod ids;
pub mod map;
pub mod movement;
pub mod record;
pub mod units;
pub mod volume;
