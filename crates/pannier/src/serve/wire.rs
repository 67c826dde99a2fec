//! Puts a daemon together: identity, transport, registry, store, engine, exports.

use crate::api::State;
use crate::cli::host::{IDENTITY, advertised, resolve};
use crate::config::Config;
use crate::output::Failure;
use metrics_exporter_prometheus::PrometheusHandle;
use pannier_core::ids::{HostId, SiteName};
use pannier_core::record::HostRecord;
use pannier_engine::context::LocalConfig;
use pannier_engine::directory::News;
use pannier_engine::error::ErrorKind;
use pannier_engine::host::{Host, Setup};
use pannier_engine::port::Peers as _;
use pannier_exports::nbd;
use pannier_stores::cluster::{Identity, JoinService};
use pannier_stores::objects;
use pannier_stores::peer::Transport;
use pannier_stores::registry::{self, Place};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// File of the embedded registry in a host's directory.
const REGISTRY: &str = "registry.redb";

/// How long the first start waits for the registry before it says that it serves.
const REGISTER_WAIT: Duration = Duration::from_secs(10);
/// How long later ones do: they have nothing new to register, as a rule.
const REGISTER_WAIT_KNOWN: Duration = Duration::from_millis(500);
/// How often registration is tried again behind that.
const REGISTER_AGAIN: Duration = Duration::from_secs(2);

/// A daemon's parts.
pub(crate) struct Parts {
    host: Arc<Host>,
    transport: Transport,
    config: Config,
    address: String,
    tasks: Mutex<Vec<AbortOnDropHandle<()>>>,
}

/// Starts everything but the exports and the API.
pub(crate) async fn start(dir: &Path, config: &Config) -> Result<Parts, Failure> {
    if config.site.is_empty() {
        return Err(Failure::invalid(format!(
            "{} names no site; add `site = \"...\"`",
            dir.join(crate::config::FILE).display()
        )));
    }
    let identity = Identity::load(&dir.join(IDENTITY))?;
    super::origin::check(dir, &identity)?;
    let listen = resolve(&config.listen)?;
    let transport = Transport::bind(listen, &identity)?;
    let place = registry_place(config, &identity)?;
    let registry = registry::open(&place, &identity, &transport, &dir.join(REGISTRY))?;
    let store = config.store.clone().unwrap_or_else(|| dir.join("store").display().to_string());
    let setup = Setup {
        dir: dir.to_owned(),
        id: identity.host(),
        site: SiteName(config.site.clone()),
        key: identity.hash_key(),
        config: LocalConfig {
            cache_bytes: config.cache.size.0,
            pool_bytes: config.cache.pool.0,
            ..LocalConfig::default()
        },
        registry,
        objects: objects::open(&store)?,
        peers: Arc::new(transport.clone()),
    };
    let host = Host::start(setup).await?;
    transport.serve_engine(host.clone());
    if identity.holds_authority() {
        let directory = host.directory().clone();
        let is_taken = move |name: &str| directory.hosts().iter().any(|host| host.name == name);
        transport.serve_join(JoinService::open(&identity, place.clone(), is_taken)?);
    }
    let far = place.far_address(identity.host());
    let address = advertised(config.advertise.as_deref(), transport.address(), far)?;
    let tasks = Mutex::new(vec![learn_peers(&host, &transport, config.peers.clone())]);
    Ok(Parts { host, transport, config: config.clone(), address, tasks })
}

/// Where the registry is: as this host was made, with what the configuration says of the way.
fn registry_place(config: &Config, identity: &Identity) -> Result<Place, Failure> {
    match (identity.registry().clone(), &config.registry) {
        (Place::Etcd(_), Some(text)) => Ok(Place::Etcd(text.parse()?)),
        (Place::Host { host, .. }, Some(_)) => Err(Failure::invalid(format!(
            "pannier.toml names a registry in etcd, and this cluster's is in its host {host}, from \
             where it does not move: remove the line `registry`"
        ))),
        (place @ Place::Etcd(_), None) => Ok(place),
        (Place::Host { host, address }, None) => {
            let address = config.peers.get(&host.to_string()).cloned().unwrap_or(address);
            Ok(Place::Host { host, address })
        }
    }
}

/// Tells the transport where peers are, now and whenever the directory hears news.
fn learn_peers(
    host: &Arc<Host>,
    transport: &Transport,
    overrides: BTreeMap<String, String>,
) -> AbortOnDropHandle<()> {
    let mut news = host.directory().subscribe();
    let (directory, transport) = (host.directory().clone(), transport.clone());
    let own = host.id();
    let learn = move || {
        for peer in directory.hosts().into_iter().filter(|peer| peer.id != own) {
            let by_id = overrides.get(&peer.id.to_string());
            let address = overrides.get(&peer.name).or(by_id).unwrap_or(&peer.address);
            transport.learn(peer.id, address);
        }
    };
    learn();
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            match news.recv().await {
                Ok(News::Host(_)) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {
                    learn();
                }
                Ok(News::Volume(_) | News::Deleted(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            }
        }
    }))
}

struct Registration {
    host: Arc<Host>,
    id: HostId,
    site: SiteName,
    /// `None`: the machine's name, with a number when it is taken.
    name: Option<String>,
    address: String,
}

impl Registration {
    async fn run(&self) -> Result<(), Failure> {
        let directory = self.host.directory();
        directory.refresh().await?;
        let hosts = directory.hosts();
        let own = hosts.iter().find(|host| host.id == self.id);
        let name = match (&self.name, own) {
            (Some(name), _) => name.clone(),
            (None, Some(own)) => own.name.clone(),
            (None, None) => {
                free_name(&machine_name(), |name| hosts.iter().all(|host| host.name != name))
            }
        };
        let record = HostRecord {
            id: self.id,
            name,
            site: self.site.clone(),
            address: self.address.clone(),
        };
        if own != Some(&record) {
            directory.put_host(&record).await?;
        }
        Ok(())
    }
}

fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim().split('.').next() {
        None | Some("") => "host".to_owned(),
        Some(name) => name.to_owned(),
    }
}

/// The name, or the first with a number behind it that is free.
fn free_name(name: &str, free: impl Fn(&str) -> bool) -> String {
    if free(name) {
        return name.to_owned();
    }
    (2..).map(|number| format!("{name}-{number}")).find(|name| free(name)).unwrap_or_default()
}

impl Parts {
    /// Returns when this host is registered and its volumes are back.
    pub(crate) async fn settled(&self) -> Result<(), Failure> {
        let (registered, ()) = tokio::join!(self.register(), self.host.recovered());
        registered
    }

    /// Registers this host. While the registry is away a host that was registered before serves
    /// without, and registration is tried again behind.
    async fn register(&self) -> Result<(), Failure> {
        let known = self.host.directory().host(self.host.id());
        if let Some(known) = &known
            && known.site.0 != self.config.site
        {
            return Err(Failure::invalid(format!(
                "this host belongs to site {} and pannier.toml says {}; a host does not change its \
                 site: set it back, or join with a new directory",
                known.site, self.config.site
            )));
        }
        let registration = Registration {
            host: self.host.clone(),
            id: self.host.id(),
            site: SiteName(self.config.site.clone()),
            name: self.config.name.clone(),
            address: self.address.clone(),
        };
        let wait = if known.is_some() { REGISTER_WAIT_KNOWN } else { REGISTER_WAIT };
        match tokio::time::timeout(wait, registration.run()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(failure)) if failure.0.kind != "unavailable" => return Err(failure),
            Ok(Err(failure)) => tracing::info!(cause = failure.0.message, "not registered yet"),
            Err(_elapsed) => tracing::info!("the registry does not answer; not registered yet"),
        }
        self.tasks.lock().push(AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                tokio::time::sleep(REGISTER_AGAIN).await;
                match registration.run().await {
                    Ok(()) => {
                        tracing::info!("registered");
                        return;
                    }
                    Err(failure) if failure.0.kind == "unavailable" => {}
                    Err(failure) => {
                        let cause = failure.0.message;
                        tracing::error!(cause, "this host cannot be registered");
                        return;
                    }
                }
            }
        })));
        Ok(())
    }

    /// The NBD server over the host's volumes.
    pub(super) fn nbd(&self) -> nbd::Server<Host> {
        nbd::Server::new(self.host.clone())
    }

    /// What the API works on.
    pub(crate) fn api_state(
        &self,
        dir: &Path,
        metrics: PrometheusHandle,
        nbd_socket: PathBuf,
        nbd_address: Option<String>,
    ) -> Arc<State> {
        Arc::new(State {
            host: self.host.clone(),
            metrics,
            dir: dir.to_owned(),
            site: self.config.site.clone(),
            nbd_socket,
            nbd_address,
        })
    }

    pub(super) fn log_ready(&self) {
        tracing::info!(
            host = self.host.directory().host_name(self.host.id()),
            site = self.config.site,
            peers = %self.transport.address(),
            volumes = self.host.directory().volumes().len(),
            "serving"
        );
    }

    /// Stops the engine: what is open is sealed and a checkpoint is written, so that the next start
    /// has nothing to recover.
    pub(crate) async fn stop(&self) -> Result<(), Failure> {
        let outcome = self.host.stop().await;
        self.transport.close().await;
        outcome.map_err(|error| {
            Failure::new(
                ErrorKind::Unavailable,
                format!("not everything was put away ({error}); the next start recovers it"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_reached_otherwise_and_never_becomes_another() {
        let dir = tempfile::tempdir().unwrap();
        let etcd = "etcd://one:2379".parse().unwrap();
        let init = |name: &str, etcd| {
            pannier_stores::cluster::init(&dir.path().join(name), "127.0.0.1:1", etcd).unwrap()
        };
        let (embedded, etcd) = (init("embedded", None), init("etcd", Some(etcd)));
        let with = |registry: Option<&str>| Config {
            registry: registry.map(ToOwned::to_owned),
            ..Config::default()
        };
        let place = |registry, identity| registry_place(&with(registry), identity);
        assert_eq!(&place(None, &embedded).unwrap(), embedded.registry());
        assert_eq!(&place(None, &etcd).unwrap(), etcd.registry());
        let other = place(Some("etcd://two:2379"), &etcd).unwrap();
        assert_eq!(other.to_string(), "etcd://two:2379");
        let refused = place(Some("etcd://two:2379"), &embedded).unwrap_err();
        assert!(refused.0.message.contains("does not move"), "{refused:?}");
        assert!(place(Some("two:2379"), &etcd).unwrap_err().0.message.contains("etcd://"));
    }

    #[test]
    fn names_that_are_taken_get_a_number() {
        let taken = ["a", "a-2"];
        assert_eq!(free_name("a", |name| !taken.contains(&name)), "a-3");
        assert_eq!(free_name("b", |name| !taken.contains(&name)), "b");
    }
}
