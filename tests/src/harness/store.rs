//! The embedded S3 server (`pico-hub store`) as a background program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{bin, pagecache, process::Daemon};

/// The bucket every scenario uses.
pub const BUCKET: &str = "pico";

/// A running store; dropping it ends it.
#[derive(Debug)]
pub struct Store {
    daemon: Daemon,
    dir: PathBuf,
    address: String,
}

impl Store {
    /// Starts a store over `DIR/store` on a port of its choice, with its log and credentials in `dir`.
    ///
    /// # Errors
    /// When it does not come up: with its log.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_on(dir, "127.0.0.1:0")
    }

    fn start_on(dir: &Path, listen: &str) -> Result<Self> {
        let mut command = Command::new(bin::find("pico-hub")?);
        command
            .arg("store")
            .arg("--dir")
            .arg(dir.join("store"))
            .args(["--listen", listen]);
        command.arg("--credentials-file").arg(credentials(dir));
        let (daemon, address) = Daemon::start(
            &mut command,
            &dir.join("store.log"),
            Duration::from_secs(20),
            address_in,
        )?;
        Ok(Store {
            daemon,
            dir: dir.to_owned(),
            address,
        })
    }

    /// Kills it, as a host that goes down does, and starts it again on the same port.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn crash_and_restart(&mut self) -> Result<()> {
        self.daemon.kill()?;
        *self = Self::start_on(&self.dir.clone(), &self.address.clone())?;
        Ok(())
    }

    /// Host and port it listens on.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// The file with keys and endpoint that it wrote.
    pub fn credentials_file(&self) -> PathBuf {
        credentials(&self.dir)
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        self.daemon.log_tail()
    }

    /// Key and file size of every object in the bucket (the file holds a little metadata besides).
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn objects(&self) -> Result<BTreeMap<String, u64>> {
        let dir = self.dir.join("store/buckets").join(BUCKET).join("objects");
        if !dir.is_dir() {
            return Ok(BTreeMap::new());
        }
        let mut objects = BTreeMap::new();
        for path in pagecache::files(&dir)? {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let key = name.rsplit_once('.').map_or(name.as_str(), |(key, _version)| key);
            // An object may be replaced between the listing and this look.
            if let Ok(metadata) = path.metadata() {
                objects.insert(percent_decoded(key), metadata.len());
            }
        }
        Ok(objects)
    }
}

fn credentials(dir: &Path) -> PathBuf {
    dir.join("store-credentials.json")
}

/// `HOST:PORT` of the first `http://` URL in a line.
fn address_in(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("http://")?;
    let end = rest
        .find(|c: char| !(c.is_ascii_alphanumeric() || ".:[]-".contains(c)))
        .unwrap_or(rest.len());
    let address = rest[..end].trim_end_matches(['.', ':']);
    address.contains(':').then(|| address.to_owned())
}

fn percent_decoded(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.bytes();
    while let Some(byte) = rest.next() {
        let decoded = (byte == b'%').then(|| {
            let hex = [rest.next()?, rest.next()?];
            u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()
        });
        bytes.push(decoded.flatten().unwrap_or(byte));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The address a credentials file names, for people who talk to the store by hand.
///
/// # Errors
/// When the file cannot be read or is no JSON.
pub fn read_credentials(path: &Path) -> Result<serde_json::Value> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_what_the_store_prints() {
        for line in [
            "pico-hub store ready on http://127.0.0.1:4711",
            "listening: http://127.0.0.1:4711/, bucket pico",
        ] {
            assert_eq!(address_in(line).as_deref(), Some("127.0.0.1:4711"), "{line}");
        }
        assert_eq!(address_in("starting"), None);
    }

    #[test]
    fn object_names_read_like_keys() {
        assert_eq!(percent_decoded("apps%2fweb%2f1.pages"), "apps/web/1.pages");
        assert_eq!(percent_decoded("plain%"), "plain%");
    }
}
