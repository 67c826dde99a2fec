//! A host's configuration: `pannier.toml`, with every option documented in the file that `init`
//! writes. Flags override it.

mod nearest;
mod template;

pub(crate) use template::{Chosen, render};

use crate::cli::size::Size;
use crate::output::Failure;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of the file in a host's directory.
pub(crate) const FILE: &str = "pannier.toml";

/// Where peers reach a host when nothing else is said.
pub(crate) const LISTEN_DEFAULT: &str = "0.0.0.0:7810";

/// How messages are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// A JSON document per line.
    Json,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    pub(crate) site: String,
    pub(crate) name: Option<String>,
    pub(crate) listen: String,
    pub(crate) advertise: Option<String>,
    pub(crate) store: Option<String>,
    pub(crate) registry: Option<String>,
    pub(crate) nbd_listen: Option<String>,
    pub(crate) nbd_socket: Option<PathBuf>,
    pub(crate) api_socket: Option<PathBuf>,
    pub(crate) peers: BTreeMap<String, String>,
    pub(crate) cache: Cache,
    pub(crate) log: Log,
}

/// The table `cache`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Cache {
    pub(crate) size: Size,
    pub(crate) pool: Size,
}

/// The table `log`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Log {
    pub(crate) level: String,
    pub(crate) format: LogFormat,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            site: String::new(),
            name: None,
            listen: LISTEN_DEFAULT.to_owned(),
            advertise: None,
            store: None,
            registry: None,
            nbd_listen: None,
            nbd_socket: None,
            api_socket: None,
            peers: BTreeMap::new(),
            cache: Cache::default(),
            log: Log::default(),
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { size: Size(10 << 30), pool: Size(256 << 20) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::default() }
    }
}

/// Every key that the file may have.
const KEYS: &[&str] = &[
    "site",
    "name",
    "listen",
    "advertise",
    "store",
    "registry",
    "nbd_listen",
    "nbd_socket",
    "api_socket",
    "peers",
    "cache",
    "cache.size",
    "cache.pool",
    "log",
    "log.level",
    "log.format",
];

impl Config {
    /// Reads the file of a host's directory.
    pub(crate) fn read(dir: &Path) -> Result<Self, Failure> {
        let file = dir.join(FILE);
        let text = std::fs::read_to_string(&file).map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                Failure::invalid(format!(
                    "{} is not a host's directory: it has no {FILE}; make a new cluster there with \
                     `pannier init`, or join one with `pannier join`",
                    dir.display()
                ))
            } else {
                Failure::io(format!("cannot read {}", file.display()), error)
            }
        })?;
        Self::parse(&text).map_err(|cause| Failure::invalid(format!("{}: {cause}", file.display())))
    }

    /// Reads the file's text.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| clean(&error))?;
        check_keys(&table, "")?;
        let config: Self = toml::from_str(text).map_err(|error| clean(&error))?;
        Ok(config)
    }
}

/// A TOML error without the marker lines, which need a fixed-width font and the file beside them.
fn clean(error: &toml::de::Error) -> String {
    error.to_string().trim_end().to_owned()
}

/// Refuses keys that nobody knows, with the nearest that is known.
fn check_keys(table: &toml::Table, prefix: &str) -> Result<(), String> {
    for (key, value) in table {
        let full = format!("{prefix}{key}");
        if prefix == "peers." {
            continue;
        }
        if !KEYS.contains(&full.as_str()) {
            let hint = nearest::nearest(&full, KEYS)
                .map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            return Err(format!("there is no option `{full}`{hint}"));
        }
        if let toml::Value::Table(table) = value {
            check_keys(table, &format!("{full}."))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_init_writes_is_the_default_and_names_every_option() {
        let text = render(&template::Chosen::default());
        assert_eq!(Config::parse(&text), Ok(Config::default()));
        // Uncommenting every option gives the default too, or an option that has none.
        let all: String = text
            .lines()
            .map(|line| match line.strip_prefix("#") {
                Some(option) if !option.starts_with(' ') => format!("{option}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let parsed = Config::parse(&all).unwrap();
        assert_eq!((parsed.cache, parsed.log), (Cache::default(), Log::default()));
        for key in KEYS {
            let leaf = key.rsplit('.').next().unwrap();
            assert!(all.contains(leaf), "{key} is documented");
        }
        assert!(parsed.advertise.is_some() && parsed.nbd_listen.is_some());
    }

    #[test]
    fn options_and_their_mistakes() {
        let config = Config::parse(
            "listen = \"[::]:1\"\n[peers]\nanything = \"192.0.2.1:2\"\n[cache]\nsize = \"4G\"",
        )
        .unwrap();
        assert_eq!(config.cache.size, Size(4 << 30));
        assert_eq!(config.peers["anything"], "192.0.2.1:2");
        for (text, part) in [
            ("lisen = \"a\"", "did you mean `listen`?"),
            ("[cache]\nsiz = 4", "did you mean `cache.size`?"),
            ("[log]\nformat = \"xml\"", "xml"),
            ("[cache]\nsize = \"much\"", "20G"),
            ("wibble = 1", "no option `wibble`"),
            ("listen = ", "line 1"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
