//! The cluster's certificate authority, the hosts' identities, and how a host joins.
//!
//! [`init`] makes the authority and the first host. The authority's key never leaves that host.
//! A [`Token`] from it lets one other host [`join`]: the token carries the fingerprint of the
//! authority's certificate, so that the joining host knows whom it talks to, and a secret, so that
//! the first host knows who may join.

mod authority;
mod files;
mod identity;
mod join;
mod token;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use authority::init;
pub(crate) use files::read_secret;
pub use identity::Identity;
pub(crate) use identity::{certified_host, fingerprint};
pub use join::{JoinService, join};
pub use token::{Token, TokenBook};

pub(crate) use authority::{host_name, parse_host_name};
