//! The running hub: binds everything that the configuration names, serves it, and stops in order. It puts the parts
//! together; what calls do and what names mean is theirs.

mod call;
mod connection;
mod crowd;
mod listen;
mod methods;
mod metrics;

use std::fs::{File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

use self::call::Calls;
pub use self::call::RequestId;
use self::crowd::Crowd;
use self::listen::Listener;
use self::methods::Methods;
use self::metrics::{AtScrape, Closed, Metrics};
use crate::api;
use crate::config::{Address, Config};
use crate::hub::{Hub, HubError};
use crate::tls::{Reloading, TlsError};
use crate::{dns, s3};

/// How long running calls may take once the hub is told to stop.
const GRACE: Duration = Duration::from_secs(5);
/// File descriptors besides those of connections: database, store, DNS, logs.
const OTHER_FILES: u64 = 512;
/// How long nothing is accepted after the system could not give a file descriptor: nothing announces their return.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the hub does not begin.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The state directory cannot be used.
    #[error("cannot {verb} {} ({source})", path.display())]
    State {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another hub uses the state directory.
    #[error("another hub uses {}; try: another state_dir for this one", .0.display())]
    InUse(PathBuf),
    /// Its database cannot be opened.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// TLS files are wrong.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} for {what} ({source}); try: another address")]
    Listen {
        /// The address.
        address: Address,
        /// What is served there.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The name server cannot be served.
    #[error(transparent)]
    Dns(#[from] dns::DnsError),
    /// The embedded store cannot be served.
    #[error("the embedded object store: {0}")]
    Store(#[from] s3::ServerError),
    /// The program was built wrong.
    #[error("the descriptors of the API cannot be read ({0}): this build is broken")]
    Descriptors(String),
}

/// Where everything is served, with the ports it got.
#[derive(Debug, Clone, Serialize)]
pub struct Ready {
    /// Addresses of the API: `http://127.0.0.1:7071`, `https://...`, `unix:/run/pico/hub.sock`.
    pub api: Vec<String>,
    /// The embedded store, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_store: Option<String>,
    /// Addresses of the name server, if there is one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<SocketAddr>,
    /// Where Prometheus reads, if anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
}

/// A hub that listens and does not answer yet; see [`Server::run`].
pub struct Server {
    listeners: Vec<Listener>,
    tls: Option<Arc<Reloading>>,
    crowd: Arc<Crowd>,
    calls: Calls,
    health: HealthReporter,
    store: Option<s3::Server>,
    dns: Option<dns::Server>,
    metrics: Option<TcpListener>,
    registry: Registry,
    ready: Ready,
    /// Held as long as the hub runs.
    _lock: File,
}

impl Server {
    /// Takes the state directory, and listens on all addresses. Connections made from now on wait until
    /// [`Server::run`].
    ///
    /// # Errors
    /// [`ServeError`], with nothing left behind but the state directory.
    pub async fn bind(config: &Config) -> Result<Server, ServeError> {
        let lock = take(&config.state_dir)?;
        let tls = config
            .tls
            .as_ref()
            .map(Reloading::load)
            .transpose()?
            .map(Arc::new);
        raise_file_limit(config.limits.connections);
        let hub = Hub::open(&config.state_dir, config.dns.as_ref().map(|dns| dns.zone.clone())).await?;

        let store = match &config.object_store {
            None => None,
            Some(store) => {
                let options = s3::Options {
                    dir: store.embedded.clone(),
                    listen: store.listen,
                    credentials_file: store.credentials_file.clone(),
                };
                Some(s3::Server::bind(&options).await?)
            }
        };
        let mut listeners = Vec::new();
        let mut api = Vec::new();
        for address in &config.listen {
            let fail = |source| ServeError::Listen {
                address: address.clone(),
                what: "the API",
                source,
            };
            let listener = Listener::bind(address).await.map_err(fail)?;
            api.push(match listener.address().map_err(fail)? {
                Address::Tcp(address) if tls.is_some() => format!("https://{address}"),
                Address::Tcp(address) => format!("http://{address}"),
                unix @ Address::Unix(_) => unix.to_string(),
            });
            listeners.push(listener);
        }
        let dns = match &config.dns {
            None => None,
            Some(config) => {
                let names = Arc::new(dns::HubNames(Arc::clone(&hub)));
                Some(dns::Server::bind(config, names).await?)
            }
        };
        let metrics = match config.metrics {
            None => None,
            Some(address) => Some(bind_metrics(address).await?),
        };

        let mut registry = Registry::default();
        let (health, health_service) = tonic_health::server::health_reporter();
        let broken = |error: &dyn std::error::Error| ServeError::Descriptors(error.to_string());
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pico_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|error| broken(&error))?;
        let calls = Calls {
            // Health and reflection are anybody's; the rest is guarded.
            routes: api::routes(&hub)
                .add_service(health_service)
                .add_service(reflection)
                .prepare(),
            methods: Arc::new(Methods::load().map_err(|error| broken(&error))?),
            metrics: Metrics::new(&mut registry),
        };
        registry.register_collector(Box::new(AtScrape {
            hub,
            dns: dns.as_ref().map(dns::Server::counts),
        }));
        Ok(Server {
            ready: Ready {
                api,
                object_store: store.as_ref().map(|store| store.credentials().endpoint.clone()),
                dns: dns.as_ref().map(dns::Server::addresses).unwrap_or_default(),
                metrics: metrics.as_ref().map(|(_, url)| url.clone()),
            },
            listeners,
            tls,
            crowd: Crowd::new(config.limits.connections),
            calls,
            health,
            store,
            dns,
            metrics: metrics.map(|(listener, _)| listener),
            registry,
            _lock: lock,
        })
    }

    /// Where everything is served.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Serves until `stop`; then lets running calls end, for at most five seconds.
    pub async fn run(self, stop: CancellationToken) {
        let mut parts = JoinSet::new();
        if let Some(store) = self.store {
            parts.spawn(store.run(stop.clone()));
        }
        if let Some(dns) = self.dns {
            parts.spawn(dns.run(stop.clone()));
        }
        if let Some(tls) = self.tls.clone() {
            let stop = stop.clone();
            parts.spawn(async move {
                if let Err(error) = tls.follow(stop).await {
                    tracing::error!(%error, "TLS files are no longer watched; a restart reads them");
                }
            });
        }
        if let Some(listener) = self.metrics {
            let served = metrics::serve(listener, self.registry, stop.clone());
            parts.spawn(async move {
                if let Err(error) = served.await {
                    tracing::error!(%error, "metrics are no longer served");
                }
            });
        }
        let door = Arc::new(Door {
            tls: self.tls,
            crowd: self.crowd,
            calls: self.calls,
        });
        for listener in self.listeners {
            parts.spawn(Arc::clone(&door).open(listener, stop.clone()));
        }
        stop.cancelled().await;
        // Whoever watches it turns to another hub before this one closes.
        self.health
            .set_service_status("", tonic_health::ServingStatus::NotServing)
            .await;
        let ended = async { while parts.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, ended).await.is_err() {
            tracing::warn!("calls still ran when the hub had to stop; they were broken off");
        }
    }
}

/// What every listener does with connections.
struct Door {
    tls: Option<Arc<Reloading>>,
    crowd: Arc<Crowd>,
    calls: Calls,
}

impl Door {
    /// Accepts until `stop`, then waits for what it accepted.
    async fn open(self: Arc<Self>, listener: Listener, stop: CancellationToken) {
        let metrics = &self.calls.metrics;
        let mut connections = JoinSet::new();
        loop {
            let stream = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => {
                    metrics.connections(self.crowd.len());
                    continue;
                }
                accepted = listener.accept() => match accepted {
                    Ok(stream) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let Some((seat, evicted)) = self.crowd.enter() else {
                metrics.closed(Closed::refused);
                continue;
            };
            if evicted {
                metrics.closed(Closed::evicted);
            }
            metrics.connections(self.crowd.len());
            let tls = self.tls.as_ref().filter(|_| listener.is_tcp());
            let tls = tls.map(|tls| TlsAcceptor::from(tls.current()));
            connections.spawn(connection::serve(
                stream,
                tls,
                Arc::new(seat),
                self.calls.clone(),
                stop.clone(),
            ));
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }
}

/// Makes the state directory, for its owner alone, and locks it.
fn take(dir: &Path) -> Result<File, ServeError> {
    let fail = |verb, path: &Path| {
        let path = path.to_owned();
        move |source| ServeError::State { verb, path, source }
    };
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(fail("create", dir))?;
    let path = dir.join("lock");
    let lock = File::create(&path).map_err(fail("create", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(ServeError::InUse(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(fail("lock", &path)(error)),
    }
}

async fn bind_metrics(address: SocketAddr) -> Result<(TcpListener, String), ServeError> {
    let fail = |source| ServeError::Listen {
        address: Address::Tcp(address),
        what: "metrics",
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let url = format!("http://{}/metrics", listener.local_addr().map_err(fail)?);
    Ok((listener, url))
}

/// Asks for as many file descriptors as there may be connections. Where the system gives fewer, it says so.
fn raise_file_limit(connections: usize) {
    let wanted = u64::try_from(connections)
        .unwrap_or(u64::MAX)
        .saturating_add(OTHER_FILES);
    let raise = || {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let raised = wanted.min(hard);
        if soft < raised {
            setrlimit(Resource::RLIMIT_NOFILE, raised, hard)?;
        }
        nix::Result::Ok(soft.max(raised))
    };
    match raise() {
        Ok(files) if files >= wanted => {}
        Ok(files) => tracing::warn!(
            files,
            wanted,
            "there are fewer file descriptors than connections are allowed; try: a higher LimitNOFILE, or fewer limits.connections"
        ),
        Err(error) => tracing::warn!(%error, "cannot raise the number of file descriptors"),
    }
}
