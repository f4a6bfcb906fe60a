//! A command beside a running app: in its namespaces, with its rights and under its limits, but in a control group of
//! its own, by which all of it can be ended.
//!
//! `pico-shim sandbox-exec` is made for it: it waits outside the app for the command to end, and ends as that does.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, chdir, fork, setsid};
use serde::{Deserialize, Serialize};

use super::{Program, become_program, close_from, reset_oom_score, single_threaded};
use crate::sandbox::{Cgroup, SandboxError, SandboxSpec, own_exe};

/// The first descriptor that the command does not get.
const FIRST_CLOSED: RawFd = 3;
/// As shells say that a command is not there, or cannot be run.
const CANNOT_RUN: u8 = 127;

/// Beside whom, and what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BesideSpec {
    /// The app's first process, as the host numbers it.
    pub pid: i32,
    /// Where that process is: a number that was given to another process since is not there.
    pub run: Cgroup,
    /// What to run and as whom, in a control group that exists. Root, network and host name are the app's.
    pub sandbox: SandboxSpec,
}

/// Runs the command on this process's standard descriptors, and gives its exit status as a shell has it: its own, or 128
/// and the signal that ended it. What goes wrong before it runs is said on standard error.
pub fn exec_beside(spec: &BesideSpec) -> ExitCode {
    match start(spec).and_then(wait) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(CANNOT_RUN)
        }
    }
}

fn start(spec: &BesideSpec) -> Result<Pid, SandboxError> {
    let program = Program::new(&spec.sandbox)?;
    single_threaded()?;
    own_exe::check()?;
    let app = open_process(spec)?;
    // Of this process's children; itself it stays outside, where the app cannot see it.
    setns(app.as_fd(), CloneFlags::CLONE_NEWPID)
        .map_err(SandboxError::step("enter the app's process numbers"))?;
    // SAFETY: single_threaded() saw no other thread, so no lock can be held by one that the child lacks.
    match unsafe { fork() }.map_err(SandboxError::step("fork the command's process"))? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let Err(error) = become_command(spec, &app, &program);
            eprintln!("{error}");
            // SAFETY: ends the process without running anything that belongs to its caller.
            unsafe { libc::_exit(CANNOT_RUN.into()) }
        }
    }
}

/// The app's first process, held, so that its number cannot come to mean another.
fn open_process(spec: &BesideSpec) -> Result<OwnedFd, SandboxError> {
    let gone = || SandboxError::Start("the app has ended; start it, and run the command again".to_owned());
    // SAFETY: touches no memory. Linux 5.3 and later.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, spec.pid, 0) };
    let number = i32::try_from(number)
        .ok()
        .filter(|number| *number >= 0)
        .ok_or_else(gone)?;
    // SAFETY: the kernel just made this descriptor, and nobody else knows it.
    let process = unsafe { OwnedFd::from_raw_fd(number) };
    if spec.run.procs()?.contains(&spec.pid) {
        Ok(process)
    } else {
        Err(gone())
    }
}

fn become_command(spec: &BesideSpec, app: &OwnedFd, program: &Program) -> Result<Infallible, SandboxError> {
    setsid().map_err(SandboxError::step("begin a session"))?;
    spec.sandbox.cgroup.join_self()?;
    reset_oom_score();
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET;
    setns(app.as_fd(), namespaces).map_err(SandboxError::step("enter the app's namespaces"))?;
    chdir("/").map_err(SandboxError::step("enter the root"))?;
    close_from(FIRST_CLOSED)?;
    become_program(&spec.sandbox, program)
}

fn wait(command: Pid) -> Result<u8, SandboxError> {
    loop {
        match waitpid(command, None) {
            Ok(WaitStatus::Exited(_, status)) => return Ok(u8::try_from(status & 0xff).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(by_signal(signal)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(SandboxError::step("wait for the command")(io::Error::from(error))),
        }
    }
}

fn by_signal(signal: Signal) -> u8 {
    u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)
}
