//! `agent.toml` as the harness writes it. Field names are the contract with the agent; what is `None`
//! is left out, so the agent's own defaults are what is tested.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

/// The whole file.
#[derive(Debug, Clone, Serialize)]
pub struct AgentConfig {
    /// Everything the agent keeps on this host.
    pub state_dir: PathBuf,
    /// Tells several agents on one host apart (cgroups, device names).
    pub instance: String,
    /// A CRIU other than the one the agent finds by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub criu: Option<PathBuf>,
    /// What sleeping apps may keep on the disk, as `64M`.
    pub cache: String,
    /// Addresses and devices.
    pub network: NetworkConfig,
    /// Where checkpoints go.
    pub store: StoreConfig,
    /// The hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubConfig>,
    /// The apps, in order.
    #[serde(rename = "app")]
    pub apps: Vec<AppConfig>,
}

/// `[network]`.
#[derive(Debug, Clone, Serialize)]
pub struct NetworkConfig {
    /// Name of the TUN device, at most 15 characters.
    pub tun: String,
    /// Subnet of the service addresses.
    pub v4: String,
    /// The same for IPv6.
    pub v6: String,
    /// Routing table for what the gate releases.
    pub table: u32,
    /// Ports of this host that apps may reach.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<String>,
}

/// `[store]`.
#[derive(Debug, Clone, Serialize)]
pub struct StoreConfig {
    /// URL of the S3 server.
    pub endpoint: String,
    /// Bucket; the embedded server makes it.
    pub bucket: String,
    /// Region, as signatures name it.
    pub region: String,
    /// Key id, where there is no file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// Secret key, where there is no file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<String>,
    /// File written by `pico-hub store`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
}

/// `[hub]`.
#[derive(Debug, Clone, Serialize)]
pub struct HubConfig {
    /// Where its API is.
    pub address: String,
    /// Holds the token to join by.
    pub join_token_file: PathBuf,
    /// What the agent is called there.
    pub name: String,
    /// Directories that apps' roots may lie in.
    pub roots: Vec<PathBuf>,
}

/// One `[[app]]`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct AppConfig {
    /// DNS label.
    pub name: String,
    /// `host` or a directory.
    pub root: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Published ports, as `80/tcp`.
    pub ports: Vec<String>,
    /// Service address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// User to run as, other than root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Host name inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Directory copied into the writable layer when the app is first made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<PathBuf>,
    /// Memory limit, as `256M`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// CPU limit, in CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Limit of the number of tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Asleep after this long without activity, or `never`.
    pub idle: String,
    /// From warm to cold after this long, or `never`.
    pub cold_after: String,
    /// `always`, `on-failure` or `never`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<String>,
    /// `checkpoint` or `fresh`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_crash: Option<String>,
    /// How long packets wait for wakes that fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_timeout: Option<String>,
    /// `none`, `full`, `last-window`, `global` or `per-port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefetch: Option<String>,
    /// `keep`, `close` or `stay-awake`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<String>,
    /// Which timers wake it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timers: Option<String>,
    /// Who wakes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wake: Option<WakeConfig>,
    /// Who is answered while it sleeps.
    #[serde(rename = "probe", skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ProbeConfig>,
    /// What the app may do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxConfig>,
}

/// `[app.wake]`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct WakeConfig {
    /// Subnets that wake it; empty: all.
    pub allow: Vec<String>,
    /// Subnets that do not.
    pub deny: Vec<String>,
    /// How often each source may, as `6/1m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// Cron lines by which it wakes by itself.
    pub at: Vec<String>,
}

/// `[[app.probe]]`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ProbeConfig {
    /// Who is answered.
    pub from: String,
    /// The status of the HTTP answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<u16>,
    /// Its content.
    pub body: String,
}

/// `[app.sandbox]`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SandboxConfig {
    /// Capabilities kept, as `CAP_CHOWN`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
    /// Whether exec may gain rights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_new_privs: Option<bool>,
    /// Whether the default system call filter applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<bool>,
}

impl AgentConfig {
    /// The TOML text.
    ///
    /// # Errors
    /// Never for values of this type; the serializer cannot know.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("cannot write agent.toml")
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.to_toml()?).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The app called `name`, to change its policy before a start.
    ///
    /// # Errors
    /// When there is none.
    pub fn app_mut(&mut self, name: &str) -> Result<&mut AppConfig> {
        self.apps
            .iter_mut()
            .find(|app| app.name == name)
            .with_context(|| format!("no app {name}"))
    }

    /// The IPv6 service address that belongs to an IPv4 one: the prefix and the same host part.
    ///
    /// # Errors
    /// When the subnets are malformed.
    pub fn v6_of(&self, v4: Ipv4Addr) -> Result<Ipv6Addr> {
        let (_, length) = self.network.v4.split_once('/').context("v4 is not a subnet")?;
        let host = u32::from(v4) & u32::MAX.checked_shr(length.parse()?).unwrap_or(0);
        let (prefix, _) = self.network.v6.split_once('/').context("v6 is not a subnet")?;
        Ok(Ipv6Addr::from(
            u128::from(prefix.parse::<Ipv6Addr>()?) | u128::from(host),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AgentConfig {
        AgentConfig {
            state_dir: "/var/tmp/x".into(),
            instance: "x".into(),
            criu: None,
            cache: "0".into(),
            network: NetworkConfig {
                tun: "pico0".into(),
                v4: "10.77.0.0/16".into(),
                v6: "fd77:7069:636f::/64".into(),
                table: 7769,
                host_ports: Vec::new(),
            },
            store: StoreConfig {
                endpoint: "http://127.0.0.1:1".into(),
                bucket: "pico".into(),
                region: "us-east-1".into(),
                access_key_id: None,
                secret_access_key: None,
                credentials_file: None,
            },
            hub: None,
            apps: vec![AppConfig {
                name: "web".into(),
                ..AppConfig::default()
            }],
        }
    }

    #[test]
    fn both_addresses_of_an_app_have_the_same_host_part() -> Result<()> {
        assert_eq!(
            config().v6_of("10.77.1.5".parse()?)?,
            "fd77:7069:636f::105".parse::<Ipv6Addr>()?
        );
        Ok(())
    }

    #[test]
    fn what_is_not_set_is_not_written() -> Result<()> {
        let text = config().to_toml()?;
        assert!(text.contains("[[app]]\nname = \"web\""), "{text}");
        assert!(!text.contains("seed") && !text.contains("[app.env]"), "{text}");
        Ok(())
    }
}
