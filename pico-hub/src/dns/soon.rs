//! How often queries tell agents that a client is near: once in a while per app, and so many in all, because anyone
//! may ask for any name.

use std::time::{Duration, Instant};

use super::recent::Recent;

/// Per app. An agent that has fetched keeps what it fetched for longer.
const EVERY: Duration = Duration::from_secs(5);
/// Per second, for all apps together; also how many may come at once.
const ALL: u32 = 1_000;
/// Four apps each.
const ROWS: usize = 16_384;

/// Remembers whom it told of.
#[derive(Debug)]
pub(super) struct Told {
    /// When each app was last told of; `None`: not yet.
    apps: Recent<Option<Instant>>,
    credit: f64,
    filled: Instant,
}

impl Told {
    pub(super) fn new(now: Instant) -> Self {
        Told {
            apps: Recent::new(ROWS),
            credit: f64::from(ALL),
            filled: now,
        }
    }

    /// Whether to tell of `app` now.
    pub(super) fn tell(&mut self, app: &str, now: Instant) -> bool {
        let last = self.apps.entry(app, now, None);
        if last.is_some_and(|last| now.saturating_duration_since(last) < EVERY) {
            return false;
        }
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.credit = (self.credit + passed * f64::from(ALL)).min(f64::from(ALL));
        self.filled = now;
        if self.credit < 1.0 {
            return false;
        }
        self.credit -= 1.0;
        *last = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_told_of_once_in_a_while() {
        let now = Instant::now();
        let mut told = Told::new(now);
        assert!(told.tell("a", now));
        assert!(!told.tell("a", now));
        assert!(told.tell("b", now));
        assert!(!told.tell("a", now + EVERY - Duration::from_millis(1)));
        assert!(told.tell("a", now + EVERY));
    }

    #[test]
    fn all_apps_together_are_told_of_at_a_bounded_rate() {
        let now = Instant::now();
        let mut told = Told::new(now);
        let count = |told: &mut Told, from: usize, now| {
            (from..from + 5_000)
                .filter(|app| told.tell(&app.to_string(), now))
                .count()
        };
        assert_eq!(count(&mut told, 0, now), 1_000);
        assert_eq!(count(&mut told, 5_000, now + Duration::from_millis(500)), 500);
    }

    #[test]
    fn an_app_that_had_to_wait_for_others_is_told_of_as_soon_as_there_is_room() {
        let now = Instant::now();
        let mut told = Told::new(now);
        for app in 0..1_000 {
            assert!(told.tell(&app.to_string(), now));
        }
        assert!(!told.tell("late", now));
        assert!(told.tell("late", now + Duration::from_millis(2)));
    }
}
