//! Which pages of a process are present, and which of them were accessed or written since that was last asked:
//! exactly, from its page table, without waiting for faults.
//!
//! The kernel resets the accessed bits ([`reset_accessed`]), the processor sets them, and an iterator program
//! reads the tables ([`AccessedPages::scan`]). kernel-notes/page-faults.md has what it does not see.

use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, MapData};
use aya::programs::{Iter, ProgramError};
use aya::{Btf, Ebpf};
use pico_ebpf::{Leaf, LeafKind, SCAN_CANDIDATES, SCAN_REGIONS, Scan, names};

use super::ProbeError;
use super::object::{Programs, map_error, program, refused, take};

/// Pages of 4 KiB in what one leaf table maps.
const LEAF_PAGES: u64 = 512;
/// GiB below a top-level table within which the direct map must begin: more memory than any host has.
const SEARCH_GIB: u64 = 16 * 1024;

/// Page-table entry bits (Intel SDM volume 3, 4.5).
const PRESENT: u64 = 1 << 0;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

/// `/proc/PID/clear_refs`: forget which anonymous pages were referenced (proc(5)).
const CLEAR_ANONYMOUS: &str = "2";
/// As above: forget what was written, where the kernel tracks that; and, on every kernel, flush the process's
/// translations, without which a page that is in constant use never shows as accessed again.
const CLEAR_AND_FLUSH: &str = "4";

/// A page that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresentPage {
    /// Its number: address / 4096.
    pub page: u64,
    /// It was accessed since the last reset, or has come since.
    pub accessed: bool,
    /// It was written since it came.
    pub written: bool,
}

type ScanBytes = [u8; size_of::<Scan>()];
type LeafBytes = [u8; size_of::<Leaf>()];

/// The walk through page tables. One at a time: its maps are shared.
pub(super) struct AccessedPages(Mutex<Inner>);

struct Inner {
    programs: Programs,
    scan: Array<MapData, ScanBytes>,
    at: Array<MapData, u64>,
    out: Array<MapData, LeafBytes>,
    /// Where the kernel maps all memory, once it is found.
    base: u64,
    loaded: bool,
}

impl AccessedPages {
    pub(super) fn new(object: &mut Ebpf, programs: Programs) -> Result<Self, ProbeError> {
        Ok(AccessedPages(Mutex::new(Inner {
            programs,
            scan: take(object, names::SCAN)?,
            at: take(object, names::SCAN_AT)?,
            out: take(object, names::SCAN_OUT)?,
            base: 0,
            loaded: false,
        })))
    }

    /// The present pages of process `pid` within `ranges` of page numbers, in their order.
    pub(super) fn scan(&self, pid: u32, ranges: &[Range<u64>]) -> Result<Vec<PresentPage>, ProbeError> {
        let mut inner = self.lock();
        inner.prepare()?;
        let mut leaves: Vec<u64> = ranges
            .iter()
            .filter(|range| !range.is_empty())
            .flat_map(|range| range.start / LEAF_PAGES..=(range.end - 1) / LEAF_PAGES)
            .collect();
        leaves.sort_unstable();
        leaves.dedup();
        let mut pages = Vec::new();
        for batch in leaves.chunks(SCAN_REGIONS as usize) {
            inner.scan_batch(pid, batch, &mut pages)?;
        }
        let mut wanted = ranges.to_vec();
        wanted.sort_unstable_by_key(|range| range.start);
        let mut at = 0;
        pages.retain(|page: &PresentPage| {
            while wanted.get(at).is_some_and(|range| range.end <= page.page) {
                at += 1;
            }
            wanted.get(at).is_some_and(|range| range.contains(&page.page))
        });
        Ok(pages)
    }

    /// Tries it on a page of this process: finds the direct map and reads one bit.
    pub(super) fn probe(&self) -> Result<(), ProbeError> {
        let local = 0_u8;
        let page = (&raw const local).addr() as u64 / 4096;
        let found = self.scan(std::process::id(), std::slice::from_ref(&(page..page + 1)))?;
        match found.first() {
            Some(page) if page.accessed => Ok(()),
            _ => Err(ProbeError::PageTable("a page in use does not show as accessed")),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whoever panicked with the lock held left at worst requests that the next scan overwrites.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Loads the program and finds the direct map, once.
    fn prepare(&mut self) -> Result<(), ProbeError> {
        if !self.loaded {
            let btf = Btf::from_sys_fs().map_err(|error| ProbeError::TypesUnreadable(Box::new(error)))?;
            let mut programs = self.programs.lock();
            let iterator: &mut Iter = program(&mut programs, names::ACCESSED)?;
            match iterator.load("task", &btf) {
                Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
                Err(error) => return Err(refused(names::ACCESSED)(error)),
            }
            self.loaded = true;
        }
        let mut skip = 0;
        while self.base == 0 {
            let answer = self.run(Scan {
                pid: std::process::id(),
                skip,
                ..Scan::default()
            })?;
            self.base = answer.found;
            skip += u64::from(SCAN_CANDIDATES);
            if answer.pgd == 0 || skip > SEARCH_GIB {
                return Err(ProbeError::PageTable("the kernel's direct map was not found"));
            }
        }
        Ok(())
    }

    fn scan_batch(
        &mut self,
        pid: u32,
        leaves: &[u64],
        pages: &mut Vec<PresentPage>,
    ) -> Result<(), ProbeError> {
        for (index, leaf) in (0..).zip(leaves) {
            self.at
                .set(index, leaf * LEAF_PAGES * 4096, 0)
                .map_err(|source| map_error(names::SCAN_AT, "write", source))?;
        }
        let answer = self.run(Scan {
            pid,
            regions: u32::try_from(leaves.len()).unwrap_or(SCAN_REGIONS),
            base: self.base,
            ..Scan::default()
        })?;
        if answer.pgd == 0 {
            return Err(ProbeError::NoProcess(pid));
        }
        for (index, leaf) in (0..).zip(leaves) {
            let bytes = self
                .out
                .get(&index, 0)
                .map_err(|source| map_error(names::SCAN_OUT, "read", source))?;
            read_leaf(leaf * LEAF_PAGES, &zerocopy::transmute!(bytes), pages);
        }
        Ok(())
    }

    fn run(&mut self, scan: Scan) -> Result<Scan, ProbeError> {
        let request: ScanBytes = zerocopy::transmute!(scan);
        self.scan
            .set(0, request, 0)
            .map_err(|source| map_error(names::SCAN, "write", source))?;
        let mut file = {
            let mut programs = self.programs.lock();
            let iterator: &mut Iter = program(&mut programs, names::ACCESSED)?;
            let link = iterator.attach().map_err(refused(names::ACCESSED))?;
            let link = iterator.take_link(link).map_err(refused(names::ACCESSED))?;
            link.into_file()
                .map_err(|error| ProbeError::Iterator(io::Error::other(error)))?
        };
        // It runs while it is read, and says nothing there.
        file.read_to_end(&mut Vec::new()).map_err(ProbeError::Iterator)?;
        let answer = self
            .scan
            .get(&0, 0)
            .map_err(|source| map_error(names::SCAN, "read", source))?;
        Ok(zerocopy::transmute!(answer))
    }
}

/// The present pages in what lies at page number `first`.
fn read_leaf(first: u64, leaf: &Leaf, pages: &mut Vec<PresentPage>) {
    let seen = |page, entry: u64| PresentPage {
        page,
        accessed: entry & ACCESSED != 0,
        written: entry & DIRTY != 0,
    };
    let small = LeafKind::Table as u64;
    if leaf.kind == small {
        let entries = (first..).zip(leaf.entries);
        pages.extend(
            entries
                .filter(|(_, entry)| entry & PRESENT != 0)
                .map(|(page, entry)| seen(page, entry)),
        );
    } else if leaf.kind != LeafKind::None as u64 {
        // Of a huge page it is only known that some of it was accessed.
        pages.extend((first..first + LEAF_PAGES).map(|page| seen(page, leaf.entries[0])));
    }
}

/// Forgets which anonymous pages of a process were accessed. `flush`: it runs, and its translations may be in
/// use at this moment.
///
/// # Errors
/// When the process is gone.
pub fn reset_accessed(pid: u32, flush: bool) -> io::Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, CLEAR_ANONYMOUS)?;
    if flush {
        fs::write(&path, CLEAR_AND_FLUSH)?;
    }
    Ok(())
}

/// The ranges of page numbers of a process that hold private anonymous memory: what a checkpoint fills lazily.
///
/// # Errors
/// When the process is gone.
pub fn anonymous_pages(pid: u32) -> io::Result<Vec<Range<u64>>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(maps.lines().filter_map(anonymous_range).collect())
}

/// A line of `/proc/PID/maps` (proc(5)), if it is of private anonymous memory.
fn anonymous_range(line: &str) -> Option<Range<u64>> {
    let mut fields = line.split_ascii_whitespace();
    let (range, rights) = (fields.next()?, fields.next()?);
    let (inode, name) = (fields.nth(2)?, fields.next());
    // The kernel's own pages in every process; the heap and stacks have names in brackets, too.
    let is_kernels = name.is_some_and(|name| name.starts_with("[v"));
    if !rights.ends_with('p') || inode != "0" || is_kernels {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let page = |address| Some(u64::from_str_radix(address, 16).ok()? / 4096);
    Some(page(start)?..page(end)?)
}
