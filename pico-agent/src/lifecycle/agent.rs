//! The agent as a whole: makes what apps share, starts an actor for each, answers the control socket, and swaps
//! everything out when the host goes down.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::app::{AppHandle, Command, now};
use super::apps::{Apps, link_name, records};
use super::cache::Cache;
use super::exec::{Exec, Running};
use super::explain::{Known, explain};
use super::host::Host;
use super::paths::AppPaths;
use super::record::{Record, RecordError};
use super::registration::RegistrationError;
use super::state::Tier;
use crate::addresses::{AddressError, Subnets};
use crate::config::{Config, beside_agent};
use crate::control::lock::{AgentLock, LockError};
use crate::control::protocol::{self, AgentStatus, AppDetail, AppSummary, ErrorCode, Explanation, Failure};
use crate::control::server::{BindError, Handler, Limits, Server};
use crate::criu::command::{Criu, CriuError};
use crate::fence::{Fence, FenceConfig, FenceError};
use crate::gate::{Gate, GateConfig, GateError, GateEvent};
use crate::hub;
use crate::hub::link::{HostFacts, LinkConfig, LinkError};
use crate::metrics::{self, Metrics, Seen};
use crate::probes::{ProbeError, Probes};
use crate::sandbox::net::NetSpec;
use crate::sandbox::{CgroupError, CgroupTree, sockets};
use crate::store::{Store, StoreError};
use crate::units::Timestamp;

/// Before `local` (0) stands nothing; this is well before `main` (32766).
const RULE_PRIORITY: u32 = 7769;
/// Packets held for one app, and bytes held for all.
const HELD_PACKETS: usize = 4096;
const HELD_BYTES: usize = 64 << 20;
/// How long an actor that is busy is waited for before its last view is shown.
const VIEW_PATIENCE: Duration = Duration::from_millis(500);

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Another one does.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A wake record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// What the hub registered before.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// An app of agent.toml has the name of one that the hub registered here.
    #[error(
        "agent.toml has an app '{0}', and the hub has registered another of that name on this host; try: rename \
         the one in agent.toml"
    )]
    Clash(String),
    /// The service subnets.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The gate.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The fence.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// The probes.
    #[error(transparent)]
    Probes(#[from] ProbeError),
    /// Control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// CRIU.
    #[error(transparent)]
    Criu(#[from] CriuError),
    /// The object store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The control socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The address for metrics.
    #[error("cannot listen on {address} for metrics ({source}); try: another address")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The state directory.
    #[error("{path}: {source}")]
    File {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A network that cannot be taken away.
    #[error(transparent)]
    Net(#[from] crate::sandbox::net::NetError),
    /// The hub, when it is joined.
    #[error(transparent)]
    Hub(#[from] LinkError),
    /// There is no hub to join.
    #[error("agent.toml has no [hub] section; try: add one with its address")]
    NoHub,
    /// It is known to a hub already.
    #[error(
        "this agent has joined already, as {0}; try: remove it at that hub and {1} here, then join again"
    )]
    Joined(String, PathBuf),
    /// Signals.
    #[error("cannot wait for signals: {0}")]
    Signal(io::Error),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> AgentError + '_ {
    move |source| AgentError::File {
        path: path.to_owned(),
        source,
    }
}

/// Runs an agent until SIGTERM or SIGINT, then swaps out what runs. `ready` is called when it answers.
///
/// # Errors
/// When something it needs is missing; nothing of the host has changed for apps then.
pub async fn run(config: Config, ready: impl FnOnce()) -> Result<(), AgentError> {
    let _lock = AgentLock::acquire(&config.state_dir)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Signal)?;
    let records = records(&config)?;
    let metrics = match config.metrics {
        None => None,
        Some(address) => Some(
            metrics::bind(address)
                .await
                .map_err(|source| AgentError::Metrics { address, source })?,
        ),
    };
    let (host, events) = open_host(&config, !records.is_empty()).await?;
    let host = Arc::new(host);
    let link = link_config(&config, &host.criu);
    let agent = Arc::new(Agent {
        apps: Apps::open(host.clone(), &config, records)?,
        host,
        socket: config.socket(),
        since: Timestamp::now(),
    });
    let stop = CancellationToken::new();
    tokio::spawn(dispatch(events, agent.clone(), stop.clone()));
    tokio::spawn(read_traces(agent.clone()));
    let server = Server::bind(&agent.socket, Limits::default())?;
    let serving = tokio::spawn(server.serve(agent.clone(), stop.clone()));
    if let Some(listener) = metrics {
        let seen = agent.clone();
        let see = Arc::new(move || seen.see());
        tokio::spawn(metrics::serve(
            listener,
            agent.host.metrics.clone(),
            see,
            stop.clone(),
        ));
    }
    if let Some(link) = link {
        tokio::spawn(hub::link::keep(link, agent.clone(), stop.clone()));
    }
    ready();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("going down: swapping out what runs");
    agent.shut_down().await;
    stop.cancel();
    let _ = serving.await;
    agent.host.gate.close().await;
    Ok(())
}

/// The gate of a configuration.
fn gate_config(config: &Config) -> GateConfig {
    let network = &config.network;
    GateConfig {
        tun: network.tun.clone(),
        v4: (network.v4.address, network.v4.prefix),
        v6: (network.v6.address, network.v6.prefix),
        table: network.table,
        rule_priority: RULE_PRIORITY,
        max_held_per_app: HELD_PACKETS,
        max_held_bytes: HELD_BYTES,
        state_file: forwarding_file(),
    }
}

/// The fence of a configuration.
fn fence_config(config: &Config) -> FenceConfig {
    let network = &config.network;
    FenceConfig {
        tun: network.tun.clone(),
        v4: network.v4,
        v6: network.v6,
        host_ports: network.host_ports.clone(),
    }
}

/// Where the switches of this network namespace are remembered: they are the namespace's own.
fn forwarding_file() -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let namespace = fs::metadata("/proc/self/ns/net")
        .map(|meta| meta.ino())
        .unwrap_or_default();
    Path::new(GateConfig::STATE_FILE).with_file_name(format!("pico-gate-{namespace}.json"))
}

/// The first CRIU that runs.
fn find_criu(config: &Config) -> Result<Criu, CriuError> {
    let mut last = None;
    for path in config.criu_candidates() {
        match Criu::at(&path).and_then(|criu| criu.version().map(|_| criu)) {
            Ok(criu) => return Ok(criu.with_preload(&beside_agent("libpico_preload.so"))),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| CriuError::Missing("/usr/sbin/criu".into())))
}

async fn open_host(
    config: &Config,
    known: bool,
) -> Result<(Host, mpsc::UnboundedReceiver<GateEvent>), AgentError> {
    let criu = find_criu(config)?;
    let store = match &config.store {
        None => None,
        Some(section) => {
            let store = Store::connect(section)?;
            match store.check().await {
                Ok(()) => {}
                // Apps on this host's disk must wake although the store is away.
                Err(error) if known => tracing::error!(%error, "the object store does not answer"),
                Err(error) => return Err(error.into()),
            }
            Some(store)
        }
    };
    let state_dir = config.state_dir.clone();
    for dir in ["apps", "netns", "kdat"].map(|name| state_dir.join(name)) {
        fs::create_dir_all(&dir).map_err(at(&dir))?;
    }
    mount_kernel_cache(&state_dir.join("kdat"))?;
    share_mounts(&state_dir.join("apps"))?;
    let cgroups = CgroupTree::open(&config.instance)?;
    let fence = Fence::new(fence_config(config))?;
    let probes = Probes::load(&cgroups.apps_path())?;
    let sees_accessed = match probes.accessed() {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "pages that are brought ahead and not used are not seen");
            false
        }
    };
    let (gate, events) = Gate::open(gate_config(config)).await?;
    let hidden = [
        Some(state_dir.clone()),
        config.file.clone(),
        credentials(config),
        join_token(config),
    ];
    let host = Host {
        instance: config.instance.clone(),
        gate,
        probes,
        store,
        cgroups,
        criu,
        cache: Cache::new(config.cache.0),
        standbys: Arc::new(Semaphore::new(config.standby)),
        shim: config.shim(),
        hidden: hidden.into_iter().flatten().collect(),
        state_dir,
        fence,
        metrics: Metrics::default(),
        traces: Default::default(),
        costs: Default::default(),
        sees_accessed,
        changes: Arc::default(),
    };
    Ok((host, events))
}

fn credentials(config: &Config) -> Option<PathBuf> {
    config.store.as_ref()?.credentials_file.clone()
}

fn join_token(config: &Config) -> Option<PathBuf> {
    config.hub.as_ref()?.join_token_file.clone()
}

fn link_config(config: &Config, criu: &Criu) -> Option<LinkConfig> {
    Some(LinkConfig {
        hub: config.hub.clone()?,
        state_dir: config.state_dir.clone(),
        has_store: config.store.is_some(),
        facts: HostFacts {
            criu: criu.version().unwrap_or_default(),
            subnets: (config.network.v4.to_string(), config.network.v6.to_string()),
        },
    })
}

/// Joins the hub of a configuration by a token; gives the hub's name for this agent.
///
/// # Errors
/// When there is no `[hub]`, this agent has joined already, or the hub does not take it.
pub async fn join(config: &Config, token: &str) -> Result<String, AgentError> {
    fs::create_dir_all(&config.state_dir).map_err(at(&config.state_dir))?;
    let link = link_config(config, &find_criu(config)?).ok_or(AgentError::NoHub)?;
    if let Some(known) = hub::Credential::read(&config.state_dir).map_err(LinkError::from)? {
        return Err(AgentError::Joined(
            known.agent_id,
            hub::Credential::path(&config.state_dir),
        ));
    }
    Ok(hub::link::join(&link, token).await?.agent_id)
}

fn mount_kernel_cache(dir: &Path) -> Result<(), AgentError> {
    if is_mounted(dir) {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("pico"), dir, Some("tmpfs"), flags, Some("size=4m,mode=0700"))
        .map_err(|error| at(dir)(error.into()))
}

/// Makes `dir` a place from which mounts spread: a root that is mounted there later is seen by shims that run
/// already, in mount namespaces of their own.
fn share_mounts(dir: &Path) -> Result<(), AgentError> {
    let none: Option<&str> = None;
    let result = if is_mount_point(dir)? {
        Ok(())
    } else {
        mount(Some(dir), dir, none, MsFlags::MS_BIND, none)
    };
    result
        .and_then(|()| mount(none, dir, none, MsFlags::MS_PRIVATE, none))
        .and_then(|()| mount(none, dir, none, MsFlags::MS_SHARED, none))
        .map_err(|error| at(dir)(error.into()))
}

/// Whether something is mounted exactly here (a bind mount of the same file system too).
fn is_mount_point(dir: &Path) -> Result<bool, AgentError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(table).map_err(at(table))?;
    // As proc_pid_mountinfo(5) escapes it.
    let dir = dir.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040");
    Ok(text
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(dir.as_str())))
}

fn is_mounted(dir: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
    dir.parent().is_some_and(|parent| device(parent) != device(dir))
}

/// Takes packets that wait at the gate to the actors.
async fn dispatch(
    mut events: mpsc::UnboundedReceiver<GateEvent>,
    agent: Arc<Agent>,
    stop: CancellationToken,
) {
    while let Some(event) = events.recv().await {
        if let Some(app) = agent.apps.get(&event.app) {
            // Fails only when the actor has ended, and then the host goes down.
            let _ = app.commands.send(Command::Packet(event.caller));
        }
    }
    if !stop.is_cancelled() {
        tracing::error!("the gate's device is gone; sleeping apps cannot be woken by packets any more");
    }
}

/// Takes what tracing sees to the apps.
async fn read_traces(agent: Arc<Agent>) {
    let host = &agent.host;
    loop {
        let read = host.traces.read(&host.probes);
        let more = match read {
            Ok(()) => host.probes.wait_for_events().await,
            Err(error) => Err(error),
        };
        if let Err(error) = more {
            tracing::error!(%error, "apps are not traced any more");
            return;
        }
    }
}

struct Agent {
    host: Arc<Host>,
    apps: Arc<Apps>,
    socket: PathBuf,
    since: Timestamp,
}

impl Agent {
    fn app(&self, name: &str) -> Result<AppHandle, Failure> {
        self.apps
            .get(name)
            .ok_or_else(|| Failure::no_such_app(name, self.apps.names()))
    }

    async fn ask(
        &self,
        name: &str,
        command: impl FnOnce(super::app::Reply) -> Command,
    ) -> Result<AppSummary, Failure> {
        let app = self.app(name)?;
        let gone = |_| Failure::new(ErrorCode::Busy, "the agent is going down");
        app.begin(command).await.map_err(gone)??;
        Ok(summary(&app))
    }

    /// What there is now, for metrics.
    fn see(&self) -> Seen {
        let now = Timestamp::now();
        let mut seen = Seen {
            events_lost: self.host.probes.lost().unwrap_or_default(),
            ..Seen::default()
        };
        for app in self.apps.handles() {
            let view = app.view.borrow();
            let summary = &view.detail.summary;
            *seen.states.entry(summary.state.clone()).or_default() += 1;
            if matches!(summary.state.as_str(), "warm" | "cold") {
                seen.asleep += now.since(summary.since);
            }
            let stored = summary.checkpoint.as_ref().filter(|checkpoint| checkpoint.stored);
            seen.stored_bytes += stored.map_or(0, |checkpoint| checkpoint.bytes);
            seen.page_faults += app.page_faults.load(Ordering::Relaxed);
            seen.held += u64::try_from(self.host.gate.held(&summary.name)).unwrap_or(u64::MAX);
            if let Some(counts) = self.host.gate.counts(&summary.name) {
                seen.dropped += counts.overflowed;
                for (rule, count) in counts.filtered {
                    *seen.filtered.entry(rule).or_default() += count;
                }
            }
        }
        seen
    }

    async fn shut_down(&self) {
        let mut waiting = Vec::new();
        for app in self.apps.handles() {
            let (done, finished) = oneshot::channel();
            if app.commands.send(Command::Shutdown(done)).is_ok() {
                waiting.push(finished);
            }
        }
        for finished in waiting {
            let _ = finished.await;
        }
    }
}

fn summary(app: &AppHandle) -> AppSummary {
    let view = app.view.borrow().clone();
    let mut summary = view.detail.summary;
    summary.memory_bytes = view.cgroup.and_then(|cgroup| cgroup.memory_current());
    summary
}

impl Handler for Agent {
    async fn list(&self) -> Vec<AppSummary> {
        self.apps.handles().iter().map(summary).collect()
    }

    async fn show(&self, name: &str) -> Result<AppDetail, Failure> {
        let app = self.app(name)?;
        let (done, finished) = oneshot::channel();
        if app.commands.send(Command::Refresh(done)).is_ok() {
            // An actor in the middle of a swap answers later; what it published last is current enough.
            let _ = tokio::time::timeout(VIEW_PATIENCE, finished).await;
        }
        let mut detail = app.view.borrow().detail.clone();
        detail.summary = summary(&app);
        detail.page_faults = app.page_faults.load(Ordering::Relaxed);
        if let Some(wake) = &mut detail.last_wake
            && detail.summary.pid.is_some()
        {
            (wake.fetched_bytes, wake.s3_gets) = app.meter.read();
        }
        Ok(detail)
    }

    async fn explain(&self, name: &str) -> Result<Explanation, Failure> {
        let detail = self.show(name).await?;
        let view = self.app(name)?.view.borrow().clone();
        let netns = AppPaths::new(&self.host.state_dir, name).netns;
        let connections = match detail.summary.pid {
            None => Some(view.sleeping_connections),
            Some(_) => {
                let open = tokio::task::spawn_blocking(move || sockets::list(&netns)).await;
                let open = open.ok().and_then(Result::ok);
                open.map(|socks| socks.iter().filter(|sock| sock.is_connection()).count())
            }
        };
        let addresses = detail.summary.addresses;
        Ok(explain(&Known {
            at: Timestamp::now(),
            now: now(),
            activity: self
                .host
                .probes
                .activity(addresses.v4, addresses.v6)
                .unwrap_or_default(),
            connections,
            policy: view.connections,
            timers: view.timers,
            counts: self.host.gate.counts(name).unwrap_or_default(),
            held: self.host.gate.held(name),
            detail,
        }))
    }

    async fn start(&self, name: &str) -> Result<AppSummary, Failure> {
        self.ask(name, Command::Start).await
    }

    async fn stop(&self, name: &str) -> Result<AppSummary, Failure> {
        self.ask(name, Command::Stop).await
    }

    async fn restart(&self, name: &str) -> Result<AppSummary, Failure> {
        self.ask(name, Command::Restart).await
    }

    async fn sleep(&self, name: &str, to: Tier, wait: bool) -> Result<AppSummary, Failure> {
        if wait {
            return self.ask(name, |reply| Command::Sleep(to, reply)).await;
        }
        let app = self.app(name)?;
        let (reply, _) = oneshot::channel();
        let _ = app.commands.send(Command::Sleep(to, reply));
        Ok(summary(&app))
    }

    async fn wake(&self, name: &str) -> Result<AppSummary, Failure> {
        self.ask(name, Command::Wake).await
    }

    async fn log_dir(&self, name: &str) -> Result<PathBuf, Failure> {
        self.app(name)?;
        Ok(AppPaths::new(&self.host.state_dir, name).logs())
    }

    async fn status(&self) -> AgentStatus {
        let mut apps = BTreeMap::new();
        for app in self.apps.handles() {
            *apps
                .entry(app.view.borrow().detail.summary.state.clone())
                .or_default() += 1;
        }
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: protocol::VERSION,
            pid: std::process::id(),
            since: self.since,
            state_dir: self.host.state_dir.display().to_string(),
            memory_bytes: own_memory(),
            apps,
        }
    }
}

impl hub::Apps for Agent {
    fn name_of(&self, id: &str) -> Option<String> {
        self.apps.name_of(id)
    }

    fn registered(&self) -> Vec<String> {
        self.apps.registered()
    }

    fn look_up(&self, name: &str) -> Option<hub::Registered> {
        let registration = self.apps.registration(name)?;
        let handle = self.apps.get(name)?;
        let mut detail = handle.view.borrow().detail.clone();
        detail.summary = summary(&handle);
        Some(hub::Registered { registration, detail })
    }

    async fn register(&self, wanted: hub::Wanted) -> Result<hub::Applying, Failure> {
        self.apps.register(wanted).await
    }

    fn prefetch(&self, name: &str, wake: bool) {
        if let Some(app) = self.apps.get(name) {
            // Fails only when the actor has ended.
            let _ = app.commands.send(Command::Prefetch { wake });
        }
    }

    async fn exec(&self, name: &str, exec: Exec) -> Result<Running, Failure> {
        let app = self.app(name)?;
        let gone = |_| Failure::new(ErrorCode::Busy, "the agent is going down");
        let (reply, place) = oneshot::channel();
        let _ = app.commands.send(Command::Exec(Box::new(exec), reply));
        place.await.map_err(gone)??.start().await
    }

    fn changes(&self) -> Arc<hub::Changes> {
        self.host.changes.clone()
    }
}

/// Resident memory of this process (proc_pid_statm(5)).
fn own_memory() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

/// Takes away everything that a stopped or crashed agent has left on the host: processes, namespaces, devices,
/// routes, mounts, cgroups. Checkpoints, files and records stay.
///
/// # Errors
/// When the agent still runs, or something cannot be taken away.
pub async fn cleanup(config: &Config) -> Result<Vec<String>, AgentError> {
    let mut removed = Vec::new();
    if !config.state_dir.exists() {
        Gate::remove(&gate_config(config)).await?;
        Fence::take_down(&fence_config(config))?;
        return Ok(removed);
    }
    let _lock = AgentLock::acquire(&config.state_dir)?;
    let tree = CgroupTree::open(&config.instance)?;
    removed.extend(
        end_all(&tree)?
            .into_iter()
            .map(|app| format!("processes of {app}")),
    );
    let apps = config.state_dir.join("apps");
    for dir in fs::read_dir(&apps).into_iter().flatten().filter_map(Result::ok) {
        let Some(name) = dir.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        let paths = AppPaths::new(&config.state_dir, &name);
        let addrs = match Record::read(&paths.dir) {
            Ok(Some(record)) => record.addresses,
            _ => Subnets::new(config.network.v4, config.network.v6)?.gate(),
        };
        let link = link_name(&config.instance, &name);
        let net = NetSpec {
            netns: paths.netns.clone(),
            link,
            addrs,
        };
        if crate::sandbox::net::exists(&net) {
            removed.push(format!("network of {name}"));
        }
        crate::sandbox::net::remove(&net).await?;
        unmount(&paths.root())?;
        let _ = fs::remove_file(paths.shim_socket());
    }
    Gate::remove(&gate_config(config)).await?;
    Fence::take_down(&fence_config(config))?;
    unmount(&config.state_dir.join("kdat"))?;
    unmount(&apps)?;
    tree.remove_all()?;
    let _ = fs::remove_file(config.socket());
    Ok(removed)
}

/// Ends every process of apps and shims.
fn end_all(tree: &CgroupTree) -> Result<Vec<String>, AgentError> {
    let names = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
        entries
            .filter(|entry| entry.path().is_dir())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    };
    let apps = tree.apps_path();
    let mut ended = Vec::new();
    for app in names(&apps) {
        for run in names(&apps.join(&app))
            .iter()
            .filter_map(|run| run.strip_prefix("run-")?.parse().ok())
        {
            let run = tree.run(&app, run)?;
            if run.populated()? && !ended.contains(&app) {
                ended.push(app.clone());
            }
            run.kill()?;
        }
        let shim = tree.shim(&app)?;
        if shim.path().exists() {
            shim.kill()?;
        }
    }
    Ok(ended)
}

fn unmount(path: &Path) -> Result<(), AgentError> {
    match umount2(path, MntFlags::empty()) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(at(path)(error.into())),
    }
}
