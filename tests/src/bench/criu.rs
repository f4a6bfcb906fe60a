//! CRIU's command line, for the baselines: which one, and how it is run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::harness::bin;

/// A CRIU that can be run.
#[derive(Debug, Clone)]
pub struct Criu {
    /// Program and first arguments.
    line: Vec<String>,
    preload: Option<PathBuf>,
    private: bool,
}

impl Criu {
    /// The one `cargo xtask setup` has found or fetched: `$PICO_CRIU`, the tools directory's, the host's.
    ///
    /// # Errors
    /// When there is none.
    pub fn find() -> Result<Self> {
        let tools = match (std::env::var_os("PICO_TOOLS"), std::env::var_os("HOME")) {
            (Some(tools), _) => PathBuf::from(tools),
            (None, home) => PathBuf::from(home.unwrap_or_else(|| "/root".into())).join(".cache/pico-tools"),
        };
        let named = std::env::var_os("PICO_CRIU").map(PathBuf::from);
        let places = named
            .into_iter()
            .chain([tools.join("criu"), "/usr/sbin/criu".into()]);
        let line = places
            .filter(|path| path.exists())
            .find_map(|path| command_line(&path));
        Ok(Criu {
            private: line.as_ref().is_some_and(|line| line.len() > 1),
            line: line.context("no CRIU; try: cargo xtask setup")?,
            preload: bin::find("libpico_preload.so").ok(),
        })
    }

    /// `criu ACTION` with the options that every action of the baselines needs, working in `dir`.
    pub fn command(&self, action: &str, dir: &Path) -> Command {
        let mut words = self.line.iter();
        let mut command = Command::new(words.next().map_or("criu", String::as_str));
        match &self.preload {
            // A private loader sees no LD_PRELOAD meant for the host's.
            Some(library) if self.private => {
                command.arg("--preload").arg(library);
            }
            Some(library) => {
                command.env("LD_PRELOAD", library);
            }
            None => {}
        }
        command.args(words).arg(action);
        command
            .arg("-D")
            .arg(dir)
            .args(["-v2", "-o"])
            .arg(format!("{action}.log"));
        // Hardware breakpoints cost every restore 7 to 19 ms; our own driver skips them too.
        command.env("CRIU_FAULT", "130");
        command
    }
}

/// How `path` is run: a program as it is, a private root directory by its own loader.
fn command_line(path: &Path) -> Option<Vec<String>> {
    let text = |path: &Path| Some(path.to_str()?.to_owned());
    if path.is_file() {
        return Some(vec![text(path)?]);
    }
    let root = if path.join("root").is_dir() {
        path.join("root")
    } else {
        path.to_owned()
    };
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let loader = libraries.join("ld-linux-x86-64.so.2");
    let binary = root.join("usr/sbin/criu");
    let found = loader.is_file() && binary.is_file();
    found.then_some(())?;
    Some(vec![
        text(&loader)?,
        "--library-path".into(),
        text(&libraries)?,
        text(&binary)?,
    ])
}
