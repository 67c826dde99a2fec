//! An object store behind a URL, by the `object_store` crate: S3, GCS, Azure, WebDAV, memory.

use super::directory::out_of_range;
use super::key;
use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use pannier_engine::error::{Error, ErrorKind, Result};
use pannier_engine::port::Objects;
use std::fmt;
use std::ops::Range;
use url::Url;

/// An object store behind a URL.
pub struct UrlObjects {
    store: Box<dyn ObjectStore>,
    prefix: Path,
    /// The URL without credentials, for messages.
    name: String,
}

impl fmt::Debug for UrlObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UrlObjects({})", self.name)
    }
}

impl UrlObjects {
    /// Opens the store at `url`; options and credentials come from the environment under the names
    /// that the `object_store` crate documents.
    ///
    /// # Errors
    /// `Invalid` when the URL is not of a known scheme or its options do not fit.
    pub fn open(url: &Url) -> Result<Self> {
        let name = format!("{}://{}{}", url.scheme(), url.host_str().unwrap_or(""), url.path());
        let environment = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        // The first of the process stays; whoever it was, it is this one.
        rustls::crypto::ring::default_provider().install_default().ok();
        let (store, prefix) = object_store::parse_url_opts(url, environment).map_err(|error| {
            Error::new(
                ErrorKind::Invalid,
                format!("object store `{name}`: {error}; check the URL and its options"),
            )
            .with_source(error)
        })?;
        Ok(Self { store, prefix, name })
    }

    fn path(&self, key: &str) -> Result<Path> {
        key::check(key)?;
        Ok(self.prefix.parts().chain(Path::from(key).parts()).collect())
    }

    fn error(&self, what: &str, key: &str, error: object_store::Error) -> Error {
        let (kind, way_out) = kind_of(&error);
        Error::new(kind, format!("object `{key}`: {what} in {}: {error}{way_out}", self.name))
            .with_source(error)
    }

    async fn size_at(&self, key: &str, path: &Path) -> Result<Option<u64>> {
        match self.store.head(path).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error("look up", key, error)),
        }
    }

    /// What a put that found the key taken answers.
    async fn accept_existing(&self, key: &str, path: &Path, length: u64) -> Result<()> {
        match self.size_at(key, path).await? {
            Some(found) if found == length => Ok(()),
            Some(found) => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "object `{key}`: there are {found} bytes in {}, {length} were to be stored; \
                     delete it to store it again",
                    self.name
                ),
            )),
            None => Err(Error::new(
                ErrorKind::Unavailable,
                format!("object `{key}`: it came and went in {} while stored; retry", self.name),
            )),
        }
    }
}

#[async_trait]
impl Objects for UrlObjects {
    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        let path = self.path(key)?;
        let length = bytes.len() as u64;
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(&path, PutPayload::from(bytes.clone()), create).await {
            Ok(_done) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => {
                self.accept_existing(key, &path, length).await
            }
            // A service without conditional puts: keys carry the hash of their content, so whoever
            // comes between the look and the put writes the same bytes.
            Err(
                object_store::Error::NotImplemented { .. }
                | object_store::Error::NotSupported { .. },
            ) => match self.size_at(key, &path).await? {
                Some(_found) => self.accept_existing(key, &path, length).await,
                None => match self.store.put(&path, PutPayload::from(bytes)).await {
                    Ok(_done) => Ok(()),
                    Err(error) => Err(self.error("store", key, error)),
                },
            },
            Err(error) => Err(self.error("store", key, error)),
        }
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        let path = self.path(key)?;
        let found = self.store.get(&path).await.map_err(|error| self.error("read", key, error))?;
        found.bytes().await.map_err(|error| self.error("read", key, error))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let path = self.path(key)?;
        if range.is_empty() {
            let size = self.size_at(key, &path).await?;
            return match size {
                Some(size) if range.start <= size && range.start == range.end => Ok(Bytes::new()),
                Some(size) => Err(out_of_range(key, &range, size)),
                None => Err(Error::new(
                    ErrorKind::NotFound,
                    format!("object `{key}`: not in {}", self.name),
                )),
            };
        }
        let outcome = self.store.get_range(&path, range.clone()).await;
        match outcome {
            Ok(bytes) if bytes.len() as u64 == range.end - range.start => Ok(bytes),
            // Services clip a range at the end of the object, or refuse it: say what is wrong.
            outcome => match self.size_at(key, &path).await? {
                Some(size) if range.end > size => Err(out_of_range(key, &range, size)),
                _size => match outcome {
                    Ok(_clipped) => Err(Error::new(
                        ErrorKind::Unavailable,
                        format!("object `{key}`: {} sent too few bytes; retry", self.name),
                    )),
                    Err(error) => Err(self.error("read", key, error)),
                },
            },
        }
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        let path = self.path(key)?;
        self.size_at(key, &path).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        match self.store.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.error("delete", key, error)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        // The crate lists whole parts only; the rest of the prefix is matched here.
        let (above, _rest) = prefix.rsplit_once('/').unwrap_or(("", prefix));
        let under = if above.is_empty() { self.prefix.clone() } else { self.path(above)? };
        let skip = self.prefix.parts().count();
        let mut keys: Vec<String> = self
            .store
            .list(Some(&under))
            .map_ok(|meta| meta.location.parts().skip(skip).collect::<Path>().to_string())
            .try_filter(|key| futures::future::ready(key.starts_with(prefix)))
            .try_collect()
            .await
            .map_err(|error| self.error("list", prefix, error))?;
        keys.sort_unstable();
        Ok(keys)
    }
}

/// The kind of a store's error, and a way out where there is one.
fn kind_of(error: &object_store::Error) -> (ErrorKind, &'static str) {
    use object_store::Error as E;
    if is_full(error) {
        return (ErrorKind::NoSpace, "; free space or enlarge it");
    }
    match error {
        E::NotFound { .. } => (ErrorKind::NotFound, ""),
        E::InvalidPath { .. } => (ErrorKind::Invalid, ""),
        E::NotSupported { .. } | E::NotImplemented { .. } | E::UnknownConfigurationKey { .. } => {
            (ErrorKind::Invalid, "; use another kind of store")
        }
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            (ErrorKind::Unavailable, "; check the credentials in the environment")
        }
        // `Error` may grow; what is not known may be over when it is tried again.
        _later => (ErrorKind::Unavailable, ""),
    }
}

fn is_full(error: &object_store::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(
                io.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            )
        {
            return true;
        }
        next = error.source();
    }
    false
}
