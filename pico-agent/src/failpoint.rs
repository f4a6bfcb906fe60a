//! Named moments of a swap at which the crash tests stop a process, so that anything can be killed just then.
//!
//! Armed by the environment alone: where `PICO_FAIL_POINTS` names a directory when the agent starts, it and its shims
//! look there for a file with the moment's name. Who finds it removes it, writes its process id to `NAME.reached`, and
//! stops itself (SIGSTOP) until it is continued or killed. Without the variable a moment costs one comparison.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use nix::sys::signal::{Signal, raise};

/// The environment variable that names the directory.
pub const VARIABLE: &str = "PICO_FAIL_POINTS";

fn directory() -> Option<&'static PathBuf> {
    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    DIRECTORY
        .get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from))
        .as_ref()
}

/// What a shim's environment must have for it to be armed as its agent is.
pub fn environment() -> Option<(&'static str, OsString)> {
    directory().map(|directory| (VARIABLE, directory.clone().into_os_string()))
}

/// Stops this process if it is to be stopped at `moment`.
pub fn reach(moment: &str) {
    let Some(directory) = directory() else { return };
    // Of several who come here, the one that removes the file stops.
    if fs::remove_file(directory.join(moment)).is_err() {
        return;
    }
    let reached = directory.join(format!("{moment}.reached"));
    let unnamed = directory.join(format!("{moment}.new"));
    let told =
        fs::write(&unnamed, std::process::id().to_string()).and_then(|()| fs::rename(&unnamed, &reached));
    if told.is_ok() {
        // A signal that cannot be raised is noticed by the test that waits for it.
        let _ = raise(Signal::SIGSTOP);
    }
}
