//! What the tests with real processes share: daemons, an NBD client, a model of what was
//! acknowledged, a load that verifies, the network between two sites, and the programs of others.
//!
//! Every process is ended by its id and every wait is bounded. A line of a daemon's log at WARN or
//! ERROR that the test did not announce fails the test.

pub mod clients;
pub mod etcd;
pub mod history;
pub mod host;
pub mod load;
pub mod model;
pub mod nbd_client;
pub mod nbd_options;
pub mod pair;

/// A number from the environment, so that `cargo xtask soak` can ask for more than CI does.
#[must_use]
pub fn rounds(variable: &str, in_ci: u32) -> u32 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(in_ci)
}
