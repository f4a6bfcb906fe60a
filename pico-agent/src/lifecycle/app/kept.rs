//! What an app keeps on this host's disk while it sleeps, and giving it up when others need the place.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::App;
use crate::lifecycle::cache::Kept;
use crate::lifecycle::state::State;
use crate::units::Timestamp;

impl App {
    /// Says what it keeps, whenever that may have changed.
    pub(super) async fn count_kept(&mut self) {
        let situation = (self.state(), self.record.checkpoint.generation, self.stored());
        if !self.host.cache.is_on() || self.counted == Some(situation) {
            return;
        }
        self.counted = Some(situation);
        let dirs = self.kept_dirs();
        let counted = tokio::task::spawn_blocking(move || dirs.iter().map(|dir| disk_bytes(dir)).sum());
        let kept = Kept {
            bytes: counted.await.unwrap_or_default(),
            used: self.record.checkpoint.taken.unwrap_or_else(Timestamp::now),
            replaceable: self.state().asleep() && self.stored(),
            give_way: self.give_way.clone(),
        };
        self.host.cache.keep(&self.config.name, kept);
    }

    /// Others need the place: gives up what is in the store, too, if it still must.
    pub(super) async fn give_way(&mut self) {
        if !self.host.cache.must_give_way(&self.config.name) || !self.stored() {
            return;
        }
        if self.state() == State::Warm {
            let _ = self.go_cold("other apps need the disk").await;
        }
        if self.state() == State::Cold {
            self.remove_kept().await;
        }
    }

    /// Removes what a cold app keeps.
    pub(super) async fn remove_kept(&mut self) {
        self.remove_dirs(self.kept_dirs()).await;
        self.counted = None;
    }

    /// Removes directories of the app. What cannot be removed now is, or is written over, the next time.
    pub(super) async fn remove_dirs(&self, dirs: Vec<PathBuf>) {
        let removed = tokio::task::spawn_blocking(move || {
            for dir in dirs {
                match fs::remove_dir_all(&dir) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        tracing::error!(path = %dir.display(), %error, "cannot remove");
                    }
                    _ => {}
                }
            }
        });
        if let Err(error) = removed.await {
            tracing::error!(%error, "cannot remove local state");
        }
    }

    fn kept_dirs(&self) -> Vec<PathBuf> {
        vec![
            self.paths.checkpoints(),
            self.paths.pages(),
            self.paths.transfers(),
        ]
    }
}

/// Bytes that everything in a directory takes on the disk. What goes away meanwhile counts nothing.
fn disk_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}
