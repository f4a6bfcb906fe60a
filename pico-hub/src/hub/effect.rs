//! What must follow from a change that is on the disk. Followed in the order of the changes, on the registry's thread:
//! nothing here waits.

use std::sync::{Mutex, PoisonError};

use pico_proto::v1;
use pico_proto::v1::hub_message::Kind;

use super::Hub;
use super::sessions::Session;
use crate::directory::Entry;
use crate::id::{AgentId, OperationId};
use crate::registry::{App, NewEvent, RegistryError, Rows, Token};
use pico_proto::port::Port;

/// What follows, in order.
#[derive(Default)]
pub(super) struct Effects(Vec<Effect>);

enum Effect {
    Name {
        label: String,
        entry: Entry,
        ports: Vec<Port>,
        serial: u32,
    },
    NoName {
        label: String,
        serial: u32,
    },
    Token(Token),
    Begin(Session),
    End(AgentId),
    Send(AgentId, Box<v1::HubMessage>),
}

impl Effects {
    /// An app is new or has changed: it is written, and its name stands for what it is now.
    pub(super) fn put_app(&mut self, rows: &mut dyn Rows, app: &App) -> Result<(), RegistryError> {
        rows.put_app(app)?;
        let serial = rows.next_serial()?;
        self.name(app, serial);
        Ok(())
    }

    /// The name of an app that is registered.
    pub(super) fn name(&mut self, app: &App, serial: u32) {
        let wake_on_dns = match app.spec.wake_on_dns() {
            v1::WakeOnDns::Unspecified => v1::WakeOnDns::Prefetch,
            asked => asked,
        };
        self.0.push(Effect::Name {
            label: app.label(),
            entry: Entry {
                app: app.id,
                agent: app.agent,
                ipv4: app.ipv4,
                ipv6: app.ipv6,
                state: app.state,
                wake_on_dns,
            },
            ports: app
                .spec
                .ports
                .iter()
                .filter_map(|port| port.parse().ok())
                .collect(),
            serial,
        });
    }

    /// An app is forgotten, and its name stands for nothing.
    pub(super) fn forget_app(&mut self, rows: &mut dyn Rows, app: &App) -> Result<(), RegistryError> {
        rows.delete_app(app.id)?;
        let (label, serial) = (app.label(), rows.next_serial()?);
        self.0.push(Effect::NoName { label, serial });
        Ok(())
    }

    /// A token is new or has changed.
    pub(super) fn put_token(&mut self, rows: &mut dyn Rows, token: &Token) -> Result<(), RegistryError> {
        rows.put_token(token)?;
        self.0.push(Effect::Token(token.clone()));
        Ok(())
    }

    /// An agent is attached from here on: what is sent to it before does not reach it.
    pub(super) fn begin(&mut self, session: Session) {
        self.0.push(Effect::Begin(session));
    }

    /// An agent has no business here any more.
    pub(super) fn end(&mut self, agent: AgentId) {
        self.0.push(Effect::End(agent));
    }

    /// A message for an agent; one that is not attached learns it all when it comes.
    pub(super) fn send(&mut self, agent: AgentId, kind: Kind) {
        let message = v1::HubMessage { kind: Some(kind) };
        self.0.push(Effect::Send(agent, Box::new(message)));
    }

    /// What an app should be, for the agent that has it.
    pub(super) fn assign(&mut self, app: &App, operation: Option<OperationId>) {
        if let Some(agent) = app.agent {
            self.send(agent, Kind::App(assigned(app, operation)));
        }
    }

    /// Something to do, for the agent that has the app.
    pub(super) fn command(&mut self, app: &App, verb: v1::command::Verb, operation: OperationId) {
        if let Some(agent) = app.agent {
            let command = v1::Command {
                operation_id: operation.to_string(),
                app_id: app.id.to_string(),
                verb: verb.into(),
            };
            self.send(agent, Kind::Command(command));
        }
    }
}

/// An app as its agent is told of it.
pub(super) fn assigned(app: &App, operation: Option<OperationId>) -> v1::AssignedApp {
    v1::AssignedApp {
        id: app.id.to_string(),
        label: app.label(),
        owner: app.owner.clone(),
        spec: Some(app.spec.clone()),
        resource_version: app.version,
        desired: app.desired.into(),
        operation_id: operation.map(|id| id.to_string()).unwrap_or_default(),
    }
}

/// Of an app.
pub(super) fn event(kind: &'static str, app: &App, reason: impl Into<String>) -> NewEvent {
    NewEvent {
        kind,
        app: Some(app.id),
        owner: app.owner.clone(),
        name: app.spec.name.clone(),
        agent: app.agent,
        state: Some(app.state),
        reason: reason.into(),
        ..NewEvent::default()
    }
}

impl Hub {
    pub(super) fn follow(&self, effects: &Mutex<Effects>) {
        let effects = std::mem::take(&mut *effects.lock().unwrap_or_else(PoisonError::into_inner));
        for effect in effects.0 {
            match effect {
                Effect::Name {
                    label,
                    entry,
                    ports,
                    serial,
                } => self.names.set(&label, entry, &ports, serial),
                Effect::NoName { label, serial } => self.names.remove(&label, serial),
                Effect::Token(token) => self.tokens.put(token),
                Effect::Begin(session) => self.sessions.begin(session),
                Effect::End(agent) => self.sessions.end(agent),
                Effect::Send(agent, message) => self.sessions.send(agent, *message),
            }
        }
        self.changed.send_modify(|count| *count += 1);
    }
}
