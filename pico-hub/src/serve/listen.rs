//! Sockets that the hub listens on. Knows addresses; not what is served.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};

use super::connection::Stream;
use crate::config::Address;

/// Who may connect to a unix socket: its owner and group. What they may do, their token says.
const SOCKET_MODE: u32 = 0o660;

/// A socket that is listened on.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The file of a unix socket; removed when dropped, unless another has taken its place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// Listens.
    ///
    /// # Errors
    /// What the system says; `AddrInUse` also for a unix socket on which somebody answers, and for a file that is no
    /// socket.
    pub(super) async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => Ok(Listener::Tcp(TcpListener::bind(address).await?)),
            Address::Unix(path) => {
                remove_stale(path)?;
                let listener = UnixListener::bind(path)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
                let inode = std::fs::symlink_metadata(path)?.ino();
                let path = path.clone();
                Ok(Listener::Unix(listener, SocketFile { path, inode }))
            }
        }
    }

    /// Whether TLS is spoken here, where there is TLS.
    pub(super) fn is_tcp(&self) -> bool {
        matches!(self, Listener::Tcp(_))
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Answers end in a small piece: waiting to fill packets would cost 40 ms each.
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Listener::Unix(listener, _) => Ok(Box::new(listener.accept().await?.0)),
        }
    }

    /// Where it listens, with the port it got: `127.0.0.1:7071`, `unix:/run/pico/hub.sock`.
    pub(super) fn address(&self) -> io::Result<Address> {
        match self {
            Listener::Tcp(listener) => Ok(Address::Tcp(listener.local_addr()?)),
            Listener::Unix(_, file) => Ok(Address::Unix(file.path.clone())),
        }
    }
}

/// Removes the socket of a hub that was killed.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(file) if file.file_type().is_socket() => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
            _ => Err(io::ErrorKind::AddrInUse.into()),
        },
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_left_by_a_killed_hub_is_replaced_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hub.sock");
        let address = Address::Unix(path.clone());
        let kind = |result: io::Result<Listener>| result.map(|_| ()).map_err(|error| error.kind());
        let listener = Listener::bind(&address).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, SOCKET_MODE);
        assert_eq!(
            kind(Listener::bind(&address).await),
            Err(io::ErrorKind::AddrInUse)
        );
        drop(listener);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        assert!(Listener::bind(&address).await.is_ok());
        std::fs::write(&path, "kept").unwrap();
        assert_eq!(
            kind(Listener::bind(&address).await),
            Err(io::ErrorKind::AddrInUse)
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"kept");
    }
}
