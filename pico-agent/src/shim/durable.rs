//! Makes what was changed since a certain moment durable, without waiting for what everybody else has written.
//!
//! `syncfs(2)` waits for every dirty page of the file system: while another process writes as fast as it goes, for
//! hundreds of milliseconds (`cargo xtask bench swapout`), in which the app stands still. The agent therefore calls it
//! before the dump, while the app runs, and what has been changed since is found here by its time of change. Data
//! written through a mapping is found too: the first write to a page after its write-back sets the time.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::checkpoint::local::Clocks;

/// More files than this are not looked at one by one: that would take as long as what it saves.
const MAX_FILES: usize = 10_000;
/// Times of change are as coarse as a tick, and the wall clock is slewed.
const MARGIN_NS: u64 = 1_000_000_000;

/// Makes what was changed below `trees` durable, all on one file system. `ahead` is when all of that was made durable
/// before; without it, or when the clock was set since, everything on the file system is.
///
/// # Errors
/// When something cannot be read or written to the disk.
pub fn sync_changed(trees: &[&Path], ahead: Option<&Clocks>, now: &Clocks) -> io::Result<()> {
    let changed = match ahead.and_then(|ahead| cutoff(ahead, now)) {
        Some(cutoff) => changed_since(trees, cutoff)?,
        None => None,
    };
    let Some(changed) = changed else {
        return match trees.first() {
            Some(tree) => Ok(nix::unistd::syncfs(File::open(tree)?)?),
            None => Ok(()),
        };
    };
    let files = changed
        .iter()
        .map(|path| {
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
        })
        .collect::<io::Result<Vec<File>>>()?;
    // All of it is on its way before the first is waited for.
    for file in &files {
        begin_write_back(file.as_fd());
    }
    files.iter().try_for_each(File::sync_all)
}

/// Nanoseconds of the wall clock after which files count as changed; `None` when it was set meanwhile.
fn cutoff(ahead: &Clocks, now: &Clocks) -> Option<u64> {
    let passed = now.boottime_ns.checked_sub(ahead.boottime_ns)?;
    let shown = now.realtime_ns.checked_sub(ahead.realtime_ns)?;
    let kept = ahead.boot_id == now.boot_id && passed.abs_diff(shown) < MARGIN_NS / 2;
    kept.then(|| ahead.realtime_ns.saturating_sub(MARGIN_NS))
}

/// Regular files and directories changed since, directories after what is in them; `None` when there are too many to
/// look.
fn changed_since(trees: &[&Path], cutoff: u64) -> io::Result<Option<Vec<PathBuf>>> {
    let is_changed = |of: &fs::Metadata| {
        let time = i128::from(of.ctime()) * 1_000_000_000 + i128::from(of.ctime_nsec());
        time >= i128::from(cutoff)
    };
    let (mut files, mut dirs) = (Vec::new(), Vec::new());
    let mut seen = 0;
    let mut to_list: Vec<PathBuf> = trees.iter().map(|tree| tree.to_path_buf()).collect();
    while let Some(dir) = to_list.pop() {
        if is_changed(&fs::symlink_metadata(&dir)?) {
            dirs.push(dir.clone());
        }
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            seen += 1;
            if seen > MAX_FILES {
                return Ok(None);
            }
            let kind = entry.file_type()?;
            if kind.is_dir() {
                to_list.push(entry.path());
            } else if kind.is_file() && is_changed(&entry.metadata()?) {
                files.push(entry.path());
            }
        }
    }
    files.extend(dirs.into_iter().rev());
    Ok(Some(files))
}

/// A hint only: what goes wrong shows in the sync that follows.
fn begin_write_back(file: BorrowedFd<'_>) {
    // SAFETY: the descriptor is open for the time of the call, which takes no memory.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "tests")]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn clocks(realtime_ns: u64, boottime_ns: u64, boot: &str) -> Clocks {
        Clocks {
            realtime_ns,
            monotonic_ns: 0,
            boottime_ns,
            boot_id: boot.to_owned(),
        }
    }

    #[test]
    fn a_clock_that_was_set_tells_nothing() {
        const S: u64 = 1_000_000_000;
        let ahead = clocks(100 * S, 10 * S, "a");
        assert_eq!(cutoff(&ahead, &clocks(102 * S, 12 * S, "a")), Some(99 * S));
        assert_eq!(cutoff(&ahead, &clocks(102 * S, 12 * S, "b")), None);
        assert_eq!(cutoff(&ahead, &clocks(104 * S, 12 * S, "a")), None);
        assert_eq!(cutoff(&ahead, &clocks(99 * S, 12 * S, "a")), None);
    }

    #[test]
    fn what_was_written_linked_renamed_or_mapped_since_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        for name in ["old/a", "old/b", "written", "mapped", "moved", "into/x", "from/x"] {
            let file = path(name);
            fs::create_dir_all(file.parent().expect("below")).expect("made");
            fs::write(file, [1; 5000]).expect("written");
        }
        std::os::unix::fs::symlink("/dev/null", path("link")).expect("linked");
        let mapped = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path("mapped"))
            .expect("open");
        let length = std::num::NonZero::new(4096).expect("not 0");
        use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping of a file of this test, used below within its length and then unmapped.
        let at = unsafe { mmap(None, length, rights, MapFlags::MAP_SHARED, &mapped, 0) }.expect("mapped");
        // SAFETY: as above.
        unsafe { at.cast::<u8>().write_volatile(2) };
        nix::unistd::syncfs(&mapped).expect("synced");
        let newest = |name: &str| {
            let of = fs::metadata(path(name)).expect("there");
            u64::try_from(of.ctime() * 1_000_000_000 + of.ctime_nsec()).expect("after 1970")
        };
        // A tick later than anything so far.
        let before = newest("mapped").max(newest("from/x")) + 1;
        let tick = || fs::write(path("ticks"), []).map(|()| newest("ticks"));
        while tick().expect("written") <= before {}

        fs::write(path("written"), [2; 10]).expect("written");
        fs::write(path("new"), [2; 10]).expect("written");
        fs::rename(path("from/x"), path("into/y")).expect("renamed");
        // SAFETY: as above.
        unsafe { at.cast::<u8>().write_volatile(3) };
        let found = changed_since(&[dir.path()], before).expect("read").expect("few");
        // SAFETY: mapped above, and not used any more.
        unsafe { munmap(at, 4096) }.expect("unmapped");
        let names: BTreeSet<_> = found
            .iter()
            .map(|path| {
                path.strip_prefix(dir.path())
                    .expect("below")
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        let expected = ["", "from", "into", "into/y", "mapped", "new", "ticks", "written"];
        assert_eq!(names, expected.map(String::from).into());
        let place = |name: &str| found.iter().position(|path| *path == dir.path().join(name));
        assert!(place("into/y") < place("into") && place("into") < place(""));
    }
}
