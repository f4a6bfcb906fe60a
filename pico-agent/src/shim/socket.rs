//! Packets with descriptors on unix sockets.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    accept4, bind, listen, recv, recvmsg, send, sendmsg, socket, socketpair,
};

/// A pair of connected SOCK_SEQPACKET sockets, closed on exec.
///
/// # Errors
/// When descriptors run out.
pub fn packet_pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
}

/// Sends one packet, with a descriptor if there is one.
///
/// # Errors
/// When the peer is gone (EPIPE) or, on a non-blocking socket, does not read (EAGAIN).
pub fn send_packet(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<RawFd>) -> nix::Result<()> {
    match fd {
        None => send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).map(drop),
        Some(fd) => {
            let fds = [fd];
            let control = [ControlMessage::ScmRights(&fds)];
            let parts = [IoSlice::new(bytes)];
            sendmsg::<()>(socket.as_raw_fd(), &parts, &control, MsgFlags::MSG_NOSIGNAL, None).map(drop)
        }
    }
}

/// Receives one packet of at most `buffer.len()` bytes; 0 when the peer is gone.
///
/// # Errors
/// Those of recv(2); a packet that does not fit is EMSGSIZE.
pub fn receive_packet(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> nix::Result<usize> {
    let len = recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC)?;
    if len > buffer.len() {
        Err(Errno::EMSGSIZE)
    } else {
        Ok(len)
    }
}

/// Receives up to `buffer.len()` bytes together with at most one descriptor.
///
/// # Errors
/// Those of recvmsg(2).
pub fn receive_with_fd(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> nix::Result<(usize, Option<OwnedFd>)> {
    let mut control = nix::cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut received = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel just installed this descriptor for this process; nothing else owns it.
                received = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok((message.bytes, received))
}

/// A unix socket that listens at `path`; named through its directory, since a socket's path is short.
///
/// # Errors
/// When the directory is missing or the path is taken.
pub fn listen_at(path: &Path, kind: SockType) -> io::Result<OwnedFd> {
    let (_dir, address) = short_address(path)?;
    let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
    bind(fd.as_raw_fd(), &address)?;
    listen(&fd, Backlog::new(8)?)?;
    Ok(fd)
}

/// Connects to a SOCK_SEQPACKET socket that listens at `path`.
///
/// # Errors
/// When none listens there.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let (_dir, address) = short_address(path)?;
    let fd = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    nix::sys::socket::connect(fd.as_raw_fd(), &address)?;
    Ok(fd)
}

/// An address of at most 108 bytes for any path, valid while the directory is open (unix(7)).
fn short_address(path: &Path) -> io::Result<(File, UnixAddr)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = File::open(parent)?;
    let short = Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name);
    let address = UnixAddr::new(&short)?;
    Ok((dir, address))
}

/// Accepts one connection.
///
/// # Errors
/// Those of accept4(2).
pub fn accept(listener: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 just returned this descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
