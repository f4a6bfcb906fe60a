//! When packets came and went, by the kernel's own clock readings: whoever reads or sends them may have waited for a
//! processor before or after. `SO_TIMESTAMPNS` and `SO_TIMESTAMPING`, socket(7) and the kernel's
//! `networking/timestamping`; all on `CLOCK_REALTIME`, here as time since its epoch.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, RawFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, TimestampingFlag, recvmsg, setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A connection that notes when the last byte that was read of it had come.
#[derive(Debug)]
pub(super) struct Stamped {
    stream: TcpStream,
    came: Came,
}

/// When the last byte came that was read of a connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Came(Arc<Mutex<Duration>>);

impl Came {
    /// Zero before the first byte.
    pub(super) fn last(&self) -> Duration {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stamped {
    /// Connects; `came` is kept up to date from then on.
    pub(super) async fn connect(to: SocketAddr, came: Came) -> io::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::ReceiveTimestampns, &true)?;
        Ok(Stamped { stream, came })
    }

    fn read(&self, buffer: &mut ReadBuf<'_>) -> io::Result<()> {
        let (length, at) = take(
            self.stream.as_raw_fd(),
            buffer.initialize_unfilled(),
            MsgFlags::MSG_DONTWAIT,
        )?;
        buffer.advance(length);
        if let Some(at) = at {
            *self.came.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
        }
        Ok(())
    }
}

impl AsyncRead for Stamped {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(task))?;
            match self.stream.try_io(Interest::READABLE, || self.read(buffer)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl AsyncWrite for Stamped {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(task, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}

/// Makes the kernel note when each datagram of a socket leaves, for [`left`], and comes, for [`receive`].
pub(super) fn stamp(socket: &UdpSocket) -> io::Result<()> {
    let flags = TimestampingFlag::SOF_TIMESTAMPING_TX_SOFTWARE
        | TimestampingFlag::SOF_TIMESTAMPING_RX_SOFTWARE
        | TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE;
    Ok(setsockopt(socket, sockopt::Timestamping, &flags)?)
}

/// When the datagram left that was sent last; to be asked once for each.
pub(super) fn left(socket: &UdpSocket) -> io::Result<Duration> {
    let (_, at) = take(socket.as_raw_fd(), &mut [0; 512], MsgFlags::MSG_ERRQUEUE)?;
    at.ok_or_else(|| io::Error::other("the kernel does not say when a datagram left"))
}

/// The next datagram's length, and when it came.
pub(super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Duration)> {
    let (length, at) = take(socket.as_raw_fd(), buffer, MsgFlags::empty())?;
    let at = at.ok_or_else(|| io::Error::other("the kernel does not say when a datagram came"))?;
    Ok((length, at))
}

/// What is read, and the time that the kernel has put beside it.
fn take(fd: RawFd, buffer: &mut [u8], flags: MsgFlags) -> io::Result<(usize, Option<Duration>)> {
    let mut control = cmsg_space!([libc::timespec; 3], libc::sock_extended_err, libc::sockaddr_in);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(fd, &mut parts, Some(&mut control), flags)?;
    let at = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmTimestampns(at) => Some(at),
        ControlMessageOwned::ScmTimestampsns(stamps) => Some(stamps.system),
        _ => None,
    });
    Ok((message.bytes, at.map(Duration::from)))
}
