//! What an app's runs teach, and what that brings ahead at its next wake.
//!
//! Tracing is armed for a while after each wake, and now and then for a moment while the app is hot; else nothing is
//! attached for it. What is learned is kept beside the wake record. Nothing here can make a wake fail.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::{App, now};
use crate::activeset::{Closed, Learner, PageId};
use crate::checkpoint::index::PageIndex;
use crate::checkpoint::local::INDEX_FILE;
use crate::config::Prefetch;
use crate::lifecycle::learning::{self, Watched};
use crate::lifecycle::policy::Monotonic;
use crate::lifecycle::record::PortSet;
use crate::lifecycle::state::{State, Tier};
use crate::lifecycle::traces;
use crate::pager::PagerStats;
use crate::port::Port;
use crate::probes::{self, Target, Tracing};
use crate::sandbox::Cgroup;
use crate::shim::protocol::encode_pages;

/// How long after a wake what it touches still counts as the wake's.
const AFTER_WAKE: Duration = Duration::from_secs(10);
/// How long a slice of a hot time is.
const SLICE: Duration = Duration::from_secs(2);
/// A slice that used more pages than this, and most of the app's, says nothing of what a request needs: 4 MiB.
const FEW_PAGES: usize = 1024;
/// From the end of one slice to the next.
const BETWEEN_SLICES: Duration = Duration::from_secs(60);

/// What is watched now.
pub(super) struct Window {
    watched: Watched,
    cgroup: Cgroup,
    arming: Arming,
    /// The accessed bits were reset when it began.
    reset: bool,
    until: Monotonic,
}

/// Tracing that is being armed, then what holds it armed; nothing where it could not be.
struct Arming {
    task: Option<JoinHandle<Option<Tracing>>>,
    armed: Option<Tracing>,
}

impl Arming {
    async fn done(&mut self) {
        if let Some(task) = self.task.take() {
            self.armed = task.await.ok().flatten();
        }
    }

    /// Ends it; detaching takes the kernel a while.
    async fn end(mut self) {
        self.done().await;
        let _ = tokio::task::spawn_blocking(move || drop(self.armed)).await;
    }
}

/// The learner of an app, once it was asked for.
pub(super) type Learning = Option<Arc<Mutex<Learner>>>;

impl App {
    /// The app begins anew: what is known of its pages is of no use any more.
    pub(in crate::lifecycle) fn new_life(&mut self) {
        self.record.life = crate::units::Timestamp::now().micros();
        self.record.active_sets.clear();
        self.learning = None;
        let _ = std::fs::remove_file(self.paths.active_sets());
    }

    fn learner(&mut self) -> Arc<Mutex<Learner>> {
        if let Some(learner) = &self.learning {
            return learner.clone();
        }
        let (learner, message) = learning::load(&self.paths.active_sets(), self.record.life);
        if let Some(message) = message {
            self.fail("wake", &message);
        }
        let learner = Arc::new(Mutex::new(learner));
        self.learning.insert(learner).clone()
    }

    /// Takes what the checkpoint that has just come knew of its pages, if this host knew nothing.
    pub(in crate::lifecycle) fn learn_from_checkpoint(&mut self) -> bool {
        let is_new = match &self.learning {
            Some(learner) => lock(learner).sets().ports().next().is_none(),
            None => false,
        };
        if is_new {
            self.learning = None;
        }
        is_new
    }

    /// The pages that a wake by `port` brings ahead.
    pub(in crate::lifecycle) fn predict(&mut self, port: Option<Port>, from: Tier) -> Vec<PageId> {
        let how = self.config.prefetch;
        if how == Prefetch::None {
            return Vec::new();
        }
        let learner = self.learner();
        let costs = self.host.costs.from(from);
        let sees_unused = self.host.sees_accessed;
        let index = || read_index(&self.index_path());
        learning::predict(how, &lock(&learner), port, &costs, sees_unused, index)
    }

    /// The file with the list of these pages, for the shim.
    pub(in crate::lifecycle) fn list(&self, pages: &[PageId]) -> Option<PathBuf> {
        if pages.is_empty() {
            return None;
        }
        let path = self.paths.run().join("ahead");
        let list = encode_pages(pages.iter().map(|at| (at.space, at.page)));
        match std::fs::write(&path, list) {
            Ok(()) => Some(path),
            Err(error) => {
                tracing::warn!(app = self.config.name, %error, "its pages come by faults");
                None
            }
        }
    }

    fn index_path(&self) -> PathBuf {
        self.paths
            .checkpoint(self.record.checkpoint.generation)
            .join(INDEX_FILE)
    }

    /// A wake begins in `cgroup`: what it touches is watched from now on.
    pub(in crate::lifecycle) fn watch_wake(
        &mut self,
        cgroup: &Cgroup,
        trigger: Option<Port>,
        ahead: Vec<PageId>,
    ) {
        let watched = Watched {
            trigger,
            wake: true,
            ahead,
        };
        self.watch(cgroup, watched, AFTER_WAKE);
    }

    fn watch(&mut self, cgroup: &Cgroup, watched: Watched, time: Duration) {
        let host = self.host.clone();
        let target = cgroup.id().map(|cgroup| Target {
            cgroup,
            app: self.number,
            v4: self.record.addresses.v4,
            v6: self.record.addresses.v6,
            ports: self.config.ports.clone(),
        });
        let name = self.config.name.clone();
        let tracing = tokio::task::spawn_blocking(move || {
            let target = target.map_err(|error| tracing::warn!(app = name, %error, "it is not traced"));
            let target = target.ok()?;
            host.traces.begin(target.app, &host.probes);
            let armed = host.probes.trace(target);
            armed
                .map_err(|error| tracing::warn!(app = name, %error, "it is not traced"))
                .ok()
        });
        self.window = Some(Window {
            watched,
            cgroup: cgroup.clone(),
            arming: Arming {
                task: Some(tracing),
                armed: None,
            },
            reset: false,
            until: now() + time,
        });
    }

    /// What was brought ahead is there, and no packet is yet: from here on an accessed bit says that a page is used.
    pub(in crate::lifecycle) async fn watch_uses(&mut self) {
        let Some(window) = &mut self.window else { return };
        // Begun before the restore, and long done as a rule; a request that is not traced would teach that it needs nothing.
        window.arming.done().await;
        if window.watched.ahead.is_empty() || !self.host.sees_accessed {
            return;
        }
        window.reset = reset(&window.cgroup).await;
    }

    /// Gives up what is watched: the wake failed.
    pub(in crate::lifecycle) async fn watch_no_more(&mut self) {
        if let Some(window) = self.window.take() {
            window.arming.end().await;
            self.host.traces.end(self.number, &self.host.probes);
        }
    }

    /// Learns from what was watched up to now.
    pub(in crate::lifecycle) async fn learn(&mut self) {
        if self.window.is_none() {
            return;
        }
        self.refresh().await;
        let Some(window) = self.window.take() else { return };
        let stats = self.live.as_ref().map(|live| live.stats).unwrap_or_default();
        self.host.costs.pager(&stats);
        let (host, number, how) = (self.host.clone(), self.number, self.config.prefetch);
        let (learner, index_path) = (self.learner(), self.index_path());
        let sets = self.paths.active_sets();
        window.arming.end().await;
        let learned = tokio::task::spawn_blocking(move || {
            let seen = host.traces.end(number, &host.probes).unwrap_or_default();
            if seen.lost {
                tracing::info!(app = number, "events of it were lost: its faults teach less");
            }
            let index = read_index(&index_path).unwrap_or_default();
            let accessed = window
                .reset
                .then(|| look_up(&host.probes, &window.cgroup, &window.watched, &index))
                .flatten();
            let mut learner = lock(&learner);
            let closed = is_telling(&window.watched, accessed.as_ref())
                .then(|| learning::learn(&mut learner, how, &window.watched, &seen, &index, accessed))
                .flatten();
            if !index.spaces.is_empty() {
                let lists = |at: PageId| {
                    index
                        .space(at.space)
                        .is_some_and(|space| space.lookup(at.page).is_some())
                };
                learner.sets_mut().retain(lists);
            }
            let saved = learning::save(&sets, &learner);
            (closed, summary(&learner), saved)
        });
        match learned.await {
            Ok((closed, summary, saved)) => self.learned(closed, summary, saved, &stats),
            Err(error) => tracing::error!(app = self.config.name, %error, "nothing is learned"),
        }
    }

    fn learned(
        &mut self,
        closed: Option<Closed>,
        summary: Vec<PortSet>,
        saved: std::io::Result<()>,
        stats: &PagerStats,
    ) {
        if let Err(error) = saved {
            self.fail(
                "wake",
                &format!("what was learned of its pages cannot be kept ({error})"),
            );
        }
        self.record.active_sets = summary;
        if let (Some(report), Some(wake)) = (
            closed.and_then(|closed| closed.report),
            &mut self.record.last_wake,
        ) {
            tracing::info!(app = self.config.name, ?report, ?stats, "learned from its wake");
            self.host.metrics.prefetched(&report);
            wake.prefetch = Some(report);
        }
        self.save();
    }

    /// When something is to be done about learning, while the app is hot; what is due is done.
    pub(super) async fn learn_when_due(&mut self, now: Monotonic) -> Option<Monotonic> {
        if self.state() != State::Hot {
            return None;
        }
        if let Some(window) = &self.window {
            if now < window.until {
                return Some(window.until);
            }
            self.learn().await;
            self.next_slice = now + BETWEEN_SLICES;
        }
        if now < self.next_slice || !self.host.sees_accessed || !self.is_used(now) {
            return Some(self.next_slice.max(now + SLICE));
        }
        let cgroup = self.live.as_ref()?.cgroup.clone();
        let watched = Watched {
            trigger: None,
            wake: false,
            ahead: Vec::new(),
        };
        self.watch(&cgroup, watched, SLICE);
        let reset = reset(&cgroup).await;
        let window = self.window.as_mut()?;
        window.reset = reset;
        Some(window.until)
    }

    /// Whether anybody used it since the last slice could have begun.
    fn is_used(&self, now: Monotonic) -> bool {
        let addresses = self.record.addresses;
        let activity = self.host.probes.activity(addresses.v4, addresses.v6);
        let last = activity
            .unwrap_or_default()
            .into_iter()
            .map(|port| port.last_ns)
            .max();
        last.is_some_and(|last| now.saturating_sub(Duration::from_nanos(last)) < SLICE)
    }
}

/// Resets the accessed bits of all processes in a cgroup.
async fn reset(cgroup: &Cgroup) -> bool {
    let cgroup = cgroup.clone();
    let reset =
        tokio::task::spawn_blocking(move || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            for process in cgroup.procs()? {
                match probes::reset_accessed(u32::try_from(process)?, true) {
                    // Ended since: one of CRIU's, or one of the app's that touches nothing any more.
                    Err(error) if is_gone(&error) => {}
                    reset => reset?,
                }
            }
            Ok(())
        });
    match reset.await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::warn!(%error, "accessed pages are not seen this time");
            false
        }
        Err(_) => false,
    }
}

/// Whether a file of a process is not there because the process is not (proc(5)).
fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Which pages that matter were used: after a wake, those that were brought; in a slice, all that are there.
fn look_up(
    probes: &probes::Probes,
    cgroup: &Cgroup,
    watched: &Watched,
    index: &PageIndex,
) -> Option<Vec<(PageId, probes::PresentPage)>> {
    let running = cgroup.procs().ok()?.into_iter();
    let pids = running.filter_map(|pid| u32::try_from(pid).ok());
    let running: Vec<(u32, u32)> = pids.filter_map(|pid| Some((pid, traces::number(pid)?))).collect();
    let found = if watched.wake {
        learning::look_up(probes, &running, &watched.ahead)
    } else {
        learning::look_up_all(probes, &running, index)
    };
    found
        .map_err(|error| tracing::warn!(%error, "accessed pages are not seen this time"))
        .ok()
}

/// Whether a slice says anything of what a request needs: not one in which most of the memory was used.
fn is_telling(watched: &Watched, accessed: Option<&Vec<(PageId, probes::PresentPage)>>) -> bool {
    let Some(pages) = accessed.filter(|_| !watched.wake) else {
        return watched.wake;
    };
    let used = pages.iter().filter(|(_, page)| page.accessed).count();
    used <= FEW_PAGES || 2 * used <= pages.len()
}

fn read_index(path: &std::path::Path) -> Option<PageIndex> {
    PageIndex::decode(&std::fs::read(path).ok()?).ok()
}

/// What an owner sees of what is known.
fn summary(learner: &Learner) -> Vec<PortSet> {
    let sets = learner.sets();
    let ports = sets.ports().map(Some).chain([None]);
    let views = ports.filter_map(|port| sets.view(port));
    views
        .map(|view| PortSet {
            port: view.port,
            windows: view.windows,
            pages: view.pages.iter().filter(|page| page.chance >= 0.5).count() as u64,
            relearning: view.relearning,
            wakes: view.tally.wakes,
            recall: view.tally.total.recall(),
            precision: view.tally.total.precision(),
            last: (view.tally.wakes > 0).then_some(view.tally.last),
        })
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
