//! BPF objects of a process, and whether they still exist when it is gone.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

/// One program, map or link, by the kernel's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BpfObject {
    kind: Kind,
    id: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Program,
    Map,
    Link,
}

impl std::fmt::Display for BpfObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BPF {:?} {}", self.kind, self.id)
    }
}

/// What a process holds descriptors of, from `/proc/PID/fdinfo`.
///
/// # Errors
/// When the process is gone or not ours to read.
pub fn held_by(pid: u32) -> Result<BTreeSet<BpfObject>> {
    let dir = format!("/proc/{pid}/fdinfo");
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot read {dir}"))? {
        // A descriptor may be closed between the listing and the reading.
        let Ok(text) = std::fs::read_to_string(entry?.path()) else {
            continue;
        };
        for (key, kind) in [
            ("prog_id:", Kind::Program),
            ("map_id:", Kind::Map),
            ("link_id:", Kind::Link),
        ] {
            let ids = text
                .lines()
                .filter_map(|line| line.strip_prefix(key)?.trim().parse().ok());
            found.extend(ids.map(|id| BpfObject { kind, id }));
        }
    }
    Ok(found)
}

/// Whether the kernel still has the object.
///
/// # Errors
/// When it refuses the question.
pub fn exists(object: BpfObject) -> Result<bool> {
    // linux/bpf.h, enum bpf_cmd.
    let command = match object.kind {
        Kind::Program => 13,
        Kind::Map => 14,
        Kind::Link => 30,
    };
    // The start of `union bpf_attr` for BPF_*_GET_FD_BY_ID: id, next_id, open_flags.
    let attributes = [object.id, 0, 0];
    // SAFETY: the kernel reads exactly the 12 bytes it is told of.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), 12) };
    if fd >= 0 {
        // SAFETY: the call just returned this descriptor, and nobody else has it.
        unsafe { libc::close(i32::try_from(fd)?) };
        return Ok(true);
    }
    let error = std::io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOENT) {
        Ok(false)
    } else {
        Err(error).context("bpf(2)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::time::Duration;

    #[test]
    fn a_map_is_found_while_it_lives_and_not_after() -> Result<()> {
        // BPF_MAP_CREATE: type (array), key size, value size, entries, flags.
        let attributes = [2_u32, 4, 4, 1, 0];
        // SAFETY: the kernel reads exactly the 20 bytes it is told of.
        let raw = unsafe { libc::syscall(libc::SYS_bpf, 0, attributes.as_ptr(), 20) };
        anyhow::ensure!(raw >= 0, "cannot make a map: {}", std::io::Error::last_os_error());
        // SAFETY: the call just returned this descriptor, and nobody else has it.
        let map = unsafe { OwnedFd::from_raw_fd(i32::try_from(raw)?) };
        let held = held_by(std::process::id())?;
        let object = *held
            .iter()
            .find(|object| object.kind == Kind::Map)
            .context("map not seen")?;
        assert!(exists(object)?);
        drop(map);
        crate::harness::until("map freed", Duration::from_secs(5), || {
            Ok((!exists(object)?).then_some(()))
        })
    }
}
