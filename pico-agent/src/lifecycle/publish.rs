//! Makes a stored checkpoint the current one: writes its manifest over the one before, and over nobody else's.
//!
//! A conditional PUT says whether somebody else was first, unless its answer never came: the upload was called off
//! while it was under way, the store timed out, the agent died. Then this host's own manifest stands where another is
//! expected. So each manifest is kept on disk until the wake record has the outcome of its PUT, and what is found in the
//! store is compared with those.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::record::write_atomically;
use super::transfer::{Remote, TransferError, at, blocking};
use crate::checkpoint::keys;
use crate::checkpoint::manifest;
use crate::store::{ETag, Precondition, StoreError};

impl Remote {
    /// Writes `document`, the manifest of checkpoint `generation`, if the one in the store is still `previous` or one of
    /// this host whose PUT was never answered.
    ///
    /// # Errors
    /// When the store refuses, or another agent has stored a checkpoint meanwhile.
    pub(super) async fn publish(
        &self,
        generation: u64,
        document: &Bytes,
        previous: Option<ETag>,
    ) -> Result<ETag, TransferError> {
        let dir = self.paths.unanswered();
        let unanswered = blocking({
            let (dir, document) = (dir.clone(), document.clone());
            move || {
                let earlier = read_all(&dir)?;
                fs::create_dir_all(&dir).map_err(at(&dir))?;
                let path = dir.join(generation.to_string());
                write_atomically(&path, &document).map_err(at(&path))?;
                Ok(earlier)
            }
        })
        .await?;
        let key = keys::manifest(&self.app);
        let condition = previous.map_or(Precondition::Absent, Precondition::Matches);
        let etag = match self.store.put_if(&key, document.clone(), condition).await {
            Err(lost @ StoreError::Lost { .. }) => {
                let (found, etag) = self.store.get(&key, manifest::Limits::default().document).await?;
                if !unanswered.contains(&found) {
                    return Err(lost.into());
                }
                tracing::info!(
                    app = self.app,
                    "an earlier manifest of this host was stored after all"
                );
                let condition = Precondition::Matches(etag);
                self.store.put_if(&key, document.clone(), condition).await?
            }
            answered => answered?,
        };
        let path = self.paths.manifest();
        write_atomically(&path, document).map_err(at(&path))?;
        Ok(etag)
    }
}

/// Manifests whose PUT was begun and not answered.
fn read_all(dir: &Path) -> Result<Vec<Bytes>, TransferError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at(dir)(error)),
    };
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let paths = paths.map_err(at(dir))?;
    paths
        .iter()
        .map(|path| fs::read(path).map(Bytes::from).map_err(at(path)))
        .collect()
}
