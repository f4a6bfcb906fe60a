//! The agent's side of the control socket. Bounded everywhere: connections, the length of a request, the time
//! to send it and to take the answer.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::protocol::{
    AgentStatus, AppDetail, AppSummary, ErrorCode, Explanation, Failure, Reply, Request, Response,
};
use crate::lifecycle::state::Tier;
use crate::logs::Stream;
use crate::logs::lines::Lines;

/// What the agent can be asked to do. Each method answers when it is done.
pub trait Handler: Send + Sync + 'static {
    /// All apps, in the order of agent.toml.
    fn list(&self) -> impl Future<Output = Vec<AppSummary>> + Send;
    /// One app.
    fn show(&self, name: &str) -> impl Future<Output = Result<AppDetail, Failure>> + Send;
    /// Why an app is as it is.
    fn explain(&self, name: &str) -> impl Future<Output = Result<Explanation, Failure>> + Send;
    /// Starts an app anew; nothing happens to one that runs.
    fn start(&self, name: &str) -> impl Future<Output = Result<AppSummary, Failure>> + Send;
    /// Ends an app.
    fn stop(&self, name: &str) -> impl Future<Output = Result<AppSummary, Failure>> + Send;
    /// Ends an app and starts it anew.
    fn restart(&self, name: &str) -> impl Future<Output = Result<AppSummary, Failure>> + Send;
    /// Swaps an app out; without `wait` answers when that has begun.
    fn sleep(
        &self,
        name: &str,
        to: Tier,
        wait: bool,
    ) -> impl Future<Output = Result<AppSummary, Failure>> + Send;
    /// Swaps an app in; nothing happens to one that runs.
    fn wake(&self, name: &str) -> impl Future<Output = Result<AppSummary, Failure>> + Send;
    /// The directory with an app's log files.
    fn log_dir(&self, name: &str) -> impl Future<Output = Result<PathBuf, Failure>> + Send;
    /// The agent itself.
    fn status(&self) -> impl Future<Output = AgentStatus> + Send;
}

/// Bounds of the server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; more are told so and closed.
    pub connections: usize,
    /// Bytes of a request.
    pub request_bytes: u64,
    /// Time for a client to send its request.
    pub request_time: Duration,
    /// Time for a client to take one line of the answer.
    pub write_time: Duration,
    /// Time for requests that are being carried out when the server is stopped.
    pub stop_time: Duration,
    /// Most lines that one request for logs gets at first.
    pub log_lines: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 64,
            request_bytes: 64 * 1024,
            request_time: Duration::from_secs(10),
            write_time: Duration::from_secs(30),
            stop_time: Duration::from_secs(5),
            log_lines: 100_000,
        }
    }
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {path} ({source}); try: run as root, and another state_dir if that is not writable"
)]
pub struct BindError {
    /// The socket.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// A bound control socket. It is removed when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    limits: Limits,
}

impl Server {
    /// Listens on a path, mode 0600, in place of a socket that a crashed agent left there. The caller holds
    /// the [`super::lock::AgentLock`], so that no living one is replaced.
    ///
    /// # Errors
    /// [`BindError`]
    pub fn bind(path: &Path, limits: Limits) -> Result<Server, BindError> {
        // Under its own name only when it has its mode: nobody connects in between.
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        let bind = || {
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&temporary)?;
            fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
            fs::rename(&temporary, path)?;
            Ok(listener)
        };
        let listener = bind().map_err(|source| BindError {
            path: path.to_owned(),
            source,
        })?;
        Ok(Server {
            listener,
            path: path.to_owned(),
            limits,
        })
    }

    /// Answers requests until `stop`, then for a moment those that are being carried out.
    pub async fn serve<H: Handler>(self, handler: Arc<H>, stop: CancellationToken) {
        let permits = Arc::new(Semaphore::new(self.limits.connections));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors: it gets better only when a connection ends.
                    tracing::warn!(%error, "cannot accept on the control socket");
                    if connections.join_next().await.is_none() {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    continue;
                }
            };
            let connection = Connection {
                limits: self.limits,
                handler: handler.clone(),
                stop: stop.clone(),
            };
            let permit = permits.clone().try_acquire_owned();
            connections.spawn(async move {
                let outcome = match permit {
                    Ok(_permit) => connection.serve(stream).await,
                    Err(_) => connection.refuse(stream).await,
                };
                if let Err(error) = outcome {
                    tracing::debug!(%error, "a control connection ended early");
                }
            });
        }
        let finish = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(self.limits.stop_time, finish).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

struct Connection<H> {
    limits: Limits,
    handler: Arc<H>,
    stop: CancellationToken,
}

impl<H: Handler> Connection<H> {
    async fn refuse(&self, stream: UnixStream) -> io::Result<()> {
        let busy = Failure::new(ErrorCode::Busy, "the agent has too many control connections")
            .hint("end some `app logs --follow`, then again");
        self.send(&mut stream.into_split().1, &Reply::Error(busy)).await
    }

    async fn serve(&self, stream: UnixStream) -> io::Result<()> {
        let peer = stream.peer_cred()?.uid();
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        if peer != 0 && peer != nix::unistd::geteuid().as_raw() {
            let denied = Failure::new(
                ErrorCode::Denied,
                format!("the agent does not answer user {peer}"),
            )
            .hint("run it with sudo");
            return self.send(&mut write, &Reply::Error(denied)).await;
        }
        let request = match tokio::time::timeout(self.limits.request_time, self.request(&mut read)).await {
            Ok(request) => request?,
            Err(_) => Err(Failure::new(ErrorCode::Timeout, "no request came in time")),
        };
        match request {
            Ok(Request::Logs {
                name,
                lines,
                follow,
                stream,
            }) => {
                let streams = stream.map_or(Stream::ALL.to_vec(), |stream| vec![stream]);
                let reply = match self
                    .logs(&name, lines, follow, &streams, &mut read, &mut write)
                    .await?
                {
                    Ok(()) => Reply::Ok(Response::End),
                    Err(failure) => Reply::Error(failure),
                };
                self.send(&mut write, &reply).await
            }
            Ok(request) => {
                let reply = self.handle(request).await.map_or_else(Reply::Error, Reply::Ok);
                self.send(&mut write, &reply).await
            }
            Err(failure) => self.send(&mut write, &Reply::Error(failure)).await,
        }
    }

    async fn request(&self, read: &mut BufReader<OwnedReadHalf>) -> io::Result<Result<Request, Failure>> {
        let mut line = Vec::new();
        read.take(self.limits.request_bytes + 1)
            .read_until(b'\n', &mut line)
            .await?;
        if line.len() as u64 > self.limits.request_bytes {
            let message = format!("the request is longer than {} bytes", self.limits.request_bytes);
            return Ok(Err(Failure::new(ErrorCode::Usage, message)));
        }
        Ok(serde_json::from_slice(&line).map_err(|error| {
            Failure::new(
                ErrorCode::Usage,
                format!("the agent does not understand the request ({error})"),
            )
            .hint("use the pico-agent of the same version as the running agent")
        }))
    }

    async fn handle(&self, request: Request) -> Result<Response, Failure> {
        let handler = &self.handler;
        let app = match request {
            Request::List => {
                return Ok(Response::Apps {
                    apps: handler.list().await,
                });
            }
            Request::Show { name } => {
                return Ok(Response::Detail {
                    app: Box::new(handler.show(&name).await?),
                });
            }
            Request::Explain { name } => {
                return Ok(Response::Explained(handler.explain(&name).await?));
            }
            Request::Status => return Ok(Response::Status(handler.status().await)),
            Request::Logs { .. } => return Ok(Response::End), // answered line by line, not here
            Request::Start { name } => handler.start(&name).await?,
            Request::Stop { name } => handler.stop(&name).await?,
            Request::Restart { name } => handler.restart(&name).await?,
            Request::Sleep { name, to, wait } => handler.sleep(&name, to, wait).await?,
            Request::Wake { name } => handler.wake(&name).await?,
        };
        Ok(Response::App { app })
    }

    /// Sends the last lines and, if asked, what comes, until the client goes away or the server stops.
    async fn logs(
        &self,
        name: &str,
        lines: usize,
        follow: bool,
        streams: &[Stream],
        read: &mut BufReader<OwnedReadHalf>,
        write: &mut OwnedWriteHalf,
    ) -> io::Result<Result<(), Failure>> {
        let dir = match self.handler.log_dir(name).await {
            Ok(dir) => dir,
            Err(failure) => return Ok(Err(failure)),
        };
        let cannot = |error: io::Error| {
            Failure::new(
                ErrorCode::Failed,
                format!("cannot read the logs in {} ({error})", dir.display()),
            )
        };
        let lines = lines.min(self.limits.log_lines);
        let mut lines = match Lines::open(&dir, streams, lines, follow).await {
            Ok(lines) => lines,
            Err(error) => return Ok(Err(cannot(error))),
        };
        loop {
            let mut nothing = [0; 64];
            let next = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(Ok(())),
                next = lines.next() => next,
                // A client says nothing after its request: what comes is its end.
                read = read.read(&mut nothing) => if read? == 0 { return Ok(Ok(())) } else { continue },
            };
            match next {
                Ok(Some(found)) => self.send_lines(write, found).await?,
                Ok(None) => return Ok(Ok(())),
                Err(error) => return Ok(Err(cannot(error))),
            }
        }
    }

    async fn send_lines(
        &self,
        write: &mut OwnedWriteHalf,
        lines: Vec<crate::logs::read::Line>,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut bytes, &Reply::Ok(Response::Line(line)))?;
            bytes.push(b'\n');
            if bytes.len() >= 64 * 1024 {
                self.send_bytes(write, &bytes).await?;
                bytes.clear();
            }
        }
        self.send_bytes(write, &bytes).await
    }

    async fn send(&self, write: &mut OwnedWriteHalf, reply: &Reply) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(reply)?;
        bytes.push(b'\n');
        self.send_bytes(write, &bytes).await
    }

    async fn send_bytes(&self, write: &mut OwnedWriteHalf, bytes: &[u8]) -> io::Result<()> {
        tokio::time::timeout(self.limits.write_time, write.write_all(bytes)).await?
    }
}
