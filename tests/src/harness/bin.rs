//! Where the built binaries are: `$PICO_BIN_DIR`, or beside the running one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The path of the built file `name` (`pico-agent`, `libpico_preload.so`, ...).
///
/// Cargo puts test binaries into `target/debug/deps` and programs into `target/debug`,
/// with everything else.
///
/// # Errors
/// When it is not there; the message says how to build it.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = place()?.join(name);
    if !path.is_file() {
        bail!("{} does not exist; try: cargo xtask build", path.display());
    }
    Ok(path)
}

fn place() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("PICO_BIN_DIR") {
        return Ok(dir.into());
    }
    let exe = std::env::current_exe().context("cannot find the running program")?;
    let dir = exe.parent().context("the running program is in no directory")?;
    let dir = if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    };
    Ok(dir.to_owned())
}

/// The path of a program of the system, looked for in `$PATH` and the usual `sbin` directories.
///
/// # Errors
/// When it is not installed; the message says which Debian package has it.
pub fn system(name: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let dirs = path.split(':').chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"]);
    match dirs
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file())
    {
        Some(path) => Ok(path),
        None => bail!("{name} is not installed; try: apt-get install {package}"),
    }
}
