//! Keeps an app from our own program file.
//!
//! A process that is about to become an app is still our program, and `/proc/PID/exe` names its file on the host. An app
//! that makes it stay so (a script whose first line is `#!/proc/self/exe`) could open that file and, as root, write
//! into it: the next one to run it would be the host (CVE-2019-5736). So our program enters a sandbox only when it was
//! executed by way of a read-only mount, through which nothing can be written, whatever rights one has.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::execv;

use super::SandboxError;

const OWN: &str = "/proc/self/exe";

/// Refuses to go on where the running program could be written through `/proc/self/exe`.
pub(super) fn check() -> Result<(), SandboxError> {
    if read_only()? {
        return Ok(());
    }
    Err(SandboxError::Step {
        action: "enter a sandbox",
        source: std::io::Error::other("the program's own file could be written from there"),
    })
}

fn read_only() -> Result<bool, SandboxError> {
    let mounted = statvfs(OWN).map_err(SandboxError::file("look at", OWN))?;
    Ok(mounted.flags().contains(FsFlags::ST_RDONLY))
}

/// Executes the calling program anew, with the same arguments, by way of a read-only mount that no other process sees;
/// returns when that is so already. To be called before the program has read or opened anything.
///
/// # Errors
/// When the kernel refuses the mount, or the program's file is not where it was executed from.
pub fn protect() -> Result<(), SandboxError> {
    if read_only()? {
        return Ok(());
    }
    let file = std::fs::read_link(OWN).map_err(SandboxError::file("read", OWN))?;
    let step = || SandboxError::file("mount read-only", &file);
    unshare(CloneFlags::CLONE_NEWNS).map_err(SandboxError::step("make a mount namespace"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(SandboxError::step("cut the mounts off from the host's"))?;
    mount(Some(&file), &file, none, MsFlags::MS_BIND, none).map_err(step())?;
    let remount = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(none, &file, none, remount, none).map_err(step())?;
    let zero = |_| SandboxError::Spec {
        what: "an argument",
        why: "contains a zero byte; remove it",
    };
    let arguments: Vec<CString> = std::env::args_os()
        .map(|argument| CString::new(argument.as_bytes()).map_err(zero))
        .collect::<Result<_, _>>()?;
    let program = CString::new(file.as_os_str().as_bytes()).map_err(zero)?;
    let Err(error) = execv(&program, &arguments);
    Err(SandboxError::file("execute", file)(error))
}
