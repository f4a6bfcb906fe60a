//! One agent per state directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Held while an agent, or a cleanup of what a stopped one left, works in a state directory. The kernel lets
/// go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct AgentLock {
    _file: Flock<File>,
}

/// Why the lock is not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another one has it.
    #[error("another agent (pid {pid}) works in {state_dir}; try: stop it first, or set another state_dir")]
    Held {
        /// The state directory.
        state_dir: PathBuf,
        /// What the other one wrote into the file.
        pid: String,
    },
    /// The file system refused.
    #[error("cannot lock {path} ({source}); try: run as root")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl AgentLock {
    /// Takes the lock of a state directory, which is made if need be (mode 0711: apps that drop to their own
    /// user must reach their root below it, and nobody can list it).
    ///
    /// # Errors
    /// [`LockError::Held`] at once when another process has it.
    pub fn acquire(state_dir: &Path) -> Result<AgentLock, LockError> {
        let path = state_dir.join("agent.lock");
        let io = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        if !state_dir.exists() {
            use std::os::unix::fs::DirBuilderExt;
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(state_dir)
                .map_err(io)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        match Flock::lock(file.map_err(io)?, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
                writeln!(file, "{}", std::process::id()).map_err(io)?;
                Ok(AgentLock { _file: file })
            }
            Err((file, Errno::EAGAIN)) => {
                let mut pid = String::new();
                // Only for the message: whoever holds it may not have written it yet.
                let _ = (&file).take(20).read_to_string(&mut pid);
                Err(LockError::Held {
                    state_dir: state_dir.to_owned(),
                    pid: pid.trim().to_owned(),
                })
            }
            Err((_, errno)) => Err(io(errno.into())),
        }
    }
}
