//! Logs, commands and explanations that go through an agent's session: each is numbered by the hub, and its answers are
//! led to whoever asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pico_proto::v1;
use pico_proto::v1::hub_message::Kind;
use pico_proto::v1::stream_data::Kind as Data;
use tokio::sync::{mpsc, oneshot};
use tonic::Code;

use super::sessions::Session;
use super::{Handle, Hub, operations};
use crate::id::OperationId;
use crate::problem::Problem;
use crate::registry::{App, RegistryError};

/// Pieces that may wait for a reader before its stream ends.
const QUEUE: usize = 1024;

/// What waits for answers of one agent.
#[derive(Debug, Default)]
pub(super) struct Streams {
    last: AtomicU64,
    open: Mutex<HashMap<u64, mpsc::Sender<Data>>>,
    explained: Mutex<HashMap<String, oneshot::Sender<v1::Outcome>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Streams {
    /// The agent has sent a piece. One that nobody reads any more is dropped.
    pub(super) fn deliver(&self, piece: v1::StreamData) {
        let Some(data) = piece.kind else { return };
        let ends = matches!(data, Data::End(_));
        let mut open = lock(&self.open);
        let Some(reader) = open.get(&piece.stream_id) else {
            return;
        };
        // A reader that is too slow loses its stream, not the agent's other ones their pace.
        if reader.try_send(data).is_err() || ends {
            open.remove(&piece.stream_id);
        }
    }

    /// The agent has answered an explain command; false: it is no such answer.
    pub(super) fn explained(&self, outcome: v1::Outcome) -> Option<v1::Outcome> {
        match lock(&self.explained).remove(&outcome.operation_id) {
            Some(waiting) => {
                let _ = waiting.send(outcome);
                None
            }
            None => Some(outcome),
        }
    }

    /// The agent is gone: all readers see the end.
    pub(super) fn close(&self) {
        lock(&self.open).clear();
        lock(&self.explained).clear();
    }
}

/// One stream through an agent. Dropped, it tells the agent that its reader has gone.
#[derive(Debug)]
pub struct Through {
    number: u64,
    session: Session,
    pieces: mpsc::Receiver<Data>,
}

impl Through {
    /// The next piece; none when the agent or the session is gone.
    pub async fn next(&mut self) -> Option<Data> {
        self.pieces.recv().await
    }

    /// Something for the agent.
    ///
    /// # Errors
    /// It is not attached any more.
    pub async fn send(&self, data: Data) -> Result<(), Problem> {
        let message = v1::HubMessage {
            kind: Some(Kind::Stream(v1::StreamData {
                stream_id: self.number,
                kind: Some(data),
            })),
        };
        self.session.sender.send(Ok(message)).await.map_err(|_| cut_off())
    }
}

impl Drop for Through {
    fn drop(&mut self) {
        let known = lock(&self.session.streams.open).remove(&self.number).is_some();
        if known {
            let end = Data::End(v1::StreamEnd { error: None });
            let message = v1::HubMessage {
                kind: Some(Kind::Stream(v1::StreamData {
                    stream_id: self.number,
                    kind: Some(end),
                })),
            };
            let _ = self.session.sender.try_send(Ok(message));
        }
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
        let (sender, pieces) = mpsc::channel(QUEUE);
        lock(&session.streams.open).insert(number, sender);
        let through = Through {
            number,
            session,
            pieces,
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
        lock(&session.streams.explained).insert(id.to_string(), sender);
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
