//! `cargo xtask demo` and `bench`: make the host ready, build, then become the program, so that
//! Ctrl-C reaches it alone.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};

use crate::place::{Place, clean_env};
use crate::setup::{self, Need};
use crate::{build, cmd, test};

/// Prepares, builds and becomes a program of the tests crate, as root.
pub fn launch(place: &Place, need: Need, program: &str, release: bool, args: &[OsString]) -> Result<()> {
    let tools = setup::tools(place, &[need])?;
    build::build(place, &tools, release)?;
    let mut env = test::environment(place, &tools, release);
    for name in ["RUST_LOG", "RUST_BACKTRACE", "TERM", "NO_COLOR"] {
        env.extend(std::env::var_os(name).map(|value| (name, value)));
    }
    let mut cmd = cmd::as_root(place.binaries(release).join(program), &env)?;
    clean_env(cmd.args(args));
    println!("$ {}", cmd::display(&cmd));
    Err(cmd.exec()).with_context(|| format!("cannot run `{}`", cmd::display(&cmd)))
}
