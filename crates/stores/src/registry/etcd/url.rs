//! Where etcd is and how it is reached, in one line of text without secrets:
//!
//! ```text
//! etcd://HOST:PORT,HOST:PORT[/PREFIX][?user=NAME&password_file=FILE]
//! etcds://HOST:PORT,HOST:PORT[/PREFIX]?ca=FILE[&cert=FILE&key=FILE][&user=...]
//! ```

use crate::cluster::read_secret;
use pannier_engine::error::{Error, ErrorKind, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// etcd's usual port for clients.
const PORT: u16 = 2379;

/// The variables that name the user and the password, before the URL does.
const USER: &str = "PANNIER_ETCD_USER";
const PASSWORD: &str = "PANNIER_ETCD_PASSWORD";

/// Where etcd is and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdUrl {
    text: String,
    /// `host:port` of each member.
    members: Vec<String>,
    tls: bool,
    prefix: Option<String>,
    options: Options,
}

/// What follows the question mark.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Options {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    user: Option<String>,
    password_file: Option<PathBuf>,
}

impl fmt::Display for EtcdUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for EtcdUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text.trim()).map_err(|cause| {
            Error::new(
                ErrorKind::Invalid,
                format!(
                    "registry: {cause}; write it like etcd://10.0.0.1:2379,10.0.0.2:2379 or \
                     etcds://etcd1:2379,etcd2:2379?ca=/etc/pannier/etcd-ca.crt"
                ),
            )
        })
    }
}

impl EtcdUrl {
    fn parse(text: &str) -> Result<Self, String> {
        let (tls, rest) = match text.split_once("://") {
            Some(("etcd", rest)) => (false, rest),
            Some(("etcds", rest)) => (true, rest),
            _other => return Err("it does not begin with etcd:// or etcds://".to_owned()),
        };
        // Before it is taken apart: a password may have any character.
        if rest.contains('@') {
            // Not repeated: it may be a password.
            return Err(format!(
                "a user and password do not belong there; take the options user and \
                 password_file, or {USER} and {PASSWORD}"
            ));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, prefix) = place.split_once('/').unwrap_or((place, ""));
        let members = hosts.split(',').map(member).collect::<Result<Vec<_>, _>>()?;
        let options = Options::parse(query)?;
        options.check(tls)?;
        let prefix = prefix.trim_matches('/');
        let prefix = (!prefix.is_empty()).then(|| format!("/{prefix}"));
        Ok(Self { text: text.to_owned(), members, tls, prefix, options })
    }

    /// `host:port` of each member.
    pub(super) fn members(&self) -> &[String] {
        &self.members
    }

    /// How a member is reached.
    ///
    /// # Errors
    /// `Invalid` or `NotFound` when a file with certificates cannot be read or has none.
    pub(super) fn endpoint(&self, member: &str) -> Result<Endpoint> {
        let odd = |error: tonic::transport::Error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            let cause = cause.unwrap_or_else(|| error.to_string());
            Error::new(ErrorKind::Invalid, format!("registry {}: {cause}", self.name()))
        };
        let scheme = if self.tls { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{member}")).map_err(odd)?;
        match self.tls {
            true => endpoint.tls_config(self.options.tls()?).map_err(odd),
            false => Ok(endpoint),
        }
    }

    /// The members without options, for messages.
    pub(super) fn name(&self) -> String {
        let scheme = if self.tls { "etcds" } else { "etcd" };
        format!("{scheme}://{}", self.members.join(","))
    }

    /// An address that is there, if etcd is.
    pub(in crate::registry) fn address(&self) -> &str {
        &self.members[0]
    }

    /// What the keys of this cluster begin with.
    pub(super) fn prefix(&self, cluster: &str) -> String {
        self.prefix.clone().unwrap_or_else(|| format!("/pannier/{cluster}"))
    }

    /// Name and password, from the environment or as the URL says.
    ///
    /// # Errors
    /// `Invalid` when there is a name and no password, or others can read its file; `NotFound`.
    pub(super) fn user(&self) -> Result<Option<(String, String)>> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        match (variable(USER).or(self.options.user.clone()), variable(PASSWORD)) {
            (None, _) => Ok(None),
            (Some(user), Some(password)) => Ok(Some((user, password))),
            (Some(user), None) => {
                let Some(file) = &self.options.password_file else {
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        format!(
                            "registry {}: no password for the user `{user}`; name its file with \
                             password_file=, or set {PASSWORD}",
                            self.name()
                        ),
                    ));
                };
                let (directory, name) = (file.parent(), file.file_name());
                let directory = directory.unwrap_or(Path::new("/"));
                let name = name.unwrap_or_default().to_string_lossy();
                let password = read_secret(directory, &name)?;
                Ok(Some((user, password.trim_end_matches(['\r', '\n']).to_owned())))
            }
        }
    }
}

/// A member's `host:port`, with the usual port where none is given.
fn member(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.:[]".contains(c);
    if text.is_empty() || !text.chars().all(fine) {
        return Err(format!("`{text}` is not a member's host and port"));
    }
    // What is in brackets is an IPv6 address and has colons of its own.
    let behind = text.rsplit_once(']').map_or(text, |(_address, behind)| behind);
    match behind.rsplit_once(':') {
        None => Ok(format!("{text}:{PORT}")),
        Some((_host, port)) if port.parse::<u16>().is_ok_and(|port| port > 0) => {
            Ok(text.to_owned())
        }
        Some((_host, port)) => Err(format!("`{port}` in `{text}` is not a port")),
    }
}

impl Options {
    fn parse(query: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let value = value.into_owned();
            let file = || {
                let path = PathBuf::from(&value);
                if path.is_absolute() && path.file_name().is_some() {
                    return Ok(Some(path));
                }
                Err(format!("{name}={value} is not the absolute path of a file"))
            };
            match &*name {
                "ca" => options.ca = file()?,
                "cert" => options.cert = file()?,
                "key" => options.key = file()?,
                "password_file" => options.password_file = file()?,
                "user" => options.user = Some(value),
                _other => {
                    return Err(format!(
                        "there is no option `{name}`; there are ca, cert, key, user, password_file"
                    ));
                }
            }
        }
        Ok(options)
    }

    fn check(&self, tls: bool) -> Result<(), String> {
        let with_tls = self.ca.is_some() || self.cert.is_some() || self.key.is_some();
        if !tls && with_tls {
            return Err("ca, cert and key are for TLS, which is etcds://".to_owned());
        }
        if tls && self.ca.is_none() {
            return Err("etcds:// needs ca=FILE, the authority of etcd's certificates".to_owned());
        }
        if self.cert.is_some() != self.key.is_some() {
            return Err("a client's certificate needs both, cert and key".to_owned());
        }
        if self.password_file.is_some() && self.user.is_none() {
            return Err("password_file needs a user".to_owned());
        }
        Ok(())
    }

    fn tls(&self) -> Result<ClientTlsConfig> {
        let read = |path: &Path| {
            std::fs::read(path)
                .map_err(|error| Error::io(format!("registry: read {}", path.display()), error))
        };
        let mut tls = ClientTlsConfig::new();
        if let Some(ca) = &self.ca {
            tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(tls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_meant() {
        let url = |text: &str| text.parse::<EtcdUrl>().unwrap();
        let plain = url("etcd://10.0.0.1:2379,etcd2,[::1]:4000,[fe80::1]");
        assert_eq!(
            plain.members(),
            ["10.0.0.1:2379", "etcd2:2379", "[::1]:4000", "[fe80::1]:2379"]
        );
        assert_eq!(plain.endpoint("etcd2:2379").unwrap().uri(), "http://etcd2:2379/");
        assert_eq!(plain.prefix("00ff"), "/pannier/00ff");
        let tls = url("etcds://e/a/b/?ca=/ca%20x.pem&cert=/c&key=/k&user=pannier&password_file=/p");
        assert_eq!(tls.prefix("00ff"), "/a/b");
        assert!(tls.endpoint("e:2379").unwrap_err().context().contains("/ca x.pem"));
        assert_eq!(tls.options.ca.as_deref(), Some(Path::new("/ca x.pem")));
        assert_eq!(tls.name(), "etcds://e:2379");
        assert_eq!(url(&tls.to_string()), tls);
    }

    #[test]
    fn what_is_not_meant_is_refused() {
        for (text, part) in [
            ("http://e:1", "etcd://"),
            ("e:2379", "etcd://"),
            ("etcd://", "not a member"),
            ("etcd://a,,b", "not a member"),
            ("etcd://a:0", "not a port"),
            ("etcd://a:x", "not a port"),
            ("etcd://a b", "not a member"),
            ("etcd://a?ca=/x", "etcds://"),
            ("etcds://a", "needs ca"),
            ("etcds://a?ca=x", "absolute"),
            ("etcds://a?ca=/x&cert=/y", "both"),
            ("etcd://a?password_file=/x", "needs a user"),
            ("etcd://a?timeout=3", "no option `timeout`"),
        ] {
            let error = text.parse::<EtcdUrl>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.context().contains(part), "{text}: {error}");
        }
        let error = "etcd://root:secret@a:1".parse::<EtcdUrl>().unwrap_err();
        assert!(error.context().contains("password_file"), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn a_password_is_in_a_file_that_only_its_owner_reads() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        std::fs::write(&file, "secret\n").unwrap();
        let url = |query: &str| format!("etcd://a?user=u{query}").parse::<EtcdUrl>().unwrap();
        let with = url(&format!("&password_file={}", file.display()));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(with.user().unwrap_err().context().contains("chmod"));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(with.user().unwrap(), Some(("u".to_owned(), "secret".to_owned())));
        assert!(url("").user().unwrap_err().context().contains("password_file"));
    }
}
