//! Owns the embedded S3 server: one directory served to clients that sign their requests.
//! Must not know who uses it: the agent treats it like any other S3.
//!
//! `objects` keeps the data (durable, atomic, no HTTP), `backend` translates S3 requests to it, this
//! module listens. Signatures are verified by the `s3s` crate.

mod backend;
mod body;
mod bucket;
mod convert;
mod credentials;
mod error;
mod file;
mod list;
mod multipart;
mod names;
mod objects;
mod uploads;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use s3s::auth::{S3Auth, SecretKey};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Result, s3_error};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::backend::Backend;
pub use self::credentials::{Credentials, CredentialsError, replace_file};
pub use self::error::StoreError;
use self::objects::Store;

/// How long running requests may take once the server is told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// What to serve, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Holds everything; created if missing.
    pub dir: PathBuf,
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Default: `credentials.json` in `dir`.
    pub credentials_file: Option<PathBuf>,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The credentials cannot be read or made.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}: {source}; {}", advice(source))]
    Listen {
        /// What was asked for.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A file another program waits for cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    PortFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "something else listens there: choose another port, or 0 for a free one",
        io::ErrorKind::AddrNotAvailable => "this host has no such address",
        io::ErrorKind::PermissionDenied => "ports below 1024 need privileges",
        _ => "choose another address with --listen",
    }
}

/// A server that listens but does not answer yet; see [`Server::run`].
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    addr: SocketAddr,
    credentials: Credentials,
    service: S3Service,
}

impl Server {
    /// Opens the storage, listens, and makes or reads the credentials. Connections made from now on wait
    /// until [`Server::run`].
    pub async fn bind(options: &Options) -> Result<Server, ServerError> {
        let dir = options.dir.clone();
        let opened = tokio::task::spawn_blocking(move || Store::open(&dir)).await;
        let store = Arc::new(opened.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?);
        let fail = |source| ServerError::Listen {
            addr: options.listen,
            source,
        };
        let listener = TcpListener::bind(options.listen).await.map_err(fail)?;
        let addr = listener.local_addr().map_err(fail)?;
        if !addr.ip().is_loopback() {
            tracing::warn!(%addr, "serving beyond this host, and unencrypted: data and requests can be read on the way");
        }
        let file = options
            .credentials_file
            .clone()
            .unwrap_or_else(|| options.dir.join("credentials.json"));
        let credentials = Credentials::load_or_create(&file, endpoint(addr))?;

        let mut builder = S3ServiceBuilder::new(Backend::new(store));
        builder.set_auth(OneKey(credentials.clone()));
        Ok(Server {
            listener,
            addr,
            credentials,
            service: builder.build(),
        })
    }

    /// Where it listens, with the port it got.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What a client needs to know.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Writes the port (decimal, newline) to a file that appears at once and whole: whoever started the
    /// server on port 0 waits for it.
    pub fn write_port_file(&self, path: &Path) -> Result<(), ServerError> {
        let text = format!("{}\n", self.addr.port());
        replace_file(path, text.as_bytes()).map_err(|source| ServerError::PortFile {
            path: path.to_owned(),
            source,
        })
    }

    /// Serves until `stop`; then lets running requests end, for at most five seconds.
    pub async fn run(self, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve(stream, self.service.clone(), stop.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        // Out of file descriptors, most likely: nothing announces their return.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
        drop(self.listener);
        let ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, ended).await.is_err() {
            tracing::warn!("requests still ran when the server had to stop; they were broken off");
        }
    }
}

async fn serve(stream: TcpStream, service: S3Service, stop: CancellationToken) {
    // Answers are small or end in a small piece: waiting to fill packets would cost 40 ms each.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

/// The URL clients on this host reach `addr` by.
fn endpoint(addr: SocketAddr) -> String {
    let ip = match addr.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    format!("http://{}", SocketAddr::new(ip, addr.port()))
}

/// Knows the one key there is.
struct OneKey(Credentials);

#[async_trait::async_trait]
impl S3Auth for OneKey {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == self.0.access_key_id {
            Ok(self.0.secret_access_key.clone().into())
        } else {
            Err(s3_error!(
                InvalidAccessKeyId,
                "unknown access key; the credentials file of this store has the right one"
            ))
        }
    }
}
