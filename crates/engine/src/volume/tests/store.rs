//! Storing, evicting, checkpoints, followers.
