//! What the hub's apps are asked besides: to take up another configuration, to be ready for a client, to be gone.

use std::fs;
use std::io;
use std::path::Path;

use super::App;
use super::parts::Files;
use crate::config::AppConfig;
use crate::control::protocol::{ErrorCode, Failure};
use crate::lifecycle::registration;
use crate::lifecycle::state::{Event, State};

impl App {
    /// Takes up a configuration. What only a new process can take up waits for that.
    pub(super) fn configure(&mut self, config: AppConfig) -> Result<(), Failure> {
        self.config = config;
        let addresses = self.record.addresses;
        self.host.gate.register(
            &self.config.name,
            addresses,
            &self.config.ports,
            self.wake_policy(),
        );
        let refused = |error: &dyn std::fmt::Display| {
            Failure::new(
                ErrorCode::Failed,
                format!("its new configuration cannot be taken up ({error})"),
            )
        };
        self.host
            .probes
            .watch(addresses.v4, addresses.v6, &self.config.ports)
            .map_err(|error| refused(&error))?;
        if self.live.is_some() {
            let limits = self.limits();
            let group = self.host.cgroups.app(&self.config.name, &limits);
            group.map_err(|error| refused(&error))?;
        }
        Ok(())
    }

    /// Ends the app and removes all of it, here and in the store, but for its registration, by which it is known that
    /// this was begun. Nothing is left half: what fails is tried again, and finds less to do.
    pub(super) async fn delete(&mut self) -> Result<(), Failure> {
        self.stay_down();
        // An upload that is cut off may still be carried out by the store, behind our back.
        self.finish_upload().await;
        self.end_prefetch().await;
        if self.state() != State::Stopped {
            self.apply(Event::Stop, "deleted by its owner");
        }
        self.leave_run().await;
        self.end_stray_runs().await;
        if self.state() == State::Stopping {
            self.apply(Event::Ended, "deleted by its owner");
        }
        self.release_sandbox(Files::Go).await;
        let name = &self.config.name;
        if let Some(remote) = self.remote() {
            remote.remove().await.map_err(|error| {
                Failure::new(
                    ErrorCode::Failed,
                    format!("'{name}' cannot be removed from the store ({error})"),
                )
            })?;
        }
        self.host.cache.forget(name);
        self.host.gate.unregister(name);
        self.host.traces.forget(self.number);
        let addresses = self.record.addresses;
        if let Err(error) = self.host.probes.forget(addresses.v4, addresses.v6) {
            tracing::warn!(app = name, %error, "what was counted of it stays until the agent ends");
        }
        let dir = self.paths.dir.clone();
        let removed = tokio::task::spawn_blocking(move || remove_all_but(&dir, registration::FILE_NAME));
        let outcome = removed.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        outcome.map_err(|error| {
            Failure::new(
                ErrorCode::Failed,
                format!("{}: {error}", self.paths.dir.display()),
            )
        })
    }
}

/// Removes everything in a directory but one file.
fn remove_all_but(dir: &Path, kept: &str) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == kept {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
