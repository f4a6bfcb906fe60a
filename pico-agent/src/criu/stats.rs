//! What CRIU measures of its own work (`stats-dump`, in its working directory).
//!
//! Field numbers are those of CRIU's `images/stats.proto`.

use std::time::Duration;

use super::images::{Image, ImageError};
use super::wire::{self, Value};

/// Name of the file that a dump leaves.
pub const DUMP_STATS: &str = "stats-dump";

/// How long the app has stood still: from the first thread stopped until its end, or until it ran on.
///
/// # Errors
/// When the file is no image or lacks the time.
pub fn frozen(stats: &[u8]) -> Result<Duration, ImageError> {
    const DUMP: u32 = 1;
    const FROZEN_TIME: u32 = 2;
    let image = Image::parse_service(stats)?;
    let entry = image.entries.first().ok_or(ImageError::NotAnImage)?;
    let dump = wire::get(entry, DUMP)?.and_then(Value::bytes);
    let dump = dump.ok_or(ImageError::Invalid("statistics of a dump"))?;
    Ok(Duration::from_micros(wire::get_number(dump, FROZEN_TIME)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What CRIU 4.2 left after a dump of redis.
    const SEEN: [u8; 37] = [
        0x40, 0x59, 0x10, 0x55, 0x06, 0x33, 0x09, 0x57, 25, 0, 0, 0, 0x0a, 23, 0x08, 0xc8, 0x01, 0x10, 0xa0,
        0xa7, 0x02, 0x18, 0x01, 0x20, 0x02, 0x28, 0x03, 0x30, 0x04, 0x38, 0x05, 0x40, 0x00, 0x50, 0x07, 0x58,
        0x08,
    ];

    #[test]
    fn the_time_stood_still_is_read() {
        assert_eq!(frozen(&SEEN), Ok(Duration::from_micros(37_792)));
        assert_eq!(frozen(&SEEN[..8]), Err(ImageError::NotAnImage));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_time_or_an_error(bytes: Vec<u8>) {
            let _ = frozen(&bytes);
        }
    }
}
