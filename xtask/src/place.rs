//! Where things are: the repository, its target directory, the tools directory that all clones
//! of one user share. Knows nothing of what is built there.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The directories that every command works with.
#[derive(Debug, Clone)]
pub struct Place {
    /// The root of the repository.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
    /// `$PICO_TOOLS`, by default `~/.cache/pico-tools`: what setup installs beside the host's
    /// own packages. It is outside the repository, so that a second clone finds it.
    pub tools: PathBuf,
}

impl Place {
    /// Finds them from the environment.
    pub fn find() -> Result<Place> {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .context("xtask has no parent directory")?
            .to_path_buf();
        let target = match var("CARGO_TARGET_DIR") {
            Some(dir) => std::path::absolute(dir)?,
            None => root.join("target"),
        };
        let tools = match (var("PICO_TOOLS"), var("XDG_CACHE_HOME"), var("HOME")) {
            (Some(tools), _, _) => std::path::absolute(tools)?,
            (_, Some(cache), _) => cache.join("pico-tools"),
            (_, _, Some(home)) => home.join(".cache/pico-tools"),
            _ => anyhow::bail!(
                "neither PICO_TOOLS nor HOME is set: set PICO_TOOLS to a directory for the tools"
            ),
        };
        Ok(Place { root, target, tools })
    }

    /// The eBPF object that the agent embeds.
    pub fn ebpf_object(&self) -> PathBuf {
        self.target.join("bpf/pico-ebpf.o")
    }

    /// Where cargo puts the binaries of a profile.
    pub fn binaries(&self, release: bool) -> PathBuf {
        self.target.join(if release { "release" } else { "debug" })
    }

    /// Cargo, run in the repository, without the variables by which the cargo that started
    /// xtask describes xtask itself.
    pub fn cargo(&self) -> Command {
        let mut cmd = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        clean_env(cmd.current_dir(&self.root));
        cmd
    }
}

/// Takes from the command's environment what `cargo run` added for xtask. What was set for the
/// command itself stays.
pub fn clean_env(cmd: &mut Command) -> &mut Command {
    clean(cmd, std::env::vars_os().map(|(key, _)| key))
}

fn clean(cmd: &mut Command, inherited: impl Iterator<Item = OsString>) -> &mut Command {
    for key in inherited {
        let name = key.to_string_lossy();
        let own = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"]
            .iter()
            .any(|p| name.starts_with(p));
        let set = cmd.get_envs().any(|(set, value)| set == key && value.is_some());
        if !set && (own || name == "LD_LIBRARY_PATH") {
            cmd.env_remove(&key);
        }
    }
    cmd
}

fn var(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
}

/// The path, shown from the current directory where it lies below it.
pub fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_said_of_xtask_is_not_passed_on() {
        let mut cmd = Command::new("true");
        let inherited = ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "HOME"];
        clean(
            cmd.env("CARGO_MANIFEST_DIR", "/elsewhere"),
            inherited.map(OsString::from).into_iter(),
        );
        let env: Vec<_> = cmd.get_envs().collect();
        assert!(
            env.contains(&("CARGO_MANIFEST_DIR".as_ref(), Some("/elsewhere".as_ref()))),
            "{env:?}"
        );
        assert!(env.contains(&("CARGO_PKG_NAME".as_ref(), None)), "{env:?}");
        assert_eq!(env.len(), 2, "{env:?}");
    }
}
