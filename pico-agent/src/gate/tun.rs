//! The TUN device's descriptor: opening or re-attaching it, reading and writing packets. The only place of the
//! gate with ioctl and `unsafe`. Knows nothing of apps or routes.
//!
//! Facts from the kernel's `drivers/net/tun.c`: one read gives one whole packet; a write is carried through
//! routing and to the next device before it returns (`tun_rx_batched` with its default of no batching), which is
//! what makes the order of writes the order of delivery; a persistent device without a descriptor stays, with its
//! addresses and routes, and drops what is sent to it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::net::if_::InterfaceFlags;
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

mod ioctl {
    use std::ffi::c_int;

    nix::ioctl_write_ptr_bad!(
        set_iff,
        nix::request_code_write!(b'T', 202, size_of::<c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_int_bad!(
        set_persist,
        nix::request_code_write!(b'T', 203, size_of::<c_int>())
    );
}

/// A deleted device shows as an error and nothing else.
const READY: Interest = Interest::READABLE.add(Interest::ERROR);

/// An attached TUN device.
#[derive(Debug)]
pub struct Tun {
    fd: AsyncFd<OwnedFd>,
}

impl Tun {
    /// Makes the device, or attaches to it when it exists and no process holds it (`EBUSY` otherwise, `EINVAL`
    /// when the name is another kind of device's), and marks it to stay when the descriptor closes. Needs a tokio
    /// runtime.
    pub fn attach(name: &str) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        // SAFETY: `ifreq` is plain data for which all zeros is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.is_empty() || name.len() >= request.ifr_name.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a device name has 1 to 15 bytes",
            ));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        let flags = InterfaceFlags::IFF_TUN | InterfaceFlags::IFF_NO_PI;
        // IFF_TUN and IFF_NO_PI are 0x1001.
        request.ifr_ifru.ifru_flags = i16::try_from(flags.bits()).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open, and `request` is an initialised ifreq that outlives the call.
        unsafe { ioctl::set_iff(file.as_raw_fd(), &request) }?;
        // SAFETY: the descriptor is open; the argument is an integer, no pointer.
        unsafe { ioctl::set_persist(file.as_raw_fd(), 1) }?;
        // SAFETY: an OwnedFd keeps one and the same descriptor open until it is dropped, and it is given away here.
        let fd = unsafe { AsyncFd::register_with_interest(OwnedFd::from(file), READY) };
        Ok(Self {
            fd: fd.map_err(io::Error::from)?,
        })
    }

    /// Waits until there may be something to read, or the device is gone, which the next [`Tun::read`] tells.
    /// Clear the guard when it finds nothing.
    pub async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.fd.ready(READY).await
    }

    /// Reads one packet; `None` when there is none.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            return match nix::unistd::read(self.fd.as_fd(), buffer) {
                Ok(length) => Ok(Some(length)),
                Err(Errno::EAGAIN) => Ok(None),
                Err(Errno::EINTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Hands one packet to the kernel as if it had come in by this device.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        loop {
            return match nix::unistd::write(self.fd.as_fd(), packet) {
                Ok(_) => Ok(()),
                Err(Errno::EINTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }
}
