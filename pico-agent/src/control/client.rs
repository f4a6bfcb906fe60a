//! The command line's side of the control socket. Blocking: a command asks one thing and waits for it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::protocol::{ErrorCode, Failure, Reply, Request, Response};
use crate::logs::read::Line;

/// No reply line is longer; an agent that sends one is none.
const MAX_REPLY: u64 = 64 << 20;

/// Why an agent's answer is not had.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot reach the agent at {socket} ({source})")]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody may listen, but not to this user.
    #[error("may not speak to the agent at {socket} ({source})")]
    Denied {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No answer in time. What was asked for may still be done.
    #[error("the agent at {socket} did not answer within {} s", after.as_secs())]
    Timeout {
        /// The socket.
        socket: PathBuf,
        /// How long was waited.
        after: Duration,
    },
    /// The agent went away, or what it said is not understood.
    #[error("the agent at {socket} gave no answer ({why})")]
    NoAnswer {
        /// The socket.
        socket: PathBuf,
        /// What happened.
        why: String,
    },
    /// The agent answered that it did not do it.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The reader of a log does not want more (its output is closed).
    #[error("cannot print ({0})")]
    Output(io::Error),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::Unreachable { .. } => Failure::new(ErrorCode::Unreachable, message)
                .hint("is pico-agent running? pico-agent run --config FILE; or name its socket by --socket"),
            ClientError::Denied { .. } => Failure::new(ErrorCode::Denied, message).hint("run it with sudo"),
            ClientError::Timeout { .. } => Failure::new(ErrorCode::Timeout, message)
                .hint("the agent may still be at it: see pico-agent app list, or give a longer --timeout"),
            ClientError::NoAnswer { .. } => Failure::new(ErrorCode::Unreachable, message)
                .hint("see the agent's own log, and that both are of one version"),
            ClientError::Refused(failure) => failure,
            ClientError::Output(_) => Failure::new(ErrorCode::Failed, message),
        }
    }
}

/// Speaks to the agent behind one socket, one connection for each request.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    timeout: Option<Duration>,
}

impl Client {
    /// `timeout` bounds how long an answer is waited for; `None`: as long as it takes.
    pub fn new(socket: &Path, timeout: Option<Duration>) -> Client {
        Client {
            socket: socket.to_owned(),
            timeout,
        }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn call(&self, request: &Request) -> Result<Response, ClientError> {
        let mut replies = self.send(request)?;
        self.receive(&mut replies)
    }

    /// Asks for logs, and hands every line on as it comes, until there are no more or `print` fails.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn logs(
        &self,
        request: &Request,
        mut print: impl FnMut(Line) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let mut replies = self.send(request)?;
        loop {
            match self.receive(&mut replies)? {
                Response::Line(line) => print(line).map_err(ClientError::Output)?,
                Response::End => return Ok(()),
                other => return Err(self.no_answer(format!("not a line: {other:?}"))),
            }
        }
    }

    fn send(&self, request: &Request) -> Result<BufReader<UnixStream>, ClientError> {
        let connect = |source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Denied {
                socket: self.socket.clone(),
                source,
            },
            _ => ClientError::Unreachable {
                socket: self.socket.clone(),
                source,
            },
        };
        let mut stream = UnixStream::connect(&self.socket).map_err(connect)?;
        stream.set_read_timeout(self.timeout).map_err(connect)?;
        let mut line = serde_json::to_vec(request).map_err(|error| self.no_answer(error.to_string()))?;
        line.push(b'\n');
        // An agent that refuses may close before it has read: its answer says why.
        match stream.write_all(&line) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(self.failed(error)),
            _ => Ok(BufReader::new(stream)),
        }
    }

    fn receive(&self, replies: &mut BufReader<UnixStream>) -> Result<Response, ClientError> {
        let mut line = Vec::new();
        replies
            .take(MAX_REPLY)
            .read_until(b'\n', &mut line)
            .map_err(|error| self.failed(error))?;
        if line.is_empty() {
            return Err(self.no_answer("it closed the connection".to_owned()));
        }
        match serde_json::from_slice(&line) {
            Ok(Reply::Ok(response)) => Ok(response),
            Ok(Reply::Error(failure)) => Err(failure.into()),
            Err(error) => Err(self.no_answer(error.to_string())),
        }
    }

    fn failed(&self, error: io::Error) -> ClientError {
        match (error.kind(), self.timeout) {
            (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some(after)) => ClientError::Timeout {
                socket: self.socket.clone(),
                after,
            },
            _ => self.no_answer(error.to_string()),
        }
    }

    fn no_answer(&self, why: String) -> ClientError {
        ClientError::NoAnswer {
            socket: self.socket.clone(),
            why,
        }
    }
}
