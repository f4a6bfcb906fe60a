//! Messages of the API as JSON and as text. Pure.

use pico_proto::units::{Timestamp, format_age, format_bytes};
use pico_proto::v1;
use serde_json::{Value, json};

use super::output::{Answer, clean, table};

/// `hot` of `APP_STATE_HOT`.
pub(super) fn state(state: i32) -> String {
    let state = v1::AppState::try_from(state).unwrap_or_default();
    short(state.as_str_name(), "APP_STATE_")
}

fn short(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

fn time(at: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    let at = at?;
    let seconds = u64::try_from(at.seconds).ok()?;
    let micros = u64::try_from(at.nanos / 1_000).ok()?;
    Some(Timestamp::from_micros(
        seconds.checked_mul(1_000_000)?.checked_add(micros)?,
    ))
}

fn time_json(at: Option<&prost_types::Timestamp>) -> Value {
    json!(time(at).map(|at| at.to_string()))
}

fn age(at: Option<&prost_types::Timestamp>) -> String {
    time(at).map_or_else(|| "-".to_owned(), |at| format_age(Timestamp::now().since(at)))
}

/// `null` for what is empty.
fn text(text: &str) -> Value {
    match text.is_empty() {
        true => Value::Null,
        false => json!(text),
    }
}

fn dash(text: &str) -> String {
    match text.is_empty() {
        true => "-".to_owned(),
        false => text.to_owned(),
    }
}

/// Seconds, `"never"`, or `null` for the default.
fn wait(wait: Option<&v1::Wait>) -> Value {
    match wait.and_then(|wait| wait.kind.as_ref()) {
        None => Value::Null,
        Some(v1::wait::Kind::Never(_)) => json!("never"),
        Some(v1::wait::Kind::After(after)) => {
            json!(f64::from(after.nanos) / 1e9 + seconds(after.seconds))
        }
    }
}

/// Exact up to 2^53; a wait of 285 million years is not.
fn seconds(seconds: i64) -> f64 {
    let bounded = seconds.clamp(0, i64::from(u32::MAX));
    f64::from(u32::try_from(bounded).unwrap_or(u32::MAX))
}

fn spec(spec: &v1::AppSpec) -> Value {
    let choice = |name: &str, prefix| match name.ends_with("_UNSPECIFIED") {
        true => Value::Null,
        false => json!(short(name, prefix).replace('_', "-")),
    };
    json!({
        "name": spec.name,
        "root": spec.root,
        "command": spec.command,
        "ports": spec.ports,
        "env": spec.env,
        "user": text(&spec.user),
        "workdir": text(&spec.workdir),
        "hostname": text(&spec.hostname),
        "seed": text(&spec.seed),
        "memory_bytes": spec.memory_bytes,
        "cpus": spec.cpus,
        "pids": spec.pids,
        "idle": wait(spec.idle.as_ref()),
        "cold_after": wait(spec.cold_after.as_ref()),
        "restart": choice(spec.restart().as_str_name(), "RESTART_"),
        "after_crash": choice(spec.after_crash().as_str_name(), "AFTER_CRASH_"),
        "wake_on_dns": choice(spec.wake_on_dns().as_str_name(), "WAKE_ON_DNS_"),
        "hold_timeout": wait(spec.hold_timeout.as_ref()),
        "prefetch": choice(spec.prefetch().as_str_name(), "PREFETCH_MODE_"),
        "connections": choice(spec.connections().as_str_name(), "CONNECTIONS_"),
        "timers": choice(spec.timers().as_str_name(), "TIMERS_"),
        "wake": spec.wake.as_ref().map(|wake| json!({
            "allow": wake.allow,
            "deny": wake.deny,
            "rate": text(&wake.rate),
            "at": wake.at,
        })),
        "probes": spec.probes.iter().map(|probe| json!({
            "from": probe.from,
            "http": (probe.http != 0).then_some(probe.http),
            "body": text(&probe.body),
        })).collect::<Vec<_>>(),
        "sandbox": spec.sandbox.as_ref().map(|sandbox| json!({
            "capabilities": sandbox.capabilities,
            "no_new_privs": sandbox.no_new_privs,
            "seccomp": sandbox.seccomp,
        })),
    })
}

fn figures(figures: &v1::AppFigures) -> Value {
    json!({
        "starts": figures.starts,
        "wakes_warm": figures.wakes_warm,
        "wakes_cold": figures.wakes_cold,
        "failed_wakes": figures.failed_wakes,
        "sleeps": figures.sleeps,
        "failed_sleeps": figures.failed_sleeps,
        "checkpoint_bytes": figures.checkpoint_bytes,
        "memory_bytes": figures.memory_bytes,
        "last_wake": figures.last_wake.as_ref().map(|wake| json!({
            "at": time_json(wake.at.as_ref()),
            "from": state(wake.from),
            "trigger": wake.trigger,
            "seconds": wake.total_ms / 1e3,
            "phases": wake.phases.iter().map(|phase| json!({ "name": phase.name, "seconds": phase.ms / 1e3 }))
                .collect::<Vec<_>>(),
            "fetched_bytes": wake.fetched_bytes,
            "s3_gets": wake.s3_gets,
        })),
        "last_failure": figures.last_failure.as_ref().map(|failure| json!({
            "at": time_json(failure.at.as_ref()),
            "during": failure.during,
            "reason": failure.reason,
        })),
        "last_exit": text(&figures.last_exit),
    })
}

fn app_json(app: &v1::App) -> Value {
    json!({
        "id": app.id,
        "owner": app.owner,
        "name": name(app),
        "state": state(app.state),
        "reason": app.reason,
        "since": time_json(app.since.as_ref()),
        "desired": short(app.desired().as_str_name(), "DESIRED_"),
        "dns_name": text(&app.dns_name),
        "ipv4": text(&app.ipv4),
        "ipv6": text(&app.ipv6),
        "agent_id": text(&app.agent_id),
        "agent_connected": app.agent_connected,
        "created": time_json(app.created.as_ref()),
        "resource_version": app.resource_version,
        "spec": app.spec.as_ref().map(spec),
        "figures": app.figures.as_ref().map(figures),
    })
}

/// The app's name.
pub(super) fn name(app: &v1::App) -> &str {
    app.spec.as_ref().map_or("", |spec| spec.name.as_str())
}

/// `app list`
pub(super) fn apps(apps: &[v1::App], wide: bool) -> Answer {
    let mut header = vec!["NAME", "OWNER", "STATE", "SINCE", "ADDRESS", "PORTS", "REASON"];
    if wide {
        header.extend(["IPV6", "DNS", "AGENT", "ID"]);
    }
    let rows = apps.iter().map(|app| {
        let ports = app
            .spec
            .as_ref()
            .map_or_else(String::new, |spec| spec.ports.join(","));
        let mut row = vec![
            name(app).to_owned(),
            app.owner.clone(),
            state(app.state),
            age(app.since.as_ref()),
            dash(&app.ipv4),
            dash(&ports),
            app.reason.clone(),
        ];
        if wide {
            row.extend([&app.ipv6, &app.dns_name, &app.agent_id, &app.id].map(|text| dash(text)));
        }
        row
    });
    Answer {
        document: json!({ "apps": apps.iter().map(app_json).collect::<Vec<_>>() }),
        text: table(&header, rows),
        names: apps.iter().map(|app| name(app).to_owned()).collect(),
    }
}

/// `app show`
pub(super) fn app(app: &v1::App) -> Answer {
    let mut lines = vec![
        ("Name", format!("{} (owner {})", name(app), app.owner)),
        (
            "State",
            format!(
                "{} for {}: {}",
                state(app.state),
                age(app.since.as_ref()),
                app.reason
            ),
        ),
        ("Name in DNS", dash(&app.dns_name)),
        ("Addresses", dash(format!("{} {}", app.ipv4, app.ipv6).trim())),
        (
            "Agent",
            match app.agent_connected {
                true => app.agent_id.clone(),
                false => format!("{} (not connected)", dash(&app.agent_id)),
            },
        ),
        ("Id", app.id.clone()),
    ];
    if let Some(spec) = &app.spec {
        lines.push(("Command", spec.command.join(" ")));
        lines.push(("Ports", dash(&spec.ports.join(","))));
    }
    if let Some(figures) = &app.figures {
        let wakes = figures.wakes_warm + figures.wakes_cold;
        lines.push((
            "Wakes",
            format!(
                "{wakes}, {} of them cold, {} failed",
                figures.wakes_cold, figures.failed_wakes
            ),
        ));
        lines.push(("Checkpoint", format_bytes(figures.checkpoint_bytes)));
        if let Some(wake) = &figures.last_wake {
            let from = state(wake.from);
            lines.push((
                "Last wake",
                format!("{:.1} ms from {from} by {}", wake.total_ms, wake.trigger),
            ));
        }
        if let Some(failure) = &figures.last_failure {
            lines.push(("Last failure", format!("{}: {}", failure.during, failure.reason)));
        }
    }
    Answer {
        document: json!({ "app": app_json(app) }),
        text: facts(&lines),
        names: vec![name(app).to_owned()],
    }
}

fn facts(lines: &[(&str, String)]) -> String {
    let line = |(subject, text): &(&str, String)| format!("{:<13} {}\n", format!("{subject}:"), clean(text));
    lines.iter().map(line).collect()
}

/// `app status`
pub(super) fn status(app: &v1::App) -> Answer {
    Answer {
        text: format!(
            "{} is {}: {}\n",
            clean(name(app)),
            state(app.state),
            clean(&app.reason)
        ),
        ..self::app(app)
    }
}

/// `app explain`
pub(super) fn explain(explained: &v1::ExplainAppResponse) -> Answer {
    let known = explained.app.clone().unwrap_or_default();
    let mut lines = vec![("State", format!("{}: {}", state(known.state), known.reason))];
    lines.push(("Next", dash(&explained.next)));
    lines.extend(
        explained
            .facts
            .iter()
            .map(|fact| (fact.subject.as_str(), fact.text.clone())),
    );
    Answer {
        document: json!({
            "app": app_json(&known),
            "next": text(&explained.next),
            "facts": explained.facts.iter()
                .map(|fact| json!({ "subject": fact.subject, "text": fact.text })).collect::<Vec<_>>(),
        }),
        text: facts(&lines),
        names: vec![name(&known).to_owned()],
    }
}

/// What a change has become.
pub(super) fn operation(operation: &v1::Operation, subject: &str) -> Answer {
    let told = match operation.done {
        true => format!("{subject}: {} done\n", operation.verb),
        false => format!(
            "{subject}: {} is under way, operation {}\n",
            operation.verb, operation.id
        ),
    };
    Answer {
        document: json!({ "operation": {
            "id": operation.id,
            "app_id": text(&operation.app_id),
            "verb": operation.verb,
            "done": operation.done,
            "error": operation.error.as_ref().map(|error| json!({
                "code": error.reason,
                "message": error.message,
                "hint": error.hint,
                "retryable": error.retryable,
            })),
            "created": time_json(operation.created.as_ref()),
            "finished": time_json(operation.finished.as_ref()),
        }}),
        text: told,
        names: vec![operation.id.clone()],
    }
}

/// What `apply` did, or would do: `create`, `update` or `nothing`.
pub(super) fn applied(name: &str, did: &str, dry_run: bool) -> Answer {
    let told = match (did, dry_run) {
        ("nothing", _) => format!("{name}: nothing changes\n"),
        (did, true) => format!("{name}: would {did}\n"),
        (did, false) => format!("{name}: {did} done\n"),
    };
    Answer {
        document: json!({ "apply": { "name": name, "action": did, "dry_run": dry_run } }),
        text: told,
        names: vec![name.to_owned()],
    }
}

fn token_json(token: &v1::Token) -> Value {
    json!({
        "id": token.id,
        "role": short(token.role().as_str_name(), "ROLE_"),
        "owner": text(&token.owner),
        "note": text(&token.note),
        "created": time_json(token.created.as_ref()),
        "expires": time_json(token.expires.as_ref()),
        "revoked": time_json(token.revoked.as_ref()),
        "last_used": time_json(token.last_used.as_ref()),
    })
}

/// `token list`
pub(super) fn tokens(tokens: &[v1::Token]) -> Answer {
    let rows = tokens.iter().map(|token| {
        let expires = time(token.expires.as_ref()).map_or_else(|| "never".to_owned(), |at| at.to_string());
        vec![
            token.id.clone(),
            short(token.role().as_str_name(), "ROLE_"),
            dash(&token.owner),
            age(token.created.as_ref()),
            age(token.last_used.as_ref()),
            if token.revoked.is_some() {
                "revoked".to_owned()
            } else {
                expires
            },
            dash(&token.note),
        ]
    });
    Answer {
        document: json!({ "tokens": tokens.iter().map(token_json).collect::<Vec<_>>() }),
        text: table(&["ID", "ROLE", "OWNER", "AGE", "USED", "ENDS", "NOTE"], rows),
        names: tokens.iter().map(|token| token.id.clone()).collect(),
    }
}

/// `token whoami`
pub(super) fn whoami(token: &v1::Token) -> Answer {
    let role = short(token.role().as_str_name(), "ROLE_");
    let told = match token.owner.is_empty() {
        true => format!("{role} (token {})\n", token.id),
        false => format!("{role} {} (token {})\n", token.owner, token.id),
    };
    Answer {
        document: json!({ "token": token_json(token) }),
        text: told,
        names: vec![token.id.clone()],
    }
}

/// `token create`, `agent join-token`: the secret alone on a line, so that it can be caught.
pub(super) fn new_token(made: &v1::CreateTokenResponse) -> Answer {
    Answer {
        document: json!({
            "token": token_json(&made.token.clone().unwrap_or_default()),
            "secret": made.secret,
        }),
        text: format!("{}\n", made.secret),
        names: vec![made.secret.clone()],
    }
}

fn agent_json(agent: &v1::Agent) -> Value {
    json!({
        "id": agent.id,
        "name": agent.name,
        "connected": agent.connected,
        "apps": agent.apps,
        "joined": time_json(agent.joined.as_ref()),
        "last_heard": time_json(agent.last_heard.as_ref()),
        "host": agent.host.as_ref().map(|host| json!({
            "version": text(&host.version),
            "kernel": text(&host.kernel),
            "criu": text(&host.criu),
            "cpus": host.cpus,
            "memory_bytes": host.memory_bytes,
            "v4": text(&host.v4),
            "v6": text(&host.v6),
        })),
    })
}

/// `agent list`
pub(super) fn agents(agents: &[v1::Agent]) -> Answer {
    let rows = agents.iter().map(|agent| {
        let host = agent.host.clone().unwrap_or_default();
        vec![
            agent.name.clone(),
            if agent.connected { "connected" } else { "away" }.to_owned(),
            age(agent.last_heard.as_ref()),
            agent.apps.to_string(),
            host.cpus.to_string(),
            format_bytes(host.memory_bytes),
            dash(&host.kernel),
            agent.id.clone(),
        ]
    });
    Answer {
        document: json!({ "agents": agents.iter().map(agent_json).collect::<Vec<_>>() }),
        text: table(
            &["NAME", "STATE", "HEARD", "APPS", "CPUS", "MEMORY", "KERNEL", "ID"],
            rows,
        ),
        names: agents.iter().map(|agent| agent.name.clone()).collect(),
    }
}

/// `agent show`
pub(super) fn agent(agent: &v1::Agent) -> Answer {
    Answer {
        document: json!({ "agent": agent_json(agent) }),
        ..agents(std::slice::from_ref(agent))
    }
}

/// One event: a document of its own, and a line.
pub(super) fn event(event: &v1::Event) -> Answer {
    let at = time(event.at.as_ref()).map_or_else(|| "-".to_owned(), |at| at.to_string());
    let known = event.state() != v1::AppState::Unspecified;
    let subject = match event.app_name.is_empty() {
        true => event.agent_id.clone(),
        false => format!("{}-{}", event.app_name, event.owner),
    };
    let told = match known {
        true => format!(
            "{at} {} {subject} {}: {}",
            event.kind,
            state(event.state),
            event.reason
        ),
        false => format!("{at} {} {subject} {}", event.kind, event.reason),
    };
    Answer {
        document: json!({ "event": {
            "number": event.number,
            "at": time_json(event.at.as_ref()),
            "kind": event.kind,
            "app_id": text(&event.app_id),
            "owner": text(&event.owner),
            "app_name": text(&event.app_name),
            "agent_id": text(&event.agent_id),
            "state": known.then(|| state(event.state)),
            "reason": text(&event.reason),
            "request_id": text(&event.request_id),
        }}),
        text: format!("{}\n", clean(told.trim_end())),
        names: vec![event.number.to_string()],
    }
}

/// One line of an app's log, as a document.
pub(super) fn log_line(line: &v1::LogLine) -> Value {
    json!({ "line": {
        "at": time_json(line.at.as_ref()),
        "stream": line.stream,
        "text": String::from_utf8_lossy(&line.text),
    }})
}

/// What `delete`, `revoke` and `remove` did.
pub(super) fn removed(what: &str, called: &str) -> Answer {
    Answer {
        document: json!({ "removed": { what: called } }),
        text: format!("{what} {called} is gone\n"),
        names: vec![called.to_owned()],
    }
}

#[cfg(test)]
mod tests;
