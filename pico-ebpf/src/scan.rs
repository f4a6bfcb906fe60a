//! What the page-table walk is asked, and how it answers: leaf tables as the hardware has them. What the bits
//! mean is for the agent to know.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Leaf tables read in one run of the iterator.
pub const SCAN_REGIONS: u32 = 64;

/// Places tried for the direct map in one run of the iterator, 1 GiB apart, downwards.
pub const SCAN_CANDIDATES: u32 = 32;

/// One run of the iterator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Scan {
    /// Asked: whose page table, by process id in the initial pid namespace.
    pub pid: u32,
    /// Asked: how many addresses are wanted; 0: only find the direct map.
    pub regions: u32,
    /// Asked: where the kernel maps all memory; 0: not known yet.
    pub base: u64,
    /// Asked while `base` is 0: GiB below the top-level table at which the search begins.
    pub skip: u64,
    /// Answered: address of the process's top-level table; 0: no such process.
    pub pgd: u64,
    /// Answered: where the direct map begins, if this run found it.
    pub found: u64,
}

/// What lies at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LeafKind {
    /// Nothing is mapped in these 2 MiB.
    None = 0,
    /// 512 entries for 4 KiB each.
    Table = 1,
    /// One entry, the first, for 2 MiB.
    Huge2M = 2,
    /// One entry, the first, for 1 GiB.
    Huge1G = 3,
}

/// The entries for 2 MiB of an address space.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Leaf {
    /// A [`LeafKind`].
    pub kind: u64,
    /// Page-table entries.
    pub entries: [u64; 512],
}

#[cfg(test)]
mod tests {
    use core::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn a_scan_is_40_bytes_without_gaps() {
        assert_eq!(size_of::<Scan>(), 40);
        assert_eq!(offset_of!(Scan, regions), 4);
        assert_eq!(offset_of!(Scan, base), 8);
        assert_eq!(offset_of!(Scan, skip), 16);
        assert_eq!(offset_of!(Scan, pgd), 24);
        assert_eq!(offset_of!(Scan, found), 32);
    }

    #[test]
    fn a_leaf_is_a_page_of_entries_after_its_kind() {
        assert_eq!(size_of::<Leaf>(), 8 + 4096);
        assert_eq!(offset_of!(Leaf, entries), 8);
    }
}
