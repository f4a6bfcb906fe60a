//! Logs and exec sessions that the hub opened on the stream, each a task of its own. All end with the stream.

use std::collections::HashMap;
use std::sync::Arc;

use pico_proto::v1::agent_message::Kind as Said;
use pico_proto::v1::exec_request::Kind as Input;
use pico_proto::v1::open_stream::Kind as Opened;
use pico_proto::v1::stream_data::Kind as Data;
use pico_proto::{STREAM_WINDOW, v1};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use super::session::message;
use super::{Apps, exec, report};
use crate::control::protocol::{ErrorCode, Failure};
use crate::logs::Stream;
use crate::logs::lines::Lines;

/// Streams at a time; more are refused.
const MAX_STREAMS: usize = 64;
/// Lines that one request gets at first, at most; and where it does not say how many.
const LINES: (usize, usize) = (100_000, 100);

/// Where a stream's task says what it has, and what the hub hears.
type Sender = mpsc::Sender<v1::AgentMessage>;

/// What the hub opened.
pub(super) struct Streams<A> {
    apps: Arc<A>,
    sender: Sender,
    open: HashMap<u64, Open>,
    tasks: JoinSet<u64>,
}

/// One of them.
struct Open {
    task: AbortHandle,
    room: Arc<Semaphore>,
    input: mpsc::Sender<Input>,
}

/// Where a stream's pieces go, as fast as the hub takes them.
pub(super) struct Outlet {
    id: u64,
    sender: Sender,
    /// For pieces that the hub has not taken yet.
    room: Arc<Semaphore>,
}

impl Outlet {
    /// Sends a piece when there is room for it.
    pub async fn say(&self, kind: Data) {
        // The semaphore is never closed.
        if let Ok(room) = self.room.acquire().await {
            room.forget();
        }
        self.say_now(kind).await;
    }

    /// Tells that one more piece of the hub's was taken.
    pub async fn taken(&self) {
        self.say_now(Data::Taken(1)).await;
    }

    async fn say_now(&self, kind: Data) {
        let data = v1::StreamData {
            stream_id: self.id,
            kind: Some(kind),
        };
        // Fails when the stream is gone, and this task with it.
        let _ = self.sender.send(message(Said::Stream(data))).await;
    }
}

impl<A: Apps> Streams<A> {
    /// None yet; what they have goes to `sender`.
    pub fn new(apps: Arc<A>, sender: Sender) -> Self {
        Streams {
            apps,
            sender,
            open: HashMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Opens one.
    pub fn open(&mut self, open: v1::OpenStream) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Ok(id) = ended {
                self.open.remove(&id);
            }
        }
        let id = open.stream_id;
        let full = self.open.len() >= MAX_STREAMS;
        let apps = self.apps.clone();
        let room = Arc::new(Semaphore::new(STREAM_WINDOW));
        let (input, receiver) = mpsc::channel(STREAM_WINDOW);
        let outlet = Outlet {
            id,
            sender: self.sender.clone(),
            room: room.clone(),
        };
        let task = self.tasks.spawn(async move {
            let outcome = if full {
                Err(Failure::new(
                    ErrorCode::Busy,
                    "the agent has too many open logs and exec sessions",
                ))
            } else {
                serve(apps.as_ref(), open, receiver, &outlet).await
            };
            let error = outcome.err().map(report::error);
            outlet.say_now(Data::End(v1::StreamEnd { error })).await;
            id
        });
        if let Some(old) = self.open.insert(id, Open { task, room, input }) {
            old.task.abort();
        }
    }

    /// Takes what the hub says on one.
    pub fn heard(&mut self, data: v1::StreamData) {
        let Some(open) = self.open.get(&data.stream_id) else {
            return;
        };
        match data.kind {
            Some(Data::Taken(count)) => {
                let most = STREAM_WINDOW - open.room.available_permits().min(STREAM_WINDOW);
                open.room
                    .add_permits(usize::try_from(count).unwrap_or(usize::MAX).min(most));
            }
            Some(Data::ExecInput(v1::ExecRequest { kind: Some(input) })) => {
                // Fails when the command has ended, or the hub sends more than it may.
                let _ = open.input.try_send(input);
            }
            Some(Data::End(_)) => {
                open.task.abort();
                self.open.remove(&data.stream_id);
            }
            _ => {}
        }
    }
}

async fn serve<A: Apps>(
    apps: &A,
    open: v1::OpenStream,
    input: mpsc::Receiver<Input>,
    outlet: &Outlet,
) -> Result<(), Failure> {
    let not_here = || Failure::new(ErrorCode::NotFound, "the app is not on this agent");
    let name = apps.name_of(&open.app_id).ok_or_else(not_here)?;
    match open.kind {
        Some(Opened::Logs(request)) => logs(apps, &name, &request, outlet).await,
        Some(Opened::Exec(start)) => exec::serve(apps, &name, start, input, outlet).await,
        None => Err(Failure::new(
            ErrorCode::Unsupported,
            "this agent does not know what was opened",
        )),
    }
}

async fn logs<A: Apps>(
    apps: &A,
    name: &str,
    request: &v1::ReadLogsRequest,
    outlet: &Outlet,
) -> Result<(), Failure> {
    let streams = match request.stream.as_str() {
        "" => Stream::ALL.to_vec(),
        "stdout" => vec![Stream::Stdout],
        "stderr" => vec![Stream::Stderr],
        other => {
            return Err(
                Failure::new(ErrorCode::Usage, format!("there is no stream '{other}'"))
                    .hint("ask for stdout or stderr"),
            );
        }
    };
    let count = match usize::try_from(request.lines) {
        Ok(0) => LINES.1,
        count => count.unwrap_or(LINES.0).min(LINES.0),
    };
    let dir = apps.log_dir(name).await?;
    let cannot = |error| Failure::new(ErrorCode::Failed, format!("cannot read its logs ({error})"));
    let mut lines = Lines::open(&dir, &streams, count, request.follow)
        .await
        .map_err(cannot)?;
    while let Some(found) = lines.next().await.map_err(cannot)? {
        for line in found {
            let line = v1::LogLine {
                at: line.time.map(report::time),
                stream: line.stream.to_string(),
                text: line.text.into_bytes(),
            };
            outlet.say(Data::Line(line)).await;
        }
    }
    Ok(())
}
