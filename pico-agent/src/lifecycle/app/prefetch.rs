//! What a cold app needs first, fetched before anybody calls: its name was asked for, so a client is expected. Starts no
//! process; a wake that comes meanwhile takes what is there and on its way.

use std::fs;

use tokio::task::JoinHandle;

use super::{App, now};
use crate::lifecycle::state::{Event, State};
use crate::lifecycle::transfer::TransferError;

/// The first wave of a checkpoint on its way from the store.
pub(in crate::lifecycle) struct Prefetch {
    generation: u64,
    task: JoinHandle<Result<(), TransferError>>,
}

impl App {
    /// Begins it where there is something to fetch.
    pub(super) fn prefetch(&mut self) {
        if self.state() != State::Cold || self.prefetch.is_some() {
            return;
        }
        let Some(remote) = self.remote() else { return };
        // Still mounted after a wake that failed: the files below are replaced now.
        if let Err(error) = crate::sandbox::abandon_root(&self.root()) {
            tracing::warn!(app = self.config.name, %error, "nothing is fetched ahead");
            return;
        }
        let generation = self.record.checkpoint.generation;
        let task = tokio::spawn(async move { remote.download(generation).await });
        self.prefetch = Some(Prefetch { generation, task });
    }

    /// It has ended, and nobody has called: the app waits on the disk for a while.
    pub(super) fn prefetched(&mut self, outcome: Result<(), TransferError>) {
        let Some(Prefetch { generation, .. }) = self.prefetch.take() else {
            return;
        };
        match outcome {
            Ok(()) => {
                self.record.checkpoint.local = Some(generation);
                self.expected = true;
                self.warm_since = now();
                self.apply(Event::Fetched, "its name was asked for");
            }
            // A wake tries again.
            Err(error) => self.fail("prefetch", &error.to_string()),
        }
        self.save();
    }

    /// For a wake: whether all has come. What has not is fetched by the wake itself.
    pub(in crate::lifecycle) async fn join_prefetch(prefetch: Option<Prefetch>) -> bool {
        match prefetch {
            Some(mut prefetch) => join(&mut prefetch.task).await.is_ok(),
            None => false,
        }
    }

    /// Before the checkpoint is given up: nothing of it must come any more.
    pub(in crate::lifecycle) async fn end_prefetch(&mut self) {
        if let Some(mut prefetch) = self.prefetch.take() {
            prefetch.task.abort();
            let _ = join(&mut prefetch.task).await;
            let _ = fs::remove_dir_all(self.paths.transfer(prefetch.generation));
        }
    }
}

/// Waits for the end of a prefetch.
pub(super) async fn prefetched(prefetch: &mut Option<Prefetch>) -> Result<(), TransferError> {
    match prefetch {
        Some(prefetch) => join(&mut prefetch.task).await,
        None => std::future::pending().await,
    }
}

async fn join(task: &mut JoinHandle<Result<(), TransferError>>) -> Result<(), TransferError> {
    task.await.unwrap_or_else(|error| {
        Err(TransferError::Content {
            what: "the prefetch",
            reason: error.to_string(),
        })
    })
}
