//! Which pages show as accessed.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;

use super::world::{Child, command, say};
use super::*;

const PAGE: usize = 4096;
/// 14 MiB, so that several leaf tables are read, not all from their beginning.
const PAGES: usize = 3584;

/// Pages that a child touches: scattered, every 37th.
fn touched() -> impl Iterator<Item = usize> {
    (0..PAGES).filter(|page| page % 37 == 5)
}

/// A child that maps and fills [`PAGES`] and reports where; then, for each command: `t` reads the touched ones,
/// `w` writes to every second of them, `l` reads them over and over until the next command has come.
fn toucher(stream: &mut UnixStream) {
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: asks for small pages, as every app has them.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) }, 0);
    // SAFETY: a new private mapping that nothing else uses, wherever the kernel likes.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), PAGES * PAGE, rights, flags, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    let start = start.cast::<u8>();
    // SAFETY: within the mapping.
    let write = |page: usize| unsafe { start.add(page * PAGE).write_volatile(1) };
    // SAFETY: as above.
    let read = |page: usize| unsafe { start.add(page * PAGE).read_volatile() };
    (0..PAGES).for_each(write);
    say(stream, start.addr() as u64);
    while let Some(command) = command(stream) {
        match command {
            b't' => touched().for_each(|page| {
                read(page);
            }),
            _ => {
                say(stream, 1u64);
                stream.set_nonblocking(true).unwrap();
                while stream.peek_one() {
                    touched().for_each(|page| {
                        read(page);
                    });
                }
                stream.set_nonblocking(false).unwrap();
            }
        }
        say(stream, 0u64);
    }
}

trait PeekOne {
    /// Whether nothing has come yet.
    fn peek_one(&self) -> bool;
}

impl PeekOne for UnixStream {
    fn peek_one(&self) -> bool {
        use std::os::fd::AsRawFd;
        let mut byte = [0_u8];
        let flags = nix::sys::socket::MsgFlags::MSG_PEEK;
        nix::sys::socket::recv(self.as_raw_fd(), &mut byte, flags).is_err()
    }
}

fn seen(probes: &Probes, child: &Child, start: u64, pick: impl Fn(&PresentPage) -> bool) -> BTreeSet<usize> {
    let first = start / PAGE as u64;
    let all = first..first + PAGES as u64;
    let pages = probes
        .present_pages(child.pid(), std::slice::from_ref(&all))
        .unwrap();
    assert_eq!(pages.len(), PAGES, "all are present");
    assert!(
        anonymous_pages(child.pid())
            .unwrap()
            .iter()
            .any(|range| range.contains(&first))
    );
    let picked = pages.iter().filter(|page| pick(page));
    picked
        .map(|page| usize::try_from(page.page - first).unwrap())
        .collect()
}

#[test]
fn exactly_the_pages_that_were_touched_since_the_reset_show_as_accessed() {
    let (probes, cgroup) = probes_or_skip!();
    let mut child = Child::spawn(&cgroup, toucher);
    let start = child.hear();
    for _ in 0..3 {
        reset_accessed(child.pid(), true).unwrap();
        assert_eq!(
            seen(&probes, &child, start, |page| page.accessed),
            BTreeSet::new()
        );
        child.tell(b't');
        child.hear();
        assert_eq!(
            seen(&probes, &child, start, |page| page.accessed),
            touched().collect()
        );
    }
    // Pages that are neither asked for nor there are not told.
    let first = start / PAGE as u64;
    let some = probes
        .present_pages(child.pid(), &[first + 3..first + 10, first + 600..first + 601])
        .unwrap();
    let some: Vec<u64> = some.iter().map(|page| page.page - first).collect();
    assert_eq!(some, [3, 4, 5, 6, 7, 8, 9, 600]);
    assert_eq!(
        probes
            .present_pages(child.pid(), std::slice::from_ref(&(5..9)))
            .unwrap(),
        []
    );
}

#[test]
fn pages_in_constant_use_show_as_accessed_again_after_a_reset() {
    let (probes, cgroup) = probes_or_skip!();
    let mut child = Child::spawn(&cgroup, toucher);
    let start = child.hear();
    child.tell(b'l');
    assert_eq!(child.hear(), 1);
    for _ in 0..5 {
        reset_accessed(child.pid(), true).unwrap();
        let wanted: BTreeSet<usize> = touched().collect();
        let until = Instant::now() + world::PATIENCE;
        // The loop comes round in some microseconds, once it has a processor.
        while seen(&probes, &child, start, |page| page.accessed) != wanted {
            assert!(Instant::now() < until, "some never show");
        }
    }
    child.tell(b't');
    child.hear();
    child.hear();
}

#[test]
fn a_process_that_is_gone_is_an_error_by_its_number() {
    let (probes, _cgroup) = probes_or_skip!();
    let gone = 1 << 22;
    let error = probes
        .present_pages(gone, std::slice::from_ref(&(0..10)))
        .unwrap_err();
    assert!(
        matches!(error, ProbeError::NoProcess(pid) if pid == gone),
        "{error}"
    );
    assert!(reset_accessed(gone, true).is_err());
}
