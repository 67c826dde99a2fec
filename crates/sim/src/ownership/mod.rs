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
//! What guests notice: a guest that reads now, at whichever host serves its session, sees every
//! acknowledged write and all that it was acknowledged itself. No request of a session is executed
//! twice, none after its operation was acknowledged. Two guests are not acknowledged writes without
//! the right having passed. An address of the log does not mean another write once its first one
//! was acknowledged. And, unless [`Scenario::guests_only`], what leads there: at most one host
//! executes requests, and has every acknowledged write; writes come from the one attachment that
//! may write; no (epoch, incarnation) starts twice.
//!
//! What a host does with requests follows from the machine's effects and its open sessions only, as
//! in the engine. Stricter than there, a host's own guest and its reads belong to a session.

mod check;
mod guests;
mod registry;
mod step;
mod world;

pub use step::{Action, Ownership};
pub use world::{Contracts, Scenario, World};
