//! What a run must not leave behind: looked at before, compared after.
//!
//! Links, routes, rules, nft tables and sysctls are those of the caller's network namespace. Processes,
//! cgroups, mounts and BPF objects belong to the whole host, so only the run's own are compared: by
//! instance, directory and id.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::bpf::{self, BpfObject};
use super::process::output;
use super::{bin, procs, until};

/// Sysctls of a network namespace that the gate may have to change.
const SYSCTLS: [&str; 4] = [
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/conf/all/accept_local",
];

/// The network namespace as it was, and what the run calls its own.
#[derive(Debug)]
pub struct Leftovers {
    before: BTreeSet<String>,
    cgroup: String,
    dir: PathBuf,
    bpf: BTreeSet<BpfObject>,
}

impl Leftovers {
    /// Looks at the network namespace before the run. `cgroup` is the agent's root (`pico-ID`), `dir` the
    /// directory of everything the run writes.
    ///
    /// # Errors
    /// When `ip` cannot be run.
    pub fn before(cgroup: &str, dir: PathBuf) -> Result<Self> {
        Ok(Leftovers {
            before: network()?,
            cgroup: cgroup.to_owned(),
            dir,
            bpf: BTreeSet::new(),
        })
    }

    /// Remembers the BPF objects of a running agent, to be looked for when it is gone.
    ///
    /// # Errors
    /// When the process is gone already.
    pub fn claim(&mut self, agent: u32) -> Result<()> {
        self.bpf.extend(bpf::held_by(agent)?);
        Ok(())
    }

    /// What is left, one line each; empty when all is clean. The kernel frees some things a moment after
    /// their last user is gone, so what is there is looked at again for two seconds.
    ///
    /// # Errors
    /// When the host cannot be looked at.
    pub fn after(&self) -> Result<Vec<String>> {
        self.after_except(std::process::id())
    }

    /// The same while process `other` of the run (the store) may still be there.
    ///
    /// # Errors
    /// When the host cannot be looked at.
    pub fn after_except(&self, other: u32) -> Result<Vec<String>> {
        let mut left = Vec::new();
        let clean = until("clean", Duration::from_secs(2), || {
            left = self.now(other)?;
            Ok(left.is_empty().then_some(()))
        });
        match clean {
            Err(error) if left.is_empty() => Err(error),
            _ => Ok(left),
        }
    }

    fn now(&self, other: u32) -> Result<Vec<String>> {
        let dir = self.dir.display().to_string();
        let own = std::process::id();
        let mut left: Vec<String> = network()?.difference(&self.before).cloned().collect();
        let ours = |process: &procs::Process| process.in_cgroup(&self.cgroup) || process.names(&dir);
        let processes = procs::all()?
            .into_iter()
            .filter(|process| process.pid != own && process.pid != other && ours(process));
        left.extend(processes.map(|process| process.to_string()));
        left.extend(
            procs::cgroup_dirs(&self.cgroup)?
                .iter()
                .map(|dir| format!("cgroup {}", dir.display())),
        );
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        left.extend(
            points
                .filter(|point| point.starts_with(&dir))
                .map(|point| format!("mount {point}")),
        );
        for object in &self.bpf {
            if bpf::exists(*object)? {
                left.push(object.to_string());
            }
        }
        Ok(left)
    }
}

/// Links, routes, rules, nft tables and sysctls of the caller's network namespace, one line each.
fn network() -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    let mut add =
        |what: &str, text: &str| lines.extend(text.lines().map(|line| format!("{what} {}", line.trim())));
    let ip = bin::system("ip", "iproute2")?;
    for link in nix::net::if_::if_nameindex()?.iter() {
        add("link", &link.name().to_string_lossy());
    }
    for family in ["-4", "-6"] {
        let routes = output(Command::new(&ip).args([family, "route", "show", "table", "all"]))?;
        // A route learned from the network counts down to its end.
        let routes: Vec<_> = routes
            .lines()
            .map(|line| line.split(" expires ").next().unwrap_or(line))
            .collect();
        add("route", &routes.join("\n"));
        add("rule", &output(Command::new(&ip).args([family, "rule", "show"]))?);
    }
    if let Ok(nft) = bin::system("nft", "nftables") {
        add("nft", &output(Command::new(nft).args(["list", "tables"]))?);
    }
    for name in SYSCTLS {
        add(
            "sysctl",
            &format!(
                "{name} = {}",
                std::fs::read_to_string(format!("/proc/sys/{name}"))?
            ),
        );
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::net;

    #[test]
    fn a_forgotten_device_cgroup_mount_and_process_are_all_named() -> Result<()> {
        net::enter_own_namespace()?;
        let dir = tempfile::tempdir_in("/var/tmp")?;
        let cgroup = format!("pico-leftovers-{}", std::process::id());
        let leftovers = Leftovers::before(&cgroup, dir.path().to_owned())?;
        assert_eq!(leftovers.after()?, Vec::<String>::new());

        output(Command::new("ip").args(["tuntap", "add", "left0", "mode", "tun"]))?;
        let mount = procs::cgroup_mounts()?.pop();
        let group = mount.ok_or_else(|| anyhow::anyhow!("no cgroups"))?.join(&cgroup);
        std::fs::create_dir(&group)?;
        output(
            Command::new("mount")
                .args(["-t", "tmpfs", "left"])
                .arg(dir.path()),
        )?;
        let mut sleeper = Command::new("sleep").arg("60").arg("0").arg("0").spawn()?;
        std::fs::write(group.join("cgroup.procs"), sleeper.id().to_string())?;
        let left = leftovers.now(0)?.join("\n");
        std::fs::write(group.join("../cgroup.procs"), sleeper.id().to_string())?;
        sleeper.kill()?;
        sleeper.wait()?;
        output(Command::new("umount").arg(dir.path()))?;
        std::fs::remove_dir(&group)?;
        output(Command::new("ip").args(["tuntap", "del", "left0", "mode", "tun"]))?;

        for what in ["link left0", "cgroup /sys/fs/cgroup", "mount /var/tmp", "(sleep)"] {
            assert!(left.contains(what), "{what} is not in:\n{left}");
        }
        assert_eq!(leftovers.after()?, Vec::<String>::new());
        Ok(())
    }
}
