//! Commands that run beside the app. While one does, the app does not sleep: a command is in no checkpoint.

use std::collections::BTreeMap;

use tokio::sync::mpsc;

use super::{App, Command, now};
use crate::control::protocol::{ErrorCode, Failure};
use crate::lifecycle::exec::{Ended, Exec, Place};
use crate::lifecycle::policy::Monotonic;
use crate::lifecycle::state::State;
use crate::sandbox::Cgroup;
use crate::sandbox::process::beside::BesideSpec;

/// The commands beside one app.
pub(in crate::lifecycle) struct Beside {
    running: BTreeMap<u64, Cgroup>,
    last: u64,
    /// When the last one ended: it was activity.
    pub(super) ended: Option<Monotonic>,
    actor: mpsc::WeakUnboundedSender<Command>,
}

impl Beside {
    pub(super) fn new(actor: mpsc::WeakUnboundedSender<Command>) -> Self {
        Beside {
            running: BTreeMap::new(),
            last: 0,
            ended: None,
            actor,
        }
    }

    /// How many run.
    pub(in crate::lifecycle) fn count(&self) -> usize {
        self.running.len()
    }
}

impl App {
    /// Gets ready for a command, and wakes the app for it if it sleeps.
    pub(super) async fn begin_beside(&mut self, exec: Exec) -> Result<Place, Failure> {
        if self.state().asleep() {
            self.wake("exec").await?;
        }
        let running = self.live.as_ref().filter(|_| self.state() == State::Hot);
        let Some((pid, run)) = running.and_then(|live| Some((live.pid?, live.cgroup.clone()))) else {
            let failure = self.wrong_state(format!(
                "no command can run beside an app that is {}",
                self.state()
            ));
            return Err(failure.hint("start the app first"));
        };
        let number = self.beside.last + 1;
        let cannot = |error: &dyn std::fmt::Display| Failure::new(ErrorCode::Failed, error.to_string());
        let cgroup = self.host.cgroups.beside(&self.config.name, number);
        let cgroup = cgroup.map_err(|error| cannot(&error))?;
        cgroup.create().map_err(|error| cannot(&error))?;
        let Some(actor) = self.beside.actor.upgrade() else {
            return Err(Failure::new(ErrorCode::Busy, "the agent is going down"));
        };
        self.beside.last = number;
        self.beside.running.insert(number, cgroup.clone());
        let mut sandbox = self.sandbox(cgroup);
        sandbox.command = exec.command;
        sandbox.env.retain(|(name, _)| !exec.env.contains_key(name));
        sandbox.env.extend(exec.env);
        if exec.user.is_some() {
            sandbox.user = exec.user;
        }
        if let Some(workdir) = exec.workdir {
            sandbox.workdir = workdir;
        }
        tracing::info!(
            app = self.config.name,
            number,
            program = sandbox.command.first(),
            "a command begins beside it"
        );
        Ok(Place {
            spec: BesideSpec { pid, run, sandbox },
            shim: self.host.shim.clone(),
            ended: Ended::new(actor, number),
        })
    }

    /// A command has ended, or nobody waits for it any more: what is left of it is ended, too.
    pub(super) async fn end_beside(&mut self, number: u64) {
        if let Some(cgroup) = self.beside.running.remove(&number) {
            self.beside.ended = Some(now());
            end_all(&self.config.name, vec![cgroup]).await;
        }
    }

    /// Ends all commands, those of an earlier agent included.
    pub(in crate::lifecycle) async fn end_all_beside(&mut self) {
        self.beside.running.clear();
        match self.host.cgroups.all_beside(&self.config.name) {
            Ok(groups) if groups.is_empty() => {}
            Ok(groups) => end_all(&self.config.name, groups).await,
            Err(error) => tracing::error!(app = self.config.name, %error, "cannot end its commands"),
        }
    }
}

async fn end_all(app: &str, groups: Vec<Cgroup>) {
    let end = move || {
        groups
            .iter()
            .try_for_each(|group| group.kill().and_then(|()| group.remove()))
    };
    match tokio::task::spawn_blocking(end).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(app, %error, "cannot end a command beside it"),
        Err(error) => tracing::error!(app, %error, "cannot end a command beside it"),
    }
}
