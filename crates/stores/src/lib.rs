//! Pannier's stores: what the engine reaches through its ports.
//!
//! - [`objects`]: a site's object store, a directory or any URL of the `object_store` crate.
//! - [`registry`]: the small strongly consistent store, embedded in one host and served to others.
//! - [`peer`]: the other hosts of the cluster, over QUIC with mutual TLS.
//! - [`cluster`]: the cluster's certificate authority, the hosts' identities, and how a host joins.

pub mod cluster;
pub mod limits;
pub mod objects;
pub mod peer;
pub mod registry;
