//! Whose directory it is: the host and cluster that served it first.
//!
//! An identity that is put into another host's directory would make two daemons act as one host,
//! each with volumes that the other thinks are its own.

use crate::output::Failure;
use pannier_stores::cluster::Identity;
use std::io::Write as _;
use std::path::Path;

/// Name of the file in a host's directory.
const ORIGIN: &str = "host";

/// Checks that the identity is the one that the directory was first served with; notes it when it
/// never was.
pub(super) fn check(dir: &Path, identity: &Identity) -> Result<(), Failure> {
    let path = dir.join(ORIGIN);
    let own = format!("host {} of cluster {}", identity.host(), identity.cluster());
    let found = match std::fs::read_to_string(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // A full disk keeps no guest waiting: the next start notes it.
            if let Err(error) = write(dir, &own) {
                let path = path.display();
                tracing::warn!(%path, %error, "whose directory it is is not noted");
            }
            return Ok(());
        }
        Err(error) => return Err(Failure::io(format!("cannot read {}", path.display()), error)),
    };
    let found = found.trim();
    if found == own {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "{}: `identity` is of {own}, and all else there is of {found}; two daemons that act as one \
         host destroy data. Put the directory's own identity back, or join the cluster with a new \
         directory",
        dir.display()
    )))
}

/// The file is there whole or not at all.
fn write(dir: &Path, text: &str) -> std::io::Result<()> {
    let (path, whole) = (dir.join(format!("{ORIGIN}.new")), dir.join(ORIGIN));
    let mut file = std::fs::File::create(&path)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    std::fs::rename(path, whole)?;
    std::fs::File::open(dir)?.sync_all()
}
