//! The system calls an app may not make.
//!
//! Owns one table, a reason for each entry, and turns it into one classic BPF program. A deny list:
//! an app that the platform did not foresee should run. Two kinds of entries: what would reach outside
//! the sandbox or the kernel's rare corners (most of it needs a capability that apps lack anyway: the
//! second lock), and what a checkpoint cannot hold where programs fall back by themselves if it is
//! absent. Must not know CRIU beyond these reasons.
//!
//! The program is assembled here: ready-made crates give a filter one answer for all calls, and cannot
//! see that an x86-64 process calls by x32 numbers.

use std::io;

use caps::Capability;
use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, EAFNOSUPPORT, ENOSYS, EPERM,
    EPROTONOSUPPORT, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, sock_filter, sock_fprog,
};

use super::caps::Policy;

/// Which calls of a number an entry is about.
#[derive(Debug, Clone, Copy)]
enum When {
    Always,
    /// Any of these bits of the argument's lower half is set.
    AnyBit(u32, u32),
    /// The argument's lower half is one of these.
    OneOf(u32, &'static [u32]),
    /// The argument's lower half is none of these.
    NoneOf(u32, &'static [u32]),
}

/// One line of the table.
struct Entry {
    calls: &'static [libc::c_long],
    when: When,
    errno: i32,
    /// The owner who asks for this capability wants the calls, too.
    unless: Option<Capability>,
}

impl Entry {
    const fn always(calls: &'static [libc::c_long], errno: i32, unless: Option<Capability>) -> Entry {
        Entry {
            calls,
            when: When::Always,
            errno,
            unless,
        }
    }
}

macro_rules! calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// Names every new namespace: mnt, cgroup, uts, ipc, user, pid, net.
const NAMESPACES: u32 = 0x7e02_0000;
/// A new time namespace, which only `unshare` and `clone3` can make (in `clone` the bit is part of the
/// exit signal).
const TIME_NAMESPACE: u32 = 0x80;
/// IPPROTO_MPTCP.
const MPTCP: u32 = 262;
/// AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET (which needs NET_RAW besides).
const FAMILIES: &[u32] = &[1, 2, 10, 16, 17];
/// PER_LINUX and PER_LINUX32, each also with UNAME26, and the question what it is.
const PERSONALITIES: &[u32] = &[0, 8, 0x20000, 0x20008, u32::MAX];
/// `open_tree_attr`, Linux 6.15; new calls have the same number everywhere.
const SYS_OPEN_TREE_ATTR: libc::c_long = 467;
/// `lsm_set_self_attr`, Linux 6.8.
const SYS_LSM_SET_SELF_ATTR: libc::c_long = 460;
/// `map_shadow_stack` needs no entry; `mseal`, Linux 6.10.
const SYS_MSEAL: libc::c_long = 462;
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;

const SYS_ADMIN: Option<Capability> = Some(Capability::CAP_SYS_ADMIN);
const SYS_PTRACE: Option<Capability> = Some(Capability::CAP_SYS_PTRACE);

/// The table.
const TABLE: &[Entry] = &[
    // The mount tree is what hides the host's files and what a checkpoint expects to find again.
    Entry::always(
        calls!(SYS_mount SYS_umount2 SYS_pivot_root SYS_move_mount SYS_open_tree SYS_mount_setattr SYS_fsopen
            SYS_fsconfig SYS_fsmount SYS_fspick),
        EPERM,
        SYS_ADMIN,
    ),
    Entry::always(&[SYS_OPEN_TREE_ATTR], EPERM, SYS_ADMIN),
    // New namespaces, user namespaces above all, give back every capability inside, and with it the
    // kernel code that most local exploits are about; CRIU restores nested ones in part only.
    Entry {
        calls: calls!(SYS_clone),
        when: When::AnyBit(0, NAMESPACES),
        errno: EPERM,
        unless: SYS_ADMIN,
    },
    Entry {
        calls: calls!(SYS_unshare),
        when: When::AnyBit(0, NAMESPACES | TIME_NAMESPACE),
        errno: EPERM,
        unless: SYS_ADMIN,
    },
    Entry::always(calls!(SYS_setns), EPERM, SYS_ADMIN),
    // Its flags lie in memory, where a filter cannot look. C libraries fall back to clone.
    Entry::always(calls!(SYS_clone3), ENOSYS, SYS_ADMIN),
    // Programs for the kernel, and counters that see other processes.
    Entry::always(calls!(SYS_bpf), EPERM, Some(Capability::CAP_BPF)),
    Entry::always(calls!(SYS_perf_event_open), EPERM, Some(Capability::CAP_PERFMON)),
    // Looking into other processes: CRIU and our pager attach the same way, and there is one place for
    // an attacher; also a classic way around a filter before Linux 4.8.
    Entry::always(
        calls!(SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev SYS_pidfd_getfd SYS_kcmp),
        EPERM,
        SYS_PTRACE,
    ),
    // Other kernels and more kernel code.
    Entry::always(
        calls!(SYS_kexec_load SYS_reboot),
        EPERM,
        Some(Capability::CAP_SYS_BOOT),
    ),
    Entry::always(calls!(SYS_kexec_file_load), EPERM, Some(Capability::CAP_SYS_BOOT)),
    Entry::always(
        calls!(SYS_init_module SYS_finit_module SYS_delete_module),
        EPERM,
        Some(Capability::CAP_SYS_MODULE),
    ),
    // Keys are not divided by namespaces: root here would meet the host root's; CRIU saves none.
    Entry::always(calls!(SYS_keyctl SYS_add_key SYS_request_key), EPERM, None),
    // The pager uses userfaultfd on the app's memory; a second user of it would be in its way, and it
    // makes races in the kernel easy to win.
    Entry::always(calls!(SYS_userfaultfd), EPERM, None),
    // Opens any file of the file system by number, around every hidden path.
    Entry::always(
        calls!(SYS_open_by_handle_at),
        EPERM,
        Some(Capability::CAP_DAC_READ_SEARCH),
    ),
    // Watches whole mounts.
    Entry::always(calls!(SYS_fanotify_init), EPERM, SYS_ADMIN),
    // Things of the whole host: swap, quota, accounting, log, clock, names, terminal, security labels.
    Entry::always(
        calls!(SYS_swapon SYS_swapoff SYS_quotactl SYS_quotactl_fd),
        EPERM,
        SYS_ADMIN,
    ),
    Entry::always(calls!(SYS_sethostname SYS_setdomainname), EPERM, SYS_ADMIN),
    Entry::always(calls!(SYS_acct), EPERM, Some(Capability::CAP_SYS_PACCT)),
    Entry::always(calls!(SYS_syslog), EPERM, Some(Capability::CAP_SYSLOG)),
    Entry::always(
        calls!(SYS_settimeofday SYS_clock_settime SYS_adjtimex SYS_clock_adjtime),
        EPERM,
        Some(Capability::CAP_SYS_TIME),
    ),
    Entry::always(calls!(SYS_vhangup), EPERM, Some(Capability::CAP_SYS_TTY_CONFIG)),
    Entry::always(&[SYS_LSM_SET_SELF_ATTR], EPERM, None),
    // Types into, or pastes from, a terminal that is shared with whoever started us.
    Entry {
        calls: calls!(SYS_ioctl),
        when: When::OneOf(1, &[TIOCSTI, TIOCLINUX]),
        errno: EPERM,
        unless: None,
    },
    // Old binary formats and switched-off protections (READ_IMPLIES_EXEC, ADDR_NO_RANDOMIZE).
    Entry {
        calls: calls!(SYS_personality),
        when: When::NoneOf(0, PERSONALITIES),
        errno: EPERM,
        unless: None,
    },
    // Calls nobody needs, each with a history.
    Entry::always(calls!(SYS_nfsservctl SYS_lookup_dcookie), ENOSYS, None),
    #[cfg(target_arch = "x86_64")]
    Entry::always(calls!(SYS__sysctl SYS_uselib SYS_ustat SYS_sysfs), ENOSYS, None),
    // Ports and segments of the processor.
    #[cfg(target_arch = "x86_64")]
    Entry::always(
        calls!(SYS_iopl SYS_ioperm),
        EPERM,
        Some(Capability::CAP_SYS_RAWIO),
    ),
    #[cfg(target_arch = "x86_64")]
    Entry::always(calls!(SYS_modify_ldt), ENOSYS, None),
    // Families CRIU cannot save, among them the ways to the hypervisor (vsock) and to rarely walked
    // kernel code (alg, tipc, rds, ...).
    Entry {
        calls: calls!(SYS_socket),
        when: When::NoneOf(0, FAMILIES),
        errno: EAFNOSUPPORT,
        unless: None,
    },
    // CRIU cannot save MPTCP sockets. Programs that ask for one (Go does) take TCP instead.
    Entry {
        calls: calls!(SYS_socket),
        when: When::OneOf(2, &[MPTCP]),
        errno: EPROTONOSUPPORT,
        unless: None,
    },
    // CRIU cannot save rings; libuv, and others, use epoll instead.
    Entry::always(
        calls!(SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register),
        ENOSYS,
        None,
    ),
    // A restored process would believe itself protected, and would not be.
    Entry::always(
        calls!(SYS_landlock_create_ruleset SYS_landlock_add_rule SYS_landlock_restrict_self SYS_pkey_alloc
            SYS_pkey_mprotect),
        ENOSYS,
        None,
    ),
    Entry::always(&[SYS_MSEAL], ENOSYS, None),
    // Memory that nobody can read cannot be saved.
    Entry::always(calls!(SYS_memfd_secret), ENOSYS, None),
];

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
/// Added to the numbers of the x32 calls of a 64-bit process.
#[cfg(target_arch = "x86_64")]
const X32_BIT: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH_OFFSET: u32 = 4;
/// Lower half of argument `n`: both architectures are little-endian.
const fn argument(n: u32) -> u32 {
    16 + 8 * n
}

#[allow(clippy::cast_possible_truncation, reason = "BPF operation codes fit 16 bits")]
const fn op(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

const fn load(offset: u32) -> sock_filter {
    op(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0)
}

/// Jumps `yes` instructions ahead if the comparison holds, `no` if not.
const fn jump(comparison: u32, k: u32, yes: u8, no: u8) -> sock_filter {
    op(BPF_JMP | comparison | BPF_K, k, yes, no)
}

const fn answer(action: u32) -> sock_filter {
    op(BPF_RET | BPF_K, action, 0, 0)
}

/// Instructions that answer with the entry's error, or fall off their end.
#[allow(
    clippy::cast_possible_truncation,
    reason = "the lists of the table are a handful of numbers"
)]
fn check(entry: &Entry, out: &mut Vec<sock_filter>) {
    match entry.when {
        When::Always => {}
        When::AnyBit(arg, bits) => out.extend([load(argument(arg)), jump(BPF_JSET, bits, 0, 1)]),
        When::OneOf(arg, values) => {
            out.push(load(argument(arg)));
            for (i, value) in values.iter().enumerate() {
                let left = values.len() - 1 - i;
                out.push(jump(BPF_JEQ, *value, left as u8, if left == 0 { 1 } else { 0 }));
            }
        }
        When::NoneOf(arg, values) => {
            out.push(load(argument(arg)));
            for (i, value) in values.iter().enumerate() {
                out.push(jump(BPF_JEQ, *value, (values.len() - i) as u8, 0));
            }
        }
    }
    out.push(answer(SECCOMP_RET_ERRNO | entry.errno.unsigned_abs()));
}

/// The filter for an app with these capabilities.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "system call numbers are small and positive; blocks are a few instructions"
)]
fn program(policy: &Policy) -> Vec<sock_filter> {
    // A 32-bit process has other numbers for everything: none of ours would apply.
    let mut out = vec![
        load(ARCH_OFFSET),
        jump(BPF_JEQ, ARCH, 1, 0),
        answer(SECCOMP_RET_KILL_PROCESS),
        load(NR),
    ];
    #[cfg(target_arch = "x86_64")]
    out.extend([
        jump(BPF_JGE, X32_BIT, 0, 1),
        answer(SECCOMP_RET_ERRNO | ENOSYS.unsigned_abs()),
    ]);
    let entries = || TABLE.iter().filter(|e| !e.unless.is_some_and(|c| policy.has(c)));
    let mut done = Vec::new();
    for call in entries().flat_map(|e| e.calls) {
        if done.contains(call) {
            continue;
        }
        done.push(*call);
        let mut block = Vec::new();
        entries()
            .filter(|e| e.calls.contains(call))
            .for_each(|e| check(e, &mut block));
        block.push(answer(SECCOMP_RET_ALLOW));
        out.push(jump(BPF_JEQ, *call as u32, 0, block.len() as u8));
        out.extend(block);
    }
    out.push(answer(SECCOMP_RET_ALLOW));
    out
}

/// Puts the filter on the calling thread, for good. It must have no_new_privs or CAP_SYS_ADMIN.
pub(super) fn install(policy: &Policy) -> io::Result<()> {
    let mut filter = program(policy);
    let length = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let program = sock_fprog {
        len: length,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: `program` points at `length` initialised instructions, which outlive the call; the kernel
    // copies them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with the filter.
    fn run(filter: &[sock_filter], arch: u32, nr: libc::c_long, args: [u64; 6]) -> u32 {
        let mut data = Vec::from(u32::try_from(nr & 0xffff_ffff).unwrap().to_le_bytes());
        data.extend(arch.to_le_bytes());
        data.extend([0; 8]);
        args.iter().for_each(|a| data.extend(a.to_le_bytes()));
        let (mut at, mut a) = (0, 0);
        loop {
            let i = filter[at];
            let code = u32::from(i.code);
            at += 1;
            let taken = match code {
                _ if code == BPF_LD | BPF_W | BPF_ABS => {
                    let k = i.k as usize;
                    a = u32::from_le_bytes(data[k..k + 4].try_into().unwrap());
                    continue;
                }
                _ if code == BPF_RET | BPF_K => return i.k,
                _ if code == BPF_JMP | BPF_JEQ | BPF_K => a == i.k,
                _ if code == BPF_JMP | BPF_JGE | BPF_K => a >= i.k,
                _ if code == BPF_JMP | BPF_JSET | BPF_K => a & i.k != 0,
                _ => panic!("unexpected instruction {code}"),
            };
            at += usize::from(if taken { i.jt } else { i.jf });
        }
    }

    fn errno(e: i32) -> u32 {
        SECCOMP_RET_ERRNO | e.unsigned_abs()
    }

    fn policy(more: &[&str]) -> Policy {
        Policy::new(&more.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn every_entry_answers_as_the_table_says_and_nothing_else_is_touched() {
        let filter = program(&policy(&[]));
        for entry in TABLE.iter().filter(|e| matches!(e.when, When::Always)) {
            for call in entry.calls {
                assert_eq!(
                    run(&filter, ARCH, *call, [0; 6]),
                    errno(entry.errno),
                    "call {call}"
                );
            }
        }
        for call in calls!(SYS_read SYS_write SYS_openat SYS_execve SYS_epoll_pwait SYS_prctl SYS_capset
            SYS_setresuid SYS_seccomp SYS_chroot SYS_futex SYS_memfd_create SYS_pidfd_open SYS_rseq)
        {
            assert_eq!(
                run(&filter, ARCH, *call, [u64::MAX; 6]),
                SECCOMP_RET_ALLOW,
                "call {call}"
            );
        }
    }

    #[test]
    fn arguments_decide_where_the_table_says_so() {
        let filter = program(&policy(&[]));
        let allow = SECCOMP_RET_ALLOW;
        let arg = |n: usize, value: u64| {
            let mut args = [0; 6];
            args[n] = value;
            args
        };
        let socket =
            |family: u64, protocol: u64| run(&filter, ARCH, libc::SYS_socket, [family, 1, protocol, 0, 0, 0]);
        for (family, protocol, want) in [
            (1, 0, allow),
            (2, 6, allow),
            (10, 17, allow),
            (16, 0, allow),
            (17, 0, allow),
            (2, 262, errno(EPROTONOSUPPORT)),
            (10, 262, errno(EPROTONOSUPPORT)),
            (38, 0, errno(EAFNOSUPPORT)),
            (40, 262, errno(EAFNOSUPPORT)),
            (0, 0, errno(EAFNOSUPPORT)),
        ] {
            assert_eq!(socket(family, protocol), want, "socket({family}, _, {protocol})");
        }
        for (call, args, want) in [
            (libc::SYS_clone, arg(0, 0x003d_0f00), allow),
            (libc::SYS_clone, arg(0, 0x1000_0000), errno(EPERM)),
            (libc::SYS_clone, arg(0, 0x0002_0011), errno(EPERM)),
            (libc::SYS_unshare, arg(0, 0x400), allow),
            (libc::SYS_unshare, arg(0, 0x80), errno(EPERM)),
            (libc::SYS_unshare, arg(0, 0x4000_0000), errno(EPERM)),
            (libc::SYS_personality, arg(0, 0xffff_ffff), allow),
            (libc::SYS_personality, arg(0, 0), allow),
            (libc::SYS_personality, arg(0, 0x0040_0000), errno(EPERM)),
            (libc::SYS_ioctl, arg(1, 0x5401), allow),
            (libc::SYS_ioctl, arg(1, 0x5412), errno(EPERM)),
            // The kernel looks at the lower half only, so the filter must, too.
            (libc::SYS_ioctl, arg(1, 0x1_0000_5412), errno(EPERM)),
        ] {
            assert_eq!(run(&filter, ARCH, call, args), want, "call {call} {args:x?}");
        }
    }

    #[test]
    fn calls_by_other_numbers_are_no_way_around() {
        let filter = program(&policy(&[]));
        const I386: u32 = 0x4000_0003;
        assert_eq!(run(&filter, I386, 21, [0; 6]), SECCOMP_RET_KILL_PROCESS);
        #[cfg(target_arch = "x86_64")]
        assert_eq!(
            run(&filter, ARCH, libc::SYS_mount | 0x4000_0000, [0; 6]),
            errno(ENOSYS)
        );
    }

    #[test]
    fn a_capability_that_was_asked_for_brings_its_calls() {
        let filter = program(&policy(&["SYS_PTRACE", "SYS_TIME"]));
        assert_eq!(run(&filter, ARCH, libc::SYS_ptrace, [0; 6]), SECCOMP_RET_ALLOW);
        assert_eq!(
            run(&filter, ARCH, libc::SYS_clock_settime, [0; 6]),
            SECCOMP_RET_ALLOW
        );
        assert_eq!(run(&filter, ARCH, libc::SYS_mount, [0; 6]), errno(EPERM));
    }

    #[test]
    fn the_filter_fits_the_kernels_bounds() {
        assert!(program(&policy(&[])).len() < 1000, "BPF_MAXINSNS is 4096");
    }
}
