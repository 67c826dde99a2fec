//! The NBD server over an in-memory device: real clients, hostile clients, and a model.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod clients;
mod device;
mod hostile;
mod model;
mod rig;
