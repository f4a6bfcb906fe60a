//! Control groups: where an app's processes and its shim live, their limits, and how they are ended.
//!
//! Owns the tree `pico[-INSTANCE]/{apps/NAME/{run,exec}-SEQ, shims/NAME}`. Works on a pure v2 host and on a
//! hybrid one (v2 without controllers beside v1 hierarchies): every directory is made in v2, which
//! gives identity, `cgroup.kill` and `cgroup.events`, and at the same relative path in each v1
//! hierarchy that holds a controller v2 lacks. Must not know what runs inside.
//! kernel-notes/sandbox.md tells which kernel version brought what.

mod mounts;

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use mounts::{CONTROLLERS, Mounts};

/// Length of one scheduling period for the processor limit, the kernel's own default.
const CPU_PERIOD_US: u64 = 100_000;
/// How long [`Cgroup::kill`] waits for a round of SIGKILLs before it signals what was forked meanwhile
/// (only before Linux 5.14, which has no `cgroup.kill`).
const KILL_ROUND: Duration = Duration::from_millis(20);
/// How long processes that were killed may take to go. One that waits inside the kernel without being
/// killable (a disk that does not answer) is the only known reason to reach it.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Why a control group could not be found, made, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup v2 mount is visible.
    #[error("no cgroup v2 file system is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified")]
    NoV2,
    /// A file or directory of the tree refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A name that would leave the tree.
    #[error("'{0}' cannot name a control group; use lower case letters, digits and dashes")]
    Name(String),
    /// A limit was asked for, and the kernel has no controller for it here.
    #[error(
        "the {0} limit cannot be set: neither cgroup v2 nor v1 offers the '{0}' controller here; \
         enable it (on v2: echo +{0} > cgroup.subtree_control of the root group) or leave the limit out"
    )]
    NoController(&'static str),
    /// Processes are left after the time given.
    #[error("processes {pids:?} are still in {} after {waited:?}", path.display())]
    StillPopulated {
        /// The v2 directory.
        path: PathBuf,
        /// Who is left.
        pids: Vec<i32>,
        /// How long was waited.
        waited: Duration,
    },
}

type Result<T, E = CgroupError> = std::result::Result<T, E>;

fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CgroupError + 'a {
    move |source| CgroupError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).map_err(at("write", path))
}

/// What one app may use. `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory in bytes, file pages included.
    pub memory_bytes: Option<u64>,
    /// Processors: 1.5 is one and a half.
    pub cpus: Option<f64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// All control groups of one agent.
#[derive(Debug, Clone)]
pub struct CgroupTree {
    root: Cgroup,
    mounts: Mounts,
    /// Controllers that v2 offers below its root.
    v2_controllers: Vec<String>,
}

impl CgroupTree {
    /// Finds the control group file systems and makes `pico[-INSTANCE]/{apps,shims}`. What exists is
    /// taken as it is, with whatever runs in it.
    pub fn open(instance: &str) -> Result<CgroupTree> {
        let name = if instance.is_empty() {
            "pico".to_owned()
        } else {
            format!("pico-{}", valid(instance)?)
        };
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(path).map_err(at("read", path))?;
        let mounts = Mounts::parse(&text).ok_or(CgroupError::NoV2)?;
        let file = mounts.v2.join("cgroup.controllers");
        let offered = fs::read_to_string(&file).map_err(at("read", &file))?;
        let v2_controllers: Vec<String> = offered
            .split_whitespace()
            .filter(|c| CONTROLLERS.contains(c))
            .map(str::to_owned)
            .collect();
        let v1 = mounts
            .v1
            .iter()
            .filter(|v| !v.holds.iter().all(|h| v2_controllers.contains(h)));
        let root = Cgroup {
            path: mounts.v2.join(&name),
            v1: v1
                .map(|v| V1Dir {
                    path: v.mount.join(&name),
                    holds: v.holds.clone(),
                })
                .collect(),
        };
        let tree = CgroupTree {
            root,
            mounts,
            v2_controllers,
        };
        tree.enable(&tree.mounts.v2)?;
        tree.root.create()?;
        tree.hierarchical();
        tree.enable(&tree.root.path)?;
        tree.root.child("shims").create()?;
        let apps = tree.root.child("apps");
        apps.create()?;
        tree.enable(&apps.path)?;
        Ok(tree)
    }

    /// Lets the children of `dir` have the controllers.
    fn enable(&self, dir: &Path) -> Result<()> {
        for controller in &self.v2_controllers {
            write(&dir.join("cgroup.subtree_control"), &format!("+{controller}"))?;
        }
        Ok(())
    }

    /// Before 5.11 a v1 memory group counts its children only if told so while it has none. Newer
    /// kernels know nothing else, and refuse or ignore the write: hence the result is of no interest.
    fn hierarchical(&self) {
        if let Some(dir) = self.root.holding("memory") {
            _ = fs::write(dir.join("memory.use_hierarchy"), "1");
        }
    }

    /// The v2 directory that all apps live under: one cgroup_skb attachment here sees them all.
    pub fn apps_path(&self) -> PathBuf {
        self.root.path.join("apps")
    }

    /// The group of one app's shim and keeper. Not yet made: [`Cgroup::create`].
    pub fn shim(&self, name: &str) -> Result<Cgroup> {
        Ok(self.root.child("shims").child(valid(name)?))
    }

    /// Makes the group of one app, which all its runs lie in, and sets its limits. Called again, it
    /// changes the limits, running processes included.
    pub fn app(&self, name: &str, limits: &Limits) -> Result<Cgroup> {
        let app = self.app_group(name)?;
        app.create()?;
        self.enable(&app.path)?;
        app.set_limits(limits)?;
        Ok(app)
    }

    /// The group of one app as [`CgroupTree::app`] makes it, only named.
    pub fn app_group(&self, name: &str) -> Result<Cgroup> {
        Ok(self.root.child("apps").child(valid(name)?))
    }

    /// The group that the processes of one run of an app live in, a leaf. Not yet made. Every start
    /// and every restore has a run of its own, so that a failed one can be killed whole.
    pub fn run(&self, name: &str, seq: u64) -> Result<Cgroup> {
        Ok(self.app_group(name)?.child(&format!("run-{seq}")))
    }

    /// The group of one command that runs beside an app, a leaf. Not yet made.
    pub fn beside(&self, name: &str, number: u64) -> Result<Cgroup> {
        Ok(self.app_group(name)?.child(&format!("exec-{number}")))
    }

    /// The groups of all commands beside an app.
    pub fn all_beside(&self, name: &str) -> Result<Vec<Cgroup>> {
        let app = self.app_group(name)?;
        let groups = app.children(&app.path)?;
        let beside = groups.iter().filter(|group| group.starts_with("exec-"));
        Ok(beside.map(|group| app.child(group)).collect())
    }

    /// Kills every process in the tree, shims included, and removes it.
    pub fn remove_all(&self) -> Result<()> {
        if !self.root.path.exists() {
            return self.root.remove();
        }
        self.root.kill()?;
        self.root.remove()
    }
}

fn valid(name: &str) -> Result<&str> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ok = !name.is_empty() && name.len() <= 63 && name.chars().all(fine) && !name.starts_with('-');
    ok.then_some(name)
        .ok_or_else(|| CgroupError::Name(name.to_owned()))
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct V1Dir {
    path: PathBuf,
    holds: Vec<String>,
}

/// One control group: a directory in v2 and, on a hybrid host, its twins in v1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    path: PathBuf,
    v1: Vec<V1Dir>,
}

impl Cgroup {
    fn child(&self, name: &str) -> Cgroup {
        let v1 = self.v1.iter().map(|d| V1Dir {
            path: d.path.join(name),
            holds: d.holds.clone(),
        });
        Cgroup {
            path: self.path.join(name),
            v1: v1.collect(),
        }
    }

    /// The v1 directory that holds `controller`, if v1 does.
    fn holding(&self, controller: &str) -> Option<&Path> {
        self.v1
            .iter()
            .find(|d| d.holds.iter().any(|h| h == controller))
            .map(|d| d.path.as_path())
    }

    fn dirs(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.path.as_path()).chain(self.v1.iter().map(|d| d.path.as_path()))
    }

    /// The v2 directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directories, parents included. Nothing happens to those that exist.
    pub fn create(&self) -> Result<()> {
        self.dirs()
            .try_for_each(|dir| fs::create_dir_all(dir).map_err(at("create", dir)))
    }

    /// Moves a process (all its threads) here.
    pub fn add(&self, pid: i32) -> Result<()> {
        self.dirs()
            .try_for_each(|dir| write(&dir.join("cgroup.procs"), &pid.to_string()))
    }

    /// Moves the calling process here.
    pub fn join_self(&self) -> Result<()> {
        self.add(0)
    }

    /// The processes directly in this group, as numbers of the caller's pid namespace. Empty if the
    /// group does not exist.
    pub fn procs(&self) -> Result<Vec<i32>> {
        let file = self.path.join("cgroup.procs");
        match fs::read_to_string(&file) {
            Ok(text) => Ok(text.lines().filter_map(|l| l.parse().ok()).collect()),
            Err(e) if gone(&e) => Ok(Vec::new()),
            Err(e) => Err(at("read", &file)(e)),
        }
    }

    /// The processes of this group and of all groups below.
    fn procs_below(&self) -> Result<Vec<i32>> {
        let mut all = self.procs()?;
        for child in self.children(&self.path)? {
            all.extend(self.child(&child).procs_below()?);
        }
        Ok(all)
    }

    fn children(&self, dir: &Path) -> Result<Vec<String>> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if gone(&e) => return Ok(Vec::new()),
            Err(e) => return Err(at("list", dir)(e)),
        };
        let dirs = entries
            .flatten()
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        Ok(dirs.filter_map(|e| e.file_name().into_string().ok()).collect())
    }

    /// Kills every process here and below, and returns when they are gone (their parents may still
    /// have to wait for them). A group that does not exist holds none.
    pub fn kill(&self) -> Result<()> {
        let file = self.path.join("cgroup.kill");
        match fs::write(&file, "1") {
            Ok(()) => self.wait_empty(KILL_PATIENCE),
            Err(e) if gone(&e) && !self.path.exists() => Ok(()),
            // The file came with Linux 5.14.
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.kill_one_by_one(),
            Err(e) => Err(at("write", &file)(e)),
        }
    }

    /// A process that forks while its fellows are being signalled leaves a child that got no signal:
    /// signal again until nothing is left.
    fn kill_one_by_one(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            for pid in self.procs_below()? {
                // It may have gone meanwhile.
                _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            match self.wait_empty(KILL_ROUND) {
                Err(CgroupError::StillPopulated { .. }) if start.elapsed() < KILL_PATIENCE => {}
                done => return done,
            }
        }
    }

    /// Whether any live process is here or below.
    pub fn populated(&self) -> Result<bool> {
        match self.events()? {
            Some(mut file) => populated(&mut file).map_err(at("read", &self.path)),
            None => Ok(false),
        }
    }

    fn events(&self) -> Result<Option<File>> {
        let path = self.path.join("cgroup.events");
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(e) if gone(&e) => Ok(None),
            Err(e) => Err(at("open", &path)(e)),
        }
    }

    /// Waits until no live process is here or below. The kernel tells (`cgroup.events`); nothing is
    /// polled. [`CgroupError::StillPopulated`] names who is left after `timeout`.
    pub fn wait_empty(&self, timeout: Duration) -> Result<()> {
        let Some(mut file) = self.events()? else {
            return Ok(());
        };
        let start = Instant::now();
        // Read before each wait: the kernel reports only changes since the last read.
        while populated(&mut file).map_err(at("read", &self.path))? {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                let pids = self.procs_below()?;
                return Err(CgroupError::StillPopulated {
                    path: self.path.clone(),
                    pids,
                    waited: timeout,
                });
            }
            // Rounded up, or the last fraction of a millisecond would spin.
            let millis = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
            let wait = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], wait) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(at("wait for", &self.path)(e.into())),
            }
        }
        Ok(())
    }

    /// The id that eBPF programs see of this group: on 64-bit kernels the v2 directory's inode number.
    pub fn id(&self) -> Result<u64> {
        fs::metadata(&self.path)
            .map(|m| m.ino())
            .map_err(at("stat", &self.path))
    }

    /// Processor time used by everything that ever ran here or below.
    pub fn cpu_usage(&self) -> Result<Duration> {
        let file = self.path.join("cpu.stat");
        let text = fs::read_to_string(&file).map_err(at("read", &file))?;
        Ok(Duration::from_micros(field(&text, "usage_usec").unwrap_or(0)))
    }

    /// Bytes of memory charged to this group now; `None` where no memory controller is at hand.
    pub fn memory_current(&self) -> Option<u64> {
        let v1 = self.holding("memory").map(|d| d.join("memory.usage_in_bytes"));
        let file = v1.unwrap_or_else(|| self.path.join("memory.current"));
        fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    /// How many processes of this group (a run, not an app: v1 counts where the process was) the
    /// kernel killed for want of memory. 0 where no memory controller is at hand.
    pub fn oom_kills(&self) -> u64 {
        let v1 = self.holding("memory").map(|d| d.join("memory.oom_control"));
        let file = v1.unwrap_or_else(|| self.path.join("memory.events"));
        fs::read_to_string(file)
            .ok()
            .and_then(|text| field(&text, "oom_kill"))
            .unwrap_or(0)
    }

    fn set_limits(&self, limits: &Limits) -> Result<()> {
        let text = |n: Option<u64>, none: &str| n.map_or_else(|| none.to_owned(), |n| n.to_string());
        // Rounded to the kernel's least quota, 1 ms of each period.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "float to integer saturates, and any negative number means the least quota"
        )]
        let quota = limits.cpus.map(|c| ((c * CPU_PERIOD_US as f64) as u64).max(1000));
        let v2_cpu = format!("{} {CPU_PERIOD_US}", text(quota, "max"));
        let pids = text(limits.pids, "max");
        let memory = text(limits.memory_bytes, "max");
        self.limit(
            "memory",
            limits.memory_bytes.is_some(),
            ("memory.max", &memory),
            ("memory.limit_in_bytes", &text(limits.memory_bytes, "-1")),
        )?;
        self.limit(
            "cpu",
            quota.is_some(),
            ("cpu.max", &v2_cpu),
            ("cpu.cfs_quota_us", &text(quota, "-1")),
        )?;
        self.limit(
            "pids",
            limits.pids.is_some(),
            ("pids.max", &pids),
            ("pids.max", &pids),
        )
    }

    /// Writes one limit to where its controller is. Without a controller that is an error only if
    /// something is to be limited.
    fn limit(
        &self,
        controller: &'static str,
        wanted: bool,
        v2: (&str, &str),
        v1: (&str, &str),
    ) -> Result<()> {
        let (file, value) = match self.holding(controller) {
            Some(dir) => (dir.join(v1.0), v1.1),
            None => (self.path.join(v2.0), v2.1),
        };
        if file.exists() {
            write(&file, value)
        } else if wanted {
            Err(CgroupError::NoController(controller))
        } else {
            Ok(())
        }
    }

    /// Removes the group and all below it; nothing may run there. Nothing happens if it is gone.
    pub fn remove(&self) -> Result<()> {
        for dir in self.dirs() {
            for child in self.children(dir)? {
                self.child(&child).remove()?;
            }
            match fs::remove_dir(dir) {
                Ok(()) => {}
                Err(e) if gone(&e) => {}
                Err(e) => return Err(at("remove", dir)(e)),
            }
        }
        Ok(())
    }
}

/// A group that is removed while its files are used answers ENODEV.
fn gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV)
}

fn populated(events: &mut File) -> io::Result<bool> {
    let mut text = String::new();
    let read = events.rewind().and_then(|()| events.read_to_string(&mut text));
    match read {
        Ok(_) => Ok(field(&text, "populated") == Some(1)),
        Err(e) if gone(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The number of the line `KEY NUMBER` of a flat keyed file.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests;
