//! Pannier's engine: the async shell around the pure core. Volumes on a host, the host cache, the
//! mover; [`port`] has the traits that stores and exports meet it through.

pub mod cache;
pub mod context;
pub mod directory;
pub mod disk;
pub mod error;
pub mod host;
pub mod limits;
pub mod message;
pub mod ownership;
pub mod pool;
pub mod port;
pub mod status;
pub mod volume;
