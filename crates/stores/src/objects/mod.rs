//! A site's object store behind [`Objects`]: a directory, or any URL that the `object_store` crate
//! knows.
//!
//! Objects are immutable and create-only. An object under its final key is complete and durable: a
//! directory store writes beside, syncs, and only then names it; an object service does the same
//! on its side.

mod directory;
mod key;
mod url;

#[cfg(test)]
mod tests;

pub use directory::DirectoryObjects;
pub use url::UrlObjects;

use pannier_engine::error::{Error, ErrorKind, Result};
use pannier_engine::port::Objects;
use std::sync::Arc;

/// Opens an object store by location: a path, `file://`, or a URL such as `s3://bucket/prefix`,
/// with credentials from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, ...).
///
/// `file://` is a [`DirectoryObjects`] like a bare path: the crate's own local store does not sync.
///
/// # Errors
/// `Invalid` for a location that is not one, `Unavailable` or `NoSpace` when a directory cannot be
/// made.
pub fn open(location: &str) -> Result<Arc<dyn Objects>> {
    if !location.contains("://") {
        return Ok(Arc::new(DirectoryObjects::open(location)?));
    }
    let url = ::url::Url::parse(location).map_err(|error| {
        Error::new(
            ErrorKind::Invalid,
            format!("object store `{location}`: {error}; write it like `s3://bucket/prefix`"),
        )
    })?;
    if url.scheme() == "file" {
        let path = url.to_file_path().map_err(|()| {
            Error::new(
                ErrorKind::Invalid,
                format!("object store `{location}`: not a local path; write `file:///path`"),
            )
        })?;
        return Ok(Arc::new(DirectoryObjects::open(path)?));
    }
    Ok(Arc::new(UrlObjects::open(&url)?))
}
