//! The hub's words for an app into those of agent.toml, through the same checks. Pure but for the check of what the
//! host has.

use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use pico_proto::v1;
use prost::Message;

use super::config::HubConfig;
use crate::config::{
    AfterCrash, AppConfig, ConnectionPolicy, Prefetch, ProbeSection, Problem, Restart, Root, SandboxSection,
    TimerPolicy, WakeSection, check,
};
use crate::control::protocol::{ErrorCode, Failure};
use crate::units::{Size, Wait};

/// A longer specification is refused. Far below what a registration on disk can hold, however it is escaped there.
const MAX_SPEC_BYTES: usize = 128 << 10;
/// Nothing sleeps earlier than this, or waits longer.
const WAIT_BOUNDS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(10 * 365 * 86_400));

/// What an app may be on this host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Host<'a> {
    /// What owners may ask for.
    pub hub: &'a HubConfig,
    /// Where the agent keeps its state.
    pub state_dir: &'a Path,
    /// Whether there is object storage for an app to go cold to.
    pub has_store: bool,
}

/// Makes the configuration of the app that is called `label` here.
///
/// # Errors
/// A [`Failure`] with all that is wrong.
pub(super) fn convert(spec: &v1::AppSpec, label: &str, host: Host<'_>) -> Result<AppConfig, Failure> {
    if spec.encoded_len() > MAX_SPEC_BYTES {
        let problem = Problem::new(
            "the app",
            format!("its specification has more than {MAX_SPEC_BYTES} bytes"),
            "put large values into files of the app's root",
        );
        return Err(refused(&[problem]));
    }
    let mut problems = Vec::new();
    let app = config(spec, label, host.has_store, &mut problems);
    problems.extend(rights(&app, host.hub));
    if problems.is_empty() {
        problems = check::app(&app, host.state_dir);
    }
    if problems.is_empty() {
        Ok(app)
    } else {
        Err(refused(&problems))
    }
}

fn refused(problems: &[Problem]) -> Failure {
    let all: Vec<String> = problems
        .iter()
        .map(|problem| format!("{}: {}", problem.place, problem.what))
        .collect();
    let hint = problems
        .first()
        .map(|problem| problem.fix.clone())
        .unwrap_or_default();
    let message = format!("the app cannot be run on this host ({})", all.join("; "));
    Failure::new(ErrorCode::Config, message).hint(hint)
}

fn config(spec: &v1::AppSpec, label: &str, has_store: bool, problems: &mut Vec<Problem>) -> AppConfig {
    let place = |key: &str| format!("app '{label}', key '{key}'");
    let mut ports = Vec::new();
    for port in &spec.ports {
        match port.parse() {
            Ok(port) => ports.push(port),
            Err(error) => problems.push(Problem::new(
                place("ports"),
                format!("'{port}' is no port ({error})"),
                "write it as 80/tcp or 53/udp",
            )),
        }
    }
    let mut wait = |key: &str, given: Option<&v1::Wait>, default: Wait| match as_wait(given, default) {
        Some(wait) => wait,
        None => {
            problems.push(Problem::new(
                place(key),
                "it is no time that an app can wait for",
                "give a time from a millisecond to ten years, or \"never\"",
            ));
            default
        }
    };
    let idle = wait("idle", spec.idle.as_ref(), AppConfig::DEFAULT_IDLE);
    let cold_after = wait(
        "cold_after",
        spec.cold_after.as_ref(),
        AppConfig::DEFAULT_COLD_AFTER,
    );
    let hold_timeout = wait(
        "hold_timeout",
        spec.hold_timeout.as_ref(),
        AppConfig::DEFAULT_HOLD_TIMEOUT,
    );
    let (wake, probes) = waking(spec, &place, problems);
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let sandbox = spec.sandbox.clone().unwrap_or_default();
    AppConfig {
        name: label.to_owned(),
        root: Root::from(spec.root.clone()),
        command: spec.command.clone(),
        ports,
        address: None,
        env: spec.env.clone().into_iter().collect(),
        user: text(&spec.user),
        workdir: text(&spec.workdir).unwrap_or_else(|| "/".to_owned()).into(),
        hostname: Some(text(&spec.hostname).unwrap_or_else(|| spec.name.clone())),
        seed: text(&spec.seed).map(Into::into),
        memory: spec.memory_bytes.map(Size),
        cpus: spec.cpus,
        pids: spec.pids,
        idle,
        cold_after: if has_store { cold_after } else { Wait::Never },
        restart: match spec.restart() {
            v1::Restart::Always => Restart::Always,
            v1::Restart::Never => Restart::Never,
            v1::Restart::OnFailure | v1::Restart::Unspecified => Restart::OnFailure,
        },
        after_crash: match spec.after_crash() {
            v1::AfterCrash::Fresh => AfterCrash::Fresh,
            v1::AfterCrash::Checkpoint | v1::AfterCrash::Unspecified => AfterCrash::Checkpoint,
        },
        hold_timeout,
        prefetch: match spec.prefetch() {
            v1::PrefetchMode::None => Prefetch::None,
            v1::PrefetchMode::Full => Prefetch::Full,
            v1::PrefetchMode::LastWindow => Prefetch::LastWindow,
            v1::PrefetchMode::Global => Prefetch::Global,
            v1::PrefetchMode::PerPort | v1::PrefetchMode::Unspecified => Prefetch::PerPort,
        },
        connections: match spec.connections() {
            v1::Connections::Close => ConnectionPolicy::Close,
            v1::Connections::StayAwake => ConnectionPolicy::StayAwake,
            v1::Connections::Keep | v1::Connections::Unspecified => ConnectionPolicy::Keep,
        },
        timers: match spec.timers() {
            v1::Timers::All => TimerPolicy::All,
            v1::Timers::None => TimerPolicy::None,
            v1::Timers::Declared | v1::Timers::Unspecified => TimerPolicy::Declared,
        },
        wake,
        probes,
        sandbox: SandboxSection {
            capabilities: sandbox.capabilities,
            no_new_privs: sandbox.no_new_privs.unwrap_or(true),
            seccomp: sandbox.seccomp.unwrap_or(true),
        },
    }
}

/// Who wakes it and when, and who is answered without.
fn waking(
    spec: &v1::AppSpec,
    place: &dyn Fn(&str) -> String,
    problems: &mut Vec<Problem>,
) -> (WakeSection, Vec<ProbeSection>) {
    fn read<T>(
        key: &str,
        texts: &[String],
        place: &dyn Fn(&str) -> String,
        problems: &mut Vec<Problem>,
    ) -> Vec<T>
    where
        T: FromStr<Err: Display>,
    {
        let mut values = Vec::new();
        for text in texts {
            match text.parse::<T>() {
                Ok(value) => values.push(value),
                Err(error) => problems.push(Problem::new(
                    place(key),
                    error.to_string(),
                    "change it as it says there",
                )),
            }
        }
        values
    }
    let rules = spec.wake.clone().unwrap_or_default();
    let rate: Vec<String> = Some(rules.rate)
        .filter(|rate| !rate.is_empty())
        .into_iter()
        .collect();
    let wake = WakeSection {
        allow: read("wake.allow", &rules.allow, place, problems),
        deny: read("wake.deny", &rules.deny, place, problems),
        rate: read("wake.rate", &rate, place, problems).pop(),
        at: read("wake.at", &rules.at, place, problems),
    };
    let mut probes = Vec::new();
    for probe in &spec.probes {
        let from = read("probe.from", std::slice::from_ref(&probe.from), place, problems).pop();
        // A status that is none becomes one that is none either: 0 would mean that there is none to give.
        let http = (probe.http != 0).then(|| u16::try_from(probe.http).unwrap_or(u16::MAX));
        probes.extend(from.map(|from| ProbeSection {
            from,
            http,
            body: probe.body.clone(),
        }));
    }
    (wake, probes)
}

fn as_wait(given: Option<&v1::Wait>, default: Wait) -> Option<Wait> {
    match given.and_then(|wait| wait.kind.as_ref()) {
        None | Some(v1::wait::Kind::Never(false)) => Some(default),
        Some(v1::wait::Kind::Never(true)) => Some(Wait::Never),
        Some(v1::wait::Kind::After(duration)) => {
            let duration = Duration::try_from(*duration).ok()?;
            // Shown, and kept, in whole milliseconds.
            let duration = Duration::from_millis(u64::try_from(duration.as_millis()).ok()?);
            (WAIT_BOUNDS.0..=WAIT_BOUNDS.1)
                .contains(&duration)
                .then_some(Wait::After(duration))
        }
    }
}

/// What an owner asks for and this host does not give.
fn rights(app: &AppConfig, hub: &HubConfig) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut problem = |key: &str, what: String, fix: &str| {
        problems.push(Problem::new(
            format!("app '{}', key '{key}'", app.name),
            what,
            fix,
        ));
    };
    let roots =
        "use a directory that this host's administrator gives to owners (roots in [hub] of agent.toml)";
    if !hub.allows_root(&app.root) {
        let what = match &app.root {
            Root::Host => "owners' apps may not use the host's own files".to_owned(),
            Root::Dir(dir) => format!("{} is no directory that owners may use", dir.display()),
        };
        problem("root", what, roots);
    }
    if let Some(seed) = app.seed.as_ref().filter(|seed| !hub.allows_dir(seed)) {
        problem(
            "seed",
            format!("{} is no directory that owners may use", seed.display()),
            roots,
        );
    }
    for capability in app
        .sandbox
        .capabilities
        .iter()
        .filter(|name| !hub.allows_capability(name))
    {
        problem(
            "sandbox.capabilities",
            format!("owners may not have '{capability}'"),
            "leave it out, or have it added to capabilities in [hub] of agent.toml",
        );
    }
    let weaker = !app.sandbox.no_new_privs || !app.sandbox.seccomp;
    if weaker && !hub.weaker_sandbox {
        problem(
            "sandbox",
            "owners may not switch off no_new_privs or seccomp".to_owned(),
            "leave both on, or have weaker_sandbox allowed in [hub] of agent.toml",
        );
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> v1::AppSpec {
        v1::AppSpec {
            name: "web".to_owned(),
            root: "host".to_owned(),
            command: vec!["/bin/sh".to_owned()],
            ports: vec!["80/tcp".to_owned()],
            ..v1::AppSpec::default()
        }
    }

    fn converted(spec: &v1::AppSpec, hub: &str) -> Result<AppConfig, Failure> {
        let hub: HubConfig = toml::from_str(&format!("address = 'unix:/h'\n{hub}")).unwrap();
        let host = Host {
            hub: &hub,
            state_dir: Path::new("/var/lib/pico"),
            has_store: true,
        };
        convert(spec, "web-ann", host)
    }

    const OPEN: &str = "roots = ['host']";

    #[test]
    fn what_an_owner_leaves_out_is_as_in_agent_toml() {
        let app = converted(&spec(), OPEN).unwrap();
        let toml: AppConfig = toml::from_str(
            "name = 'web-ann'\nroot = 'host'\ncommand = ['/bin/sh']\nports = ['80/tcp']\nhostname = 'web'",
        )
        .unwrap();
        assert_eq!(app, toml);
    }

    #[test]
    fn who_wakes_it_and_when_is_said_as_in_agent_toml() {
        let mut said = spec();
        said.wake = Some(v1::WakeRules {
            allow: vec!["192.0.2.0/24".to_owned()],
            deny: vec!["192.0.2.7".to_owned()],
            rate: "6/1m".to_owned(),
            at: vec!["30 3 * * *".to_owned()],
        });
        said.probes = vec![v1::Probe {
            from: "192.0.2.9".to_owned(),
            http: 204,
            body: String::new(),
        }];
        said.timers = v1::Timers::All.into();
        said.connections = v1::Connections::Close.into();
        said.prefetch = v1::PrefetchMode::Global.into();
        let toml: AppConfig = toml::from_str(
            "name = 'web-ann'\nroot = 'host'\ncommand = ['/bin/sh']\nports = ['80/tcp']\nhostname = 'web'\n\
             timers = 'all'\nconnections = 'close'\nprefetch = 'global'\n\
             wake = { allow = ['192.0.2.0/24'], deny = ['192.0.2.7'], rate = '6/1m', at = ['30 3 * * *'] }\n\
             [[probe]]\nfrom = '192.0.2.9'\nhttp = 204",
        )
        .unwrap();
        assert_eq!(converted(&said, OPEN).unwrap(), toml);
        said.wake.get_or_insert_default().rate = "6".to_owned();
        said.probes[0].http = 65_736;
        let failure = converted(&said, OPEN).unwrap_err();
        assert!(
            failure.message.contains("'wake.rate': '6' is no rate"),
            "{failure:?}"
        );
        said.wake.get_or_insert_default().rate = String::new();
        let failure = converted(&said, OPEN).unwrap_err();
        assert!(failure.message.contains("'probe.http'"), "{failure:?}");
    }

    #[test]
    fn a_host_gives_nothing_that_its_administrator_has_not_allowed() {
        assert!(
            converted(&spec(), "")
                .unwrap_err()
                .message
                .contains("host's own files")
        );
        for (change, said) in [
            (
                v1::AppSpec {
                    root: "/etc".to_owned(),
                    ..spec()
                },
                "/etc is no directory",
            ),
            (
                v1::AppSpec {
                    seed: "/root".to_owned(),
                    ..spec()
                },
                "/root is no directory",
            ),
            (
                v1::AppSpec {
                    sandbox: Some(v1::Sandbox {
                        capabilities: vec!["CAP_SYS_ADMIN".to_owned()],
                        ..Default::default()
                    }),
                    ..spec()
                },
                "CAP_SYS_ADMIN",
            ),
            (
                v1::AppSpec {
                    sandbox: Some(v1::Sandbox {
                        seccomp: Some(false),
                        ..Default::default()
                    }),
                    ..spec()
                },
                "seccomp",
            ),
        ] {
            let failure = converted(&change, OPEN).unwrap_err();
            assert!(
                failure.message.contains(said) && !failure.hint.is_empty(),
                "{failure:?}"
            );
        }
    }

    #[test]
    fn what_agent_toml_would_refuse_is_refused_with_all_problems_at_once() {
        let bad = v1::AppSpec {
            ports: vec!["80".to_owned(), "80/tcp".to_owned(), "80/tcp".to_owned()],
            idle: Some(v1::Wait {
                kind: Some(v1::wait::Kind::After(prost_types::Duration {
                    seconds: -1,
                    nanos: 0,
                })),
            }),
            ..spec()
        };
        let failure = converted(&bad, OPEN).unwrap_err();
        assert!(
            failure.message.contains("'80' is no port") && failure.message.contains("'idle'"),
            "{failure:?}"
        );
        let twice = v1::AppSpec {
            ports: vec!["80/tcp".to_owned(); 2],
            ..spec()
        };
        assert!(
            converted(&twice, OPEN)
                .unwrap_err()
                .message
                .contains("published twice")
        );
        for command in [
            vec![],
            vec!["/bin/no-such-program".to_owned()],
            vec!["/bin/sh".to_owned(), "a\0b".to_owned()],
        ] {
            assert!(converted(&v1::AppSpec { command, ..spec() }, OPEN).is_err());
        }
        let long = v1::AppSpec {
            command: vec!["/bin/sh".to_owned(), "x".repeat(200_000)],
            ..spec()
        };
        assert!(converted(&long, OPEN).unwrap_err().message.contains("more than"));
    }

    #[test]
    fn waits_are_never_zero_negative_or_endless_by_mistake() {
        let wait = |kind| as_wait(Some(&v1::Wait { kind: Some(kind) }), Wait::secs(60));
        let after = |seconds, nanos| wait(v1::wait::Kind::After(prost_types::Duration { seconds, nanos }));
        assert_eq!(after(5, 0), Some(Wait::secs(5)));
        assert_eq!(wait(v1::wait::Kind::Never(true)), Some(Wait::Never));
        assert_eq!(as_wait(None, Wait::secs(60)), Some(Wait::secs(60)));
        for (seconds, nanos) in [(0, 0), (0, 1), (-1, 0), (i64::MAX, 0), (0, -5)] {
            assert_eq!(after(seconds, nanos), None, "{seconds} s {nanos} ns");
        }
    }
}
