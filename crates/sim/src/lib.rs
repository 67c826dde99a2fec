//! Worlds, faults and checkers that attack Pannier's invariants. Nothing of this ships.
//!
//! [`explore`] walks every state of a model; [`ownership`] is the model of a volume's ownership:
//! the real machine of `pannier-core` on three hosts, with a registry, a network and guests around
//! it.

pub mod explore;
pub mod ownership;
