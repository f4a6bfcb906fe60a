//! Where an app's things lie below the state directory. Names only; makes and removes nothing.

use std::path::{Path, PathBuf};

/// The paths of one app.
#[derive(Debug, Clone)]
pub struct AppPaths {
    /// `STATE/apps/NAME`: all of it but the network namespace.
    pub dir: PathBuf,
    /// File that the network namespace is bound to.
    pub netns: PathBuf,
}

impl AppPaths {
    /// The paths of app `name` in `state_dir`.
    pub fn new(state_dir: &Path, name: &str) -> Self {
        AppPaths {
            dir: state_dir.join("apps").join(name),
            netns: state_dir.join("netns").join(name),
        }
    }

    /// The writable layer.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// Overlayfs's own directory.
    pub fn overlay_work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// Where the root is mounted.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The shim's socket.
    pub fn shim_socket(&self) -> PathBuf {
        self.dir.join("shim.sock")
    }

    /// What lives as long as one shim.
    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// What the app printed.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Local copies of page objects.
    pub fn pages(&self) -> PathBuf {
        self.dir.join("pages")
    }

    /// The block sums of all page objects that the manifest of `generation` names.
    pub fn sums(&self, generation: u64) -> PathBuf {
        self.pages().join(format!("{generation}.sums"))
    }

    /// All local checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.dir.join("ckpt")
    }

    /// One complete local checkpoint.
    pub fn checkpoint(&self, generation: u64) -> PathBuf {
        self.checkpoints().join(generation.to_string())
    }

    /// One that is being made or fetched.
    pub fn unfinished(&self, generation: u64) -> PathBuf {
        self.checkpoints().join(format!("{generation}.tmp"))
    }

    /// Copy of the manifest in the store: part of the wake record.
    pub fn manifest(&self) -> PathBuf {
        self.dir.join("manifest.json")
    }

    /// Manifests whose way to the store has no known end yet.
    pub fn unanswered(&self) -> PathBuf {
        self.dir.join("unanswered")
    }

    /// What is learned of the pages that the app's requests need.
    pub fn active_sets(&self) -> PathBuf {
        self.dir.join("activesets")
    }

    /// The newest recorded trace of the app.
    pub fn trace(&self) -> PathBuf {
        self.dir.join("trace")
    }

    /// Objects of checkpoints on their way to or from the store, or kept for a wake from cold.
    pub fn transfers(&self) -> PathBuf {
        self.dir.join("transfer")
    }

    /// Those of one checkpoint.
    pub fn transfer(&self, generation: u64) -> PathBuf {
        self.transfers().join(generation.to_string())
    }
}
