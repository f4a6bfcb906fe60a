//! Which memory of a run's processes is locked (mlock(2)).
//!
//! CRIU restores locked memory at once, never on demand. So what of it was not read since the last restore (it was
//! locked with MLOCK_ONFAULT) must be there before the next dump. Reads /proc; knows neither CRIU nor the pager.

use std::fs;
use std::io;
use std::ops::Range;

use crate::checkpoint::index::PAGE_SIZE;
use crate::sandbox::Cgroup;

/// Locked page ranges of one process, named by its id inside the app's pid namespace.
pub type Locked = (u32, Vec<Range<u64>>);

/// The processes of a run that have locked memory, with where it is.
///
/// # Errors
/// When /proc cannot be read. Processes that end meanwhile are none.
pub fn locked_memory(run: &Cgroup) -> io::Result<Vec<Locked>> {
    let mut found = Vec::new();
    for pid in run.procs().map_err(io::Error::other)? {
        let Some(text) = read(&format!("/proc/{pid}/status"))? else {
            continue;
        };
        // Mappings are read only where there is something to find: that takes milliseconds for a large app.
        let Some(id) = id_with_locked_memory(&text) else {
            continue;
        };
        if let Some(text) = read(&format!("/proc/{pid}/smaps"))? {
            found.push((id, locked_ranges(&text)));
        }
    }
    Ok(found)
}

fn read(path: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(io::Error::new(error.kind(), format!("{path}: {error}"))),
    }
}

/// The id of a process in its own pid namespace, if `/proc/PID/status` says that it has locked memory.
fn id_with_locked_memory(status: &str) -> Option<u32> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let locked: u64 = field("VmLck:")?
        .trim()
        .trim_end_matches("kB")
        .trim()
        .parse()
        .ok()?;
    let id = field("NSpid:")?.split_whitespace().next_back()?.parse().ok()?;
    (locked > 0).then_some(id)
}

/// Page ranges of the mappings that `/proc/PID/smaps` flags as locked.
fn locked_ranges(smaps: &str) -> Vec<Range<u64>> {
    let mut current = None;
    let mut ranges = Vec::new();
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let locked = flags.split_whitespace().any(|flag| flag == "lo");
            ranges.extend(current.take().filter(|_| locked));
        } else if let Some(range) = mapping(line) {
            current = Some(range);
        }
    }
    ranges
}

/// The page range of a mapping's first line (`START-END PERMISSIONS ...`).
fn mapping(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(number(start)? / PAGE_SIZE..number(end)? / PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_mappings_are_found_by_their_flag() {
        let smaps = "7f0000010000-7f0000012000 rw-p 00000000 00:00 0 \nRss: 8 kB\nLocked: 0 kB\n\
                     VmFlags: rd wr mr mw me ac \n\
                     7f0000012000-7f0000015000 rw-p 00000000 00:00 0 [anon: a-b c]\nRss: 0 kB\n\
                     VmFlags: rd wr mr mw me lo lf ac \n";
        assert_eq!(locked_ranges(smaps), vec![0x7_f000_0012..0x7_f000_0015]);
    }

    #[test]
    fn only_processes_with_locked_memory_are_looked_at() {
        let status = |locked| format!("Name:\ta\nNSpid:\t4711\t12\nVmLck:\t      {locked} kB\n");
        assert_eq!(id_with_locked_memory(&status(8)), Some(12));
        assert_eq!(id_with_locked_memory(&status(0)), None);
        assert_eq!(id_with_locked_memory("Name:\tkernel thread\n"), None);
    }
}
