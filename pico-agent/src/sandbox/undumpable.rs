//! What the processes of an app have that no checkpoint can hold, found by looking at their descriptors and mappings,
//! so that it is known before anybody tries. Not complete: what is not known here, the dump itself finds.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

/// Something that CRIU (4.2) cannot dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undumpable {
    /// io_uring_setup(2).
    IoUring,
    /// A multipath TCP socket.
    Mptcp,
    /// perf_event_open(2).
    PerfEvent,
    /// A userfaultfd of the app's own.
    Userfaultfd,
    /// A virtual machine.
    Kvm,
}

impl Undumpable {
    /// What the owner can do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Undumpable::IoUring => {
                "let it work without io_uring (the default system call filter refuses it: seccomp = true)"
            }
            Undumpable::Mptcp => "let it listen by plain TCP (Go: GODEBUG=multipathtcp=0)",
            Undumpable::PerfEvent => "let it not measure itself by perf events",
            Undumpable::Userfaultfd => "let it not use userfaultfd",
            Undumpable::Kvm => "run it without KVM",
        }
    }

    /// By what a link in `/proc/PID/fd` or a line of `/proc/PID/maps` names.
    fn of_name(name: &str) -> Option<Self> {
        const NAMES: [(&str, Undumpable); 5] = [
            ("anon_inode:[io_uring]", Undumpable::IoUring),
            ("anon_inode:[perf_event]", Undumpable::PerfEvent),
            ("anon_inode:[userfaultfd]", Undumpable::Userfaultfd),
            ("anon_inode:kvm-vm", Undumpable::Kvm),
            ("anon_inode:kvm-vcpu", Undumpable::Kvm),
        ];
        let known = NAMES.iter().find(|(known, _)| name.contains(known));
        known.map(|(_, found)| *found)
    }
}

impl fmt::Display for Undumpable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Undumpable::IoUring => "an io_uring",
            Undumpable::Mptcp => "a multipath TCP socket",
            Undumpable::PerfEvent => "a perf event",
            Undumpable::Userfaultfd => "a userfaultfd",
            Undumpable::Kvm => "a virtual machine",
        })
    }
}

/// The first thing that cannot be dumped, with the process that has it. Processes that end meanwhile have nothing.
pub fn find(processes: &[i32]) -> Option<(i32, Undumpable)> {
    processes
        .iter()
        .find_map(|process| Some((*process, of_process(*process).ok().flatten()?)))
}

fn of_process(process: i32) -> io::Result<Option<Undumpable>> {
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        let found = of_descriptor(&entry?.path());
        if found.is_some() {
            return Ok(found);
        }
    }
    // A ring can be closed and go on being mapped.
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    Ok(maps.lines().find_map(Undumpable::of_name))
}

/// By a link in `/proc/PID/fd`; nothing of one that was closed meanwhile.
fn of_descriptor(link: &Path) -> Option<Undumpable> {
    let target = fs::read_link(link).ok()?;
    let target = target.to_string_lossy();
    if !target.starts_with("socket:") {
        return Undumpable::of_name(&target);
    }
    (protocol(link)? == "MPTCP").then_some(Undumpable::Mptcp)
}

/// The protocol of the socket behind a link in `/proc/PID/fd`, as the kernel's socket file system tells it.
fn protocol(link: &Path) -> Option<String> {
    let name = xattr::get_deref(link, "system.sockprotoname").ok()??;
    let name = name.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "tests")]
mod tests {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use super::*;

    fn of(descriptor: &impl AsRawFd) -> Option<Undumpable> {
        of_descriptor(Path::new(&format!("/proc/self/fd/{}", descriptor.as_raw_fd())))
    }

    /// `None` where the kernel does not have it.
    fn owned(raw: i32) -> Option<OwnedFd> {
        // SAFETY: a descriptor that was just made, whose only owner is the new value.
        (raw >= 0).then(|| unsafe { OwnedFd::from_raw_fd(raw) })
    }

    #[test]
    fn descriptors_that_cannot_be_dumped_are_known_by_their_links() {
        let plain = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        assert_eq!(of(&plain), None);
        // SAFETY: makes a descriptor.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP) };
        if let Some(socket) = owned(socket) {
            assert_eq!(of(&socket), Some(Undumpable::Mptcp));
        }
        let mut parameters = [0_u8; 120];
        // SAFETY: the kernel reads and writes one `io_uring_params`, which has 120 bytes.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
        if let Some(ring) = owned(i32::try_from(ring).expect("a descriptor")) {
            assert_eq!(of(&ring), Some(Undumpable::IoUring));
        }
    }

    #[test]
    fn names_are_those_of_the_kernel() {
        assert_eq!(
            Undumpable::of_name("anon_inode:[io_uring]"),
            Some(Undumpable::IoUring)
        );
        let mapped = "7f00-7f01 rw-s 10000000 00:0e 1033 anon_inode:[io_uring]";
        assert_eq!(Undumpable::of_name(mapped), Some(Undumpable::IoUring));
        assert_eq!(Undumpable::of_name("anon_inode:[eventfd]"), None);
    }
}
