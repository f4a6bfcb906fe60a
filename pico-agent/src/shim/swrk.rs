//! One CRIU service worker at work for this app.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Child;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigHandler, Signal, signal};

use super::socket::{packet_pair, receive_packet, send_packet};
use crate::criu::command::Criu;
use crate::criu::rpc::{self, Response};
use crate::sandbox::cgroup::Cgroup;

/// Lines of CRIU's log that are worth showing.
const REASON_LINES: usize = 3;

/// A running `criu swrk`.
#[derive(Debug)]
pub struct Swrk {
    socket: OwnedFd,
    child: Child,
}

/// Where a CRIU runs.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Network namespace to start it in: then it need not treat the app's as foreign.
    pub netns: &'a Path,
    /// Cgroup to start it in: sockets keep the cgroup of whoever made them.
    pub cgroup: Option<&'a Cgroup>,
    /// Descriptors it inherits, by the same numbers.
    pub inherit: &'a [RawFd],
}

impl Swrk {
    /// Starts CRIU at `place`.
    ///
    /// # Errors
    /// When it cannot be started there.
    pub fn spawn(criu: &Criu, place: Place<'_>) -> io::Result<Swrk> {
        let (socket, theirs) = packet_pair()?;
        let netns = fs::File::open(place.netns)?;
        let cgroup = place.cgroup.cloned();
        let inherit: Vec<RawFd> = place
            .inherit
            .iter()
            .copied()
            .chain([theirs.as_raw_fd()])
            .collect();
        let mut command = criu.swrk(theirs.as_raw_fd());
        let enter = move || {
            // A CRIU that goes on without the shim would work on tasks that the keeper ends.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if let Some(cgroup) = &cgroup {
                cgroup.join_self().map_err(io::Error::other)?;
            }
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            // See `hinder`. An app that is restored gets its own dispositions from its checkpoint.
            // SAFETY: no handler is installed, so nothing runs in signal context.
            unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }?;
            for fd in &inherit {
                // SAFETY: the descriptor is open in the parent, whose copy this process is until it execs.
                let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        };
        // SAFETY: the shim has one thread, so after the fork no lock is held and allocating is sound.
        unsafe { command.pre_exec(enter) };
        let child = command.stdin(std::process::Stdio::null()).spawn()?;
        Ok(Swrk { socket, child })
    }

    /// The socket on which it answers.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Makes its next write to a file fail, so that a dump ends with an error: CRIU then undoes what it did and lets the
    /// app run on, connections included, which killing it would cut.
    ///
    /// # Errors
    /// When it is gone.
    pub fn hinder(&self) -> io::Result<()> {
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: `none` is an initialised rlimit that outlives the call; the old one is not asked for.
        let set = unsafe {
            libc::prlimit(
                self.pid(),
                libc::RLIMIT_FSIZE,
                &raw const none,
                std::ptr::null_mut(),
            )
        };
        if set == 0 {
            return Ok(());
        }
        Err(io::Error::last_os_error())
    }

    /// Sends a request or an answer to a notification.
    ///
    /// # Errors
    /// When it is gone.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        Ok(send_packet(self.socket.as_fd(), message, None)?)
    }

    /// Receives what it says; `None` when it is gone.
    ///
    /// # Errors
    /// When it does not speak its protocol.
    pub fn receive(&self) -> io::Result<Option<Response>> {
        let mut buffer = [0; 4096];
        match receive_packet(self.socket.as_fd(), &mut buffer) {
            Ok(0) | Err(nix::errno::Errno::ECONNRESET) => Ok(None),
            Ok(len) => rpc::response(&buffer[..len]).map(Some).map_err(io::Error::other),
            Err(error) => Err(error.into()),
        }
    }
}

/// The reason of a failure: what CRIU said itself, and the last errors of its log.
pub fn failure(log: &Path, said: &str) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let errors: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once("Error ").map(|(_, error)| error.trim()))
        .collect();
    let first = errors
        .iter()
        .take(REASON_LINES)
        .copied()
        .collect::<Vec<_>>()
        .join("; ");
    match (first.is_empty(), said.is_empty()) {
        (true, true) => format!("CRIU gave no reason; its log is {}", log.display()),
        (true, false) => said.to_owned(),
        (false, _) => format!("{first} (CRIU's log: {})", log.display()),
    }
}
