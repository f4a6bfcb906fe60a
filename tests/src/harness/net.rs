//! A network namespace per scenario: agents of parallel tests share no device, route, rule or sysctl,
//! and what an agent forgets to take away cannot hide among the host's own.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};

/// Moves the calling thread into a new network namespace with `lo` up. Threads and programs started by
/// it afterwards are in it too.
///
/// # Errors
/// When not root.
pub fn enter_own_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)
        .context("cannot make a network namespace; scenario tests run as root: cargo xtask test")?;
    loopback_up()
}

fn loopback_up() -> Result<()> {
    // SAFETY: socket(2) takes integers only.
    let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(std::io::Error::last_os_error()).context("socket");
    }
    // SAFETY: the call just returned this descriptor, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: all-zero bytes are a valid `ifreq` (a name and a union of plain data).
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING)?;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which lives across the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(std::io::Error::last_os_error()).context("cannot bring lo up");
    }
    Ok(())
}
