//! agent.toml: what may be written there, its defaults, and what is wrong with a file. Knows file names and
//! texts; starts nothing and changes nothing. Checks that need the host's files are in [`check`], where a
//! command is looked up in a root file system in [`rootfs`].

pub mod check;
mod problem;
pub mod rootfs;
pub mod wake;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::addresses::{Ipv4Net, Ipv6Net};
use crate::hub::HubConfig;
use crate::port::Port;
use crate::store::StoreConfig;
use crate::units::{Size, Wait};

pub use problem::{ConfigError, Problem};
use problem::{section_problem, syntax_problem};
pub use wake::{ConnectionPolicy, ProbeSection, TimerPolicy, WakeSection};

/// Where the agent looks for its configuration when it is told nothing.
pub const DEFAULT_PATH: &str = "/etc/pico/agent.toml";
/// Where the agent keeps its state when it is told nothing.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/pico";

/// What sleeping apps may keep on the disk when the agent is told nothing.
pub const DEFAULT_CACHE: Size = Size(10 << 30);

/// How many warm apps have what a wake needs standing by when the agent is told nothing.
pub const DEFAULT_STANDBY: usize = 64;

/// The whole of agent.toml, with defaults filled in and relative paths resolved against its directory.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from, which no app may see.
    pub file: Option<PathBuf>,
    /// Where apps, checkpoints, logs and the control socket live. Absolute.
    pub state_dir: PathBuf,
    /// Tells several agents on one host apart (cgroup root `pico-INSTANCE`); empty for the only one.
    pub instance: String,
    /// The `pico-shim` binary; `None`: next to the running `pico-agent`.
    pub shim: Option<PathBuf>,
    /// A CRIU binary, or a private root directory that holds one; `None`: looked for.
    pub criu: Option<PathBuf>,
    /// Bytes that sleeping apps may keep on this host's disk. Beyond them, what was not used for longest and lies in the
    /// store is given up; 0: what lies in the store is not kept.
    pub cache: Size,
    /// How many warm apps have a shim and a CRIU standing by, which makes their wakes short and takes a few MiB each.
    pub standby: usize,
    /// Where Prometheus reads what the agent counts; `None`: nowhere. Whoever reaches it may read it.
    pub metrics: Option<SocketAddr>,
    /// Service subnets and the gate's names.
    pub network: Network,
    /// Object storage; `None`: apps sleep on this host's disk only and never go cold.
    pub store: Option<StoreConfig>,
    /// The hub; `None`: only apps of this file run here.
    pub hub: Option<HubConfig>,
    /// The apps, in the order of the file.
    pub apps: Vec<AppConfig>,
}

/// `[network]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Name of the gate's TUN device.
    pub tun: String,
    /// IPv4 service subnet.
    pub v4: Ipv4Net,
    /// IPv6 service subnet.
    pub v6: Ipv6Net,
    /// Number of the routing table that leads what the gate writes to the apps.
    pub table: u32,
    /// Ports of this host that apps may reach; no others.
    pub host_ports: Vec<Port>,
}

impl Default for Network {
    fn default() -> Self {
        Network {
            tun: "pico0".to_owned(),
            v4: Ipv4Net {
                address: Ipv4Addr::new(10, 77, 0, 0),
                prefix: 16,
            },
            v6: Ipv6Net {
                address: [0xfd77, 0x7069, 0x636f, 0, 0, 0, 0, 0].into(),
                prefix: 64,
            },
            table: 7769,
            host_ports: Vec::new(),
        }
    }
}

/// Which files an app sees below its own writable layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Root {
    /// The host's own root, read-only, with what is private to the host hidden.
    Host,
    /// A directory.
    Dir(PathBuf),
}

impl From<String> for Root {
    fn from(text: String) -> Self {
        if text == "host" {
            Root::Host
        } else {
            Root::Dir(text.into())
        }
    }
}

impl From<Root> for String {
    fn from(root: Root) -> Self {
        match root {
            Root::Host => "host".to_owned(),
            Root::Dir(path) => path.display().to_string(),
        }
    }
}

impl Root {
    /// The directory that becomes the lowest layer.
    pub fn path(&self) -> &Path {
        match self {
            Root::Host => Path::new("/"),
            Root::Dir(path) => path,
        }
    }
}

/// When an app whose process ended by itself is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Whatever its exit status.
    Always,
    /// After a status other than 0, or a signal.
    #[default]
    OnFailure,
    /// Not.
    Never,
}

/// What an app does whose process was lost while it was hot (host crash, shim killed).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AfterCrash {
    /// Goes on from its last checkpoint: what it did since is lost.
    #[default]
    Checkpoint,
    /// Starts anew on its files as they are.
    Fresh,
}

/// Which pages a wake brings ahead, before anybody asks for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prefetch {
    /// None: each comes when it is asked for.
    None,
    /// All of the checkpoint.
    Full,
    /// Those that were used from the last wake to the last sleep.
    LastWindow,
    /// Those that requests need, whatever their port.
    Global,
    /// Those that requests of the port need whose packet wakes it.
    #[default]
    PerPort,
}

/// `[app.sandbox]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxSection {
    /// Capabilities (`CAP_NET_RAW`) in addition to those that every app has.
    pub capabilities: Vec<String>,
    /// Whether programs that are set-user-ID gain nothing by it.
    pub no_new_privs: bool,
    /// Whether system calls that no app needs are refused.
    pub seccomp: bool,
}

impl Default for SandboxSection {
    fn default() -> Self {
        SandboxSection {
            capabilities: Vec::new(),
            no_new_privs: true,
            seccomp: true,
        }
    }
}

/// `[[app]]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppConfig {
    /// A DNS label: lower-case letters, digits and inner hyphens, at most 63.
    pub name: String,
    /// Its files.
    pub root: Root,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Published ports.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// IPv4 service address; `None`: allocated once and kept.
    pub address: Option<Ipv4Addr>,
    /// Environment, in addition to PATH, HOME and the like.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// User name or number inside the root, optionally `USER:GROUP`; `None`: root.
    pub user: Option<String>,
    /// Working directory inside the root.
    #[serde(default = "default_workdir")]
    pub workdir: PathBuf,
    /// Host name inside; `None`: the app's name.
    pub hostname: Option<String>,
    /// Directory copied into the writable layer when the app is first made.
    pub seed: Option<PathBuf>,
    /// Memory limit.
    pub memory: Option<Size>,
    /// CPU limit in cores.
    pub cpus: Option<f64>,
    /// Limit on processes and threads.
    pub pids: Option<u64>,
    /// Asleep after this long without activity.
    #[serde(default = "default_idle")]
    pub idle: Wait,
    /// From warm to cold after this long. [`Config::load`] makes it `never` where there is no store.
    #[serde(default = "default_cold_after")]
    pub cold_after: Wait,
    /// When it is started again.
    #[serde(default)]
    pub restart: Restart,
    /// What it does after its process was lost.
    #[serde(default)]
    pub after_crash: AfterCrash,
    /// How long packets wait for wakes that fail; after that their senders are told that nobody is there.
    #[serde(default = "default_hold_timeout")]
    pub hold_timeout: Wait,
    /// Which pages its wakes bring ahead.
    #[serde(default)]
    pub prefetch: Prefetch,
    /// What becomes of established connections when it sleeps.
    #[serde(default)]
    pub connections: ConnectionPolicy,
    /// Which timers wake it.
    #[serde(default)]
    pub timers: TimerPolicy,
    /// Who wakes it.
    #[serde(default)]
    pub wake: WakeSection,
    /// Who is answered while it sleeps.
    #[serde(default, rename = "probe")]
    pub probes: Vec<ProbeSection>,
    /// Isolation.
    #[serde(default)]
    pub sandbox: SandboxSection,
}

fn default_workdir() -> PathBuf {
    "/".into()
}

fn default_idle() -> Wait {
    AppConfig::DEFAULT_IDLE
}

fn default_hold_timeout() -> Wait {
    AppConfig::DEFAULT_HOLD_TIMEOUT
}

fn default_cold_after() -> Wait {
    AppConfig::DEFAULT_COLD_AFTER
}

impl AppConfig {
    /// `idle` where it is not given.
    pub const DEFAULT_IDLE: Wait = Wait::secs(60);
    /// `cold_after` where it is not given.
    pub const DEFAULT_COLD_AFTER: Wait = Wait::secs(300);
    /// `hold_timeout` where it is not given.
    pub const DEFAULT_HOLD_TIMEOUT: Wait = Wait::secs(30);

    /// The host name inside the sandbox.
    pub fn hostname(&self) -> &str {
        self.hostname.as_deref().unwrap_or(&self.name)
    }
}

impl Config {
    /// Reads, completes and checks a configuration, with what can be seen of it on this host: its
    /// directories and commands. Nothing is changed.
    ///
    /// # Errors
    /// [`ConfigError`], with every problem found and not only the first.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let base = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let invalid = |problems| ConfigError::Invalid {
            path: path.to_owned(),
            problems,
        };
        let mut config = Config::parse(&text, base.parent().unwrap_or(Path::new("/"))).map_err(invalid)?;
        config.file = Some(base);
        let problems = check::host(&config);
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(invalid(problems))
        }
    }

    /// Reads and completes a configuration and checks everything that can be checked without looking at the
    /// host. `base` is the directory that relative paths are relative to.
    ///
    /// # Errors
    /// All problems found.
    pub fn parse(text: &str, base: &Path) -> Result<Config, Vec<Problem>> {
        let mut root: toml::Table =
            toml::from_str(text).map_err(|error| vec![syntax_problem(text, &error)])?;
        let mut problems = Vec::new();
        let apps = root.remove("app");
        let network = root.remove("network");
        let store = root.remove("store");
        let hub = root.remove("hub");

        let top: Top =
            section(toml::Value::Table(root), "the file", TOP_TABLES, &mut problems).unwrap_or_default();
        let network = network
            .and_then(|table| section(table, "[network]", &[], &mut problems))
            .unwrap_or_default();
        let has_store = store.is_some();
        let store: Option<StoreConfig> =
            store.and_then(|table| section(table, "[store]", &[], &mut problems));
        let hub: Option<HubConfig> = hub.and_then(|table| section(table, "[hub]", &[], &mut problems));
        let mut config = Config {
            file: None,
            state_dir: top.state_dir,
            instance: top.instance,
            shim: top.shim,
            criu: top.criu,
            cache: top.cache,
            standby: top.standby,
            metrics: top.metrics,
            network,
            store,
            hub,
            apps: Vec::new(),
        };
        for (index, table) in app_tables(apps, &mut problems).into_iter().enumerate() {
            config
                .apps
                .extend(app_section(table, index, has_store, &mut problems));
        }
        config.resolve(base);
        problems.extend(check::shape(&config));
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(problems)
        }
    }

    /// Only `state_dir` of a file, for commands that talk to a running agent and need nothing else of it.
    ///
    /// # Errors
    /// [`ConfigError`] when the file cannot be read or is no TOML.
    pub fn state_dir_of(path: &Path) -> Result<PathBuf, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let root: toml::Table = toml::from_str(&text).map_err(|error| ConfigError::Invalid {
            path: path.to_owned(),
            problems: vec![syntax_problem(&text, &error)],
        })?;
        Ok(root
            .get("state_dir")
            .and_then(toml::Value::as_str)
            .unwrap_or(DEFAULT_STATE_DIR)
            .into())
    }

    /// The `pico-shim` to start.
    pub fn shim(&self) -> PathBuf {
        self.shim.clone().unwrap_or_else(|| beside_agent("pico-shim"))
    }

    /// Where CRIU may be, in the order in which it is looked for.
    pub fn criu_candidates(&self) -> Vec<PathBuf> {
        criu_candidates(self.criu.as_deref())
    }

    /// The control socket of the agent that runs with this configuration.
    pub fn socket(&self) -> PathBuf {
        self.state_dir.join("agent.sock")
    }

    fn resolve(&mut self, base: &Path) {
        let resolve = |path: &mut PathBuf| *path = base.join(&*path);
        self.shim.iter_mut().for_each(resolve);
        self.criu.iter_mut().for_each(resolve);
        self.store
            .iter_mut()
            .flat_map(|store| &mut store.credentials_file)
            .for_each(resolve);
        if let Some(hub) = &mut self.hub {
            hub.ca_file.iter_mut().for_each(resolve);
            hub.join_token_file.iter_mut().for_each(resolve);
        }
        for app in &mut self.apps {
            app.seed.iter_mut().for_each(resolve);
            if let Root::Dir(path) = &mut app.root {
                resolve(path);
            }
        }
    }
}

/// A file that is installed in the directory of the running program.
pub fn beside_agent(name: &str) -> PathBuf {
    std::env::current_exe().unwrap_or_default().with_file_name(name)
}

/// Where CRIU may be: the configured path alone, else `$PICO_CRIU` alone, else what `cargo xtask setup` fetched,
/// then the distribution's. Each is a program, or the root directory of a private copy.
pub fn criu_candidates(configured: Option<&Path>) -> Vec<PathBuf> {
    let env = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(path) = configured.map(Path::to_owned).or_else(|| env("PICO_CRIU")) {
        return vec![path];
    }
    let tools = env("PICO_TOOLS")
        .or_else(|| Some(env("XDG_CACHE_HOME")?.join("pico-tools")))
        .or_else(|| Some(env("HOME")?.join(".cache/pico-tools")));
    let mut candidates: Vec<PathBuf> = tools.map(|tools| tools.join("criu")).into_iter().collect();
    candidates.extend(["/usr/local/sbin/criu", "/usr/sbin/criu"].map(PathBuf::from));
    candidates
}

/// What stands at the top of the file, outside of any table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Top {
    state_dir: PathBuf,
    instance: String,
    shim: Option<PathBuf>,
    criu: Option<PathBuf>,
    cache: Size,
    standby: usize,
    metrics: Option<SocketAddr>,
}

impl Default for Top {
    fn default() -> Self {
        Top {
            state_dir: DEFAULT_STATE_DIR.into(),
            instance: String::new(),
            shim: None,
            criu: None,
            cache: DEFAULT_CACHE,
            standby: DEFAULT_STANDBY,
            metrics: None,
        }
    }
}

/// Tables that are taken out before the rest is read; suggestions should still know them.
const TOP_TABLES: &[&str] = &["network", "store", "hub", "app"];

fn app_tables(value: Option<toml::Value>, problems: &mut Vec<Problem>) -> Vec<toml::Value> {
    match value {
        None => Vec::new(),
        Some(toml::Value::Array(tables)) => tables,
        Some(_) => {
            problems.push(Problem::new(
                "[app]",
                "apps are a list",
                "write [[app]] with two brackets",
            ));
            Vec::new()
        }
    }
}

fn app_section(
    table: toml::Value,
    index: usize,
    has_store: bool,
    problems: &mut Vec<Problem>,
) -> Option<AppConfig> {
    let place = match table.get("name").and_then(toml::Value::as_str) {
        Some(name) => format!("app '{name}'"),
        None => format!("[[app]] number {}", index + 1),
    };
    let wants_cold = table.get("cold_after").is_some();
    let mut app: AppConfig = section(table, &place, &[], problems)?;
    if !has_store {
        if wants_cold && app.cold_after != Wait::Never {
            problems.push(Problem::new(
                format!("{place}, key 'cold_after'"),
                "there is no [store] to keep a cold app in",
                "add a [store] section, or set cold_after = \"never\"",
            ));
        }
        app.cold_after = Wait::Never;
    }
    Some(app)
}

/// Reads one table into its type; what is wrong with it is told with the place and a remedy.
fn section<T: DeserializeOwned>(
    table: toml::Value,
    place: &str,
    more_keys: &[&str],
    problems: &mut Vec<Problem>,
) -> Option<T> {
    match table.try_into() {
        Ok(section) => Some(section),
        Err(error) => {
            problems.push(section_problem(&error, place, more_keys));
            None
        }
    }
}

#[cfg(test)]
mod tests;
