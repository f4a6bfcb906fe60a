//! The rules of apps: who may name which, what each call changes, what its agent is told.

use std::sync::Arc;

use pico_proto::v1;
use pico_proto::v1::command::Verb;
use pico_proto::v1::wait_app_request::Condition;
use prost::Message as _;
use tonic::Code;

use super::effect::{Effects, event};
use super::operations::{self, agent_away};
use super::{Hub, convert, now, page};
use crate::auth::Caller;
use crate::id::{AgentId, AppId};
use crate::problem::Problem;
use crate::registry::{App, Cursor, Operation, RegistryError, Request, Rows};
use crate::spec;

/// Longest request id.
const REQUEST_ID_BYTES: usize = 64;

/// How a call names an app, and who calls.
#[derive(Debug, Clone)]
pub struct Handle {
    caller: Caller,
    named: v1::AppHandle,
}

impl Handle {
    /// From a request.
    ///
    /// # Errors
    /// It names no app.
    pub fn new(caller: Caller, named: Option<v1::AppHandle>) -> Result<Self, Problem> {
        match named {
            Some(named) if !named.id.is_empty() || !named.name.is_empty() => Ok(Handle { caller, named }),
            _ => Err(Problem::field("app", "name an app, or give its id")),
        }
    }

    /// Whose requests are told apart by their ids, where the app need not be there any more.
    fn asker(&self) -> &str {
        self.caller.owner_filter().unwrap_or(&self.named.owner)
    }

    /// The app, if it is there and the caller may know of it.
    pub(super) fn find(&self, rows: &mut dyn Rows) -> Result<App, Problem> {
        let v1::AppHandle { id, owner, name } = &self.named;
        let found = if id.is_empty() {
            let owner = self.caller.owner(owner)?;
            rows.app_named(owner, name)?
        } else {
            match id.parse() {
                Ok(id) => rows.app(id)?,
                Err(_) => None,
            }
        };
        let visible = |app: &App| self.caller.owner_filter().is_none_or(|owner| owner == app.owner);
        let named = if id.is_empty() { name } else { id };
        found
            .filter(visible)
            .ok_or_else(|| Problem::not_found("app", named).hint("`pico app list` shows what there is"))
    }
}

fn check_request_id(id: &str) -> Result<(), Problem> {
    if id.len() <= REQUEST_ID_BYTES {
        Ok(())
    } else {
        Err(Problem::field(
            "request_id",
            format!("at most {REQUEST_ID_BYTES} bytes"),
        ))
    }
}

fn check_version(app: &App, expected: u64) -> Result<(), Problem> {
    if expected == 0 || expected == app.version {
        return Ok(());
    }
    let message = format!(
        "'{}' has changed since: it has version {}",
        app.label(),
        app.version
    );
    Err(Problem::new(Code::Aborted, "CHANGED_MEANWHILE", message).hint("read it again and decide again"))
}

fn check_not_deleted(app: &App) -> Result<(), Problem> {
    if app.desired != v1::Desired::Deleted {
        return Ok(());
    }
    let message = format!("'{}' is being deleted", app.label());
    Err(Problem::new(Code::FailedPrecondition, "DELETING", message))
}

/// Of the agents that are attached, the one with the fewest apps.
pub(super) fn place(rows: &mut dyn Rows, attached: &[AgentId]) -> Result<Option<AgentId>, RegistryError> {
    let counts = rows.app_counts()?;
    let load = |agent: &&AgentId| (counts.get(agent).copied().unwrap_or(0), **agent);
    Ok(attached.iter().min_by_key(load).copied())
}

/// A request that was carried out already, if this is one.
fn repeated(
    rows: &mut dyn Rows,
    owner: &str,
    id: &str,
    hash: [u8; 32],
) -> Result<Option<Operation>, Problem> {
    let Some(known) = (if id.is_empty() {
        None
    } else {
        rows.request(owner, id)?
    }) else {
        return Ok(None);
    };
    if known.hash != hash {
        let message = format!("request id '{id}' was used for something else");
        return Err(Problem::new(Code::AlreadyExists, "REQUEST_ID_REUSED", message).hint("use a new one"));
    }
    Ok(rows.operation(known.operation)?)
}

/// A done operation for a call that only checks.
fn checked(verb: &str) -> v1::Operation {
    v1::Operation {
        verb: verb.into(),
        done: true,
        ..v1::Operation::default()
    }
}

/// What `request_id` must name again to be the same request.
fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&part.len().to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

impl Hub {
    pub(super) async fn load_names(&self) -> Result<(), RegistryError> {
        let mut after: Option<Cursor> = None;
        loop {
            let from = after.take();
            let (page, serial) = self
                .database
                .read(move |rows| {
                    Ok::<_, RegistryError>((rows.apps(from.as_ref(), None, &[], 1000)?, rows.serial()?))
                })
                .await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(Cursor {
                owner: last.owner.clone(),
                name: last.spec.name.clone(),
            });
            let mut effects = Effects::default();
            page.iter().for_each(|app| effects.name(app, serial));
            self.follow(&std::sync::Mutex::new(effects));
        }
    }

    /// Registers an app, and gives it to an agent if one is attached.
    ///
    /// # Errors
    /// What is wrong with the request; then nothing has changed.
    pub async fn create_app(
        self: &Arc<Self>,
        caller: Caller,
        request: v1::CreateAppRequest,
    ) -> Result<v1::Operation, Problem> {
        check_request_id(&request.request_id)?;
        let owner = caller.owner(&request.owner)?.to_owned();
        if !spec::is_owner(&owner) {
            return Err(Problem::field(
                "owner",
                "an owner's name has letters and digits only",
            ));
        }
        let spec = request.spec.unwrap_or_default();
        let faults = spec::faults(&owner, &spec);
        if !faults.is_empty() {
            return Err(Problem::fields(faults));
        }
        let id = AppId::random().map_err(|error| RegistryError::Database(error.to_string()))?;
        let hash = hash(&[b"create", owner.as_bytes(), &spec.encode_to_vec()]);
        let (request_id, validate_only) = (request.request_id, request.validate_only);
        let sessions = self.sessions.clone();
        let operation = self
            .change(move |rows, effects| {
                if let Some(done) = repeated(rows, &owner, &request_id, hash)? {
                    return Ok(convert::operation(&done));
                }
                if rows.app_named(&owner, &spec.name)?.is_some() {
                    let message = format!("'{owner}' has an app '{}' already", spec.name);
                    return Err(Problem::new(Code::AlreadyExists, "NAME_TAKEN", message)
                        .hint("choose another name, or change that app with `pico app update`"));
                }
                if validate_only {
                    return Ok(checked("create"));
                }
                let at = now();
                let agent = place(rows, &sessions.attached())?;
                let app = App {
                    id,
                    owner: owner.clone(),
                    spec,
                    version: 1,
                    desired: v1::Desired::Running,
                    state: v1::AppState::Pending,
                    reason: "registered; no agent has reported it yet".into(),
                    since: at,
                    ipv4: None,
                    ipv6: None,
                    agent,
                    created: at,
                    figures: None,
                };
                effects.put_app(rows, &app)?;
                let operation = operations::begin(rows, &app, "create", false)?;
                if !request_id.is_empty() {
                    let request = Request {
                        hash,
                        operation: operation.id,
                    };
                    rows.put_request(&owner, &request_id, request, at)?;
                }
                let mut created = event("app.created", &app, "");
                created.request = request_id;
                created.operation = Some(operation.id);
                rows.add_event(at, &created)?;
                if agent.is_some() {
                    rows.add_event(at, &event("app.placed", &app, ""))?;
                    effects.assign(&app, Some(operation.id));
                }
                Ok(convert::operation(&operation))
            })
            .await?;
        Ok(operation)
    }

    /// An app as it is now.
    ///
    /// # Errors
    /// There is none for this caller.
    pub async fn app(&self, handle: Handle) -> Result<v1::App, Problem> {
        let app = self.read(move |rows| handle.find(rows)).await?;
        Ok(self.show_app(&app))
    }

    /// A page of apps, in the order of owner and name.
    ///
    /// # Errors
    /// A page token or an owner that is none.
    pub async fn apps(
        &self,
        caller: Caller,
        request: v1::ListAppsRequest,
    ) -> Result<v1::ListAppsResponse, Problem> {
        let size = page::size(request.page_size)?;
        let after = page::read(&request.page_token)?.map(|[owner, name]| Cursor { owner, name });
        let owner = match (&caller.owner_filter(), request.owner.as_str()) {
            (None, "") => None,
            (_, asked) => Some(caller.owner(asked)?.to_owned()),
        };
        let states: Vec<v1::AppState> = request.states().collect();
        let mut apps = self
            .read(move |rows| Ok(rows.apps(after.as_ref(), owner.as_deref(), &states, size + 1)?))
            .await?;
        let more = apps.len() > size;
        apps.truncate(size);
        let next_page_token = match apps.last() {
            Some(last) if more => page::write(&[&last.owner, &last.spec.name]),
            _ => String::new(),
        };
        Ok(v1::ListAppsResponse {
            apps: apps.iter().map(|app| self.show_app(app)).collect(),
            next_page_token,
        })
    }

    /// Changes an app's spec.
    ///
    /// # Errors
    /// What is wrong with the request; then nothing has changed.
    pub async fn update_app(
        self: &Arc<Self>,
        handle: Handle,
        request: v1::UpdateAppRequest,
    ) -> Result<v1::Operation, Problem> {
        check_request_id(&request.request_id)?;
        self.change(move |rows, effects| {
            let mut app = handle.find(rows)?;
            let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
            let new = request.spec.unwrap_or_default();
            let version = request.resource_version.to_le_bytes();
            let asked = [
                &b"update"[..],
                &app.id.number().to_le_bytes(),
                &new.encode_to_vec(),
                &version,
            ];
            let paths_text = paths.join(",");
            let hash = hash(&[asked[0], asked[1], asked[2], asked[3], paths_text.as_bytes()]);
            if let Some(done) = repeated(rows, &app.owner, &request.request_id, hash)? {
                return Ok(convert::operation(&done));
            }
            check_not_deleted(&app)?;
            check_version(&app, request.resource_version)?;
            let merged = spec::merge(&app.spec, new, &paths).map_err(Problem::fields)?;
            let faults = spec::faults(&app.owner, &merged);
            if !faults.is_empty() {
                return Err(Problem::fields(faults));
            }
            if request.validate_only {
                return Ok(checked("update"));
            }
            let unchanged = merged == app.spec;
            app.spec = merged;
            if !unchanged {
                app.version += 1;
            }
            effects.put_app(rows, &app)?;
            let mut operation = operations::begin(rows, &app, "update", false)?;
            let at = now();
            if !request.request_id.is_empty() {
                let known = Request {
                    hash,
                    operation: operation.id,
                };
                rows.put_request(&app.owner, &request.request_id, known, at)?;
            }
            let mut updated = event("app.updated", &app, "");
            updated.request = request.request_id;
            updated.operation = Some(operation.id);
            rows.add_event(at, &updated)?;
            if app.agent.is_none() || unchanged {
                operation = operations::finish(rows, Some(&app), operation, None)?;
            } else {
                effects.assign(&app, Some(operation.id));
            }
            Ok(convert::operation(&operation))
        })
        .await
    }

    /// Ends an app and removes all of it.
    ///
    /// # Errors
    /// There is none for this caller, or it has changed.
    pub async fn delete_app(
        self: &Arc<Self>,
        handle: Handle,
        request: v1::DeleteAppRequest,
    ) -> Result<v1::Operation, Problem> {
        check_request_id(&request.request_id)?;
        let version = request.resource_version.to_le_bytes();
        let named = &handle.named;
        let hash = hash(&[b"delete", named.id.as_bytes(), named.name.as_bytes(), &version]);
        self.change(move |rows, effects| {
            // The app may be gone by now, or another one have its name.
            if let Some(done) = repeated(rows, handle.asker(), &request.request_id, hash)? {
                return Ok(convert::operation(&done));
            }
            let mut app = handle.find(rows)?;
            check_version(&app, request.resource_version)?;
            let again = app.desired == v1::Desired::Deleted;
            if !again {
                app.desired = v1::Desired::Deleted;
                app.version += 1;
            }
            let at = now();
            app.state = v1::AppState::Deleting;
            app.reason = "deleted by its owner".into();
            app.since = at;
            let mut operation = operations::begin(rows, &app, "delete", false)?;
            if !request.request_id.is_empty() {
                let known = Request {
                    hash,
                    operation: operation.id,
                };
                rows.put_request(handle.asker(), &request.request_id, known, at)?;
            }
            let mut deleting = event("app.deleting", &app, "");
            deleting.request = request.request_id;
            deleting.operation = Some(operation.id);
            rows.add_event(at, &deleting)?;
            if app.agent.is_none() {
                operation = forget(rows, effects, &app)?.unwrap_or(operation);
            } else {
                effects.put_app(rows, &app)?;
                effects.assign(&app, Some(operation.id));
            }
            Ok(convert::operation(&operation))
        })
        .await
    }

    /// Starts a stopped or failed app anew; wakes one that sleeps.
    ///
    /// # Errors
    /// There is none for this caller, or it is being deleted.
    pub async fn start_app(self: &Arc<Self>, handle: Handle) -> Result<v1::Operation, Problem> {
        self.set_desired(handle, v1::Desired::Running, "start", "app.started", Verb::Start)
            .await
    }

    /// Ends an app; packets do not wake it.
    ///
    /// # Errors
    /// There is none for this caller, or it is being deleted.
    pub async fn stop_app(self: &Arc<Self>, handle: Handle) -> Result<v1::Operation, Problem> {
        self.set_desired(handle, v1::Desired::Stopped, "stop", "app.stopped", Verb::Stop)
            .await
    }

    async fn set_desired(
        self: &Arc<Self>,
        handle: Handle,
        desired: v1::Desired,
        verb: &'static str,
        kind: &'static str,
        command: Verb,
    ) -> Result<v1::Operation, Problem> {
        self.change(move |rows, effects| {
            let mut app = handle.find(rows)?;
            check_not_deleted(&app)?;
            if app.desired != desired {
                app.desired = desired;
                app.version += 1;
            }
            let stays_down = app.agent.is_none() && desired == v1::Desired::Stopped;
            if stays_down {
                app.state = v1::AppState::Stopped;
                app.reason = "stopped before any agent had it".into();
                app.since = now();
            } else if app.agent.is_none() {
                app.state = v1::AppState::Pending;
            }
            effects.put_app(rows, &app)?;
            let mut operation = operations::begin(rows, &app, verb, false)?;
            let mut asked = event(kind, &app, "");
            asked.operation = Some(operation.id);
            rows.add_event(now(), &asked)?;
            if stays_down {
                operation = operations::finish(rows, Some(&app), operation, None)?;
            }
            effects.assign(&app, None);
            effects.command(&app, command, operation.id);
            Ok(convert::operation(&operation))
        })
        .await
    }

    /// Ends an app and starts it anew.
    ///
    /// # Errors
    /// There is none for this caller, it is stopped, or its agent is away.
    pub async fn restart_app(self: &Arc<Self>, handle: Handle) -> Result<v1::Operation, Problem> {
        self.once(handle, "restart", "app.restarted", Verb::Restart, false)
            .await
    }

    /// Wakes an app.
    ///
    /// # Errors
    /// As [`Hub::restart_app`].
    pub async fn wake_app(self: &Arc<Self>, handle: Handle) -> Result<v1::Operation, Problem> {
        self.once(handle, "wake", "app.woken", Verb::Wake, false).await
    }

    /// Puts an app to sleep.
    ///
    /// # Errors
    /// As [`Hub::restart_app`], or it cannot sleep there.
    pub async fn sleep_app(self: &Arc<Self>, handle: Handle, to: i32) -> Result<v1::Operation, Problem> {
        let (verb, cold) = match v1::AppState::try_from(to) {
            Ok(v1::AppState::Unspecified | v1::AppState::Warm) => (Verb::SleepWarm, false),
            Ok(v1::AppState::Cold) => (Verb::SleepCold, true),
            Ok(v1::AppState::Dozing) => {
                return Err(
                    Problem::new(Code::Unimplemented, "DOZING", "this release has no dozing apps")
                        .hint("sleep to warm or to cold"),
                );
            }
            _ => return Err(Problem::field("to", "an app sleeps warm or cold")),
        };
        self.once(handle, "sleep", "app.slept", verb, cold).await
    }

    /// Something that is said to the agent once.
    async fn once(
        self: &Arc<Self>,
        handle: Handle,
        verb: &'static str,
        kind: &'static str,
        command: Verb,
        cold: bool,
    ) -> Result<v1::Operation, Problem> {
        let sessions = self.sessions.clone();
        self.change(move |rows, effects| {
            let app = handle.find(rows)?;
            check_not_deleted(&app)?;
            if app.desired == v1::Desired::Stopped {
                let message = format!("'{}' is stopped", app.label());
                return Err(Problem::new(Code::FailedPrecondition, "STOPPED", message)
                    .hint(format!("start it: pico app start {}", app.spec.name)));
            }
            match app.agent {
                None => {
                    let message = format!("no agent has '{}' yet", app.label());
                    return Err(Problem::new(Code::FailedPrecondition, "PENDING", message)
                        .hint("an agent must join: `pico agent list` shows those there are"));
                }
                Some(agent) if !sessions.has(agent) => return Err(agent_away(&app)),
                Some(_) => {}
            }
            let operation = operations::begin(rows, &app, verb, cold)?;
            let mut asked = event(kind, &app, if cold { "to cold" } else { "" });
            asked.operation = Some(operation.id);
            rows.add_event(now(), &asked)?;
            effects.command(&app, command, operation.id);
            Ok(convert::operation(&operation))
        })
        .await
    }

    /// An app once it is as asked; the caller bounds the waiting.
    ///
    /// # Errors
    /// There is none for this caller, or it is gone meanwhile.
    pub async fn wait_app(&self, handle: Handle, condition: i32) -> Result<v1::App, Problem> {
        let Ok(condition) = Condition::try_from(condition) else {
            return Err(Problem::field("condition", "this hub does not know it"));
        };
        let app = self
            .until(move |rows| {
                let app = handle.find(rows)?;
                Ok(is(&app, condition).then_some(app))
            })
            .await?;
        Ok(self.show_app(&app))
    }
}

fn is(app: &App, condition: Condition) -> bool {
    use v1::AppState as State;
    match condition {
        Condition::Unspecified | Condition::Settled => matches!(
            app.state,
            State::Hot | State::Dozing | State::Warm | State::Cold | State::Stopped | State::Failed
        ),
        Condition::Hot => app.state == State::Hot,
        Condition::Asleep => matches!(app.state, State::Dozing | State::Warm | State::Cold),
        Condition::Cold => app.state == State::Cold,
        Condition::Stopped => app.state == State::Stopped,
    }
}

/// Nothing is left of an app: its operations end, and so does it. Gives the one that asked for it, if one did.
pub(super) fn forget(
    rows: &mut dyn Rows,
    effects: &mut Effects,
    app: &App,
) -> Result<Option<Operation>, RegistryError> {
    let mut deletion = None;
    for operation in rows.open_operations(app.id)? {
        let error = (operation.verb != "delete")
            .then(|| operations::failure("DELETED", "the app was deleted meanwhile", "", false));
        let finished = operations::finish(rows, None, operation, error)?;
        if finished.verb == "delete" {
            deletion = Some(finished);
        }
    }
    let mut deleted = event("app.deleted", app, "nothing of it is left");
    deleted.operation = deletion.as_ref().map(|operation| operation.id);
    rows.add_event(now(), &deleted)?;
    effects.forget_app(rows, app)?;
    Ok(deletion)
}
