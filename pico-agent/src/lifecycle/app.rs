//! The actor of one app: the only place where its state changes. Commands, packets, the shim's events and the
//! clock come in one after the other; what to do about them is decided by the pure parts of this folder and
//! done in [`super::swap_in`], [`super::swap_out`] and [`super::start`].
//!
//! Here: what an actor is, and what it is asked. `due`: what it does by the clock; `ends`: how runs end; `upload`: its
//! checkpoint on the way to the store; `prefetch`: what it needs first on the way back; `kept`: what it keeps on the disk
//! asleep; `standby`: a warm app's wake made ready; `bookkeeping`: record and view; `parts`: the parts of its sandbox;
//! `beside`: commands that run in it besides; `registered`: what the hub asks of its apps besides; `learns`: what its
//! runs teach of its pages.

mod beside;
mod bookkeeping;
mod due;
mod ends;
mod kept;
mod learns;
mod parts;
mod prefetch;
mod registered;
mod standby;
mod upload;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use self::beside::Beside;
use self::bookkeeping::first_detail;
pub(super) use self::parts::Files;
use self::prefetch::{Prefetch, prefetched};
use self::standby::Standby;
use self::upload::{Upload, join, uploaded};
use super::doorway::Told;
use super::exec::{Exec, Place};
use super::fetch::Sources;
use super::host::Host;
use super::paths::AppPaths;
use super::policy::{AfterWake, Failures, Monotonic};
use super::record::Record;
use super::state::{State, Tier};
use super::timers::Timers;
use super::transfer::Meter;
use crate::config::{AppConfig, ConnectionPolicy};
use crate::control::protocol::{AppDetail, ErrorCode, Failure};
use crate::gate::Caller;
use crate::pager::PagerStats;
use crate::sandbox::Cgroup;
use crate::sandbox::sockets::Pending;
use crate::shim::client::ShimClient;
use crate::shim::protocol::{self as shim, Exit, Request};

#[cfg(test)]
pub(super) use self::bookkeeping::sample_detail;

/// How long an app may take to end after SIGTERM.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(10);

/// What an actor is asked to do.
#[derive(Debug)]
pub enum Command {
    /// A packet that calls for the app waits at the gate.
    Packet(Caller),
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
    /// Take up another configuration.
    Configure(Box<AppConfig>, Reply),
    /// A client is likely to come: make the next wake quick, or wake now.
    Prefetch {
        /// Now.
        wake: bool,
    },
    /// Make a place for a command beside it.
    Exec(Box<Exec>, oneshot::Sender<Result<Place, Failure>>),
    /// That command is over.
    ExecEnded(u64),
    /// End, remove everything but the registration, and end the actor.
    Delete(Reply),
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
    /// What its owner wants of connections.
    pub connections: ConnectionPolicy,
    /// How many sleep with it.
    pub sleeping_connections: usize,
    /// What is known of its timers, in words.
    pub timers: Vec<String>,
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
    /// Names the app to the probes.
    pub number: u32,
    /// Whether it is started when it is found to be new.
    pub starts: bool,
    pub live: Option<Live>,
    pub(super) beside: Beside,
    /// Ready for the next wake.
    standby: Option<Standby>,
    /// Not tried again before the next sleep.
    pub(super) standby_failed: bool,
    pub meter: Arc<Meter>,
    /// Page objects that are being fetched.
    pub sources: Sources,
    /// Fetches that a fault waits for.
    pub fetching: Arc<AtomicUsize>,
    commands: mpsc::UnboundedReceiver<Command>,
    view: watch::Sender<View>,
    /// What was said of what it keeps on the disk was so in this situation: state, generation, whether that is in the store.
    counted: Option<(State, u64, bool)>,
    /// Others need the place of what it keeps.
    give_way: Arc<Notify>,
    warm_since: Monotonic,
    sleep_failures: Failures,
    /// Why it cannot sleep, as far as was seen when it was last looked at, while it is hot.
    stays_hot: Option<(Monotonic, Option<String>)>,
    upload_failures: Failures,
    pub(super) upload: Option<Upload>,
    pub(super) prefetch: Option<Prefetch>,
    /// It is warm because a client is expected.
    pub(super) expected: bool,
    /// The host goes down.
    pub(super) going_down: bool,
    /// The owner asked for cold.
    pub(super) cold_now: bool,
    /// Its `wake.at`.
    timers: Timers,
    restart_at: Option<Monotonic>,
    restarts: u32,
    /// Wakes that failed since one succeeded.
    wake_failures: u32,
    /// Since when somebody waits for the wakes that failed.
    waiting_since: Option<Monotonic>,
    /// What the last of them led to; until its time nothing is tried.
    after_wake: Option<AfterWake>,
    /// What is known of the pages that its requests need.
    learning: learns::Learning,
    /// What is watched, to learn from it.
    window: Option<learns::Window>,
    /// When a slice of its hot time is watched next.
    next_slice: Monotonic,
    /// What the gate was last told of the app at rest.
    pub(super) told: Option<Told>,
    /// What spoke against the last swap-out that got so far.
    pub(super) pending_before: HashSet<Pending>,
    /// Since when it runs in this life.
    pub(super) started: Monotonic,
    next: String,
}

/// CLOCK_MONOTONIC, the clock of the probes.
pub(super) fn now() -> Monotonic {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

impl App {
    /// Starts the actor of an app whose record is known. A new one is started if it `starts`.
    pub fn spawn(host: Arc<Host>, config: AppConfig, record: Record, number: u32, starts: bool) -> AppHandle {
        let paths = AppPaths::new(&host.state_dir, &config.name);
        let (sender, commands) = mpsc::unbounded_channel();
        let meter = Arc::new(Meter::default());
        let page_faults = host.traces.count(number);
        let detail = first_detail(&config, &record);
        let (view, receiver) = watch::channel(View {
            detail,
            cgroup: None,
            connections: config.connections,
            sleeping_connections: 0,
            timers: Vec::new(),
        });
        let app = App {
            host,
            config,
            paths,
            record,
            number,
            starts,
            live: None,
            beside: Beside::new(sender.downgrade()),
            standby: None,
            standby_failed: false,
            meter: meter.clone(),
            sources: Sources::default(),
            fetching: Arc::default(),
            commands,
            view,
            counted: None,
            give_way: Arc::default(),
            warm_since: now(),
            sleep_failures: Failures::default(),
            stays_hot: None,
            upload_failures: Failures::default(),
            upload: None,
            prefetch: None,
            expected: false,
            going_down: false,
            cold_now: false,
            timers: Timers::default(),
            restart_at: None,
            restarts: 0,
            wake_failures: 0,
            waiting_since: None,
            after_wake: None,
            learning: None,
            window: None,
            next_slice: Duration::ZERO,
            told: None,
            pending_before: HashSet::new(),
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
            self.mind_gate().await;
            self.count_kept().await;
            self.publish();
            let give_way = self.give_way.clone();
            tokio::select! {
                command = self.commands.recv() => match command {
                    None => return,
                    Some(Command::Shutdown(done)) => {
                        self.shut_down().await;
                        self.publish();
                        let _ = done.send(());
                        return;
                    }
                    Some(Command::Delete(reply)) => {
                        let outcome = self.delete().await;
                        let gone = outcome.is_ok();
                        let _ = reply.send(outcome);
                        if gone {
                            return;
                        }
                    }
                    Some(command) => self.command(command).await,
                },
                event = shim_event(&mut self.live) => self.shim_event(event).await,
                stored = uploaded(&mut self.upload) => self.uploaded(stored),
                fetched = prefetched(&mut self.prefetch) => self.prefetched(fetched),
                () = give_way.notified() => self.give_way().await,
                () = standby::ended(&mut self.standby) => self.standby_ended().await,
                () = wait_until(deadline) => {}
            }
        }
    }

    // ---- what is asked ----

    async fn command(&mut self, command: Command) {
        match command {
            Command::Packet(caller) => {
                // It may have been served meanwhile: by a swap-out that it called off, or by another wake. After a wake
                // that failed it waits for the next try.
                if self.called() && self.after_wake.is_none() {
                    // What went wrong stands in the record.
                    let _ = self.wake(&caller.port.to_string()).await;
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
            Command::Configure(config, reply) => {
                let _ = reply.send(self.configure(*config));
            }
            Command::Prefetch { wake } => {
                if !wake {
                    self.prefetch();
                } else if self.state().asleep() {
                    // What went wrong stands in the record.
                    let _ = self.wake("dns").await;
                }
            }
            Command::Exec(exec, reply) => {
                let place = self.begin_beside(*exec).await;
                // Nobody waits for it any more: dropped, the place is given up.
                let _ = reply.send(place);
            }
            Command::ExecEnded(number) => self.end_beside(number).await,
            Command::Delete(_) | Command::Shutdown(_) => {}
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
        self.finish_upload().await;
        self.end_prefetch().await;
    }

    /// Waits for an upload that is under way.
    async fn finish_upload(&mut self) {
        if let Some(upload) = &mut self.upload {
            let stored = join(&mut upload.task).await;
            self.uploaded(stored);
        }
        self.dismiss_standby().await;
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
}

async fn shim_event(live: &mut Option<Live>) -> Option<shim::Event> {
    match live {
        Some(live) => live.events.recv().await,
        None => std::future::pending().await,
    }
}

pub(super) async fn wait_until(deadline: Option<Monotonic>) {
    match deadline {
        Some(at) => tokio::time::sleep(at.saturating_sub(now())).await,
        None => std::future::pending().await,
    }
}
