//! Which page faults are reported, of whom, and what happens when nobody reads them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::ptr;
use std::slice;

use pico_ebpf::EVENTS_BYTES;

use super::world::{PATIENCE, command, say, target};
use super::*;

const PAGE: u64 = 4096;
const PAGES: u64 = 97;

/// A child that maps [`PAGES`] fresh pages and reports where; then, for each command: `t` writes to every
/// third page, `k` lets the kernel write to the others (a `read`), `f` gives all back. It reports when done.
fn toucher(stream: &mut UnixStream) {
    let length = usize::try_from(PAGES * PAGE).unwrap();
    // SAFETY: a new private mapping, wherever the kernel likes.
    let start = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        libc::mmap(
            ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED);
    // SAFETY: the mapping is `length` bytes, readable and writable (zeros), and only this slice uses it.
    let bytes = unsafe { slice::from_raw_parts_mut(start.cast::<u8>(), length) };
    let mut zeros = File::open("/dev/zero").unwrap();
    say(stream, start as u64);
    while let Some(command) = command(stream) {
        let pages = bytes.chunks_mut(usize::try_from(PAGE).unwrap()).enumerate();
        match command {
            b't' => pages
                .filter(|(n, _)| n % 3 == 0)
                .for_each(|(_, page)| page[7] = 1),
            b'k' => pages
                .filter(|(n, _)| n % 3 != 0)
                .for_each(|(_, page)| zeros.read_exact(&mut page[..8]).unwrap()),
            _ => {
                // SAFETY: the mapping is this process's; its pages read as zeros afterwards, which is all that
                // its bytes promise.
                assert_eq!(unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) }, 0);
            }
        }
        say(stream, 0u64);
    }
}

/// Page numbers within the mapping at `start`, of the faults that lie within it.
fn pages_of(faults: &[PageFault], start: u64) -> BTreeSet<u64> {
    faults
        .iter()
        .filter(|fault| (start..start + PAGES * PAGE).contains(&fault.address))
        .map(|fault| (fault.address - start) / PAGE)
        .collect()
}

fn every(pick: impl Fn(u64) -> bool) -> BTreeSet<u64> {
    (0..PAGES).filter(|&page| pick(page)).collect()
}

/// The page faults among all that waits to be read.
fn drain(probes: &Probes) -> Vec<PageFault> {
    faults_of(&world::drain(probes))
}

fn faults_of(events: &[TraceEvent]) -> Vec<PageFault> {
    let faults = events.iter().filter_map(|event| match event {
        TraceEvent::Fault(fault) => Some(*fault),
        TraceEvent::Socket(_) => None,
    });
    faults.collect()
}

fn order(child: &mut Child, what: u8) {
    child.tell(what);
    child.hear();
}

#[test]
fn each_fresh_page_is_reported_with_who_touched_it_and_how() {
    let (probes, cgroup) = probes_or_skip!();
    let mut child = Child::spawn(&cgroup, toucher);
    let start = child.hear();
    assert_eq!(drain(&probes), [], "an app that is not tracked was reported");

    let _tracing = probes.trace(target(&cgroup, 42)).unwrap();
    order(&mut child, b't');
    let faults = drain(&probes);
    assert_eq!(pages_of(&faults, start), every(|page| page % 3 == 0));
    let mut last = 0;
    for fault in faults
        .iter()
        .filter(|fault| pages_of(slice::from_ref(fault), start).len() == 1)
    {
        assert_eq!((fault.app, fault.pid, fault.tid), (42, child.pid(), child.pid()));
        assert_eq!(fault.address % PAGE, 7);
        assert!(
            fault.is_missing() && fault.is_write() && fault.in_user_mode(),
            "{fault:x?}"
        );
        assert!(fault.ip > 0 && fault.ip < 1 << 63, "{fault:x?}");
        assert!(fault.time_ns >= last, "{fault:x?}");
        last = fault.time_ns;
    }
    assert_eq!(probes.lost().unwrap(), 0);
}

#[test]
fn pages_touched_inside_system_calls_are_reported_too() {
    let (probes, cgroup) = probes_or_skip!();
    let mut child = Child::spawn(&cgroup, toucher);
    let start = child.hear();
    let _tracing = probes.trace(target(&cgroup, 1)).unwrap();
    order(&mut child, b'k');
    let faults = drain(&probes);
    assert_eq!(pages_of(&faults, start), every(|page| page % 3 != 0));
    let inside = faults
        .iter()
        .filter(|fault| pages_of(slice::from_ref(fault), start).len() == 1);
    for fault in inside {
        assert!(!fault.in_user_mode() && fault.ip >= 1 << 63, "{fault:x?}");
    }
}

#[test]
fn only_tracked_cgroups_are_reported_each_under_its_own_name() {
    let (probes, first) = probes_or_skip!();
    let second = Cgroup::new();
    let untracked = Cgroup::new();
    let mut children = [&first, &second, &untracked].map(|cgroup| Child::spawn(cgroup, toucher));
    let [a, b, c] = &mut children;
    let starts = [a.hear(), b.hear(), c.hear()];
    let tracing_first = probes.trace(target(&first, 1)).unwrap();
    let _tracing = probes.trace(target(&second, 2)).unwrap();
    assert_eq!(probes.stats().unwrap().traced, 2);
    for child in [&mut *a, b, c] {
        order(child, b't');
    }
    let faults = drain(&probes);
    let pids: BTreeSet<_> = faults.iter().map(|fault| (fault.app, fault.pid)).collect();
    assert_eq!(pids, BTreeSet::from([(1, a.pid()), (2, b.pid())]));
    for (app, start) in [(1, starts[0]), (2, starts[1])] {
        let of_app: Vec<_> = faults.iter().filter(|fault| fault.app == app).copied().collect();
        assert_eq!(pages_of(&of_app, start), every(|page| page % 3 == 0));
    }

    drop(tracing_first);
    order(a, b'k');
    order(b, b'k');
    let apps: BTreeSet<_> = drain(&probes).iter().map(|fault| fault.app).collect();
    assert_eq!(apps, BTreeSet::from([2]));
}

#[test]
fn faults_that_nobody_reads_are_counted_as_lost() {
    let (probes, cgroup) = probes_or_skip!();
    let mut child = Child::spawn(&cgroup, toucher);
    let start = child.hear();
    let _tracing = probes.trace(target(&cgroup, 1)).unwrap();
    let each = every(|page| page % 3 != 0).len() as u64;
    // Each record takes its 48 bytes and a header of 8.
    let room = u64::from(EVENTS_BYTES) / 56;
    let rounds = room / each + 20;
    for _ in 0..rounds {
        order(&mut child, b'k');
        order(&mut child, b'f');
    }
    let lost = probes.lost().unwrap();
    assert!(lost > 0);
    let faults = drain(&probes);
    let stats = probes.stats().unwrap();
    assert_eq!(
        (stats.events_read, stats.events_lost),
        (faults.len() as u64, lost)
    );
    assert!(
        faults.len() as u64 <= room && faults.len() as u64 + lost >= rounds * each,
        "{stats:?}"
    );

    // With room again, nothing more is lost.
    order(&mut child, b'k');
    assert_eq!(pages_of(&drain(&probes), start), every(|page| page % 3 != 0));
    assert_eq!(probes.lost().unwrap(), lost);
}

#[tokio::test]
async fn a_waiting_reader_is_woken_by_the_first_fault() {
    let (probes, cgroup) = probes_or_skip!();
    let mut child = Child::spawn(&cgroup, toucher);
    let start = child.hear();
    let _tracing = probes.trace(target(&cgroup, 1)).unwrap();
    for round in 0..20 {
        // What the child faulted on after it reported last time.
        drain(&probes);
        // Waiting is registered before the fault, and may be given up without losing anything.
        let waiting = tokio::time::timeout(Duration::from_millis(1), probes.next_events()).await;
        assert!(waiting.is_err(), "round {round}: {waiting:x?}");
        child.tell(b't');
        let mut pages = BTreeSet::new();
        while pages.len() < every(|page| page % 3 == 0).len() {
            let events = tokio::time::timeout(PATIENCE, probes.next_events())
                .await
                .unwrap()
                .unwrap();
            pages.extend(pages_of(&faults_of(&events), start));
        }
        child.hear();
        order(&mut child, b'f');
    }
}
