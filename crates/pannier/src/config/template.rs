//! The configuration file that `init` and `join` write: every option, explained, with its default.

/// What was chosen at `init` or `join` and is therefore no comment in the file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chosen {
    pub(crate) site: String,
    pub(crate) name: Option<String>,
    pub(crate) listen: Option<String>,
    pub(crate) advertise: Option<String>,
    pub(crate) store: Option<String>,
    pub(crate) registry: Option<String>,
}

/// The file's text.
pub(crate) fn render(chosen: &Chosen) -> String {
    let option = |key: &str, value: &Option<String>, default: &str| match value {
        Some(value) => format!("{key} = {}", toml::Value::String(value.clone())),
        None => format!("#{key} = \"{default}\""),
    };
    format!(
        r##"# Pannier: configuration of this host. Flags of `pannier serve` override it.
# A line that begins with `#` directly before a name shows an option's default, or an example.

# The site that this host belongs to. It does not change once the host has served.
site = {site}

# The host's name in the cluster. Default: the machine's name, with a number when it is taken.
{name}

# Where peers reach this host (UDP).
{listen}

# The address that peers are told, when it differs from `listen`: behind a NAT, or when `listen` is
# a wildcard and the machine has several addresses. Default: `listen`, with a wildcard replaced by
# the address of the route to the other hosts.
{advertise}

# The site's object store: a directory, or a URL (s3://bucket/prefix, gs://, az://) with credentials
# from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT, ...). Default: `store` in this directory.
{store}

# The cluster's registry, when it is in etcd: etcd://MEMBER,MEMBER,...[/PREFIX][?OPTIONS], the
# prefix the same on all hosts. Default: what `init` or `join` was told. Options, joined by `&`:
# user=NAME and password_file=FILE (or PANNIER_ETCD_USER and PANNIER_ETCD_PASSWORD in the
# environment); with etcds://, which is TLS, ca=FILE, and cert=FILE and key=FILE for a client's
# certificate.
{registry}

# Serve NBD on this TCP address too. There is no authentication: bind it to a trusted network only.
#nbd_listen = "127.0.0.1:10809"

# The unix sockets of NBD and of the API. Default: `nbd.sock` and `api.sock` in this directory.
# Sockets that the init system or a parent process passes take precedence.
#nbd_socket = "/run/pannier/nbd.sock"
#api_socket = "/run/pannier/api.sock"

# Reach a peer, by its host name, at another address than the registered one.
[peers]
#east1 = "192.0.2.7:7810"

[cache]
# Most bytes of this host's disk for data that its site's store or another site holds too. Data that
# is stored nowhere else does not count and is never evicted.
#size = "10G"
# Most bytes of segment files that are kept ready to be written.
#pool = "256M"

[log]
# Least severe messages that are logged: error, warn, info, debug, trace; or a filter such as
# "info,pannier_engine=debug".
#level = "info"
# How: "text" or "json" (a document per line), on standard error.
#format = "text"
"##,
        site = toml::Value::String(chosen.site.clone()),
        name = option("name", &chosen.name, "west1"),
        listen = option("listen", &chosen.listen, super::LISTEN_DEFAULT),
        advertise = option("advertise", &chosen.advertise, "198.51.100.4:7810"),
        store = option("store", &chosen.store, "s3://pannier-west"),
        registry = option("registry", &chosen.registry, "etcd://etcd1:2379,etcd2:2379,etcd3:2379"),
    )
}
