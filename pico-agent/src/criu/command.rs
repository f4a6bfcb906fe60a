//! Finding a CRIU that works on this host, and the command line that starts it.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

/// Linux's number of CAP_SYS_RESOURCE (capability.h).
const CAP_SYS_RESOURCE: u32 = 24;

/// How CRIU is started on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Criu {
    program: PathBuf,
    /// The loader and library folder of a private copy, which must not use the host's libc.
    loader: Option<(PathBuf, PathBuf)>,
    preload: Option<PathBuf>,
}

/// Why no CRIU was found.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// Nothing at the given path.
    #[error("no CRIU at {0}; try: cargo xtask setup, or name one with criu = \"PATH\" in agent.toml")]
    Missing(PathBuf),
    /// It does not run.
    #[error("{path} does not run: {reason}")]
    Broken {
        /// What was started.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
}

impl Criu {
    /// Takes `path` as a criu program, or as the root of a private copy (`usr/sbin/criu` with its own libc).
    ///
    /// # Errors
    /// When neither is there.
    pub fn at(path: &Path) -> Result<Self, CriuError> {
        let missing = || CriuError::Missing(path.to_owned());
        if path.is_file() {
            return Ok(Criu {
                program: path.to_owned(),
                loader: None,
                preload: None,
            });
        }
        let program = path.join("usr/sbin/criu");
        if !program.is_file() {
            return Err(missing());
        }
        let libraries = std::fs::read_dir(path.join("usr/lib")).map_err(|_| missing())?;
        let loader = libraries
            .filter_map(|dir| Some(dir.ok()?.path()))
            .find_map(|dir| find_loader(&dir).map(|loader| (loader, dir)))
            .ok_or_else(missing)?;
        Ok(Criu {
            program,
            loader: Some(loader),
            preload: None,
        })
    }

    /// Preloads `library` (`libpico_preload.so`) where this process lacks CAP_SYS_RESOURCE, without which CRIU
    /// cannot read the limits of another user's process.
    pub fn with_preload(mut self, library: &Path) -> Self {
        self.preload = (!has_cap_sys_resource()).then(|| library.to_owned());
        self
    }

    /// Where the program is.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Whether a file that is needed to start CRIU lies below `dir`.
    pub fn needs(&self, dir: &Path) -> bool {
        let (loader, libraries) = self
            .loader
            .as_ref()
            .map_or((None, None), |(l, d)| (Some(l), Some(d)));
        let files = [Some(&self.program), loader, libraries, self.preload.as_ref()];
        files.into_iter().flatten().any(|file| file.starts_with(dir))
    }

    /// A command that starts CRIU with `args`, hardware breakpoints off (7-19 ms a restore; FI_NO_BREAKPOINTS).
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = match &self.loader {
            Some((loader, libraries)) => {
                let mut command = Command::new(loader);
                command.arg("--library-path").arg(libraries);
                if let Some(library) = &self.preload {
                    command.arg("--preload").arg(library);
                }
                command.arg(&self.program);
                command
            }
            None => {
                let mut command = Command::new(&self.program);
                if let Some(library) = &self.preload {
                    command.env("LD_PRELOAD", library);
                }
                command
            }
        };
        command.args(args).env("CRIU_FAULT", "130");
        command
    }

    /// The command of a service worker that takes requests on descriptor `socket`.
    pub fn swrk(&self, socket: RawFd) -> Command {
        self.command(&["swrk", &socket.to_string()])
    }

    /// The version, such as `4.2.1`.
    ///
    /// # Errors
    /// When CRIU does not run.
    pub fn version(&self) -> Result<String, CriuError> {
        let broken = |reason: String| CriuError::Broken {
            path: self.program.clone(),
            reason,
        };
        let output = self
            .command(&["--version"])
            .output()
            .map_err(|error| broken(error.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines()
            .find_map(|line| line.strip_prefix("Version: "))
            .map(str::to_owned)
            .ok_or_else(|| broken(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

fn find_loader(dir: &Path) -> Option<PathBuf> {
    let is_loader = |name: OsString| name.to_string_lossy().starts_with("ld-linux-");
    let entry = std::fs::read_dir(dir)
        .ok()?
        .filter_map(Result::ok)
        .find(|e| is_loader(e.file_name()))?;
    Some(entry.path())
}

/// Whether this process has CAP_SYS_RESOURCE in effect.
pub fn has_cap_sys_resource() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|caps| u64::from_str_radix(caps.trim(), 16).ok())
        .is_some_and(|caps| caps >> CAP_SYS_RESOURCE & 1 == 1)
}
