//! Logs, commands and explanations that go through an agent's session: each is numbered by the hub, and its answers are
//! led to whoever asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pico_proto::v1::hub_message::Kind;
use pico_proto::v1::stream_data::Kind as Data;
use pico_proto::{STREAM_WINDOW, v1};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tonic::Code;

use super::sessions::Session;
use super::{Handle, Hub, operations};
use crate::id::OperationId;
use crate::problem::Problem;
use crate::registry::{App, RegistryError};

/// What waits for answers of one agent.
#[derive(Debug, Default)]
pub(super) struct Streams {
    last: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The agent is gone: nothing is added any more.
    closed: bool,
    open: HashMap<u64, Reader>,
    explained: HashMap<String, oneshot::Sender<v1::Outcome>>,
}

/// Where a stream's pieces go.
#[derive(Debug)]
struct Reader {
    pieces: mpsc::Sender<Data>,
    /// For pieces that the agent has not taken yet.
    room: Arc<Semaphore>,
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent has sent a piece. One that nobody reads any more is dropped.
    pub(super) fn deliver(&self, piece: v1::StreamData) {
        let Some(data) = piece.kind else { return };
        let mut waiting = self.lock();
        let Some(reader) = waiting.open.get(&piece.stream_id) else {
            return;
        };
        if let Data::Taken(count) = data {
            let most = STREAM_WINDOW - reader.room.available_permits().min(STREAM_WINDOW);
            let count = usize::try_from(count).unwrap_or(usize::MAX).min(most);
            reader.room.add_permits(count);
            return;
        }
        let ends = matches!(data, Data::End(_));
        // There is room for all that an agent may send.
        if reader.pieces.try_send(data).is_err() || ends {
            waiting.open.remove(&piece.stream_id);
        }
    }

    /// The agent has answered an operation; none: it was an explain command, and whoever asked has the answer.
    pub(super) fn explained(&self, outcome: v1::Outcome) -> Option<v1::Outcome> {
        match self.lock().explained.remove(&outcome.operation_id) {
            Some(waiting) => {
                let _ = waiting.send(outcome);
                None
            }
            None => Some(outcome),
        }
    }

    /// The agent is gone: all readers see the end.
    pub(super) fn close(&self) {
        *self.lock() = Waiting {
            closed: true,
            ..Waiting::default()
        };
    }
}

fn piece(number: u64, data: Data) -> v1::HubMessage {
    v1::HubMessage {
        kind: Some(Kind::Stream(v1::StreamData {
            stream_id: number,
            kind: Some(data),
        })),
    }
}

/// One stream through an agent. Dropped, it tells the agent that its reader has gone.
#[derive(Debug)]
pub struct Through {
    number: u64,
    session: Session,
    pieces: mpsc::Receiver<Data>,
    room: Arc<Semaphore>,
    /// Read, and not yet told.
    taken: usize,
}

impl Through {
    /// The next piece; none when the agent or the session is gone.
    pub async fn next(&mut self) -> Option<Data> {
        if self.taken >= STREAM_WINDOW / 2 {
            let taken = u32::try_from(self.taken).unwrap_or(u32::MAX);
            let told = piece(self.number, Data::Taken(taken));
            self.session.sender.send(Ok(told)).await.ok()?;
            self.taken = 0;
        }
        let next = self.pieces.recv().await?;
        self.taken += 1;
        Some(next)
    }

    /// What is sent the other way.
    pub fn feed(&self) -> Feed {
        Feed {
            number: self.number,
            sender: self.session.sender.clone(),
            room: self.room.clone(),
        }
    }
}

/// What goes to the agent on a stream.
#[derive(Debug)]
pub struct Feed {
    number: u64,
    sender: mpsc::Sender<super::sessions::Outgoing>,
    room: Arc<Semaphore>,
}

impl Feed {
    /// Waits until the agent has room for another piece. What takes it from its source first would hold it in vain.
    pub async fn ready(&self) {
        // The semaphore is never closed.
        drop(self.room.acquire().await);
    }

    /// Something for the agent, when it has room.
    ///
    /// # Errors
    /// It is not attached any more.
    pub async fn send(&self, data: Data) -> Result<(), Problem> {
        if let Ok(room) = self.room.acquire().await {
            room.forget();
        }
        let sent = self.sender.send(Ok(piece(self.number, data))).await;
        sent.map_err(|_| cut_off())
    }
}

impl Drop for Through {
    fn drop(&mut self) {
        let known = self.session.streams.lock().open.remove(&self.number).is_some();
        if known {
            let end = Data::End(v1::StreamEnd { error: None });
            let _ = self.session.sender.try_send(Ok(piece(self.number, end)));
        }
    }
}

/// An explain command that was sent. Dropped, its answer is not waited for any more.
struct Explaining<'a> {
    streams: &'a Streams,
    id: String,
}

impl Drop for Explaining<'_> {
    fn drop(&mut self) {
        self.streams.lock().explained.remove(&self.id);
    }
}

/// The agent went away in the middle.
pub fn cut_off() -> Problem {
    Problem::new(Code::Unavailable, "AGENT_LOST", "the app's agent was cut off")
        .hint("try again when it is back")
}

/// What an agent answered, as a refusal.
pub fn refused(error: v1::OperationError) -> Problem {
    let problem = Problem::new(Code::FailedPrecondition, "AGENT_REFUSED", error.message);
    if error.hint.is_empty() {
        problem
    } else {
        problem.hint(error.hint)
    }
}

impl Hub {
    async fn session_of(&self, handle: Handle) -> Result<(App, Session), Problem> {
        let app = self.read(move |rows| handle.find(rows)).await?;
        let session = app.agent.and_then(|agent| self.sessions.of(agent));
        match session {
            Some(session) => Ok((app, session)),
            None => Err(operations::agent_away(&app)),
        }
    }

    /// Opens a stream of logs or of a command.
    ///
    /// # Errors
    /// There is no such app for this caller, or its agent is away.
    pub async fn open_stream(&self, handle: Handle, kind: v1::open_stream::Kind) -> Result<Through, Problem> {
        let (app, session) = self.session_of(handle).await?;
        let number = session.streams.last.fetch_add(1, Ordering::Relaxed) + 1;
        // Its end needs a place, too.
        let (sender, pieces) = mpsc::channel(STREAM_WINDOW + 1);
        let room = Arc::new(Semaphore::new(STREAM_WINDOW));
        let reader = Reader {
            pieces: sender,
            room: room.clone(),
        };
        {
            let mut waiting = session.streams.lock();
            if waiting.closed {
                return Err(cut_off());
            }
            waiting.open.insert(number, reader);
        }
        let through = Through {
            number,
            session,
            pieces,
            room,
            taken: 0,
        };
        let open = v1::OpenStream {
            stream_id: number,
            app_id: app.id.to_string(),
            kind: Some(kind),
        };
        let message = v1::HubMessage {
            kind: Some(Kind::Open(open)),
        };
        through
            .session
            .sender
            .send(Ok(message))
            .await
            .map_err(|_| cut_off())?;
        Ok(through)
    }

    /// Why an app is awake or asleep, by its agent.
    ///
    /// # Errors
    /// There is no such app for this caller, its agent is away, or does not answer.
    pub async fn explain_app(self: &Arc<Self>, handle: Handle) -> Result<v1::ExplainAppResponse, Problem> {
        let (app, session) = self.session_of(handle).await?;
        let id = OperationId::random().map_err(|error| RegistryError::Database(error.to_string()))?;
        let (sender, answer) = oneshot::channel();
        let _explaining = {
            let mut waiting = session.streams.lock();
            if waiting.closed {
                return Err(cut_off());
            }
            waiting.explained.insert(id.to_string(), sender);
            Explaining {
                streams: &session.streams,
                id: id.to_string(),
            }
        };
        let command = v1::Command {
            operation_id: id.to_string(),
            app_id: app.id.to_string(),
            verb: v1::command::Verb::Explain.into(),
        };
        let message = v1::HubMessage {
            kind: Some(Kind::Command(command)),
        };
        session.sender.send(Ok(message)).await.map_err(|_| cut_off())?;
        let outcome = answer.await.map_err(|_| cut_off())?;
        if let Some(error) = outcome.error {
            return Err(refused(error));
        }
        Ok(v1::ExplainAppResponse {
            app: Some(self.show_app(&app)),
            ..outcome.explained.unwrap_or_default()
        })
    }
}
