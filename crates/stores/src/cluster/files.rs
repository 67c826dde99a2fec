//! The identity directory: small files, replaced atomically and durably, secrets with mode 0600.

use pannier_engine::error::{Error, ErrorKind, Result};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Private key of the host, PEM.
pub(super) const HOST_KEY: &str = "host.key";
/// Certificate of the host, PEM.
pub(super) const HOST_CERTIFICATE: &str = "host.crt";
/// Private key of the authority, PEM; on the first host only.
pub(super) const CA_KEY: &str = "ca.key";
/// Certificate of the authority, PEM.
pub(super) const CA_CERTIFICATE: &str = "ca.crt";
/// Key of all hashes, 64 hex digits.
pub(super) const HASH_KEY: &str = "hash.key";
/// Where the registry is.
pub(super) const REGISTRY: &str = "registry";
/// Directory of join tokens; on the first host only.
pub(super) const TOKENS: &str = "tokens";

/// Makes a directory that only its owner enters, and those above it.
pub(super) fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| Error::io(format!("make {}", path.display()), error))?;
    sync_parent(path)
}

/// Writes a file readable by its owner only, atomically and durably.
pub(super) fn write(directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = directory.join(name);
    let fresh = directory.join(format!(".{name}.{:016x}", rand::random::<u64>()));
    let fail = |error| Error::io(format!("write {}", path.display()), error);
    let outcome = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)?;
        File::open(directory)?.sync_all()
    })();
    outcome.map_err(|error| {
        drop(std::fs::remove_file(&fresh));
        fail(error)
    })
}

/// Makes a rename or a creation of `path` durable.
pub(super) fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))
        .and_then(|directory| directory.sync_all())
        .map_err(|error| Error::io(format!("sync the directory of {}", path.display()), error))
}

/// Reads a text file.
pub(super) fn read(directory: &Path, name: &str) -> Result<String> {
    let path = directory.join(name);
    std::fs::read_to_string(&path)
        .map_err(|error| Error::io(format!("read {}", path.display()), error))
}

/// Reads a secret, which nobody but its owner may be able to read.
pub(crate) fn read_secret(directory: &Path, name: &str) -> Result<String> {
    let path = directory.join(name);
    let mode = std::fs::metadata(&path)
        .map_err(|error| Error::io(format!("read {}", path.display()), error))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "{}: others than its owner can read this secret (mode {:04o}); \
                 if nobody has, `chmod 600` it",
                path.display(),
                mode & 0o7777
            ),
        ));
    }
    read(directory, name)
}
