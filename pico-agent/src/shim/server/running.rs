//! From a request to a running app, by a fresh start or a restore, and what is left of one that fails.
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::SockType;

use super::ends::{Deadline, RESTORE_TIMEOUT};
use super::{RESTORE_LOG, Shim, Work, micros, open_dir, source};
use crate::checkpoint::local::IMAGES_DIR;
use crate::clocks;
use crate::criu::rpc::{self, Common};
use crate::failpoint;
use crate::pager::Pager;
use crate::sandbox::{SandboxSpec, read_report};
use crate::shim::pages::LocalPages;
use crate::shim::protocol::{Event, Phase, decode_pages};
use crate::shim::restore;
use crate::shim::socket::listen_at;
use crate::shim::stdio::LogPipe;
use crate::shim::swrk::{Place, Swrk};

impl Shim {
    pub(super) fn open_stdio(&mut self) -> io::Result<()> {
        let pipes = [LogPipe::new()?, LogPipe::new()?];
        for (pipe, data) in pipes.iter().zip([source::STDOUT, source::STDERR]) {
            self.epoll
                .add(pipe.read.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, data))?;
        }
        self.stdio_inodes = [pipes[0].inode, pipes[1].inode];
        self.stdio = Some(pipes);
        Ok(())
    }

    pub(super) fn start(&mut self, spec: &SandboxSpec) -> Result<(), String> {
        self.phase = Phase::Starting;
        let words = |error: io::Error| format!("the app cannot be started: {error}");
        self.open_stdio().map_err(words)?;
        let Some([out, err]) = &self.stdio else {
            return Err("no log pipes".into());
        };
        let bytes = serde_json::to_vec(spec).map_err(|error| words(error.into()))?;
        let (report, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| words(error.into()))?;
        let clone = |fd: &OwnedFd| fd.try_clone().map(Stdio::from).map_err(words);
        let mut child = {
            fcntl(theirs.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).map_err(|error| words(error.into()))?;
            Command::new("/proc/self/exe")
                .args(["sandbox-init", &theirs.as_raw_fd().to_string()])
                .stdin(Stdio::piped())
                .stdout(clone(&out.write)?)
                .stderr(clone(&err.write)?)
                .spawn()
                .map_err(words)?
        };
        drop(theirs);
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&bytes).map_err(words)?;
        }
        let pid = read_report(File::from(report)).map_err(|error| error.to_string())?;
        self.pid = Some(pid);
        Ok(())
    }

    pub(super) fn running(&mut self, since: Instant) {
        self.close_app_ends();
        self.phase = Phase::Running;
        if let Some(pid) = self.pid {
            self.say(&Event::Running {
                pid,
                took_us: micros(since.elapsed()),
            });
        }
    }

    /// The app holds its ends itself; while the shim held them too, it would never see the last one close.
    pub(super) fn close_app_ends(&mut self) {
        let Some(pipes) = &mut self.stdio else { return };
        for pipe in pipes {
            if let Ok(null) = File::open("/dev/null") {
                pipe.write = null.into();
            }
        }
    }

    /// Ends whatever there is of an app that did not come to run.
    pub(super) fn failed_to_run(&mut self, reason: String) {
        let permanent = std::mem::take(&mut self.permanent);
        self.work = Work::None;
        self.kill_app();
        self.drain_logs();
        self.phase = Phase::Ended;
        self.say(&Event::Failed {
            reason,
            running: false,
            permanent,
        });
        self.done = true;
    }

    pub(super) fn kill_app(&mut self) {
        let killed = self
            .config
            .cgroup
            .kill()
            .and_then(|()| self.config.cgroup.wait_empty(Duration::from_secs(10)));
        if let Err(error) = killed {
            eprintln!("cannot end the app: {error}");
        }
        self.pager = None;
    }

    /// A CRIU in the app's network namespace and cgroup, with the app's ends of the log pipes.
    pub(super) fn wait_for_restore(&self) -> io::Result<Swrk> {
        let inherit: Vec<i32> = self.stdio.iter().flatten().map(LogPipe::write_number).collect();
        let place = Place {
            netns: &self.config.netns,
            cgroup: Some(&self.config.cgroup),
            inherit: &inherit,
        };
        Swrk::spawn(&self.config.criu, place)
    }

    pub(super) fn begin_restore(&mut self, checkpoint: &Path, ahead: Option<&Path>) -> Result<(), String> {
        let since = Instant::now();
        self.phase = Phase::Starting;
        let words = |action: &str, error: &dyn std::fmt::Display| format!("{action}: {error}");
        failpoint::reach("shim.restoring");
        let images = self.config.work.join(IMAGES_DIR);
        let _ = fs::remove_dir_all(&images);
        let now = clocks::read().map_err(|error| words("the clocks", &error))?;
        let prepared = restore::prepare(checkpoint, &images, &self.config.root, &now).map_err(|error| {
            self.permanent = error.is_permanent();
            error.to_string()
        })?;
        let pages = LocalPages::new(&self.config.pages).map_err(|error| error.to_string())?;
        let mut pager = Pager::new(pages, prepared.index.objects);
        match ahead.map(fs::read) {
            None => {}
            Some(Ok(list)) => pager.plan(decode_pages(&list)),
            // It comes by faults, then.
            Some(Err(error)) => eprintln!("the list of predicted pages: {error}"),
        }
        self.pager = Some(pager);

        let lazy = self.config.work.join("lazy-pages.socket");
        let _ = fs::remove_file(&lazy);
        let listener =
            listen_at(&lazy, SockType::Stream).map_err(|error| words("the lazy-pages socket", &error))?;
        self.watch(listener.as_fd(), source::LAZY_LISTENER)
            .map_err(|error| error.to_string())?;
        self.lazy_listener = Some(listener);

        let swrk = self
            .waiting
            .take()
            .ok_or("this shim was not started to restore an app")?;
        self.watch(swrk.socket(), source::CRIU)
            .map_err(|error| error.to_string())?;
        let Some([out, err]) = &self.stdio else {
            return Err("no log pipes".into());
        };
        let names = prepared.dump.stdio.map(LogPipe::criu_name);
        let inherit = [
            (names[0].clone(), out.write_number()),
            (names[1].clone(), err.write_number()),
        ];
        let (images, work) = (open_dir(&images)?, open_dir(&self.config.work)?);
        let common = Common {
            images: images.as_raw_fd(),
            work: work.as_raw_fd(),
            log: RESTORE_LOG,
        };
        let root = self.config.root.mountpoint.to_string_lossy();
        swrk.send(&rpc::restore(&common, &root, &inherit))
            .map_err(|error| words("CRIU", &error))?;
        failpoint::reach("shim.told");
        self.criu_dirs = Some([images, work]);
        self.work = Work::Restore {
            swrk,
            spaces: prepared.index.spaces,
            since,
        };
        self.set_deadline(Some((Deadline::Restore, RESTORE_TIMEOUT)));
        Ok(())
    }
}
