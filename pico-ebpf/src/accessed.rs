//! The page table of one process, read by an iterator over all tasks: the leaf entries of up to 64 times 2 MiB
//! in one run. They say what is present, accessed and written; the program itself judges nothing.
//!
//! Tables name each other by physical address, so it must be known where the kernel maps all memory. That place
//! is randomised and not told; it is found by trying: under the right one, and only under it, the kernel's own
//! page table maps the process's top-level table to where it is.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel as read_kernel;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use pico_ebpf::{Leaf, LeafKind, SCAN_CANDIDATES, SCAN_REGIONS, Scan};

use crate::kernel::{self, at, field};

#[map]
static SCAN: Array<Scan> = Array::with_max_entries(1, 0);

#[map]
static SCAN_AT: Array<u64> = Array::with_max_entries(SCAN_REGIONS, 0);

#[map]
static SCAN_OUT: Array<Leaf> = Array::with_max_entries(SCAN_REGIONS, 0);

/// Page-table entry bits (Intel SDM volume 3, 4.5; AMD64 volume 2, 5.4).
const PRESENT: u64 = 1 << 0;
const HUGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// With four levels of page tables kernel addresses begin here; with five the direct map lies below it.
const FOUR_LEVELS: u64 = 0xffff_8000_0000_0000;

/// A program of `iter/task`: run once for each task of the host, with a null task at the end.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn pico_accessed(ctx: *mut c_void) -> i32 {
    // `struct bpf_iter__task { struct bpf_iter_meta *meta; struct task_struct *task; }`
    let Some(task) = at::<u64>(ctx as u64 + 8) else {
        return 0;
    };
    if task == 0 {
        return 0;
    }
    let Some(scan) = SCAN.get_ptr_mut(0) else { return 0 };
    // SAFETY: an array's entries live as long as the program, and the agent runs one scan at a time.
    let scan = unsafe { &mut *scan };
    // The first thread of the process; the others share its memory.
    if field::<u32>(task, &kernel::TASK_PID) != Some(scan.pid) {
        return 0;
    }
    let Some(mm) = field::<u64>(task, &kernel::TASK_MM) else {
        return 0;
    };
    if mm == 0 {
        return 0;
    }
    let Some(pgd) = field::<u64>(mm, &kernel::MM_PGD) else {
        return 0;
    };
    scan.pgd = pgd;
    if scan.base == 0 {
        search(scan, pgd);
    } else {
        read_regions(scan, pgd);
    }
    0
}

#[inline(always)]
fn search(scan: &mut Scan, pgd: u64) {
    let top = (pgd >> 30 << 30).wrapping_sub(scan.skip << 30);
    for step in 0..u64::from(SCAN_CANDIDATES) {
        let base = top.wrapping_sub(step << 30);
        let Some(entry) = walk(base, pgd, pgd) else {
            continue;
        };
        let within = match entry.kind {
            LeafKind::None => continue,
            LeafKind::Huge1G => (1 << 30) - 1,
            LeafKind::Huge2M => (1 << 21) - 1,
            // Of 4 KiB pages the entry is one table further down.
            LeafKind::Table => match at::<u64>(entry.table + (pgd >> 12 & 511) * 8) {
                Some(last) if last & PRESENT != 0 => {
                    if base.wrapping_add(last & ADDRESS) == pgd {
                        scan.found = base;
                        return;
                    }
                    continue;
                }
                _ => continue,
            },
        };
        let physical = entry.entry & ADDRESS & !within | pgd & within;
        if base.wrapping_add(physical) == pgd {
            scan.found = base;
            return;
        }
    }
}

#[inline(always)]
fn read_regions(scan: &Scan, pgd: u64) {
    for region in 0..SCAN_REGIONS {
        if region >= scan.regions {
            return;
        }
        let (Some(&address), Some(out)) = (SCAN_AT.get(region), SCAN_OUT.get_ptr_mut(region)) else {
            return;
        };
        // SAFETY: as for the scan itself.
        let out = unsafe { &mut *out };
        out.kind = LeafKind::None as u64;
        let Some(entry) = walk(scan.base, pgd, address) else {
            continue;
        };
        if entry.kind == LeafKind::Table {
            // SAFETY: writes 4096 bytes into an entry that has them; a table that is gone is an error.
            let read = unsafe {
                read_kernel(
                    out.entries.as_mut_ptr().cast(),
                    4096,
                    entry.table as *const c_void,
                )
            };
            if read != 0 {
                continue;
            }
        } else {
            out.entries[0] = entry.entry;
        }
        out.kind = entry.kind as u64;
    }
}

/// Where the walk to the leaf of an address ended.
struct Entry {
    kind: LeafKind,
    /// The huge entry.
    entry: u64,
    /// Address of the table of 4 KiB entries.
    table: u64,
}

/// Walks from the top-level table at `pgd` to the 2 MiB that hold `address`.
#[inline(always)]
fn walk(base: u64, pgd: u64, address: u64) -> Option<Entry> {
    let none = Entry {
        kind: LeafKind::None,
        entry: 0,
        table: 0,
    };
    let mut table = pgd;
    if pgd < FOUR_LEVELS {
        let entry: u64 = at(table + (address >> 48 & 511) * 8)?;
        if entry & PRESENT == 0 {
            return Some(none);
        }
        table = base.wrapping_add(entry & ADDRESS);
    }
    let entry: u64 = at(table + (address >> 39 & 511) * 8)?;
    if entry & PRESENT == 0 {
        return Some(none);
    }
    table = base.wrapping_add(entry & ADDRESS);
    let entry: u64 = at(table + (address >> 30 & 511) * 8)?;
    if entry & PRESENT == 0 {
        return Some(none);
    }
    if entry & HUGE != 0 {
        return Some(Entry {
            kind: LeafKind::Huge1G,
            entry,
            table,
        });
    }
    table = base.wrapping_add(entry & ADDRESS);
    let entry: u64 = at(table + (address >> 21 & 511) * 8)?;
    if entry & PRESENT == 0 {
        return Some(none);
    }
    if entry & HUGE != 0 {
        return Some(Entry {
            kind: LeafKind::Huge2M,
            entry,
            table,
        });
    }
    Some(Entry {
        kind: LeafKind::Table,
        entry,
        table: base.wrapping_add(entry & ADDRESS),
    })
}
