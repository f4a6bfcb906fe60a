//! Owns the credentials file: made on first start, kept ever after, told the endpoint on every start.
//! Must not know the server or the storage.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::names;

/// What a client needs to use the store. The JSON form of this is the credentials file.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    /// URL of the server.
    pub endpoint: String,
    /// Name of the key.
    pub access_key_id: String,
    /// The key itself.
    pub secret_access_key: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("endpoint", &self.endpoint)
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read or written.
    #[error("cannot {action} the credentials file {}: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file does not hold what it should.
    #[error(
        "the credentials file {} is not readable JSON ({source}); mend it, or remove it to get new credentials",
        path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Others could read the secret.
    #[error("the credentials file {} can be read by others; run: chmod 600 {}", .0.display(), .0.display())]
    Exposed(PathBuf),
}

impl Credentials {
    /// Reads the file, or makes it (mode 0600) with fresh random credentials, and writes `endpoint` into it.
    pub fn load_or_create(path: &Path, endpoint: String) -> Result<Credentials, CredentialsError> {
        let fail = |action| {
            move |source| CredentialsError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let credentials = match File::open(path) {
            Ok(mut file) => {
                let mode = file.metadata().map_err(fail("read"))?.permissions().mode();
                if mode & 0o077 != 0 {
                    return Err(CredentialsError::Exposed(path.to_owned()));
                }
                let mut text = String::new();
                file.read_to_string(&mut text).map_err(fail("read"))?;
                let known: Credentials =
                    serde_json::from_str(&text).map_err(|source| CredentialsError::Format {
                        path: path.to_owned(),
                        source,
                    })?;
                if known.endpoint == endpoint {
                    return Ok(known);
                }
                Credentials { endpoint, ..known }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Credentials::random(endpoint).map_err(fail("make random keys for"))?
            }
            Err(error) => return Err(fail("read")(error)),
        };
        credentials.write(path).map_err(fail("write"))?;
        Ok(credentials)
    }

    fn random(endpoint: String) -> io::Result<Credentials> {
        let access_key_id = format!("PICO{}", random_hex::<8>()?.to_uppercase());
        Ok(Credentials {
            endpoint,
            access_key_id,
            secret_access_key: random_hex::<32>()?,
        })
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        replace_file(path, &text)
    }
}

/// Writes a small file, readable by the owner only, so that others see the old one or the new one whole.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temp = path.as_os_str().to_owned();
    temp.push(format!(".{}.tmp", random_hex::<8>()?));
    let temp = PathBuf::from(temp);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temp, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temp);
    })
}

/// `N` random bytes in hex.
pub fn random_hex<const N: usize>() -> io::Result<String> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(names::hex(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_made_once_and_learn_the_endpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials.json");
        let first = Credentials::load_or_create(&path, "http://127.0.0.1:1".to_owned()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Credentials::load_or_create(&path, "http://127.0.0.1:2".to_owned()).unwrap();
        assert_eq!(again.secret_access_key, first.secret_access_key);
        let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(json["endpoint"], "http://127.0.0.1:2");
        assert_eq!(json["access_key_id"], first.access_key_id);
        assert!(!format!("{first:?}").contains(&first.secret_access_key));
    }

    #[test]
    fn a_file_others_can_read_or_nonsense_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials.json");
        replace_file(&path, b"nonsense").unwrap();
        let load = || Credentials::load_or_create(&path, String::new());
        assert!(matches!(load(), Err(CredentialsError::Format { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(load(), Err(CredentialsError::Exposed(_))));
    }
}
