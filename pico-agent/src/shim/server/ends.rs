//! How the app ends, by itself or by us; and the deadlines that end it.
use std::fs;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{Expiration, TimerSetTimeFlags};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::{DumpStep, EXIT_FILE, RESTORE_LOG, Shim, ShimError, Work, system};
use crate::shim::protocol::{Event, Exit, Phase};

/// A restore that takes longer is hung: CRIU waits for ever when a task it restores dies.
pub(super) const RESTORE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a timer is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Deadline {
    Restore,
    Fault,
    Stop,
}

impl Shim {
    /// Ends the app because it cannot go on; how is reported when its first process is reaped.
    pub(super) fn end_app(&mut self, reason: String) {
        eprintln!("{reason}");
        self.reason.get_or_insert(reason);
        if let Err(error) = self.config.cgroup.kill() {
            eprintln!("cannot end the app: {error}");
        }
    }

    pub(super) fn reap(&mut self) -> Result<(), ShimError> {
        while self
            .signals
            .read_signal()
            .map_err(system("read SIGCHLD"))?
            .is_some()
        {}
        loop {
            let exit = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), Exit::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => return Err(system("reap")(error)),
            };
            if self.pid == Some(exit.0) {
                self.pid = None;
                self.app_ended(exit.1);
            } else if self.waiting.as_ref().is_some_and(|swrk| swrk.pid() == exit.0) {
                // Of no use without; the agent starts another.
                eprintln!("CRIU ended while it waited ({})", exit.1);
                self.done = true;
            } else if let Work::Restore { swrk, .. } = &self.work
                && exit.0 != swrk.pid()
                && exit.0 != self.keeper.pid().as_raw()
            {
                // CRIU would wait for it for ever.
                self.failed_to_run(format!(
                    "the app's first process died in the middle of a restore ({})",
                    exit.1
                ));
            }
        }
    }

    pub(super) fn app_ended(&mut self, exit: Exit) {
        if matches!(
            self.work,
            Work::Dump {
                at: DumpStep::Committed,
                ..
            }
        ) || self.dumped
        {
            self.finish_dump();
            return;
        }
        // Members of the pid namespace end with its first process; the cgroup says when.
        self.kill_app();
        self.drain_logs();
        self.phase = Phase::Ended;
        let event = Event::Exited {
            exit,
            reason: self.reason.take(),
        };
        let record = serde_json::to_vec(&event).unwrap_or_default();
        if let Err(error) = fs::write(self.config.work.join(EXIT_FILE), record) {
            eprintln!("cannot record how the app ended: {error}");
        }
        self.say(&event);
        self.done = true;
    }

    pub(super) fn set_deadline(&mut self, deadline: Option<(Deadline, Duration)>) {
        self.deadline = deadline.map(|(what, _)| what);
        let set = match deadline {
            None => self.timer.unset(),
            Some((_, after)) => self.timer.set(
                Expiration::OneShot(TimeSpec::from_duration(after)),
                TimerSetTimeFlags::empty(),
            ),
        };
        if let Err(error) = set {
            eprintln!("cannot set a timer: {error}");
        }
    }

    pub(super) fn timer_expired(&mut self) {
        let _ = self.timer.wait();
        match self.deadline.take() {
            Some(Deadline::Restore) => self.failed_to_run(format!(
                "the restore did not finish within {} seconds (CRIU's log: {})",
                RESTORE_TIMEOUT.as_secs(),
                self.config.work.join(RESTORE_LOG).display()
            )),
            Some(Deadline::Fault) => self.end_app(format!(
                "memory was needed from the object store and no agent came within {} seconds",
                self.config.fault_timeout_s
            )),
            Some(Deadline::Stop) => {
                let _ = self.config.cgroup.kill();
            }
            None => {}
        }
    }
}
