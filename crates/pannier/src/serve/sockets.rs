//! The listening sockets: inherited by descriptor (socket activation, a supervising parent), or
//! bound here.
//!
//! Inherited ones follow `sd_listen_fds(3)`: `LISTEN_FDS` descriptors from 3 on, named in
//! `LISTEN_FDNAMES` (`nbd`, `api`), for the process `LISTEN_PID`. A parent that is not an init
//! system may leave `LISTEN_PID` out.

use crate::client::API_SOCKET;
use crate::config::Config;
use crate::output::Failure;
use pannier_engine::error::ErrorKind;
use pannier_exports::nbd::Listener;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Name of the NBD socket in a host's directory.
const NBD_SOCKET: &str = "nbd.sock";

/// First inherited descriptor.
const FIRST_FD: RawFd = 3;

/// What our own supervisor passes: `api:7,nbd:8`, names and descriptors.
pub(super) const PASSED: &str = "PANNIER_SOCKETS";

/// Longest path of a unix socket in bytes (`sun_path`, less its end).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The sockets of a daemon.
pub(crate) struct Sockets {
    /// NBD: the unix socket, and TCP ones.
    pub(crate) nbd: Vec<Listener>,
    /// The API.
    pub(crate) api: UnixListener,
    /// Where the NBD unix socket is, for clients.
    pub(crate) nbd_path: PathBuf,
    /// The first TCP address of NBD.
    pub(crate) nbd_address: Option<String>,
    /// Sockets that we have bound ourselves: removed at the end.
    pub(crate) bound: Vec<PathBuf>,
}

/// Inherited descriptors by name; unnamed ones are told by what they are bound to.
pub(crate) type Inherited = BTreeMap<String, Vec<OwnedFd>>;

/// Takes the inherited descriptors out of the environment. To be called once, before threads exist
/// and before anything else is opened.
pub(crate) fn inherited() -> Result<Inherited, Failure> {
    let variable = |name: &str| std::env::var(name).ok();
    let mut numbers = listen_fds(
        variable("LISTEN_PID").as_deref(),
        variable("LISTEN_FDS").as_deref(),
        variable("LISTEN_FDNAMES").as_deref(),
        std::process::id(),
    )?;
    numbers.extend(variable(PASSED).as_deref().map_or_else(|| Ok(Vec::new()), passed)?);
    let mut found = Inherited::new();
    for (name, fd) in numbers {
        // SAFETY: the parent says that these descriptors are open and ours; nothing else in this
        // process has taken them yet, and each is taken once.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).map_err(|error| {
            Failure::io(format!("inherited descriptor `{name}` is not open"), error.into())
        })?;
        found.entry(name).or_default().push(fd);
    }
    Ok(found)
}

/// The names and numbers of inherited descriptors.
fn listen_fds(
    pid: Option<&str>,
    count: Option<&str>,
    names: Option<&str>,
    own_pid: u32,
) -> Result<Vec<(String, RawFd)>, Failure> {
    let Some(count) = count else { return Ok(Vec::new()) };
    if pid.is_some_and(|pid| pid.parse() != Ok(own_pid)) {
        // Meant for another process, from which we inherited the environment only.
        return Ok(Vec::new());
    }
    let count: RawFd =
        count.parse().ok().filter(|count| (0..=64).contains(count)).ok_or_else(|| {
            Failure::invalid(format!("LISTEN_FDS is `{count}`, not a small number"))
        })?;
    let names: Vec<&str> = names.map_or_else(Vec::new, |names| names.split(':').collect());
    (0..count)
        .map(|index| {
            let name = names.get(index as usize).copied().unwrap_or_default();
            match name.trim_end_matches(".socket") {
                name @ ("nbd" | "api") => Ok((name.to_owned(), FIRST_FD + index)),
                name if name.ends_with("nbd") => Ok(("nbd".to_owned(), FIRST_FD + index)),
                name if name.ends_with("api") => Ok(("api".to_owned(), FIRST_FD + index)),
                _ => Err(Failure::invalid(format!(
                    "inherited descriptor {} has the name `{name}`; name it `nbd` or `api` \
                     (FileDescriptorName= in the socket unit, LISTEN_FDNAMES)",
                    FIRST_FD + index
                ))),
            }
        })
        .collect()
}

/// The descriptors that our own supervisor passes.
fn passed(text: &str) -> Result<Vec<(String, RawFd)>, Failure> {
    let pair = |pair: &str| {
        let (name, fd) = pair.split_once(':')?;
        Some((name.to_owned(), fd.parse().ok().filter(|fd| *fd >= FIRST_FD)?))
    };
    let all: Option<Vec<_>> = text.split(',').map(pair).collect();
    all.ok_or_else(|| Failure::invalid(format!("{PASSED} is `{text}`, not name:number,...")))
}

/// The daemon's sockets: inherited ones where there are any, else bound here. The caller holds the
/// directory's lock, so a socket that is there already is a leftover.
pub(crate) fn open(
    dir: &Path,
    config: &Config,
    mut inherited: Inherited,
) -> Result<Sockets, Failure> {
    let nbd_path = config.nbd_socket.clone().unwrap_or_else(|| dir.join(NBD_SOCKET));
    let api_path = config.api_socket.clone().unwrap_or_else(|| dir.join(API_SOCKET));
    let mut bound = Vec::new();
    let api = match inherited.remove("api").and_then(|mut all| all.pop()) {
        Some(fd) => UnixListener::from(fd),
        None => {
            let api = bind(&api_path)?;
            bound.push(api_path);
            api
        }
    };
    let mut sockets = Sockets { nbd: Vec::new(), api, nbd_path, nbd_address: None, bound };
    let mut inherited_unix = false;
    for fd in inherited.remove("nbd").unwrap_or_default() {
        let address = rustix::net::getsockname(fd.as_fd())
            .map_err(|error| Failure::io("the inherited descriptor `nbd`", error.into()))?;
        if address.address_family() == rustix::net::AddressFamily::UNIX {
            let listener = UnixListener::from(fd);
            if let Some(path) = local_path(&listener) {
                sockets.nbd_path = path;
            }
            sockets.nbd.push(Listener::Unix(listener));
            inherited_unix = true;
        } else {
            let listener = TcpListener::from(fd);
            sockets.nbd_address = listener.local_addr().ok().map(|address| address.to_string());
            sockets.nbd.push(Listener::Tcp(listener));
        }
    }
    if !inherited_unix {
        sockets.nbd.push(Listener::Unix(bind(&sockets.nbd_path)?));
        sockets.bound.push(sockets.nbd_path.clone());
    }
    if let (Some(address), None) = (&config.nbd_listen, &sockets.nbd_address) {
        let listener = TcpListener::bind(address).map_err(|error| {
            Failure::io(format!("cannot listen for NBD on {address} (nbd_listen)"), error)
        })?;
        sockets.nbd_address = listener.local_addr().ok().map(|address| address.to_string());
        sockets.nbd.push(Listener::Tcp(listener));
    }
    Ok(sockets)
}

fn local_path(listener: &UnixListener) -> Option<PathBuf> {
    listener.local_addr().ok()?.as_pathname().map(Path::to_owned)
}

/// Binds a unix socket, over a leftover that nobody answers on.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, Failure> {
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(Failure::invalid(format!(
            "{} is longer than the {SOCKET_PATH_BYTES_MAX} bytes that a unix socket's path may \
             have; name shorter ones with `nbd_socket` and `api_socket` in pannier.toml",
            path.display()
        )));
    }
    if path.exists() {
        if UnixStream::connect(path).is_ok() {
            return Err(Failure::new(
                ErrorKind::Unavailable,
                format!("{} is in use by another process; stop that one first", path.display()),
            ));
        }
        std::fs::remove_file(path)
            .map_err(|error| Failure::io(format!("cannot replace {}", path.display()), error))?;
    }
    UnixListener::bind(path)
        .map_err(|error| Failure::io(format!("cannot listen on {}", path.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_by_name() {
        let fds = |pid, count, names| listen_fds(pid, count, names, 42);
        assert_eq!(fds(None, None, None).unwrap(), []);
        let both = [("nbd".to_owned(), 3), ("api".to_owned(), 4)];
        assert_eq!(fds(None, Some("2"), Some("nbd:api")).unwrap(), both);
        assert_eq!(fds(Some("42"), Some("2"), Some("pannier-nbd.socket:api")).unwrap(), both);
        assert_eq!(fds(Some("41"), Some("2"), Some("nbd:api")).unwrap(), [], "not for us");
        for (count, names) in [("x", None), ("-1", None), ("1", None), ("1", Some("web"))] {
            assert!(fds(None, Some(count), names).is_err(), "{count} {names:?}");
        }
    }

    #[test]
    fn descriptors_of_the_supervisor() {
        let both = [("api".to_owned(), 7), ("nbd".to_owned(), 8)];
        assert_eq!(passed("api:7,nbd:8").unwrap(), both);
        for text in ["", "api", "api:x", "api:0", "api:7,"] {
            assert!(passed(text).is_err(), "{text}");
        }
    }

    #[test]
    fn leftovers_are_replaced_and_live_sockets_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(bind(&path).unwrap());
        assert!(path.exists(), "a leftover");
        let listener = bind(&path).unwrap();
        let failure = bind(&path).unwrap_err();
        assert!(failure.0.message.contains("in use"), "{failure:?}");
        drop(listener);
        let long = dir.path().join("x".repeat(120));
        assert!(bind(&long).unwrap_err().0.message.contains("nbd_socket"));
    }
}
