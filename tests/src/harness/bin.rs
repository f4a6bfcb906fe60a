//! Where the built binaries are: `$PICO_BIN_DIR`, or beside the running one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The path of the built file `name` (`pico-agent`, `libpico_preload.so`, ...).
///
/// Cargo puts test binaries into `target/debug/deps` and programs into `target/debug`: both are looked at.
///
/// # Errors
/// When it is in neither place; the message says how to build it.
pub fn find(name: &str) -> Result<PathBuf> {
    let places = places()?;
    places
        .iter()
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            let places: Vec<_> = places.iter().map(|dir| dir.display().to_string()).collect();
            format!(
                "{name} is not in {}; try: cargo xtask build",
                places.join(" nor ")
            )
        })
}

fn places() -> Result<Vec<PathBuf>> {
    if let Some(dir) = std::env::var_os("PICO_BIN_DIR") {
        return Ok(vec![dir.into()]);
    }
    let exe = std::env::current_exe().context("cannot find the running program")?;
    Ok(exe.ancestors().skip(1).take(2).map(Path::to_path_buf).collect())
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
