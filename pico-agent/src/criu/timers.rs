//! The clocks and timers in CRIU's images: how they go on while an app sleeps, and when they are due. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::images::{Image, ImageError};
use super::wire::{self, Value, WireError};

const NANOS: u64 = 1_000_000_000;
/// The numbers of timerfd_entry in file_entry.
const TIMERFD: u32 = 12;
/// task_core_entry in core_entry, and task_timers_entry in that.
const TASK_CORE: u32 = 3;
const TASK_TIMERS: u32 = 7;
/// `ITIMER_REAL` and the POSIX timers in task_timers_entry.
const REAL: u32 = 1;
const POSIX: u32 = 4;

/// Where a timer keeps (seconds, fraction) of its period and of the time left, and how many nanoseconds the fraction counts in.
struct Layout {
    period: (u32, u32),
    left: (u32, u32),
    unit: u64,
}

const INTERVAL_TIMER: Layout = Layout {
    period: (1, 2),
    left: (3, 4),
    unit: 1_000,
};
const POSIX_TIMER: Layout = Layout {
    period: (7, 8),
    left: (9, 10),
    unit: 1,
};
const TIMERFD_TIMER: Layout = Layout {
    period: (9, 10),
    left: (7, 8),
    unit: 1,
};

/// A timer with at least this period (or, firing once, this time left) is worth a wake by itself: whatever ticks faster is
/// housekeeping.
pub const LONG: Duration = Duration::from_secs(5 * 60);

/// What a timer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimerKind {
    /// timerfd_create(2).
    Timerfd,
    /// timer_create(2).
    Posix,
    /// setitimer(2) with `ITIMER_REAL`, which is also alarm(2).
    Interval,
}

impl std::fmt::Display for TimerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TimerKind::Timerfd => "timerfd",
            TimerKind::Posix => "POSIX timer",
            TimerKind::Interval => "interval timer",
        })
    }
}

/// An armed timer, as it was when its app stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timer {
    /// What it is.
    pub kind: TimerKind,
    /// When it fires next, from then on.
    pub left: Duration,
    /// How often it fires after that; 0: once.
    pub period: Duration,
}

impl Timer {
    /// Whether it is [`LONG`].
    pub fn is_long(&self) -> bool {
        LONG <= if self.period.is_zero() {
            self.left
        } else {
            self.period
        }
    }
}

/// The timers of an app, of which there can be any number: how many, and the next ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timers {
    /// How many are armed.
    pub armed: u64,
    /// How many of them are [`LONG`].
    pub long: u64,
    /// The one that fires first.
    pub next: Option<Timer>,
    /// The long one that fires first.
    pub next_long: Option<Timer>,
}

impl Timers {
    fn add(&mut self, timer: Timer) {
        let first = |next: Option<Timer>| Some(next.filter(|next| next.left <= timer.left).unwrap_or(timer));
        self.armed += 1;
        self.next = first(self.next);
        if timer.is_long() {
            self.long += 1;
            self.next_long = first(self.next_long);
        }
    }

    /// Adds the interval and POSIX timers of a process (`core-PID.img`).
    ///
    /// # Errors
    /// When the image is damaged.
    pub fn add_task(&mut self, core: &[u8]) -> Result<(), ImageError> {
        for entry in Image::parse(core)?.entries {
            let Some(Value::Bytes(task)) = wire::get(entry, TASK_CORE)? else {
                continue;
            };
            let Some(Value::Bytes(timers)) = wire::get(task, TASK_TIMERS)? else {
                continue;
            };
            for field in wire::fields(timers) {
                let armed = match field? {
                    (REAL, Value::Bytes(timer)) => read(timer, &INTERVAL_TIMER, TimerKind::Interval)?,
                    (POSIX, Value::Bytes(timer)) if runs_asleep(wire::get_number(timer, 2)?) => {
                        read(timer, &POSIX_TIMER, TimerKind::Posix)?
                    }
                    _ => None,
                };
                if let Some(timer) = armed {
                    self.add(timer);
                }
            }
        }
        Ok(())
    }

    /// Adds the timerfds of all processes (`files.img`).
    ///
    /// # Errors
    /// When the image is damaged.
    pub fn add_timerfds(&mut self, files: &[u8]) -> Result<(), ImageError> {
        for entry in Image::parse(files)?.entries {
            let Some(Value::Bytes(timer)) = wire::get(entry, TIMERFD)? else {
                continue;
            };
            if let Some(timer) = read(timer, &TIMERFD_TIMER, TimerKind::Timerfd)? {
                self.add(timer);
            }
        }
        Ok(())
    }
}

/// A timer, if it is armed.
fn read(timer: &[u8], layout: &Layout, kind: TimerKind) -> Result<Option<Timer>, WireError> {
    let left = time(timer, layout.left, layout.unit)?;
    let armed = Timer {
        kind,
        left: Duration::from_nanos(left),
        period: Duration::from_nanos(time(timer, layout.period, layout.unit)?),
    };
    Ok((left > 0).then_some(armed))
}

/// Nanoseconds kept as `(seconds, fraction)`.
fn time(timer: &[u8], (seconds, fraction): (u32, u32), unit: u64) -> Result<u64, WireError> {
    let fraction = wire::get_number(timer, fraction)?.saturating_mul(unit);
    Ok(wire::get_number(timer, seconds)?
        .saturating_mul(NANOS)
        .saturating_add(fraction))
}

/// A time namespace image (`timens-N.img`) whose clocks have gone on for `slept`.
///
/// # Errors
/// When the image is damaged.
pub fn advance_time_namespace(bytes: &[u8], slept: Duration) -> Result<Vec<u8>, ImageError> {
    let image = Image::parse(bytes)?;
    let entries: Result<Vec<_>, WireError> = image
        .entries
        .iter()
        .map(|entry| {
            wire::rewrite(entry, |_, timespec| {
                let total = wire::get_number(timespec, 1)?
                    .saturating_mul(NANOS)
                    .saturating_add(wire::get_number(timespec, 2)?)
                    .saturating_add(nanos(slept));
                Ok(Some(wire::set_numbers(
                    timespec,
                    &[(1, total / NANOS), (2, total % NANOS)],
                )?))
            })
        })
        .collect();
    image.with_entries(entries?)
}

/// `core-PID.img` whose interval and POSIX timers have gone on for `slept`.
///
/// Timers of CPU time (`ITIMER_VIRTUAL`, `ITIMER_PROF`, `CLOCK_*_CPUTIME_ID`) stand still while an app sleeps.
///
/// # Errors
/// When the image is damaged.
pub fn advance_task_timers(core: &[u8], slept: Duration) -> Result<Vec<u8>, ImageError> {
    let image = Image::parse(core)?;
    let change_timers = |timers: &[u8]| {
        wire::rewrite(timers, |number, timer| match number {
            REAL => advance(timer, &INTERVAL_TIMER, slept).map(Some),
            POSIX if runs_asleep(wire::get_number(timer, 2)?) => {
                advance(timer, &POSIX_TIMER, slept).map(Some)
            }
            _ => Ok(None),
        })
    };
    let entries: Result<Vec<_>, WireError> = image
        .entries
        .iter()
        .map(|entry| {
            wire::rewrite(entry, |number, task| match number {
                TASK_CORE => wire::rewrite(task, |number, timers| match number {
                    TASK_TIMERS => change_timers(timers).map(Some),
                    _ => Ok(None),
                })
                .map(Some),
                _ => Ok(None),
            })
        })
        .collect();
    image.with_entries(entries?)
}

/// `files.img` whose timerfds have gone on for `slept`.
///
/// # Errors
/// When the image is damaged.
pub fn advance_timerfds(files: &[u8], slept: Duration) -> Result<Vec<u8>, ImageError> {
    let image = Image::parse(files)?;
    let entries: Result<Vec<_>, WireError> = image
        .entries
        .iter()
        .map(|entry| {
            wire::rewrite(entry, |number, timerfd| match number {
                TIMERFD => advance(timerfd, &TIMERFD_TIMER, slept).map(Some),
                _ => Ok(None),
            })
        })
        .collect();
    image.with_entries(entries?)
}

/// Whether a clock goes on while the app sleeps: all but the CPU-time clocks do (clock_gettime(2)).
fn runs_asleep(clock: u64) -> bool {
    const CLOCK_PROCESS_CPUTIME_ID: u64 = 2;
    const CLOCK_THREAD_CPUTIME_ID: u64 = 3;
    clock != CLOCK_PROCESS_CPUTIME_ID && clock != CLOCK_THREAD_CPUTIME_ID && clock < 1 << 31
}

/// Advances one timer by `slept`. A time left of 0 means disarmed and stays. One that ran out fires at once; a periodic one
/// keeps its phase after that.
fn advance(timer: &[u8], layout: &Layout, slept: Duration) -> Result<Vec<u8>, WireError> {
    let left = time(timer, layout.left, layout.unit)?;
    if left == 0 {
        return Ok(timer.to_vec());
    }
    let left = left.saturating_sub(nanos(slept)).max(layout.unit);
    let (seconds, fraction) = layout.left;
    wire::set_numbers(
        timer,
        &[(seconds, left / NANOS), (fraction, left % NANOS / layout.unit)],
    )
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::images::tests::{image, message, nested};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn timers_go_on_while_asleep() {
        let slept = Duration::from_millis(2_500);
        let posix = |clock, left| message(&[(2, clock), (7, 9), (8, 9), (9, left), (10, 5)]);
        let timers = [
            nested(1, &message(&[(1, 0), (2, 0), (3, 6), (4, 0)])),
            nested(2, &message(&[(3, 6), (4, 0)])),
            nested(4, &posix(1, 1)),
            nested(4, &posix(2, 1)),
        ]
        .concat();
        let core = image(&[nested(3, &nested(7, &timers))]);
        let changed = advance_task_timers(&core, slept).expect("an image");
        let changed = Image::parse(&changed).expect("an image");
        let Ok(Some(Value::Bytes(task))) = wire::get(changed.entries[0], 3) else {
            panic!("task core")
        };
        let Ok(Some(Value::Bytes(timers))) = wire::get(task, 7) else {
            panic!("timers")
        };
        let timers: Vec<_> = wire::fields(timers)
            .map(|f| f.expect("field").1.bytes().expect("bytes"))
            .collect();
        let number = |timer, field| wire::get_number(timer, field).expect("number");
        assert_eq!(
            (number(timers[0], 3), number(timers[0], 4)),
            (3, 500_000),
            "itimer"
        );
        assert_eq!(
            (number(timers[1], 3), number(timers[1], 4)),
            (6, 0),
            "virtual time stands still"
        );
        assert_eq!(
            (number(timers[2], 9), number(timers[2], 10)),
            (0, 1),
            "ran out: fires at once"
        );
        assert_eq!(
            (number(timers[3], 9), number(timers[3], 10)),
            (1, 5),
            "CPU time stands still"
        );
    }

    #[test]
    fn a_disarmed_timerfd_stays_disarmed() {
        let files = |left| image(&[nested(12, &message(&[(7, left), (8, 0), (9, 1), (10, 0)]))]);
        let slept = Duration::from_secs(4);
        assert_eq!(advance_timerfds(&files(0), slept), Ok(files(0)));
        let changed = advance_timerfds(&files(10), slept).expect("an image");
        let changed = Image::parse(&changed).expect("an image");
        let Ok(Some(Value::Bytes(timer))) = wire::get(changed.entries[0], 12) else {
            panic!("timerfd")
        };
        assert_eq!(wire::get_number(timer, 7), Ok(6));
    }

    #[test]
    fn a_time_namespace_goes_on() {
        let entry = [
            nested(1, &message(&[(1, 5), (2, 900_000_000)])),
            nested(2, &message(&[(1, 7), (2, 0)])),
        ];
        let changed = advance_time_namespace(&image(&[entry.concat()]), Duration::from_millis(200));
        let expected = [
            nested(1, &message(&[(1, 6), (2, 100_000_000)])),
            nested(2, &message(&[(1, 7), (2, 200_000_000)])),
        ];
        assert_eq!(changed, Ok(image(&[expected.concat()])));
    }

    #[test]
    fn armed_timers_are_found_the_long_ones_apart() {
        let hour = 3_600;
        let timers = [
            nested(1, &message(&[(1, 0), (2, 100_000), (3, 0), (4, 50_000)])),
            nested(2, &message(&[(1, 600), (3, 600)])),
            nested(4, &message(&[(2, 1), (7, hour), (9, 30)])),
            nested(4, &message(&[(2, 2), (7, hour), (9, 1)])),
            nested(4, &message(&[(2, 1), (7, hour), (9, 0)])),
        ];
        let mut found = Timers::default();
        found
            .add_task(&image(&[nested(3, &nested(7, &timers.concat()))]))
            .expect("an image");
        let once = nested(12, &message(&[(7, 20 * 60), (9, 0)]));
        let ticks = nested(12, &message(&[(7, 1), (9, 1)]));
        found.add_timerfds(&image(&[once, ticks])).expect("an image");
        let timer = |kind, left, period| Timer { kind, left, period };
        let ms = Duration::from_millis;
        assert_eq!((found.armed, found.long), (4, 2));
        assert_eq!(found.next, Some(timer(TimerKind::Interval, ms(50), ms(100))));
        assert_eq!(
            found.next_long,
            Some(timer(TimerKind::Posix, ms(30_000), ms(hour * 1_000)))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_timers_or_errors(mut bytes: Vec<u8>, magic: bool) {
            if magic {
                bytes.splice(0..0, image(&[])[..8].iter().copied());
            }
            let slept = Duration::from_secs(1);
            let _ = (advance_task_timers(&bytes, slept), advance_timerfds(&bytes, slept));
            let _ = advance_time_namespace(&bytes, slept);
            let mut found = Timers::default();
            let _ = (found.add_task(&bytes), found.add_timerfds(&bytes));
        }
    }
}
