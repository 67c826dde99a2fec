//! One daemon per directory: a lock that ends with the process.

use crate::output::Failure;
use pannier_engine::error::ErrorKind;
use rustix::fs::FlockOperation;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// Name of the lock file in a host's directory.
const LOCK: &str = "lock";

/// How long the kernel may take to let go of what a daemon held that was killed.
const LEAVING_MAX: Duration = Duration::from_secs(1);

/// Held as long as the daemon lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Locks a host's directory for this process.
pub(crate) fn acquire(dir: &Path) -> Result<Lock, Failure> {
    let path = dir.join(LOCK);
    let fail = |error| Failure::io(format!("cannot lock {}", path.display()), error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(fail)?;
    let began = Instant::now();
    while let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(fail(error.into()));
        }
        if began.elapsed() < LEAVING_MAX {
            std::thread::sleep(LEAVING_MAX / 50);
            continue;
        }
        let mut holder = String::new();
        drop(file.read_to_string(&mut holder));
        let holder = holder.trim();
        let process =
            if holder.is_empty() { String::new() } else { format!(" (process {holder})") };
        return Err(Failure::new(
            ErrorKind::Unavailable,
            format!("another daemon{process} serves {} already; stop it first", dir.display()),
        ));
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(fail)?;
    Ok(Lock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let lock = acquire(dir.path()).unwrap();
        let failure = acquire(dir.path()).unwrap_err();
        assert!(failure.0.message.contains(&std::process::id().to_string()), "{failure:?}");
        drop(lock);
        acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_daemon_that_is_leaving_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let lock = acquire(dir.path()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(LEAVING_MAX / 5);
                drop(lock);
            });
            acquire(dir.path()).unwrap();
        });
    }
}
