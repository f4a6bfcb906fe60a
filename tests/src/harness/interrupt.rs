//! Ctrl-C as an ordinary error: a flag that every wait looks at, so that what cleans up after a
//! failure (values dropped on the way out) also cleans up after an interrupt.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The error of a wait that Ctrl-C, SIGTERM or SIGHUP ended.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

extern "C" fn on_signal(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Turns SIGINT, SIGTERM and SIGHUP into the flag that [`check`] reads. Handlers do not survive `exec`,
/// so the programs started afterwards behave as usual.
///
/// # Errors
/// When the kernel refuses the handler.
pub fn watch() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot handle {signal}"))?;
    }
    Ok(())
}

/// Stands for "go on?" in every loop.
///
/// # Errors
/// [`Interrupted`], once a signal came.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        Err(Interrupted.into())
    } else {
        Ok(())
    }
}

/// Forgets the signal, so that what cleans up can wait again. True when there was one.
pub fn take() -> bool {
    INTERRUPTED.swap(false, Ordering::Relaxed)
}
