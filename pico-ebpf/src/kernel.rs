//! Fields of the kernel's structures. Where they lie differs from kernel to kernel: the agent reads it from
//! the running kernel's type information and sets these globals when it loads the object.

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_probe_read_kernel;

macro_rules! offsets {
    ($($name:ident),*) => { $(
        #[unsafe(no_mangle)]
        pub static $name: Global<u32> = Global::new(0);
    )* };
}

offsets!(
    TASK_PID,
    TASK_TGID,
    TASK_MM,
    TASK_FILES,
    TASK_CGROUPS,
    TASK_MINOR,
    TASK_MAJOR,
    CGROUPS_V2,
    CGROUP_NODE,
    NODE_ID,
    MM_PGD,
    SOCK_FAMILY,
    SOCK_PORT,
    SOCK_V4,
    SOCK_V6,
    SOCK_PROTOCOL,
    FILES_TABLE,
    TABLE_FILES,
    FILE_SOCKET,
    SOCKET_FILE,
    SOCKET_SOCK
);

/// Reads a field of the structure at `base`.
#[inline(always)]
pub fn field<T>(base: u64, offset: &Global<u32>) -> Option<T> {
    at(base.wrapping_add(u64::from(offset.load())))
}

/// Reads kernel memory; `None` where nothing can be read.
#[inline(always)]
pub fn at<T>(address: u64) -> Option<T> {
    // SAFETY: reads through a helper that answers with an error if the address is not readable.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}
