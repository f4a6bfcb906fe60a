//! How a run of an app ends when nobody asked for it, and how every run is left. Knows nothing of how one begins.

use std::time::Duration;

use super::{App, now};
use crate::config::AfterCrash;
use crate::lifecycle::policy::{self, AfterExit};
use crate::lifecycle::record::{Exit as RecordedExit, ExitStatus};
use crate::lifecycle::state::Event;
use crate::sandbox::Cgroup;
use crate::shim::protocol::Exit;
use crate::units::Timestamp;

/// How long a shim may take to end once nothing is left of its run.
const SHIM_ENDS: Duration = Duration::from_secs(10);

impl App {
    /// The app's first process ended.
    pub(in crate::lifecycle) async fn exited(&mut self, exit: Exit, reason: Option<String>) {
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
    pub(in crate::lifecycle) async fn lost(&mut self, reason: &str) {
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
    pub(in crate::lifecycle) async fn leave_run(&mut self) {
        if let Err(error) = self.host.gate.hold(&self.config.name).await {
            tracing::error!(app = self.config.name, %error, "cannot hold packets");
        }
        self.dismiss_standby().await;
        self.end_all_beside().await;
        self.watch_no_more().await;
        let Some(live) = self.live.take() else { return };
        self.end_run(live.cgroup).await;
    }

    /// Ends whatever still runs in a run's cgroup and removes it, once shim and keeper, which watch it, have ended, too:
    /// the kernel may tell nobody that a cgroup that is removed had become empty.
    pub(in crate::lifecycle) async fn end_run(&self, cgroup: Cgroup) {
        let shim = self.host.cgroups.shim(&self.config.name);
        let ended = tokio::task::spawn_blocking(move || {
            cgroup.kill()?;
            shim?.wait_empty(SHIM_ENDS)?;
            cgroup.remove()
        });
        match ended.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(app = self.config.name, %error, "cannot end a run"),
            Err(error) => tracing::error!(app = self.config.name, %error, "cannot end a run"),
        }
    }
}
