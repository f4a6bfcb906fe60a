//! When an app sleeps, goes cold, starts again, and what it does after a crash. Pure: told what was
//! observed, each function answers with a decision and its reason in words for the owner. Knows no clock.

use std::time::Duration;

use crate::config::{AfterCrash, Restart};
use crate::lifecycle::record::ExitStatus;
use crate::lifecycle::state::{State, Tier};
use crate::units::{Wait, format_duration};

/// Below this share of one core, in hundredths, an app is idle. Idle programs are not still: Redis uses 0.2.
pub const IDLE_CPU_PERCENT: u32 = 1;
/// Processor time is judged over at least this long: one wake-up in a shorter window looks like work.
pub const CPU_WINDOW: Duration = Duration::from_secs(1);
/// First and longest wait before an ended app is started again.
pub const RESTART_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// An app that ran this long has recovered: its next restart waits the shortest time again.
pub const RESTART_RESET: Duration = Duration::from_secs(60);
/// First and longest wait before a failed swap-out is tried again by idleness.
pub const SLEEP_BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// First and longest wait before a failed wake is tried again.
pub const WAKE_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often a hot app is looked at for what no checkpoint can hold.
pub const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A checkpoint that was fetched because a client is expected stays on the disk this long at least. Names have a TTL of
/// seconds (`pico-hub`, `dns`): who has asked for one comes before this is over, or asks anew.
pub const EXPECTED_FOR: Duration = Duration::from_secs(60);
/// First and longest wait before a failed upload is tried again.
pub const UPLOAD_BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// A point on CLOCK_MONOTONIC, as eBPF's `bpf_ktime_get_ns` gives it.
pub type Monotonic = Duration;

/// Whether to act now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Act.
    Now {
        /// Why, in words for the owner.
        why: String,
    },
    /// Decide again at `until`, or, when that is `None`, when something changes.
    Wait {
        /// When to decide again.
        until: Option<Monotonic>,
        /// Why not now, in words for the owner.
        why: String,
    },
}

impl Decision {
    fn wait(until: Monotonic, why: String) -> Self {
        Decision::Wait {
            until: Some(until),
            why,
        }
    }

    fn never(why: impl Into<String>) -> Self {
        Decision::Wait {
            until: None,
            why: why.into(),
        }
    }

    /// The reason.
    pub fn why(&self) -> &str {
        match self {
            Decision::Now { why } | Decision::Wait { why, .. } => why,
        }
    }
}

/// What decides whether a hot app sleeps.
#[derive(Debug, Clone)]
pub struct Idleness {
    /// Now.
    pub now: Monotonic,
    /// When the app became hot: it counts as activity.
    pub hot_since: Monotonic,
    /// The last packet that is activity (pure ACKs and keepalives are none), and where it went.
    pub last_activity: Option<(Monotonic, String)>,
    /// Processor time used, over how long; measured since the last activity, or longer.
    pub cpu: CpuWindow,
    /// `idle` of the app.
    pub idle: Wait,
    /// Packets that the gate holds for it.
    pub held_packets: usize,
    /// Connections that keep it awake by its owner's choice.
    pub open_connections: usize,
    /// Commands that run beside it.
    pub commands: usize,
    /// When the last of them ended.
    pub command_ended: Option<Monotonic>,
    /// A page that it waits for is being fetched, so that it cannot be stopped.
    pub fetch_outstanding: bool,
    /// Swap-outs that failed one after another, and when the last one did.
    pub failed: Failures,
}

/// Failures of one kind since the last success.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Failures {
    /// How many.
    pub count: u32,
    /// When the last one was.
    pub last: Option<Monotonic>,
}

impl Failures {
    fn retry_at(self, backoff: (Duration, Duration)) -> Option<Monotonic> {
        let last = self.last.filter(|_| self.count > 0)?;
        Some(last.saturating_add(exponential(backoff, self.count - 1)))
    }
}

/// Processor time in a window.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuWindow {
    /// Time of all its threads together.
    pub used: Duration,
    /// Length of the window.
    pub over: Duration,
}

impl CpuWindow {
    fn is_idle(self) -> bool {
        self.used * (100 / IDLE_CPU_PERCENT) < self.over
    }
}

/// Whether a hot app goes to sleep: no activity for `idle`, and less than 1 % of a core meanwhile.
pub fn sleep_decision(input: &Idleness) -> Decision {
    let Wait::After(idle) = input.idle else {
        return Decision::never("its policy is never to sleep (idle = \"never\")");
    };
    if input.held_packets > 0 {
        return Decision::never(format!("the gate holds {} for it", packets(input.held_packets)));
    }
    if input.commands > 0 {
        let why = plural(input.commands, "command runs", "commands run");
        return Decision::never(format!("{why} beside it"));
    }
    let (mut last, mut what) = match &input.last_activity {
        Some((at, what)) if *at > input.hot_since => (*at, format!("last packet at {what}")),
        _ => (input.hot_since, "last became hot".to_owned()),
    };
    if let Some(ended) = input.command_ended.filter(|ended| *ended > last) {
        (last, what) = (ended, "last command beside it ended".to_owned());
    }
    let quiet = input.now.saturating_sub(last);
    if quiet < idle {
        let why = format!(
            "{what} {} ago, sleeps after {}",
            ago(quiet),
            format_duration(idle)
        );
        return Decision::wait(last.saturating_add(idle), why);
    }
    if let Some(retry) = input.failed.retry_at(SLEEP_BACKOFF)
        && input.now < retry
    {
        let why = format!(
            "its last swap-out failed ({} in a row), next try in {}",
            input.failed.count,
            { ago(retry.saturating_sub(input.now)) }
        );
        return Decision::wait(retry, why);
    }
    let window = idle.min(CPU_WINDOW);
    if input.cpu.over < window {
        let until = input.now.saturating_add(window.saturating_sub(input.cpu.over));
        return Decision::wait(until, "measuring its processor time".to_owned());
    }
    if !input.cpu.is_idle() {
        let percent = cpu_percent(input.cpu);
        let why = format!("no packets for {}, but it uses {percent} of a core", ago(quiet));
        return Decision::wait(input.now.saturating_add(window), why);
    }
    if input.open_connections > 0 {
        let why = format!(
            "{} open (connections = \"stay-awake\")",
            plural(input.open_connections, "connection is", "connections are")
        );
        return Decision::wait(input.now.saturating_add(idle.max(CPU_WINDOW)), why);
    }
    if input.fetch_outstanding {
        return Decision::never("a page that it waits for is being fetched");
    }
    let why = format!(
        "idle: {what} {} ago, {} of a core",
        ago(quiet),
        cpu_percent(input.cpu)
    );
    Decision::Now { why }
}

fn plural(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn packets(count: usize) -> String {
    if count == 1 {
        "a packet".to_owned()
    } else {
        format!("{count} packets")
    }
}

/// Whole seconds from a second on: a reason should not flicker.
fn ago(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format_duration(if seconds > 0 {
        Duration::from_secs(seconds)
    } else {
        duration
    })
}

fn cpu_percent(cpu: CpuWindow) -> String {
    let tenths = cpu.used.as_micros() * 1000 / cpu.over.as_micros().max(1);
    format!("{}.{} %", tenths / 10, tenths % 10)
}

/// What decides whether a warm app goes cold.
#[derive(Debug, Clone, Copy)]
pub struct Coldness {
    /// Now.
    pub now: Monotonic,
    /// When it became warm.
    pub warm_since: Monotonic,
    /// `cold_after` of the app, or zero when its owner asked for cold.
    pub cold_after: Wait,
    /// Whether it is being woken.
    pub waking: bool,
    /// Whether its newest checkpoint is in object storage, verified and named by the manifest there.
    pub uploaded: bool,
    /// Whether it was fetched because a client is expected.
    pub expected: bool,
    /// Uploads that failed one after another, and when the last one did.
    pub failed: Failures,
}

/// Whether a warm app's local checkpoint is given up. Never before the store has all of it.
pub fn cold_decision(input: &Coldness) -> Decision {
    let Wait::After(cold_after) = input.cold_after else {
        return Decision::never("its policy is to stay on this host (cold_after = \"never\")");
    };
    if input.waking {
        return Decision::never("it is being woken");
    }
    let cold_after = if input.expected {
        cold_after.max(EXPECTED_FOR)
    } else {
        cold_after
    };
    let due = input.warm_since.saturating_add(cold_after);
    if input.now < due {
        let warm = ago(input.now.saturating_sub(input.warm_since));
        let why = format!("warm for {warm}, cold after {}", format_duration(cold_after));
        return Decision::wait(due, why);
    }
    if !input.uploaded {
        return match input.failed.retry_at(UPLOAD_BACKOFF) {
            Some(retry) => {
                let left = ago(retry.saturating_sub(input.now));
                let why = format!("its checkpoint is not in the store yet, next try in {left}");
                Decision::wait(retry.max(input.now), why)
            }
            None => Decision::never("its checkpoint is being stored"),
        };
    }
    Decision::Now {
        why: format!("warm for {}", format_duration(cold_after)),
    }
}

/// When to try an upload again after [`Failures`]; `None`: now.
pub fn upload_retry(failed: Failures) -> Option<Monotonic> {
    failed.retry_at(UPLOAD_BACKOFF)
}

/// What becomes of an app whose process ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterExit {
    /// It is started again after this long.
    Restart {
        /// How long to wait.
        after: Duration,
        /// How many times in a row by now; to be given as `failures` next time.
        attempt: u32,
        /// In words for the owner.
        why: String,
    },
    /// It stays as it is.
    Stay {
        /// In words for the owner.
        why: String,
    },
}

/// Applies a restart policy. `uptime` is how long it was awake in this life, `attempts` how often it was
/// restarted in a row before.
pub fn restart_decision(policy: Restart, exit: ExitStatus, uptime: Duration, attempts: u32) -> AfterExit {
    let wanted = match policy {
        Restart::Always => true,
        Restart::OnFailure => !exit.is_clean(),
        Restart::Never => false,
    };
    if !wanted {
        let policy = match policy {
            Restart::Always => "always",
            Restart::OnFailure => "on-failure",
            Restart::Never => "never",
        };
        return AfterExit::Stay {
            why: format!("{exit} (restart = \"{policy}\")"),
        };
    }
    let attempts = if uptime >= RESTART_RESET { 0 } else { attempts };
    let after = exponential(RESTART_BACKOFF, attempts);
    let why = format!("{exit}; starts again in {}", format_duration(after));
    AfterExit::Restart {
        after,
        attempt: attempts.saturating_add(1),
        why,
    }
}

/// `first` doubled `times` times, at most `longest`.
/// What comes after a wake that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AfterWake {
    /// Nothing is tried before.
    pub retry_at: Monotonic,
    /// The next try comes too late for those who wait: they are told that nobody is there.
    pub refuse: bool,
}

/// Whether those who wait for an app since `waiting_since` may go on waiting, after `failures` wakes in a row have
/// failed.
pub fn after_failed_wake(
    now: Monotonic,
    waiting_since: Monotonic,
    failures: u32,
    hold_timeout: Wait,
) -> AfterWake {
    let retry_at = now.saturating_add(exponential(WAKE_BACKOFF, failures.saturating_sub(1)));
    let refuse = match hold_timeout {
        Wait::Never => false,
        Wait::After(patience) => retry_at >= waiting_since.saturating_add(patience),
    };
    AfterWake { retry_at, refuse }
}

fn exponential((first, longest): (Duration, Duration), times: u32) -> Duration {
    let factor = 1u32.checked_shl(times).unwrap_or(u32::MAX);
    first
        .checked_mul(factor)
        .map_or(longest, |wait| wait.min(longest))
}

/// What is found of an app when the agent starts.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// The state in its wake record; `None`: there is no record, the app is new.
    pub recorded: Option<State>,
    /// Whether its shim answers and has the app's process.
    pub shim_alive: bool,
    /// Whether a whole checkpoint lies on this disk.
    pub local_checkpoint: bool,
    /// Whether a whole checkpoint lies in the store, as the record has it.
    pub stored_checkpoint: bool,
    /// `after_crash` of the app.
    pub after_crash: AfterCrash,
}

/// What to do with an app when the agent starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// It runs: take it up again.
    Adopt,
    /// It sleeps: hold its packets and wake it by them.
    Sleep(Tier),
    /// Start it from its files.
    Start,
    /// Leave it as it is recorded: stopped, or failed.
    Leave(State),
}

/// Decides it, with the reason in words for the owner.
pub fn recover(found: &Found) -> (Recovery, &'static str) {
    let Some(recorded) = found.recorded else {
        return (Recovery::Start, "new");
    };
    if found.shim_alive {
        return (Recovery::Adopt, "it went on running while the agent was away");
    }
    let checkpoint = match (found.local_checkpoint, found.stored_checkpoint) {
        (true, _) => Some(Tier::Warm),
        (false, true) => Some(Tier::Cold),
        (false, false) => None,
    };
    match (recorded, checkpoint) {
        (State::Stopped | State::Stopping, _) => (Recovery::Leave(State::Stopped), "stopped before"),
        (State::Failed { .. }, checkpoint) => (
            Recovery::Leave(State::Failed { checkpoint }),
            "failed before; its checkpoint, if any, is kept",
        ),
        // Asleep, or half awake: whatever its policy, the checkpoint is all of its state.
        (State::Warm | State::Cold | State::SwappingIn { .. }, Some(tier)) => {
            (Recovery::Sleep(tier), "asleep before")
        }
        (State::Warm | State::Cold | State::SwappingIn { .. }, None) => (
            Recovery::Leave(State::Failed { checkpoint: None }),
            "its checkpoint is gone; try: pico-agent app start, which starts it anew",
        ),
        // A first start that was cut short has no state to lose.
        (State::Starting, _) => (Recovery::Start, "its start was cut short"),
        (State::Hot | State::SwappingOut, Some(tier)) if found.after_crash == AfterCrash::Checkpoint => (
            Recovery::Sleep(tier),
            "its process was lost; goes on from its last checkpoint",
        ),
        (State::Hot | State::SwappingOut, _) => (Recovery::Start, "its process was lost; starts anew"),
    }
}

#[cfg(test)]
mod tests;
