//! Pannier's exports: how guests reach a volume. [`nbd`] serves every volume of a host by name over
//! unix sockets and TCP.
//!
//! An export knows a volume only as a [`pannier_engine::port::BlockDevice`], by static dispatch:
//! the path from a guest's request to the device has no boxed future and no `dyn` in it.

pub mod nbd;
