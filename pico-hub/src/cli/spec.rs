//! What an owner says of an app: as a file (`app.toml`, with the keys of `[[app]]` in agent.toml) or as options. Pure:
//! text in, message of the API out. What may be said is for the hub to check.

use std::collections::BTreeMap;
use std::fmt::Display;

use pico_proto::units::{Size, Wait};
use pico_proto::v1;
use serde::Deserialize;

use super::failure::{Failure, Result};

/// Bytes of an app.toml that are read.
pub(super) const FILE_BYTES: u64 = 256 << 10;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    root: String,
    command: Vec<String>,
    #[serde(default)]
    ports: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    user: String,
    #[serde(default)]
    workdir: String,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    seed: String,
    memory: Option<Size>,
    cpus: Option<f64>,
    pids: Option<u64>,
    idle: Option<Wait>,
    cold_after: Option<Wait>,
    restart: Option<Restart>,
    after_crash: Option<AfterCrash>,
    wake_on_dns: Option<WakeOnDns>,
    hold_timeout: Option<Wait>,
    prefetch: Option<Prefetch>,
    connections: Option<Connections>,
    timers: Option<Timers>,
    wake: Option<Wake>,
    #[serde(default, rename = "probe")]
    probes: Vec<Probe>,
    sandbox: Option<Sandbox>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wake {
    allow: Vec<String>,
    deny: Vec<String>,
    rate: String,
    at: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Probe {
    from: String,
    #[serde(default)]
    http: u32,
    #[serde(default)]
    body: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sandbox {
    #[serde(default)]
    capabilities: Vec<String>,
    no_new_privs: Option<bool>,
    seccomp: Option<bool>,
}

/// When an app is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// When it failed
    OnFailure,
    /// Whenever it ended
    Always,
    /// Never
    Never,
}

/// What an app does after its process was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AfterCrash {
    /// Go on from the last checkpoint
    Checkpoint,
    /// Start anew from its files
    Fresh,
}

/// What a DNS query for a sleeping app does besides being answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum WakeOnDns {
    /// Nothing
    Off,
    /// Its agent fetches what a wake will need
    Prefetch,
    /// Its agent wakes it
    Wake,
}

/// Which pages a wake brings ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Prefetch {
    /// None
    None,
    /// The whole checkpoint
    Full,
    /// What was used from its last wake to its last sleep
    LastWindow,
    /// What requests need, whatever their port
    Global,
    /// What requests of the port need that wakes it
    PerPort,
}

/// What becomes of established connections when it sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Connections {
    /// They sleep with it, and data wake it
    Keep,
    /// They are reset
    Close,
    /// It does not sleep while there are any
    StayAwake,
}

/// Which timers wake it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Timers {
    /// Those of --wake-at, and its own with a period of five minutes or more
    Declared,
    /// All of its own besides
    All,
    /// None
    None,
}

/// What may be said of an app on the command line.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Its files: `host`, or a directory on the agent's host
    #[arg(long, value_name = "ROOT")]
    pub root: Option<String>,
    /// A port that it publishes, as 80/tcp; may be repeated
    #[arg(long = "port", value_name = "PORT")]
    pub ports: Vec<String>,
    /// A variable of its environment; may be repeated
    #[arg(long = "env", value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// Who it runs as, inside its root [default: root]
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Its working directory [default: /]
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Its host name [default: the app's name]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Directory on the agent's host, copied over its files when it is first made [default: none]
    #[arg(long, value_name = "DIR")]
    pub seed: Option<String>,
    /// Limit of memory, as 256M [default: none]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// Limit of processors [default: none]
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<f64>,
    /// Limit of processes and threads [default: none]
    #[arg(long, value_name = "NUMBER")]
    pub pids: Option<u64>,
    /// Sleeps after this long without activity, as 30s, or `never` [default: 1m]
    #[arg(long, value_name = "TIME")]
    pub idle: Option<Wait>,
    /// Leaves the host's disk after this long asleep, or `never` [default: 5m]
    #[arg(long, value_name = "TIME")]
    pub cold_after: Option<Wait>,
    /// When it is started again
    #[arg(long, value_name = "WHEN")]
    pub restart: Option<Restart>,
    /// What it does after its process was lost
    #[arg(long, value_name = "HOW")]
    pub after_crash: Option<AfterCrash>,
    /// What a DNS query does while it sleeps
    #[arg(long, value_name = "WHAT")]
    pub wake_on_dns: Option<WakeOnDns>,
    /// How long packets wait for wakes that fail, or `never` gives up [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub hold_timeout: Option<Wait>,
    /// Which pages a wake brings ahead
    #[arg(long, value_name = "WHICH")]
    pub prefetch: Option<Prefetch>,
    /// What becomes of its connections when it sleeps
    #[arg(long, value_name = "WHAT")]
    pub connections: Option<Connections>,
    /// Which timers wake it
    #[arg(long, value_name = "WHICH")]
    pub timers: Option<Timers>,
    /// A time at which it wakes by itself, as "30 3 * * 1-5" (cron, in UTC); may be repeated
    #[arg(long, value_name = "CRON")]
    pub wake_at: Vec<String>,
    /// Who alone wakes it, as 192.0.2.0/24; may be repeated [default: everybody]
    #[arg(long, value_name = "SUBNET")]
    pub wake_allow: Vec<String>,
    /// Who does not wake it; may be repeated
    #[arg(long, value_name = "SUBNET")]
    pub wake_deny: Vec<String>,
    /// How often each sender wakes it, as 6/1m [default: always]
    #[arg(long, value_name = "RATE")]
    pub wake_rate: Option<String>,
    /// Program and arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Reads an app.toml; `name` is of the file, for messages.
pub(super) fn from_toml(name: impl Display, text: &str) -> Result<v1::AppSpec> {
    let file: File = toml::from_str(text).map_err(|error| {
        let error = error.to_string();
        Failure::usage(format!("{name} is not an app ({})", error.trim_end()))
            .hint("pico app create --help shows what may be said")
    })?;
    let (v1_restart, crash, dns) = (file.restart, file.after_crash, file.wake_on_dns);
    Ok(v1::AppSpec {
        name: file.name,
        root: file.root,
        command: file.command,
        ports: file.ports,
        env: file.env,
        user: file.user,
        workdir: file.workdir,
        hostname: file.hostname,
        seed: file.seed,
        memory_bytes: file.memory.map(|size| size.0),
        cpus: file.cpus,
        pids: file.pids,
        idle: file.idle.map(wait),
        cold_after: file.cold_after.map(wait),
        restart: v1_restart.map_or(0, restart_number),
        after_crash: crash.map_or(0, after_crash_number),
        wake_on_dns: dns.map_or(0, wake_on_dns_number),
        hold_timeout: file.hold_timeout.map(wait),
        prefetch: file.prefetch.map_or(0, prefetch_number),
        connections: file.connections.map_or(0, connections_number),
        timers: file.timers.map_or(0, timers_number),
        wake: file.wake.map(|wake| v1::WakeRules {
            allow: wake.allow,
            deny: wake.deny,
            rate: wake.rate,
            at: wake.at,
        }),
        probes: file.probes.into_iter().map(probe).collect(),
        sandbox: file.sandbox.map(|sandbox| v1::Sandbox {
            capabilities: sandbox.capabilities,
            no_new_privs: sandbox.no_new_privs,
            seccomp: sandbox.seccomp,
        }),
    })
}

/// The spec that options give, and the fields that they name.
pub(super) fn from_options(name: &str, options: Options) -> Result<(v1::AppSpec, Vec<String>)> {
    let mut env = BTreeMap::new();
    for pair in &options.env {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("--env {pair} has no value")).hint("--env KEY=VALUE"))?;
        env.insert(key.to_owned(), value.to_owned());
    }
    let given = [
        ("root", options.root.is_some()),
        ("command", !options.command.is_empty()),
        ("ports", !options.ports.is_empty()),
        ("env", !env.is_empty()),
        ("user", options.user.is_some()),
        ("workdir", options.workdir.is_some()),
        ("hostname", options.hostname.is_some()),
        ("seed", options.seed.is_some()),
        ("memory_bytes", options.memory.is_some()),
        ("cpus", options.cpus.is_some()),
        ("pids", options.pids.is_some()),
        ("idle", options.idle.is_some()),
        ("cold_after", options.cold_after.is_some()),
        ("restart", options.restart.is_some()),
        ("after_crash", options.after_crash.is_some()),
        ("wake_on_dns", options.wake_on_dns.is_some()),
        ("hold_timeout", options.hold_timeout.is_some()),
        ("prefetch", options.prefetch.is_some()),
        ("connections", options.connections.is_some()),
        ("timers", options.timers.is_some()),
        ("wake.at", !options.wake_at.is_empty()),
        ("wake.allow", !options.wake_allow.is_empty()),
        ("wake.deny", !options.wake_deny.is_empty()),
        ("wake.rate", options.wake_rate.is_some()),
    ];
    let mask = given
        .iter()
        .filter(|(_, given)| *given)
        .map(|(field, _)| (*field).to_owned());
    let rules = given
        .iter()
        .any(|(field, given)| *given && field.starts_with("wake."));
    let wake = rules.then(|| v1::WakeRules {
        allow: options.wake_allow,
        deny: options.wake_deny,
        rate: options.wake_rate.unwrap_or_default(),
        at: options.wake_at,
    });
    let spec = v1::AppSpec {
        name: name.to_owned(),
        root: options.root.unwrap_or_default(),
        command: options.command,
        ports: options.ports,
        env,
        user: options.user.unwrap_or_default(),
        workdir: options.workdir.unwrap_or_default(),
        hostname: options.hostname.unwrap_or_default(),
        seed: options.seed.unwrap_or_default(),
        memory_bytes: options.memory.map(|size| size.0),
        cpus: options.cpus,
        pids: options.pids,
        idle: options.idle.map(wait),
        cold_after: options.cold_after.map(wait),
        restart: options.restart.map_or(0, restart_number),
        after_crash: options.after_crash.map_or(0, after_crash_number),
        wake_on_dns: options.wake_on_dns.map_or(0, wake_on_dns_number),
        hold_timeout: options.hold_timeout.map(wait),
        prefetch: options.prefetch.map_or(0, prefetch_number),
        connections: options.connections.map_or(0, connections_number),
        timers: options.timers.map_or(0, timers_number),
        wake,
        ..v1::AppSpec::default()
    };
    Ok((spec, mask.collect()))
}

fn wait(wait: Wait) -> v1::Wait {
    let kind = match wait {
        Wait::Never => v1::wait::Kind::Never(true),
        Wait::After(after) => v1::wait::Kind::After(prost_types::Duration {
            seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(after.subsec_nanos()).unwrap_or(0),
        }),
    };
    v1::Wait { kind: Some(kind) }
}

fn restart_number(restart: Restart) -> i32 {
    match restart {
        Restart::OnFailure => v1::Restart::OnFailure,
        Restart::Always => v1::Restart::Always,
        Restart::Never => v1::Restart::Never,
    }
    .into()
}

fn after_crash_number(after: AfterCrash) -> i32 {
    match after {
        AfterCrash::Checkpoint => v1::AfterCrash::Checkpoint,
        AfterCrash::Fresh => v1::AfterCrash::Fresh,
    }
    .into()
}

fn wake_on_dns_number(wake: WakeOnDns) -> i32 {
    match wake {
        WakeOnDns::Off => v1::WakeOnDns::Off,
        WakeOnDns::Prefetch => v1::WakeOnDns::Prefetch,
        WakeOnDns::Wake => v1::WakeOnDns::Wake,
    }
    .into()
}

fn prefetch_number(prefetch: Prefetch) -> i32 {
    match prefetch {
        Prefetch::None => v1::PrefetchMode::None,
        Prefetch::Full => v1::PrefetchMode::Full,
        Prefetch::LastWindow => v1::PrefetchMode::LastWindow,
        Prefetch::Global => v1::PrefetchMode::Global,
        Prefetch::PerPort => v1::PrefetchMode::PerPort,
    }
    .into()
}

fn connections_number(connections: Connections) -> i32 {
    match connections {
        Connections::Keep => v1::Connections::Keep,
        Connections::Close => v1::Connections::Close,
        Connections::StayAwake => v1::Connections::StayAwake,
    }
    .into()
}

fn timers_number(timers: Timers) -> i32 {
    match timers {
        Timers::Declared => v1::Timers::Declared,
        Timers::All => v1::Timers::All,
        Timers::None => v1::Timers::None,
    }
    .into()
}

fn probe(probe: Probe) -> v1::Probe {
    v1::Probe {
        from: probe.from,
        http: probe.http,
        body: probe.body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
        name = "web"
        root = "/srv/web"
        command = ["nginx", "-g", "daemon off;"]
        ports = ["80/tcp"]
        memory = "256M"
        cpus = 0.5
        idle = "30s"
        cold_after = "never"
        restart = "on-failure"
        wake_on_dns = "wake"
        hold_timeout = "10s"
        connections = "stay-awake"
        timers = "all"
        prefetch = "last-window"
        wake = { at = ["30 3 * * *"], deny = ["192.0.2.0/24"], rate = "6/1m" }
        [env]
        A = "b"
        [sandbox]
        seccomp = false
    "#;

    #[test]
    fn a_file_and_the_same_options_give_the_same_spec() {
        let options = Options {
            root: Some("/srv/web".into()),
            ports: vec!["80/tcp".into()],
            env: vec!["A=b".into()],
            memory: Some(Size(256 << 20)),
            cpus: Some(0.5),
            idle: Some(Wait::secs(30)),
            cold_after: Some(Wait::Never),
            restart: Some(Restart::OnFailure),
            wake_on_dns: Some(WakeOnDns::Wake),
            hold_timeout: Some(Wait::secs(10)),
            connections: Some(Connections::StayAwake),
            timers: Some(Timers::All),
            prefetch: Some(Prefetch::LastWindow),
            wake_at: vec!["30 3 * * *".into()],
            wake_deny: vec!["192.0.2.0/24".into()],
            wake_rate: Some("6/1m".into()),
            command: ["nginx", "-g", "daemon off;"].map(String::from).to_vec(),
            ..Options::default()
        };
        let (mut spec, mask) = from_options("web", options).unwrap();
        spec.sandbox = Some(v1::Sandbox {
            seccomp: Some(false),
            ..v1::Sandbox::default()
        });
        assert_eq!(from_toml("app.toml", WHOLE).unwrap(), spec);
        assert_eq!(
            mask,
            [
                "root",
                "command",
                "ports",
                "env",
                "memory_bytes",
                "cpus",
                "idle",
                "cold_after",
                "restart",
                "wake_on_dns",
                "hold_timeout",
                "prefetch",
                "connections",
                "timers",
                "wake.at",
                "wake.deny",
                "wake.rate"
            ]
        );
    }

    #[test]
    fn a_wrong_file_says_where_and_names_itself() {
        for text in [
            "name = ",
            "nam = \"web\"",
            "name = \"web\"",
            &WHOLE.replace("256M", "many"),
        ] {
            let failure = from_toml("app.toml", text).unwrap_err();
            assert!(
                failure.message.starts_with("app.toml is not an app ("),
                "{failure:?}"
            );
            assert_eq!(failure.exit.0, 2);
        }
        let options = Options {
            env: vec!["A".into()],
            ..Options::default()
        };
        assert!(
            from_options("web", options)
                .unwrap_err()
                .message
                .contains("--env A")
        );
    }
}
