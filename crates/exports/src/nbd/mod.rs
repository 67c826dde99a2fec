//! The NBD export: fixed newstyle handshake and transmission after
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.
//!
//! [`Server`] serves every device of a host by name on listening sockets that it is given.
//! [`codec`] is the protocol's bytes without I/O. A request is executed inline on its connection's
//! task when the device need not wait for it, and queued otherwise; see `connection`.
//!
//! Invariant: no client makes the server allocate by claiming something: receive and reply buffers
//! are fixed, what is queued is bounded per connection and per server, see [`limits`].

pub mod client;
pub mod codec;
mod connection;
mod errno;
mod handshake;
pub mod limits;
mod server;
mod socket;

pub use server::{Listener, Server};
