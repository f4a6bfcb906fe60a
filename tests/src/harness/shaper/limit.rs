//! A token bucket that blocks its users: bandwidth for bodies.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::lock;

/// How much may go through at once after a pause.
const BURST: Duration = Duration::from_millis(5);

/// Unlimited until [`Bucket::set`].
#[derive(Debug, Default)]
pub struct Bucket(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    rate: Option<u64>,
    free_at: Option<Instant>,
}

impl Bucket {
    /// Bytes per second from now on; nothing: unlimited.
    pub fn set(&self, rate: Option<u64>) {
        *lock(&self.0) = State { rate, free_at: None };
    }

    /// Waits until `bytes` more may pass.
    pub fn take(&self, bytes: usize) {
        let until = {
            let mut state = lock(&self.0);
            let Some(rate) = state.rate else { return };
            let now = Instant::now();
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            let begin = state.free_at.map_or(earliest, |free| free.max(earliest));
            let end = begin + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            state.free_at = Some(end);
            end
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_megabyte_at_ten_a_second_takes_a_tenth_of_a_second() {
        let bucket = Bucket::default();
        bucket.set(Some(10_000_000));
        let start = Instant::now();
        (0..100).for_each(|_| bucket.take(10_000));
        assert!(
            start.elapsed() >= Duration::from_millis(94),
            "{:?}",
            start.elapsed()
        );
        bucket.set(None);
        let start = Instant::now();
        bucket.take(1 << 40);
        assert!(start.elapsed() < Duration::from_secs(1));
    }
}
