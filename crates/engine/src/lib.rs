//! Pannier's engine: the async shell around the pure core. Volumes on a host, the host cache, the
//! mover; [`port`] has the traits that stores and exports meet it through.

pub mod attachment;
mod boot;
pub mod cache;
mod checkpoint;
pub mod context;
pub mod directory;
pub mod disk;
pub mod error;
pub mod fetch;
pub mod follow;
pub mod forward;
pub mod host;
pub mod hydrate;
pub mod limits;
#[cfg(test)]
mod lines;
pub mod message;
pub mod mover;
pub mod ownership;
pub mod pool;
pub mod port;
mod publish;
mod residency;
pub mod serve;
pub mod status;
mod stored;
mod upload;
pub mod verify;
pub mod volume;
mod worker;
