//! Reading the clocks by which the time asleep is told.

use std::fs;
use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::checkpoint::local::Clocks;

/// The host's clocks now.
///
/// # Errors
/// When a clock or the boot's id cannot be read.
pub fn read() -> io::Result<Clocks> {
    let read = |clock| -> io::Result<u64> {
        let time = Duration::from(clock_gettime(clock)?);
        Ok(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
    };
    Ok(Clocks {
        realtime_ns: read(ClockId::CLOCK_REALTIME)?,
        monotonic_ns: read(ClockId::CLOCK_MONOTONIC)?,
        boottime_ns: read(ClockId::CLOCK_BOOTTIME)?,
        boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")?
            .trim()
            .to_owned(),
    })
}
