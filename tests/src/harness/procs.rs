//! Processes and cgroups on this host, as `/proc` and the cgroup mounts show them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id on the host.
    pub pid: u32,
    /// The first 15 bytes of its name.
    pub comm: String,
    /// `VmRSS`, in bytes.
    pub resident: u64,
    cgroups: String,
    command_line: String,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.pid, self.comm)
    }
}

impl Process {
    /// Reads one process. Nothing when it is gone or a zombie.
    pub fn read(pid: u32) -> Option<Self> {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).ok();
        let text = |file: &str| Some(String::from_utf8_lossy(&read(file)?).into_owned());
        let status = text("status")?;
        if field(&status, "State")?.starts_with('Z') {
            return None;
        }
        let kilobytes =
            field(&status, "VmRSS").and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
        Some(Process {
            pid,
            comm: field(&status, "Name")?.to_owned(),
            resident: kilobytes.unwrap_or(0) * 1024,
            cgroups: text("cgroup")?,
            command_line: text("cmdline")?.replace('\0', " "),
        })
    }

    /// Whether it is in the cgroup `path` (as `pico-x/apps/web`) or below it, in any hierarchy.
    pub fn in_cgroup(&self, path: &str) -> bool {
        self.cgroups
            .lines()
            .filter_map(|line| line.splitn(3, ':').nth(2))
            .any(|cgroup| {
                let cgroup = cgroup.trim_start_matches('/');
                cgroup == path
                    || cgroup
                        .strip_prefix(path)
                        .is_some_and(|rest| rest.starts_with('/'))
            })
    }

    /// Whether its command line names `text`.
    pub fn names(&self, text: &str) -> bool {
        self.command_line.contains(text)
    }
}

/// State of a process, as proc_pid_stat(5) has it (`S`: it waits); none when it is gone.
pub fn state(pid: u32) -> Option<char> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    field(&status, "State")?.chars().next()
}

/// The value of `key` in text of the form of `/proc/PID/status`.
pub fn field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .map(str::trim)
}

/// All processes but zombies.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn all() -> Result<Vec<Process>> {
    let entries = std::fs::read_dir("/proc").context("cannot read /proc")?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(pids.filter_map(Process::read).collect())
}

/// All processes in the cgroup `path` or below it.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn in_cgroup(path: &str) -> Result<Vec<Process>> {
    Ok(all()?
        .into_iter()
        .filter(|process| process.in_cgroup(path))
        .collect())
}

/// The same by the cgroups' own lists: quicker where few of many processes are meant.
///
/// # Errors
/// When the mounts cannot be read.
pub fn in_tree(path: &str) -> Result<Vec<Process>> {
    let mut open = cgroup_dirs(path)?;
    let mut pids = std::collections::BTreeSet::new();
    while let Some(dir) = open.pop() {
        // A cgroup may go while we look.
        let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        open.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    Ok(pids.into_iter().filter_map(Process::read).collect())
}

/// Mount points of all cgroup hierarchies, v1 and v2.
///
/// # Errors
/// When `/proc/self/mountinfo` cannot be read.
pub fn cgroup_mounts() -> Result<Vec<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read mountinfo")?;
    let is_cgroup = |line: &&str| line.contains(" - cgroup ") || line.contains(" - cgroup2 ");
    Ok(mounts
        .lines()
        .filter(is_cgroup)
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect())
}

/// The existing directories of the cgroup `path`, over all hierarchies.
///
/// # Errors
/// When the mounts cannot be read.
pub fn cgroup_dirs(path: &str) -> Result<Vec<PathBuf>> {
    let dirs = cgroup_mounts()?.into_iter().map(|mount| mount.join(path));
    Ok(dirs.filter(|dir| dir.is_dir()).collect())
}

/// Anonymous memory charged to the cgroup `path`, in bytes, where a memory controller counts it.
///
/// # Errors
/// When the mounts cannot be read.
pub fn charged(path: &str) -> Result<Option<u64>> {
    let stats = cgroup_dirs(path)?
        .into_iter()
        .filter_map(|dir| std::fs::read_to_string(dir.join("memory.stat")).ok());
    let value = |text: String| {
        let find = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
        };
        find("total_rss").or_else(|| find("anon"))
    };
    Ok(stats.filter_map(value).max())
}

/// The executable a process runs.
///
/// # Errors
/// When it is gone.
pub fn executable(pid: u32) -> Result<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).with_context(|| format!("process {pid} is gone"))
}

/// Whether `path` lies on a file system in memory, by statfs(2).
///
/// # Errors
/// When it does not exist.
pub fn in_memory(path: &Path) -> Result<bool> {
    use nix::sys::statfs::{TMPFS_MAGIC, statfs};
    let kind = statfs(path)
        .with_context(|| format!("cannot stat {}", path.display()))?
        .filesystem_type();
    Ok(kind == TMPFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_with_its_memory() -> Result<()> {
        let process = Process::read(std::process::id()).context("not seen")?;
        assert!(process.resident > 100_000, "{process:?}");
        assert!(all()?.iter().any(|other| other.pid == process.pid));
        Ok(())
    }

    #[test]
    fn a_cgroup_is_matched_by_whole_names() {
        let process = Process {
            pid: 1,
            comm: "x".into(),
            resident: 0,
            cgroups: "4:memory:/pico-a/apps/web\n0::/pico-a/apps/web/run-1\n".into(),
            command_line: String::new(),
        };
        assert!(process.in_cgroup("pico-a/apps/web") && process.in_cgroup("pico-a"));
        assert!(!process.in_cgroup("pico-a/apps/we") && !process.in_cgroup("pico"));
    }
}
