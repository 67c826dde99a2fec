//! A WAN in user space: UDP datagrams pass a [`Link`] of given delay, rate, queue and loss, without
//! root and without changing the host's network. For the demo, end-to-end tests and benches.
//!
//! Two sites A and B are joined by two links, one per direction, and two relays that share them:
//! B's relay, through which everybody reaches B, and A's.
//!
//! ```text
//! A ---> [relay of B] === link A to B ===> B          replies come back over link B to A
//! A <=== link B to A === [relay of A] <--- B          replies come back over link A to B
//! ```
//!
//! Timing is that of dedicated threads: a datagram leaves within about 0.1 ms of its time on an
//! idle machine. Order is kept.

mod limits;
mod link;
mod relay;

pub use link::{Link, LinkConfig, LinkStats};
pub use relay::{Relay, Wan};
