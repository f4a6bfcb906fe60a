//! Where the control group file systems are mounted, from the text of `/proc/self/mountinfo`. Pure.

use std::path::PathBuf;

/// Controllers we set limits with. v2 accounts processor time without any controller.
pub const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// The v1 hierarchy by which systemd follows services on old hosts: a shim that stayed in the agent's
/// group there would be killed with the agent.
const SYSTEMD: &str = "name=systemd";

/// One v1 hierarchy that we use beside v2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V1 {
    pub mount: PathBuf,
    /// Controllers (or `name=systemd`) that it holds.
    pub holds: Vec<String>,
}

/// Where the control group file systems are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounts {
    pub v2: PathBuf,
    pub v1: Vec<V1>,
}

impl Mounts {
    /// Reads the text of `/proc/self/mountinfo` (format: proc_pid_mountinfo(5)). Of several mounts of
    /// the same hierarchy the first is taken.
    pub fn parse(mountinfo: &str) -> Option<Mounts> {
        let mut v2 = None;
        let mut v1: Vec<V1> = Vec::new();
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else {
                continue;
            };
            let (Some(mount), Some(kind)) = (before.split(' ').nth(4), after.split(' ').next()) else {
                continue;
            };
            let mount = PathBuf::from(unescape(mount));
            match kind {
                "cgroup2" => _ = v2.get_or_insert(mount),
                "cgroup" => {
                    let options = after.rsplit(' ').next().unwrap_or_default();
                    let holds: Vec<String> = options
                        .split(',')
                        .filter(|o| CONTROLLERS.contains(o) || *o == SYSTEMD)
                        .filter(|o| !v1.iter().any(|v| v.holds.iter().any(|h| h == o)))
                        .map(str::to_owned)
                        .collect();
                    if !holds.is_empty() {
                        v1.push(V1 { mount, holds });
                    }
                }
                _ => {}
            }
        }
        Some(Mounts { v2: v2?, v1 })
    }
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const HYBRID: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
33 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:1 - cgroup cgroup rw,cpu,cpuacct
36 31 0:32 / /sys/fs/cgroup/mem\\040ory rw,relatime - cgroup cgroup rw,memory
37 31 0:32 / /mnt/again rw,relatime - cgroup cgroup rw,memory
38 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
broken line";

    #[test]
    fn mounts_are_found_on_hybrid_and_pure_hosts() {
        let hybrid = Mounts::parse(HYBRID).unwrap();
        assert_eq!(hybrid.v2, Path::new("/sys/fs/cgroup/unified"));
        let v1: Vec<(&str, &str)> = hybrid
            .v1
            .iter()
            .map(|v| (v.mount.to_str().unwrap(), v.holds[0].as_str()))
            .collect();
        let want = [
            ("/sys/fs/cgroup/cpu,cpuacct", "cpu"),
            ("/sys/fs/cgroup/mem ory", "memory"),
            ("/sys/fs/cgroup/systemd", "name=systemd"),
        ];
        assert_eq!(v1, want);
        let pure = Mounts::parse("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw,nsdelegate").unwrap();
        assert_eq!(
            pure,
            Mounts {
                v2: "/sys/fs/cgroup".into(),
                v1: Vec::new()
            }
        );
        assert_eq!(Mounts::parse(HYBRID.lines().next().unwrap()), None);
    }
}
