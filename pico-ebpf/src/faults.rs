//! Page faults of traced apps, from two tracepoints to the ring buffer.
//!
//! `exceptions:page_fault_user` sees faults raised by the app's own instructions and misses those raised
//! inside system calls (a `read` into a page that is not there); `exceptions:page_fault_kernel` sees those.
//! Both are attached as raw tracepoints: the arguments are those of the kernel's `TP_PROTO(unsigned long
//! address, struct pt_regs *regs, unsigned long error_code)`, and neither tracefs nor perf is needed.

use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use pico_ebpf::{EventKind, PageFault};

use crate::report::{report, tracked};
use crate::serving;

/// Faults raised in user mode.
#[raw_tracepoint(tracepoint = "page_fault_user")]
pub fn pico_fault_user(ctx: RawTracePointContext) -> i32 {
    fault(&ctx)
}

/// Faults raised in kernel mode; only those on user addresses concern an app.
#[raw_tracepoint(tracepoint = "page_fault_kernel")]
pub fn pico_fault_kernel(ctx: RawTracePointContext) -> i32 {
    fault(&ctx)
}

#[inline(always)]
fn fault(ctx: &RawTracePointContext) -> i32 {
    let address: u64 = ctx.arg(0);
    // The upper half of the address space is the kernel's, with four levels of page tables and with five.
    if (address as i64) < 0 {
        return 0;
    }
    let Some(tracked) = tracked() else { return 0 };
    let regs: *const pt_regs = ctx.arg(1);
    // SAFETY: reads through a helper that answers with an error if the address is not readable.
    let ip = unsafe { bpf_probe_read_kernel(&raw const (*regs).rip) }.unwrap_or(0);
    let pid_tgid = bpf_get_current_pid_tgid();
    let tid = pid_tgid as u32;
    let (port, proto) = serving::port_of_fault(tid, tracked.run);
    report(&PageFault {
        // SAFETY: takes nothing, reads a clock.
        time_ns: unsafe { bpf_ktime_get_ns() },
        address,
        ip,
        app: tracked.app,
        pid: (pid_tgid >> 32) as u32,
        tid,
        error_code: ctx.arg::<u64>(2) as u32,
        port,
        proto,
        kind: EventKind::Fault as u8,
        zero: 0,
    });
    0
}
