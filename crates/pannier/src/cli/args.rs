//! The command line.

use super::size::Size;
use crate::demo;
use clap::{Args, Parser, Subcommand, ValueEnum};
use pannier_core::record::VolumePath;
use pannier_stores::registry::EtcdUrl;
use std::path::PathBuf;

/// Storage that goes where the virtual machine goes.
///
/// Pannier keeps virtual disks (volumes) at several sites and moves them, in use, from one site to
/// another. Guests reach a volume over NBD.
#[derive(Debug, Parser)]
#[command(name = "pannier", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "\
Begin with `pannier demo`, which shows a move on this machine, or with:
  pannier init --dir D --site west       a new cluster and its first host
  pannier serve --dir D                  serve its volumes
  pannier token --dir D                  let another host join")]
pub(crate) struct Cli {
    /// The host's directory; without it the daemon at /run/pannier, then /var/lib/pannier.
    #[arg(long, global = true, env = "PANNIER_DIR", value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// How results and errors are written.
    #[arg(short, long, global = true, value_enum, default_value = "text", value_name = "FORMAT")]
    pub(crate) output: Output,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How results and errors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// One JSON document on standard output; errors as JSON on standard error.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a new cluster and its first host, which keeps the registry unless etcd does
    Init(Init),
    /// Print a token with which one more host can join
    Token(Token),
    /// Make this directory a host of an existing cluster
    Join(Join),
    /// Serve the host's volumes, in the foreground
    Serve(Serve),
    /// Create, list, show, change, fill and empty volumes
    #[command(subcommand)]
    Volume(Volume),
    /// Move a volume, in use, to another site
    Move(Move),
    /// Take a volume over from a host that is lost
    Takeover(Takeover),
    /// Show sites, hosts, volumes, where their bytes are, and moves under way
    Status(Status),
    /// Show on this machine how a disk in use moves between two sites
    Demo(demo::Args),
}

#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    /// The site that the host belongs to, such as `west`
    #[arg(long, value_name = "SITE")]
    pub(crate) site: String,
    /// The host's name in the cluster [default: the machine's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Where peers reach this host; port 0 picks a free one now [default: 0.0.0.0:7810]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<String>,
    /// The address that peers are told, when it differs from --listen
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) advertise: Option<String>,
    /// The site's object store: a directory or a URL such as s3://bucket [default: DIR/store]
    #[arg(long, value_name = "DIR|URL")]
    pub(crate) store: Option<String>,
    /// The registry in etcd, such as etcd://etcd1:2379,etcd2:2379; pannier.toml has more
    /// [default: for `init` in the host itself, for `join` what the cluster has]
    #[arg(long, value_name = "URL")]
    pub(crate) registry: Option<EtcdUrl>,
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Token {
    /// How long the token is good for
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = super::size::duration)]
    pub(crate) valid: std::time::Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// The token that `pannier token` printed
    #[arg(long, value_name = "TOKEN")]
    pub(crate) token: String,
    /// Reach the host that gave the token at this address, not at the one in the token
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) via: Option<String>,
}

#[derive(Debug, Args, Default)]
pub(crate) struct Serve {
    /// Serve NBD on this TCP address too
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) nbd_listen: Option<String>,
    /// Where peers reach this host
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<String>,
    /// The address that peers are told
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) advertise: Option<String>,
    /// Reach a peer at this address, not at the registered one; may be repeated
    #[arg(long = "peer", value_name = "HOST=ADDR:PORT", value_parser = super::size::peer)]
    pub(crate) peers: Vec<(String, String)>,
    /// The site's object store
    #[arg(long, value_name = "DIR|URL")]
    pub(crate) store: Option<String>,
    /// Most bytes of this host's disk that cached data may take
    #[arg(long, value_name = "SIZE")]
    pub(crate) cache_size: Option<Size>,
    /// Least severe messages that are logged: error, warn, info, debug, trace, or a filter
    #[arg(long, env = "PANNIER_LOG", value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// How messages are logged, on standard error
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) log_format: Option<crate::config::LogFormat>,
    /// Keep the listening sockets in a small parent process that starts the daemon again when it
    /// dies, so that no client is refused meanwhile
    #[arg(long)]
    pub(crate) supervise: bool,
}

fn path(text: &str) -> Result<VolumePath, String> {
    VolumePath::parse(text).map_err(|error| error.to_string())
}

#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// Create a volume; it takes no space until it is written
    Create {
        /// Its path, such as /vms/web/disk0
        #[arg(value_parser = path)]
        path: VolumePath,
        /// Its size, such as 20G (units are powers of 1024)
        #[arg(long)]
        size: Size,
        /// Let several hosts write at once (for cluster file systems)
        #[arg(long)]
        shared: bool,
    },
    /// List volumes
    List,
    /// Show one volume
    Show {
        /// Its path
        #[arg(value_parser = path)]
        path: VolumePath,
    },
    /// Delete a volume and its data at all sites
    Delete {
        /// Its path
        #[arg(value_parser = path)]
        path: VolumePath,
        /// Even while guests are connected
        #[arg(long)]
        force: bool,
    },
    /// Grow a volume
    Resize {
        /// Its path
        #[arg(value_parser = path)]
        path: VolumePath,
        /// Its new size, such as 40G, or +10G for that much more
        size: super::size::NewSize,
    },
    /// Make a volume from a raw image file; what is sparse stays sparse
    Import {
        /// The raw image
        file: PathBuf,
        /// The path of the new volume
        #[arg(value_parser = path)]
        path: VolumePath,
    },
    /// Write a volume into a raw image file; what is unused stays sparse
    Export {
        /// The volume's path
        #[arg(value_parser = path)]
        path: VolumePath,
        /// The file to make
        file: PathBuf,
        /// Replace the file if it exists
        #[arg(long)]
        overwrite: bool,
    },
    /// Print the libvirt disk XML for a volume
    Xml {
        /// Its path
        #[arg(value_parser = path)]
        path: VolumePath,
        /// The disk's name in the guest
        #[arg(long, default_value = "vda")]
        target: String,
    },
    /// Print the QEMU arguments for a volume
    Qemu {
        /// Its path
        #[arg(value_parser = path)]
        path: VolumePath,
    },
    /// Take the write right from the host that holds it, so that another can write
    Release {
        /// The volume's path
        #[arg(value_parser = path)]
        path: VolumePath,
    },
}

/// How far `move` waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Wait {
    /// Until the move is registered
    Declared,
    /// Until the target appends
    Switched,
    /// Until nothing depends on the old site, verified
    Independent,
}

#[derive(Debug, Args)]
pub(crate) struct Move {
    /// The volume's path
    #[arg(value_parser = path)]
    pub(crate) path: VolumePath,
    /// Where to: a site, or one of its hosts
    #[arg(long, value_name = "SITE[/HOST]", required_unless_present = "abort")]
    pub(crate) to: Option<String>,
    /// How far to wait [default: switched; declared with --at-first-write]
    #[arg(long, value_enum, value_name = "UNTIL")]
    pub(crate) wait: Option<Wait>,
    /// Switch when the guest first writes at the target, not as soon as it can be done
    #[arg(long)]
    pub(crate) at_first_write: bool,
    /// Call off the move that is under way, while the source still has the volume
    #[arg(long, conflicts_with_all = ["to", "wait", "at_first_write"])]
    pub(crate) abort: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Takeover {
    /// The volume's path
    #[arg(value_parser = path)]
    pub(crate) path: VolumePath,
    /// Your word that this host is out (power off, or cut from guests and stores); may be repeated
    #[arg(long, value_name = "HOST", required = true)]
    pub(crate) fenced: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Only this volume
    #[arg(value_parser = path)]
    pub(crate) path: Option<VolumePath>,
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
