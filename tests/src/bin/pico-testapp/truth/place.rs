//! Real memory of one region: made, changed, read. The unsafe part of the truth test's app.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use anyhow::{Context, Result, ensure};
use pico_tests::truth::{Kind, Lock, Op, PAGE, Random, WORDS, file_page, word};

/// The file behind [`Kind::File`].
const FILE: &str = "/srv/truth";

/// Where the pages of a region are.
pub struct Place {
    kind: Kind,
    base: *mut u8,
    pages: usize,
}

// SAFETY: a place is used under the lock of its owner only; readers beside it (`stir`) read volatile.
unsafe impl Send for Place {}

fn checked<T: PartialEq + From<i8>>(result: T) -> Result<T> {
    if result == T::from(-1) {
        Err(io::Error::last_os_error().into())
    } else {
        Ok(result)
    }
}

fn map(at: *mut u8, pages: usize, protection: i32, flags: i32, file: i32) -> Result<*mut u8> {
    // SAFETY: a new mapping; with MAP_FIXED over memory of the caller's own region, which gives it up.
    let mapped = unsafe { libc::mmap(at.cast(), pages * PAGE, protection, flags, file, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error()).context("mmap");
    }
    Ok(mapped.cast())
}

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

impl Place {
    /// Memory of a kind, as the kernel gives it.
    pub fn new(kind: Kind, pages: usize) -> Result<Place> {
        let null = std::ptr::null_mut();
        let anonymous = || map(null, pages, READ_WRITE, PRIVATE, -1);
        let base = match kind {
            Kind::Private | Kind::Guarded | Kind::Locked | Kind::Moved | Kind::Holes => anonymous()?,
            Kind::Huge => advise(anonymous()?, pages, libc::MADV_HUGEPAGE)?,
            Kind::Wiped => advise(anonymous()?, pages, libc::MADV_WIPEONFORK)?,
            Kind::Heap => heap(pages)?,
            Kind::MainStack => {
                let lent = super::MAIN_STACK.load(Ordering::SeqCst);
                ensure!(!lent.is_null(), "main lent no stack");
                lent.map_addr(|address| address.next_multiple_of(PAGE))
            }
            Kind::Stack => thread_stack(pages)?,
            Kind::Shared => map(
                null,
                pages,
                READ_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
            )?,
            Kind::Memfd => memfd(pages)?,
            Kind::SysV => sysv(pages)?,
            Kind::File => {
                let file = file(pages)?;
                map(null, pages, READ_WRITE, libc::MAP_PRIVATE, file.as_raw_fd())?
            }
        };
        Ok(Place { kind, base, pages })
    }

    /// Where it begins now.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    fn at(&self, page: usize) -> *mut u8 {
        self.base.wrapping_add(page * PAGE)
    }

    /// What a page holds; a guarded one is read past its guard.
    pub fn read(&self, page: usize, guarded: bool) -> Result<[u64; WORDS]> {
        let mut content = [0; WORDS];
        if guarded {
            // The kernel answers a read of /proc/self/mem with an error where it would have to wait for a page.
            self.protect(page, 1, libc::PROT_READ)?;
        }
        let words: *const u64 = self.at(page).cast_const().cast();
        for (at, word) in content.iter_mut().enumerate() {
            // SAFETY: a mapped page of this region. Volatile: what the kernel put there is to be seen.
            *word = unsafe { words.add(at).read_volatile() };
        }
        if guarded {
            self.protect(page, 1, libc::PROT_NONE)?;
        }
        Ok(content)
    }

    fn protect(&self, first: usize, count: usize, protection: i32) -> Result<()> {
        // SAFETY: pages of this region, which nobody holds references to.
        checked(unsafe { libc::mprotect(self.at(first).cast(), count * PAGE, protection) }).map(drop)
    }

    fn write(&self, page: usize, id: u64) {
        let words: *mut u64 = self.at(page).cast();
        for at in 0..WORDS {
            // SAFETY: a mapped, writable page of this region, which only its owner writes.
            unsafe { words.add(at).write_volatile(word(id, at)) };
        }
    }

    /// Does to the memory what [`pico_tests::truth::Region::apply`] does to the model.
    pub fn carry_out(&mut self, first: usize, count: usize, op: Op, guarded: &[bool]) -> Result<()> {
        let (run, bytes): (*mut c_void, usize) = (self.at(first).cast(), count * PAGE);
        // SAFETY: all calls are on pages of this region, which nobody holds references to; what they give up is
        // read or written again only where the model says that it is there.
        unsafe {
            match op {
                Op::Write(id) => (0..count)
                    .filter(|page| !guarded[first + page])
                    .for_each(|page| self.write(first + page, id + page as u64)),
                Op::Discard => drop(checked(libc::madvise(run, bytes, libc::MADV_DONTNEED))?),
                Op::Free => drop(checked(libc::madvise(run, bytes, libc::MADV_FREE))?),
                Op::Punch => drop(checked(libc::madvise(run, bytes, libc::MADV_REMOVE))?),
                Op::Replace => {
                    checked(libc::munmap(run, bytes))?;
                    map(run.cast(), count, READ_WRITE, PRIVATE | libc::MAP_FIXED, -1)?;
                }
                Op::Swap(other) => {
                    let (here, there) = (self.at(first), self.at(other));
                    let aside = map(std::ptr::null_mut(), count, libc::PROT_NONE, PRIVATE, -1)?;
                    move_pages(here, count, aside)?;
                    move_pages(there, count, here)?;
                    move_pages(aside, count, there)?;
                }
                Op::Move => self.relocate(self.pages)?,
                Op::Resize(pages) if self.kind == Kind::Heap => self.resize_heap(pages)?,
                Op::Resize(pages) => self.relocate(pages)?,
                Op::Guard(up) => {
                    let protection = if up { libc::PROT_NONE } else { READ_WRITE };
                    self.protect(first, count, protection)?;
                }
                Op::Lock(Lock::Now) => drop(checked(libc::mlock(run, bytes))?),
                Op::Lock(Lock::OnFault) => drop(checked(libc::mlock2(run, bytes, 1))?),
                Op::Lock(Lock::Not) => drop(checked(libc::munlock(run, bytes))?),
            }
        }
        Ok(())
    }

    /// Moves all of it.
    fn relocate(&mut self, pages: usize) -> Result<()> {
        let to = map(std::ptr::null_mut(), pages, READ_WRITE, PRIVATE, -1)?;
        move_pages(self.base, self.pages.min(pages), to)?;
        if let Some(rest) = self.pages.checked_sub(pages).filter(|rest| *rest > 0) {
            // SAFETY: the end of this region, which is given up.
            checked(unsafe { libc::munmap(self.at(pages).cast(), rest * PAGE) })?;
        }
        self.base = to;
        self.pages = pages;
        Ok(())
    }

    fn resize_heap(&mut self, pages: usize) -> Result<()> {
        // SAFETY: brk to an end of our own choice: nobody else uses it (see `heap`).
        checked(unsafe { libc::brk(self.at(pages).cast()) })?;
        self.pages = pages;
        Ok(())
    }
}

/// Moves pages one by one: moves before may have split their mapping, and mremap(2) takes no more than one.
fn move_pages(from: *mut u8, count: usize, to: *mut u8) -> Result<()> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    for page in 0..count {
        let (from, to) = (from.wrapping_add(page * PAGE), to.wrapping_add(page * PAGE));
        // SAFETY: from and to are pages of the caller's own region or were mapped for this.
        let moved = unsafe { libc::mremap(from.cast(), PAGE, PAGE, flags, to.cast::<c_void>()) };
        if moved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("mremap");
        }
    }
    Ok(())
}

fn advise(base: *mut u8, pages: usize, advice: i32) -> Result<*mut u8> {
    // SAFETY: advice on a mapping that was just made.
    checked(unsafe { libc::madvise(base.cast(), pages * PAGE, advice) })?;
    Ok(base)
}

/// The end of the data segment, where malloc takes nothing from now on.
fn heap(pages: usize) -> Result<*mut u8> {
    // SAFETY: tells malloc to map what it needs; then moves the end of the data segment up.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 0);
        let end = libc::sbrk(0).cast::<u8>();
        let base = end.map_addr(|address| address.next_multiple_of(PAGE));
        checked(libc::brk(base.wrapping_add(pages * PAGE).cast()))?;
        Ok(base)
    }
}

/// Pages of the stack of a thread that waits for ever.
fn thread_stack(pages: usize) -> Result<*mut u8> {
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new().stack_size(4 << 20).spawn(move || {
        let mut stack = std::mem::MaybeUninit::<[u8; 128 * PAGE]>::uninit();
        let base = stack.as_mut_ptr().addr().next_multiple_of(PAGE);
        let _ = sender.send(base);
        loop {
            std::thread::park();
        }
    })?;
    ensure!(pages < 128, "more than a thread lends");
    Ok(std::ptr::with_exposed_provenance_mut(receiver.recv()?))
}

fn memfd(pages: usize) -> Result<*mut u8> {
    // SAFETY: makes a descriptor; the name is a C string.
    let fd = checked(unsafe { libc::memfd_create(c"truth".as_ptr(), 0) })?;
    // SAFETY: sets the length of the file just made. It stays open.
    checked(unsafe { libc::ftruncate(fd, i64::try_from(pages * PAGE)?) })?;
    map(std::ptr::null_mut(), pages, READ_WRITE, libc::MAP_SHARED, fd)
}

fn sysv(pages: usize) -> Result<*mut u8> {
    // SAFETY: makes and attaches a segment of this process.
    unsafe {
        let id = checked(libc::shmget(
            libc::IPC_PRIVATE,
            pages * PAGE,
            0o600 | libc::IPC_CREAT,
        ))?;
        let base = libc::shmat(id, std::ptr::null(), 0);
        ensure!(base.addr() != usize::MAX, "shmat: {}", io::Error::last_os_error());
        Ok(base.cast())
    }
}

fn file(pages: usize) -> Result<File> {
    let content: Vec<u8> = (0..pages)
        .flat_map(|page| (0..WORDS).flat_map(move |at| word(file_page(page), at).to_ne_bytes()))
        .collect();
    std::fs::write(FILE, content)?;
    Ok(File::open(FILE)?)
}

/// Reads pages at random of memory that is always mapped, until `stop`: faults in the middle of what else happens.
pub fn stir(calm: &[(usize, usize)], seed: u64, stop: &AtomicBool) {
    let mut random = Random::new(seed);
    while !stop.load(Ordering::SeqCst) && !calm.is_empty() {
        let (base, pages) = calm[random.below(calm.len())];
        let at: *const u64 = std::ptr::with_exposed_provenance(base + random.below(pages) * PAGE);
        // SAFETY: a page that stays mapped and readable for as long as the caller waits for this thread.
        unsafe { at.read_volatile() };
    }
}
