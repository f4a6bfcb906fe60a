//! Bounded waiting for what has no event to wait for: another program's report of its state.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::interrupt;

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(50);

/// Asks `look` until it gives a value.
///
/// # Errors
/// The first error of `look`; an interrupt (Ctrl-C); or, after `limit`, "`what` did not happen".
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        interrupt::check()?;
        if let Some(value) = look()? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("{what}: not within {:.1} s", limit.as_secs_f64());
        }
        std::thread::sleep(STEP);
    }
}

/// Repeats `attempt` until it succeeds.
///
/// # Errors
/// The last error of `attempt`, when it still fails after `limit`.
pub fn within<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        interrupt::check()?;
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > limit => return Err(error),
            Err(_) => std::thread::sleep(STEP),
        }
    }
}
