//! What is said over the control socket. The same types are the JSON that `pico-agent -j` prints, so their
//! names are a promise: fields are added, never renamed. Times are RFC 3339, sizes bytes, durations
//! milliseconds where the name says so and else seconds.

use serde::{Deserialize, Serialize};

use crate::addresses::Addresses;
use crate::lifecycle::record::{Counters, Exit, Failure as RecordedFailure, PortSet, Wake};
use crate::lifecycle::state::Tier;
use crate::logs::Stream;
use crate::logs::read::Line;
use crate::port::Port;
use crate::units::{Timestamp, Wait};

/// Version of the protocol, told by `status`.
pub const VERSION: u32 = 1;
/// The `schema` of every JSON document that a command prints.
pub const SCHEMA: &str = "pico.v1";

/// What a client asks for; one JSON object on one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// All apps.
    List,
    /// One app with everything known of it.
    Show {
        /// The app.
        name: String,
    },
    /// Why an app is awake or asleep.
    Explain {
        /// The app.
        name: String,
    },
    /// Start a stopped or failed app anew from its files.
    Start {
        /// The app.
        name: String,
    },
    /// End an app; packets do not wake it any more.
    Stop {
        /// The app.
        name: String,
    },
    /// Stop and start.
    Restart {
        /// The app.
        name: String,
    },
    /// Swap an app out.
    Sleep {
        /// The app.
        name: String,
        /// How far.
        to: Tier,
        /// Whether to answer when it sleeps, or at once.
        wait: bool,
    },
    /// Swap an app in.
    Wake {
        /// The app.
        name: String,
    },
    /// What an app printed.
    Logs {
        /// The app.
        name: String,
        /// How many of the last lines.
        lines: usize,
        /// Whether to go on as lines come.
        follow: bool,
        /// Only this stream.
        stream: Option<Stream>,
    },
    /// The agent itself.
    Status,
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It was done.
    Ok(Response),
    /// It was not.
    Error(Failure),
}

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::List`].
    Apps {
        /// In the order of agent.toml.
        apps: Vec<AppSummary>,
    },
    /// To [`Request::Show`].
    Detail {
        /// The app.
        app: Box<AppDetail>,
    },
    /// To [`Request::Explain`].
    Explained(Explanation),
    /// To requests that change an app: how it is now.
    App {
        /// The app.
        app: AppSummary,
    },
    /// One line of a log.
    Line(Line),
    /// No more lines come.
    End,
    /// To [`Request::Status`].
    Status(AgentStatus),
}

/// An app in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppSummary {
    /// Its name.
    pub name: String,
    /// `starting`, `hot`, `swapping-out`, `warm`, `cold`, `swapping-in`, `stopping`, `stopped`, `failed`.
    pub state: String,
    /// When it came into that state.
    pub since: Timestamp,
    /// Why.
    pub reason: String,
    /// Its service addresses.
    pub addresses: Addresses,
    /// Its published ports.
    pub ports: Vec<Port>,
    /// Its first process, as the host numbers it, when it runs.
    pub pid: Option<u32>,
    /// What its processes use now; `None` when it does not run or the host does not count it.
    pub memory_bytes: Option<u64>,
    /// Its newest checkpoint.
    pub checkpoint: Option<CheckpointView>,
}

/// A checkpoint as an owner sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointView {
    /// Its number.
    pub generation: u64,
    /// Its size with all layers.
    pub bytes: u64,
    /// Whether it lies complete on this host's disk.
    pub local: bool,
    /// Whether it lies complete in object storage.
    pub stored: bool,
    /// When it was taken.
    pub taken: Option<Timestamp>,
}

/// Everything known of an app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppDetail {
    /// As in a list.
    #[serde(flatten)]
    pub summary: AppSummary,
    /// What it waits for next, in words: `sleeps in 8s`, `its checkpoint is being stored`.
    pub next: String,
    /// Its policy.
    pub policy: Policy,
    /// Program and arguments.
    pub command: Vec<String>,
    /// How often things happened.
    pub counters: Counters,
    /// Its last wake.
    pub last_wake: Option<Wake>,
    /// Page faults of its processes that eBPF saw since the agent started.
    #[serde(default)]
    pub page_faults: u64,
    /// What is known of the pages that its requests need, by port.
    #[serde(default)]
    pub active_sets: Vec<PortSet>,
    /// What last went wrong.
    pub last_failure: Option<RecordedFailure>,
    /// How its process last ended by itself.
    pub last_exit: Option<Exit>,
    /// When it was made.
    pub created: Timestamp,
}

/// Why an app is awake or asleep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// How it is.
    pub app: AppSummary,
    /// What it waits for next.
    pub next: String,
    /// Facts in the order in which they should be read.
    pub facts: Vec<Fact>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What it is about: `last packet`, `connections`.
    pub subject: String,
    /// What there is to say.
    pub text: String,
}

/// What agent.toml says of when an app sleeps and starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Asleep after this long without activity.
    pub idle: Wait,
    /// From warm to cold after this long.
    pub cold_after: Wait,
    /// Whether it is started again when it ends.
    pub restart: crate::config::Restart,
    /// What it does when its process was lost.
    pub after_crash: crate::config::AfterCrash,
}

/// The agent itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Version of the agent.
    pub version: String,
    /// [`VERSION`] of the protocol it speaks.
    pub protocol: u32,
    /// Its process.
    pub pid: u32,
    /// When it was started.
    pub since: Timestamp,
    /// Where its state lies.
    pub state_dir: String,
    /// What it uses of memory itself.
    pub memory_bytes: Option<u64>,
    /// How many apps are in each state that any is in.
    pub apps: std::collections::BTreeMap<String, usize>,
}

/// What kind of failure: what a program decides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// The command line or the request cannot be understood.
    Usage,
    /// agent.toml is wrong.
    Config,
    /// There is no such app.
    NotFound,
    /// The app is in a state in which this cannot be done.
    WrongState,
    /// Another app has the name.
    NameTaken,
    /// The caller may not.
    Denied,
    /// No agent answers.
    Unreachable,
    /// This host cannot.
    Unsupported,
    /// It took too long.
    Timeout,
    /// The agent does as much as it can; later it may.
    Busy,
    /// The user ended the command.
    Interrupted,
    /// The app ended before it ran.
    StartFailed,
    /// The app's checkpoint could not be brought back; it is kept.
    RestoreFailed,
    /// The app could not be swapped out; it runs on.
    SleepFailed,
    /// Anything else, also what a newer agent calls by a name of its own.
    #[serde(other)]
    Failed,
}

/// Why something was not done: what, why, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Its kind.
    pub code: ErrorCode,
    /// What was not done, and why in parentheses.
    pub message: String,
    /// What to do next; empty when there is nothing to say.
    #[serde(default)]
    pub hint: String,
    /// Whether the same request may succeed later without anybody doing anything.
    #[serde(default)]
    pub retryable: bool,
}

impl Failure {
    /// One without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let retryable = matches!(
            code,
            ErrorCode::Busy | ErrorCode::Timeout | ErrorCode::Unreachable
        );
        Failure {
            code,
            message: message.into(),
            hint: String::new(),
            retryable,
        }
    }

    /// With what to do next.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Failure {
            hint: hint.into(),
            ..self
        }
    }

    /// There is no such app.
    pub fn no_such_app(name: &str, known: impl IntoIterator<Item = String>) -> Self {
        let known: Vec<String> = known.into_iter().collect();
        let near = crate::units::nearest(name, known.iter().map(String::as_str));
        let hint = near.map_or("`pico-agent app list` shows all".to_owned(), |near| {
            format!("did you mean '{near}'?")
        });
        Failure::new(ErrorCode::NotFound, format!("there is no app '{name}'")).hint(hint)
    }
}
