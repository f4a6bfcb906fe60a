//! The pipes that are an app's stdout and stderr.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

/// One pipe: the app's end is handed on, the shim reads the other.
#[derive(Debug)]
pub struct LogPipe {
    /// The shim's end, non-blocking.
    pub read: OwnedFd,
    /// The app's end.
    pub write: OwnedFd,
    /// Inode number, by which CRIU names the pipe.
    pub inode: u64,
}

impl LogPipe {
    /// A new pipe, both ends closed on exec.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn new() -> nix::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        fcntl(read.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let inode = nix::sys::stat::fstat(read.as_fd())?.st_ino;
        Ok(LogPipe { read, write, inode })
    }

    /// CRIU's name of this pipe.
    pub fn criu_name(inode: u64) -> String {
        format!("pipe:[{inode}]")
    }

    /// The number of the app's end.
    pub fn write_number(&self) -> i32 {
        self.write.as_raw_fd()
    }
}
