//! How an app begins, ends, and is found again by a restarted agent.

use std::fs;

use super::app::{App, Files, STOP_GRACE};
use super::policy::{self, Found, Recovery};
use super::state::{Event, State};
use super::swap_in::{NotRunning, Run, is_root_mounted, mount_root};
use crate::control::protocol::{ErrorCode, Failure};
use crate::sandbox::{Limits, SandboxSpec};
use crate::shim::client::ShimClient;
use crate::shim::protocol::{self as shim, Phase, Request};

impl App {
    /// Starts the app anew, on its files as they are; a checkpoint of it is given up once it runs.
    pub(super) async fn start(&mut self, why: &str) -> Result<(), Failure> {
        if !matches!(self.state(), State::Stopped | State::Failed { .. }) {
            return Err(self.wrong_state(format!("an app that is {} cannot be started", self.state())));
        }
        self.settle_upload(false).await;
        self.ran_again();
        self.apply(Event::Start, why);
        match self.start_now().await {
            Ok(()) => {
                self.record.counters.starts += 1;
                self.started = self.now();
                self.forget_checkpoint();
                self.new_life();
                self.apply(Event::Started, why);
                self.save();
                Ok(())
            }
            Err(failed) => {
                self.fail("start", failed.reason());
                self.leave_run().await;
                self.end_stray_runs().await;
                self.apply(Event::StartFailed, failed.reason());
                self.save();
                let message = format!(
                    "'{}' could not be started ({})",
                    self.config.name,
                    failed.reason()
                );
                Err(Failure::new(ErrorCode::StartFailed, message))
            }
        }
    }

    async fn start_now(&mut self) -> Result<(), NotRunning> {
        self.have_files().await?;
        // What the app wrote may lie over a root that was replaced since: it starts afresh, so that is fine.
        let root = self.root();
        if !is_root_mounted(&root) && root.upper.is_dir() {
            crate::sandbox::forget_lower(&root).map_err(NotRunning::new)?;
        }
        mount_root(&root)?;
        crate::sandbox::net::create(&self.net())
            .await
            .map_err(NotRunning::new)?;
        let Run {
            client,
            mut events,
            cgroup,
        } = self.shim(false).await?;
        let spec = self.sandbox(cgroup.clone());
        client
            .send(&Request::Start(Box::new(spec)))
            .await
            .map_err(NotRunning::new)?;
        let pid = self.running(&client, &mut events).await?;
        self.live(client, events, cgroup, pid);
        let link = self.record.link.clone();
        self.host
            .gate
            .release(&self.config.name, &link)
            .await
            .map_err(NotRunning::new)?;
        Ok(())
    }

    /// The writable layer: as it is, else from the store, else from the seed.
    async fn have_files(&mut self) -> Result<(), NotRunning> {
        if self.paths.upper().is_dir() {
            return Ok(());
        }
        if let (Some(generation), Some(remote)) = (self.record.checkpoint.stored, self.remote()) {
            return remote.download(generation).await.map_err(NotRunning::new);
        }
        match &self.config.seed {
            Some(seed) => crate::sandbox::seed(&self.root(), seed).map_err(|error| {
                let _ = fs::remove_dir_all(self.paths.upper());
                NotRunning::new(error)
            }),
            None => Ok(()),
        }
    }

    pub(super) fn sandbox(&self, cgroup: crate::sandbox::Cgroup) -> SandboxSpec {
        let config = &self.config;
        SandboxSpec {
            hostname: config.hostname().to_owned(),
            root: self.root(),
            netns: self.paths.netns.clone(),
            cgroup,
            command: config.command.clone(),
            env: config.env.clone().into_iter().collect(),
            user: config.user.clone(),
            workdir: config.workdir.clone(),
            capabilities: config.sandbox.capabilities.clone(),
            no_new_privs: config.sandbox.no_new_privs,
            seccomp: config.sandbox.seccomp,
        }
    }

    /// What the app may use of the host.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            memory_bytes: self.config.memory.map(|size| size.0),
            cpus: self.config.cpus,
            pids: self.config.pids,
        }
    }

    /// Ends the app, asleep or not. Its files stay, its memory does not.
    pub(super) async fn stop(&mut self, why: &str) -> Result<(), Failure> {
        self.stay_down();
        if self.state() == State::Stopped {
            return Ok(());
        }
        self.end_prefetch().await;
        // A cold app's files are in the store alone, below the checkpoint that is given up now.
        if self.state() == State::Cold || !self.paths.upper().is_dir() {
            self.have_files().await.map_err(|failed| {
                let message = format!("its files cannot be fetched ({})", failed.reason());
                Failure::new(ErrorCode::Failed, message)
            })?;
        }
        self.settle_upload(false).await;
        self.apply(Event::Stop, why);
        if let Some(live) = &mut self.live {
            let grace_ms = u64::try_from(STOP_GRACE.as_millis()).unwrap_or(u64::MAX);
            if live.client.send(&Request::Stop { grace_ms }).await.is_ok() {
                while let Some(event) = live.events.recv().await {
                    if let shim::Event::Exited { .. } = event {
                        break;
                    }
                }
            }
        }
        self.leave_run().await;
        if self.state() == State::Stopping {
            self.apply(Event::Ended, why);
        }
        self.release_sandbox(Files::Stay).await;
        self.forget_checkpoint();
        self.save();
        Ok(())
    }

    /// What to do with the app when the agent has started.
    pub(super) async fn recover(&mut self) {
        let addresses = self.record.addresses;
        if let Err(error) = self
            .host
            .probes
            .watch(addresses.v4, addresses.v6, &self.config.ports)
        {
            tracing::error!(app = self.config.name, %error, "its activity cannot be seen");
        }
        self.host.gate.register(
            &self.config.name,
            addresses,
            &self.config.ports,
            self.wake_policy(),
        );
        // An earlier agent's: whoever asked for them has lost them.
        self.end_all_beside().await;
        let adopted = self.adopt().await;
        if !adopted && self.state() == State::Hot && self.ended_while_away().await {
            return;
        }
        let known = self.record.checkpoint.generation;
        self.newest_local_checkpoint();
        let generation = self.record.checkpoint.generation;
        if generation != known {
            self.record.connections = self.checkpoint_connections(generation);
        }
        let found = Found {
            recorded: (self.record.counters.starts > 0 || self.record.last_failure.is_some())
                .then_some(self.state()),
            shim_alive: adopted,
            local_checkpoint: self.record.checkpoint.local.is_some(),
            stored_checkpoint: self.record.checkpoint.stored.is_some(),
            after_crash: self.config.after_crash,
        };
        let (recovery, why) = policy::recover(&found);
        tracing::info!(app = self.config.name, ?recovery, why, "found");
        if recovery != Recovery::Adopt {
            if let Err(error) = self.host.gate.hold(&self.config.name).await {
                tracing::error!(app = self.config.name, %error, "cannot hold packets");
            }
            self.end_stray_runs().await;
        }
        match recovery {
            Recovery::Adopt => {
                let link = self.record.link.clone();
                if let Err(error) = self.host.gate.adopt(&self.config.name, &link).await {
                    tracing::error!(app = self.config.name, %error, "cannot let packets through");
                }
                self.found_as(State::Hot, why);
            }
            Recovery::Sleep(tier) => self.found_as(tier.into(), why),
            Recovery::Leave(state) => self.found_as(state, why),
            Recovery::Start if !self.starts => self.found_as(State::Stopped, "its owner wants it stopped"),
            Recovery::Start => {
                self.found_as(State::Stopped, why);
                if self.start(why).await.is_err() {
                    self.retry_start();
                }
            }
        }
    }

    /// The app ended by itself while no agent was there: its shim has written down how.
    async fn ended_while_away(&mut self) -> bool {
        let path = self.paths.run().join(crate::shim::server::EXIT_FILE);
        let Ok(bytes) = fs::read(&path) else { return false };
        let _ = fs::remove_file(&path);
        match serde_json::from_slice(&bytes) {
            Ok(shim::Event::Exited { exit, reason }) => {
                self.end_stray_runs().await;
                self.exited(exit, reason).await;
                true
            }
            _ => false,
        }
    }

    fn found_as(&mut self, state: State, why: &str) {
        if self.state() != state {
            self.record.situation.state = state;
            self.record.situation.since = crate::units::Timestamp::now();
            why.clone_into(&mut self.record.situation.reason);
        }
        self.save();
    }

    /// A swap-out that was committed just before the agent died has left a newer checkpoint than the record says.
    fn newest_local_checkpoint(&mut self) {
        let dirs = fs::read_dir(self.paths.checkpoints())
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        let newest = dirs
            .filter_map(|dir| dir.file_name().to_str()?.parse::<u64>().ok())
            .max();
        let checkpoint = &mut self.record.checkpoint;
        match newest {
            Some(generation) if generation >= checkpoint.generation && checkpoint.local.is_some() => {
                checkpoint.local = Some(generation);
                checkpoint.generation = generation;
            }
            Some(generation) if generation > checkpoint.generation => {
                checkpoint.local = Some(generation);
                checkpoint.generation = generation;
            }
            Some(_) => {}
            None => checkpoint.local = None,
        }
    }

    /// Takes up the shim that an earlier agent started, if it is there and its app runs.
    async fn adopt(&mut self) -> bool {
        let Ok((client, mut events)) = ShimClient::connect(&self.paths.shim_socket()) else {
            return false;
        };
        let Some(&run) = self.runs().last() else {
            return false;
        };
        let Ok(cgroup) = self.host.cgroups.run(&self.config.name, run) else {
            return false;
        };
        let pid = match events.recv().await {
            Some(shim::Event::Hello { version, phase, pid }) if version == shim::VERSION => {
                match (phase, pid) {
                    (Phase::Running, Some(pid)) => Some(pid),
                    // Its agent is gone: the dump is called off.
                    (Phase::Dumping, Some(pid)) => self.called_off(&client, &mut events).await.then_some(pid),
                    (Phase::Starting, _) => self.running(&client, &mut events).await.ok(),
                    _ => None,
                }
            }
            _ => None,
        };
        match pid {
            Some(pid) => {
                self.record.run = run;
                self.live(client, events, cgroup, pid);
                true
            }
            None => false,
        }
    }

    async fn called_off(
        &mut self,
        client: &ShimClient,
        events: &mut tokio::sync::mpsc::UnboundedReceiver<shim::Event>,
    ) -> bool {
        loop {
            match events.recv().await {
                Some(shim::Event::Failed { running, .. }) => return running,
                Some(shim::Event::DumpReady(_)) => {
                    if client.send(&Request::Commit { accept: false }).await.is_err() {
                        return false;
                    }
                }
                Some(shim::Event::Need { object, block }) => self.serve_block_to(client, object, block),
                Some(shim::Event::Dumped | shim::Event::Exited { .. }) | None => return false,
                Some(_) => {}
            }
        }
    }
}
