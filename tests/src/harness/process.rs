//! A program of ours that runs in the background: started, waited for by events, ended by its id.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::interrupt;

/// A child in its own process group (the terminal's Ctrl-C is for us, not for it), with its output in a
/// file. Dropping it ends it.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`, both its outputs appended to `log`, and waits, at most `limit`, for the line that
    /// `ready` accepts.
    ///
    /// # Errors
    /// When it cannot be started, ends before it is ready, or is not ready in time: with the end of its log.
    pub fn start<T>(
        command: &mut Command,
        log: &Path,
        limit: Duration,
        ready: impl Fn(&str) -> Option<T>,
    ) -> Result<(Self, T)> {
        let open = || OpenOptions::new().create(true).append(true).open(log);
        let stdout = open().with_context(|| format!("cannot write {}", log.display()))?;
        let mut written = File::open(log)?;
        written.seek(SeekFrom::End(0))?;
        let changes = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        changes.add_watch(log, AddWatchFlags::IN_MODIFY)?;
        // Escape sequences for colours would hide what is looked for.
        let child = command
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stderr(stdout.try_clone()?)
            .stdout(stdout)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let mut daemon = Daemon {
            child,
            log: log.to_owned(),
        };
        let exit = pidfd(daemon.pid())?.context("a child that was not waited for has a pidfd")?;
        let deadline = Instant::now() + limit;
        let mut text = Vec::new();
        loop {
            interrupt::check()?;
            // Emptied before the file is read: what is written later wakes the next wait.
            while changes.read_events().is_ok() {}
            let ended = daemon.child.try_wait()?;
            written.read_to_end(&mut text)?;
            let whole = text
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |end| end + 1);
            if let Some(value) = String::from_utf8_lossy(&text[..whole]).lines().find_map(&ready) {
                return Ok((daemon, value));
            }
            if let Some(status) = ended {
                bail!(
                    "{command:?} ended before it was ready ({status})\n{}",
                    daemon.log_tail()
                );
            }
            if Instant::now() >= deadline {
                bail!(
                    "{command:?} not ready within {} s\n{}",
                    limit.as_secs(),
                    daemon.log_tail()
                );
            }
            await_any(&[changes.as_fd(), exit.as_fd()], deadline)?;
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(pid(self.child.id()), signal).with_context(|| format!("cannot signal {}", self.child.id()))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        if !await_exit(self.child.id(), limit)? {
            bail!(
                "process {} did not end within {} s",
                self.child.id(),
                limit.as_secs()
            );
        }
        Ok(self.child.wait()?)
    }

    /// SIGTERM, and the wait for its end.
    ///
    /// # Errors
    /// When it takes longer than `grace`; it is killed then.
    pub fn stop(&mut self, grace: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        let status = self.wait(grace);
        if status.is_err() {
            self.kill()?;
        }
        status.with_context(|| format!("killed after SIGTERM\n{}", self.log_tail()))
    }

    /// SIGKILL, and the wait for its end.
    ///
    /// # Errors
    /// When the kernel does not let it go.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// The last lines of what it printed, for error messages.
    pub fn log_tail(&self) -> String {
        tail(&self.log, 40)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A failure cannot be reported from here; the leftovers check finds what remains.
        let _ = self.stop(Duration::from_secs(60));
    }
}

/// The last `count` lines of a text file, with its name before them.
pub fn tail(path: &Path, count: usize) -> String {
    let text = std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    format!(
        "--- {}\n{}",
        path.display(),
        lines[lines.len().saturating_sub(count)..].join("\n")
    )
}

/// `std` counts process ids in `u32`, the kernel in `i32` with the same bits.
pub fn pid(id: u32) -> Pid {
    Pid::from_raw(id.cast_signed())
}

/// Waits for the end of any process (a child or not) by its pidfd. False when it still runs after `limit`.
///
/// # Errors
/// When the kernel refuses a pidfd for another reason than that the process is gone.
pub fn await_exit(id: u32, limit: Duration) -> Result<bool> {
    match pidfd(id)? {
        None => Ok(true),
        Some(fd) => {
            let deadline = Instant::now() + limit;
            while !await_any(&[fd.as_fd()], deadline)? {
                if Instant::now() >= deadline {
                    return Ok(false);
                }
            }
            Ok(true)
        }
    }
}

/// A descriptor that becomes readable when the process ends; nothing when it is gone.
fn pidfd(id: u32) -> Result<Option<OwnedFd>> {
    // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, id, 0) };
    if raw < 0 {
        let error = std::io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ESRCH) {
            Ok(None)
        } else {
            Err(error.into())
        };
    }
    // SAFETY: the call just returned this descriptor, and nobody else has it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(i32::try_from(raw)?) }))
}

/// Waits until one of the descriptors is readable. False when none is: at the deadline, or after a signal.
fn await_any(descriptors: &[BorrowedFd<'_>], deadline: Instant) -> Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
    let mut polled: Vec<_> = descriptors
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    match poll(&mut polled, timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Runs a program to its end and gives its standard output.
///
/// # Errors
/// When it fails: with what it printed on standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed ({}): {}", output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, dir: &Path) -> Result<(Daemon, String)> {
        let mut command = Command::new("sh");
        let ready = |line: &str| line.strip_prefix("ready ").map(str::to_owned);
        Daemon::start(
            command.args(["-c", script]),
            &dir.join("log"),
            Duration::from_secs(10),
            ready,
        )
    }

    #[test]
    fn a_program_is_ready_when_its_line_is_whole() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (mut daemon, value) = shell(
            "echo start; printf 'ready 4'; sleep 0.1; echo 2 >&2; exec sleep 60",
            dir.path(),
        )?;
        assert_eq!(value, "42");
        let pid = daemon.pid();
        assert!(!await_exit(pid, Duration::ZERO)?);
        daemon.stop(Duration::from_secs(10))?;
        assert!(await_exit(pid, Duration::ZERO)?);
        assert!(daemon.log_tail().ends_with("start\nready 42"));
        Ok(())
    }

    #[test]
    fn a_program_that_ends_early_is_reported_with_its_log() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let error = shell("echo no bucket >&2; exit 7", dir.path())
            .err()
            .context("it was ready")?;
        let text = format!("{error:#}");
        assert!(
            text.contains("exit status: 7") && text.contains("no bucket"),
            "{text}"
        );
        Ok(())
    }
}
