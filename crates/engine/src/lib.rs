//! Pannier's engine: the async shell around the pure core. Volumes on a host, the host cache, the
//! mover; [`port`] has the traits that stores and exports meet it through.

pub mod directory;
pub mod error;
pub mod host;
pub mod message;
pub mod port;
pub mod status;
