//! Where traces and sets come from: a file, or an app, of which the agent tells where its files lie.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::{Trace, decode};
use super::words::{Words, usage};
use crate::activeset::{ActiveSets, FILE_MAX};
use crate::config::DEFAULT_STATE_DIR;
use crate::control::client::Client;
use crate::control::protocol::{AppSummary, ErrorCode, Failure, Request, Response};
use crate::lifecycle::paths::AppPaths;
use crate::lifecycle::record::write_atomically;

/// Most bytes of a trace that are read.
const TRACE_MAX: u64 = 256 << 20;
/// How long the agent may take to say where its files are.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the agent is found.
pub(super) struct Agent {
    pub(super) socket: Option<PathBuf>,
}

impl Agent {
    /// The paths of an app, and how it is.
    fn app(&self, name: &str) -> Result<(AppPaths, AppSummary), Failure> {
        let default = || Path::new(DEFAULT_STATE_DIR).join("agent.sock");
        let socket = self.socket.clone().unwrap_or_else(default);
        let client = Client::new(&socket, Some(PATIENCE));
        let strange = |_| Failure::new(ErrorCode::Failed, "the agent answered something else");
        let app = match client.call(&Request::Show {
            name: name.to_owned(),
        })? {
            Response::Detail { app } => app.summary,
            other => return Err(strange(other)),
        };
        match client.call(&Request::Status)? {
            // The name is one that the agent knows: it does not lead out of its folder.
            Response::Status(status) => Ok((AppPaths::new(Path::new(&status.state_dir), &app.name), app)),
            other => Err(strange(other)),
        }
    }
}

/// `app NAME` or `file FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Handle {
    App(String),
    File(PathBuf),
}

impl Handle {
    pub(super) fn of(words: &Words) -> Result<Self, Failure> {
        match (words.value("app"), words.value("file")) {
            (Some(app), None) => Ok(Handle::App(app.to_owned())),
            (None, Some(file)) => Ok(Handle::File(file.into())),
            (None, None) => Err(usage("whose? name one").hint("app NAME, or file FILE")),
            (Some(_), Some(_)) => Err(usage("one of them, not several").hint("app NAME, or file FILE")),
        }
    }

    /// The trace of that handle.
    pub(super) fn trace(&self, agent: &Agent) -> Result<Trace, Failure> {
        let path = match self {
            Handle::File(path) => path.clone(),
            Handle::App(name) => agent.app(name)?.0.trace(),
        };
        let hint = match self {
            Handle::App(name) => format!("was a trace of {name} recorded?"),
            Handle::File(_) => String::new(),
        };
        let bytes = read(&path, TRACE_MAX, "trace").map_err(|failure| failure.hint(hint))?;
        decode(&bytes)
            .map_err(|error| Failure::new(ErrorCode::Failed, format!("{}: {error}", path.display())))
    }

    /// Where the sets of that handle lie.
    fn sets_path(&self, agent: &Agent) -> Result<PathBuf, Failure> {
        match self {
            Handle::File(path) => Ok(path.clone()),
            Handle::App(name) => Ok(agent.app(name)?.0.active_sets()),
        }
    }

    /// The sets of that handle.
    pub(super) fn sets(&self, agent: &Agent) -> Result<ActiveSets, Failure> {
        let path = self.sets_path(agent)?;
        let hint = match self {
            Handle::App(name) => format!("{name} has sets once it has been swapped out after a request"),
            Handle::File(_) => String::new(),
        };
        let bytes = read(&path, FILE_MAX as u64, "sets").map_err(|failure| failure.hint(hint))?;
        ActiveSets::decode(&bytes)
            .map_err(|error| Failure::new(ErrorCode::Failed, format!("{}: {error}", path.display())))
    }

    /// Where changed sets of that handle may be written: of an app, only while it is asleep, because the agent has
    /// those of a running one in its own hands.
    pub(super) fn sets_path_to_change(&self, agent: &Agent) -> Result<PathBuf, Failure> {
        let Handle::App(name) = self else {
            return self.sets_path(agent);
        };
        let (paths, app) = agent.app(name)?;
        match app.state.as_str() {
            "warm" | "cold" => Ok(paths.active_sets()),
            state => Err(Failure::new(
                ErrorCode::WrongState,
                format!("{name} is {state}: its sets can be changed while it is asleep"),
            )
            .hint(format!("pico-agent app sleep {name}"))),
        }
    }
}

/// Replaces a file.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    write_atomically(path, bytes).map_err(|error| {
        Failure::new(
            ErrorCode::Failed,
            format!("cannot write {} ({error})", path.display()),
        )
    })
}

fn read(path: &Path, most: u64, what: &str) -> Result<Vec<u8>, Failure> {
    let failure = |error: std::io::Error| {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorCode::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorCode::Denied,
            _ => ErrorCode::Failed,
        };
        Failure::new(
            code,
            format!("cannot read the {what} {} ({error})", path.display()),
        )
    };
    // A fifo would be waited for.
    if !fs::metadata(path).map_err(failure)?.is_file() {
        return Err(Failure::new(
            ErrorCode::Usage,
            format!("{} is no regular file", path.display()),
        ));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failure)?;
    file.take(most + 1).read_to_end(&mut bytes).map_err(failure)?;
    match bytes.len() as u64 > most {
        true => Err(Failure::new(
            ErrorCode::Failed,
            format!("{} is larger than any {what}", path.display()),
        )),
        false => Ok(bytes),
    }
}
