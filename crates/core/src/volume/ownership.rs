//! Ownership as a pure state machine.
