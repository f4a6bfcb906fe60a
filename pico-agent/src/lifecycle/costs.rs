//! What pages cost on this host and from its store, as it was last seen. Begins with what is usual, and follows what is
//! measured; decides nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::state::Tier;
use crate::activeset::Costs;
use crate::checkpoint::BLOCK_SIZE;
use crate::checkpoint::index::PAGE_SIZE;
use crate::pager::PagerStats;

/// How much of a new measurement is believed: one part of so many.
const INERTIA: u64 = 8;
/// Most pages that are brought ahead: 64 MiB.
const PAGES_MAX: usize = 16_384;
/// Fewer pages than these say little of what one costs.
const PAGES_MIN: u64 = 32;
/// What the pager does not see of a fault: the kernel's way into the sleep of the thread and out of it.
const SWITCHES_NS: u64 = 10_000;

/// A page that was brought is compared with what is stored at the next swap-out.
const COMPARE_NS: u64 = 3_000;

/// A mean that follows what is measured, in nanoseconds.
#[derive(Debug)]
struct Mean(AtomicU64);

impl Mean {
    fn add(&self, measured: u64) {
        // Two at a time may lose one measurement.
        let before = self.0.load(Ordering::Relaxed);
        let after = (before * (INERTIA - 1) + measured) / INERTIA;
        self.0.store(after.max(1), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The costs of one host.
#[derive(Debug)]
pub struct Measured {
    fault: Mean,
    install: Mean,
    fetch: Mean,
}

impl Default for Measured {
    fn default() -> Self {
        let mean = |ns| Mean(AtomicU64::new(ns));
        Measured {
            fault: mean(10_000),
            install: mean(1_500),
            fetch: mean(25_000_000),
        }
    }
}

impl Measured {
    /// What the pager of an app has done.
    pub fn pager(&self, stats: &PagerStats) {
        if stats.needed > 0 {
            // Its time went into small parts, as blocks came from the store.
            return;
        }
        for (mean, pages, ns) in [
            (&self.fault, stats.filled, stats.filled_ns),
            (&self.install, stats.ahead, stats.ahead_ns),
        ] {
            if pages >= PAGES_MIN {
                mean.add(ns / pages);
            }
        }
    }

    /// A block that a fault waited for has come from the store.
    pub fn fetched(&self, took: Duration) {
        self.fetch.add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// What a wake from `tier` counts with.
    pub fn from(&self, tier: Tier) -> Costs {
        let (fault, fetch) = (self.fault.get() + SWITCHES_NS, self.fetch.get());
        let (miss_ns, move_ns) = match tier {
            Tier::Warm => (fault, 0),
            // As if nothing but the moving took time, which is the worst that a page in a wave can cost.
            Tier::Cold => (fault + fetch, fetch * PAGE_SIZE / BLOCK_SIZE as u64 / WAVE),
        };
        Costs {
            miss_ns,
            move_ns,
            install_ns: self.install.get() + COMPARE_NS,
            pages_max: PAGES_MAX,
        }
    }
}

/// Blocks of a wave that are on their way at once.
const WAVE: u64 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_follow_what_is_measured() {
        let measured = Measured::default();
        let before = measured.from(Tier::Warm);
        for _ in 0..100 {
            measured.pager(&PagerStats {
                filled: 100,
                filled_ns: 100 * 40_000,
                ahead: 1000,
                ahead_ns: 1000 * 700,
                ..PagerStats::default()
            });
            measured.fetched(Duration::from_millis(3));
        }
        let (warm, cold) = (measured.from(Tier::Warm), measured.from(Tier::Cold));
        assert!(warm.threshold() < before.threshold());
        assert!((3_690..=3_710).contains(&warm.install_ns), "{warm:?}");
        assert!((49_000..=51_000).contains(&warm.miss_ns), "{warm:?}");
        assert!((3_000_000..=3_060_000).contains(&cold.miss_ns), "{cold:?}");
    }

    #[test]
    fn few_pages_say_nothing() {
        let measured = Measured::default();
        measured.pager(&PagerStats {
            filled: 3,
            filled_ns: 1_000_000_000,
            ..PagerStats::default()
        });
        assert_eq!(measured.from(Tier::Warm), Measured::default().from(Tier::Warm));
    }
}
