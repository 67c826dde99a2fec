//! The model of a volume's ownership: the real machine on three hosts, and everything around it
//! that can go wrong.
//!
//! # Fault model
//! - Messages between hosts, and forwarded requests, are lost, repeated, delayed and reordered at
//!   will: once sent, a message can be delivered any number of times from then on.
//! - The registry applies transactions one by one on the condition of the revision. A transaction
//!   can arrive at any time or never, also after its sender has died; an answer can be late: a host
//!   may be shown any revision that is not older than its daemon. A registry that is away is one
//!   that nothing arrives at.
//! - A daemon dies at any moment (`kill -9`), between any two effects; the write of its state that
//!   was under way has reached the disk or not. What it appended stays (page cache).
//! - A host loses power; then what it appended and did not sync is lost, or not. Its next boot is
//!   another one.
//! - The operator's word is true: a host named in `fenced` is without power, and stays so until the
//!   takeover has ended.
//!
//! # What is checked, in every state
//! At most one host executes requests. No host that answers reads lacks an acknowledged write. A
//! guest is never served from a log that lacks what it was acknowledged. No request of a session is
//! applied twice, none after its operation was acknowledged. Writes come from the one attachment
//! that may write. No (epoch, incarnation) appends twice.

mod check;
mod guests;
mod registry;
mod step;
mod world;

pub use step::{Action, Ownership};
pub use world::{Contracts, Scenario, World};
