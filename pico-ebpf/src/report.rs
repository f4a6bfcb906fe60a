//! Who is traced, and the one ring buffer that carries what was seen.

use crate::kernel::{self, field};
use aya_ebpf::helpers::bpf_get_current_cgroup_id;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray, RingBuf};
use pico_ebpf::{EVENTS_BYTES, TRACKED_ENTRIES, Tracked};

/// By cgroup v2 id. Preallocated: tracing programs must not allocate.
#[map]
static TRACKED: HashMap<u64, Tracked> = HashMap::with_max_entries(TRACKED_ENTRIES, 0);

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);

#[map]
static EVENTS_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The traced app that the current task belongs to.
#[inline(always)]
pub fn tracked() -> Option<Tracked> {
    // SAFETY: takes nothing, reads the current task.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    // SAFETY: the kernel replaces an entry as a whole, and keeps the old one until the program returned.
    unsafe { TRACKED.get(cgroup) }.copied()
}

/// The traced app that another task belongs to.
#[inline(always)]
pub fn tracked_task(task: u64) -> Option<Tracked> {
    let set: u64 = field(task, &kernel::TASK_CGROUPS)?;
    let cgroup: u64 = field(set, &kernel::CGROUPS_V2)?;
    let node: u64 = field(cgroup, &kernel::CGROUP_NODE)?;
    // The inode number of the cgroup's directory since Linux 5.5.
    let id: u64 = field(node, &kernel::NODE_ID)?;
    // SAFETY: as in `tracked`.
    unsafe { TRACKED.get(id) }.copied()
}

/// Tells the agent, or counts that it could not be told.
#[inline(always)]
pub fn report<T: 'static>(event: &T) {
    if EVENTS.output::<T>(event, 0).is_err()
        && let Some(lost) = EVENTS_LOST.get_ptr_mut(0)
    {
        // SAFETY: the slot is this CPU's; a nested event on the same CPU could at most lose one count.
        unsafe { *lost += 1 };
    }
}
