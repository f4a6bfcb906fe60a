//! What apps may reach over the network: other apps by their published ports, and whatever lies beyond this host;
//! not this host itself, nor the addresses where clouds hand out credentials, nor anything under another app's
//! address. One nftables table of our own, written by `nft`, when an app is made or changed and never on the path
//! of a swap. Knows apps by device, addresses and ports; kernel-notes/fence.md says what each rule leans on.

mod rules;

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use self::rules::Fenced;
use crate::addresses::{Ipv4Net, Ipv6Net};
use crate::port::Port;

/// Where `nft` may be.
const PROGRAMS: [&str; 3] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"];

/// What the fence stands around.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceConfig {
    /// The gate's device: one agent, one table.
    pub tun: String,
    /// IPv4 service subnet.
    pub v4: Ipv4Net,
    /// IPv6 service subnet.
    pub v6: Ipv6Net,
    /// Ports of this host that apps may reach nevertheless.
    pub host_ports: Vec<Port>,
}

/// Why there is no fence.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// `nft` is not installed.
    #[error("there is no nft on this host, by which apps are kept from it; try: apt-get install nftables")]
    NoProgram,
    /// It cannot be run.
    #[error("cannot run {path} ({source})")]
    Run {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It refused.
    #[error(
        "the rules that keep apps from this host are refused ({0}); try: a kernel with nf_tables (CONFIG_NF_TABLES_INET)"
    )]
    Refused(String),
}

/// The table, and which apps are in it.
#[derive(Debug)]
pub struct Fence {
    config: FenceConfig,
    nft: PathBuf,
    apps: Mutex<HashMap<String, Fenced>>,
}

impl Fence {
    /// Finds `nft`; changes nothing.
    ///
    /// # Errors
    /// [`FenceError::NoProgram`]
    pub fn new(config: FenceConfig) -> Result<Fence, FenceError> {
        Ok(Fence {
            config,
            nft: program()?,
            apps: Mutex::default(),
        })
    }

    /// Makes the table, around these apps and no others. In one step: at no moment is there less than before.
    ///
    /// # Errors
    /// When the kernel refuses; what was there stays.
    pub fn replace(&self, apps: impl IntoIterator<Item = Fenced>) -> Result<(), FenceError> {
        let apps: HashMap<String, Fenced> = apps.into_iter().map(|app| (app.link.clone(), app)).collect();
        let mut known = self.lock();
        let mut text = rules::table(&self.config);
        for app in apps.values() {
            text.push_str(&rules::elements(&self.config, "add", app));
        }
        self.run(&text)?;
        *known = apps;
        Ok(())
    }

    /// Takes an app in, or its new ports.
    ///
    /// # Errors
    /// When the kernel refuses; nothing has changed then.
    pub fn put(&self, app: Fenced) -> Result<(), FenceError> {
        let mut known = self.lock();
        let old = known.get(&app.link);
        if old == Some(&app) {
            return Ok(());
        }
        let mut text = old
            .map(|old| rules::elements(&self.config, "delete", old))
            .unwrap_or_default();
        text.push_str(&rules::elements(&self.config, "add", &app));
        self.run(&text)?;
        known.insert(app.link.clone(), app);
        Ok(())
    }

    /// Forgets an app.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, link: &str) -> Result<(), FenceError> {
        let mut known = self.lock();
        if let Some(app) = known.get(link) {
            self.run(&rules::elements(&self.config, "delete", app))?;
            known.remove(link);
        }
        Ok(())
    }

    /// Takes the table away, if there is one. Where there is no `nft`, none was made.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take_down(config: &FenceConfig) -> Result<(), FenceError> {
        match program() {
            Ok(nft) => run(&nft, &rules::no_table(config)),
            Err(_) => Ok(()),
        }
    }

    // Held while nft runs: what is known is what the kernel has.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Fenced>> {
        self.apps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, text: &str) -> Result<(), FenceError> {
        run(&self.nft, text)
    }
}

fn program() -> Result<PathBuf, FenceError> {
    let mut programs = PROGRAMS.iter().map(PathBuf::from);
    programs.find(|path| path.exists()).ok_or(FenceError::NoProgram)
}

/// Carries out all of it or nothing (nft(8): a file is one transaction).
fn run(nft: &std::path::Path, text: &str) -> Result<(), FenceError> {
    let failed = |source| FenceError::Run {
        path: nft.to_owned(),
        source,
    };
    let mut child = Command::new(nft)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that has seen enough says why on its standard error.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(FenceError::Refused(
            said.lines().next().unwrap_or_default().trim().to_owned(),
        ))
    }
}

#[cfg(test)]
mod tests;
