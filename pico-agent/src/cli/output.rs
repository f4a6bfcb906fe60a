//! How answers look: tables without borders for people, one JSON document for programs. Promises stability of
//! the JSON; `tests/cli.rs` and the tests here hold it to that.

use std::io::{self, Write};

use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::exit::Exit;
use crate::control::protocol::{
    self, AgentStatus, AppDetail, AppSummary, CheckpointView, ErrorCode, Explanation, Failure,
};
use crate::doctor::{Row, Verdict};
use crate::lifecycle::record::PortSet;
use crate::units::{Timestamp, format_age, format_bytes};

/// Prints answers and errors in the form asked for.
pub(crate) struct Output {
    json: bool,
    pretty: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Output { json, pretty: false }
    }

    /// JSON for people: indented.
    pub(crate) fn pretty() -> Self {
        Output {
            json: true,
            pretty: true,
        }
    }

    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Prints an answer: `document` with the schema put in front, or the text.
    pub(crate) fn document(&self, document: &Value, text: impl FnOnce() -> String) -> Result<Exit, Failure> {
        let printed = match self.json {
            true => {
                let mut whole = json!({ "schema": protocol::SCHEMA });
                if let (Some(whole), Some(parts)) = (whole.as_object_mut(), document.as_object()) {
                    whole.extend(parts.clone());
                }
                match self.pretty {
                    true => format!("{whole:#}\n"),
                    false => format!("{whole}\n"),
                }
            }
            false => text(),
        };
        let mut stdout = io::stdout().lock();
        match stdout.write_all(printed.as_bytes()).and_then(|()| stdout.flush()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::OK),
            Err(error) => Err(Failure::new(ErrorCode::Failed, format!("cannot print ({error})"))),
            Ok(()) => Ok(Exit::OK),
        }
    }

    /// Prints why there is no answer: a line on standard error, or the one document on standard output.
    pub(crate) fn failure(&self, failure: &Failure) {
        if self.json {
            let _ = self.document(&json!({ "error": failure }), String::new);
            return;
        }
        let mut line = format!("Error: {}", failure.message);
        if !failure.hint.is_empty() {
            line.push_str(&format!("; try: {}", failure.hint));
        }
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// A table with upper-case headers and nothing drawn.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

fn age(since: Timestamp) -> String {
    format_age(Timestamp::now().since(since))
}

fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty())
        .unwrap_or_else(|| "-".to_owned())
}

fn ports(app: &AppSummary) -> String {
    let ports: Vec<String> = app.ports.iter().map(ToString::to_string).collect();
    or_dash(Some(ports.join(",")))
}

fn place(checkpoint: &CheckpointView) -> &'static str {
    match (checkpoint.local, checkpoint.stored) {
        (true, true) => "disk, store",
        (true, false) => "disk",
        (false, true) => "store",
        (false, false) => "nowhere",
    }
}

/// `app list`
pub(super) fn list(apps: &[AppSummary]) -> String {
    let header = [
        "NAME",
        "STATE",
        "SINCE",
        "ADDRESS",
        "PORTS",
        "MEMORY",
        "CHECKPOINT",
        "REASON",
    ];
    table(
        &header,
        apps.iter().map(|app| {
            vec![
                app.name.clone(),
                app.state.clone(),
                age(app.since),
                app.addresses.v4.to_string(),
                ports(app),
                or_dash(app.memory_bytes.map(format_bytes)),
                or_dash(
                    app.checkpoint
                        .as_ref()
                        .map(|checkpoint| format_bytes(checkpoint.bytes)),
                ),
                app.reason.clone(),
            ]
        }),
    )
}

/// After a command that changes an app.
pub(super) fn changed(app: &AppSummary) -> String {
    format!("{} is {}: {}\n", app.name, app.state, app.reason)
}

/// `app show`
pub(super) fn detail(app: &AppDetail) -> String {
    let summary = &app.summary;
    let mut rows: Vec<(&str, String)> = vec![
        ("name", summary.name.clone()),
        (
            "state",
            format!(
                "{} for {} (since {})",
                summary.state,
                age(summary.since),
                summary.since
            ),
        ),
        ("why", summary.reason.clone()),
        ("next", or_dash(Some(app.next.clone()))),
        (
            "addresses",
            format!("{}, {}", summary.addresses.v4, summary.addresses.v6),
        ),
        ("ports", ports(summary)),
        ("command", app.command.join(" ")),
        ("pid", or_dash(summary.pid.map(|pid| pid.to_string()))),
        ("memory", or_dash(summary.memory_bytes.map(format_bytes))),
    ];
    rows.push((
        "checkpoint",
        or_dash(summary.checkpoint.as_ref().map(|checkpoint| {
            let taken = checkpoint
                .taken
                .map(|taken| format!(", {} old", age(taken)))
                .unwrap_or_default();
            let bytes = format_bytes(checkpoint.bytes);
            format!(
                "generation {}, {bytes}, on {}{taken}",
                checkpoint.generation,
                place(checkpoint)
            )
        })),
    ));
    let policy = &app.policy;
    let word = |value: Value| value.as_str().unwrap_or_default().to_owned();
    rows.push((
        "policy",
        format!(
            "idle {}, cold after {}, restart {}, after a crash {}",
            policy.idle,
            policy.cold_after,
            word(json!(policy.restart)),
            word(json!(policy.after_crash)),
        ),
    ));
    let counters = &app.counters;
    rows.push((
        "counters",
        format!(
            "{} starts, {} warm wakes, {} cold wakes, {} sleeps, {} failed wakes, {} failed sleeps",
            counters.starts,
            counters.wakes_warm,
            counters.wakes_cold,
            counters.sleeps,
            counters.failed_wakes,
            counters.failed_sleeps,
        ),
    ));
    rows.push((
        "last wake",
        or_dash(app.last_wake.as_ref().map(|wake| {
            let phases: Vec<String> = wake
                .phases
                .iter()
                .map(|phase| format!("{} {:.1}", phase.name, phase.ms))
                .collect();
            format!(
                "{} ago from {} for {}: {:.1} ms ({}), {} in {} GETs",
                age(wake.at),
                wake.tier,
                wake.trigger,
                wake.total_ms,
                phases.join(", "),
                format_bytes(wake.fetched_bytes),
                wake.s3_gets,
            )
        })),
    ));
    if let Some(report) = app.last_wake.as_ref().and_then(|wake| wake.prefetch.as_ref()) {
        rows.push((
            "brought ahead",
            format!(
                "{} pages: {} used, {} asked for before they came, {} not used, {} unknown; {} more were asked for",
                report.prefetched, report.used, report.late, report.wasted, report.unknown, report.faulted,
            ),
        ));
    }
    for set in &app.active_sets {
        rows.push(("active set", active_set(set)));
    }
    rows.push((
        "last failure",
        or_dash(app.last_failure.as_ref().map(|failure| {
            format!(
                "{} ago in {}: {}",
                age(failure.at),
                failure.during,
                failure.reason
            )
        })),
    ));
    rows.push((
        "last exit",
        or_dash(
            app.last_exit
                .map(|exit| format!("{} {} ago", exit.status, age(exit.at))),
        ),
    ));
    rows.push(("created", app.created.to_string()));
    rows.iter()
        .map(|(key, value)| format!("{:<14}{value}\n", format!("{key}:")))
        .collect()
}

/// `app explain`
pub(super) fn explained(told: &Explanation) -> String {
    let state = format!("{}: {}", told.app.state, told.app.reason);
    let mut rows = vec![
        ("app", told.app.name.clone()),
        ("state", state),
        ("next", or_dash(Some(told.next.clone()))),
    ];
    rows.extend(
        told.facts
            .iter()
            .map(|fact| (fact.subject.as_str(), fact.text.clone())),
    );
    rows.iter()
        .map(|(key, value)| format!("{:<26}{value}\n", format!("{key}:")))
        .collect()
}

fn active_set(set: &PortSet) -> String {
    let port = set.port.map_or("no port".to_owned(), |port| port.to_string());
    let share = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0));
    let again = if set.relearning { ", is learned anew" } else { "" };
    format!(
        "{port}: {} pages of {} windows; {} wakes, recall {}, precision {}{again}",
        set.pages,
        set.windows,
        set.wakes,
        share(set.recall),
        share(set.precision),
    )
}

/// `status`
pub(super) fn status(status: &AgentStatus) -> String {
    let apps: Vec<String> = status
        .apps
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let rows = [
        (
            "version",
            format!("{} (protocol {})", status.version, status.protocol),
        ),
        ("pid", status.pid.to_string()),
        ("up", age(status.since)),
        ("state dir", status.state_dir.clone()),
        ("memory", or_dash(status.memory_bytes.map(format_bytes))),
        ("apps", or_dash(Some(apps.join(", ")))),
    ];
    rows.iter()
        .map(|(key, value)| format!("{:<14}{value}\n", format!("{key}:")))
        .collect()
}

/// `doctor`
pub(super) fn doctor(rows: &[Row]) -> String {
    let header = ["CHECK", "VERDICT", "FOUND"];
    let cells = |row: &Row| {
        vec![
            row.check.to_owned(),
            row.verdict.name().to_owned(),
            row.value.clone(),
        ]
    };
    let mut text = table(&header, rows.iter().map(cells));
    for row in rows.iter().filter(|row| row.verdict != Verdict::Ok) {
        text.push_str(&format!(
            "\n{} {}; try: {}",
            row.verdict.name(),
            row.check,
            row.fix
        ));
    }
    if text.ends_with('\n') { text } else { text + "\n" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Addresses;
    use crate::config::{AfterCrash, Restart};
    use crate::control::protocol::Policy;
    use crate::lifecycle::record::{Counters, Exit as AppExit, ExitStatus, Phase, Wake};
    use crate::lifecycle::state::Tier;
    use crate::units::Wait;

    fn app() -> AppSummary {
        AppSummary {
            name: "web".to_owned(),
            state: "cold".to_owned(),
            since: Timestamp::from_micros(0),
            reason: "warm for 5m".to_owned(),
            addresses: Addresses {
                v4: [10, 77, 0, 5].into(),
                v6: "fd77::5".parse().unwrap(),
            },
            ports: vec!["80/tcp".parse().unwrap(), "443/tcp".parse().unwrap()],
            pid: None,
            memory_bytes: None,
            checkpoint: Some(CheckpointView {
                generation: 3,
                bytes: 3 << 20,
                local: false,
                stored: true,
                taken: None,
            }),
        }
    }

    #[test]
    fn a_list_is_a_table_without_borders() {
        let text = list(&[app()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("NAME  STATE  SINCE  "), "{text}");
        assert!(lines[1].starts_with("web   cold   "), "{text}");
        assert!(
            lines[1].contains("10.77.0.5  80/tcp,443/tcp  -       3.0M"),
            "{text}"
        );
        assert!(lines[1].ends_with("warm for 5m"), "{text}");
    }

    #[test]
    fn show_tells_all_that_an_owner_asks() {
        let detail_of = AppDetail {
            summary: app(),
            next: "its next packet wakes it".to_owned(),
            policy: Policy {
                idle: Wait::secs(10),
                cold_after: Wait::Never,
                restart: Restart::OnFailure,
                after_crash: AfterCrash::Checkpoint,
            },
            command: vec!["nginx".to_owned(), "-g".to_owned()],
            counters: Counters {
                wakes_cold: 2,
                ..Counters::default()
            },
            page_faults: 9,
            active_sets: Vec::new(),
            last_wake: Some(Wake {
                at: Timestamp::from_micros(0),
                tier: Tier::Cold,
                trigger: "80/tcp".to_owned(),
                total_ms: 31.25,
                phases: vec![
                    Phase {
                        name: "fetch".to_owned(),
                        ms: 12.0,
                    },
                    Phase {
                        name: "restore".to_owned(),
                        ms: 9.04,
                    },
                ],
                fetched_bytes: 1 << 20,
                s3_gets: 4,
                faults: 7,
                pages_installed: 6,
                pages_ahead: 0,
                prefetch: None,
            }),
            last_failure: None,
            last_exit: Some(AppExit {
                status: ExitStatus::Code(3),
                at: Timestamp::from_micros(0),
            }),
            created: Timestamp::from_micros(0),
        };
        let text = detail(&detail_of);
        for expected in [
            "state:        cold for ",
            "why:          warm for 5m\n",
            "checkpoint:   generation 3, 3.0M, on store\n",
            "policy:       idle 10s, cold after never, restart on-failure, after a crash checkpoint\n",
            "from cold for 80/tcp: 31.2 ms (fetch 12.0, restore 9.0), 1.0M in 4 GETs\n",
            "last failure: -\n",
            "exited with status 3",
        ] {
            assert!(text.contains(expected), "{expected:?} in\n{text}");
        }
    }

    #[test]
    fn the_json_of_an_app_is_stable() {
        let json = serde_json::to_value(app()).unwrap();
        assert_eq!(
            json,
            json!({
                "name": "web", "state": "cold", "since": "1970-01-01T00:00:00.000000Z", "reason": "warm for 5m",
                "addresses": { "v4": "10.77.0.5", "v6": "fd77::5" }, "ports": ["80/tcp", "443/tcp"],
                "pid": null, "memory_bytes": null,
                "checkpoint": { "generation": 3, "bytes": 3145728, "local": false, "stored": true, "taken": null },
            })
        );
    }

    #[test]
    fn a_doctors_remedies_stand_below_its_table() {
        let row = |verdict, fix: &str| Row {
            check: "tun",
            verdict,
            value: "v".into(),
            fix: fix.into(),
        };
        let text = doctor(&[row(Verdict::Ok, ""), row(Verdict::Fail, "modprobe tun")]);
        assert!(text.ends_with("\nfail tun; try: modprobe tun\n"), "{text}");
    }
}
