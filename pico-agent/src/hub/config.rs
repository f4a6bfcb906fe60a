//! `[hub]` of agent.toml: where the hub is, and what its owners may ask of this host.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config::check::{capability, is_dns_label};
use crate::config::{Problem, Root};

/// `[hub]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubConfig {
    /// `unix:/PATH`, `https://HOST:PORT`, or `http://` to this host itself.
    pub address: String,
    /// Certificates of who signed the hub's, in PEM; needed for `https://`, and no others are trusted.
    pub ca_file: Option<PathBuf>,
    /// Holds the token that this agent joins by, where it has no credential yet.
    pub join_token_file: Option<PathBuf>,
    /// What the agent is called; `None`: as its host.
    pub name: Option<String>,
    /// Directories that the `root` and `seed` of owners' apps may be or lie in; `host` allows `root = "host"`.
    #[serde(default)]
    pub roots: Vec<Root>,
    /// Capabilities that owners may ask for.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Whether owners may switch off `no_new_privs` and `seccomp`.
    #[serde(default)]
    pub weaker_sandbox: bool,
}

impl HubConfig {
    /// What is wrong with it whatever the host.
    pub fn shape(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |key: &str, what: String, fix: &str| {
            problems.push(Problem::new(format!("[hub], key '{key}'"), what, fix))
        };
        let address = &self.address;
        let fix =
            "write it as unix:/run/pico/hub.sock, https://hub.example.com:7071 or http://127.0.0.1:7071";
        let host = |scheme| address.strip_prefix(scheme).map(host_of);
        match (address.strip_prefix("unix:"), host("https://"), host("http://")) {
            (Some(path), _, _) if path.starts_with('/') => {}
            (_, Some(host), _) if !host.is_empty() => {
                if self.ca_file.is_none() {
                    problem(
                        "ca_file",
                        "it is missing, and the hub's certificate could not be checked".to_owned(),
                        "give the file with the certificate of who signed the hub's",
                    );
                }
            }
            (_, _, Some("127.0.0.1" | "localhost" | "[::1]")) => {}
            (_, _, Some(_)) => problem(
                "address",
                format!("'{address}' would send this agent's credential in the clear"),
                "use https:// to another host",
            ),
            _ => problem("address", format!("'{address}' is not where a hub can be"), fix),
        }
        if let Some(name) = self.name.as_ref().filter(|name| !is_dns_label(name)) {
            problem(
                "name",
                format!("'{name}' is not a DNS label"),
                "use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end",
            );
        }
        for root in self.roots.iter().filter(|root| !root.path().is_absolute()) {
            problem(
                "roots",
                format!("'{}' is not an absolute path", root.path().display()),
                "write it from the root, as /srv/apps, or \"host\" for the host's own files",
            );
        }
        for name in self.capabilities.iter().filter(|name| capability(name).is_none()) {
            problem(
                "capabilities",
                format!("there is no capability '{name}'"),
                "see capabilities(7) for their names",
            );
        }
        problems
    }

    /// What is wrong with it on this host.
    pub fn host(&self) -> Vec<Problem> {
        let ca_file = self.ca_file.iter().map(|path| ("ca_file", path.as_path()));
        let roots = self.roots.iter().map(|root| ("roots", root.path()));
        let missing = |(key, path): (&str, &Path)| {
            let error = std::fs::metadata(path).err()?;
            Some(Problem::new(
                format!("[hub], key '{key}'"),
                format!("{} cannot be used ({error})", path.display()),
                "create it, or correct the path",
            ))
        };
        ca_file.chain(roots).filter_map(missing).collect()
    }

    /// The name it joins under: the configured one, else what of the host's name can be one.
    pub fn agent_name(&self) -> String {
        let host = || {
            let name = nix::unistd::gethostname().unwrap_or_default();
            name.to_string_lossy()
                .split('.')
                .next()
                .unwrap_or_default()
                .to_ascii_lowercase()
        };
        let name = self.name.clone().unwrap_or_else(host);
        if is_dns_label(&name) {
            name
        } else {
            "agent".to_owned()
        }
    }

    /// Whether an app of an owner's may have its files from `root`.
    pub fn allows_root(&self, root: &Root) -> bool {
        match root {
            Root::Host => self.roots.contains(&Root::Host),
            Root::Dir(dir) => self.allows_dir(dir),
        }
    }

    /// Whether a directory is one of those that owners may name, or lies in one, symbolic links followed.
    pub fn allows_dir(&self, dir: &Path) -> bool {
        let Ok(real) = std::fs::canonicalize(dir) else {
            return false;
        };
        self.roots.iter().any(|root| match root {
            Root::Host => false,
            Root::Dir(root) => std::fs::canonicalize(root).is_ok_and(|root| real.starts_with(root)),
        })
    }

    /// Whether owners may ask for a capability.
    pub fn allows_capability(&self, asked: &str) -> bool {
        let asked = capability(asked);
        asked.is_some()
            && self
                .capabilities
                .iter()
                .any(|allowed| capability(allowed) == asked)
    }
}

/// `127.0.0.1` of `127.0.0.1:7071/`.
fn host_of(rest: &str) -> &str {
    let authority = rest.split('/').next().unwrap_or_default();
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> HubConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_credential_is_sent_in_the_clear_to_this_host_only() {
        for good in [
            "unix:/run/hub.sock",
            "http://127.0.0.1:7071",
            "http://[::1]:7071",
            "https://hub.example.com",
        ] {
            let text = format!("address = '{good}'\nca_file = '/etc/pico/ca.pem'");
            assert!(config(&text).shape().is_empty(), "{good}");
        }
        for bad in [
            "hub.example.com",
            "unix:hub.sock",
            "http://10.0.0.1:7071",
            "http://127.0.0.1.example.com",
            "https://",
            "",
        ] {
            assert_eq!(config(&format!("address = '{bad}'")).shape().len(), 1, "{bad}");
        }
    }

    #[test]
    fn owners_get_no_directory_capability_or_root_that_was_not_given_to_them() {
        let base = tempfile::tempdir().unwrap();
        let (given, other) = (base.path().join("given"), base.path().join("given-not"));
        std::fs::create_dir_all(given.join("web")).unwrap();
        std::fs::create_dir_all(&other).unwrap();
        std::os::unix::fs::symlink(&other, given.join("link")).unwrap();
        let config = config(&format!(
            "address = 'unix:/h'\nroots = ['{}']\ncapabilities = ['net_raw']",
            given.display()
        ));
        assert!(config.shape().is_empty());
        assert!(config.allows_root(&Root::Dir(given.clone())) && config.allows_dir(&given.join("web")));
        for dir in [
            other,
            given.join("link"),
            given.join("../given-not"),
            given.join("missing"),
            "/".into(),
        ] {
            assert!(!config.allows_dir(&dir), "{}", dir.display());
        }
        assert!(!config.allows_root(&Root::Host));
        assert!(config.allows_capability("CAP_NET_RAW") && !config.allows_capability("CAP_SYS_ADMIN"));
    }

    #[test]
    fn unknown_keys_relative_roots_and_capabilities_that_are_none_are_refused() {
        assert!(toml::from_str::<HubConfig>("address = 'unix:/h'\nadress = 1").is_err());
        let wrong = config("address = 'unix:/h'\nroots = ['srv']\ncapabilities = ['CAP_ALL']\nname = 'A_b'");
        assert_eq!(wrong.shape().len(), 3);
    }
}
