//! `pannier init`, `token` and `join`: clusters and their hosts.

use super::args::{HostArgs, Init, Join, Token};
use crate::api::types;
use crate::client::{API_SOCKET, Client};
use crate::config::{self, Config, LISTEN_DEFAULT};
use crate::output::{Failure, Printer};
use hyper::Method;
use pannier_engine::error::ErrorKind;
use pannier_engine::port::Registry as _;
use pannier_stores::cluster::{self, Identity, TokenBook};
use pannier_stores::registry::Etcd;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the identity directory in a host's directory.
pub(crate) const IDENTITY: &str = "identity";

/// Ports tried upwards from the default when it is taken.
const PORTS_TRIED: u16 = 32;

pub(super) async fn init(dir: &Path, args: Init, printer: &Printer) -> Result<(), Failure> {
    check_fresh(dir)?;
    check_site(&args.host.site)?;
    let listen = choose_listen(args.host.listen.as_deref())?;
    let advertise = advertised(args.host.advertise.as_deref(), listen, None)?;
    if let Some(etcd) = &args.host.registry {
        // What is wrong with it is told before anything is made.
        Etcd::open(etcd, "init")?.get("cluster").await?;
    }
    make_dir(dir)?;
    let identity = cluster::init(&dir.join(IDENTITY), &advertise, args.host.registry.clone())?;
    write_config(dir, &args.host, listen)?;
    let result = serde_json::json!({
        "dir": dir,
        "host": identity.host().to_string(),
        "site": args.host.site,
        "listen": listen.to_string(),
        "address": advertise,
    });
    printer.result(&result, || {
        format!(
            "made a cluster and its first host in {dir}: site {site}, peers reach it at \
             {advertise} (UDP)\nNext:\n  pannier serve --dir {dir}\n  pannier token --dir {dir}\
             \x20   # for another host to join with",
            dir = dir.display(),
            site = args.host.site
        )
    });
    Ok(())
}

pub(super) async fn token(
    dir: Option<&Path>,
    args: Token,
    printer: &Printer,
) -> Result<(), Failure> {
    let token = match dir {
        // The token book is made of files: a daemon is not needed.
        Some(dir) if !daemon_runs(dir) => issue(dir, args.valid)?,
        _ => {
            let make = types::MakeToken { valid_seconds: args.valid.as_secs() };
            Client::find(dir).send(Method::POST, "/v1/tokens", &make).await?
        }
    };
    printer.result(&token, || token.token.clone());
    Ok(())
}

fn daemon_runs(dir: &Path) -> bool {
    UnixStream::connect(dir.join(API_SOCKET)).is_ok()
}

/// Makes a join token of the host in `dir`.
pub(crate) fn issue(dir: &Path, valid: Duration) -> Result<types::Token, Failure> {
    let config = Config::read(dir)?;
    let identity = Identity::load(&dir.join(IDENTITY))?;
    let listen = resolve(&config.listen)?;
    let address = advertised(config.advertise.as_deref(), listen, None)?;
    let token = TokenBook::open(&identity)?.issue(&address, Some(valid))?;
    Ok(types::Token { token: token.to_string() })
}

pub(super) async fn join(dir: &Path, args: Join, printer: &Printer) -> Result<(), Failure> {
    check_fresh(dir)?;
    check_site(&args.host.site)?;
    let mut token: cluster::Token = args.token.parse()?;
    if let Some(via) = &args.via {
        token = token.through(via);
    }
    let listen = choose_listen(args.host.listen.as_deref())?;
    let advertise = advertised(args.host.advertise.as_deref(), listen, Some(token.address()))?;
    make_dir(dir)?;
    let bar = printer.spinner("joining");
    let joined = cluster::join(&dir.join(IDENTITY), &token, args.host.name.as_deref()).await;
    bar.finish();
    let identity = joined?;
    write_config(dir, &args.host, listen)?;
    let result = serde_json::json!({
        "dir": dir,
        "host": identity.host().to_string(),
        "site": args.host.site,
        "listen": listen.to_string(),
        "address": advertise,
    });
    printer.result(&result, || {
        format!(
            "{dir} is now a host of the cluster: site {site}, peers reach it at {advertise} (UDP)\n\
             Next:\n  pannier serve --dir {dir}",
            dir = dir.display(),
            site = args.host.site
        )
    });
    Ok(())
}

fn check_fresh(dir: &Path) -> Result<(), Failure> {
    if dir.join(config::FILE).exists() || dir.join(IDENTITY).exists() {
        return Err(Failure::invalid(format!(
            "{} is a host's directory already; choose another, or remove it if its volumes are not \
             needed any more",
            dir.display()
        )));
    }
    Ok(())
}

fn check_site(site: &str) -> Result<(), Failure> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if site.is_empty() || site.len() > 63 || !site.chars().all(fine) {
        return Err(Failure::invalid(format!(
            "`{site}` is not a site's name; take up to 63 letters, digits, `-`, `_` and `.`, such \
             as `west`"
        )));
    }
    Ok(())
}

fn make_dir(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir)
        .map_err(|error| Failure::io(format!("cannot make {}", dir.display()), error))
}

fn write_config(dir: &Path, args: &HostArgs, listen: SocketAddr) -> Result<(), Failure> {
    let given = args.listen.is_some() || listen.to_string() != LISTEN_DEFAULT;
    let text = config::render(&config::Chosen {
        site: args.site.clone(),
        name: args.name.clone(),
        listen: given.then(|| listen.to_string()),
        advertise: args.advertise.clone(),
        store: args.store.as_deref().map(absolute),
        registry: args.registry.as_ref().map(ToString::to_string),
    });
    let file = dir.join(config::FILE);
    std::fs::write(&file, text)
        .map_err(|error| Failure::io(format!("cannot write {}", file.display()), error))
}

/// A store's location that means the same from every working directory.
fn absolute(store: &str) -> String {
    if store.contains("://") {
        return store.to_owned();
    }
    std::path::absolute(store)
        .map_or_else(|_| store.to_owned(), |path: PathBuf| path.to_string_lossy().into_owned())
}

/// The address that a text names.
pub(crate) fn resolve(text: &str) -> Result<SocketAddr, Failure> {
    let found = text.to_socket_addrs().map_err(|error| error.to_string());
    match found.map(|mut all| all.next()) {
        Ok(Some(address)) => Ok(address),
        Ok(None) => Err(Failure::invalid(format!("`{text}` names no address"))),
        Err(cause) => Err(Failure::invalid(format!(
            "`{text}` is not an address ({cause}); write it like 0.0.0.0:7810"
        ))),
    }
}

/// Where to listen: as asked, with a free port for port 0; else the default, or the next free port
/// when another host of this machine has it.
fn choose_listen(asked: Option<&str>) -> Result<SocketAddr, Failure> {
    if let Some(asked) = asked {
        let mut address = resolve(asked)?;
        if address.port() == 0 {
            let free = UdpSocket::bind(address).and_then(|socket| socket.local_addr());
            address =
                free.map_err(|error| Failure::io(format!("cannot listen on {asked}"), error))?;
        }
        return Ok(address);
    }
    let default = resolve(LISTEN_DEFAULT)?;
    for port in default.port()..default.port() + PORTS_TRIED {
        let address = SocketAddr::new(default.ip(), port);
        if UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(Failure::new(
        ErrorKind::Unavailable,
        format!(
            "UDP ports {} to {} are all in use; choose one with --listen",
            default.port(),
            default.port() + PORTS_TRIED - 1
        ),
    ))
}

/// The address that peers are told: as asked, else where we listen, with a wildcard replaced by
/// the address from which packets to `peer` leave.
pub(crate) fn advertised(
    asked: Option<&str>,
    listen: SocketAddr,
    peer: Option<&str>,
) -> Result<String, Failure> {
    if let Some(asked) = asked {
        return Ok(asked.to_owned());
    }
    if !listen.ip().is_unspecified() {
        return Ok(listen.to_string());
    }
    // Nothing is sent: connecting a UDP socket only chooses the route. The address is one for
    // documentation (RFC 5737) and stands for any far one.
    let far = peer.unwrap_or("192.0.2.1:9");
    let route = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(far)?;
        socket.local_addr()
    };
    let ip = route().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip());
    Ok(SocketAddr::new(ip, listen.port()).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Output;

    fn args(site: &str, listen: &str) -> HostArgs {
        HostArgs {
            site: site.into(),
            name: None,
            listen: Some(listen.into()),
            advertise: None,
            store: None,
            registry: None,
        }
    }

    #[tokio::test]
    async fn a_host_is_made_once_and_gives_tokens_without_a_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("host");
        let printer = Printer::quiet();
        init(&dir, Init { host: args("west", "127.0.0.1:0") }, &printer).await.unwrap();
        let config = Config::read(&dir).unwrap();
        assert_eq!(config.site, "west");
        assert_ne!(resolve(&config.listen).unwrap().port(), 0, "the free port is written down");
        let token = issue(&dir, Duration::from_secs(60)).unwrap().token;
        let parsed: cluster::Token = token.parse().unwrap();
        assert_eq!(parsed.address(), config.listen);
        let again = init(&dir, Init { host: args("west", "127.0.0.1:0") }, &printer).await;
        let again = again.unwrap_err();
        assert!(again.0.message.contains("already"), "{again:?}");
    }

    #[tokio::test]
    async fn wrong_words_are_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("host");
        let printer = Printer::new(Output::Json);
        for (site, listen, part) in
            [("we st", "127.0.0.1:0", "site's name"), ("west", "nowhere", "0.0.0.0:7810")]
        {
            let failure = init(&dir, Init { host: args(site, listen) }, &printer).await;
            let failure = failure.unwrap_err();
            assert!(failure.0.message.contains(part), "{failure:?}");
        }
        let join_args =
            Join { host: args("east", "127.0.0.1:0"), token: "nonsense".into(), via: None };
        let failure = join(&dir, join_args, &printer).await.unwrap_err();
        assert!(failure.0.message.contains("join token"), "{failure:?}");
        assert!(!dir.exists());
    }

    #[test]
    fn what_peers_are_told() {
        let told = |asked, listen: &str| advertised(asked, listen.parse().unwrap(), None).unwrap();
        assert_eq!(told(Some("gw:1"), "0.0.0.0:7810"), "gw:1");
        assert_eq!(told(None, "127.0.0.1:7810"), "127.0.0.1:7810");
        let told = told(None, "0.0.0.0:7810");
        assert!(told.ends_with(":7810") && !told.starts_with("0.0.0.0"), "{told}");
    }
}
