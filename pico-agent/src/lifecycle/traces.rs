//! What tracing tells, taken to the app that it is about, in its order. Knows nothing of what is learned from it.

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::probes::{ProbeError, Probes, TraceEvent};

/// Most events that are kept of one app until they are learned from; 12 MiB.
const EVENTS_MAX: usize = 1 << 18;
/// How many ancestors of a process are looked at for one that its checkpoint knows.
const GENERATIONS: usize = 16;

/// What was seen of one app since [`Traces::begin`].
#[derive(Debug, Default)]
pub struct Seen {
    /// In the order in which the kernel told it.
    pub events: Vec<TraceEvent>,
    /// Of each process that shows in them: its number in its own pid namespace, and those of its ancestors, the nearest
    /// first. A checkpoint names its processes by these.
    pub processes: HashMap<u32, Vec<u32>>,
    /// Events are missing.
    pub lost: bool,
    /// The probes' count of lost events when this began.
    lost_before: u64,
}

/// Takes events from the probes to apps.
#[derive(Debug, Default)]
pub struct Traces {
    /// By the number that the probes know an app by.
    seen: Mutex<HashMap<u32, Seen>>,
    faults: Mutex<HashMap<u32, Arc<AtomicU64>>>,
    /// Held while events are taken out of the probes and given out, so that they stay in order.
    reading: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traces {
    /// Counts the page faults of an app from now on.
    pub fn count(&self, app: u32) -> Arc<AtomicU64> {
        lock(&self.faults).entry(app).or_default().clone()
    }

    /// The app is no more.
    pub fn forget(&self, app: u32) {
        lock(&self.faults).remove(&app);
        lock(&self.seen).remove(&app);
    }

    /// Keeps what is told of an app from now on.
    pub fn begin(&self, app: u32, probes: &Probes) {
        let seen = Seen {
            lost_before: probes.lost().unwrap_or_default(),
            ..Seen::default()
        };
        lock(&self.seen).insert(app, seen);
    }

    /// What was told of an app since it was begun, up to this moment; no more is kept.
    pub fn end(&self, app: u32, probes: &Probes) -> Option<Seen> {
        let read = self.read(probes);
        let mut seen = lock(&self.seen).remove(&app)?;
        seen.lost |= read.is_err() || probes.lost().map_or(true, |lost| lost != seen.lost_before);
        Some(seen)
    }

    /// Gives out what waits.
    ///
    /// # Errors
    /// When the probes cannot be read.
    pub fn read(&self, probes: &Probes) -> Result<(), ProbeError> {
        let _reading = lock(&self.reading);
        loop {
            let events = probes.events()?;
            if events.is_empty() {
                return Ok(());
            }
            let faults = lock(&self.faults);
            let mut seen = lock(&self.seen);
            for event in events {
                if let TraceEvent::Fault(fault) = &event
                    && let Some(count) = faults.get(&fault.app)
                {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                if let Some(seen) = seen.get_mut(&event.app()) {
                    seen.add(event);
                }
            }
        }
    }
}

impl Seen {
    fn add(&mut self, event: TraceEvent) {
        if self.events.len() >= EVENTS_MAX {
            self.lost = true;
            return;
        }
        if let TraceEvent::Fault(fault) = &event {
            // Now, while the process is still there.
            let of = self.processes.entry(fault.pid);
            of.or_insert_with(|| numbers(fault.pid));
        }
        self.events.push(event);
    }
}

/// The numbers of a process and its ancestors in its pid namespace, the nearest first; empty when it is gone.
fn numbers(pid: u32) -> Vec<u32> {
    let mut numbers = Vec::new();
    let mut next = pid;
    while numbers.len() < GENERATIONS {
        let Ok(status) = fs::read_to_string(format!("/proc/{next}/status")) else {
            break;
        };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        // One number for each namespace that it is in, the innermost last (proc_pid_status(5)).
        let inner: Vec<&str> = field("NSpid:").unwrap_or_default().split_whitespace().collect();
        let (Some(number), true) = (inner.last().and_then(|n| n.parse().ok()), inner.len() > 1) else {
            break;
        };
        numbers.push(number);
        match field("PPid:").and_then(|parent| parent.trim().parse().ok()) {
            Some(parent) if parent > 0 => next = parent,
            _ => break,
        }
    }
    numbers
}

/// The number of a process in its own pid namespace.
pub(super) fn number(pid: u32) -> Option<u32> {
    numbers(pid).first().copied()
}
