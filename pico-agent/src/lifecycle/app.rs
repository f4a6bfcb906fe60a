//! The actor of one app: the only place where its state changes. Commands, packets, the shim's events and the
//! clock come in one after the other; what to do about them is decided by the pure parts of this folder and
//! done in [`super::swap_in`], [`super::swap_out`] and [`super::start`].

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::host::Host;
use super::paths::AppPaths;
use super::policy::{self, AfterExit, Coldness, CpuWindow, Decision, Failures, Idleness, Monotonic};
use super::record::{Exit as RecordedExit, ExitStatus, Failure as RecordedFailure, Record};
use super::state::{Event, State, Tier};
use super::transfer::{Meter, Remote, Sources, Stored, TransferError};
use crate::config::{AfterCrash, AppConfig, Root};
use crate::control::protocol::{AppDetail, AppSummary, CheckpointView, ErrorCode, Failure, Policy};
use crate::pager::PagerStats;
use crate::port::Port;
use crate::sandbox::net::NetSpec;
use crate::sandbox::{Cgroup, Mask, RootSpec};
use crate::shim::client::ShimClient;
use crate::shim::protocol::{self as shim, Exit, Request};
use crate::units::{Timestamp, Wait};

/// How long an app may take to end after SIGTERM.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(10);
/// A failed wake is not tried again by packets before this.
const WAKE_BACKOFF: Duration = Duration::from_secs(1);

/// What an actor is asked to do.
#[derive(Debug)]
pub enum Command {
    /// A packet for a published port waits at the gate.
    Packet(Port),
    /// Swap in.
    Wake(Reply),
    /// Swap out.
    Sleep(Tier, Reply),
    /// Start anew.
    Start(Reply),
    /// End.
    Stop(Reply),
    /// End and start anew.
    Restart(Reply),
    /// The host goes down: swap out what runs, then end the actor.
    Shutdown(oneshot::Sender<()>),
    /// Bring the view up to date.
    Refresh(oneshot::Sender<()>),
}

/// Where the outcome of a command goes.
pub type Reply = oneshot::Sender<Result<(), Failure>>;

/// What others see of an app, always current.
#[derive(Debug, Clone)]
pub struct View {
    /// As `app show` has it, but for what is counted live.
    pub detail: AppDetail,
    /// The cgroup of its processes while it runs.
    pub cgroup: Option<Cgroup>,
}

/// The agent's handle of an actor.
#[derive(Debug, Clone)]
pub struct AppHandle {
    /// Commands.
    pub commands: mpsc::UnboundedSender<Command>,
    /// The newest view.
    pub view: watch::Receiver<View>,
    /// What was read from the store since the last wake began.
    pub meter: Arc<Meter>,
    /// Page faults that eBPF saw.
    pub page_faults: Arc<AtomicU64>,
}

/// A running app.
pub(super) struct Live {
    pub client: ShimClient,
    pub events: mpsc::UnboundedReceiver<shim::Event>,
    pub cgroup: Cgroup,
    pub pid: Option<i32>,
    pub hot_since: Monotonic,
    /// Processor time at the beginning of the current window.
    cpu_sample: (Monotonic, Duration),
    pub stats: PagerStats,
}

/// The actor.
pub(super) struct App {
    pub host: Arc<Host>,
    pub config: AppConfig,
    pub paths: AppPaths,
    pub record: Record,
    /// Position in agent.toml: names the app to the probes.
    pub number: u32,
    pub live: Option<Live>,
    pub meter: Arc<Meter>,
    /// Page objects that are being fetched.
    pub sources: Sources,
    /// Fetches that a fault waits for.
    pub fetching: Arc<AtomicUsize>,
    commands: mpsc::UnboundedReceiver<Command>,
    view: watch::Sender<View>,
    warm_since: Monotonic,
    sleep_failures: Failures,
    upload_failures: Failures,
    pub(super) upload: Option<Upload>,
    /// The host goes down.
    pub(super) going_down: bool,
    /// The owner asked for cold.
    pub(super) cold_now: bool,
    restart_at: Option<Monotonic>,
    restarts: u32,
    /// Packets are let in again then.
    rearm_at: Option<Monotonic>,
    /// Since when it runs in this life.
    pub(super) started: Monotonic,
    next: String,
}

/// A checkpoint on its way to the store.
pub(super) struct Upload {
    pub generation: u64,
    task: JoinHandle<Result<Stored, TransferError>>,
    packed: Arc<Mutex<bool>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// CLOCK_MONOTONIC, the clock of the probes.
pub(super) fn now() -> Monotonic {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

impl App {
    /// Starts the actor of an app whose record is known.
    pub fn spawn(host: Arc<Host>, config: AppConfig, record: Record, number: u32) -> AppHandle {
        let paths = AppPaths::new(&host.state_dir, &config.name);
        let (sender, commands) = mpsc::unbounded_channel();
        let meter = Arc::new(Meter::default());
        let page_faults = Arc::new(AtomicU64::new(0));
        let detail = first_detail(&config, &record);
        let (view, receiver) = watch::channel(View { detail, cgroup: None });
        let app = App {
            host,
            config,
            paths,
            record,
            number,
            live: None,
            meter: meter.clone(),
            sources: Sources::default(),
            fetching: Arc::default(),
            commands,
            view,
            warm_since: now(),
            sleep_failures: Failures::default(),
            upload_failures: Failures::default(),
            upload: None,
            going_down: false,
            cold_now: false,
            restart_at: None,
            restarts: 0,
            rearm_at: None,
            started: now(),
            next: String::new(),
        };
        tokio::spawn(app.run());
        AppHandle {
            commands: sender,
            view: receiver,
            meter,
            page_faults,
        }
    }

    async fn run(mut self) {
        self.recover().await;
        loop {
            let deadline = self.decide().await;
            self.publish();
            tokio::select! {
                command = self.commands.recv() => match command {
                    None => return,
                    Some(Command::Shutdown(done)) => {
                        self.shut_down().await;
                        self.publish();
                        let _ = done.send(());
                        return;
                    }
                    Some(command) => self.command(command).await,
                },
                event = shim_event(&mut self.live) => self.shim_event(event).await,
                stored = uploaded(&mut self.upload) => self.uploaded(stored),
                () = wait_until(deadline) => {}
            }
        }
    }

    // ---- what is asked ----

    async fn command(&mut self, command: Command) {
        match command {
            Command::Packet(port) => {
                if self.state().asleep() && self.rearm_at.is_none() {
                    // What went wrong stands in the record.
                    let _ = self.wake(&port.to_string()).await;
                } else if !matches!(self.state(), State::Hot) {
                    self.host.gate.discard(&self.config.name);
                }
            }
            Command::Wake(reply) => {
                let outcome = match self.state() {
                    State::Hot => Ok(()),
                    _ => self.wake("owner").await,
                };
                let _ = reply.send(outcome);
            }
            Command::Sleep(tier, reply) => self.sleep_for_owner(tier, reply).await,
            Command::Start(reply) => {
                let outcome = match self.state() {
                    State::Hot => Ok(()),
                    State::Warm | State::Cold => self.wake("owner").await,
                    _ => self.start("started by its owner").await,
                };
                let _ = reply.send(outcome);
            }
            Command::Stop(reply) => {
                let outcome = self.stop("stopped by its owner").await;
                let _ = reply.send(outcome);
            }
            Command::Restart(reply) => {
                let outcome = match self.stop("restarted by its owner").await {
                    Ok(()) => self.start("restarted by its owner").await,
                    Err(failure) => Err(failure),
                };
                let _ = reply.send(outcome);
            }
            Command::Refresh(done) => {
                self.refresh().await;
                self.publish();
                let _ = done.send(());
            }
            Command::Shutdown(_) => {}
        }
    }

    async fn sleep_for_owner(&mut self, tier: Tier, reply: Reply) {
        if tier == Tier::Cold && self.host.store.is_none() {
            let failure = Failure::new(ErrorCode::WrongState, "there is no object store to go cold to")
                .hint("add a [store] section to agent.toml");
            let _ = reply.send(Err(failure));
            return;
        }
        let outcome = match self.state() {
            State::Hot => self.sleep("asked by its owner").await,
            State::Warm | State::Cold => Ok(()),
            state => Err(self.wrong_state(format!("an app that is {state} cannot sleep"))),
        };
        if outcome.is_err() || tier == Tier::Warm || self.state() == State::Cold {
            let _ = reply.send(outcome);
            return;
        }
        self.cold_now = true;
        self.begin_upload();
        if let Some(upload) = &mut self.upload {
            let stored = join(&mut upload.task).await;
            self.uploaded(stored);
        }
        let outcome = if self.stored() {
            self.go_cold("asked by its owner").await
        } else {
            let why = self
                .record
                .last_failure
                .as_ref()
                .map(|f| f.reason.clone())
                .unwrap_or_default();
            Err(Failure::new(
                ErrorCode::SleepFailed,
                format!("its checkpoint could not be stored ({why})"),
            ))
        };
        let _ = reply.send(outcome);
    }

    async fn shut_down(&mut self) {
        self.going_down = true;
        if self.state() == State::Hot {
            let _ = self.sleep("the host goes down").await;
        }
        if let Some(upload) = &mut self.upload {
            let stored = join(&mut upload.task).await;
            self.uploaded(stored);
        }
    }

    async fn refresh(&mut self) {
        let Some(live) = &mut self.live else { return };
        if live.client.send(&Request::Stats).await.is_err() {
            return;
        }
        // Other events keep their order: they are handled when this one has come.
        let mut others = Vec::new();
        while let Some(event) = live.events.recv().await {
            match event {
                shim::Event::Stats(stats) => {
                    live.stats = stats;
                    break;
                }
                event => others.push(event),
            }
        }
        for event in others {
            self.shim_event(Some(event)).await;
        }
    }

    // ---- what happens ----

    async fn shim_event(&mut self, event: Option<shim::Event>) {
        match event {
            Some(shim::Event::Need { object, block }) => self.serve_block(object, block),
            Some(shim::Event::Stats(stats)) => {
                if let Some(live) = &mut self.live {
                    live.stats = stats;
                }
            }
            Some(shim::Event::Exited { exit, reason }) => self.exited(exit, reason).await,
            Some(shim::Event::Failed {
                reason,
                running: false,
                ..
            }) => self.exited(Exit::Signal(9), Some(reason)).await,
            Some(_) => {}
            None => {
                self.lost(
                    "its shim was lost, and the app was ended so that it reads no memory that nobody serves",
                )
                .await
            }
        }
    }

    /// The app's first process ended.
    pub(super) async fn exited(&mut self, exit: Exit, reason: Option<String>) {
        let status = match exit {
            Exit::Code(code) => ExitStatus::Code(code),
            Exit::Signal(signal) => ExitStatus::Signal(signal),
        };
        self.record.last_exit = Some(RecordedExit {
            status,
            at: Timestamp::now(),
        });
        if let Some(reason) = reason {
            self.lost(&reason).await;
            return;
        }
        self.settle_upload(false).await;
        self.leave_run().await;
        let uptime = now().saturating_sub(self.started);
        let decision = policy::restart_decision(self.config.restart, status, uptime, self.restarts);
        let why = match decision {
            AfterExit::Restart { after, attempt, why } => {
                self.restart_at = Some(now() + after);
                self.restarts = attempt;
                why
            }
            AfterExit::Stay { why } => why,
        };
        self.apply(
            Event::Exited {
                clean: status.is_clean(),
            },
            &why,
        );
        self.forget_checkpoint();
        self.save();
    }

    /// The app's process is gone through no doing of its own.
    pub(super) async fn lost(&mut self, reason: &str) {
        self.fail("run", reason);
        self.leave_run().await;
        let resume = self
            .checkpoint_tier()
            .filter(|_| self.config.after_crash == AfterCrash::Checkpoint);
        let why = match resume {
            Some(_) => format!("{reason}; goes on from its last checkpoint"),
            None => format!("{reason}; it has no checkpoint to go on from"),
        };
        self.apply(Event::Lost { resume }, &why);
        self.warm_since = now();
        if resume.is_none() {
            self.restart_at = Some(now() + policy::RESTART_BACKOFF.0);
        }
        self.save();
    }

    /// Packets are held from now on, and nothing of the run is left.
    pub(super) async fn leave_run(&mut self) {
        if let Err(error) = self.host.gate.hold(&self.config.name).await {
            tracing::error!(app = self.config.name, %error, "cannot hold packets");
        }
        let Some(live) = self.live.take() else { return };
        self.end_run(live.cgroup).await;
    }

    /// Ends whatever still runs in a run's cgroup and removes it.
    pub(super) async fn end_run(&self, cgroup: Cgroup) {
        if let Ok(id) = cgroup.id() {
            let _ = self.host.probes.untrack(id);
        }
        let ended = tokio::task::spawn_blocking(move || {
            cgroup.kill()?;
            cgroup.wait_empty(Duration::from_secs(10))?;
            cgroup.remove()
        });
        match ended.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(app = self.config.name, %error, "cannot end a run"),
            Err(error) => tracing::error!(app = self.config.name, %error, "cannot end a run"),
        }
    }

    // ---- what is due ----

    /// Does what is due, and says when to look again.
    async fn decide(&mut self) -> Option<Monotonic> {
        loop {
            let now = now();
            if self.rearm_at.is_some_and(|at| at <= now) {
                self.rearm_at = None;
                self.host.gate.discard(&self.config.name);
            }
            let decision = match self.state() {
                State::Hot => self.sleep_decision(now),
                State::Warm => self.cold_decision(now),
                State::Stopped | State::Failed { .. } => match self.restart_at {
                    Some(at) if at <= now => Decision::Now {
                        why: "started again".to_owned(),
                    },
                    Some(at) => Decision::Wait {
                        until: Some(at),
                        why: self.record.situation.reason.clone(),
                    },
                    None => Decision::Wait {
                        until: None,
                        why: String::new(),
                    },
                },
                _ => Decision::Wait {
                    until: None,
                    why: String::new(),
                },
            };
            match decision {
                Decision::Wait { until, why } => {
                    self.next = why;
                    return [until, self.rearm_at].into_iter().flatten().min();
                }
                Decision::Now { why } => match self.state() {
                    State::Hot => drop(self.sleep(&why).await),
                    State::Warm => drop(self.go_cold(&why).await),
                    _ => {
                        self.restart_at = None;
                        if self.start(&why).await.is_err() {
                            self.retry_start();
                        }
                    }
                },
            }
        }
    }

    pub(super) fn retry_start(&mut self) {
        let exit = ExitStatus::Code(1);
        if let AfterExit::Restart { after, attempt, .. } =
            policy::restart_decision(self.config.restart, exit, Duration::ZERO, self.restarts)
        {
            self.restart_at = Some(now() + after);
            self.restarts = attempt;
        }
    }

    fn sleep_decision(&mut self, now: Monotonic) -> Decision {
        let addresses = self.record.addresses;
        let activity = self
            .host
            .probes
            .activity(addresses.v4, addresses.v6)
            .unwrap_or_default();
        let last = activity.iter().max_by_key(|port| port.last_ns);
        let last_activity = last.map(|port| {
            let at = if port.port == 0 {
                "an unpublished port".to_owned()
            } else {
                format!("{}/{}", port.port, port.proto)
            };
            (Duration::from_nanos(port.last_ns), at)
        });
        let held_packets = self.host.gate.held(&self.config.name);
        let Some(live) = &mut self.live else {
            return Decision::Wait {
                until: None,
                why: "it has no process".to_owned(),
            };
        };
        let used = live.cgroup.cpu_usage().unwrap_or_default();
        let cpu = CpuWindow {
            used: used.saturating_sub(live.cpu_sample.1),
            over: now.saturating_sub(live.cpu_sample.0),
        };
        let decision = policy::sleep_decision(&Idleness {
            now,
            hot_since: live.hot_since,
            last_activity,
            cpu,
            idle: self.config.idle,
            held_packets,
            fetch_outstanding: self.fetching.load(Ordering::Relaxed) > 0,
            failed: self.sleep_failures,
        });
        if cpu.over >= policy::CPU_WINDOW {
            live.cpu_sample = (now, used);
        }
        decision
    }

    fn cold_decision(&mut self, now: Monotonic) -> Decision {
        let due = policy::upload_retry(self.upload_failures).is_none_or(|at| at <= now);
        if self.host.store.is_some() && !self.stored() && due {
            self.begin_upload();
        }
        policy::cold_decision(&Coldness {
            now,
            warm_since: self.warm_since,
            cold_after: if self.cold_now {
                Wait::After(Duration::ZERO)
            } else {
                self.config.cold_after
            },
            waking: false,
            uploaded: self.stored(),
            failed: if self.upload.is_some() {
                Failures::default()
            } else {
                self.upload_failures
            },
        })
    }

    // ---- the store ----

    /// The app's objects in the store.
    pub(super) fn remote(&self) -> Option<Remote> {
        let store = self.host.store.clone()?;
        let (app, paths) = (self.config.name.clone(), self.paths.clone());
        Some(Remote {
            store,
            app,
            paths,
            meter: self.meter.clone(),
            sources: self.sources.clone(),
        })
    }

    fn stored(&self) -> bool {
        let checkpoint = &self.record.checkpoint;
        checkpoint.stored.is_some() && checkpoint.stored == Some(checkpoint.generation)
    }

    pub(super) fn begin_upload(&mut self) {
        let generation = self.record.checkpoint.generation;
        let local = self.record.checkpoint.local == Some(generation);
        if self.upload.is_some() || self.stored() || !local {
            return;
        }
        let Some(remote) = self.remote() else { return };
        let previous = self
            .record
            .checkpoint
            .manifest_etag
            .clone()
            .map(crate::store::ETag);
        let packed = Arc::new(Mutex::new(false));
        let task = tokio::spawn({
            let packed = packed.clone();
            async move {
                let files = remote.pack_files(generation).await?;
                *lock(&packed) = true;
                remote.upload(generation, files, previous).await
            }
        });
        self.upload = Some(Upload {
            generation,
            task,
            packed,
        });
    }

    fn uploaded(&mut self, outcome: Result<Stored, TransferError>) {
        let Some(upload) = self.upload.take() else { return };
        match outcome {
            Ok(stored) => {
                self.upload_failures = Failures::default();
                let checkpoint = &mut self.record.checkpoint;
                checkpoint.stored = Some(upload.generation);
                checkpoint.manifest_etag = Some(stored.etag.0);
                checkpoint.bytes = stored.bytes;
            }
            Err(error) => {
                self.upload_failures = Failures {
                    count: self.upload_failures.count.saturating_add(1),
                    last: Some(now()),
                };
                self.fail("upload", &error.to_string());
            }
        }
        self.save();
    }

    /// Before the app's files or local checkpoints change: an upload of them must not go on. One that has packed
    /// the files reads only what stays.
    pub(super) async fn settle_upload(&mut self, keeps_checkpoint: bool) {
        let Some(upload) = &self.upload else { return };
        if keeps_checkpoint && *lock(&upload.packed) {
            return;
        }
        if let Some(upload) = self.upload.take() {
            upload.task.abort();
            let _ = upload.task.await;
            let _ = fs::remove_dir_all(self.paths.transfer(upload.generation));
        }
    }

    /// Gives up what this host has of a stored checkpoint; nothing of the app is left but its wake record.
    pub(super) async fn go_cold(&mut self, why: &str) -> Result<(), Failure> {
        self.settle_upload(false).await;
        self.sources.close();
        self.cold_now = false;
        self.record.checkpoint.local = None;
        self.apply(Event::WentCold, why);
        // The record first: what is left after a crash here is removed by the next wake.
        self.save();
        self.release_sandbox().await;
        let paths = self.paths.clone();
        let removed = tokio::task::spawn_blocking(move || {
            let dirs = [
                paths.checkpoints(),
                paths.pages(),
                paths.upper(),
                paths.overlay_work(),
                paths.run(),
                paths.root(),
            ];
            for dir in dirs.iter().chain([&paths.dir.join("transfer")]) {
                match fs::remove_dir_all(dir) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err((dir.clone(), error));
                    }
                    _ => {}
                }
            }
            Ok(())
        });
        match removed.await {
            Ok(Ok(())) => {}
            Ok(Err((path, error))) => tracing::error!(path = %path.display(), %error, "cannot remove"),
            Err(error) => tracing::error!(%error, "cannot remove local state"),
        }
        Ok(())
    }

    // ---- views and records ----

    pub(super) fn state(&self) -> State {
        self.record.situation.state
    }

    /// Takes an event. One that cannot happen is a bug of the actor; it is logged and changes nothing.
    pub(super) fn apply(&mut self, event: Event, why: &str) {
        match self.record.situation.apply(event, why, Timestamp::now()) {
            Ok(state) => {
                if state == State::Warm {
                    self.warm_since = now();
                }
                tracing::info!(app = self.config.name, %state, why, "state");
            }
            Err(error) => tracing::error!(app = self.config.name, %error, "impossible"),
        }
        self.publish();
    }

    /// Keeps the record. A disk that refuses is logged: what the app is does not change by it.
    pub(super) fn save(&mut self) {
        if let Err(error) = self.record.write(&self.paths.dir) {
            tracing::error!(app = self.config.name, %error, "cannot write the wake record");
        }
        self.publish();
    }

    /// Keeps on the disk that the app runs, before anybody else can know it.
    pub(super) fn will_be_hot(&self) {
        let mut record = self.record.clone();
        record.situation.state = State::Hot;
        if let Err(error) = record.write(&self.paths.dir) {
            tracing::error!(app = self.config.name, %error, "cannot write the wake record");
        }
    }

    pub(super) fn fail(&mut self, during: &str, reason: &str) {
        tracing::warn!(app = self.config.name, during, reason, "failed");
        let at = Timestamp::now();
        self.record.last_failure = Some(RecordedFailure {
            at,
            during: during.to_owned(),
            reason: reason.to_owned(),
        });
    }

    pub(super) fn sleep_failed(&mut self) {
        let count = self.sleep_failures.count.saturating_add(1);
        self.sleep_failures = Failures {
            count,
            last: Some(now()),
        };
    }

    pub(super) fn sleep_succeeded(&mut self) {
        self.sleep_failures = Failures::default();
    }

    /// Packets that come in the next moment wake nothing.
    pub(super) fn back_off_wake(&mut self) {
        self.rearm_at = Some(now() + WAKE_BACKOFF);
    }

    pub(super) fn ran_again(&mut self) {
        self.rearm_at = None;
        self.restart_at = None;
        self.cold_now = false;
    }

    /// No automatic restart any more.
    pub(super) fn stay_down(&mut self) {
        self.restart_at = None;
        self.restarts = 0;
    }

    pub(super) fn wrong_state(&self, what: String) -> Failure {
        Failure::new(ErrorCode::WrongState, what)
    }

    /// Where the newest whole checkpoint lies.
    pub(super) fn checkpoint_tier(&self) -> Option<Tier> {
        let checkpoint = &self.record.checkpoint;
        match (checkpoint.local, checkpoint.stored) {
            (Some(_), _) => Some(Tier::Warm),
            (None, Some(_)) => Some(Tier::Cold),
            (None, None) => None,
        }
    }

    /// The app has begun anew: no checkpoint is its state any more. Its number and its place in the store stay.
    pub(super) fn forget_checkpoint(&mut self) {
        self.sources.close();
        let checkpoint = &mut self.record.checkpoint;
        checkpoint.local = None;
        checkpoint.stored = None;
        for dir in [self.paths.checkpoints(), self.paths.pages()] {
            let _ = fs::remove_dir_all(dir);
        }
    }

    fn publish(&mut self) {
        let checkpoint = &self.record.checkpoint;
        let (pid, cgroup) = self
            .live
            .as_ref()
            .map_or((None, None), |live| (live.pid, Some(live.cgroup.clone())));
        let stats = self.live.as_ref().map(|live| live.stats);
        if let (Some(wake), Some(stats)) = (&mut self.record.last_wake, stats) {
            wake.faults = stats.faults;
            wake.pages_installed = stats.filled;
        }
        let mut detail = first_detail(&self.config, &self.record);
        detail.next = self.next.clone();
        detail.summary.pid = pid.and_then(|pid| u32::try_from(pid).ok());
        detail.summary.checkpoint = self.checkpoint_tier().map(|_| CheckpointView {
            generation: checkpoint.generation,
            bytes: checkpoint.bytes,
            local: checkpoint.local == Some(checkpoint.generation),
            stored: checkpoint.stored == Some(checkpoint.generation),
            taken: checkpoint.taken,
        });
        self.view.send_replace(View { detail, cgroup });
    }

    // ---- parts of the sandbox ----

    /// The network of the app.
    pub(super) fn net(&self) -> NetSpec {
        NetSpec {
            netns: self.paths.netns.clone(),
            link: self.record.link.clone(),
            addrs: self.record.addresses,
        }
    }

    /// The root of the app.
    pub(super) fn root(&self) -> RootSpec {
        let (lower, mask) = match &self.config.root {
            Root::Host => (
                "/".into(),
                Mask::Host {
                    hidden: self.host.hidden.clone(),
                },
            ),
            Root::Dir(dir) => (dir.clone(), Mask::Directory),
        };
        RootSpec {
            lower: vec![lower],
            mask,
            upper: self.paths.upper(),
            work: self.paths.overlay_work(),
            mountpoint: self.paths.root(),
        }
    }

    /// Sequence numbers of runs whose cgroups are still there.
    pub(super) fn runs(&self) -> BTreeSet<u64> {
        let dir = self.host.cgroups.apps_path().join(&self.config.name);
        let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
        entries
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("run-")?.parse().ok())
            .collect()
    }

    /// Takes over a run whose app is up.
    pub(super) fn live(
        &mut self,
        client: ShimClient,
        events: mpsc::UnboundedReceiver<shim::Event>,
        cgroup: Cgroup,
        pid: i32,
    ) {
        let now = now();
        let used = cgroup.cpu_usage().unwrap_or_default();
        match cgroup.id() {
            Ok(id) => {
                if let Err(error) = self.host.probes.track(id, self.number) {
                    tracing::warn!(app = self.config.name, %error, "its page faults are not seen");
                }
            }
            Err(error) => tracing::warn!(app = self.config.name, %error, "its page faults are not seen"),
        }
        self.live = Some(Live {
            client,
            events,
            cgroup,
            pid: Some(pid),
            hot_since: now,
            cpu_sample: (now, used),
            stats: PagerStats::default(),
        });
        self.ran_again();
    }

    /// Undoes network, mount and cgroup of an app that does not run.
    pub(super) async fn release_sandbox(&mut self) {
        // The shim's mount namespace holds the root until its last process is gone.
        if let Ok(shim) = self.host.cgroups.shim(&self.config.name)
            && shim.path().exists()
        {
            let empty = tokio::task::spawn_blocking(move || shim.wait_empty(STOP_GRACE));
            if let Ok(Err(error)) = empty.await {
                tracing::error!(app = self.config.name, %error, "the shim does not end");
            }
        }
        if let Err(error) = crate::sandbox::net::remove(&self.net()).await {
            tracing::error!(app = self.config.name, %error, "cannot remove the network");
        }
        if let Err(error) = crate::sandbox::unmount_root(&self.root()) {
            tracing::error!(app = self.config.name, %error, "cannot unmount the root");
        }
        for group in [
            self.host.cgroups.app_group(&self.config.name),
            self.host.cgroups.shim(&self.config.name),
        ] {
            if let Err(error) = group.and_then(|group| group.remove()) {
                tracing::error!(app = self.config.name, %error, "cannot remove a cgroup");
            }
        }
    }
}

fn first_detail(config: &AppConfig, record: &Record) -> AppDetail {
    AppDetail {
        summary: AppSummary {
            name: config.name.clone(),
            state: record.situation.state.name().to_owned(),
            since: record.situation.since,
            reason: record.situation.reason.clone(),
            addresses: record.addresses,
            ports: config.ports.clone(),
            pid: None,
            memory_bytes: None,
            checkpoint: None,
        },
        next: String::new(),
        policy: Policy {
            idle: config.idle,
            cold_after: config.cold_after,
            restart: config.restart,
            after_crash: config.after_crash,
        },
        command: config.command.clone(),
        counters: record.counters,
        page_faults: 0,
        last_wake: record.last_wake.clone(),
        last_failure: record.last_failure.clone(),
        last_exit: record.last_exit,
        created: record.created,
    }
}

async fn shim_event(live: &mut Option<Live>) -> Option<shim::Event> {
    match live {
        Some(live) => live.events.recv().await,
        None => std::future::pending().await,
    }
}

async fn join(task: &mut JoinHandle<Result<Stored, TransferError>>) -> Result<Stored, TransferError> {
    task.await.unwrap_or_else(|error| {
        Err(TransferError::Content {
            what: "the upload",
            reason: error.to_string(),
        })
    })
}

async fn uploaded(upload: &mut Option<Upload>) -> Result<Stored, TransferError> {
    match upload {
        Some(upload) => join(&mut upload.task).await,
        None => std::future::pending().await,
    }
}

async fn wait_until(deadline: Option<Monotonic>) {
    match deadline {
        Some(at) => tokio::time::sleep(at.saturating_sub(now())).await,
        None => std::future::pending().await,
    }
}
