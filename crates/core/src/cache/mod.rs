//! Cache policy: which line leaves next.
