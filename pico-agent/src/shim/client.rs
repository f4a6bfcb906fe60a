//! The agent's end of a shim's socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::protocol::{Event, MAX_PACKET, Request, ShimConfig, VERSION};
use super::socket::{packet_pair, receive_packet, send_packet};

/// Why a shim cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It cannot be started.
    #[error("cannot start {path}: {source}")]
    Spawn {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be reached.
    #[error("the shim at {path} does not answer: {source}")]
    Connect {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is gone.
    #[error("the shim is gone: {0}")]
    Gone(io::Error),
}

/// A connection to a shim. When its events end, the shim is gone.
#[derive(Debug, Clone)]
pub struct ShimClient {
    socket: Arc<AsyncFd<OwnedFd>>,
}

impl ShimClient {
    /// Starts a shim from the program at `path`; what it has to say of itself goes to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn spawn(
        path: &Path,
        config: &ShimConfig,
        log: std::fs::File,
    ) -> Result<(ShimClient, mpsc::UnboundedReceiver<Event>), ClientError> {
        let failed = |source: io::Error| ClientError::Spawn {
            path: path.to_owned(),
            source,
        };
        let (mine, theirs) = packet_pair().map_err(|error| failed(error.into()))?;
        let mut child = tokio::process::Command::new(path)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(log)
            .current_dir("/")
            .env_clear()
            .envs(crate::failpoint::environment())
            .spawn()
            .map_err(failed)?;
        tokio::spawn(async move { child.wait().await });
        let config = serde_json::to_vec(config).map_err(|error| failed(error.into()))?;
        send_packet(mine.as_fd(), &config, None).map_err(|error| failed(error.into()))?;
        Self::over(mine).map_err(failed)
    }

    /// Connects to the shim that an earlier agent started.
    ///
    /// # Errors
    /// When none listens there.
    pub fn connect(path: &Path) -> Result<(ShimClient, mpsc::UnboundedReceiver<Event>), ClientError> {
        let failed = |source: io::Error| ClientError::Connect {
            path: path.to_owned(),
            source,
        };
        let socket = super::socket::connect(path).map_err(failed)?;
        Self::over(socket).map_err(failed)
    }

    fn over(socket: OwnedFd) -> io::Result<(ShimClient, mpsc::UnboundedReceiver<Event>)> {
        fcntl(socket.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // SAFETY: the descriptor is owned by the new value and so stays open as long as it is watched.
        let socket = Arc::new(unsafe { AsyncFd::register(socket)? });
        let (events, receiver) = mpsc::unbounded_channel();
        tokio::spawn(read_events(socket.clone(), events));
        let client = ShimClient { socket };
        client.send_now(&Request::Hello { version: VERSION })?;
        Ok((client, receiver))
    }

    fn send_now(&self, request: &Request) -> io::Result<()> {
        let bytes = serde_json::to_vec(request)?;
        Ok(send_packet(self.socket.get_ref().as_fd(), &bytes, None)?)
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When the shim is gone.
    pub async fn send(&self, request: &Request) -> Result<(), ClientError> {
        let bytes = serde_json::to_vec(request).map_err(|error| ClientError::Gone(error.into()))?;
        loop {
            let mut ready = self.socket.writable().await.map_err(ClientError::Gone)?;
            let sent = ready.try_io(|socket| Ok(send_packet(socket.get_ref().as_fd(), &bytes, None)?));
            match sent {
                Ok(sent) => return sent.map_err(ClientError::Gone),
                Err(_would_block) => {}
            }
        }
    }
}

async fn read_events(socket: Arc<AsyncFd<OwnedFd>>, events: mpsc::UnboundedSender<Event>) {
    let mut buffer = vec![0; MAX_PACKET];
    loop {
        // When nobody wants its events any more the shim must hear that: a socket kept open here would let one that
        // was asked nothing yet wait for ever.
        let readable = tokio::select! {
            readable = socket.readable() => readable,
            () = events.closed() => return,
        };
        let Ok(mut ready) = readable else { return };
        let received = ready.try_io(|socket| {
            loop {
                match receive_packet(socket.get_ref().as_fd(), &mut buffer) {
                    // Told once, before what is still queued, when the shim closed without reading all of ours.
                    Err(Errno::EINTR | Errno::ECONNRESET) => {}
                    other => return Ok(other?),
                }
            }
        });
        let len = match received {
            Err(_would_block) => continue,
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(len)) => len,
        };
        match serde_json::from_slice(&buffer[..len]) {
            Ok(event) => {
                if events.send(event).is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::error!(%error, "a shim says what this agent does not know");
                return;
            }
        }
    }
}
