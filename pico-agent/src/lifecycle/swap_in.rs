//! From a checkpoint to a running app.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tokio::sync::mpsc;

use super::app::{App, now, wait_until};
use super::learning;
use super::record::{Phase, Wake};
use super::state::{Event, Tier};
use super::transfer::{Remote, TransferError};
use crate::activeset::PageId;
use crate::checkpoint::index::{ObjectId, PAGE_SIZE, PageIndex};
use crate::checkpoint::local::{IMAGES_DIR, INDEX_FILE};
use crate::config::AfterCrash;
use crate::control::protocol::{ErrorCode, Failure};
use crate::failpoint;
use crate::port::Port;
use crate::sandbox::Cgroup;
use crate::shim::client::ShimClient;
use crate::shim::protocol::{self as shim, Request, ShimConfig};
use crate::units::Timestamp;

/// How long a block that a fault waits for is tried to be fetched before the app is ended.
const FETCH_PATIENCE: Duration = Duration::from_secs(60);
/// Predicted pages that lie nearer to each other than this are read as one: a seek costs as much.
const MERGED_PAGES: u64 = 8;
/// Between two tries to fetch a block that the store did not give.
const FETCH_PAUSE: Duration = Duration::from_millis(500);

/// Why an app did not come to run.
pub(super) struct NotRunning {
    reason: String,
    /// Trying again cannot help until its owner does something.
    permanent: bool,
}

impl NotRunning {
    pub(super) fn new(reason: impl std::fmt::Display) -> Self {
        NotRunning {
            reason: reason.to_string(),
            permanent: false,
        }
    }

    pub(super) fn reason(&self) -> &str {
        &self.reason
    }
}

/// A shim in the cgroup of a new run of its app, which was asked nothing yet.
pub(super) struct Run {
    pub client: ShimClient,
    pub events: mpsc::UnboundedReceiver<shim::Event>,
    pub cgroup: Cgroup,
}

/// Measures the steps of a wake.
struct Stopwatch {
    began: Instant,
    last: Instant,
    phases: Vec<Phase>,
}

impl Stopwatch {
    fn new() -> Self {
        let began = Instant::now();
        Stopwatch {
            began,
            last: began,
            phases: Vec::new(),
        }
    }

    fn lap(&mut self, name: &str) {
        let ms = self.last.elapsed().as_secs_f64() * 1000.0;
        self.phases.push(Phase {
            name: name.to_owned(),
            ms,
        });
        self.last = Instant::now();
    }
}

impl App {
    /// Swaps the app in and lets its packets through.
    pub(super) async fn wake(&mut self, trigger: &str) -> Result<(), Failure> {
        let Some(from) = self.state().checkpoint() else {
            let state = self.state();
            let failure = self.wrong_state(format!("an app that is {state} has no checkpoint to wake from"));
            return Err(failure.hint(format!("pico-agent app start {}", self.config.name)));
        };
        let at = Timestamp::now();
        self.settle_upload(true).await;
        self.apply(Event::Wake, &format!("woken by {trigger}"));
        self.expected = false;
        self.meter.reset();
        self.sources.close();
        let mut watch = Stopwatch::new();
        match self.swap_in_while_they_wait(from, trigger, &mut watch).await {
            Ok(()) => {
                let counters = &mut self.record.counters;
                match from {
                    Tier::Warm => counters.wakes_warm += 1,
                    Tier::Cold => counters.wakes_cold += 1,
                }
                let total_ms = watch.began.elapsed().as_secs_f64() * 1000.0;
                let phases = watch.phases.iter().map(|phase| (phase.name.as_str(), phase.ms));
                self.host
                    .metrics
                    .woken(trigger, phases.chain([("total", total_ms)]));
                let (fetched_bytes, s3_gets) = self.meter.read();
                self.record.last_wake = Some(Wake {
                    at,
                    tier: from,
                    trigger: trigger.to_owned(),
                    total_ms,
                    phases: watch.phases,
                    fetched_bytes,
                    s3_gets,
                    faults: 0,
                    pages_installed: 0,
                    pages_ahead: 0,
                    prefetch: None,
                });
                self.apply(Event::Woken, &format!("woken by {trigger}"));
                self.save();
                Ok(())
            }
            Err(failed) => {
                self.record.counters.failed_wakes += 1;
                self.host.metrics.not_woken(trigger);
                self.fail("wake", &failed.reason);
                self.leave_run().await;
                self.end_stray_runs().await;
                if failed.permanent {
                    self.apply(Event::WakeRefused, &failed.reason);
                } else {
                    self.back_off_wake();
                    self.apply(Event::WakeFailed, &failed.reason);
                }
                self.save();
                let message = format!("'{}' could not be woken ({})", self.config.name, failed.reason);
                Err(Failure::new(ErrorCode::RestoreFailed, message))
            }
        }
    }

    /// A swap-in; whoever waits too long for it is told that nobody is there, while it goes on.
    async fn swap_in_while_they_wait(
        &mut self,
        from: Tier,
        trigger: &str,
        watch: &mut Stopwatch,
    ) -> Result<(), NotRunning> {
        self.told = None;
        let deadline = self.begin_waiting();
        let (gate, name) = (self.host.gate.clone(), self.config.name.clone());
        let connections = self.sleeping_connections();
        let swap_in = self.swap_in(from, trigger.parse().ok(), watch);
        tokio::pin!(swap_in);
        tokio::select! {
            biased;
            outcome = &mut swap_in => return outcome,
            () = wait_until(deadline) => {}
        }
        gate.refuse(&name, connections).await;
        swap_in.await
    }

    async fn swap_in(
        &mut self,
        from: Tier,
        port: Option<Port>,
        watch: &mut Stopwatch,
    ) -> Result<(), NotRunning> {
        let generation = self.record.checkpoint.generation;
        let mut ahead = self.predict(port, from);
        let run = match from {
            Tier::Warm => {
                // The disk works while CRIU gets ready; nobody waits for this.
                let (checkpoint, pages) = (self.paths.checkpoint(generation), self.paths.pages());
                let predicted = ahead.clone();
                tokio::task::spawn_blocking(move || read_ahead(&checkpoint, &pages, generation, &predicted));
                match self.take_standby() {
                    Some(run) => run,
                    None => self.prepare_run().await?,
                }
            }
            Tier::Cold => {
                // CRIU gets ready while the checkpoint comes; the root is mounted when its files are there.
                let none = || NotRunning::new("there is no [store] in agent.toml");
                let remote = self.remote().ok_or_else(none)?;
                // Still mounted after a wake that failed, or an agent that died while the app went cold: the files
                // below are replaced now.
                let prefetch = self.prefetch.take();
                if prefetch.is_none() {
                    crate::sandbox::abandon_root(&self.root()).map_err(NotRunning::new)?;
                }
                let fetch = async move {
                    if App::join_prefetch(prefetch).await {
                        return Ok(());
                    }
                    remote.download(generation).await
                };
                let (fetched, run) = tokio::join!(fetch, self.prepare_run());
                fetched.map_err(NotRunning::new)?;
                self.record.checkpoint.local = Some(generation);
                if self.learn_from_checkpoint() {
                    ahead = self.predict(port, from);
                }
                watch.lap("fetch");
                run?
            }
        };
        let Run {
            client,
            mut events,
            cgroup,
        } = run;
        let list = self.list(&ahead);
        self.watch_wake(&cgroup, port, ahead);
        let root = self.root();
        tokio::task::spawn_blocking(move || mount_root(&root))
            .await
            .map_err(NotRunning::new)??;
        watch.lap("sandbox");
        let checkpoint = self.paths.checkpoint(generation);
        failpoint::reach("agent.prepared");
        client
            .send(&Request::Restore {
                checkpoint,
                ahead: list,
            })
            .await
            .map_err(NotRunning::new)?;
        let pid = self.running(&client, &mut events).await?;
        watch.lap("restore");
        failpoint::reach("agent.restored");
        self.live(client, events, cgroup, pid);
        self.watch_uses().await;
        if self.config.after_crash == AfterCrash::Fresh {
            // Once it has answered, it must not answer from this checkpoint again.
            self.will_be_hot();
        }
        let link = &self.record.link;
        self.host
            .gate
            .release(&self.config.name, link)
            .await
            .map_err(NotRunning::new)?;
        watch.lap("release");
        failpoint::reach("agent.released");
        Ok(())
    }

    /// Network, shim and a waiting CRIU for a restore. The root may be mounted later.
    pub(super) async fn prepare_run(&mut self) -> Result<Run, NotRunning> {
        crate::sandbox::net::create(&self.net())
            .await
            .map_err(NotRunning::new)?;
        self.shim(true).await
    }

    /// A shim for a new run, in its cgroups; the network must be there. The root may be mounted later.
    pub(super) async fn shim(&mut self, restores: bool) -> Result<Run, NotRunning> {
        let run = self.runs().last().copied().unwrap_or(0).max(self.record.run) + 1;
        self.record.run = run;
        let limits = self.limits();
        let name = self.config.name.clone();
        let cgroups = &self.host.cgroups;
        cgroups.app(&name, &limits).map_err(NotRunning::new)?;
        let cgroup = cgroups.run(&name, run).map_err(NotRunning::new)?;
        cgroup.create().map_err(NotRunning::new)?;
        let shim_cgroup = cgroups.shim(&name).map_err(NotRunning::new)?;
        shim_cgroup.create().map_err(NotRunning::new)?;
        let root = self.root();
        let work = self.paths.run();
        let _ = std::fs::remove_dir_all(&work);
        std::fs::create_dir_all(&work).map_err(NotRunning::new)?;
        let config = ShimConfig {
            app: name,
            socket: self.paths.shim_socket(),
            work: work.clone(),
            pages: self.paths.pages(),
            logs: self.paths.logs(),
            log_bytes: crate::logs::MAX_BYTES,
            log_files: crate::logs::KEEP,
            kernel_cache: self.host.kernel_cache(),
            criu: self.host.criu.clone(),
            netns: self.paths.netns.clone(),
            root,
            cgroup: cgroup.clone(),
            shim_cgroup,
            restores,
            fault_timeout_s: FETCH_PATIENCE.as_secs(),
        };
        let log = std::fs::File::create(work.join("shim.log")).map_err(NotRunning::new)?;
        let (client, mut events) = ShimClient::spawn(&self.host.shim, &config, log)
            .await
            .map_err(NotRunning::new)?;
        match events.recv().await {
            Some(shim::Event::Hello { .. }) => Ok(Run {
                client,
                events,
                cgroup,
            }),
            _ => {
                let said = std::fs::read_to_string(work.join("shim.log")).unwrap_or_default();
                Err(NotRunning::new(format!(
                    "the shim did not start: {}",
                    said.trim()
                )))
            }
        }
    }

    /// Waits until the app runs; blocks that it needs meanwhile are fetched.
    pub(super) async fn running(
        &mut self,
        client: &ShimClient,
        events: &mut mpsc::UnboundedReceiver<shim::Event>,
    ) -> Result<i32, NotRunning> {
        loop {
            match events.recv().await {
                Some(shim::Event::Running { pid, .. }) => return Ok(pid),
                Some(shim::Event::Failed {
                    reason, permanent, ..
                }) => {
                    return Err(NotRunning { reason, permanent });
                }
                Some(shim::Event::Need { object, block }) => self.serve_block_to(client, object, block),
                Some(shim::Event::Exited { exit, reason }) => {
                    let why = reason.unwrap_or_else(|| format!("the app ended at once ({exit})"));
                    return Err(NotRunning::new(why));
                }
                Some(_) => {}
                None => return Err(NotRunning::new("the shim was lost before the app ran")),
            }
        }
    }

    /// Ends runs that no shim of this actor looks after.
    pub(super) async fn end_stray_runs(&mut self) {
        for run in self.runs() {
            if let Ok(cgroup) = self.host.cgroups.run(&self.config.name, run) {
                self.end_run(cgroup).await;
            }
        }
    }

    /// Fetches a block that a fault of the running app waits for.
    pub(super) fn serve_block(&self, object: ObjectId, block: u64) {
        if let Some(live) = &self.live {
            self.serve_block_to(&live.client, object, block);
        }
    }

    pub(super) fn serve_block_to(&self, client: &ShimClient, object: ObjectId, block: u64) {
        let (client, remote, app) = (client.clone(), self.remote(), self.config.name.clone());
        let fetching = self.fetching.clone();
        fetching.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let request = match fetch(&app, remote, object, block).await {
                Ok(()) => Request::Block { object, block },
                Err(error) => {
                    tracing::error!(app, %object, block, %error, "a page cannot be had");
                    Request::Lost {
                        object,
                        block,
                        reason: error.to_string(),
                    }
                }
            };
            // A shim that is gone needs no page.
            let _ = client.send(&request).await;
            fetching.fetch_sub(1, Ordering::Relaxed);
        });
    }

    pub(super) fn now(&self) -> super::policy::Monotonic {
        now()
    }
}

/// Asks the kernel for everything of a local checkpoint that a wake reads first: images, index, and the pages that are
/// predicted, or where nothing is, the newest page objects if they are small, which are what the last wake touched. Into
/// the page cache, not into the app's memory.
fn read_ahead(checkpoint: &Path, pages: &Path, generation: u64, predicted: &[PageId]) {
    let list = |dir: &Path| {
        let entries = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let whole = 0..0;
    for path in list(&checkpoint.join(IMAGES_DIR)).iter().chain(&list(checkpoint)) {
        will_need(path, &whole);
    }
    let index = std::fs::read(checkpoint.join(INDEX_FILE));
    if let Some(index) = index.ok().and_then(|bytes| PageIndex::decode(&bytes).ok())
        && !predicted.is_empty()
    {
        for (object, range) in learning::places(&index, predicted, MERGED_PAGES) {
            let bytes = range.start * PAGE_SIZE..range.end * PAGE_SIZE;
            // A copy that is not whole was fetched a moment ago.
            will_need(&pages.join(format!("{object}.pages")), &bytes);
        }
        return;
    }
    let newest = format!("{generation}-");
    let is_newest = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(&newest))
    };
    let mut objects: Vec<PathBuf> = list(pages).into_iter().filter(is_newest).collect();
    let size = |path: &PathBuf| path.metadata().map_or(0, |meta| meta.len());
    if objects.iter().map(size).sum::<u64>() > super::fetch::FIRST_PAGES_BYTES {
        objects.clear();
    }
    for path in &objects {
        will_need(path, &whole);
    }
}

/// Asks the kernel for a part of a file; all of it where the part is empty.
fn will_need(path: &Path, bytes: &Range<u64>) {
    let (Ok(start), Ok(length)) = (i64::try_from(bytes.start), i64::try_from(bytes.end - bytes.start)) else {
        return;
    };
    if let Ok(file) = std::fs::File::open(path) {
        // A hint: a file system that does not take it is read when it is needed.
        let _ = posix_fadvise(&file, start, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }
}

/// Mounts the root where it is not mounted; shims see it come ([`super::agent`] makes the place shared).
pub(super) fn mount_root(root: &crate::sandbox::RootSpec) -> Result<(), NotRunning> {
    if is_root_mounted(root) {
        Ok(())
    } else {
        crate::sandbox::mount_root(root).map_err(NotRunning::new)
    }
}

/// Whether the root is mounted already.
pub(super) fn is_root_mounted(root: &crate::sandbox::RootSpec) -> bool {
    nix::sys::statfs::statfs(&root.mountpoint)
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::OVERLAYFS_SUPER_MAGIC)
}

/// Fetches one block; a store that is away may come back for as long as the app can wait.
async fn fetch(
    app: &str,
    remote: Option<Remote>,
    object: ObjectId,
    block: u64,
) -> Result<(), Arc<TransferError>> {
    let none = || TransferError::Content {
        what: "the store",
        reason: "there is no [store] in agent.toml".into(),
    };
    let remote = remote.ok_or_else(|| Arc::new(none()))?;
    let until = Instant::now() + FETCH_PATIENCE;
    let mut said = false;
    loop {
        match remote.fetch_block(object, block).await {
            Ok(()) => return Ok(()),
            Err(TransferError::Store(error)) if error.is_transient() && Instant::now() < until => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(app, %object, block, %error, "a page cannot be had yet; the app waits for it");
                }
                tokio::time::sleep(FETCH_PAUSE).await;
            }
            Err(error) => return Err(Arc::new(error)),
        }
    }
}
