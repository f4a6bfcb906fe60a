//! The rules of agents: how one joins, what it is told when it attaches, what becomes of what it says, and what when it
//! goes. An agent is believed in what it says of its own apps, and in nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pico_proto::v1;
use pico_proto::v1::agent_message::Kind as Said;
use pico_proto::v1::command::Verb;
use pico_proto::v1::hub_message::Kind;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Streaming};

use super::effect::{Effects, assigned, event};
use super::sessions::{Outgoing, QUEUE, Session};
use super::tokens::{admin_event, new_token, random_secret};
use super::{Hub, apps, convert, now, operations, page};
use crate::auth::Caller;
use crate::id::{AgentId, AppId, OperationId};
use crate::problem::Problem;
use crate::registry::{Agent, App, RegistryError, Role, Rows};
use crate::spec;

/// How often an agent is to be heard, in seconds. After three times as long without a word its stream ends.
const HEARTBEAT_SECONDS: u32 = 10;
/// How long an agent's Hello may take.
const HELLO_TIME: Duration = Duration::from_secs(30);
/// Apps in one message.
const CHUNK: usize = 500;
/// Apps that one agent may report.
const REPORTS: usize = 1_000_000;
/// Bytes of any text that an agent says of its host or of an app.
const TEXT_BYTES: usize = 4096;

static SESSIONS: AtomicU64 = AtomicU64::new(0);

fn short(text: &mut String) {
    if text.len() > TEXT_BYTES {
        let mut end = TEXT_BYTES;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}

fn checked_facts(host: Option<v1::HostFacts>) -> v1::HostFacts {
    let mut host = host.unwrap_or_default();
    [
        &mut host.version,
        &mut host.kernel,
        &mut host.criu,
        &mut host.v4,
        &mut host.v6,
    ]
    .into_iter()
    .for_each(short);
    host
}

impl Hub {
    /// Makes an agent known; uses the join token up.
    ///
    /// # Errors
    /// A name that is none or is taken.
    pub async fn join(
        self: &Arc<Self>,
        caller: Caller,
        request: v1::JoinRequest,
    ) -> Result<v1::JoinResponse, Problem> {
        if !spec::is_label(&request.name) {
            let what = "write a DNS label: lower-case letters, digits and inner hyphens, at most 63";
            return Err(Problem::field("name", what));
        }
        let secret = random_secret()?;
        let id = AgentId::random().map_err(|error| RegistryError::Database(error.to_string()))?;
        let credential = secret.reveal();
        self.change(move |rows, effects| {
            // Of two that use one token at the same time, one joins.
            let used = rows.token(caller.token)?.filter(|token| token.revoked.is_none());
            let mut used = used.ok_or_else(|| {
                Problem::new(
                    Code::Unauthenticated,
                    "TOKEN_REVOKED",
                    "this join token was used up",
                )
            })?;
            if rows.agent_named(&request.name)?.is_some() {
                let message = format!("there is an agent '{}' already", request.name);
                return Err(Problem::new(Code::AlreadyExists, "NAME_TAKEN", message).hint(
                    "choose another name, or remove that agent if its host is gone: pico agent remove",
                ));
            }
            let at = now();
            used.revoked = Some(at);
            effects.put_token(rows, &used)?;
            let mut token = new_token(&secret, Role::Agent, "", &format!("agent {}", request.name));
            token.agent = Some(id);
            let agent = Agent {
                id,
                name: request.name,
                host: checked_facts(request.host),
                joined: at,
                last_heard: at,
                token: token.id,
            };
            rows.put_agent(&agent)?;
            effects.put_token(rows, &token)?;
            rows.add_event(at, &agent_event("agent.joined", &agent))?;
            Ok(())
        })
        .await?;
        Ok(v1::JoinResponse {
            agent_id: id.to_string(),
            credential,
        })
    }

    /// A page of agents, by name.
    ///
    /// # Errors
    /// A page token that is none.
    pub async fn list_agents(
        &self,
        request: v1::ListAgentsRequest,
    ) -> Result<v1::ListAgentsResponse, Problem> {
        let size = page::size(request.page_size)?;
        let [after] = page::read::<1>(&request.page_token)?.unwrap_or_default();
        let (mut agents, counts) = self
            .read(move |rows| Ok((rows.agents(&after, size + 1)?, rows.app_counts()?)))
            .await?;
        let more = agents.len() > size;
        agents.truncate(size);
        let next_page_token = match agents.last() {
            Some(last) if more => page::write(&[&last.name]),
            _ => String::new(),
        };
        let show = |agent: &Agent| self.show_agent(agent, counts.get(&agent.id).copied().unwrap_or(0));
        Ok(v1::ListAgentsResponse {
            agents: agents.iter().map(show).collect(),
            next_page_token,
        })
    }

    /// Makes an agent unknown. Its apps are given to others; what it had of them is lost.
    ///
    /// # Errors
    /// There is none of this id or name.
    pub async fn remove_agent(self: &Arc<Self>, named: String) -> Result<(), Problem> {
        let sessions = self.sessions.clone();
        self.change(move |rows, effects| {
            let found = match named.parse() {
                Ok(id) => rows.agent(id)?,
                Err(_) => rows.agent_named(&named)?,
            };
            let agent = found.ok_or_else(|| Problem::not_found("agent", &named))?;
            let at = now();
            if let Some(mut token) = rows.token(agent.token)? {
                token.revoked = Some(at);
                effects.put_token(rows, &token)?;
            }
            effects.end(agent.id);
            rows.add_event(at, &agent_event("agent.removed", &agent))?;
            let others: Vec<AgentId> = sessions
                .attached()
                .into_iter()
                .filter(|id| *id != agent.id)
                .collect();
            for mut app in rows.apps_of(Some(agent.id))? {
                if app.desired == v1::Desired::Deleted {
                    apps::forget(rows, effects, &app)?;
                    continue;
                }
                app.agent = apps::place(rows, &others)?;
                (app.ipv4, app.ipv6) = (None, None);
                app.state = v1::AppState::Pending;
                app.reason = format!("its agent '{}' was removed", agent.name);
                app.since = at;
                // The next agent has seen no version of it.
                app.version += 1;
                effects.put_app(rows, &app)?;
                rows.add_event(at, &event("app.state", &app, app.reason.clone()))?;
                hand_over(rows, effects, &app)?;
            }
            rows.delete_agent(agent.id)?;
            Ok(())
        })
        .await
    }

    /// Serves an agent's stream: gives what it is to be sent, and works off what it says beside.
    ///
    /// # Errors
    /// It does not begin with Hello, or is no agent of this hub.
    pub async fn attach(
        self: &Arc<Self>,
        caller: Caller,
        mut said: Streaming<v1::AgentMessage>,
    ) -> Result<mpsc::Receiver<Outgoing>, Problem> {
        let unknown = || {
            Problem::new(
                Code::Unauthenticated,
                "AGENT_UNKNOWN",
                "this agent is none of this hub's",
            )
        };
        let agent = caller.agent.ok_or_else(unknown)?;
        let (host, reports) = tokio::time::timeout(HELLO_TIME, hello(&mut said))
            .await
            .unwrap_or_else(|_| Err(not_hello("it came too late")))?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let session = Session {
            agent,
            number: SESSIONS.fetch_add(1, Ordering::Relaxed) + 1,
            sender,
            cut: CancellationToken::new(),
            streams: Arc::default(),
        };
        let begun = session.clone();
        let sessions = self.sessions.clone();
        self.change(move |rows, effects| {
            let at = now();
            // Its Hello may have taken long: the token may be no good any more.
            let good = rows.token(caller.token)?.is_some_and(|token| {
                token.revoked.is_none() && token.expires.is_none_or(|expires| expires > at)
            });
            if !good {
                return Err(unknown());
            }
            let mut row = rows.agent(agent)?.ok_or_else(unknown)?;
            row.host = host;
            row.last_heard = at;
            rows.put_agent(&row)?;
            rows.add_event(at, &agent_event("agent.connected", &row))?;
            for report in reports {
                reported(rows, effects, agent, report)?;
            }
            // So that they are in what it is told first.
            let mut attached = sessions.attached();
            attached.retain(|id| *id != agent);
            attached.push(agent);
            place_pending(rows, effects, &attached, Some(agent))?;
            effects.begin(begun);
            welcome(rows, effects, agent)
        })
        .await?;
        // An app that was registered just before this session began to count has no agent yet.
        let sessions = self.sessions.clone();
        self.change(move |rows, effects| place_pending(rows, effects, &sessions.attached(), None))
            .await?;
        tokio::spawn(listen(self.clone(), session, said));
        Ok(receiver)
    }

    /// What an attached agent says.
    async fn heard(self: &Arc<Self>, session: &Session, said: Said) -> Result<(), Problem> {
        let agent = session.agent;
        match said {
            Said::Hello(_) => Err(not_hello("it came again")),
            Said::Stream(piece) => {
                session.streams.deliver(piece);
                Ok(())
            }
            Said::Heartbeat(_) => {
                self.change(move |rows, _| {
                    if let Some(mut row) = rows.agent(agent)? {
                        row.last_heard = now();
                        rows.put_agent(&row)?;
                    }
                    Ok(())
                })
                .await
            }
            Said::Report(report) => {
                self.change(move |rows, effects| Ok(reported(rows, effects, agent, report)?))
                    .await
            }
            Said::Outcome(outcome) => {
                let Some(outcome) = session.streams.explained(outcome) else {
                    return Ok(());
                };
                self.change(move |rows, _| Ok(concluded(rows, agent, outcome)?))
                    .await
            }
        }
    }
}

fn not_hello(why: &str) -> Problem {
    Problem::new(
        Code::InvalidArgument,
        "HELLO_EXPECTED",
        format!("an agent's stream begins with Hello, and has one ({why})"),
    )
}

/// What an agent begins with.
async fn hello(
    said: &mut Streaming<v1::AgentMessage>,
) -> Result<(v1::HostFacts, Vec<v1::AppReport>), Problem> {
    let (mut host, mut reports) = (None, Vec::new());
    loop {
        let message = said.message().await;
        let Ok(Some(v1::AgentMessage {
            kind: Some(Said::Hello(hello)),
        })) = message
        else {
            return Err(not_hello("something else came"));
        };
        host = hello.host.or(host);
        reports.extend(hello.apps);
        if reports.len() > REPORTS {
            return Err(not_hello("it names more apps than any agent has"));
        }
        if !hello.more {
            return Ok((checked_facts(host), reports));
        }
    }
}

/// Everything that is this agent's: the first messages of a session.
fn welcome(rows: &mut dyn Rows, effects: &mut Effects, agent: AgentId) -> Result<(), Problem> {
    let apps = rows.apps_of(Some(agent))?;
    let mut commands = Vec::new();
    let mut assignments = Vec::with_capacity(apps.len());
    for app in &apps {
        let (newest, wanted) = outstanding(rows, app)?;
        commands.extend(wanted.into_iter().map(|(verb, operation)| (app, verb, operation)));
        assignments.push(assigned(app, newest));
    }
    let mut chunks = assignments.chunks(CHUNK).peekable();
    loop {
        let apps = chunks.next().map(<[_]>::to_vec).unwrap_or_default();
        let more = chunks.peek().is_some();
        let assignment = v1::Assignment {
            apps,
            heartbeat_seconds: HEARTBEAT_SECONDS,
            more,
        };
        effects.send(agent, Kind::Assignment(assignment));
        if !more {
            break;
        }
    }
    for (app, verb, operation) in commands {
        effects.command(app, verb, operation);
    }
    Ok(())
}

/// The newest change of an app's spec, and the commands that are still to be answered.
type Outstanding = (Option<OperationId>, Vec<(Verb, OperationId)>);

/// What an app's agent still has to answer: the newest change of its spec, and what was desired of it. What can be
/// answered by nobody any more has failed.
fn outstanding(rows: &mut dyn Rows, app: &App) -> Result<Outstanding, RegistryError> {
    let (mut newest, mut commands) = (None, Vec::new());
    for operation in rows.open_operations(app.id)? {
        let wanted = match operation.verb.as_str() {
            "start" => Some((Verb::Start, v1::Desired::Running)),
            "stop" => Some((Verb::Stop, v1::Desired::Stopped)),
            _ => None,
        };
        match wanted {
            Some((verb, desired)) if desired == app.desired => commands.push((verb, operation.id)),
            Some(_) => {
                let error = operations::failure("SUPERSEDED", "the opposite was asked for since", "", false);
                operations::finish(rows, Some(app), operation, Some(error))?;
            }
            None if operations::of_spec(&operation) => newest = Some(operation.id),
            None => operations::interrupted(rows, app, operation)?,
        }
    }
    Ok((newest, commands))
}

/// Tells the agent that an app was given to all that is to be done with it.
fn hand_over(rows: &mut dyn Rows, effects: &mut Effects, app: &App) -> Result<(), RegistryError> {
    let (newest, commands) = outstanding(rows, app)?;
    effects.assign(app, newest);
    for (verb, operation) in commands {
        effects.command(app, verb, operation);
    }
    Ok(())
}

/// Gives apps that no agent has to whoever has the fewest; all are told but `silent`, who is told everything next.
fn place_pending(
    rows: &mut dyn Rows,
    effects: &mut Effects,
    attached: &[AgentId],
    silent: Option<AgentId>,
) -> Result<(), Problem> {
    if attached.is_empty() {
        return Ok(());
    }
    for mut app in rows.apps_of(None)? {
        app.agent = apps::place(rows, attached)?;
        effects.put_app(rows, &app)?;
        rows.add_event(now(), &event("app.placed", &app, ""))?;
        if app.agent != silent {
            hand_over(rows, effects, &app)?;
        }
    }
    Ok(())
}

/// The app with this id, if this agent has it.
fn own(rows: &mut dyn Rows, agent: AgentId, id: &str) -> Result<Option<App>, RegistryError> {
    let Ok(id) = id.parse::<AppId>() else {
        return Ok(None);
    };
    Ok(rows.app(id)?.filter(|app| app.agent == Some(agent)))
}

/// How an app is now.
fn reported(
    rows: &mut dyn Rows,
    effects: &mut Effects,
    agent: AgentId,
    mut report: v1::AppReport,
) -> Result<(), RegistryError> {
    let Some(mut app) = own(rows, agent, &report.app_id)? else {
        return Ok(());
    };
    if report.deleted && app.desired == v1::Desired::Deleted {
        apps::forget(rows, effects, &app)?;
        return Ok(());
    }
    short(&mut report.reason);
    let state = match v1::AppState::try_from(report.state) {
        Ok(v1::AppState::Unspecified | v1::AppState::Pending) | Err(_) => app.state,
        Ok(state) => state,
    };
    // Until nothing is left of it an app that is deleted is being deleted, whatever it does on the way.
    let state = match app.desired {
        v1::Desired::Deleted => v1::AppState::Deleting,
        _ => state,
    };
    let before = app.clone();
    app.ipv4 = report.ipv4.parse().ok().or(app.ipv4);
    app.ipv6 = report.ipv6.parse().ok().or(app.ipv6);
    if let Some(mut figures) = report.figures {
        short(&mut figures.last_exit);
        app.figures = Some(figures);
    }
    app.state = state;
    app.reason = report.reason;
    app.since = report.since.as_ref().map_or_else(now, convert::micros);
    if app == before {
        return Ok(());
    }
    effects.put_app(rows, &app)?;
    if (app.state, &app.reason) != (before.state, &before.reason) {
        rows.add_event(now(), &event("app.state", &app, app.reason.clone()))?;
    }
    Ok(())
}

/// What became of an operation.
fn concluded(rows: &mut dyn Rows, agent: AgentId, outcome: v1::Outcome) -> Result<(), RegistryError> {
    let Ok(id) = outcome.operation_id.parse() else {
        return Ok(());
    };
    let Some(operation) = rows.operation(id)? else {
        return Ok(());
    };
    let Some(app) = rows.app(operation.app)?.filter(|app| app.agent == Some(agent)) else {
        return Ok(());
    };
    // An app that is deleted is so when the agent reports that nothing is left.
    if operation.verb == "delete" && outcome.error.is_none() {
        return Ok(());
    }
    let error = outcome.error.map(|mut error| {
        [&mut error.reason, &mut error.message, &mut error.hint]
            .into_iter()
            .for_each(short);
        error
    });
    operations::answered(rows, &app, id, error.as_ref())
}

/// Listens to an attached agent until its stream ends, for whatever reason.
async fn listen(hub: Arc<Hub>, session: Session, mut said: Streaming<v1::AgentMessage>) {
    let silence = Duration::from_secs(u64::from(3 * HEARTBEAT_SECONDS));
    let why = loop {
        let message = tokio::select! {
            message = tokio::time::timeout(silence, said.message()) => message,
            () = session.sender.closed() => break "its stream was closed".to_owned(),
            () = session.cut.cancelled() => break "it was cut off".to_owned(),
        };
        match message {
            Err(_) => break format!("nothing was heard of it for {} s", silence.as_secs()),
            Ok(Err(status)) => break status.message().to_owned(),
            Ok(Ok(None)) => break "it has ended its stream".to_owned(),
            Ok(Ok(Some(v1::AgentMessage { kind: None }))) => {}
            Ok(Ok(Some(v1::AgentMessage { kind: Some(kind) }))) => {
                if let Err(problem) = hub.heard(&session, kind).await {
                    let _ = session.sender.try_send(Err(problem.clone().into()));
                    break problem.to_string();
                }
            }
        }
    };
    session.streams.close();
    let (agent, number) = (session.agent, session.number);
    drop(session);
    if !hub.sessions.ended(agent, number) {
        // A newer stream of the same agent has taken over, or the agent was removed.
        return;
    }
    tracing::info!(%agent, why, "an agent is not attached any more");
    let noted = hub
        .change(move |rows, _| {
            if let Some(row) = rows.agent(agent)? {
                let mut gone = agent_event("agent.disconnected", &row);
                gone.reason = format!("{}: {why}", row.name);
                rows.add_event(now(), &gone)?;
            }
            Ok(())
        })
        .await;
    let failed = hub.fail_interrupted(Some(agent)).await;
    if let Err(error) = noted
        .map_err(|problem| problem.to_string())
        .and(failed.map_err(|e| e.to_string()))
    {
        tracing::warn!(%agent, error, "what an agent left undone is not noted");
    }
}

fn agent_event(kind: &'static str, agent: &Agent) -> crate::registry::NewEvent {
    let mut event = admin_event(kind, &agent.name);
    event.agent = Some(agent.id);
    event
}
