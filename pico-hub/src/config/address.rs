//! Where a server listens: `127.0.0.1:7071` or `unix:/run/pico/hub.sock`.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// IP address and port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl Address {
    /// What is listened on where the file says nothing.
    pub fn default_list() -> Vec<Address> {
        vec![Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 7071)))]
    }

    /// Whether nobody but this host's own users can connect, or listen in.
    pub fn stays_on_host(&self) -> bool {
        match self {
            Address::Tcp(address) => address.ip().is_loopback(),
            Address::Unix(_) => true,
        }
    }

    /// Makes a relative path absolute.
    pub(super) fn resolve(&mut self, base: &Path) {
        if let Address::Unix(path) = self {
            *path = base.join(&*path);
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Address::Unix(path.into())),
            _ => text.parse().map(Address::Tcp).map_err(|_| {
                format!("'{text}' is no address; write 127.0.0.1:7071, [::1]:7071 or unix:/run/pico/hub.sock")
            }),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
