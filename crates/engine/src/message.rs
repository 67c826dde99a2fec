//! What hosts say to each other: requests and answers, without their encoding on the wire.

use serde::{Deserialize, Serialize};

/// A request to a peer. Bulk bytes travel beside it as the payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Are you there?
    Ping,
}

/// A peer's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// Answer to [`Request::Ping`].
    Pong,
}
