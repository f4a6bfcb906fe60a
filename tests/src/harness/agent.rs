//! `pico-agent` as a background program and as a command line.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::process::{Daemon, output};
use super::{AgentConfig, bin, until};

/// A started agent. Dropping it ends it and takes away all it made on the host.
#[derive(Debug)]
pub struct Agent {
    /// What it was started with; changes take effect at the next start.
    pub config: AgentConfig,
    dir: PathBuf,
    daemon: Option<Daemon>,
}

/// What `app show -j` says.
#[derive(Debug, Clone)]
pub struct Show(pub Value);

/// What `app show -j` says of the last wake.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct LastWake {
    /// The state it woke from: `warm` or `cold`.
    #[serde(alias = "from")]
    pub tier: String,
    /// What woke it: a port (`80/tcp`) or `command`.
    #[serde(default)]
    pub trigger: String,
    /// Bytes fetched from the store before the first response.
    pub fetched_bytes: u64,
    /// GETs sent to the store before the first response.
    #[serde(alias = "store_gets")]
    pub s3_gets: u64,
    /// Page faults served.
    #[serde(default)]
    pub faults: u64,
    /// Pages put into the app's memory.
    #[serde(default)]
    pub pages_installed: u64,
    /// Milliseconds by phase.
    #[serde(default, alias = "phases")]
    pub phases_ms: Value,
}

/// What `app show -j` says of the pages that its last wake brought ahead.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct Prefetch {
    /// The port it was for.
    pub port: Option<String>,
    /// Pages brought ahead.
    pub prefetched: u64,
    /// Of these: used after they had come.
    pub used: u64,
    /// Asked for before.
    pub late: u64,
    /// Not used.
    pub wasted: u64,
    /// Of which nobody knows.
    pub unknown: u64,
    /// Pages that somebody waited for and that were not to be brought.
    pub faulted: u64,
}

impl Prefetch {
    /// The part of the needed pages that was brought, where `unknowable` pages could not be known to be needed.
    pub fn recall(&self, unknowable: u64) -> f64 {
        let brought = self.used + self.late;
        let needed = brought + self.faulted.saturating_sub(unknowable);
        if needed == 0 {
            1.0
        } else {
            brought as f64 / needed as f64
        }
    }

    /// The part of the brought pages that was needed.
    pub fn precision(&self) -> f64 {
        let needed = (self.used + self.late) as f64;
        if self.prefetched == 0 {
            1.0
        } else {
            needed / (needed + self.wasted as f64)
        }
    }
}

impl Show {
    /// The text at a JSON pointer; empty when there is none.
    pub fn text(&self, pointer: &str) -> &str {
        self.0
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// The number at a JSON pointer.
    pub fn number(&self, pointer: &str) -> Option<u64> {
        self.0.pointer(pointer).and_then(Value::as_u64)
    }

    /// Its state: `hot`, `warm`, `cold`, `failed`, ...
    pub fn state(&self) -> &str {
        self.text("/state")
    }

    /// Why it is in that state, or why the last attempt to change it failed.
    pub fn reason(&self) -> &str {
        self.text("/reason")
    }

    /// What last went wrong with it: what was being done, and the reason.
    pub fn last_failure(&self) -> String {
        format!(
            "{}: {}",
            self.text("/last_failure/during"),
            self.text("/last_failure/reason")
        )
    }

    /// Pid of its first process on the host.
    ///
    /// # Errors
    /// When it has none.
    pub fn pid(&self) -> Result<u32> {
        let pid = self
            .number("/pid")
            .with_context(|| format!("no pid in {}", self.0))?;
        Ok(u32::try_from(pid)?)
    }

    /// How the pages that its last wake brought ahead turned out.
    ///
    /// # Errors
    /// When it was not learned from yet.
    pub fn prefetch(&self) -> Result<Prefetch> {
        let report = self.0.pointer("/last_wake/prefetch");
        let report = report.with_context(|| format!("no report of a wake in {}", self.0))?;
        serde_json::from_value(report.clone()).with_context(|| format!("it was not learned from: {}", self.0))
    }

    /// How often it was woken.
    pub fn wakes(&self) -> u64 {
        let count = |name: &str| self.number(&format!("/counters/{name}")).unwrap_or(0);
        count("wakes_warm") + count("wakes_cold")
    }

    /// Size of its checkpoint as it is stored.
    ///
    /// # Errors
    /// When it has none.
    pub fn checkpoint_bytes(&self) -> Result<u64> {
        self.number("/checkpoint/bytes")
            .with_context(|| format!("no checkpoint in {}", self.0))
    }

    /// The last wake.
    ///
    /// # Errors
    /// When there was none.
    pub fn last_wake(&self) -> Result<LastWake> {
        let wake = self
            .0
            .get("last_wake")
            .with_context(|| format!("no last_wake in {}", self.0))?;
        serde_json::from_value(wake.clone()).with_context(|| format!("last_wake: {wake}"))
    }
}

impl Agent {
    /// Starts an agent whose configuration and log lie in `dir`, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready: with its log.
    pub fn start(config: AgentConfig, dir: &Path) -> Result<Self> {
        let mut agent = Agent {
            config,
            dir: dir.to_owned(),
            daemon: None,
        };
        agent.run()?;
        Ok(agent)
    }

    /// Starts it again, with its configuration as it is now.
    ///
    /// # Errors
    /// When it runs already, or does not become ready.
    pub fn run(&mut self) -> Result<()> {
        if self.daemon.is_some() {
            bail!("the agent runs already");
        }
        self.config.write(&self.config_file())?;
        let mut command = Command::new(bin::find("pico-agent")?);
        command.args(["run", "--config"]).arg(self.config_file());
        let points = fail_points(&self.dir);
        if points.is_dir() {
            command.env("PICO_FAIL_POINTS", points);
        }
        let ready = |line: &str| line.contains("pico-agent ready").then_some(());
        let (daemon, ()) = Daemon::start(&mut command, &self.log(), Duration::from_secs(30), ready)?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Ends it by SIGTERM: it swaps all apps out first.
    ///
    /// # Errors
    /// When it does not end within a minute, or not with success.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        let status = daemon.stop(Duration::from_secs(60))?;
        if !status.success() {
            bail!("the agent ended with {status}\n{}", daemon.log_tail());
        }
        Ok(())
    }

    /// Ends it by SIGKILL: it can do nothing about it.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.take().context("the agent does not run")?.kill()
    }

    /// Asks it to read its configuration again, as it is now.
    ///
    /// # Errors
    /// When it does not run.
    pub fn reload(&self) -> Result<()> {
        self.config.write(&self.config_file())?;
        self.daemon
            .as_ref()
            .context("the agent does not run")?
            .signal(Signal::SIGHUP)
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.daemon.as_ref().context("the agent does not run")?.pid())
    }

    /// Its configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("agent.toml")
    }

    /// The file that holds what it says.
    pub fn log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        super::process::tail(&self.log(), 60)
    }

    /// `pico-agent ARGS` against it, for those who do not wait for its end.
    ///
    /// # Errors
    /// When the program is not built.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(bin::find("pico-agent")?);
        command
            .args(args)
            .env("PICO_AGENT_SOCKET", self.config.state_dir.join("agent.sock"));
        Ok(command)
    }

    /// Runs `pico-agent ARGS` against it and gives what it prints.
    ///
    /// # Errors
    /// When it fails: with its message.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        output(&mut self.command(args)?)
    }

    /// The same where a failure is what is looked for.
    ///
    /// # Errors
    /// Only when it cannot be started.
    pub fn try_cli(&self, args: &[&str]) -> Result<Output> {
        self.command(args)?.output().context("cannot start pico-agent")
    }

    /// `app show NAME -j`.
    ///
    /// # Errors
    /// When the command fails or prints no JSON.
    pub fn show(&self, app: &str) -> Result<Show> {
        let text = self.cli(&["app", "show", app, "-j"])?;
        let mut answer: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
        Ok(Show(
            answer
                .get_mut("app")
                .with_context(|| format!("no app in {text}"))?
                .take(),
        ))
    }

    /// `app sleep NAME --to TIER`, again while the end of a connection that was just closed is still on its way:
    /// a packet that comes meanwhile rightly calls a swap-out off.
    ///
    /// # Errors
    /// When it fails for another reason, or for 10 s.
    pub fn sleep(&self, app: &str, tier: &str) -> Result<()> {
        until(&format!("{app} asleep"), Duration::from_secs(10), || {
            let output = self.try_cli(&["app", "sleep", app, "--to", tier])?;
            let message = String::from_utf8_lossy(&output.stderr);
            match output.status.success() {
                true => Ok(Some(())),
                false if message.contains("called off") => Ok(None),
                false => bail!("{}", message.trim()),
            }
        })
    }

    /// Waits until the app is in one of `states`.
    ///
    /// # Errors
    /// When it is not within `limit`, or fails meanwhile: with its reason.
    pub fn wait(&self, app: &str, states: &[&str], limit: Duration) -> Result<Show> {
        let mut last = String::new();
        let found = until(&format!("{app} {}", states.join(" or ")), limit, || {
            let show = self.show(app)?;
            last = format!("{} {}", show.state(), show.reason());
            if states.contains(&show.state()) {
                return Ok(Some(show));
            }
            if show.state() == "failed" {
                bail!("{app} failed: {}", show.reason());
            }
            Ok(None)
        });
        found.with_context(|| format!("{app} is {last}"))
    }

    /// Waits, at most 20 s, until the app is in `state`.
    ///
    /// # Errors
    /// As [`Agent::wait`].
    pub fn wait_state(&self, app: &str, state: &str) -> Result<Show> {
        self.wait(app, &[state], Duration::from_secs(20))
    }

    /// The cgroup path that all of an app's processes are below.
    pub fn app_cgroup(&self, app: &str) -> String {
        format!("{}/apps/{app}", self.cgroup())
    }

    /// The cgroup path of an app's shim and keeper.
    pub fn shim_cgroup(&self, app: &str) -> String {
        format!("{}/shims/{app}", self.cgroup())
    }

    /// The root of all its cgroups.
    pub fn cgroup(&self) -> String {
        cgroup_root(&self.config.instance)
    }

    /// Ends it if it runs and takes away what it made on the host; checkpoints stay.
    ///
    /// # Errors
    /// When it does not end well or `pico-agent cleanup` fails.
    pub fn clean_up(&mut self) -> Result<()> {
        let stopped = self.stop();
        let mut command = Command::new(bin::find("pico-agent")?);
        output(command.args(["cleanup", "--config"]).arg(self.config_file()))?;
        stopped
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // A failure cannot be reported from here; what was not taken away, the leftovers check names.
        if self.config_file().exists() {
            let _ = self.clean_up();
        }
    }
}

/// Where an agent whose files lie in `dir` looks for moments to stop at, if the directory is there.
pub fn fail_points(dir: &Path) -> PathBuf {
    dir.join("fail-points")
}

/// The root of the cgroups of the agent with this `instance`.
pub fn cgroup_root(instance: &str) -> String {
    if instance.is_empty() {
        "pico".to_owned()
    } else {
        format!("pico-{instance}")
    }
}
