//! What an app lives in: namespaces, control group, root file system, addresses, rights.
//!
//! Owns how each of them is made, entered and taken away, and the order in which a fresh process goes
//! through them before it becomes the app ([`process`]). Must not know why an app starts or stops, nor
//! anything of checkpoints; but nothing it makes may be beyond what CRIU can save.
//! kernel-notes/sandbox.md tells what is isolated, what is not, and why.

pub mod caps;
pub mod cgroup;
mod mask;
pub mod net;
pub mod own_exe;
pub mod process;
pub mod rootfs;
mod seccomp;
pub mod sockets;
pub mod undumpable;
pub mod users;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use cgroup::{Cgroup, CgroupError, CgroupTree, Limits};
pub use mask::Mask;
pub use process::{exec_in_sandbox, read_report};
pub use rootfs::{RootSpec, abandon_root, forget_lower, mount_root, seed, unmount_root};

/// Everything that a fresh process needs to know to become an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Host name inside.
    pub hostname: String,
    /// The root file system, mounted already.
    pub root: RootSpec,
    /// File that the network namespace is bound to.
    pub netns: PathBuf,
    /// The run's control group.
    pub cgroup: Cgroup,
    /// Program and arguments. A name without a slash is looked up in `PATH`.
    pub command: Vec<String>,
    /// The whole environment, but for `PATH`, `HOME`, `USER` and `LOGNAME`, which are added if absent.
    pub env: Vec<(String, String)>,
    /// As whom: `NAME`, `UID`, `NAME:GROUP` or `UID:GID`; root if absent.
    pub user: Option<String>,
    /// Where the command starts.
    pub workdir: PathBuf,
    /// Capabilities besides [`caps::DEFAULT`].
    pub capabilities: Vec<String>,
    /// Whether programs with set-user-ID and the like gain nothing.
    pub no_new_privs: bool,
    /// Whether the system call filter is put on.
    pub seccomp: bool,
}

/// Why a sandbox could not be made, or a process in it not started.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// See [`CgroupError`].
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// See [`caps::CapsError`].
    #[error(transparent)]
    Caps(#[from] caps::CapsError),
    /// See [`users::UserError`].
    #[error(transparent)]
    User(#[from] users::UserError),
    /// A step on a file refused.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A step without a file refused.
    #[error("cannot {action}: {source}")]
    Step {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A root that is not there.
    #[error("the root directory {} does not exist; make it, or correct `root` of the app", .0.display())]
    NoRoot(PathBuf),
    /// The directory below the writable layer is another one than when the layer was begun.
    #[error(
        "the root directory {} is not the one that the app's files were written over (replaced, or moved to \
         another disk); put the old one back, or restart the app to go on over the new one",
        .0.display()
    )]
    RootReplaced(PathBuf),
    /// The writable layer is mounted already.
    #[error("{} is in use by another mount; the processes of the app's last run must be gone first", .0.display())]
    RootBusy(PathBuf),
    /// A seed that does not fit the root, or cannot be copied.
    #[error("cannot copy {} of the seed: {why}", path.display())]
    Seed {
        /// Below the seed directory.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: &'static str,
    },
    /// The command cannot be run.
    #[error("command {command} {why}")]
    Command {
        /// As the owner wrote it.
        command: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Something in the specification that the kernel cannot take.
    #[error("{what} of the app {why}")]
    Spec {
        /// Which part.
        what: &'static str,
        /// What is wrong, and what to do.
        why: &'static str,
    },
    /// What the process that was to become the app said before it ended.
    #[error("{0}")]
    Start(String),
}

impl SandboxError {
    /// For `map_err`: a step on a file.
    fn file<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> SandboxError {
        let path = path.into();
        move |e| SandboxError::File {
            action,
            path,
            source: e.into(),
        }
    }

    /// For `map_err`: a step without a file.
    fn step<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> SandboxError {
        move |e| SandboxError::Step {
            action,
            source: e.into(),
        }
    }
}
