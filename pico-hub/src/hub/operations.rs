//! Operations: begun by a call, finished by the agent's answer or by what makes one impossible.

use pico_proto::v1;
use tonic::Code;

use super::effect::event;
use super::{Hub, convert, now};
use crate::auth::Caller;
use crate::id::{AgentId, OperationId};
use crate::problem::Problem;
use crate::registry::{App, Operation, RegistryError, Rows};

/// Verbs that a changed spec answers: the newest such operation stands for those before it.
const OF_SPEC: [&str; 3] = ["create", "update", "delete"];
/// Verbs that a reconnected agent is told again.
const LASTING: [&str; 2] = ["start", "stop"];

/// Whether an operation is lost when its agent is: it was said once.
pub(super) fn passes(operation: &Operation) -> bool {
    !OF_SPEC.contains(&&*operation.verb) && !LASTING.contains(&&*operation.verb)
}

/// Whether it is answered by what the agent makes of the spec.
pub(super) fn of_spec(operation: &Operation) -> bool {
    OF_SPEC.contains(&&*operation.verb)
}

/// An error in the words of the hub.
pub(super) fn failure(reason: &str, message: &str, hint: &str, retryable: bool) -> v1::OperationError {
    v1::OperationError {
        reason: reason.into(),
        message: message.into(),
        hint: hint.into(),
        retryable,
    }
}

/// Begins an operation on `app`.
pub(super) fn begin(rows: &mut dyn Rows, app: &App, verb: &str, cold: bool) -> Result<Operation, Problem> {
    let id = OperationId::random().map_err(|error| RegistryError::Database(error.to_string()))?;
    let operation = Operation {
        id,
        app: app.id,
        owner: app.owner.clone(),
        verb: verb.to_owned(),
        cold,
        created: now(),
        finished: None,
        error: None,
    };
    rows.put_operation(&operation)?;
    Ok(operation)
}

/// Ends an operation, well or not, and says so.
pub(super) fn finish(
    rows: &mut dyn Rows,
    app: Option<&App>,
    mut operation: Operation,
    error: Option<v1::OperationError>,
) -> Result<Operation, RegistryError> {
    let at = now();
    if let (Some(app), Some(error)) = (app, &error) {
        let mut failed = event(
            "app.failed",
            app,
            format!("{}: {}", operation.verb, error.message),
        );
        failed.operation = Some(operation.id);
        rows.add_event(at, &failed)?;
    }
    operation.finished = Some(at);
    operation.error = error;
    rows.put_operation(&operation)?;
    Ok(operation)
}

/// Ends an operation that was said to an agent once, and whose answer will not come.
pub(super) fn interrupted(rows: &mut dyn Rows, app: &App, operation: Operation) -> Result<(), RegistryError> {
    let error = failure(
        "AGENT_LOST",
        "the agent was cut off before it answered",
        "see how the app is, and ask again",
        true,
    );
    finish(rows, Some(app), operation, Some(error)).map(drop)
}

/// The agent has answered an operation of `app`.
pub(super) fn answered(
    rows: &mut dyn Rows,
    app: &App,
    id: OperationId,
    error: Option<&v1::OperationError>,
) -> Result<(), RegistryError> {
    let open = rows.open_operations(app.id)?;
    let Some(answered) = open.iter().find(|operation| operation.id == id).cloned() else {
        return Ok(());
    };
    for operation in open {
        let stands_for = of_spec(&answered) && of_spec(&operation) && operation.created <= answered.created;
        if operation.id == id || stands_for {
            finish(rows, Some(app), operation, error.cloned())?;
        }
    }
    Ok(())
}

impl Hub {
    fn find_operation(rows: &mut dyn Rows, caller: &Caller, text: &str) -> Result<Operation, Problem> {
        let unknown =
            || Problem::not_found("operation", text).hint("finished operations are kept for 7 days");
        let id: OperationId = text.parse().map_err(|_| unknown())?;
        let operation = rows.operation(id)?.ok_or_else(unknown)?;
        match caller.owner_filter() {
            Some(owner) if owner != operation.owner => Err(unknown()),
            _ => Ok(operation),
        }
    }

    /// An operation as it is now.
    ///
    /// # Errors
    /// There is none of this id for this caller.
    pub async fn operation(&self, caller: Caller, id: String) -> Result<v1::Operation, Problem> {
        self.read(move |rows| {
            Self::find_operation(rows, &caller, &id).map(|found| convert::operation(&found))
        })
        .await
    }

    /// An operation once it is done; the caller bounds the waiting.
    ///
    /// # Errors
    /// There is none of this id for this caller.
    pub async fn wait_operation(&self, caller: Caller, id: String) -> Result<v1::Operation, Problem> {
        self.until(move |rows| {
            let found = Self::find_operation(rows, &caller, &id)?;
            Ok(found.finished.is_some().then(|| convert::operation(&found)))
        })
        .await
    }

    /// Ends what an agent (or, at start, any) was told once and can never answer any more.
    pub(super) async fn fail_interrupted(
        self: &std::sync::Arc<Self>,
        agent: Option<AgentId>,
    ) -> Result<(), RegistryError> {
        let sessions = self.sessions.clone();
        let ended = self
            .change(move |rows, _| {
                // One that is back was told what is outstanding when it came.
                if agent.is_some_and(|agent| sessions.has(agent)) {
                    return Ok(());
                }
                let apps = match agent {
                    Some(agent) => rows.apps_of(Some(agent))?,
                    None => rows.busy_apps()?,
                };
                for app in apps {
                    for operation in rows.open_operations(app.id)? {
                        if passes(&operation) {
                            interrupted(rows, &app, operation)?;
                        }
                    }
                }
                Ok(())
            })
            .await;
        ended.map_err(|problem| RegistryError::Database(problem.to_string()))
    }
}

/// Why nothing can be asked of an app whose agent is away.
pub(super) fn agent_away(app: &App) -> Problem {
    Problem::new(
        Code::Unavailable,
        "AGENT_DISCONNECTED",
        format!("the agent of '{}' is not connected", app.label()),
    )
    .hint("the app goes on sleeping and waking by itself; try again when `pico agent list` shows the agent")
    .retry_after(std::time::Duration::from_secs(5))
}
