//! Event and map layouts shared by the eBPF programs and the agent: the one place they are written down.
//!
//! Nothing here knows how a packet is parsed, which kernel hook is used, or what the agent concludes from
//! an event. Both sides are built from these types, so every layout is `repr(C)`, has no implicit padding
//! (padding bytes read uninitialised kernel stack and are refused by the verifier) and is checked for size
//! and offsets by the tests below: a changed layout is a changed test.
#![no_std]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Names of maps and programs in the object file, used by the agent to find them.
pub mod names {
    /// Per-CPU hash map of [`ActivityKey`](crate::ActivityKey) to [`Activity`](crate::Activity).
    pub const ACTIVITY: &str = "ACTIVITY";
    /// Hash map of cgroup v2 id (`u64`) to app id (`u32`): whose page faults are reported.
    pub const TRACKED: &str = "TRACKED";
    /// Ring buffer of [`PageFault`](crate::PageFault).
    pub const FAULTS: &str = "FAULTS";
    /// Per-CPU array of one `u64`: page faults that found the ring buffer full.
    pub const FAULTS_LOST: &str = "FAULTS_LOST";
    /// `cgroup_skb` program for packets that reach a socket.
    pub const INGRESS: &str = "pico_ingress";
    /// `cgroup_skb` program for packets that a socket sends.
    pub const EGRESS: &str = "pico_egress";
    /// Raw tracepoint program for faults raised in user mode.
    pub const FAULT_USER: &str = "pico_fault_user";
    /// Raw tracepoint program for faults raised in kernel mode, on a user address.
    pub const FAULT_KERNEL: &str = "pico_fault_kernel";
}

/// How many (address, port, protocol) entries the activity map holds at most.
///
/// An app that is watched takes two entries for each address and one more for each published port and
/// address; the map allocates an entry when it is made, not ahead.
pub const ACTIVITY_ENTRIES: u32 = 65_536;

/// How many cgroups can have their page faults reported at the same time.
pub const TRACKED_ENTRIES: u32 = 4_096;

/// Size of the page fault ring buffer in bytes: a power of two and a multiple of the page size, as the
/// kernel demands. With the kernel's 8-byte record header it holds about 21,800 faults.
pub const FAULTS_BYTES: u32 = 1 << 20;

/// [`ActivityKey::port`] of the entry that sums up every local port that has no entry of its own:
/// unpublished ports, and the ephemeral ports of connections the app itself opens.
pub const OTHER_PORTS: u16 = 0;

/// Which traffic an [`Activity`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ActivityKey {
    /// The app's own (service) address in network order; IPv4 as `::ffff:a.b.c.d`.
    pub address: [u8; 16],
    /// The app's own port in host order, or [`OTHER_PORTS`].
    pub port: u16,
    /// IP protocol number: 6 is TCP, 17 is UDP.
    pub proto: u8,
    /// Always 0: hash maps compare keys byte by byte.
    pub zero: u8,
}

impl ActivityKey {
    /// The key of a local address (16 bytes, IPv4 mapped), port in host order, and IP protocol number.
    #[inline(always)]
    pub const fn new(address: [u8; 16], port: u16, proto: u8) -> Self {
        ActivityKey {
            address,
            port,
            proto,
            zero: 0,
        }
    }
}

/// An IPv4 address (network order) as the 16 bytes of its IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2).
#[inline(always)]
pub const fn v4_mapped(address: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// What was seen on one local port since it is watched, both directions together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Activity {
    /// Time of the last packet, CLOCK_MONOTONIC nanoseconds; 0: none yet.
    pub last_ns: u64,
    /// Packets that count as activity, as the socket layer sees them (segments merged by receive offload
    /// or not yet cut by send offload count once).
    pub packets: u64,
    /// Their bytes from the IP header on.
    pub bytes: u64,
}

/// One page fault of a tracked app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PageFault {
    /// When it was raised, CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// The faulting user address, not rounded to its page.
    pub address: u64,
    /// Instruction pointer at the fault; a kernel address when the fault was raised in kernel mode.
    pub ip: u64,
    /// The app id given when its cgroup was tracked.
    pub app: u32,
    /// Process id (thread group) in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// The x86 page fault error code: see the `ERROR_*` bits.
    pub error_code: u32,
}

/// [`PageFault::error_code`] bit: the page was there and the access not permitted (a write to a page that is
/// shared with a file, a parent or the zero page); clear: the page was missing.
pub const ERROR_PRESENT: u32 = 1 << 0;
/// [`PageFault::error_code`] bit: the access was a write.
pub const ERROR_WRITE: u32 = 1 << 1;
/// [`PageFault::error_code`] bit: raised in user mode; clear: inside a system call, on the app's behalf.
pub const ERROR_USER: u32 = 1 << 2;
/// [`PageFault::error_code`] bit: the access was an instruction fetch.
pub const ERROR_FETCH: u32 = 1 << 4;

impl PageFault {
    /// Whether the page was missing, rather than there and not writable.
    pub const fn is_missing(&self) -> bool {
        self.error_code & ERROR_PRESENT == 0
    }

    /// Whether the access was a write.
    pub const fn is_write(&self) -> bool {
        self.error_code & ERROR_WRITE != 0
    }

    /// Whether the app's own instruction raised it, rather than a system call on its behalf.
    pub const fn in_user_mode(&self) -> bool {
        self.error_code & ERROR_USER != 0
    }
}

#[cfg(test)]
mod tests {
    use core::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn an_activity_key_is_20_bytes_without_gaps() {
        assert_eq!(size_of::<ActivityKey>(), 20);
        assert_eq!(offset_of!(ActivityKey, address), 0);
        assert_eq!(offset_of!(ActivityKey, port), 16);
        assert_eq!(offset_of!(ActivityKey, proto), 18);
        assert_eq!(offset_of!(ActivityKey, zero), 19);
    }

    #[test]
    fn an_activity_is_24_bytes_without_gaps() {
        assert_eq!(size_of::<Activity>(), 24);
        assert_eq!(offset_of!(Activity, last_ns), 0);
        assert_eq!(offset_of!(Activity, packets), 8);
        assert_eq!(offset_of!(Activity, bytes), 16);
    }

    #[test]
    fn a_page_fault_is_40_bytes_without_gaps() {
        assert_eq!(size_of::<PageFault>(), 40);
        assert_eq!(offset_of!(PageFault, time_ns), 0);
        assert_eq!(offset_of!(PageFault, address), 8);
        assert_eq!(offset_of!(PageFault, ip), 16);
        assert_eq!(offset_of!(PageFault, app), 24);
        assert_eq!(offset_of!(PageFault, pid), 28);
        assert_eq!(offset_of!(PageFault, tid), 32);
        assert_eq!(offset_of!(PageFault, error_code), 36);
    }

    #[test]
    fn the_ring_buffer_size_is_one_the_kernel_takes() {
        assert!(FAULTS_BYTES.is_power_of_two());
        assert_eq!(FAULTS_BYTES % 4096, 0);
    }

    #[test]
    fn a_key_has_the_bytes_the_kernel_side_writes() {
        let key = ActivityKey::new(v4_mapped([10, 77, 0, 5]), 0x1f90, 6);
        let mut expected = [0u8; 20];
        expected[10..16].copy_from_slice(&[0xff, 0xff, 10, 77, 0, 5]);
        expected[16..18].copy_from_slice(&0x1f90u16.to_ne_bytes());
        expected[18] = 6;
        assert_eq!(key.as_bytes(), expected);
    }
}
