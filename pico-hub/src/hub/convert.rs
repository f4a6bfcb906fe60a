//! Rows as the API shows them.

use pico_proto::v1;
use prost_types::Timestamp;

use super::Hub;
use crate::registry::{Agent, App, Event, Operation, Token};

/// A time in microseconds as the API writes it.
pub(crate) fn timestamp(micros: i64) -> Timestamp {
    Timestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos: i32::try_from(micros.rem_euclid(1_000_000) * 1000).unwrap_or(0),
    }
}

/// The other way; out of range becomes the nearest.
pub(crate) fn micros(time: &Timestamp) -> i64 {
    time.seconds
        .saturating_mul(1_000_000)
        .saturating_add(i64::from(time.nanos) / 1000)
}

impl Hub {
    pub(super) fn show_app(&self, app: &App) -> v1::App {
        v1::App {
            id: app.id.to_string(),
            owner: app.owner.clone(),
            spec: Some(app.spec.clone()),
            resource_version: app.version,
            state: app.state.into(),
            reason: app.reason.clone(),
            since: Some(timestamp(app.since)),
            desired: app.desired.into(),
            dns_name: match &self.zone {
                Some(zone) => format!("{}.{zone}", app.label()),
                None => String::new(),
            },
            ipv4: app.ipv4.map(|address| address.to_string()).unwrap_or_default(),
            ipv6: app.ipv6.map(|address| address.to_string()).unwrap_or_default(),
            agent_id: app.agent.map(|agent| agent.to_string()).unwrap_or_default(),
            created: Some(timestamp(app.created)),
            figures: app.figures.clone(),
            agent_connected: app.agent.is_some_and(|agent| self.sessions.has(agent)),
        }
    }

    pub(super) fn show_agent(&self, agent: &Agent, apps: u64) -> v1::Agent {
        v1::Agent {
            id: agent.id.to_string(),
            name: agent.name.clone(),
            host: Some(agent.host.clone()),
            connected: self.sessions.has(agent.id),
            last_heard: Some(timestamp(agent.last_heard)),
            joined: Some(timestamp(agent.joined)),
            apps: u32::try_from(apps).unwrap_or(u32::MAX),
        }
    }
}

pub(super) fn operation(operation: &Operation) -> v1::Operation {
    v1::Operation {
        id: operation.id.to_string(),
        app_id: operation.app.to_string(),
        verb: operation.verb.clone(),
        done: operation.finished.is_some(),
        error: operation.error.clone(),
        created: Some(timestamp(operation.created)),
        finished: operation.finished.map(timestamp),
    }
}

pub(super) fn token(token: &Token) -> v1::Token {
    v1::Token {
        id: token.id.to_string(),
        role: token.role.to_proto().into(),
        owner: token.owner.clone(),
        note: token.note.clone(),
        created: Some(timestamp(token.created)),
        expires: token.expires.map(timestamp),
        revoked: token.revoked.map(timestamp),
        last_used: token.last_used.map(timestamp),
    }
}

pub(super) fn event(event: &Event) -> v1::Event {
    let what = &event.what;
    v1::Event {
        number: event.number,
        at: Some(timestamp(event.at)),
        kind: event.kind.clone(),
        app_id: what.app.map(|app| app.to_string()).unwrap_or_default(),
        owner: what.owner.clone(),
        app_name: what.name.clone(),
        agent_id: what.agent.map(|agent| agent.to_string()).unwrap_or_default(),
        state: what.state.unwrap_or_default().into(),
        reason: what.reason.clone(),
        request_id: what.request.clone(),
        operation_id: what.operation.map(|id| id.to_string()).unwrap_or_default(),
    }
}
