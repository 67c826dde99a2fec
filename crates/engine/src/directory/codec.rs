//! Keys and values of the registry: a version byte, then the record in postcard.

use crate::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use pannier_core::ids::{HostId, SiteName, VolumeId};
use pannier_core::record::VolumePath;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of every record written.
const RECORD_VERSION: u8 = 1;

/// Prefix of the keys of sites.
pub(super) const SITES: &str = "site/";
/// Prefix of the keys of hosts.
pub(super) const HOSTS: &str = "host/";
/// Prefix of the keys of hosts' names.
pub(super) const NAMES: &str = "name/";
/// Prefix of the keys of volumes.
pub(super) const VOLUMES: &str = "volume/";
/// Prefix of the keys of paths.
pub(super) const PATHS: &str = "path/";
/// Prefix of the keys of deleted volumes.
pub(super) const DELETED: &str = "deleted/";

pub(super) fn site_key(name: &SiteName) -> String {
    format!("{SITES}{name}")
}

pub(super) fn host_key(id: HostId) -> String {
    format!("{HOSTS}{id}")
}

pub(super) fn name_key(name: &str) -> String {
    format!("{NAMES}{name}")
}

pub(super) fn volume_key(id: VolumeId) -> String {
    format!("{VOLUMES}{id}")
}

/// The path without its leading slash, so that `path/` is the prefix and no slash is doubled.
pub(super) fn path_key(path: &VolumePath) -> String {
    format!("path{path}")
}

pub(super) fn deleted_key(id: VolumeId) -> String {
    format!("{DELETED}{id}")
}

/// A record's bytes as the registry keeps them.
///
/// # Errors
/// `Internal` when the record cannot be encoded, which no record type of ours can cause.
pub fn encode_record<T: Serialize>(record: &T) -> Result<Bytes> {
    let mut bytes = vec![RECORD_VERSION];
    let body = postcard::to_stdvec(record).map_err(|error| {
        Error::new(ErrorKind::Internal, format!("a record cannot be encoded: {error}"))
    })?;
    bytes.extend_from_slice(&body);
    Ok(bytes.into())
}

/// The record in a registry value.
///
/// # Errors
/// `Invalid` for a version that this program does not know, `Corrupt` for bytes that are no record.
pub fn decode_record<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T> {
    let Some((&version, body)) = bytes.split_first() else {
        return Err(Error::new(ErrorKind::Corrupt, format!("registry record `{key}` is empty")));
    };
    if version != RECORD_VERSION {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "registry record `{key}` has version {version}, this program knows \
                 {RECORD_VERSION}; upgrade this host"
            ),
        ));
    }
    postcard::from_bytes(body).map_err(|error| {
        Error::new(ErrorKind::Corrupt, format!("registry record `{key}` does not decode: {error}"))
            .with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_bytes_and_refuse_others() {
        let path = VolumePath::parse("/vms/web").unwrap();
        let bytes = encode_record(&path).unwrap();
        assert_eq!(bytes[0], RECORD_VERSION);
        assert_eq!(decode_record::<VolumePath>("k", &bytes).unwrap(), path);
        let kind = |bytes: &[u8]| decode_record::<VolumePath>("k", bytes).unwrap_err().kind();
        assert_eq!(kind(&[]), ErrorKind::Corrupt);
        assert_eq!(kind(&[2, 0]), ErrorKind::Invalid);
        assert_eq!(kind(&bytes[..3]), ErrorKind::Corrupt);
    }

    #[test]
    fn keys() {
        assert_eq!(path_key(&VolumePath::parse("vms/web").unwrap()), "path/vms/web");
        assert_eq!(host_key(HostId(7)), "host/0000000000000007");
        assert_eq!(site_key(&SiteName("west".into())), "site/west");
    }
}
