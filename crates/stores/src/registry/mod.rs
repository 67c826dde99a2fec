//! The registry: the small strongly consistent store, embedded in one host ([`Embedded`]) and
//! served by it to the others ([`Service`], [`Remote`]).

mod embedded;
mod message;
mod remote;
mod service;

#[cfg(test)]
mod tests;

pub use embedded::Embedded;
pub use remote::Remote;
pub use service::Service;
