//! How often something may happen. Pure: told the time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// So many times in so long; as many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many times.
    pub times: u32,
    /// In how long.
    pub per: Duration,
}

/// What is left of a [`Rate`] (a token bucket).
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self {
            left: f64::from(rate.times),
            at: now,
        }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let full = f64::from(rate.times);
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + full * passed / rate.per.as_secs_f64()).min(full);
        self.at = now;
        let taken = self.left >= 1.0;
        if taken {
            self.left -= 1.0;
        }
        taken
    }
}

/// Sources remembered at once. Of more, an arbitrary one is forgotten and begins anew: who sends under many names is
/// not held back by a limit per name anyway.
const MAX_SOURCES: usize = 1_024;

/// A [`Rate`] for each source: an IPv4 address, or the 64 bits of an IPv6 one that a site is given.
#[derive(Debug, Default)]
pub struct Sources {
    buckets: HashMap<IpAddr, Bucket>,
}

impl Sources {
    /// Takes one of this source's, if there is one.
    pub fn take(&mut self, source: IpAddr, rate: Rate, now: Instant) -> bool {
        let source = match source {
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !(u128::MAX >> 64)).into()),
            v4 => v4,
        };
        if self.buckets.len() >= MAX_SOURCES && !self.buckets.contains_key(&source) {
            let any = self.buckets.keys().next().copied();
            any.and_then(|any| self.buckets.remove(&any));
        }
        self.buckets
            .entry(source)
            .or_insert_with(|| Bucket::new(rate, now))
            .take(rate, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        times: 2,
        per: Duration::from_secs(10),
    };

    #[test]
    fn what_is_used_up_comes_back_with_time_and_never_more_than_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RATE, start);
        let mut take = |seconds| bucket.take(RATE, start + Duration::from_secs(seconds));
        assert_eq!([take(0), take(0), take(0), take(4)], [true, true, false, false]);
        assert!(take(5));
        assert_eq!([take(1000), take(1000), take(1000)], [true, true, false]);
    }

    #[test]
    fn each_source_has_its_own_and_a_site_has_one() {
        let now = Instant::now();
        let mut sources = Sources::default();
        let mut take = |source: &str| sources.take(source.parse().expect("an address"), RATE, now);
        assert_eq!(
            [
                take("192.0.2.1"),
                take("192.0.2.1"),
                take("192.0.2.1"),
                take("192.0.2.2")
            ],
            [true, true, false, true]
        );
        assert_eq!(
            [
                take("2001:db8::1"),
                take("2001:db8::2"),
                take("2001:db8::3"),
                take("2001:db8:0:1::1")
            ],
            [true, true, false, true]
        );
    }

    #[test]
    fn the_number_of_sources_is_bounded() {
        let now = Instant::now();
        let mut sources = Sources::default();
        for n in 0..10_000u32 {
            assert!(sources.take(IpAddr::V4(n.into()), RATE, now));
        }
        assert_eq!(sources.buckets.len(), MAX_SOURCES);
    }
}
