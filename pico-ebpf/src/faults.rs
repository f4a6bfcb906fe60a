//! Page faults of tracked apps, from two tracepoints to one ring buffer.
//!
//! `exceptions:page_fault_user` sees faults raised by the app's own instructions and misses those raised
//! inside system calls (a `read` into a page that is not there); `exceptions:page_fault_kernel` sees those.
//! Both are attached as raw tracepoints: the arguments are those of the kernel's `TP_PROTO(unsigned long
//! address, struct pt_regs *regs, unsigned long error_code)`, and neither tracefs nor perf is needed.

use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel,
};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::{HashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::RawTracePointContext;
use pico_ebpf::{FAULTS_BYTES, PageFault, TRACKED_ENTRIES};

/// cgroup v2 id to app id. Preallocated: tracing programs must not allocate.
#[map]
static TRACKED: HashMap<u64, u32> = HashMap::with_max_entries(TRACKED_ENTRIES, 0);

#[map]
static FAULTS: RingBuf = RingBuf::with_byte_size(FAULTS_BYTES, 0);

#[map]
static FAULTS_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Faults raised in user mode.
#[raw_tracepoint(tracepoint = "page_fault_user")]
pub fn pico_fault_user(ctx: RawTracePointContext) -> i32 {
    report(&ctx)
}

/// Faults raised in kernel mode; only those on user addresses concern an app.
#[raw_tracepoint(tracepoint = "page_fault_kernel")]
pub fn pico_fault_kernel(ctx: RawTracePointContext) -> i32 {
    report(&ctx)
}

#[inline(always)]
fn report(ctx: &RawTracePointContext) -> i32 {
    let address: u64 = ctx.arg(0);
    // The upper half of the address space is the kernel's, with four levels of page tables and with five.
    if (address as i64) < 0 {
        return 0;
    }
    // SAFETY: takes nothing, reads the current task.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    // SAFETY: the kernel replaces an entry as a whole, and keeps the old one until the program returned.
    let Some(&app) = (unsafe { TRACKED.get(cgroup) }) else {
        return 0;
    };
    let regs: *const pt_regs = ctx.arg(1);
    // SAFETY: reads through a helper that answers with an error if the address is not readable.
    let ip = unsafe { bpf_probe_read_kernel(&raw const (*regs).rip) }.unwrap_or(0);
    let pid_tgid = bpf_get_current_pid_tgid();
    let fault = PageFault {
        // SAFETY: takes nothing, reads a clock.
        time_ns: unsafe { bpf_ktime_get_ns() },
        address,
        ip,
        app,
        pid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        error_code: ctx.arg::<u64>(2) as u32,
    };
    if FAULTS.output::<PageFault>(&fault, 0).is_err()
        && let Some(lost) = FAULTS_LOST.get_ptr_mut(0)
    {
        // SAFETY: the slot is this CPU's; a nested fault on the same CPU could at most lose one count.
        unsafe { *lost += 1 };
    }
    0
}
