//! Waits until something in a directory of log files changes. Needs the agent's runtime.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// inotify(7) on one directory. Open it before the first read: nothing is missed then.
#[derive(Debug)]
pub struct Watcher {
    inotify: AsyncFd<Descriptor>,
}

#[derive(Debug)]
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watcher {
    /// Watches for writes, new files and rotations.
    ///
    /// # Errors
    /// ENOENT when there is no such directory; what the kernel says when its inotify limits are reached.
    pub fn new(dir: &Path) -> io::Result<Watcher> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let changes = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(dir, changes)?;
        // SAFETY: `Descriptor` owns the inotify descriptor, never replaces it, and outlives its registration.
        let inotify = unsafe { AsyncFd::register(Descriptor(inotify)) }?;
        Ok(Watcher { inotify })
    }

    /// Returns when something has changed since the last return. Safe to drop at any point.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match ready.get_inner().0.read_events() {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
