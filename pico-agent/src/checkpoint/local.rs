//! What a swap-out leaves on the host beside CRIU's images: `dump.json` in the checkpoint's directory.
//!
//! Pure data. The page index stands beside it in `index.bin`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::index::ObjectId;
pub use super::manifest::Clocks;
pub use super::root_file::RootFile;

/// Name of the file that holds a [`Dump`].
pub const DUMP_FILE: &str = "dump.json";
/// Name of the encoded page index.
pub const INDEX_FILE: &str = "index.bin";
/// Name of the directory of CRIU's images, whose pagemaps list eager pages only.
pub const IMAGES_DIR: &str = "img";
/// Name of what is learned of the app's pages, in the bundle: it travels with the checkpoint.
pub const ACTIVE_SETS_FILE: &str = "activesets";
/// The one version written and read.
pub const SCHEMA: &str = "pico.dump/1";

/// One swap-out, as the shim that did it describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dump {
    /// [`SCHEMA`].
    pub schema: String,
    /// Which checkpoint of the app this is.
    pub generation: u64,
    /// The clocks when the app stopped.
    pub clocks: Clocks,
    /// Inode numbers of the pipes that were the app's stdout and stderr: CRIU knows them by these.
    pub stdio: [u64; 2],
    /// The page objects this swap-out stored.
    pub stored: Vec<Stored>,
    /// Pages of older objects that are still the app's.
    pub carried_pages: u64,
    /// Files below the writable layer that the app has open or mapped.
    pub root_files: Vec<RootFile>,
}

/// A page object that a swap-out stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its name.
    pub id: ObjectId,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Time from the reading `then` to `now`: by the boot clock if it is the same boot, else by the wall clock, which
/// may have been set; never negative.
pub fn time_between(then: &Clocks, now: &Clocks) -> Duration {
    Duration::from_nanos(if then.boot_id == now.boot_id {
        now.boottime_ns.saturating_sub(then.boottime_ns)
    } else {
        now.realtime_ns.saturating_sub(then.realtime_ns)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_asleep_is_read_from_the_clock_that_can_be_trusted() {
        let clocks = |realtime_ns, boottime_ns, boot: &str| Clocks {
            realtime_ns,
            monotonic_ns: 0,
            boottime_ns,
            boot_id: boot.to_owned(),
        };
        let then = clocks(1_000, 50, "a");
        assert_eq!(
            time_between(&then, &clocks(9_000, 70, "a")),
            Duration::from_nanos(20)
        );
        assert_eq!(
            time_between(&then, &clocks(1_500, 3, "b")),
            Duration::from_nanos(500)
        );
        assert_eq!(time_between(&then, &clocks(10, 3, "b")), Duration::ZERO);
    }
}
