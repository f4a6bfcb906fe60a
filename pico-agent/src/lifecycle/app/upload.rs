//! The app's checkpoint on its way to the object store, and going cold, which needs it there.

use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinHandle;

use super::parts::Files;
use super::{App, now};
use crate::control::protocol::Failure;
use crate::failpoint;
use crate::lifecycle::policy::Failures;
use crate::lifecycle::state::Event;
use crate::lifecycle::transfer::{Remote, Stored, TransferError};

/// A checkpoint on its way to the store.
pub(in crate::lifecycle) struct Upload {
    pub generation: u64,
    pub(super) task: JoinHandle<Result<Stored, TransferError>>,
    packed: Arc<Mutex<bool>>,
}

impl App {
    /// The app's objects in the store.
    pub(in crate::lifecycle) fn remote(&self) -> Option<Remote> {
        let store = self.host.store.clone()?;
        let (app, paths) = (self.config.name.clone(), self.paths.clone());
        Some(Remote {
            store,
            app,
            paths,
            meter: self.meter.clone(),
            sources: self.sources.clone(),
            keeps: self.host.cache.is_on(),
        })
    }

    pub(super) fn stored(&self) -> bool {
        let checkpoint = &self.record.checkpoint;
        checkpoint.stored.is_some() && checkpoint.stored == Some(checkpoint.generation)
    }

    pub(in crate::lifecycle) fn begin_upload(&mut self) {
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

    pub(super) fn uploaded(&mut self, outcome: Result<Stored, TransferError>) {
        let Some(upload) = self.upload.take() else { return };
        match outcome {
            Ok(stored) => {
                self.upload_failures = Failures::default();
                let checkpoint = &mut self.record.checkpoint;
                checkpoint.stored = Some(upload.generation);
                checkpoint.manifest_etag = Some(stored.etag.0);
                checkpoint.bytes = stored.bytes;
                self.save();
                let _ = fs::remove_dir_all(self.paths.unanswered());
                return;
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
    pub(in crate::lifecycle) async fn settle_upload(&mut self, keeps_checkpoint: bool) {
        let Some(upload) = &self.upload else { return };
        if keeps_checkpoint && *lock(&upload.packed) {
            return;
        }
        if let Some(upload) = &mut self.upload {
            upload.task.abort();
            match (&mut upload.task).await {
                // It was done already: what it stored is the checkpoint that the next one replaces.
                Ok(outcome) => self.uploaded(outcome),
                Err(_aborted) => {
                    let _ = fs::remove_dir_all(self.paths.transfer(upload.generation));
                    self.upload = None;
                }
            }
        }
    }

    /// Gives up what this host has of a stored checkpoint; nothing of the app is left but its wake record, and copies of what
    /// is in the store, as far as there is a budget for them.
    pub(in crate::lifecycle) async fn go_cold(&mut self, why: &str) -> Result<(), Failure> {
        self.settle_upload(false).await;
        self.dismiss_standby().await;
        self.sources.close();
        self.learning = None;
        self.cold_now = false;
        self.expected = false;
        self.record.checkpoint.local = None;
        self.apply(Event::WentCold, why);
        // The record first: what is left after a crash here is removed by the next wake.
        self.save();
        failpoint::reach("agent.cold");
        self.release_sandbox(Files::Go).await;
        let mut dirs = vec![
            self.paths.checkpoints(),
            self.paths.upper(),
            self.paths.overlay_work(),
            self.paths.run(),
            self.paths.root(),
        ];
        if !self.host.cache.is_on() {
            dirs.extend([self.paths.pages(), self.paths.transfers()]);
        }
        self.remove_dirs(dirs).await;
        Ok(())
    }
}

pub(super) async fn join(
    task: &mut JoinHandle<Result<Stored, TransferError>>,
) -> Result<Stored, TransferError> {
    task.await.unwrap_or_else(|error| {
        Err(TransferError::Content {
            what: "the upload",
            reason: error.to_string(),
        })
    })
}

pub(super) async fn uploaded(upload: &mut Option<Upload>) -> Result<Stored, TransferError> {
    match upload {
        Some(upload) => join(&mut upload.task).await,
        None => std::future::pending().await,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
