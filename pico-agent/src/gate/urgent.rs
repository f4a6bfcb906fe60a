//! A short while in which the calling thread runs before all others. Owns the one system call for that.

/// The calling thread is scheduled in real time until this is dropped (on the same thread). Without the right to
/// that (CAP_SYS_NICE) nothing happens.
pub struct Urgent {
    raised: bool,
}

impl Urgent {
    /// Begins the while. Only for a few milliseconds of work that never waits for another thread.
    pub fn begin() -> Self {
        Self {
            raised: schedule(libc::SCHED_FIFO, 1),
        }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        if self.raised {
            schedule(libc::SCHED_OTHER, 0);
        }
    }
}

fn schedule(policy: libc::c_int, priority: libc::c_int) -> bool {
    let parameter = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: 0 is the calling thread, and `parameter` is an initialised sched_param that outlives the call.
    unsafe { libc::sched_setscheduler(0, policy, &parameter) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> libc::c_int {
        // SAFETY: no pointers; 0 is the calling thread.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn a_thread_is_itself_again_afterwards() {
        let urgent = Urgent::begin();
        assert_eq!(policy() == libc::SCHED_FIFO, urgent.raised);
        drop(urgent);
        assert_eq!(policy(), libc::SCHED_OTHER);
    }
}
