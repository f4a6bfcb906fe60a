//! When a sleeping app is due by its owner's `wake.at` or by timers of its own. Pure: told the time, answers with what is
//! due or how long to wait. Knows no clock and no actor.

use std::time::Duration;

use crate::checkpoint::local::{Clocks, time_between};
use crate::config::TimerPolicy;
use crate::criu::timers::{LONG, Timer};
use crate::cron::Cron;
use crate::shim::protocol::Sleep;
use crate::units::{Timestamp, format_duration};

/// The wall clock can be set at any time: it is looked at again after so long at the latest.
pub const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Up to when the times of an app's `wake.at` were attended to: by its being awake, or by having looked. The times of an
/// app that is awake are its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timers {
    seen: Option<Timestamp>,
}

/// What a sleeping app can be due by.
#[derive(Debug, Clone, Copy)]
pub struct Due<'a> {
    /// What its owner wants of timers.
    pub policy: TimerPolicy,
    /// Its `wake.at`.
    pub lines: &'a [Cron],
    /// Its timers, and the clocks when it stopped.
    pub sleep: &'a Sleep,
    /// Since when it sleeps. Used where nobody saw it fall asleep: the agent was restarted.
    pub since: Timestamp,
}

/// What comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// When.
    pub at: Timestamp,
    /// What it is, in words.
    pub what: String,
    /// Whether its time has come.
    pub due: bool,
    /// When to look again where it has not.
    pub look_in: Duration,
}

impl Due<'_> {
    /// The timer in its checkpoint that wakes it.
    fn own(&self) -> Option<Timer> {
        let timers = &self.sleep.timers;
        match self.policy {
            TimerPolicy::Declared => timers.next_long,
            TimerPolicy::All => timers.next,
            TimerPolicy::None => None,
        }
    }
}

impl Timers {
    /// The app is put to sleep from here on.
    pub fn falls_asleep(&mut self, at: Timestamp) {
        self.seen = Some(at);
    }

    /// What comes first. Whatever came meanwhile is due, once. A wall clock that was set back counts from where it is now:
    /// no time is waited for twice as long, none that was attended to comes again at once. Timers of the app's own go by the
    /// clock that cannot be set.
    pub fn next(&mut self, due: &Due<'_>, now: Timestamp, clocks: &Clocks) -> Option<Next> {
        let seen = self.seen.unwrap_or(due.since).min(now);
        self.seen = Some(seen);
        let lines = due.lines.iter().filter_map(|line| {
            let at = line.next_after(seen)?;
            Some((at.since(now), at, format!("wake.at = \"{line}\"")))
        });
        let slept = time_between(&due.sleep.clocks, clocks);
        let own = due.own().map(|timer| {
            let left = timer.left.saturating_sub(slept);
            (left, now.after(left), words(&timer))
        });
        let (left, at, what) = lines.chain(own).min_by_key(|(left, ..)| *left)?;
        Some(Next {
            at,
            what,
            due: left.is_zero(),
            look_in: left.min(LOOK_EVERY),
        })
    }
}

fn words(timer: &Timer) -> String {
    if timer.period.is_zero() {
        format!("a {} of its own", timer.kind)
    } else {
        format!(
            "a {} of its own, every {}",
            timer.kind,
            format_duration(timer.period)
        )
    }
}

/// What is known of the timers of an app, for its owner; `sleep`: of one that sleeps.
pub fn explain(policy: TimerPolicy, lines: &[Cron], sleep: Option<&Sleep>) -> Vec<String> {
    let found = sleep.map(|sleep| sleep.timers).unwrap_or_default();
    let mut words: Vec<String> = lines
        .iter()
        .map(|line| format!("kept: wake.at = \"{line}\""))
        .collect();
    let long = format_duration(LONG);
    let (kept, ignored) = match policy {
        TimerPolicy::Declared => (found.long, found.armed - found.long.min(found.armed)),
        TimerPolicy::All => (found.armed, 0),
        TimerPolicy::None => (0, found.armed),
    };
    if kept > 0 {
        words.push(format!(
            "kept: {kept} of its own, which wake it when they are due"
        ));
    }
    if ignored > 0 {
        let why = match policy {
            TimerPolicy::None => "timers = \"none\"".to_owned(),
            _ => format!("they fire more often than every {long}"),
        };
        words.push(format!(
            "ignored: {ignored} of its own ({why}): they fire at its next wake"
        ));
    }
    if words.is_empty() {
        words.push("none".to_owned());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::timers::{self as criu, TimerKind};
    use proptest::prelude::*;
    use std::sync::LazyLock;

    fn at(text: &str) -> Timestamp {
        format!("2026-11-26T{text}Z").parse().unwrap()
    }

    fn asleep(lines: &[Cron], since: Timestamp) -> Due<'_> {
        static NO_TIMERS: LazyLock<Sleep> = LazyLock::new(Sleep::default);
        Due {
            policy: TimerPolicy::Declared,
            lines,
            sleep: &NO_TIMERS,
            since,
        }
    }

    /// So many seconds after the boot.
    fn clocks(seconds: u64) -> Clocks {
        Clocks {
            boottime_ns: seconds * 1_000_000_000,
            ..Clocks::default()
        }
    }

    fn lines(texts: &[&str]) -> Vec<Cron> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_of_all_lines_is_due_at_its_time_and_not_before() {
        let lines = lines(&["0 4 * * *", "30 3 * * *"]);
        let mut timers = Timers::default();
        timers.falls_asleep(at("03:00:00"));
        let next = timers
            .next(&asleep(&lines, at("02:00:00")), at("03:29:50"), &clocks(0))
            .unwrap();
        assert_eq!((next.at, next.due), (at("03:30:00"), false));
        assert_eq!(next.what, "wake.at = \"30 3 * * *\"");
        assert_eq!(next.look_in, Duration::from_secs(10));
        assert!(
            timers
                .next(&asleep(&lines, at("02:00:00")), at("03:30:00"), &clocks(0))
                .unwrap()
                .due
        );
        // It was awake for it.
        timers.falls_asleep(at("03:30:05"));
        assert_eq!(
            timers
                .next(&asleep(&lines, at("03:30:05")), at("03:30:06"), &clocks(0))
                .unwrap()
                .at,
            at("04:00:00")
        );
        assert_eq!(
            timers.next(&asleep(&[], at("03:30:05")), at("03:30:06"), &clocks(0)),
            None
        );
    }

    #[test]
    fn what_came_while_the_agent_was_away_or_a_wake_failed_is_still_due() {
        let lines = lines(&["30 3 * * *"]);
        let mut timers = Timers::default();
        for now in ["05:00:00", "05:00:01", "09:00:00"] {
            let next = timers
                .next(&asleep(&lines, at("02:00:00")), at(now), &clocks(0))
                .unwrap();
            assert!(next.due && next.at == at("03:30:00"), "{next:?}");
        }
    }

    #[test]
    fn a_clock_set_forward_makes_it_due_and_one_set_back_does_not_delay_it() {
        let lines = lines(&["30 3 * * *"]);
        let mut timers = Timers::default();
        timers.falls_asleep(at("01:00:00"));
        assert!(
            !timers
                .next(&asleep(&lines, at("01:00:00")), at("01:00:01"), &clocks(0))
                .unwrap()
                .due
        );
        assert!(
            timers
                .next(&asleep(&lines, at("01:00:00")), at("12:00:00"), &clocks(0))
                .unwrap()
                .due
        );
        timers.falls_asleep(at("12:00:00"));
        let back = timers
            .next(&asleep(&lines, at("12:00:00")), at("02:00:00"), &clocks(0))
            .unwrap();
        assert_eq!((back.at, back.due), (at("03:30:00"), false));
        assert!(
            timers
                .next(&asleep(&lines, at("12:00:00")), at("03:30:00"), &clocks(0))
                .unwrap()
                .due
        );
    }

    #[test]
    fn timers_of_its_own_are_due_by_the_clock_that_nobody_sets_as_far_as_its_owner_wants() {
        let timer = |left, period| Timer {
            kind: TimerKind::Timerfd,
            left: Duration::from_secs(left),
            period: Duration::from_secs(period),
        };
        let sleep = Sleep {
            clocks: clocks(1_000),
            timers: criu::Timers {
                armed: 3,
                long: 1,
                next: Some(timer(2, 1)),
                next_long: Some(timer(40, 600)),
            },
        };
        let by = |policy, seconds, wall| {
            let due = Due {
                policy,
                sleep: &sleep,
                ..asleep(&[], at("03:00:00"))
            };
            let next = Timers::default().next(&due, at(wall), &clocks(seconds))?;
            Some((next.due, next.look_in.as_secs(), next.what))
        };
        let own = "a timerfd of its own, every 10m".to_owned();
        assert_eq!(
            by(TimerPolicy::Declared, 1_030, "03:00:30"),
            Some((false, 10, own.clone()))
        );
        assert_eq!(
            by(TimerPolicy::Declared, 1_030, "09:00:00"),
            Some((false, 10, own.clone()))
        );
        assert_eq!(by(TimerPolicy::Declared, 1_040, "02:00:00"), Some((true, 0, own)));
        assert!(by(TimerPolicy::All, 1_002, "03:00:02").is_some_and(|(due, ..)| due));
        assert_eq!(by(TimerPolicy::None, 9_000, "09:00:00"), None);
        let told = |policy| explain(policy, &lines(&["30 3 * * *"]), Some(&sleep)).join("; ");
        assert!(told(TimerPolicy::Declared).contains("kept: 1 of its own"));
        assert!(
            told(TimerPolicy::Declared)
                .contains("ignored: 2 of its own (they fire more often than every 5m)")
        );
        assert!(told(TimerPolicy::All).contains("kept: 3 of its own"));
        assert_eq!(explain(TimerPolicy::All, &[], None), ["none"]);
    }

    proptest! {
        /// Looked at as often as it says, with the clock going on as it likes: no time passes by, and it is looked at at
        /// least once a minute.
        #[test]
        fn no_time_passes_by(steps in proptest::collection::vec(0u64..200_000_000, 1..60)) {
            let lines = lines(&["*/5 * * * *"]);
            let mut timers = Timers::default();
            let mut now = at("00:00:01");
            timers.falls_asleep(now);
            for step in steps {
                now = Timestamp::from_micros(now.micros() + step);
                let next = timers.next(&asleep(&lines, now), now, &clocks(0)).unwrap();
                prop_assert!(next.look_in <= LOOK_EVERY);
                prop_assert_eq!(next.due, next.at <= now);
                if next.due {
                    timers.falls_asleep(now);
                } else {
                    prop_assert!(next.at.since(now) <= Duration::from_secs(300));
                }
            }
        }
    }
}
