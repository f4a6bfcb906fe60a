//! One address space that is served on demand: its userfaultfd, and the calls that fill it.
//!
//! The only place with unsafe code of the pager. Facts: userfaultfd(2), ioctl_userfaultfd(2), and
//! kernel-notes/userfaultfd.md.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use nix::libc;
use userfaultfd::{Error, Event, EventBuffer, Uffd};

use crate::checkpoint::index::{PAGE_BYTES, PAGE_SIZE};

/// Bytes of one page, aligned as the kernel copies them fastest.
#[derive(Debug, Clone)]
#[repr(align(4096))]
pub struct Page(pub [u8; PAGE_BYTES]);

impl Default for Page {
    fn default() -> Self {
        Page([0; PAGE_BYTES])
    }
}

/// The bytes of adjacent pages.
pub fn bytes_mut(pages: &mut [Page]) -> &mut [u8] {
    let length = size_of_val(pages);
    // SAFETY: a page is nothing but its bytes, without gaps, so the pages are `length` bytes; any bytes are pages; the
    // borrow of the result is that of the pages.
    unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), length) }
}

/// How an attempt to fill a page ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// The page is there now, and waiting threads run on.
    Done,
    /// An event of this address space is unread; nothing was filled.
    Busy,
    /// The page is not mapped (any more), or not registered.
    Unmapped,
    /// The address space is gone: its process has exited or executed another program.
    Gone,
}

/// A change of the address space, or a thread that waits.
#[derive(Debug)]
pub enum Change {
    /// A thread waits for this page number.
    Fault(u64),
    /// The process forked; the child's memory is served by this descriptor.
    Fork(OwnedFd),
    /// Pages moved: from, to, count.
    Remap(u64, u64, u64),
    /// Pages discarded or unmapped: first, end.
    Remove(u64, u64),
}

/// A userfaultfd with missing-page faults and events enabled.
#[derive(Debug)]
pub struct Memory {
    uffd: Uffd,
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }
}

impl Memory {
    /// Takes over a non-blocking userfaultfd.
    pub fn new(fd: OwnedFd) -> Self {
        // SAFETY: the descriptor is open and owned; ownership passes to the new value.
        let uffd = unsafe { Uffd::from_raw_fd(fd.into_raw_fd()) };
        Memory { uffd }
    }

    /// Reads what is pending. Changes come before faults: a thread whose change was read runs on at once, so
    /// the change must be known before the next page is filled.
    ///
    /// # Errors
    /// When the descriptor cannot be read.
    pub fn read(&self, buffer: &mut EventBuffer) -> Result<Vec<Change>, Error> {
        let page = |address: *mut libc::c_void| address.addr() as u64 / PAGE_SIZE;
        let mut changes = Vec::new();
        let mut faults = Vec::new();
        for event in self.uffd.read_events(buffer)? {
            match event? {
                Event::Pagefault { addr, .. } => faults.push(Change::Fault(page(addr))),
                Event::Fork { uffd } => {
                    // `into_raw_fd` of userfaultfd 0.9 closes the descriptor that it returns.
                    let uffd = std::mem::ManuallyDrop::new(uffd);
                    // SAFETY: the kernel made this descriptor for us, and its other owner is never dropped.
                    changes.push(Change::Fork(unsafe { OwnedFd::from_raw_fd(uffd.as_raw_fd()) }));
                }
                Event::Remap { from, to, len } => {
                    changes.push(Change::Remap(page(from), page(to), len as u64 / PAGE_SIZE));
                }
                Event::Remove { start, end } | Event::Unmap { start, end } => {
                    changes.push(Change::Remove(page(start), page(end)));
                }
            }
        }
        changes.append(&mut faults);
        Ok(changes)
    }

    /// Fills page `number` with `content` and wakes who waits for it.
    ///
    /// # Errors
    /// Those that no state of the app explains.
    pub fn copy(&self, number: u64, content: &Page) -> Result<Fill, Error> {
        let size = content.0.len();
        // SAFETY: the source is a whole readable page; the destination lies in another address space (or in a
        // range of this one that is registered for missing faults), and the kernel fills only missing pages.
        match unsafe {
            self.uffd
                .copy(content.0.as_ptr().cast(), address(number), size, true)
        } {
            Ok(_) => Ok(Fill::Done),
            Err(Error::PartiallyCopied(_)) => Ok(Fill::Busy),
            Err(Error::CopyFailed(errno)) => self.explain(number, errno as i32, Error::CopyFailed(errno)),
            Err(error) => Err(error),
        }
    }

    /// Fills adjacent pages from `number` on with `content` and wakes who waits for them; a page that is there already
    /// stays as it is. Gives how many of them are there now, and how the attempt on the next one ended.
    ///
    /// # Errors
    /// Those that no state of the app explains.
    pub fn copy_run(&self, number: u64, content: &[Page]) -> Result<(usize, Fill), Error> {
        let mut there = 0;
        while let Some(rest) = content.get(there..).filter(|rest| !rest.is_empty()) {
            let (at, length) = (number + there as u64, size_of_val(rest));
            // SAFETY: as for `copy`; the source is `rest`, as a whole.
            match unsafe { self.uffd.copy(rest.as_ptr().cast(), address(at), length, true) } {
                Ok(_) => there = content.len(),
                // The kernel stopped in between; what is in its way shows when it begins there.
                Err(Error::PartiallyCopied(bytes)) if (1..length).contains(&bytes) => {
                    there += bytes / PAGE_BYTES;
                }
                Err(Error::PartiallyCopied(_)) => return Ok((there, Fill::Busy)),
                Err(Error::CopyFailed(errno)) => {
                    match self.explain(at, errno as i32, Error::CopyFailed(errno))? {
                        Fill::Done => there += 1,
                        other => return Ok((there, other)),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok((there, Fill::Done))
    }

    /// Fills page `number` with zeros and wakes who waits for it.
    ///
    /// # Errors
    /// Those that no state of the app explains.
    pub fn zero(&self, number: u64) -> Result<Fill, Error> {
        // SAFETY: as for `copy`; the kernel supplies the content.
        match unsafe { self.uffd.zeropage(address(number), PAGE_BYTES, true) } {
            Ok(_) => Ok(Fill::Done),
            Err(Error::ZeropageFailed(errno)) => {
                self.explain(number, errno as i32, Error::ZeropageFailed(errno))
            }
            Err(error) => Err(error),
        }
    }

    /// Lets threads that wait for page `number` try again: whoever still misses it faults anew.
    pub fn wake(&self, number: u64) {
        // Fails only when the address space is gone, and then nobody waits.
        let _ = self.uffd.wake(address(number), PAGE_BYTES);
    }

    /// Whether the address space still exists. Fills nothing: no page can be mapped at this address.
    pub fn is_alive(&self) -> bool {
        !matches!(self.zero(0), Ok(Fill::Gone))
    }

    fn explain(&self, number: u64, errno: i32, error: Error) -> Result<Fill, Error> {
        match errno {
            libc::EEXIST => {
                self.wake(number);
                Ok(Fill::Done)
            }
            libc::EAGAIN => Ok(Fill::Busy),
            libc::ENOENT | libc::EINVAL => Ok(Fill::Unmapped),
            libc::ESRCH => Ok(Fill::Gone),
            _ => Err(error),
        }
    }
}

fn address(number: u64) -> *mut libc::c_void {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the kernel runs 64-bit address spaces"
    )]
    std::ptr::without_provenance_mut((number * PAGE_SIZE) as usize)
}

impl AsRawFd for Memory {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.uffd.as_raw_fd()
    }
}
