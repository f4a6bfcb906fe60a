//! Agents that are attached, and messages to them. Nothing here waits: an agent that does not take its messages is cut
//! off, and learns everything when it comes back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pico_proto::v1;
use pico_proto::v1::hub_message::Kind;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::streams::Streams;
use crate::id::{AgentId, AppId};

/// Messages that may wait for one agent.
pub(super) const QUEUE: usize = 4096;

/// What an agent's stream carries.
pub(super) type Outgoing = Result<v1::HubMessage, Status>;

/// One attached agent.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub agent: AgentId,
    /// Tells it from an earlier session of the same agent.
    pub number: u64,
    pub sender: mpsc::Sender<Outgoing>,
    /// Cancelled when the session is not the agent's any more: nothing that it says counts then.
    pub cut: CancellationToken,
    pub streams: Arc<Streams>,
}

impl Session {
    /// Ends it, saying why if there is room for that.
    fn end(&self, why: Status) {
        let _ = self.sender.try_send(Err(why));
        self.cut.cancel();
    }
}

/// All attached agents. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Sessions {
    attached: Arc<Mutex<HashMap<AgentId, Session>>>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<AgentId, Session>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent is attached by this session; an older one of it ends.
    pub(super) fn begin(&self, session: Session) {
        let older = self.lock().insert(session.agent, session);
        if let Some(older) = older {
            older.end(Status::aborted("a newer stream of this agent has begun"));
        }
    }

    /// The agent is not attached any more, whichever session it had.
    pub(super) fn end(&self, agent: AgentId) {
        if let Some(session) = self.lock().remove(&agent) {
            session.end(Status::unauthenticated(
                "this agent is none of this hub's any more",
            ));
        }
    }

    /// This session has ended. Says whether it was the agent's newest.
    pub(super) fn ended(&self, agent: AgentId, number: u64) -> bool {
        let mut attached = self.lock();
        let newest = attached
            .get(&agent)
            .is_some_and(|session| session.number == number);
        if newest {
            attached.remove(&agent);
        }
        newest
    }

    /// Which agents are attached.
    pub(super) fn attached(&self) -> Vec<AgentId> {
        self.lock().keys().copied().collect()
    }

    /// Whether this one is.
    pub(super) fn has(&self, agent: AgentId) -> bool {
        self.lock().contains_key(&agent)
    }

    /// How many are.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// The session of an agent.
    pub(super) fn of(&self, agent: AgentId) -> Option<Session> {
        self.lock().get(&agent).cloned()
    }

    /// A message for an agent, if it is attached. One that has too many waiting is cut off.
    pub(super) fn send(&self, agent: AgentId, message: v1::HubMessage) {
        let mut attached = self.lock();
        let Some(session) = attached.get(&agent) else {
            return;
        };
        if session.sender.try_send(Ok(message)).is_err() {
            tracing::warn!(%agent, "an agent does not take its messages; it is cut off");
            session.end(Status::resource_exhausted("the agent does not take its messages"));
            attached.remove(&agent);
        }
    }

    /// Asks an agent to get an app ready. A hint: it is dropped where others wait already.
    pub(super) fn prefetch(&self, agent: AgentId, app: AppId, wake: bool) -> bool {
        let attached = self.lock();
        let Some(session) = attached.get(&agent) else {
            return false;
        };
        // Half of the queue is for what must not be lost.
        if session.sender.capacity() < QUEUE / 2 {
            return false;
        }
        let message = v1::HubMessage {
            kind: Some(Kind::Prefetch(v1::Prefetch {
                app_id: app.to_string(),
                wake,
            })),
        };
        session.sender.try_send(Ok(message)).is_ok()
    }
}
