//! A small file system for what an agent writes: one that can be filled.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::process::output;

/// A tmpfs on a directory, unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Makes the directory, and a file system of `size` (`64M`) on it.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn on(dir: &Path, size: &str) -> Result<SmallDisk> {
        std::fs::create_dir_all(dir)?;
        let options = format!("size={size},mode=755");
        output(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
                .arg(dir),
        )?;
        Ok(SmallDisk(dir.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What could not be unmounted is seen as left over.
        let _ = output(Command::new("umount").arg(&self.0));
    }
}
