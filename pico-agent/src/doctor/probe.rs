//! Tries what cannot be read off: system calls and mounts. Mounts are made in a mount namespace of a thread's
//! own, so that they are gone with the thread whatever happens.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use userfaultfd::{FeatureFlags, UffdBuilder};

/// `ramfs` has no constant in nix (linux/magic.h).
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// Makes a userfaultfd with all the events that the pager needs.
pub(super) fn userfaultfd() -> Result<(), String> {
    let events = FeatureFlags::EVENT_FORK
        | FeatureFlags::EVENT_REMAP
        | FeatureFlags::EVENT_REMOVE
        | FeatureFlags::EVENT_UNMAP;
    match UffdBuilder::new()
        .close_on_exec(true)
        .non_blocking(true)
        .require_features(events)
        .create()
    {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Mounts an overlay with the options that apps get, on the file system of `directory`.
pub(super) fn overlay(directory: &Path) -> Result<(), String> {
    let scratch = Scratch::new(directory).map_err(|error| error.to_string())?;
    let at = scratch.path.clone();
    let outcome = in_own_mounts(move || {
        for name in ["lower", "upper", "work", "root"] {
            fs::create_dir(at.join(name))?;
        }
        let (lower, upper, work) = (at.join("lower"), at.join("upper"), at.join("work"));
        let options = format!(
            "lowerdir={},upperdir={},workdir={},index=on,nfs_export=on",
            lower.display(),
            upper.display(),
            work.display()
        );
        mount(
            Some("overlay"),
            &at.join("root"),
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )?;
        Ok(())
    });
    outcome.map_err(|error| error.to_string())
}

/// The kind of memory file system that a directory is on, if any.
pub(super) fn in_memory(directory: &Path) -> io::Result<Option<&'static str>> {
    let kind = statfs(directory)?.filesystem_type();
    Ok(match kind {
        TMPFS_MAGIC => Some("tmpfs"),
        FsType(RAMFS_MAGIC) => Some("ramfs"),
        _ => None,
    })
}

/// Bytes that are left in the file system of a directory for those who are not root.
pub(super) fn free_space(directory: &Path) -> io::Result<u64> {
    let stat = statvfs(directory)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

fn in_own_mounts<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("doctor-mounts".to_owned());
    let thread = thread.spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        // What is mounted here must not show outside.
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )?;
        work()
    })?;
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the probe itself failed")))
}

/// A directory that is removed when this is dropped.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(directory: &Path) -> io::Result<Scratch> {
        // Threads of one process may examine at the same time (tests do).
        let thread = nix::unistd::gettid();
        let path = directory.join(format!(".pico-doctor-{}-{thread}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Scratch { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
