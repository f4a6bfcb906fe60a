//! The keeper: a second process that holds every userfaultfd of the app.
//!
//! It does one thing: when the shim is gone, it ends every process of the app and only then lets go of the
//! descriptors. A page that the dead shim did not serve is therefore never read, not even as zeros.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::unistd::{ForkResult, Pid, fork};

use super::socket::{packet_pair, receive_with_fd, send_packet};
use crate::pager::Token;
use crate::sandbox::cgroup::Cgroup;

/// How long the keeper waits for killed processes to be gone. One that is stuck in the kernel for longer than
/// this still cannot read a page: the keeper then stays, and with it the descriptors.
const PATIENCE: Duration = Duration::from_secs(60);

/// The shim's end of a keeper.
#[derive(Debug)]
pub struct Keeper {
    socket: OwnedFd,
    pid: Pid,
}

impl Keeper {
    /// Forks a keeper for the app in `cgroup`. The calling process must have one thread.
    ///
    /// # Errors
    /// When the kernel has no process or descriptor left.
    pub fn fork(cgroup: &Cgroup) -> nix::Result<Keeper> {
        let (mine, theirs) = packet_pair()?;
        // SAFETY: the shim has a single thread, so the child's copy of every lock and of the heap is whole.
        match unsafe { fork()? } {
            ForkResult::Parent { child } => Ok(Keeper {
                socket: mine,
                pid: child,
            }),
            ForkResult::Child => {
                drop(mine);
                keep(&theirs, cgroup);
                // SAFETY: ends the process without running the shim's destructors in the child.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The socket; readable when the keeper is gone.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Lets the keeper hold `uffd` under the name of `token`.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn hold(&self, token: Token, uffd: BorrowedFd<'_>) -> nix::Result<()> {
        send_packet(
            self.socket.as_fd(),
            &token.0.to_le_bytes(),
            Some(uffd.as_raw_fd()),
        )
    }

    /// Lets the keeper close what it holds under the name of `token`.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn release(&self, token: Token) -> nix::Result<()> {
        send_packet(self.socket.as_fd(), &token.0.to_le_bytes(), None)
    }
}

fn keep(socket: &OwnedFd, cgroup: &Cgroup) {
    let _ = nix::sys::prctl::set_name(c"pico-keeper");
    close_all_but(socket.as_raw_fd());
    let mut held = HashMap::new();
    let mut token = [0; 8];
    loop {
        match receive_with_fd(socket.as_fd(), &mut token) {
            Err(nix::errno::Errno::EINTR) => {}
            Ok((8, Some(fd))) => {
                held.insert(u64::from_le_bytes(token), fd);
            }
            Ok((8, None)) => {
                held.remove(&u64::from_le_bytes(token));
            }
            // The shim is gone.
            Ok(_) | Err(_) => break,
        }
    }
    loop {
        let ended = cgroup.kill().is_ok() && cgroup.wait_empty(PATIENCE).is_ok();
        if ended || !cgroup.path().exists() {
            break;
        }
    }
}

/// Closes what the fork copied: a descriptor kept here would keep pipes and sockets of the shim open.
fn close_all_but(keep: i32) {
    let keep = keep.cast_unsigned();
    for (first, last) in [(0, keep.saturating_sub(1)), (keep + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: the owners of these descriptors are the shim's values, which this process never touches.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}
