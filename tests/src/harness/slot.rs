//! Numbers that parallel runs on one host do not share, for what cannot have an own network namespace
//! (the demo, which people talk to from their shell).

use std::fs::{File, OpenOptions};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// A number held until dropped. The kernel gives the lock back when the process ends, however it ends.
#[derive(Debug)]
pub struct Slot {
    number: u8,
    _lock: File,
}

impl Slot {
    /// Takes the lowest free number from 1 to 99.
    ///
    /// # Errors
    /// When none is free or the lock directory cannot be written.
    pub fn take() -> Result<Self> {
        let dir = PathBuf::from("/tmp/pico-slots");
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for number in 1..100 {
            let path = dir.join(number.to_string());
            let lock = OpenOptions::new().create(true).append(true).open(&path)?;
            match lock.try_lock() {
                Ok(()) => return Ok(Slot { number, _lock: lock }),
                Err(std::fs::TryLockError::WouldBlock) => continue,
                Err(std::fs::TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
        bail!("99 other runs hold all slots in {}", dir.display())
    }

    /// The number.
    pub fn number(&self) -> u8 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_holders_never_share_a_number() -> Result<()> {
        let (first, second) = (Slot::take()?, Slot::take()?);
        assert_ne!(first.number(), second.number());
        Ok(())
    }
}
