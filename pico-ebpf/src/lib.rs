//! Event and map layouts shared by the eBPF programs and the agent: the one place they are written down.
//!
//! Nothing here knows how a packet is parsed, which kernel hook is used, or what the agent concludes from
//! an event. Both sides are built from these types, so every layout is `repr(C)`, has no implicit padding
//! (padding bytes read uninitialised kernel stack and are refused by the verifier) and is checked for size
//! and offsets by the tests below: a changed layout is a changed test.
#![no_std]

mod event;
mod scan;

pub use event::{
    ERROR_FETCH, ERROR_PRESENT, ERROR_USER, ERROR_WRITE, EventKind, PageFault, PortKey, SERVED_GAVE,
    SERVED_IN_FAULT, SERVED_SENT, Serving, SocketEvent, Tracked,
};
pub use scan::{Leaf, LeafKind, SCAN_CANDIDATES, SCAN_REGIONS, Scan};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Names of maps and programs in the object file, used by the agent to find them.
pub mod names {
    /// Per-CPU hash map of [`ActivityKey`](crate::ActivityKey) to [`Activity`](crate::Activity).
    pub const ACTIVITY: &str = "ACTIVITY";
    /// Hash map of cgroup v2 id (`u64`) to [`Tracked`](crate::Tracked): who is traced.
    pub const TRACKED: &str = "TRACKED";
    /// Hash map of service address (16 bytes) to [`Tracked`](crate::Tracked): whose connections are traced.
    pub const HOMES: &str = "HOMES";
    /// Hash map of [`PortKey`](crate::PortKey) to nothing of meaning (`u32`): ports requests come in on.
    pub const PORTS: &str = "PORTS";
    /// Ring buffer of [`PageFault`](crate::PageFault) and [`SocketEvent`](crate::SocketEvent).
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU array of one `u64`: events that found the ring buffer full.
    pub const EVENTS_LOST: &str = "EVENTS_LOST";
    /// Array of one [`Scan`](crate::Scan): what the page-table walk is to do, and what it found.
    pub const SCAN: &str = "SCAN";
    /// Array of `u64`: the addresses whose leaf tables are wanted.
    pub const SCAN_AT: &str = "SCAN_AT";
    /// Array of [`Leaf`](crate::Leaf): one for each address.
    pub const SCAN_OUT: &str = "SCAN_OUT";
    /// `cgroup_skb` program for packets that reach a socket.
    pub const INGRESS: &str = "pico_ingress";
    /// `cgroup_skb` program for packets that a socket sends.
    pub const EGRESS: &str = "pico_egress";
    /// Raw tracepoint program for faults raised in user mode.
    pub const FAULT_USER: &str = "pico_fault_user";
    /// Raw tracepoint program for faults raised in kernel mode, on a user address.
    pub const FAULT_KERNEL: &str = "pico_fault_kernel";
    /// Raw tracepoint program for data that a thread received.
    pub const RECEIVED: &str = "pico_received";
    /// Raw tracepoint program for data that a thread sent.
    pub const SENT: &str = "pico_sent";
    /// Raw tracepoint program that stands in for both where their tracepoints are missing.
    pub const SYSCALL_DONE: &str = "pico_syscall_done";
    /// Raw tracepoint program for states of connections.
    pub const CONNECTION: &str = "pico_connection";
    /// Raw tracepoint program by which a new process or thread goes on with its maker's request.
    pub const FORKED: &str = "pico_forked";
    /// Raw tracepoint program by which a woken thread goes on with its waker's request.
    pub const WAKING: &str = "pico_waking";
    /// `iter/task` program that reads page tables.
    pub const ACCESSED: &str = "pico_accessed";
}

/// Offsets of fields in the kernel's structures: global variables of the object, set when it is loaded, from
/// the running kernel's own type information. `(global, structure, field)`.
pub const OFFSETS: [(&str, &str, &str); 21] = [
    ("TASK_PID", "task_struct", "pid"),
    ("TASK_TGID", "task_struct", "tgid"),
    ("TASK_MM", "task_struct", "mm"),
    ("TASK_FILES", "task_struct", "files"),
    ("TASK_CGROUPS", "task_struct", "cgroups"),
    ("TASK_MINOR", "task_struct", "min_flt"),
    ("TASK_MAJOR", "task_struct", "maj_flt"),
    ("CGROUPS_V2", "css_set", "dfl_cgrp"),
    ("CGROUP_NODE", "cgroup", "kn"),
    ("NODE_ID", "kernfs_node", "id"),
    ("MM_PGD", "mm_struct", "pgd"),
    ("SOCK_FAMILY", "sock_common", "skc_family"),
    ("SOCK_PORT", "sock_common", "skc_num"),
    ("SOCK_V4", "sock_common", "skc_rcv_saddr"),
    ("SOCK_V6", "sock_common", "skc_v6_rcv_saddr"),
    ("SOCK_PROTOCOL", "sock", "sk_protocol"),
    ("FILES_TABLE", "files_struct", "fdt"),
    ("TABLE_FILES", "fdtable", "fd"),
    ("FILE_SOCKET", "file", "private_data"),
    ("SOCKET_FILE", "socket", "file"),
    ("SOCKET_SOCK", "socket", "sk"),
];

/// How many (address, port, protocol) entries the activity map holds at most.
///
/// An app that is watched takes two entries for each address and one more for each published port and
/// address; the map allocates an entry when it is made, not ahead.
pub const ACTIVITY_ENTRIES: u32 = 65_536;

/// How many cgroups can be traced at the same time.
pub const TRACKED_ENTRIES: u32 = 4_096;

/// How many published ports traced apps can have together.
pub const PORT_ENTRIES: u32 = 16_384;

/// How many threads are known to serve a request at the same time; the one that was longest not looked at
/// gives way.
pub const SERVING_ENTRIES: u32 = 16_384;

/// Size of the ring buffer in bytes: a power of two and a multiple of the page size, as the kernel demands.
/// With the kernel's 8-byte record header it holds about 18,700 events.
pub const EVENTS_BYTES: u32 = 1 << 20;

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
    fn the_ring_buffer_size_is_one_the_kernel_takes() {
        assert!(EVENTS_BYTES.is_power_of_two());
        assert_eq!(EVENTS_BYTES % 4096, 0);
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
