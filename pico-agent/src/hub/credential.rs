//! Who this agent is to the hub: `STATE/hub.json`, readable by its owner alone.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const FILE_NAME: &str = "hub.json";
/// Neither a token, a credential nor a file with certificates is longer.
const MAX_BYTES: u64 = 256 << 10;

/// What joining gave.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credential {
    /// The hub's name for this agent.
    pub agent_id: String,
    /// Sent with every call.
    pub secret: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential")
            .field("agent_id", &self.agent_id)
            .finish_non_exhaustive()
    }
}

/// Why there is no credential.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file refused.
    #[error("cannot {doing} {path} ({source})")]
    File {
        /// What was being done.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is there but is no credential.
    #[error("{path} is damaged ({why}); try: move it away and join again with a new token")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl Credential {
    /// Where it lies.
    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join(FILE_NAME)
    }

    /// Reads it; `None`: this agent has not joined.
    pub fn read(state_dir: &Path) -> Result<Option<Credential>, CredentialError> {
        let path = Credential::path(state_dir);
        let text = match read_text(&path) {
            Err(CredentialError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            text => text?,
        };
        let parsed = serde_json::from_str(&text).map_err(|error| CredentialError::Damaged {
            path,
            why: error.to_string(),
        });
        parsed.map(Some)
    }

    /// Writes it, so that it is on the disk when this returns.
    pub fn write(&self, state_dir: &Path) -> Result<(), CredentialError> {
        let path = Credential::path(state_dir);
        let temporary = path.with_extension("json.new");
        let write = || {
            let _ = fs::remove_file(&temporary);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)?;
            serde_json::to_writer(&mut file, self)?;
            file.flush()?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            fs::File::open(state_dir)?.sync_all()
        };
        write().map_err(|source| CredentialError::File {
            doing: "write",
            path: path.clone(),
            source,
        })
    }
}

/// The text of a small file.
pub(super) fn read_text(path: &Path) -> Result<String, CredentialError> {
    let failed = |source| CredentialError::File {
        doing: "read",
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(failed)?;
    io::Read::read_to_string(&mut io::Read::take(file, MAX_BYTES), &mut text).map_err(failed)?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_credential_is_kept_for_its_owner_alone_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Credential::read(dir.path()).unwrap().is_none());
        let credential = Credential {
            agent_id: "a1".to_owned(),
            secret: "s3cret".to_owned(),
        };
        for _ in 0..2 {
            credential.write(dir.path()).unwrap();
        }
        let path = Credential::path(dir.path());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read = Credential::read(dir.path()).unwrap().unwrap();
        assert_eq!((read.agent_id.as_str(), read.secret.as_str()), ("a1", "s3cret"));
        assert!(!format!("{read:?}").contains("s3cret"));
        fs::write(&path, "{").unwrap();
        assert!(matches!(
            Credential::read(dir.path()),
            Err(CredentialError::Damaged { .. })
        ));
    }
}
