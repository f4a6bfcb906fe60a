//! What this host has and lacks for the agent: one row per need, with its value and the exact command that
//! mends it. Tries things where reading is not enough, and leaves nothing behind. Knows no app.

mod probe;

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config;
use crate::criu::command::{Criu, has_cap_sys_resource};
use crate::probes::{self, Capabilities, PortSource};
use crate::units::format_bytes;

/// Everything needed works from here on (userfaultfd events, overlayfs options, `clone3`, pidfd).
const MIN_KERNEL: (u32, u32) = (5, 10);
/// CRIUs before this one fail on new kernels; see kernel-notes/criu.md.
const MIN_CRIU: (u32, u32) = (4, 0);
/// From this kernel on CRIU before [`CRIU_FOR_NEW_KERNELS`] fails to dump TCP sockets (SO_PASSCRED).
const NEW_KERNEL: (u32, u32) = (6, 16);
const CRIU_FOR_NEW_KERNELS: (u32, u32) = (4, 2);
/// Free space in the state directory below which to warn, and to fail.
const FREE_SPACE: (u64, u64) = (2 << 30, 256 << 20);
/// Capabilities without which nothing works.
const NEEDED_CAPABILITIES: [caps::Capability; 8] = [
    caps::Capability::CAP_SYS_ADMIN,
    caps::Capability::CAP_NET_ADMIN,
    caps::Capability::CAP_SYS_PTRACE,
    caps::Capability::CAP_SETUID,
    caps::Capability::CAP_SETGID,
    caps::Capability::CAP_CHOWN,
    caps::Capability::CAP_DAC_OVERRIDE,
    caps::Capability::CAP_KILL,
];

/// How a row fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As needed.
    Ok,
    /// It works, but worse.
    Warn,
    /// It does not work.
    Fail,
}

impl Verdict {
    /// As the API has it.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        }
    }
}

/// One need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What is needed, in kebab-case: stable, for programs.
    pub check: &'static str,
    /// How it fares.
    pub verdict: Verdict,
    /// What was found.
    pub value: String,
    /// What to do; empty when nothing is to be done.
    pub fix: String,
}

impl Row {
    fn ok(check: &'static str, value: impl Into<String>) -> Row {
        Row {
            check,
            verdict: Verdict::Ok,
            value: value.into(),
            fix: String::new(),
        }
    }

    fn warn(check: &'static str, value: impl Into<String>, fix: impl Into<String>) -> Row {
        Row {
            check,
            verdict: Verdict::Warn,
            value: value.into(),
            fix: fix.into(),
        }
    }

    fn fail(check: &'static str, value: impl Into<String>, fix: impl Into<String>) -> Row {
        Row {
            check,
            verdict: Verdict::Fail,
            value: value.into(),
            fix: fix.into(),
        }
    }
}

/// What to look at.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Where the state would lie; need not exist yet.
    pub state_dir: PathBuf,
    /// Where CRIU may be.
    pub criu: Vec<PathBuf>,
    /// The shim.
    pub shim: PathBuf,
    /// The library that stands in for CAP_SYS_RESOURCE.
    pub preload: PathBuf,
}

impl Default for Inputs {
    fn default() -> Self {
        Inputs {
            state_dir: config::DEFAULT_STATE_DIR.into(),
            criu: config::criu_candidates(None),
            shim: config::beside_agent("pico-shim"),
            preload: config::beside_agent("libpico_preload.so"),
        }
    }
}

impl Inputs {
    /// What a configuration names.
    pub fn of(config: &config::Config) -> Self {
        Inputs {
            state_dir: config.state_dir.clone(),
            criu: config.criu_candidates(),
            shim: config.shim(),
            ..Inputs::default()
        }
    }
}

/// The worst of the rows.
pub fn worst(rows: &[Row]) -> Verdict {
    rows.iter().map(|row| row.verdict).max().unwrap_or(Verdict::Ok)
}

/// Looks at all but the store, which takes a connection: see [`store`].
pub fn examine(inputs: &Inputs) -> Vec<Row> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let state = nearest_directory(&inputs.state_dir);
    let mut rows = vec![
        kernel_row(kernel.trim()),
        btf_row(Path::new("/sys/kernel/btf/vmlinux")),
    ];
    rows.push(capabilities_row());
    rows.push(cgroup_row(
        &fs::read_to_string("/proc/self/mounts").unwrap_or_default(),
    ));
    rows.push(userfaultfd_row());
    rows.push(tun_row());
    rows.push(overlay_row(&state));
    rows.push(criu_row(inputs, kernel.trim()));
    rows.push(sys_resource_row(inputs));
    rows.extend(tracing_rows());
    rows.push(cgroup_skb_row());
    rows.extend(forwarding_rows());
    rows.extend(state_dir_rows(&state));
    rows.push(match inputs.shim.is_file() {
        true => Row::ok("shim", inputs.shim.display().to_string()),
        false => Row::fail(
            "shim",
            format!("there is no {}", inputs.shim.display()),
            "install pico-shim beside pico-agent, or name it by shim = \"PATH\" in agent.toml",
        ),
    });
    rows
}

/// The row of the store, from what trying it gave: its name, or why it does not answer.
pub fn store(tried: Result<String, String>) -> Row {
    match tried {
        Ok(value) => Row::ok("store", value),
        Err(why) => Row::fail(
            "store",
            why,
            "start it (pico-hub store --dir DIR), or correct [store]",
        ),
    }
}

/// The first two numbers of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((
        numbers.next()?.ok()?,
        numbers.next().and_then(Result::ok).unwrap_or(0),
    ))
}

fn kernel_row(release: &str) -> Row {
    let (major, minor) = MIN_KERNEL;
    match version(release) {
        Some(found) if found >= MIN_KERNEL => Row::ok("kernel", release),
        _ => Row::fail("kernel", release, format!("boot Linux {major}.{minor} or newer")),
    }
}

fn btf_row(path: &Path) -> Row {
    match fs::metadata(path) {
        Ok(metadata) => Row::ok(
            "btf",
            format!("{} ({})", path.display(), format_bytes(metadata.len())),
        ),
        Err(error) => Row::fail(
            "btf",
            error.to_string(),
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y",
        ),
    }
}

fn capabilities_row() -> Row {
    let missing: Vec<String> = NEEDED_CAPABILITIES
        .into_iter()
        .filter(|wanted| !caps::has_cap(None, caps::CapSet::Effective, *wanted).unwrap_or(false))
        .map(|missing| missing.to_string())
        .collect();
    if missing.is_empty() {
        return Row::ok("capabilities", "all that are needed");
    }
    let fix = if nix::unistd::geteuid().is_root() {
        "give them to the container or service that this runs in"
    } else {
        "run as root: sudo pico-agent doctor"
    };
    Row::fail("capabilities", format!("without {}", missing.join(", ")), fix)
}

/// From the lines of /proc/self/mounts.
fn cgroup_row(mounts: &str) -> Row {
    let fields = || mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let fix = "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified";
    let Some(unified) = fields().find(|mount| mount.get(2) == Some(&"cgroup2")) else {
        return Row::fail("cgroup-v2", "not mounted", fix);
    };
    let at = unified.get(1).copied().unwrap_or_default();
    let in_v2 = fs::read_to_string(Path::new(at).join("cgroup.controllers")).unwrap_or_default();
    let in_v1 = |controller: &str| {
        fields().any(|mount| {
            mount.get(2) == Some(&"cgroup")
                && mount
                    .get(3)
                    .is_some_and(|options| options.split(',').any(|option| option == controller))
        })
    };
    let (mut have, mut missing) = (Vec::new(), Vec::new());
    for controller in ["memory", "cpu", "pids"] {
        if in_v2.split_whitespace().any(|found| found == controller) {
            have.push(controller.to_owned());
        } else if in_v1(controller) {
            have.push(format!("{controller} (v1)"));
        } else {
            missing.push(controller);
        }
    }
    let value = format!("{at}: {}", have.join(", "));
    if missing.is_empty() {
        return Row::ok("cgroup-v2", value);
    }
    let value = format!(
        "{value}; without {}: limits of that kind are not kept",
        missing.join(", ")
    );
    Row::warn(
        "cgroup-v2",
        value,
        "boot without cgroup_disable=, and with these controllers in the kernel",
    )
}

fn userfaultfd_row() -> Row {
    match probe::userfaultfd() {
        Ok(()) => Row::ok(
            "userfaultfd",
            "works, with the events of fork, remap, remove and unmap",
        ),
        Err(why) => Row::fail(
            "userfaultfd",
            why,
            "run as root with CAP_SYS_PTRACE, on a kernel built with CONFIG_USERFAULTFD=y",
        ),
    }
}

fn tun_row() -> Row {
    let path = "/dev/net/tun";
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Row::ok("tun", path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Row::fail(
            "tun",
            format!("there is no {path}"),
            "modprobe tun; mkdir -p /dev/net && mknod /dev/net/tun c 10 200",
        ),
        Err(error) => Row::fail("tun", format!("{path}: {error}"), "modprobe tun, and run as root"),
    }
}

fn overlay_row(state: &Path) -> Row {
    let check = "overlayfs";
    match probe::overlay(state) {
        Ok(()) => Row::ok(check, "works with index=on,nfs_export=on"),
        Err(why) => Row::fail(
            check,
            format!("in {}: {why}", state.display()),
            "modprobe overlay; set state_dir to a directory on ext4, xfs or btrfs (not on an overlay)",
        ),
    }
}

fn criu_row(inputs: &Inputs, kernel: &str) -> Row {
    let setup = "cargo xtask setup, or criu = \"PATH\" in agent.toml, or PICO_CRIU=PATH";
    let Some(criu) = inputs.criu.iter().find_map(|path| Criu::at(path).ok()) else {
        let looked: Vec<String> = inputs
            .criu
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        return Row::fail("criu", format!("none at {}", looked.join(", ")), setup);
    };
    let found = match criu.version() {
        Ok(found) => found,
        Err(error) => return Row::fail("criu", error.to_string(), setup),
    };
    let value = format!("{found} ({})", criu.program().display());
    let number = version(&found).unwrap_or((0, 0));
    let new_kernel = version(kernel).is_some_and(|kernel| kernel >= NEW_KERNEL);
    if number < MIN_CRIU || (new_kernel && number < CRIU_FOR_NEW_KERNELS) {
        return Row::fail("criu", format!("{value} is too old for Linux {kernel}"), setup);
    }
    Row::ok("criu", value)
}

fn sys_resource_row(inputs: &Inputs) -> Row {
    let check = "cap-sys-resource";
    if has_cap_sys_resource() {
        return Row::ok(check, "held");
    }
    let library = inputs.preload.display();
    match inputs.preload.is_file() {
        true => Row::ok(check, format!("missing; {library} answers for it")),
        false => Row::fail(
            check,
            format!("missing, and there is no {library}: apps of other users could not be dumped"),
            "cargo xtask build, or install libpico_preload.so beside pico-agent",
        ),
    }
}

/// The rows of [`tracing_rows`].
const TRACING_CHECKS: [&str; 3] = ["tracepoints", "request-ports", "accessed-pages"];

/// What of tracing works, by trying it. Apps wake without it, only slower: nothing is learned of what they touch.
fn tracing_rows() -> Vec<Row> {
    let said = |error: &probes::ProbeError| {
        let cause = std::error::Error::source(error).map_or(String::new(), |cause| format!(" ({cause})"));
        format!("{error}{cause}")
    };
    let works = match Capabilities::probe() {
        Ok(works) => works,
        Err(error) => {
            let fix = "as it says; until then nothing is learned of what apps touch";
            return TRACING_CHECKS
                .map(|check| Row::warn(check, said(&error), fix))
                .into();
        }
    };
    let faults = works.user_faults.and(works.kernel_faults);
    let [tracepoints, request_ports, accessed_pages] = TRACING_CHECKS;
    vec![
        match faults {
            Ok(()) => Row::ok(
                tracepoints,
                "page faults are seen, in user mode and in system calls",
            ),
            Err(error) => Row::warn(
                tracepoints,
                said(&error),
                "boot an x86-64 kernel with CONFIG_BPF_EVENTS=y; until then the pager alone sees faults",
            ),
        },
        match works.ports {
            Ok(PortSource::Sockets) => Row::ok(request_ports, "by tracepoints of the socket layer"),
            Ok(PortSource::SystemCalls) => Row::ok(
                request_ports,
                "by system calls; Linux 6.3 has tracepoints that cost less",
            ),
            Err(error) => Row::warn(
                request_ports,
                said(&error),
                "boot a kernel with CONFIG_DEBUG_INFO_BTF=y; until then an app's ports are not told apart",
            ),
        },
        match works.accessed {
            Ok(()) => Row::ok(accessed_pages, "read from page tables"),
            Err(error) => Row::warn(
                accessed_pages,
                said(&error),
                "nothing; now and then a wake installs pages on fault instead of ahead, to see what is used",
            ),
        },
    ]
}

fn cgroup_skb_row() -> Row {
    let fix = "run as root with CAP_BPF and CAP_NET_ADMIN, on a kernel built with CONFIG_CGROUP_BPF=y";
    match aya::sys::is_program_supported(aya::programs::ProgramType::CgroupSkb) {
        Ok(true) => Row::ok("ebpf-cgroup-skb", "works"),
        Ok(false) => Row::fail(
            "ebpf-cgroup-skb",
            "this kernel does not know the program type",
            fix,
        ),
        Err(error) => Row::fail("ebpf-cgroup-skb", error.to_string(), fix),
    }
}

fn forwarding_rows() -> impl Iterator<Item = Row> {
    [
        ("ip-forward", "/proc/sys/net/ipv4/ip_forward"),
        ("ipv6-forward", "/proc/sys/net/ipv6/conf/all/forwarding"),
    ]
    .into_iter()
    .map(|(check, path)| {
        let value = fs::read_to_string(path).unwrap_or_default();
        let writable = fs::OpenOptions::new().write(true).open(path).is_ok();
        match (value.trim(), writable) {
            ("1", _) => Row::ok(check, "on"),
            ("0", true) => Row::ok(check, "off; the agent turns it on"),
            ("0", false) => Row::fail(
                check,
                "off, and not for us to change",
                format!("echo 1 > {path}, as root"),
            ),
            _ => Row::warn(
                check,
                format!("there is no {path}"),
                "boot a kernel with this protocol",
            ),
        }
    })
}

fn state_dir_rows(state: &Path) -> Vec<Row> {
    let mut rows = Vec::new();
    let at = state.display();
    rows.push(match probe::in_memory(state) {
        Ok(None) => Row::ok("state-dir", format!("{at} is on a disk")),
        Ok(Some(kind)) => Row::warn(
            "state-dir",
            format!("{at} is on {kind}: sleeping apps would take memory, and be lost at a reboot"),
            "set state_dir in agent.toml to a directory on a disk",
        ),
        Err(error) => Row::fail(
            "state-dir",
            format!("{at}: {error}"),
            "set state_dir in agent.toml",
        ),
    });
    let (warn, fail) = FREE_SPACE;
    let fix = "free some, or set state_dir in agent.toml to a larger disk";
    rows.push(match probe::free_space(state) {
        Ok(free) => {
            let value = format!("{} in {at}", format_bytes(free));
            match free {
                free if free < fail => Row::fail("free-space", value, fix),
                free if free < warn => Row::warn("free-space", value, fix),
                _ => Row::ok("free-space", value),
            }
        }
        Err(error) => Row::fail("free-space", error.to_string(), fix),
    });
    rows
}

/// The directory, or the nearest one above it that exists: it would be made there.
fn nearest_directory(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|ancestor| ancestor.is_dir())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

#[cfg(test)]
mod tests;
