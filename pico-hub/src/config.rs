//! hub.toml: what may be written there, its defaults, and all that is wrong with a file. Knows texts and file names;
//! opens and starts nothing.

mod address;
mod keys;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::dns::DnsConfig;

pub use address::Address;
use keys::Keys;

/// Where the hub looks for its configuration when it is told nothing.
pub const DEFAULT_PATH: &str = "/etc/pico/hub.toml";

/// A file with every key, its default and what it means.
pub const EXAMPLE: &str = include_str!("../hub.example.toml");

/// The whole of hub.toml, with defaults filled in and relative paths resolved against its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The registry, the admin token, the lock.
    pub state_dir: PathBuf,
    /// Where the API is served.
    pub listen: Vec<Address>,
    /// Encrypts what comes by TCP; without it, the API stays on this host.
    pub tls: Option<Tls>,
    /// The S3 server inside the hub; `None`: the store is elsewhere.
    pub object_store: Option<ObjectStore>,
    /// The name server; `None`: apps have no names.
    pub dns: Option<DnsConfig>,
    /// Where metrics are served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// How logs are written.
    pub log: LogFormat,
    /// What is held for callers at most.
    pub limits: Limits,
}

/// `[tls]`: PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The server's certificate, then those that lead to its authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of which callers must have a certificate; `None`: callers need none.
    pub client_ca: Option<PathBuf>,
}

/// `[object_store]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectStore {
    /// Keeps all objects.
    pub embedded: PathBuf,
    /// Where it is served, on this host.
    pub listen: SocketAddr,
    /// `None`: `credentials.json` in `embedded`.
    pub credentials_file: Option<PathBuf>,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// `[limits]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at one time; each is a file descriptor.
    pub connections: usize,
}

/// Connections at one time, where the file says nothing.
const CONNECTIONS: usize = 4096;
/// No fewer connections: an agent, an owner, and some that are slow.
const FEWEST_CONNECTIONS: usize = 16;
/// No more connections than Linux has file descriptors for one process, usually.
const MOST_CONNECTIONS: usize = 1_000_000;

/// One thing that is wrong: where, what, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Such as `tls.cert`.
    pub place: String,
    /// What is wrong there.
    pub what: String,
    /// What to do.
    pub fix: String,
}

impl Problem {
    /// Puts one together.
    pub fn new(place: impl Into<String>, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Problem {
            place: place.into(),
            what: what.into(),
            fix: fix.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; try: {}", self.place, self.what, self.fix)
    }
}

/// Why there is no configuration to run with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {} ({source}); try: pico-hub config example > {}", path.display(), path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file says something that cannot be.
    #[error("{} has {} problem(s):{}", path.display(), problems.len(), lines(problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All of them.
        problems: Vec<Problem>,
    },
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

impl Config {
    /// Reads, completes and checks a configuration.
    ///
    /// # Errors
    /// [`ConfigError`], with every problem found and not only the first.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let base = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Config::parse(&text, base.parent().unwrap_or(Path::new("/"))).map_err(|problems| {
            ConfigError::Invalid {
                path: path.to_owned(),
                problems,
            }
        })
    }

    /// The same from a text. Relative paths are relative to `base`.
    ///
    /// # Errors
    /// All problems found.
    pub fn parse(text: &str, base: &Path) -> Result<Config, Vec<Problem>> {
        let root = text.parse::<toml::Table>().map_err(|error| {
            vec![Problem::new(
                "the file",
                keys::at_line(text, &error),
                "see pico-hub config example",
            )]
        })?;
        let mut problems = Vec::new();
        let mut top = Keys::new("", root, &mut problems);
        let state_dir: PathBuf = top.get("state_dir").unwrap_or_else(|| "/var/lib/pico-hub".into());
        let listen = top.get::<Listen>("listen");
        let mut config = Config {
            state_dir: base.join(state_dir),
            listen: listen.map_or_else(Address::default_list, |listen| listen.0),
            tls: top.table("tls", |keys| tls(keys, base)),
            object_store: top.table("object_store", |keys| object_store(keys, base)),
            dns: top.get("dns"),
            metrics: top.table("metrics", |keys| keys.need("listen")),
            log: top.table("log", |keys| keys.get("format")).unwrap_or_default(),
            limits: Limits {
                connections: top
                    .table("limits", |keys| keys.get("connections"))
                    .unwrap_or(CONNECTIONS),
            },
        };
        top.finish();
        for address in &mut config.listen {
            address.resolve(base);
        }
        config.check(&mut problems);
        match problems.is_empty() {
            true => Ok(config),
            false => Err(problems),
        }
    }

    /// What each key alone does not show.
    fn check(&self, problems: &mut Vec<Problem>) {
        if self.listen.is_empty() {
            problems.push(Problem::new(
                "listen",
                "nobody could reach the hub",
                "listen = \"127.0.0.1:7071\"",
            ));
        }
        for what in self.dns.iter().flat_map(DnsConfig::problems) {
            let (what, fix) = what
                .split_once("; try: ")
                .unwrap_or((&what, "see pico-hub config example"));
            problems.push(Problem::new("dns", what, fix));
        }
        for address in &self.listen {
            if self.tls.is_none() && !address.stays_on_host() {
                problems.push(Problem::new(
                    "listen",
                    format!("tokens sent to {address} could be read on the way, for there is no [tls]"),
                    "a [tls] section, or listen on 127.0.0.1 or unix:/run/pico/hub.sock",
                ));
            }
        }
        let inner = [
            (
                "object_store.listen",
                self.object_store.as_ref().map(|store| store.listen),
            ),
            ("metrics.listen", self.metrics),
        ];
        for (place, listen) in inner {
            if let Some(listen) = listen.filter(|listen| !listen.ip().is_loopback()) {
                problems.push(Problem::new(
                    place,
                    format!(
                        "what goes to and from {listen} is not encrypted, so it has to stay on this host"
                    ),
                    format!("{place} = \"127.0.0.1:{}\"", listen.port()),
                ));
            }
        }
        if !(FEWEST_CONNECTIONS..=MOST_CONNECTIONS).contains(&self.limits.connections) {
            problems.push(Problem::new(
                "limits.connections",
                format!(
                    "{} is not from {FEWEST_CONNECTIONS} to {MOST_CONNECTIONS}",
                    self.limits.connections
                ),
                format!("connections = {CONNECTIONS}"),
            ));
        }
    }
}

/// One address or several.
#[derive(Deserialize)]
#[serde(try_from = "toml::Value")]
struct Listen(Vec<Address>);

impl TryFrom<toml::Value> for Listen {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        let values = match value {
            toml::Value::Array(values) => values,
            one => vec![one],
        };
        let read = |value: &toml::Value| value.as_str().ok_or("an address is a string")?.parse();
        values.iter().map(read).collect::<Result<_, String>>().map(Listen)
    }
}

fn tls(keys: &mut Keys<'_>, base: &Path) -> Option<Tls> {
    let (cert, key) = (keys.need::<PathBuf>("cert"), keys.need::<PathBuf>("key"));
    let client_ca: Option<PathBuf> = keys.get("client_ca");
    Some(Tls {
        cert: base.join(cert?),
        key: base.join(key?),
        client_ca: client_ca.map(|path| base.join(path)),
    })
}

fn object_store(keys: &mut Keys<'_>, base: &Path) -> Option<ObjectStore> {
    let embedded: Option<PathBuf> = keys.need("embedded");
    let listen = keys.get("listen");
    let credentials_file: Option<PathBuf> = keys.get("credentials_file");
    Some(ObjectStore {
        embedded: base.join(embedded?),
        listen: listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9000))),
        credentials_file: credentials_file.map(|path| base.join(path)),
    })
}

#[cfg(test)]
mod tests;
