//! The page cache of given files: dropped, and counted, so that "from disk" means from disk.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// All regular files below `dir`.
///
/// # Errors
/// When a directory cannot be read.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Writes the files' dirty pages to disk and drops every page of them from memory.
/// Gives the bytes that stayed resident all the same (mapped by some process).
///
/// # Errors
/// When a file cannot be read.
pub fn drop_files(files: &[PathBuf]) -> Result<u64> {
    let mut resident = 0;
    for path in files {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        file.sync_all()?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        resident += resident_bytes(&file)?;
    }
    Ok(resident)
}

/// How much of a file is in memory now, by mincore(2) (which needs its owner or root).
///
/// # Errors
/// When it cannot be mapped.
pub fn resident_bytes(file: &File) -> Result<u64> {
    const PAGE: usize = 4096;
    let length = usize::try_from(file.metadata()?.len())?;
    if length == 0 {
        return Ok(0);
    }
    // SAFETY: a new mapping at an address the kernel chooses; nothing reads through it.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error()).context("mmap");
    }
    let mut pages = vec![0_u8; length.div_ceil(PAGE)];
    // SAFETY: the mapping is `length` long and the vector has one byte for each of its pages.
    let result = unsafe { libc::mincore(address, length, pages.as_mut_ptr()) };
    let error = std::io::Error::last_os_error();
    // SAFETY: unmaps exactly what was mapped above; no pointer into it remains.
    unsafe { libc::munmap(address, length) };
    if result < 0 {
        return Err(error).context("mincore");
    }
    Ok((pages.iter().filter(|page| *page & 1 == 1).count() * PAGE) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_file_has_no_page_in_memory() -> Result<()> {
        let dir = tempfile::tempdir_in("/var/tmp")?;
        let path = dir.path().join("sub/file");
        std::fs::create_dir(dir.path().join("sub"))?;
        std::fs::write(&path, vec![1; 300_000])?;
        let resident = resident_bytes(&File::open(&path)?)?;
        assert!(resident >= 300_000, "{resident} bytes resident after writing");
        assert_eq!(files(dir.path())?, std::slice::from_ref(&path));
        assert_eq!(drop_files(std::slice::from_ref(&path))?, 0);
        assert_eq!(std::fs::read(&path)?.len(), 300_000);
        Ok(())
    }
}
