//! The NBD export: fixed newstyle handshake and transmission after
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

mod server;

pub use server::{Listener, Server};
