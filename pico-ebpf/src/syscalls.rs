//! Data received and sent, where the kernel has no tracepoints for it (before Linux 6.3): from the return of
//! the system calls, and the descriptor they were given. Only attached where it must be: it runs at the end of
//! every system call of the host.

use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use pico_ebpf::EventKind;

use crate::kernel::{self, at, field};
use crate::report::tracked;
use crate::serving::{PEEK, transferred};

/// `raw_syscalls:sys_exit(struct pt_regs *regs, long ret)`.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn pico_syscall_done(ctx: RawTracePointContext) -> i32 {
    let result: i64 = ctx.arg(1);
    if result <= 0 || tracked().is_none() {
        return 0;
    }
    let regs: *const pt_regs = ctx.arg(0);
    // SAFETY: reads through a helper that answers with an error if the address is not readable.
    let Ok(regs) = (unsafe { bpf_probe_read_kernel(regs) }) else {
        return 0;
    };
    // asm/unistd_64.h
    let kind = match regs.orig_rax {
        // recvfrom; its flags are the fourth argument
        45 if regs.r10 as i32 & PEEK != 0 => return 0,
        // read, readv, recvfrom, recvmsg, recvmmsg
        0 | 19 | 45 | 47 | 299 => EventKind::Received,
        // write, writev, sendto, sendmsg, sendmmsg, sendfile
        1 | 20 | 44 | 46 | 307 | 40 => EventKind::Sent,
        _ => return 0,
    };
    if let Some(sock) = sock_of(regs.rdi) {
        transferred(sock, result as u64, kind);
    }
    0
}

/// The socket behind a descriptor of the current task, if it is one.
#[inline(always)]
fn sock_of(descriptor: u64) -> Option<u64> {
    // SAFETY: takes nothing.
    let task = unsafe { bpf_get_current_task() };
    let files: u64 = field(task, &kernel::TASK_FILES)?;
    let table: u64 = field(files, &kernel::FILES_TABLE)?;
    let array: u64 = field(table, &kernel::TABLE_FILES)?;
    let file: u64 = at(array.wrapping_add((descriptor & 0xffff_ffff) * 8))?;
    let socket: u64 = field(file, &kernel::FILE_SOCKET)?;
    // Other files keep other things there, and those do not name the file back.
    if field::<u64>(socket, &kernel::SOCKET_FILE)? != file {
        return None;
    }
    field(socket, &kernel::SOCKET_SOCK)
}
