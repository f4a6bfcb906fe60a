//! What all apps of an agent share: the gate, the probes, the store, the cgroup tree, and how shims are started.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::cache::Cache;
use super::costs::Measured;
use super::traces::Traces;
use crate::criu::command::Criu;
use crate::fence::Fence;
use crate::gate::Gate;
use crate::hub::Changes;
use crate::metrics::Metrics;
use crate::probes::Probes;
use crate::sandbox::CgroupTree;
use crate::store::Store;

/// The agent's part of the host.
pub struct Host {
    /// The agent's state directory.
    pub state_dir: PathBuf,
    /// Tells several agents on one host apart.
    pub instance: String,
    /// Holds packets of apps that sleep.
    pub gate: Gate,
    /// Sees what apps do.
    pub probes: Probes,
    /// Object storage, if there is one.
    pub store: Option<Store>,
    /// Where cgroups are made.
    pub cgroups: CgroupTree,
    /// How CRIU is started.
    pub criu: Criu,
    /// What sleeping apps may keep on the disk.
    pub cache: Cache,
    /// How many shims may stand by for warm apps.
    pub standbys: Arc<Semaphore>,
    /// The `pico-shim` program.
    pub shim: PathBuf,
    /// Paths of the host that no app may see.
    pub hidden: Vec<PathBuf>,
    /// Keeps apps from this host, and from what others do not publish.
    pub fence: Fence,
    /// What is counted.
    pub metrics: Metrics,
    /// What tracing tells, on its way to the apps.
    pub traces: Traces,
    /// What pages cost here.
    pub costs: Measured,
    /// Whether it can be seen here which pages are used.
    pub sees_accessed: bool,
    /// Which apps look different than when they were last reported.
    pub changes: Arc<Changes>,
}

impl Host {
    /// The tmpfs that CRIU keeps what it learned of the kernel on.
    pub fn kernel_cache(&self) -> PathBuf {
        self.state_dir.join("kdat")
    }
}
