//! A shim and its CRIU that stand by for a warm app: everything that a wake would wait for before the restore itself,
//! done beforehand. Knows nothing of what is restored.
//!
//! Moving into the run's cgroup and starting CRIU are half of a warm wake otherwise (kernel-notes/sandbox.md). A shim
//! that stands by was asked nothing yet, so it ends by itself when its agent does; it is no state of the app, and no
//! wake depends on it.

use tokio::sync::OwnedSemaphorePermit;

use super::App;
use crate::lifecycle::state::State;
use crate::lifecycle::swap_in::Run;

/// A run that waits to be told what to restore.
pub(in crate::lifecycle) struct Standby {
    run: Run,
    /// Its share of what the host keeps ready.
    _permit: OwnedSemaphorePermit,
}

impl App {
    /// Lets a shim stand by for an app that is warm, while the host has room for one more.
    pub(super) async fn stand_by(&mut self) {
        // A name that is asked for is no reason to start anything.
        if self.state() != State::Warm || self.expected || self.standby.is_some() || self.standby_failed {
            return;
        }
        let Ok(permit) = self.host.standbys.clone().try_acquire_owned() else {
            return;
        };
        match self.prepare_run().await {
            Ok(run) => {
                self.standby = Some(Standby { run, _permit: permit });
            }
            Err(failed) => {
                // The wake tries again, and says so if it fails, too.
                tracing::warn!(
                    app = self.config.name,
                    reason = failed.reason(),
                    "no shim stands by"
                );
                self.standby_failed = true;
                self.end_stray_runs().await;
            }
        }
    }

    /// The run that stands by, for a wake.
    pub(in crate::lifecycle) fn take_standby(&mut self) -> Option<Run> {
        self.standby.take().map(|standby| standby.run)
    }

    /// Ends what stands by; what it used can be taken away then.
    pub(in crate::lifecycle) async fn dismiss_standby(&mut self) {
        if let Some(Standby { run, .. }) = self.standby.take() {
            let Run {
                client,
                events,
                cgroup,
            } = run;
            drop((client, events));
            self.end_run(cgroup).await;
        }
    }

    /// What stood by has ended by itself. The next wake begins without; after the next sleep there is another.
    pub(super) async fn standby_ended(&mut self) {
        tracing::warn!(app = self.config.name, "the shim that stood by has ended");
        self.standby_failed = true;
        self.dismiss_standby().await;
    }
}

/// Waits until what stands by has ended.
pub(super) async fn ended(standby: &mut Option<Standby>) {
    match standby {
        // It was asked nothing, so it says nothing.
        Some(standby) => while standby.run.events.recv().await.is_some() {},
        None => std::future::pending().await,
    }
}
