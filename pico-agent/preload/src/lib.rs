//! Loaded before the C library into CRIU, where the agent lacks CAP_SYS_RESOURCE.
//!
//! CRIU asks for the limits of every task with `syscall(SYS_prlimit64, pid, resource, NULL, &old)`, which
//! the kernel refuses for a task of another user without that capability ("Can't get rlimit"). The same
//! numbers stand in `/proc/PID/limits` for everyone to read. Owns that one answer; every other system
//! call goes to the kernel as it came. Must not write limits, nor allocate: CRIU calls this while tasks
//! are stopped.

mod limits;

use std::arch::asm;
use std::ffi::{c_int, c_long};
use std::fs::File;
use std::io::{Cursor, Read, Write};

/// Takes the place of the C library's `syscall`.
///
/// # Safety
/// As `syscall(2)`: the arguments must be what the call `number` expects.
// The C prototype is variadic: `long syscall(long number, ...)`. A fixed list of seven integers receives
// the same: in both the x86-64 SysV ABI and the AArch64 one, variadic integer and pointer arguments are
// passed in the registers (and then the stack) that fixed ones would be. Those the caller did not give
// hold garbage, which the kernel ignores, since each call reads only the arguments it has; the seventh
// lies on the stack on x86-64, where reading it is harmless for it is within the caller's frame.
#[unsafe(no_mangle)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "pointers and registers have the same size here"
)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    // SAFETY: the caller's promise, passed on.
    let result = unsafe { raw(number, [a, b, c, d, e, f]) };
    // The kernel's convention: the last 4095 negative numbers are errors.
    if !(-4095..0).contains(&result) {
        return result;
    }
    let reads = number == libc::SYS_prlimit64 && c == 0 && d != 0;
    if reads
        && result == -c_long::from(libc::EPERM)
        && let Some((soft, hard)) = from_proc(a, b)
    {
        let answer = libc::rlimit64 {
            rlim_cur: soft,
            rlim_max: hard,
        };
        let place = std::ptr::with_exposed_provenance_mut::<libc::rlimit64>(d.cast_unsigned() as usize);
        // SAFETY: for this call the fourth argument points at a rlimit64 that the caller lets us write,
        // and it is not null. The kernel asks for no alignment, so neither do we.
        unsafe { place.write_unaligned(answer) };
        return 0;
    }
    let errno = -result as c_int;
    // SAFETY: always points at the calling thread's errno.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// The kernel's answer as it is.
///
/// # Safety
/// As `syscall(2)`.
#[cfg(target_arch = "x86_64")]
unsafe fn raw(number: c_long, [a, b, c, d, e, f]: [c_long; 6]) -> c_long {
    let result;
    // SAFETY: the kernel's calling convention (syscall(2)): it changes rax, rcx, r11, and memory only as
    // the call says, which is the caller's promise. Flags are clobbered by default.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// The kernel's answer as it is.
///
/// # Safety
/// As `syscall(2)`.
#[cfg(target_arch = "aarch64")]
unsafe fn raw(number: c_long, [a, b, c, d, e, f]: [c_long; 6]) -> c_long {
    let result;
    // SAFETY: the kernel's calling convention (syscall(2)): it changes x0, and memory only as the call
    // says, which is the caller's promise.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d,
            in("x4") e, in("x5") f, options(nostack));
    }
    result
}

/// Soft and hard limit of `resource` of process `pid`, from `/proc/PID/limits` (proc_pid_limits(5)).
///
/// Only the lower halves count, as for the kernel: a caller that passes an `int` leaves the upper half of
/// the register undefined.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "see above"
)]
fn from_proc(pid: c_long, resource: c_long) -> Option<(u64, u64)> {
    let (pid, resource) = (pid as i32, resource as u32);
    let mut path = Cursor::new([0_u8; 40]);
    write!(path, "/proc/{pid}/limits").ok()?;
    let length = usize::try_from(path.position()).ok()?;
    let path = path.into_inner();
    // The file is about 1.3 kB. One that does not fit is not the one we know.
    let mut text = [0_u8; 4096];
    let mut file = File::open(std::str::from_utf8(path.get(..length)?).ok()?).ok()?;
    let mut filled = 0;
    loop {
        match file.read(text.get_mut(filled..)?).ok()? {
            0 => break,
            n => filled += n,
        }
    }
    limits::find(
        std::str::from_utf8(text.get(..filled)?).ok()?,
        usize::try_from(resource).ok()?,
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    /// Through the function above: the test binary defines `syscall` itself.
    fn prlimit(pid: c_long, resource: c_long) -> (c_long, libc::rlimit64, Option<i32>) {
        let mut old = libc::rlimit64 {
            rlim_cur: 1,
            rlim_max: 1,
        };
        let at = (&raw mut old) as c_long;
        // SAFETY: prlimit64 with no new limit and room for the old one.
        let result = unsafe { syscall(libc::SYS_prlimit64, pid, resource, 0, at, 0, 0) };
        (result, old, std::io::Error::last_os_error().raw_os_error())
    }

    #[test]
    fn limits_of_another_users_process_are_answered() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        // As root: another user, which is where the kernel may refuse.
        // SAFETY: geteuid has no preconditions.
        if unsafe { libc::geteuid() } == 0 {
            command.uid(33).gid(33);
        }
        let mut child = command.spawn().unwrap();
        let pid = c_long::from(child.id());
        for resource in 0..16 {
            let (result, limit, _) = prlimit(pid, resource);
            let ours = prlimit(0, resource).1;
            assert_eq!(
                (result, limit.rlim_cur, limit.rlim_max),
                (0, ours.rlim_cur, ours.rlim_max),
                "{resource}"
            );
            // What the kernel refuses is answered with the same numbers.
            let garbage = 0x5555 << 32;
            let from_proc = from_proc(pid | garbage, resource | garbage);
            assert_eq!(from_proc, Some((ours.rlim_cur, ours.rlim_max)), "{resource}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn errors_and_results_of_other_calls_are_the_kernels() {
        assert_eq!((prlimit(0, 99).0, prlimit(0, 99).2), (-1, Some(libc::EINVAL)));
        assert_eq!(
            (
                prlimit(c_long::from(i32::MAX), 0).0,
                prlimit(c_long::from(i32::MAX), 0).2
            ),
            (-1, Some(libc::ESRCH))
        );
        // SAFETY: getpid takes nothing; mmap of no address, with arguments up to the sixth.
        unsafe {
            assert_eq!(
                syscall(libc::SYS_getpid, 1, 2, 3, 4, 5, 6),
                c_long::from(std::process::id())
            );
            let flags = c_long::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let page = syscall(
                libc::SYS_mmap,
                0,
                4096,
                c_long::from(libc::PROT_READ),
                flags,
                -1,
                0,
            );
            assert!(page > 0 && page % 4096 == 0);
            assert_eq!(syscall(libc::SYS_munmap, page, 4096, 0, 0, 0, 0), 0);
        }
    }
}
