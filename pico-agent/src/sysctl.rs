//! Kernel network settings of the calling thread's network namespace: reading, writing, and those that a device
//! of ours needs whoever made it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A setting, or the file that remembers settings, could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct SysctlError {
    /// The file.
    pub path: PathBuf,
    /// What happened.
    pub source: io::Error,
}

/// Says which file an error is about.
pub fn at(path: &Path) -> impl FnOnce(io::Error) -> SysctlError + '_ {
    move |source| SysctlError {
        path: path.to_owned(),
        source,
    }
}

/// Reads a setting by its path below `/proc/sys/net`.
pub fn read(key: &str) -> Result<String, SysctlError> {
    let path = Path::new("/proc/sys/net").join(key);
    fs::read_to_string(&path)
        .map(|text| text.trim().to_owned())
        .map_err(at(&path))
}

/// Writes a setting by its path below `/proc/sys/net`.
pub fn write(key: &str, value: &str) -> Result<(), SysctlError> {
    let path = Path::new("/proc/sys/net").join(key);
    fs::write(&path, value).map_err(at(&path))
}

/// True when the kernel has IPv6 at all.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf").exists()
}

/// Lets a device take packets whose sender is routed by another one. The kernel goes by the greater of this and
/// `conf/all`: 2 ("routed by any device", and the device must have an address) wins over a strict 1 there, 0
/// would not.
pub fn loosen_reverse_path(device: &str) -> Result<(), SysctlError> {
    write(&format!("ipv4/conf/{device}/rp_filter"), "2")
}

/// Turns IPv6 on for a device where new devices come without it.
pub fn enable_ipv6(device: &str) -> Result<(), SysctlError> {
    let key = format!("ipv6/conf/{device}/disable_ipv6");
    if has_ipv6() && read(&key)? != "0" {
        write(&key, "0")?;
    }
    Ok(())
}
