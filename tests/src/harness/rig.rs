//! One scenario: an own network namespace, a store, an agent with apps, and the check that nothing is
//! left of them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::agent::{cgroup_root, fail_points};
use super::apps::{RealApp, TestApp};
use super::config::{HubConfig, NetworkConfig, StoreConfig};
use super::disk::SmallDisk;
use super::hub::Hub;
use super::leftovers::Leftovers;
use super::process::{await_exit, output, tail};
use super::shaper::Shaper;
use super::store::{BUCKET, Store};
use super::wait::until;
use super::{Agent, AgentConfig, AppConfig, net, pagecache, procs, slot::Slot};

/// What a scenario starts with.
#[derive(Debug)]
pub struct Plan {
    dir: TempDir,
    apps: Vec<AppConfig>,
    shaped: bool,
    host_network: Option<Slot>,
    criu: Option<PathBuf>,
    hub: bool,
    host_ports: Vec<String>,
    cache: String,
    state_disk: Option<String>,
}

/// A scenario under way.
#[derive(Debug)]
pub struct Rig {
    /// The agent.
    pub agent: Agent,
    /// The proxy before the store, where the plan has one.
    pub shaper: Option<Shaper>,
    /// The store.
    pub store: Store,
    /// The hub, where the plan has one.
    pub hub: Option<Hub>,
    leftovers: Leftovers,
    state_disk: Option<SmallDisk>,
    dir: TempDir,
    _slot: Option<Slot>,
}

impl Plan {
    /// A scenario called `name` (letters, digits, `-`), without apps.
    ///
    /// # Errors
    /// When there is no directory on disk for it.
    pub fn new(name: &str) -> Result<Self> {
        let dir = scratch(name)?;
        Ok(Plan {
            dir,
            apps: Vec::new(),
            shaped: false,
            host_network: None,
            criu: None,
            hub: false,
            host_ports: Vec::new(),
            // Otherwise cold apps would wake from this host's disk, and nothing would be seen of the store.
            cache: "0".into(),
            state_disk: None,
        })
    }

    /// Directory of everything this scenario writes.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Adds an app. Where it says nothing else it sleeps after a second and stays warm.
    #[must_use]
    pub fn app(mut self, mut app: AppConfig) -> Self {
        for (value, default) in [(&mut app.idle, "1s"), (&mut app.cold_after, "never")] {
            if value.is_empty() {
                default.clone_into(value);
            }
        }
        self.apps.push(app);
        self
    }

    /// Adds the [`TestApp`] under `name`, its configuration changed by `change`.
    ///
    /// # Errors
    /// When its root directory cannot be made.
    pub fn test_app(self, name: &str, change: impl FnOnce(&mut AppConfig)) -> Result<Self> {
        let mut app = TestApp::config(name, self.dir.path())?;
        change(&mut app);
        Ok(self.app(app))
    }

    /// Adds an app from Debian, its configuration changed by `change`.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn real_app(self, app: &dyn RealApp, change: impl FnOnce(&mut AppConfig)) -> Result<Self> {
        let mut app = app.config(self.dir.path())?;
        change(&mut app);
        Ok(self.app(app))
    }

    /// Puts the shaping proxy between agent and store.
    #[must_use]
    pub fn shaped(mut self) -> Self {
        self.shaped = true;
        self
    }

    /// Lets agent and shims stop at named moments ([`Rig::arm`]).
    ///
    /// # Errors
    /// When the directory for it cannot be made.
    pub fn fail_points(self) -> Result<Self> {
        std::fs::create_dir_all(fail_points(self.dir()))?;
        Ok(self)
    }

    /// Starts a hub, which the agent joins; the roots of its apps may lie in the scenario's directory.
    #[must_use]
    pub fn hub(mut self) -> Self {
        self.hub = true;
        self
    }

    /// Lets apps reach a port of this host, as `5432/tcp`.
    #[must_use]
    pub fn host_port(mut self, port: &str) -> Self {
        self.host_ports.push(port.to_owned());
        self
    }

    /// Lets sleeping apps keep so much on the disk, as `64M`: cold ones keep nothing otherwise.
    #[must_use]
    pub fn cache(mut self, bytes: &str) -> Self {
        bytes.clone_into(&mut self.cache);
        self
    }

    /// Gives the agent a disk of its own of so many bytes, as `64M`, for its state.
    #[must_use]
    pub fn state_disk(mut self, size: &str) -> Self {
        self.state_disk = Some(size.to_owned());
        self
    }

    /// Uses another CRIU than the agent would.
    #[must_use]
    pub fn criu(mut self, criu: PathBuf) -> Self {
        self.criu = Some(criu);
        self
    }

    /// Stays in the host's network namespace, with subnets of the slot's number.
    #[must_use]
    pub fn on_host_network(mut self, slot: Slot) -> Self {
        self.host_network = Some(slot);
        self
    }

    /// The configuration it would start with, for a store that is not there, and its directory.
    pub fn config(mut self) -> (AgentConfig, TempDir) {
        let store = StoreConfig {
            endpoint: "http://127.0.0.1:9".into(),
            bucket: BUCKET.into(),
            region: "us-east-1".into(),
            access_key_id: Some("test".into()),
            secret_access_key: Some("test".into()),
            credentials_file: None,
        };
        let config = self.agent_config(store);
        (config, self.dir)
    }

    fn agent_config(&mut self, store: StoreConfig) -> AgentConfig {
        let number = self.host_network.as_ref().map(Slot::number);
        for (app, host) in self.apps.iter_mut().zip(10..) {
            app.address
                .get_or_insert(Ipv4Addr::new(10, 77, number.unwrap_or(0), host));
        }
        AgentConfig {
            state_dir: self.dir.path().join("state"),
            // Own process id and a counter: unique among all agents of this host.
            instance: format!("{}{}", std::process::id(), sequence()),
            criu: self.criu.clone(),
            cache: self.cache.clone(),
            network: NetworkConfig {
                host_ports: std::mem::take(&mut self.host_ports),
                ..network(number)
            },
            store,
            hub: None,
            apps: std::mem::take(&mut self.apps),
        }
    }

    /// Starts everything.
    ///
    /// # Errors
    /// When a part does not come up; what was started is ended again.
    pub fn start(mut self) -> Result<Rig> {
        if self.host_network.is_none() {
            net::enter_own_namespace()?;
        }
        let store = Store::start(self.dir.path())?;
        let shaper = if self.shaped {
            Some(Shaper::start(store.address())?)
        } else {
            None
        };
        let endpoint = shaper.as_ref().map_or(store.address(), Shaper::address);
        let hub = if self.hub {
            Some(Hub::start(self.dir.path())?)
        } else {
            None
        };
        let mut config = self.agent_config(StoreConfig {
            endpoint: format!("http://{endpoint}"),
            bucket: BUCKET.into(),
            region: "us-east-1".into(),
            access_key_id: None,
            secret_access_key: None,
            credentials_file: Some(store.credentials_file()),
        });
        if let Some(hub) = &hub {
            config.hub = Some(HubConfig {
                address: hub.url(),
                join_token_file: hub.join_token()?,
                name: "host1".into(),
                roots: vec!["host".into(), self.dir.path().to_owned()],
            });
        }
        let leftovers = Leftovers::before(&cgroup_root(&config.instance), self.dir.path().to_owned())?;
        let disk = self.state_disk.as_ref();
        let state_disk = disk
            .map(|size| SmallDisk::on(&config.state_dir, size))
            .transpose()?;
        let agent = Agent::start(config, self.dir.path())?;
        let mut rig = Rig {
            agent,
            shaper,
            store,
            hub,
            leftovers,
            state_disk,
            dir: self.dir,
            _slot: self.host_network,
        };
        rig.claim()?;
        Ok(rig)
    }

    /// Starts everything, runs `body`, takes everything away and looks for leftovers.
    ///
    /// # Errors
    /// Of `body`, with the ends of the logs; or what is left.
    pub fn run(self, body: impl FnOnce(&mut Rig) -> Result<()>) -> Result<()> {
        let mut rig = self.start()?;
        if let Err(error) = body(&mut rig) {
            return Err(error.context(rig.explain()));
        }
        let logs = rig.explain();
        rig.finish().context(logs)
    }
}

impl Rig {
    /// Directory of everything this scenario writes.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Directory of all that is kept of an app on this host.
    pub fn app_dir(&self, app: &str) -> PathBuf {
        self.agent.config.state_dir.join("apps").join(app)
    }

    /// Waits until a sleeping app's checkpoint is in the store.
    ///
    /// # Errors
    /// When it is not within a minute.
    pub fn stored(&self, app: &str) -> Result<()> {
        until(&format!("{app} stored"), Duration::from_secs(60), || {
            let stored = self.agent.show(app)?.0.pointer("/checkpoint/stored") == Some(&true.into());
            Ok(stored.then_some(()))
        })
    }

    /// Drops a warm app's checkpoint from the page cache, as if it had slept for long.
    ///
    /// # Errors
    /// When there is none, or some of it stays in memory.
    pub fn drop_checkpoint_pages(&self, app: &str) -> Result<u64> {
        // An upload reads what is to be dropped.
        self.stored(app)?;
        let mut files = Vec::new();
        for name in ["ckpt", "pages"] {
            files.extend(pagecache::files(&self.app_dir(app).join(name))?);
        }
        let bytes = files
            .iter()
            .filter_map(|file| Some(file.metadata().ok()?.len()))
            .sum();
        let resident = pagecache::drop_files(&files)?;
        if resident > 0 {
            bail!("{resident} bytes of {app}'s checkpoint stay in memory");
        }
        Ok(bytes)
    }

    /// The client of the [`TestApp`] called `name`.
    ///
    /// # Errors
    /// When there is no such app.
    pub fn test_app(&self, name: &str) -> Result<TestApp> {
        Ok(TestApp::at(self.v4(name)?))
    }

    /// The client of the [`TestApp`] called `name`, once it answers.
    ///
    /// # Errors
    /// When it does not within 20 s.
    pub fn ready(&self, name: &str) -> Result<TestApp> {
        // With a short idle time it may sleep before anybody looks.
        self.agent
            .wait(name, &["hot", "warm", "cold"], Duration::from_secs(20))?;
        let app = self.test_app(name)?;
        super::within(Duration::from_secs(20), || app.ask("ping"))?;
        Ok(app)
    }

    /// The parent of an app's first process: its shim.
    ///
    /// # Errors
    /// When the app does not run.
    pub fn shim_of(&self, app: &str) -> Result<u32> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.agent.show(app)?.pid()?))?;
        Ok(procs::field(&status, "PPid").context("no PPid")?.parse()?)
    }

    /// The processes of an app itself: those in its pid namespace. A CRIU that has just restored it may be in its
    /// cgroup for a moment longer. Of an app without a process: whatever is left in its cgroup, but for a CRIU that
    /// stands by for its next wake, in the pid namespace of the host.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn processes(&self, app: &str) -> Result<Vec<procs::Process>> {
        let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let of_app = self.agent.show(app)?.pid().ok().and_then(namespace);
        let mut processes = procs::in_cgroup(&self.agent.app_cgroup(app))?;
        let of_host = namespace(std::process::id());
        processes.retain(|process| match &of_app {
            Some(_) => namespace(process.pid) == of_app,
            None => namespace(process.pid) != of_host,
        });
        Ok(processes)
    }

    /// The IPv4 service address of an app.
    ///
    /// # Errors
    /// When there is no such app.
    pub fn v4(&self, app: &str) -> Result<IpAddr> {
        let app = self
            .agent
            .config
            .apps
            .iter()
            .find(|config| config.name == app)
            .context("no such app")?;
        Ok(app.address.context("no address")?.into())
    }

    /// The IPv6 service address of an app.
    ///
    /// # Errors
    /// When there is no such app.
    pub fn v6(&self, app: &str) -> Result<IpAddr> {
        let IpAddr::V4(v4) = self.v4(app)? else {
            bail!("not an IPv4 address")
        };
        Ok(self.agent.config.v6_of(v4)?.into())
    }

    /// Remembers the BPF objects of the agent as it runs now, for the leftovers check.
    ///
    /// # Errors
    /// When the agent does not run.
    pub fn claim(&mut self) -> Result<()> {
        self.leftovers.claim(self.agent.pid()?)
    }

    /// Starts the agent again after its end.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart_agent(&mut self) -> Result<()> {
        self.agent.run()?;
        self.claim()
    }

    /// The next process that comes to `moment` is to stop itself there (`pico_agent::failpoint`).
    ///
    /// # Errors
    /// When the plan has no fail points.
    pub fn arm(&self, moment: &str) -> Result<()> {
        let dir = fail_points(self.dir());
        match std::fs::remove_file(dir.join(format!("{moment}.reached"))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        std::fs::write(dir.join(moment), "").context("the plan has no fail points")
    }

    /// Waits until a process has come to an armed moment: its process id. It stands still, or is about to.
    ///
    /// # Errors
    /// When none does.
    pub fn reached(&self, moment: &str) -> Result<u32> {
        let path = fail_points(self.dir()).join(format!("{moment}.reached"));
        let pid = until(moment, Duration::from_secs(20), || {
            Ok(std::fs::read_to_string(&path).ok())
        })?;
        let pid = pid.parse()?;
        until("the process to stop", Duration::from_secs(5), || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let state = procs::field(&status, "State").unwrap_or_default();
            Ok(state.starts_with('T').then_some(()))
        })?;
        Ok(pid)
    }

    /// The proxy before the store.
    ///
    /// # Errors
    /// When the plan has none.
    pub fn shaper(&self) -> Result<&Shaper> {
        self.shaper.as_ref().context("the scenario is not shaped")
    }

    /// What a crash of the host does: every process of the project, namespace, cgroup, mount and device is
    /// gone; the files stay. The scenario goes on in a new network namespace with a restarted store.
    ///
    /// # Errors
    /// When something cannot be taken away.
    pub fn crash_host(&mut self) -> Result<()> {
        if self.shaper.is_some() {
            bail!("the shaping proxy cannot move to another network namespace");
        }
        self.agent.kill()?;
        let root = self.agent.cgroup();
        for process in procs::in_cgroup(&root)? {
            // It may be gone already: the keeper kills the app when the shim goes.
            let _ = nix::sys::signal::kill(
                super::process::pid(process.pid),
                nix::sys::signal::Signal::SIGKILL,
            );
            if !await_exit(process.pid, Duration::from_secs(10))? {
                bail!("{process} cannot be killed");
            }
        }
        let dir = self.dir.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter(|point| point.starts_with(&dir)).rev() {
            output(Command::new("umount").args(["-l", point]))?;
        }
        for group in procs::cgroup_dirs(&root)? {
            remove_cgroups(&group)?;
        }
        net::enter_own_namespace()?;
        self.store.crash_and_restart()
    }

    /// Ends and takes away everything.
    ///
    /// # Errors
    /// When the end goes wrong or something is left.
    pub fn finish(mut self) -> Result<()> {
        let left = self.take_away()?;
        if left.is_empty() {
            Ok(())
        } else {
            bail!("left behind:\n  {}", left.join("\n  "))
        }
    }

    /// Ends and takes away everything, and says what is left.
    ///
    /// # Errors
    /// When the end itself goes wrong.
    pub fn take_away(&mut self) -> Result<Vec<String>> {
        if self.agent.pid().is_ok() {
            self.claim()?;
        }
        self.agent.clean_up()?;
        if let Some(mut hub) = self.hub.take() {
            hub.stop()?;
        }
        self.state_disk = None;
        self.leftovers.after_except(self.store.pid())
    }

    /// Ends the scenario and leaves everything running, files included.
    pub fn leave(mut self) {
        self.dir.disable_cleanup(true);
        // Nothing of it may be dropped: dropping is what takes it away.
        std::mem::forget(self);
    }

    /// The ends of the logs, for error messages. `PICO_KEEP_LOGS=DIR` copies them whole.
    pub fn explain(&self) -> String {
        if let Some(dir) = std::env::var_os("PICO_KEEP_LOGS") {
            let target = Path::new(&dir).join(self.dir.path().file_name().unwrap_or_default());
            let _ = output(Command::new("cp").arg("-r").arg(self.dir.path()).arg(target));
        }
        let log = |name: &str, lines| tail(&self.dir.path().join(name), lines);
        format!(
            "{}\n{}\n{}",
            log("agent.log", 60),
            log("store.log", 10),
            log("hub.log", 20)
        )
    }
}

/// A directory on a real disk: checkpoints in memory would make warm wakes look better than they are.
///
/// # Errors
/// When there is none.
pub fn scratch(name: &str) -> Result<TempDir> {
    let place = std::env::var_os("PICO_TEST_DIR").map_or(PathBuf::from("/var/tmp"), PathBuf::from);
    if procs::in_memory(&place)? {
        bail!(
            "{} is in memory; set PICO_TEST_DIR to a directory on disk",
            place.display()
        );
    }
    let dir = tempfile::Builder::new()
        .prefix(&format!("pico-{name}-"))
        .tempdir_in(&place)?;
    // Apps that drop to their own user must reach their root below it.
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(dir)
}

fn sequence() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("x{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn network(number: Option<u8>) -> NetworkConfig {
    match number {
        None => NetworkConfig {
            tun: "pico0".into(),
            v4: "10.77.0.0/24".into(),
            v6: "fd77:7069:636f::/64".into(),
            table: 7769,
            host_ports: Vec::new(),
        },
        Some(number) => NetworkConfig {
            tun: format!("pico{number}"),
            v4: format!("10.77.{number}.0/24"),
            v6: format!("fd77:7069:636f:{number:x}::/64"),
            table: 7769 + u32::from(number),
            host_ports: Vec::new(),
        },
    }
}

fn remove_cgroups(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroups(&entry.path())?;
        }
    }
    super::within(Duration::from_secs(5), || {
        std::fs::remove_dir(dir).with_context(|| format!("cannot remove {}", dir.display()))
    })
}
