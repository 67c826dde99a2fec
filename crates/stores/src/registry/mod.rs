//! The registry: the small strongly consistent store. Either embedded in one host ([`Embedded`])
//! and served by it to the others ([`Service`], [`Remote`]), or in etcd ([`Etcd`]). [`Place`] says
//! which, and [`open`] opens it; nobody else tells the sorts apart.

mod embedded;
mod etcd;
mod message;
mod place;
mod remote;
mod service;

#[cfg(test)]
mod tests;

pub use embedded::Embedded;
pub use etcd::{Etcd, EtcdUrl};
pub use place::{Place, open};
pub use remote::Remote;
pub use service::Service;
