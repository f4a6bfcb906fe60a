//! Whose request a thread serves.
//!
//! A thread that receives data on a published port serves a request of that port from then on. Who is forked by
//! it, or woken by it while idle, goes on with the same request. The request is over for a thread when it, or the
//! thread that received it, has answered, or it has handed it on, and has slept since: what wakes it then is
//! something else. Sleeping in a page fault is none of this. What nobody's request caused has no port.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_ktime_get_ns};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::{HashMap, LruHashMap};
use aya_ebpf::programs::RawTracePointContext;
use pico_ebpf::{
    EventKind, PORT_ENTRIES, PortKey, SERVED_GAVE, SERVED_IN_FAULT, SERVED_SENT, SERVING_ENTRIES, Serving,
    SocketEvent, TRACKED_ENTRIES, Tracked, v4_mapped,
};

use crate::kernel::{self, field};
use crate::report::{report, tracked, tracked_task};

/// By thread id.
#[map]
static SERVING: LruHashMap<u32, Serving> = LruHashMap::with_max_entries(SERVING_ENTRIES, 0);

/// Published ports of traced apps.
#[map]
static PORTS: HashMap<PortKey, u32> = HashMap::with_max_entries(PORT_ENTRIES, 0);

/// Traced apps by service address: connections change their state in nobody's context.
#[map]
static HOMES: HashMap<[u8; 16], Tracked> = HashMap::with_max_entries(2 * TRACKED_ENTRIES, 0);

/// `MSG_PEEK`: what is only looked at is received once more.
pub const PEEK: i32 = 2;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// The port of the request that thread `tid` serves, which is in a page fault now; zeros: none.
#[inline(always)]
pub fn port_of_fault(tid: u32, run: u32) -> (u16, u8) {
    let Some(serving) = SERVING.get_ptr_mut(tid) else {
        return (0, 0);
    };
    // SAFETY: entries of a preallocated map are never unmapped, and only the thread itself and who wakes it
    // write this one.
    let serving = unsafe { &mut *serving };
    if serving.run != run {
        return (0, 0);
    }
    // SAFETY: takes nothing.
    serving.faults = faults_over(unsafe { bpf_get_current_task() });
    serving.flags |= SERVED_IN_FAULT;
    (serving.port, serving.proto)
}

/// `sock:sock_recv_length(struct sock *sk, int ret, int flags)`.
#[raw_tracepoint(tracepoint = "sock_recv_length")]
pub fn pico_received(ctx: RawTracePointContext) -> i32 {
    let (length, flags): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    if length > 0 && flags & PEEK == 0 {
        transferred(ctx.arg(0), length as u64, EventKind::Received);
    }
    0
}

/// `sock:sock_send_length(struct sock *sk, int ret, int flags)`.
#[raw_tracepoint(tracepoint = "sock_send_length")]
pub fn pico_sent(ctx: RawTracePointContext) -> i32 {
    let length: i32 = ctx.arg(1);
    if length > 0 {
        transferred(ctx.arg(0), length as u64, EventKind::Sent);
    }
    0
}

/// The current thread has received or sent on a socket.
#[inline(always)]
pub fn transferred(sock: u64, bytes: u64, kind: EventKind) {
    let Some(tracked) = tracked() else { return };
    let Some((port, proto)) = local_port(sock) else {
        return;
    };
    // SAFETY: the value is not looked at.
    if unsafe { PORTS.get(PortKey::new(tracked.app, port, proto)) }.is_none() {
        return;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let tid = pid_tgid as u32;
    if kind == EventKind::Received {
        let request = Serving {
            run: tracked.run,
            port,
            proto,
            flags: 0,
            faults: 0,
            origin: tid,
            // SAFETY: takes nothing, reads a clock.
            number: unsafe { bpf_ktime_get_ns() } as u32,
        };
        begin(tid, request);
    } else if let Some(serving) = SERVING.get_ptr_mut(tid) {
        // SAFETY: as in `port_of_fault`.
        let serving = unsafe { &mut *serving };
        serving.flags |= SERVED_SENT;
    }
    report(&SocketEvent {
        // SAFETY: takes nothing, reads a clock.
        time_ns: unsafe { bpf_ktime_get_ns() },
        bytes,
        socket: sock,
        app: tracked.app,
        pid: (pid_tgid >> 32) as u32,
        tid,
        states: 0,
        port,
        proto,
        kind: kind as u8,
        zero: 0,
    });
}

/// A thread goes on with a request.
#[inline(always)]
fn begin(tid: u32, request: Serving) {
    let serving = Serving {
        flags: 0,
        faults: 0,
        ..request
    };
    // Fails only when all entries are in use at this moment; faults of the thread then have no port.
    let _ = SERVING.insert(tid, serving, 0);
}

/// Whether the request that thread `tid` serves is over for it once it has slept.
#[inline(always)]
fn is_over(tid: u32, serving: &Serving) -> bool {
    if serving.is_done() {
        return true;
    }
    if serving.origin == tid {
        return false;
    }
    // SAFETY: as in `port_of_fault`.
    match unsafe { SERVING.get(serving.origin) } {
        Some(origin) => origin.number != serving.number || origin.flags & SERVED_SENT != 0,
        None => true,
    }
}

/// Page faults of a thread that are over. The kernel counts one when the page is there, retries included.
#[inline(always)]
fn faults_over(task: u64) -> u32 {
    let minor: u64 = field(task, &kernel::TASK_MINOR).unwrap_or(0);
    let major: u64 = field(task, &kernel::TASK_MAJOR).unwrap_or(0);
    minor.wrapping_add(major) as u32
}

/// The socket's own port and IP protocol number.
#[inline(always)]
fn local_port(sock: u64) -> Option<(u16, u8)> {
    let port: u16 = field(sock, &kernel::SOCK_PORT)?;
    // 16 bits since Linux 5.6; the upper half tells only MPTCP from TCP.
    let proto: u16 = field(sock, &kernel::SOCK_PROTOCOL)?;
    Some((port, proto as u8))
}

/// `sock:inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn pico_connection(ctx: RawTracePointContext) -> i32 {
    let sock: u64 = ctx.arg(0);
    let Some(tracked) = home(sock) else { return 0 };
    let Some((port, proto)) = local_port(sock) else {
        return 0;
    };
    let (old, new): (u32, u32) = (ctx.arg(1), ctx.arg(2));
    report(&SocketEvent {
        // SAFETY: takes nothing, reads a clock.
        time_ns: unsafe { bpf_ktime_get_ns() },
        bytes: 0,
        socket: sock,
        app: tracked.app,
        pid: 0,
        tid: 0,
        states: old << 16 | new & 0xffff,
        port,
        proto,
        kind: EventKind::Connection as u8,
        zero: 0,
    });
    0
}

/// The traced app whose address the socket is bound to.
#[inline(always)]
fn home(sock: u64) -> Option<Tracked> {
    let address = match field::<u16>(sock, &kernel::SOCK_FAMILY)? {
        AF_INET => v4_mapped(field(sock, &kernel::SOCK_V4)?),
        AF_INET6 => field(sock, &kernel::SOCK_V6)?,
        _ => return None,
    };
    // SAFETY: the kernel replaces an entry as a whole, and keeps the old one until the program returned.
    unsafe { HOMES.get(address) }.copied()
}

/// `sched:sched_process_fork(struct task_struct *parent, struct task_struct *child)`, in the parent's context.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn pico_forked(ctx: RawTracePointContext) -> i32 {
    if tracked().is_none() {
        return 0;
    }
    let Some(child) = field::<u32>(ctx.arg(1), &kernel::TASK_PID) else {
        return 0;
    };
    // SAFETY: as in `port_of_fault`.
    match unsafe { SERVING.get(bpf_get_current_pid_tgid() as u32) } {
        Some(serving) => begin(child, *serving),
        // What is known of an earlier thread of this number is not the child's.
        None => drop(SERVING.remove(child)),
    }
    0
}

/// `sched:sched_waking(struct task_struct *p)`, in the waker's context.
#[raw_tracepoint(tracepoint = "sched_waking")]
pub fn pico_waking(ctx: RawTracePointContext) -> i32 {
    let Some(woken) = field::<u32>(ctx.arg(0), &kernel::TASK_PID) else {
        return 0;
    };
    let current = bpf_get_current_pid_tgid() as u32;
    let own = SERVING.get_ptr_mut(woken);
    if let Some(own) = own {
        // SAFETY: as in `port_of_fault`.
        let own = unsafe { &mut *own };
        if own.flags & SERVED_IN_FAULT != 0 && faults_over(ctx.arg(0)) == own.faults {
            return 0;
        }
        // In the middle of a request of its own (it waited for a lock, or for a disk).
        if !is_over(woken, own) {
            return 0;
        }
    }
    if current != woken
        && let Some(waker) = SERVING.get_ptr_mut(current)
    {
        // SAFETY: as in `port_of_fault`.
        let waker = unsafe { &mut *waker };
        // An answer wakes its client, too, which may be another app or none.
        if tracked_task(ctx.arg(0)).is_some_and(|app| app.run == waker.run) {
            waker.flags |= SERVED_GAVE;
            begin(woken, *waker);
            return 0;
        }
    }
    if own.is_some() {
        let _ = SERVING.remove(woken);
    }
    0
}
