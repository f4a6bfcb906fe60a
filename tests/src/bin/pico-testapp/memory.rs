//! Memory whose every page says what it must hold, so that a page that was never served, an old one or
//! another one is noticed by whoever reads it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, RwLock};

use anyhow::{Result, anyhow, bail};

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;

/// An anonymous mapping of whole pages and, apart from it, how often each page was changed.
struct Memory {
    base: *mut u64,
    changes: Vec<u32>,
}

/// A page given back to the kernel: it must read as zeros.
const DISCARDED: u32 = u32::MAX;

// SAFETY: the mapping is private to this module and only written under the lock's write side.
unsafe impl Send for Memory {}
// SAFETY: as above; readers only read.
unsafe impl Sync for Memory {}

static MEMORY: LazyLock<RwLock<Memory>> = LazyLock::new(|| {
    RwLock::new(Memory {
        base: std::ptr::null_mut(),
        changes: Vec::new(),
    })
});
static READ: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

impl Memory {
    fn word(&self, page: usize, word: usize) -> u64 {
        // SAFETY: `page` is below `changes.len()`, the length of the mapping in pages, and `word` below
        // WORDS. Volatile: the kernel may change what is there behind the compiler's back, and that is
        // what is to be seen.
        unsafe { self.base.add(page * WORDS + word).read_volatile() }
    }

    /// The first word of a page that is not what it must be.
    fn wrong_word(&self, page: usize) -> Option<(usize, u64)> {
        let change = self.changes[page];
        (0..WORDS)
            .map(|word| (word, self.word(page, word)))
            .find(|(word, value)| *value != expected(page, *word, change))
    }

    fn write(&mut self, page: usize) {
        let change = self.changes[page];
        for word in 0..WORDS {
            // SAFETY: in bounds as in `word`, and `&mut self` excludes readers.
            unsafe {
                self.base
                    .add(page * WORDS + word)
                    .write_volatile(expected(page, word, change))
            };
        }
    }
}

/// Never zero, other for every page, word and change.
fn expected(page: usize, word: usize, change: u32) -> u64 {
    if change == DISCARDED {
        return 0;
    }
    let seed = (page * WORDS + word) as u64 ^ u64::from(change) << 48;
    seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// Page numbers in an order that no read-ahead follows.
fn shuffled(pages: usize) -> impl Iterator<Item = usize> {
    let size = pages.next_power_of_two();
    (0..size)
        .map(move |place| scattered(place, size))
        .filter(move |page| *page < pages)
}

/// The page at a place of an order that looks random, of `size` pages, a power of two.
fn scattered(place: usize, size: usize) -> usize {
    // An odd step shares no factor with a power of two.
    place.wrapping_mul(0x9e37_79b1) & (size - 1)
}

fn read() -> Result<std::sync::RwLockReadGuard<'static, Memory>> {
    MEMORY.read().map_err(|_| anyhow!("poisoned"))
}

fn write() -> Result<std::sync::RwLockWriteGuard<'static, Memory>> {
    MEMORY.write().map_err(|_| anyhow!("poisoned"))
}

/// Maps and fills `megabytes`.
pub fn fill(megabytes: usize) -> Result<String> {
    let mut memory = write()?;
    if !memory.base.is_null() {
        bail!("filled already");
    }
    let length = megabytes << 20;
    // SAFETY: a new anonymous mapping at an address the kernel chooses.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error().into());
    }
    memory.base = base.cast();
    memory.changes = vec![0; length / PAGE];
    for page in 0..memory.changes.len() {
        memory.write(page);
    }
    Ok(format!("ok {}", memory.changes.len()))
}

/// Reads every page.
pub fn verify() -> Result<String> {
    let memory = read()?;
    for page in shuffled(memory.changes.len()) {
        if let Some((word, value)) = memory.wrong_word(page) {
            return Ok(format!("WRONG page {page} word {word} is {value:#x}"));
        }
    }
    Ok(format!("ok {}", memory.changes.len()))
}

/// Reads the pages whose places in a fixed random order are given, as `FIRST+COUNT FIRST+COUNT ...`, and nothing else of
/// the memory.
pub fn touch(places: &str) -> Result<String> {
    let memory = read()?;
    let pages = memory.changes.len();
    if !pages.is_power_of_two() {
        bail!("it must be filled with a power of two");
    }
    let mut touched = 0;
    for part in places.split_whitespace() {
        let (first, count) = part.split_once('+').ok_or_else(|| anyhow!("FIRST+COUNT"))?;
        let (first, count): (usize, usize) = (first.parse()?, count.parse()?);
        for place in first..first + count {
            let page = scattered(place, pages);
            // One word, and not the changes of the page: these lie in memory, too.
            let value = memory.word(page, 0);
            if value != expected(page, 0, 0) {
                return Ok(format!("WRONG page {page} is {value:#x}"));
            }
            touched += 1;
        }
    }
    Ok(format!("ok {touched}"))
}

/// Changes about `count` pages, spread over all.
pub fn change(count: usize) -> Result<String> {
    let mut memory = write()?;
    let pages: Vec<_> = shuffled(memory.changes.len()).take(count).collect();
    for page in &pages {
        memory.changes[*page] = memory.changes[*page].wrapping_add(1) & 0xffff;
        memory.write(*page);
    }
    Ok(format!("ok {}", pages.len()))
}

/// Gives every `step`-th page back to the kernel: from now on they must read as zeros.
pub fn discard(step: usize) -> Result<String> {
    let mut memory = write()?;
    for page in (0..memory.changes.len()).step_by(step.max(1)) {
        // SAFETY: one whole page of our own mapping, which nobody else reads: the lock is held for writing.
        let result =
            unsafe { libc::madvise(memory.base.add(page * WORDS).cast(), PAGE, libc::MADV_DONTNEED) };
        if result < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        memory.changes[page] = DISCARDED;
    }
    Ok("ok".into())
}

/// Reads all pages `rounds` times in the background, and says so on standard output when one is wrong.
pub fn patrol(rounds: u64) -> Result<()> {
    READ.store(0, Ordering::SeqCst);
    std::thread::Builder::new().spawn(move || {
        for _ in 0..rounds {
            let Ok(memory) = read() else { return };
            for page in shuffled(memory.changes.len()) {
                if let Some((word, value)) = memory.wrong_word(page) {
                    WRONG.fetch_add(1, Ordering::SeqCst);
                    println!("WRONG page {page} word {word} is {value:#x}");
                }
                READ.fetch_add(1, Ordering::SeqCst);
            }
        }
    })?;
    Ok(())
}

/// How many pages the patrol has read, and how many were wrong.
pub fn patrolled() -> String {
    format!("{} {}", READ.load(Ordering::SeqCst), WRONG.load(Ordering::SeqCst))
}

/// Reads every page in a forked child.
pub fn verify_in_child() -> Result<String> {
    let memory = read()?;
    // SAFETY: the child of a process with threads may only do what is safe in a signal handler: it reads
    // memory and ends.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error().into()),
        0 => {
            let wrong = shuffled(memory.changes.len()).any(|page| memory.wrong_word(page).is_some());
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(i32::from(wrong)) }
        }
        child => {
            let mut status = 0;
            // SAFETY: waits for our own child and writes one integer of ours.
            if unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {
                return Err(std::io::Error::last_os_error().into());
            }
            Ok(if status == 0 {
                "ok".into()
            } else {
                format!("WRONG in the child: status {status:#x}")
            })
        }
    }
}

/// Waits for ever with the stack pointer at the start of a page, as one thread in 256 does by chance.
#[cfg(target_arch = "x86_64")]
pub fn wait_at_page_start() {
    // SAFETY: the stack pointer stays inside of this thread's stack (megabytes), below all that is in use, and nothing
    // is read or written there; pause(2) takes no arguments, and the loop never leaves.
    unsafe {
        std::arch::asm!(
            "sub rsp, 4096",
            "and rsp, -4096",
            "2:",
            "mov eax, {pause}",
            "syscall",
            "jmp 2b",
            pause = const libc::SYS_pause,
            options(noreturn)
        )
    }
}
