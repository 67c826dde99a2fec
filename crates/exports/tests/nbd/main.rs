//! The NBD server over an in-memory device: real clients, hostile clients, and a model.

mod clients;
mod device;
mod hostile;
mod model;
mod rig;
