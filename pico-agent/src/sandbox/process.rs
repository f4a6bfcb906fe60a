//! How a fresh process becomes an app: into the control group and namespaces, onto the root file
//! system, out of every right that is not the app's, and `execve`.
//!
//! Owns the order of these steps. Must not be called by a process with threads (it forks, and changes
//! what all threads share) nor by one that is to live on: `pico-shim sandbox-init` is made for it. What
//! goes wrong before the app's program runs is told through the report, see [`read_report`].
//! [`beside`]: the same for a command that joins an app which runs already.

pub mod beside;

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::{Mode, SFlag, fstat, umask};
use nix::unistd::{
    ForkResult, Gid, Uid, chdir, execve, fchown, fork, pipe2, pivot_root, setgroups, sethostname, setresgid,
    setresuid, setsid,
};

use super::users::Identity;
use super::{SandboxError, SandboxSpec, caps, seccomp, users};

/// `PATH` of an app whose owner gives none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Descriptor of the report in pid 1, the first after the standard ones.
const REPORT: RawFd = 3;
/// A longer report is cut: it is one message.
const MAX_REPORT: u64 = 16 << 10;
/// Group `tty`, owner of new terminals, the same number in every distribution.
const DEVPTS: &str = "newinstance,ptmxmode=0666,mode=0620,gid=5";
/// Open files: what systemd gives. Programs that can use more than 1024 (the bound of select(2)) raise
/// the soft limit by themselves.
const NOFILE: (u64, u64) = (1024, 524_288);
const STACK: u64 = 8 << 20;

/// Turns the calling process, which must be single-threaded, into the parent of the app's pid 1.
///
/// `spec.root` is mounted already in the caller's mount namespace. The process numbered in the report
/// becomes the app; it is this process's child, and so passes to the nearest subreaper when this
/// process ends at once after writing it. File descriptors 1 and 2 become the app's; all others are
/// closed in it. Returns only if something fails before the fork; the report then tells it, too.
pub fn exec_in_sandbox(spec: &SandboxSpec, report: OwnedFd) -> SandboxError {
    let mut report = File::from(report);
    let error = match start(spec, &mut report) {
        Ok(never) => match never {},
        Err(e) => e,
    };
    // Whoever reads the report may be gone; there is no one else to tell.
    _ = write!(report, "{error}");
    error
}

/// Reads what [`exec_in_sandbox`] reports, to its end: the host's number of the app's pid 1, once its
/// program runs, or what went wrong. The writing end must be open in no one else.
pub fn read_report(report: impl Read) -> Result<i32, SandboxError> {
    let mut text = Vec::new();
    report
        .take(MAX_REPORT)
        .read_to_end(&mut text)
        .map_err(SandboxError::step("read the sandbox's report"))?;
    parse_report(&String::from_utf8_lossy(&text))
}

/// `pid N` on the first line, then nothing, or an error.
fn parse_report(text: &str) -> Result<i32, SandboxError> {
    let (first, rest) = text.split_once('\n').unwrap_or(("", text));
    let pid = first.strip_prefix("pid ").and_then(|n| n.parse().ok());
    match (pid, rest) {
        (Some(pid), "") => Ok(pid),
        (Some(_), error) => Err(SandboxError::Start(error.to_owned())),
        (None, _) if text.is_empty() => Err(SandboxError::Start(
            "the process that was to become the app was killed before it could".to_owned(),
        )),
        (None, _) => Err(SandboxError::Start(text.to_owned())),
    }
}

fn start(spec: &SandboxSpec, report: &mut File) -> Result<Infallible, SandboxError> {
    let program = Program::new(spec)?;
    single_threaded()?;
    super::own_exe::check()?;
    spec.cgroup.join_self()?;
    reset_oom_score();
    let netns =
        File::open(&spec.netns).map_err(SandboxError::file("open the network namespace", &spec.netns))?;
    setns(&netns, CloneFlags::CLONE_NEWNET)
        .map_err(SandboxError::file("enter the network namespace", &spec.netns))?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID;
    unshare(namespaces).map_err(SandboxError::step("make the app's namespaces"))?;
    // Pid 1 goes ahead when its number is in the report: the two write to the same pipe.
    let (go, told) = pipe2(OFlag::O_CLOEXEC).map_err(SandboxError::step("make a pipe"))?;
    // SAFETY: single_threaded() saw no other thread, so no lock can be held by one that the child lacks.
    match unsafe { fork() }.map_err(SandboxError::step("fork the app's first process"))? {
        ForkResult::Parent { child } => {
            let written = writeln!(report, "pid {child}").and_then(|()| File::from(told).write_all(b"."));
            // SAFETY: ends the process without running anything that belongs to its caller.
            unsafe { libc::_exit(i32::from(written.is_err())) }
        }
        ForkResult::Child => {
            drop(told);
            if matches!(File::from(go).read(&mut [0]), Ok(1)) {
                let Err(error) = become_app(spec, &program, report);
                // become_app moves the report there; before that, the old descriptor is open still.
                _ = write!(report, "{error}");
            }
            // SAFETY: as above.
            unsafe { libc::_exit(127) }
        }
    }
}

fn single_threaded() -> Result<(), SandboxError> {
    let threads = fs::read_dir("/proc/self/task")
        .map_err(SandboxError::file("list", "/proc/self/task"))?
        .count();
    let source = io::Error::other("the process has several threads; run it as `pico-shim sandbox-init`");
    if threads == 1 {
        Ok(())
    } else {
        Err(SandboxError::Step {
            action: "enter a sandbox",
            source,
        })
    }
}

/// An app must not inherit the protection from the out-of-memory killer that a service manager may have
/// given the agent. Raising the score is always allowed.
fn reset_oom_score() {
    let path = "/proc/self/oom_score_adj";
    if fs::read_to_string(path).is_ok_and(|score| score.starts_with('-')) {
        _ = fs::write(path, "0");
    }
}

/// In pid 1 of the new namespaces.
fn become_app(spec: &SandboxSpec, program: &Program, report: &mut File) -> Result<Infallible, SandboxError> {
    setsid().map_err(SandboxError::step("begin a session"))?;
    enter_root(&spec.root.mountpoint)?;
    sethostname(&spec.hostname).map_err(SandboxError::step("set the host name"))?;
    no_input()?;
    report_as_third(report)?;
    close_from(REPORT + 1)?;
    become_program(spec, program)
}

/// From a process that is in its sandbox already, with all rights, to the owner's program.
fn become_program(spec: &SandboxSpec, program: &Program) -> Result<Infallible, SandboxError> {
    let policy = caps::Policy::new(&spec.capabilities)?;
    let identity = users::lookup(Path::new("/"), spec.user.as_deref())?;
    hand_over_pipes(&identity);
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    limits()?;
    reset_signals()?;
    // Pages of 2 MiB would hide which 4 KiB pages are in use, and make a checkpoint of them large.
    // SAFETY: the operation takes a number and touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) } != 0 {
        return Err(SandboxError::step("switch off transparent huge pages")(
            Errno::last(),
        ));
    }
    policy.bound()?;
    if spec.no_new_privs {
        nix::sys::prctl::set_no_new_privs().map_err(SandboxError::step("set no_new_privs"))?;
    }
    // Before the capabilities go: without no_new_privs it takes one of them. Nothing that follows is
    // on the filter's list.
    if spec.seccomp {
        seccomp::install(&policy).map_err(SandboxError::step("install the system call filter"))?;
    }
    become_user(&identity, &policy)?;
    chdir(&spec.workdir).map_err(|e| SandboxError::Command {
        command: program.name.clone(),
        why: format!(
            "cannot start in {} of the app's root file system: {}; correct `workdir` or make the directory",
            spec.workdir.display(),
            io::Error::from(e)
        ),
    })?;
    program.exec(&identity)
}

/// Makes `root` the root, with nothing of the old one left, and mounts what belongs to the new
/// namespaces. `/proc` is read-only whole: an app that is root could else write `/proc/sys`.
fn enter_root(root: &Path) -> Result<(), SandboxError> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(SandboxError::step("cut the mounts off from the host's"))?;
    chdir(root).map_err(SandboxError::file("enter", root))?;
    // The old root comes to lie over the new one, at the same place, from where it is taken.
    pivot_root(".", ".").map_err(SandboxError::file("make the root", root))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(SandboxError::step("unmount the host's root"))?;
    chdir("/").map_err(SandboxError::step("enter the root"))?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let proc_flags = quiet | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
    mount(Some("proc"), "/proc", Some("proc"), proc_flags, none)
        .map_err(SandboxError::step("mount /proc"))?;
    mount(Some("devpts"), "/dev/pts", Some("devpts"), quiet, Some(DEVPTS))
        .map_err(SandboxError::step("mount /dev/pts"))
}

/// Standard input from the app's own `/dev/null`.
fn no_input() -> Result<(), SandboxError> {
    let null =
        open("/dev/null", OFlag::O_RDONLY, Mode::empty()).map_err(SandboxError::file("open", "/dev/null"))?;
    nix::unistd::dup2_stdin(&null).map_err(SandboxError::step("arrange file descriptors"))
}

/// Makes the report number 3, until the exec closes it.
fn report_as_third(report: &mut File) -> Result<(), SandboxError> {
    let step = || SandboxError::step("arrange file descriptors");
    if report.as_raw_fd() == REPORT {
        fcntl(report.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(step())?;
        return Ok(());
    }
    // SAFETY: dup3 touches no memory. Number 3 may belong to a Rust object of the caller; none of
    // them is used, or dropped, in this process any more: it ends by exec or _exit.
    if unsafe { libc::dup3(report.as_raw_fd(), REPORT, libc::O_CLOEXEC) } < 0 {
        return Err(step()(Errno::last()));
    }
    // SAFETY: number 3 is open since the line above, and this is its only owner.
    let moved = unsafe { File::from_raw_fd(REPORT) };
    std::mem::forget(std::mem::replace(report, moved));
    Ok(())
}

/// Closes all descriptors from `first` on. None of them is used, or dropped, afterwards: this process ends by exec or
/// _exit.
fn close_from(first: RawFd) -> Result<(), SandboxError> {
    // SAFETY: touches no memory; see above for the objects that own these numbers. Linux 5.9 and later.
    if unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } != 0 {
        return Err(SandboxError::step("arrange file descriptors")(Errno::last()));
    }
    Ok(())
}

/// A program that is not root may open `/dev/stdout` anew, which takes the right to the pipe behind it.
fn hand_over_pipes(identity: &Identity) {
    for stream in [io::stdout().as_fd(), io::stderr().as_fd()] {
        if fstat(stream).is_ok_and(|s| SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO)
        {
            // Only a convenience.
            _ = fchown(stream, Some(Uid::from_raw(identity.uid)), None);
        }
    }
}

/// Never above what we have: raising a hard limit takes CAP_SYS_RESOURCE, which a restore would then
/// need, too.
fn limits() -> Result<(), SandboxError> {
    for (resource, soft, hard) in [
        (Resource::RLIMIT_CORE, 0, 0),
        (Resource::RLIMIT_NOFILE, NOFILE.0, NOFILE.1),
        (Resource::RLIMIT_STACK, STACK, u64::MAX),
    ] {
        let step = || SandboxError::step("set resource limits");
        let (_, ours) = getrlimit(resource).map_err(step())?;
        let hard = hard.min(ours);
        setrlimit(resource, soft.min(hard), hard).map_err(step())?;
    }
    Ok(())
}

/// Ignored signals stay ignored across exec, and Rust programs ignore SIGPIPE.
fn reset_signals() -> Result<(), SandboxError> {
    // By the system call itself: the C library refuses the two signals that it keeps for its threads,
    // which our own parents may have ignored.
    let default = [0_u64; 4];
    for signal in 1..=64 {
        // SAFETY: `default` is a zeroed kernel sigaction (4 words, one of them unused on some
        // architectures): default action, no flags, empty mask of 8 bytes. SIGKILL and SIGSTOP refuse,
        // which is fine.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0, 8) };
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .map_err(SandboxError::step("unblock signals"))
}

fn become_user(identity: &Identity, policy: &caps::Policy) -> Result<(), SandboxError> {
    let step = || SandboxError::step("become the app's user");
    let groups: Vec<Gid> = identity.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    setgroups(&groups).map_err(step())?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    setresgid(gid, gid, gid).map_err(step())?;
    setresuid(uid, uid, uid).map_err(step())?;
    policy.become_effective(uid.is_root())?;
    Ok(())
}

/// What is executed, in the form the kernel wants it, made while errors are still easy to tell.
struct Program {
    /// As the owner wrote it.
    name: String,
    arguments: Vec<CString>,
    env: Vec<(String, String)>,
}

impl Program {
    fn new(spec: &SandboxSpec) -> Result<Program, SandboxError> {
        let refused = |what, why| SandboxError::Spec { what, why };
        let name = spec.command.first().filter(|n| !n.is_empty());
        let name = name
            .ok_or(refused("the command", "is empty; give a program"))?
            .clone();
        let zero = "contains a zero byte; remove it";
        let arguments = spec.command.iter().map(|a| CString::new(a.as_bytes()));
        let arguments = arguments
            .collect::<Result<_, _>>()
            .map_err(|_| refused("the command", zero))?;
        for (key, value) in &spec.env {
            if key.is_empty() || key.contains(['=', '\0']) {
                return Err(refused(
                    "a variable of the environment",
                    "has no name, or one with '=' in it",
                ));
            }
            if value.contains('\0') {
                return Err(refused("a variable of the environment", zero));
            }
        }
        Ok(Program {
            name,
            arguments,
            env: spec.env.clone(),
        })
    }

    /// The environment with what every program expects to find.
    fn environment(&self, identity: &Identity) -> Vec<(String, String)> {
        let mut env = self.env.clone();
        let mut default = |key: &str, value: &str| {
            // A home with a zero byte in it comes from the app's own /etc/passwd.
            if !env.iter().any(|(k, _)| k == key) && !value.contains('\0') {
                env.push((key.to_owned(), value.to_owned()));
            }
        };
        default("PATH", PATH);
        default("HOME", &identity.home);
        if let Some(name) = &identity.name {
            default("USER", name);
            default("LOGNAME", name);
        }
        env
    }

    fn exec(&self, identity: &Identity) -> Result<Infallible, SandboxError> {
        let env = self.environment(identity);
        let path = env
            .iter()
            .find(|(k, _)| k == "PATH")
            .map_or(PATH, |(_, v)| v.as_str());
        let variables: Vec<CString> = env
            .iter()
            .filter_map(|(k, v)| CString::new(format!("{k}={v}")).ok())
            .collect();
        let mut reason = Errno::ENOENT;
        for file in candidates(&self.name, path) {
            let Ok(file) = CString::new(file.as_os_str().as_bytes()) else {
                continue;
            };
            let Err(e) = execve(&file, &self.arguments, &variables);
            match e {
                Errno::ENOENT if !Path::new(OsStr::from_bytes(file.as_bytes())).exists() => {}
                Errno::ENOTDIR => {}
                // As shells do: a file without the right to execute it does not end the search.
                Errno::EACCES => reason = e,
                e => return Err(self.refused(e, &file, path)),
            }
        }
        Err(self.refused(reason, &CString::default(), path))
    }

    fn refused(&self, reason: Errno, file: &CString, path: &str) -> SandboxError {
        let why = match reason {
            Errno::ENOENT if !file.is_empty() => {
                "cannot run: the interpreter or loader it names is not in the app's \
                 root file system; add it there"
                    .to_owned()
            }
            Errno::ENOENT if self.name.contains('/') => {
                "not found in the app's root file system; correct `command`, or `root`".to_owned()
            }
            Errno::ENOENT => {
                format!(
                    "not found in {path} of the app's root file system; write its whole path, or correct `root`"
                )
            }
            Errno::EACCES => {
                "is there, but the app's user may not execute it; correct its mode, or `user`".to_owned()
            }
            Errno::ENOEXEC => {
                "is no program for this machine; a script needs a first line like #!/bin/sh".to_owned()
            }
            e => format!("cannot be executed: {}", io::Error::from(e)),
        };
        SandboxError::Command {
            command: self.name.clone(),
            why,
        }
    }
}

/// Where a command may be: itself if it is a path, and in every directory of `PATH` otherwise.
fn candidates(name: &str, path: &str) -> Vec<PathBuf> {
    if name.contains('/') {
        return vec![name.into()];
    }
    path.split(':')
        .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name))
        .collect()
}

#[cfg(test)]
mod tests;
