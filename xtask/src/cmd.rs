//! Runs other programs: shows what is run, turns a failure into an error that says what to do,
//! raises a command to root. Knows nothing of what the programs are for.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Whether this process runs as root (effective user 0).
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// The first program of this name on `PATH`, or in the system directories that an ordinary
/// user's `PATH` often lacks.
pub fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// A command that runs as root: as it is when this process is root, otherwise through sudo.
/// The environment is given here, since sudo clears what it inherits.
pub fn as_root<P: AsRef<OsStr>>(program: P, env: &[(&str, OsString)]) -> Result<Command> {
    if is_root() {
        let mut cmd = Command::new(program);
        cmd.envs(env.iter().cloned());
        return Ok(cmd);
    }
    if which("sudo").is_none() {
        bail!("this step needs root, and there is no sudo here: run the same command as root");
    }
    let mut cmd = Command::new("sudo");
    cmd.arg("env");
    for (key, value) in env {
        let mut pair = OsString::from(key);
        pair.push("=");
        pair.push(value);
        cmd.arg(pair);
    }
    cmd.arg(program);
    Ok(cmd)
}

/// `sudo ` or nothing: how this user's shell has to start a command that needs root.
pub fn sudo_prefix() -> &'static str {
    if is_root() { "" } else { "sudo " }
}

/// The command as one would type it: a program that cargo gave us the path of by its name alone.
pub fn display(cmd: &Command) -> String {
    let program = cmd.get_program();
    let mut text = match std::env::var_os("CARGO") {
        Some(cargo) if cargo == program => "cargo".to_owned(),
        _ => quoted(program),
    };
    for arg in cmd.get_args() {
        let _ = write!(text, " {}", quoted(arg));
    }
    text
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Shows the command and runs it with this process's output; an error unless it exits with 0.
pub fn run(cmd: &mut Command) -> Result<()> {
    println!("$ {}", display(cmd));
    let status = cmd
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run `{}`", display(cmd)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", display(cmd));
    }
    Ok(())
}

/// Runs the command silently and gives its standard output; what it wrote to standard error
/// becomes part of the error when it fails.
pub fn output(cmd: &mut Command) -> Result<String> {
    let out = cmd
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{}`", display(cmd)))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        bail!("`{}` failed: {}\n{}", display(cmd), out.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// `3.2 s` or `2 min 5 s`.
pub fn elapsed(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        secs => format!("{} min {} s", secs / 60, secs % 60),
    }
}

/// Writes the file only when its content differs, so that nothing built from it is built again.
/// Says whether it was written.
pub fn write_if_changed(path: &Path, content: &[u8]) -> Result<bool> {
    if std::fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let new = path.with_extension("new");
    std::fs::write(&new, content).with_context(|| format!("cannot write {}", new.display()))?;
    std::fs::rename(&new, path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut cmd = Command::new("apt-get");
        cmd.args(["-o", "Dir::Cache=/tmp/a b", "it's"]);
        assert_eq!(display(&cmd), r"apt-get -o 'Dir::Cache=/tmp/a b' 'it'\''s'");
    }

    #[test]
    fn times_are_short_to_read() {
        assert_eq!(elapsed(Duration::from_millis(3210)), "3.2 s");
        assert_eq!(elapsed(Duration::from_secs(125)), "2 min 5 s");
    }

    #[test]
    fn an_equal_file_is_left_alone() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("sub/object.o");
        assert!(write_if_changed(&file, b"one")?);
        let before = std::fs::metadata(&file)?.ino();
        assert!(!write_if_changed(&file, b"one")?);
        assert_eq!(std::fs::metadata(&file)?.ino(), before);
        assert!(write_if_changed(&file, b"two")?);
        assert_eq!(std::fs::read(&file)?, b"two");
        Ok(())
    }

    #[test]
    fn a_failing_command_says_what_it_printed() {
        let mut cmd = Command::new("sh");
        cmd.args(["-c", "echo no such thing >&2; exit 3"]);
        let err = output(&mut cmd).unwrap_err().to_string();
        assert!(
            err.contains("no such thing") && err.contains("exit status: 3"),
            "{err}"
        );
    }
}
