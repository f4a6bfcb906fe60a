//! The authoritative name server of one zone: each app is `NAME-OWNER.ZONE`. It owns what is said of names and how
//! messages are answered; what apps there are it asks of [`Names`]. It must not know how the hub keeps apps, nor how
//! an agent is told that a client is near.
//!
//! Pure: `zone` (what exists), `respond` (message in, message out), `limit`, `soon` and `recent` (bounded memory of
//! clients and apps; time is handed in). I/O: `udp`, `tcp`. The sockets are our own: those of hickory-server start a
//! task per datagram and take any number of connections. Its messages are used.

mod config;
mod hub;
mod limit;
mod recent;
mod respond;
mod service;
mod soon;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;
mod zone;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use pico_proto::port::Port;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::DnsConfig;
pub use hub::HubNames;
pub use service::Counts;
use service::Service;
use tcp::Connections;
use zone::Zone;

/// What the name server asks of the hub. Called for each query, so it answers from memory and never waits.
pub trait Names: Send + Sync + 'static {
    /// The app called `label`, which is `NAME-OWNER` in lower case.
    fn find(&self, label: &str) -> Option<Named>;

    /// The zone's serial number: another one whenever a name came, went or changed.
    fn serial(&self) -> u32;

    /// A client is about to come to a sleeping app: its agent is to fetch what a wake needs, or, with `wake`, to wake
    /// it. Called after the client has its answer, at a bounded rate.
    fn soon(&self, app: &str, wake: bool);
}

/// An app, as far as its name goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The hub's id of it, for [`Names::soon`].
    pub app: Arc<str>,
    /// Its service addresses; none before an agent has it.
    pub v4: Option<Ipv4Addr>,
    /// The same, for IPv6.
    pub v6: Option<Ipv6Addr>,
    /// What it publishes.
    pub ports: Arc<[Port]>,
    /// What a query does besides being answered. `None` while it is awake, or where its owner wants nothing.
    pub soon: Option<Soon>,
}

/// What a query for a sleeping app does besides being answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Soon {
    /// Its agent fetches what a wake will need.
    Prefetch,
    /// Its agent wakes it.
    Wake,
}

/// Why the name server does not begin.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The configuration is wrong; all of its problems.
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    /// An address cannot be listened on.
    #[error("cannot listen for DNS on {address} ({source}); try: another address in [dns] listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// A bound name server.
pub struct Server {
    service: Arc<Service>,
    sockets: Vec<(UdpSocket, TcpListener)>,
}

/// With port 0, how often a port that is free for UDP may turn out to be taken for TCP.
const PORT_TRIES: usize = 20;

impl Server {
    /// Checks the configuration and listens on all of its addresses, each for UDP and TCP.
    ///
    /// # Errors
    /// [`DnsError`], with nothing bound.
    pub async fn bind(config: &DnsConfig, names: Arc<dyn Names>) -> Result<Server, DnsError> {
        let zone = Zone::new(config).map_err(DnsError::Config)?;
        let mut sockets = Vec::new();
        for &address in &config.listen {
            let pair = bind_pair(address)
                .await
                .map_err(|source| DnsError::Listen { address, source })?;
            sockets.push(pair);
        }
        let service = Arc::new(Service::new(zone, names, config));
        Ok(Server { service, sockets })
    }

    /// Where it listens, ports filled in, in the order of the configuration.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets
            .iter()
            .filter_map(|(udp, _)| udp.local_addr().ok())
            .collect()
    }

    /// What has happened so far; goes on being counted while the server runs.
    pub fn counts(&self) -> Arc<Counts> {
        self.service.counts()
    }

    /// Answers until it is told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let connections = Connections::new();
        let mut tasks = JoinSet::new();
        for (udp, tcp) in self.sockets {
            let udp = Arc::new(udp);
            for _ in 0..udp::tasks() {
                tasks.spawn(udp::serve(
                    Arc::clone(&udp),
                    Arc::clone(&self.service),
                    stop.clone(),
                ));
            }
            let service = Arc::clone(&self.service);
            tasks.spawn(tcp::serve(tcp, service, connections.clone(), stop.clone()));
        }
        while tasks.join_next().await.is_some() {}
    }
}

async fn bind_pair(address: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener)> {
    for _ in 0..PORT_TRIES {
        let udp = UdpSocket::bind(address).await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Err(error) if address.port() == 0 && error.kind() == std::io::ErrorKind::AddrInUse => {}
            bound => return Ok((udp, bound?)),
        }
    }
    Err(std::io::ErrorKind::AddrInUse.into())
}

/// The network that a client is taken to be: an IPv4 /24, an IPv6 /56. A client has all addresses of it at will.
fn network(client: IpAddr) -> IpAddr {
    const V4_MASK: u32 = u32::MAX << 8;
    const V6_MASK: u128 = u128::MAX << 72;
    match client.to_canonical() {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & V4_MASK).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & V6_MASK).into(),
    }
}
