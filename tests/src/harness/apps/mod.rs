//! Real apps from Debian packages, each with its configuration, a client written against its protocol,
//! and a check that its whole state is what it must be.

pub mod bind;
pub mod counter;
pub mod dns;
pub mod mosquitto;
pub mod nginx;
pub mod postgres;
pub mod redis;
pub mod sshd;
pub mod testapp;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::AppConfig;

pub use bind::Bind;
pub use counter::Counter;
pub use nginx::Nginx;
pub use postgres::Postgres;
pub use redis::Redis;
pub use testapp::TestApp;

/// How long one request may take, a wake from cold included.
pub const LIMIT: Duration = Duration::from_secs(20);

/// A protocol an app is asked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl std::fmt::Display for Proto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        })
    }
}

/// What the demo and the benches need of an app.
pub trait RealApp: Send {
    /// Its name, also in tables.
    fn name(&self) -> &'static str;

    /// The protocols it is asked by; the first is the one benches use.
    fn protocols(&self) -> &'static [Proto] {
        &[Proto::Tcp]
    }

    /// Its `[[app]]` section. What it needs on disk is written to `dir`, which outlives the app.
    ///
    /// # Errors
    /// When the package is not installed or `dir` cannot be written.
    fn config(&self, dir: &Path) -> Result<AppConfig>;

    /// Whether it answers at all, without its state.
    ///
    /// # Errors
    /// When it does not, as during its start.
    fn ready(&mut self, at: IpAddr) -> Result<()> {
        self.request(at, self.protocols()[0]).map(drop)
    }

    /// Fills it with its state, once, after its first start.
    ///
    /// # Errors
    /// When it does not take it.
    fn fill(&mut self, at: IpAddr) -> Result<()> {
        let _ = at;
        Ok(())
    }

    /// Forgets what the client knows of the app's state, before it is filled anew.
    fn forget(&mut self) {}

    /// One whole request on a new connection: the time from its begin to the last byte of the answer, which
    /// is compared with what it must be.
    ///
    /// # Errors
    /// When there is no answer within [`LIMIT`], or a wrong one.
    fn request(&mut self, at: IpAddr, proto: Proto) -> Result<Duration>;

    /// Compares all of its state with what it must be.
    ///
    /// # Errors
    /// When anything differs.
    fn check(&mut self, at: IpAddr) -> Result<()>;
}

/// The apps that demo and benches run.
pub fn all() -> Vec<Box<dyn RealApp>> {
    vec![Box::new(Nginx), Box::new(Redis::default()), Box::new(Bind)]
}

/// Writes one file of a seed directory, making the directories above it.
fn seed(dir: &Path, path: &str, content: &[u8]) -> Result<()> {
    let file = dir.join(path.trim_start_matches('/'));
    if let Some(parent) = file.parent() {
        std::fs::create_dir_all(parent)?;
    }
    Ok(std::fs::write(file, content)?)
}

/// Bytes that look random but are the same for the same number.
fn noise(number: u64, length: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b'a' + state.to_le_bytes()[3] % 26
    };
    (0..length).map(|_| next()).collect()
}
