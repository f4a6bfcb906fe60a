//! What tracing tells: page faults and socket activity, in one ring buffer so that their order is kept; and
//! what it must know for that: who is traced, on which ports requests come in, which thread serves what.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Who is traced. Value of the maps of cgroups and of service addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Tracked {
    /// The app id given when tracing began.
    pub app: u32,
    /// Another number each time tracing begins: what is known of threads of an earlier run counts no more.
    pub run: u32,
}

/// A published port of a traced app: a request is what is received on one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PortKey {
    /// The app id.
    pub app: u32,
    /// The app's own port in host order.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Always 0: hash maps compare keys byte by byte.
    pub zero: u8,
}

impl PortKey {
    /// The key of an app's own port, in host order, and IP protocol number.
    #[inline(always)]
    pub const fn new(app: u32, port: u16, proto: u8) -> Self {
        PortKey {
            app,
            port,
            proto,
            zero: 0,
        }
    }
}

/// The request that a thread serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Serving {
    /// [`Tracked::run`] in which it was received.
    pub run: u32,
    /// Port it was received on, in host order.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// `SERVED_*` bits.
    pub flags: u8,
    /// Page faults of the thread that were over when its last one began, counted by the kernel, modulo 2^32.
    pub faults: u32,
    /// The thread that received the request.
    pub origin: u32,
    /// When it did, CLOCK_MONOTONIC nanoseconds modulo 2^32: tells its requests apart.
    pub number: u32,
}

/// [`Serving::flags`] bit: the thread has sent something on the port since. When it has slept, the request
/// is over for it.
pub const SERVED_SENT: u8 = 1 << 0;
/// [`Serving::flags`] bit: the thread has woken another one, which goes on with the request. As above.
pub const SERVED_GAVE: u8 = 1 << 1;
/// [`Serving::flags`] bit: the thread has had a page fault, in which it may sleep without being idle: until the
/// kernel has counted more than [`Serving::faults`].
pub const SERVED_IN_FAULT: u8 = 1 << 2;

impl Serving {
    /// Whether the request is over for the thread once it has slept, by what the thread itself did.
    #[inline(always)]
    pub const fn is_done(&self) -> bool {
        self.flags & (SERVED_SENT | SERVED_GAVE) != 0
    }
}

/// What a record of the ring buffer is: its byte at offset 43.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EventKind {
    /// A [`PageFault`].
    Fault = 1,
    /// A [`SocketEvent`]: a thread received data.
    Received = 2,
    /// A [`SocketEvent`]: a thread sent data.
    Sent = 3,
    /// A [`SocketEvent`]: a connection changed its state.
    Connection = 4,
}

impl EventKind {
    /// The kind with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(EventKind::Fault),
            2 => Some(EventKind::Received),
            3 => Some(EventKind::Sent),
            4 => Some(EventKind::Connection),
            _ => None,
        }
    }
}

/// One page fault of a traced app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PageFault {
    /// When it was raised, CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// The faulting user address, not rounded to its page.
    pub address: u64,
    /// Instruction pointer at the fault; a kernel address when the fault was raised in kernel mode.
    pub ip: u64,
    /// The app id given when tracing began.
    pub app: u32,
    /// Process id (thread group) in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// The x86 page fault error code: see the `ERROR_*` bits.
    pub error_code: u32,
    /// Port whose request the thread serves, in host order; 0: none.
    pub port: u16,
    /// IP protocol number of that port; 0: none.
    pub proto: u8,
    /// [`EventKind::Fault`].
    pub kind: u8,
    /// Always 0.
    pub zero: u32,
}

/// Data received or sent by a traced app, or a connection of its that changed its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketEvent {
    /// When, CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// Bytes received or sent.
    pub bytes: u64,
    /// The kernel's address of the socket: tells connections apart while they live.
    pub socket: u64,
    /// The app id given when tracing began.
    pub app: u32,
    /// Process id in the initial pid namespace; 0 for states, which change while anything runs.
    pub pid: u32,
    /// Thread id in the initial pid namespace; 0 for states.
    pub tid: u32,
    /// Old state in the upper half, new state in the lower, by the kernel's numbers (net/tcp_states.h).
    pub states: u32,
    /// The app's own port in host order.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// [`EventKind::Received`], [`EventKind::Sent`] or [`EventKind::Connection`].
    pub kind: u8,
    /// Always 0.
    pub zero: u32,
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
    fn a_page_fault_is_48_bytes_without_gaps() {
        assert_eq!(size_of::<PageFault>(), 48);
        assert_eq!(offset_of!(PageFault, time_ns), 0);
        assert_eq!(offset_of!(PageFault, address), 8);
        assert_eq!(offset_of!(PageFault, ip), 16);
        assert_eq!(offset_of!(PageFault, app), 24);
        assert_eq!(offset_of!(PageFault, pid), 28);
        assert_eq!(offset_of!(PageFault, tid), 32);
        assert_eq!(offset_of!(PageFault, error_code), 36);
        assert_eq!(offset_of!(PageFault, port), 40);
        assert_eq!(offset_of!(PageFault, proto), 42);
        assert_eq!(offset_of!(PageFault, kind), 43);
        assert_eq!(offset_of!(PageFault, zero), 44);
    }

    #[test]
    fn a_socket_event_is_48_bytes_with_its_kind_where_a_fault_has_it() {
        assert_eq!(size_of::<SocketEvent>(), 48);
        assert_eq!(offset_of!(SocketEvent, time_ns), 0);
        assert_eq!(offset_of!(SocketEvent, bytes), 8);
        assert_eq!(offset_of!(SocketEvent, socket), 16);
        assert_eq!(offset_of!(SocketEvent, app), 24);
        assert_eq!(offset_of!(SocketEvent, pid), 28);
        assert_eq!(offset_of!(SocketEvent, tid), 32);
        assert_eq!(offset_of!(SocketEvent, states), 36);
        assert_eq!(offset_of!(SocketEvent, port), 40);
        assert_eq!(offset_of!(SocketEvent, proto), 42);
        assert_eq!(offset_of!(SocketEvent, kind), offset_of!(PageFault, kind));
        assert_eq!(offset_of!(SocketEvent, zero), 44);
    }

    #[test]
    fn keys_and_values_of_maps_have_no_gaps() {
        assert_eq!(size_of::<Tracked>(), 8);
        assert_eq!(offset_of!(Tracked, run), 4);
        assert_eq!(size_of::<PortKey>(), 8);
        assert_eq!(offset_of!(PortKey, port), 4);
        assert_eq!(offset_of!(PortKey, proto), 6);
        assert_eq!(size_of::<Serving>(), 20);
        assert_eq!(offset_of!(Serving, port), 4);
        assert_eq!(offset_of!(Serving, proto), 6);
        assert_eq!(offset_of!(Serving, flags), 7);
        assert_eq!(offset_of!(Serving, faults), 8);
        assert_eq!(offset_of!(Serving, origin), 12);
        assert_eq!(offset_of!(Serving, number), 16);
    }

    #[test]
    fn kinds_are_read_back_as_they_were_numbered() {
        for number in 0..=u8::MAX {
            let kind = EventKind::from_number(number);
            assert!(kind.is_none_or(|kind| kind as u8 == number));
        }
        assert_eq!(EventKind::from_number(1), Some(EventKind::Fault));
        assert_eq!(EventKind::from_number(4), Some(EventKind::Connection));
    }
}
