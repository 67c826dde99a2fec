//! What a registry's clients say to its host, by postcard.

use pannier_engine::error::{Error, ErrorKind, Result};
use pannier_engine::port::{Revision, Transaction, Versioned};
use serde::{Deserialize, Serialize};

/// A question to the registry's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ask {
    /// One key's value.
    Get { key: String },
    /// A page of the keys that start with `prefix` and sort after `after`.
    List { prefix: String, after: Option<String> },
    /// A transaction.
    Commit { expect: Vec<(String, u64)>, changes: Vec<(String, Option<Vec<u8>>)> },
    /// Wait for what changed after a revision.
    Changes { after: u64 },
}

/// A value with its revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamped {
    pub(super) revision: u64,
    pub(super) value: Vec<u8>,
}

/// The host's answer; entries travel in the payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// To [`Ask::Get`].
    Value(Option<Stamped>),
    /// To [`Ask::List`]; the payload is `Vec<(String, Stamped)>`.
    Page { revision: u64, last: bool },
    /// To [`Ask::Commit`]; `None` is a conflict.
    Committed(Option<u64>),
    /// To [`Ask::Changes`]; the payload is `Vec<(String, Option<Stamped>)>`.
    News { through: u64 },
    /// To [`Ask::Changes`]: history or the changes are more than an answer holds; list everything.
    TooFar,
}

impl From<Versioned> for Stamped {
    fn from(versioned: Versioned) -> Self {
        Self { revision: versioned.revision.0, value: versioned.value.into() }
    }
}

impl From<Stamped> for Versioned {
    fn from(stamped: Stamped) -> Self {
        Self { revision: Revision(stamped.revision), value: stamped.value.into() }
    }
}

impl From<Transaction> for Ask {
    fn from(transaction: Transaction) -> Self {
        let expect = transaction.expect.into_iter().map(|(key, at)| (key, at.0)).collect();
        let changes = transaction
            .changes
            .into_iter()
            .map(|change| (change.key, change.value.map(Vec::from)))
            .collect();
        Self::Commit { expect, changes }
    }
}

/// Encodes a message of this module.
pub(super) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>> {
    postcard::to_stdvec(message).map_err(|error| {
        Error::new(ErrorKind::Internal, format!("registry message: {error}")).with_source(error)
    })
}

/// Decodes a message of this module.
pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T> {
    postcard::from_bytes(bytes).map_err(|error| {
        Error::new(
            ErrorKind::Invalid,
            format!("registry message: {error}; are both hosts of the same version?"),
        )
        .with_source(error)
    })
}
