//! The shim's event loop: one thread, one epoll, one app.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, SockType, recv};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::dump::Assembly;
use super::keeper::Keeper;
use super::pages::LocalPages;
use super::protocol::{DumpSummary, Event, Exit, MAX_PACKET, Phase, Request, ShimConfig, VERSION};
use super::restore;
use super::socket::{accept, listen_at, receive_packet, receive_with_fd, send_packet};
use super::stdio::LogPipe;
use super::swrk::{self, Place, Swrk};
use crate::checkpoint::index::AddressSpace;
use crate::checkpoint::local::{Clocks, IMAGES_DIR};
use crate::criu::rpc::{self, Common, Response};
use crate::logs::{LogWriter, Stream};
use crate::pager::{Effect, Pager, Token};
use crate::sandbox::{SandboxSpec, read_report};

/// `LAZY_PAGES_RESTORE_FINISHED` of CRIU's lazy-pages protocol.
const RESTORE_FINISHED: u32 = 0x5253_5446;
/// A restore that takes longer is hung: CRIU waits for ever when a task it restores dies.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(30);
/// How the agent finds how the app ended when it was away itself; in the working directory.
pub const EXIT_FILE: &str = "exit.json";
/// CRIU's logs, in the working directory.
const DUMP_LOG: &str = "dump.log";
const RESTORE_LOG: &str = "restore.log";

/// What an epoll event is about. Userfaultfds come after these.
mod source {
    pub const SIGNAL: u64 = 0;
    pub const LISTENER: u64 = 1;
    pub const AGENT: u64 = 2;
    pub const CRIU: u64 = 3;
    pub const LAZY_LISTENER: u64 = 4;
    pub const LAZY: u64 = 5;
    pub const KEEPER: u64 = 6;
    pub const TIMER: u64 = 7;
    pub const STDOUT: u64 = 8;
    pub const STDERR: u64 = 9;
    pub const MEMORY: u64 = 16;
}

/// Why a shim cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The kernel refused a step.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The first packet is no configuration.
    #[error("the configuration cannot be read: {0}")]
    Config(String),
}

fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> ShimError {
    move |source| ShimError::System {
        action,
        source: source.into(),
    }
}

/// What CRIU is doing for us.
enum Work {
    None,
    /// Forked children are being filled before a dump.
    Filling {
        checkpoint: PathBuf,
        generation: u64,
        since: Instant,
    },
    Dump {
        swrk: Swrk,
        checkpoint: PathBuf,
        generation: u64,
        since: Instant,
        at: DumpStep,
    },
    Restore {
        swrk: Swrk,
        spaces: Vec<(u32, AddressSpace)>,
        since: Instant,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum DumpStep {
    Dumping,
    /// Dumped and checked; the agent decides.
    Deciding,
    /// The agent refused, or the dump is no checkpoint: CRIU lets the app run on.
    Refused,
    /// CRIU ends the app.
    Committed,
}

/// What a timer is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deadline {
    Restore,
    Fault,
    Stop,
}

struct Shim {
    config: ShimConfig,
    epoll: Epoll,
    signals: SignalFd,
    listener: OwnedFd,
    agent: Option<OwnedFd>,
    /// Packets the agent has not taken yet.
    outbox: VecDeque<Vec<u8>>,
    keeper: Keeper,
    timer: TimerFd,
    deadline: Option<Deadline>,
    lazy_listener: Option<OwnedFd>,
    lazy: Option<OwnedFd>,
    pager: Option<Pager<LocalPages>>,
    work: Work,
    /// A CRIU that waits to be told what to restore.
    waiting: Option<Swrk>,
    /// Directories that CRIU opens through this process while it works.
    criu_dirs: Option<[File; 2]>,
    /// CRIU has dumped and ended the app.
    dumped: bool,
    stdio: Option<[LogPipe; 2]>,
    logs: [LogWriter; 2],
    stdio_inodes: [u64; 2],
    pid: Option<i32>,
    phase: Phase,
    /// Why the shim itself ended the app.
    reason: Option<String>,
    refusal: Option<String>,
    /// What failed cannot be mended by trying again.
    permanent: bool,
    done: bool,
}

/// Runs a shim whose first agent is on `agent`; its first packet is the [`ShimConfig`].
///
/// # Errors
/// When it cannot be set up. Once it serves an app, it ends only with that.
pub fn run(agent: OwnedFd) -> Result<(), ShimError> {
    let mut buffer = vec![0; MAX_PACKET];
    let len = receive_packet(agent.as_fd(), &mut buffer).map_err(system("receive the configuration"))?;
    let config: ShimConfig =
        serde_json::from_slice(&buffer[..len]).map_err(|error| ShimError::Config(error.to_string()))?;
    drop(buffer);
    Shim::new(config, agent)?.serve()
}

impl Shim {
    fn new(config: ShimConfig, agent: OwnedFd) -> Result<Shim, ShimError> {
        let _ = nix::sys::prctl::set_name(c"pico-shim");
        // Fails only for a session leader, which is as good.
        let _ = nix::unistd::setsid();
        config
            .shim_cgroup
            .join_self()
            .map_err(|error| ShimError::Config(error.to_string()))?;
        nix::sys::prctl::set_child_subreaper(true).map_err(system("become the subreaper"))?;
        fs::create_dir_all(&config.work).map_err(system("create the working directory"))?;
        own_mounts(&config).map_err(system("set up the mount namespace"))?;
        let keeper = Keeper::fork(&config.cgroup).map_err(system("fork the keeper"))?;

        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().map_err(system("block SIGCHLD"))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(system("watch SIGCHLD"))?;
        let _ = fs::remove_file(&config.socket);
        let listener = listen_at(&config.socket, SockType::SeqPacket).map_err(system("listen for agents"))?;
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )
        .map_err(system("make a timer"))?;
        let log = |stream: Stream| LogWriter::open(&config.logs, stream, config.log_bytes, config.log_files);
        let logs = [
            log(Stream::Stdout).map_err(system("open the log of stdout"))?,
            log(Stream::Stderr).map_err(system("open the log of stderr"))?,
        ];
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system("make an epoll"))?;
        fcntl(agent.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
            .map_err(system("keep the agent's socket"))?;
        let mut shim = Shim {
            config,
            epoll,
            signals,
            listener,
            agent: None,
            outbox: VecDeque::new(),
            keeper,
            timer,
            deadline: None,
            lazy_listener: None,
            lazy: None,
            pager: None,
            work: Work::None,
            waiting: None,
            criu_dirs: None,
            dumped: false,
            stdio: None,
            logs,
            stdio_inodes: [0; 2],
            pid: None,
            phase: Phase::Idle,
            reason: None,
            refusal: None,
            permanent: false,
            done: false,
        };
        shim.watch(shim.signals.as_fd(), source::SIGNAL)?;
        shim.watch(shim.listener.as_fd(), source::LISTENER)?;
        shim.watch(shim.timer.as_fd(), source::TIMER)?;
        shim.watch(shim.keeper.socket(), source::KEEPER)?;
        if shim.config.restores {
            shim.open_stdio().map_err(system("make the log pipes"))?;
            shim.waiting = Some(shim.wait_for_restore().map_err(system("start CRIU"))?);
        }
        shim.adopt(agent)?;
        Ok(shim)
    }

    fn watch(&self, fd: BorrowedFd<'_>, data: u64) -> Result<(), ShimError> {
        self.epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, data))
            .map_err(system("watch a descriptor"))
    }

    fn serve(mut self) -> Result<(), ShimError> {
        let mut events = [EpollEvent::empty(); 32];
        while !self.done {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(system("wait for events")(error)),
            };
            // Faults first: a thread waits for each of them.
            for event in events[..count]
                .iter()
                .filter(|event| event.data() >= source::MEMORY)
            {
                self.memory_ready(Token(event.data() - source::MEMORY));
            }
            for event in events[..count]
                .iter()
                .filter(|event| event.data() < source::MEMORY)
            {
                match event.data() {
                    source::SIGNAL => self.reap()?,
                    source::LISTENER => self.accept_agent()?,
                    source::AGENT => self.agent_ready(event.events()),
                    source::CRIU => self.criu_ready(),
                    source::LAZY_LISTENER => self.accept_lazy()?,
                    source::LAZY => self.lazy_ready(),
                    source::KEEPER => self.replace_keeper()?,
                    source::TIMER => self.timer_expired(),
                    source::STDOUT => self.drain_log(0),
                    source::STDERR => self.drain_log(1),
                    _ => {}
                }
            }
        }
        let _ = fs::remove_file(&self.config.socket);
        Ok(())
    }

    // ---- agents ----

    fn accept_agent(&mut self) -> Result<(), ShimError> {
        match accept(self.listener.as_fd()) {
            Ok(agent) => self.adopt(agent),
            Err(_) => Ok(()),
        }
    }

    /// Takes a new agent; the one before is gone or about to be.
    fn adopt(&mut self, agent: OwnedFd) -> Result<(), ShimError> {
        self.agent_lost();
        fcntl(agent.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(system("set up the agent's socket"))?;
        self.watch(agent.as_fd(), source::AGENT)?;
        self.agent = Some(agent);
        self.say(&Event::Hello {
            version: VERSION,
            phase: self.phase,
            pid: self.pid,
        });
        if self.deadline == Some(Deadline::Fault) {
            self.set_deadline(None);
        }
        for (object, block) in self.pager.as_ref().map(Pager::outstanding).unwrap_or_default() {
            self.say(&Event::Need { object, block });
        }
        Ok(())
    }

    fn agent_lost(&mut self) {
        if self.agent.take().is_none() {
            return;
        }
        self.outbox.clear();
        // Nothing was asked of this shim yet, and nobody will.
        if self.phase == Phase::Idle {
            self.done = true;
        }
        if let Work::Dump {
            at: DumpStep::Deciding,
            ..
        } = self.work
        {
            self.decide(false);
        }
        self.check_fault_deadline();
    }

    fn say(&mut self, event: &Event) {
        // Serialising plain data does not fail.
        let Ok(bytes) = serde_json::to_vec(event) else {
            return;
        };
        self.outbox.push_back(bytes);
        self.flush();
    }

    fn flush(&mut self) {
        let Some(agent) = &self.agent else {
            self.outbox.clear();
            return;
        };
        let mut lost = false;
        while let Some(packet) = self.outbox.front() {
            match send_packet(agent.as_fd(), packet, None) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(Errno::EAGAIN) => break,
                Err(_) => {
                    lost = true;
                    break;
                }
            }
        }
        let writable = if self.outbox.is_empty() {
            EpollFlags::empty()
        } else {
            EpollFlags::EPOLLOUT
        };
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN | writable, source::AGENT);
        // Fails only for a descriptor that is not watched, and this one is.
        let _ = self.epoll.modify(agent.as_fd(), &mut event);
        if lost {
            self.agent_lost();
        }
    }

    fn agent_ready(&mut self, events: EpollFlags) {
        if events.contains(EpollFlags::EPOLLOUT) {
            self.flush();
        }
        let mut buffer = vec![0; MAX_PACKET];
        while let Some(agent) = &self.agent {
            match receive_packet(agent.as_fd(), &mut buffer) {
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                Ok(0) | Err(_) => self.agent_lost(),
                Ok(len) => match serde_json::from_slice(&buffer[..len]) {
                    Ok(request) => self.request(request),
                    Err(error) => {
                        eprintln!("a request that cannot be read: {error}");
                        self.agent_lost();
                    }
                },
            }
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Hello { version } if version == VERSION => {}
            Request::Hello { version } => {
                eprintln!("an agent of protocol version {version}; this shim speaks {VERSION}");
                self.agent_lost();
            }
            Request::Start(spec) => {
                let since = Instant::now();
                match self.start(&spec) {
                    Ok(()) => self.running(since),
                    Err(reason) => self.failed_to_run(reason),
                }
            }
            Request::Restore { checkpoint } => {
                if let Err(reason) = self.begin_restore(&checkpoint) {
                    self.failed_to_run(reason);
                }
            }
            Request::Dump {
                checkpoint,
                generation,
            } => {
                if self.phase != Phase::Running {
                    self.say(&Event::Failed {
                        reason: "the app does not run".into(),
                        running: false,
                        permanent: false,
                    });
                    return;
                }
                self.phase = Phase::Dumping;
                self.work = Work::Filling {
                    checkpoint,
                    generation,
                    since: Instant::now(),
                };
                self.continue_filling();
            }
            Request::Commit { accept } => self.decide(accept),
            Request::Block { object, block } => {
                let arrived = self.pager.as_mut().map(|pager| pager.arrived(object, block));
                self.pager_did(arrived);
            }
            Request::Lost {
                object,
                block,
                reason,
            } => {
                self.end_app(format!(
                    "block {block} of page object {object} could not be had: {reason}"
                ));
            }
            Request::Stop { grace_ms } => {
                if let Some(pid) = self.pid {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                    self.set_deadline(Some((Deadline::Stop, Duration::from_millis(grace_ms.max(1)))));
                } else {
                    self.done = true;
                }
            }
            Request::Stats => {
                let stats = self.pager.as_ref().map(Pager::stats).unwrap_or_default();
                self.say(&Event::Stats(stats));
            }
        }
    }

    // ---- starting ----

    fn open_stdio(&mut self) -> io::Result<()> {
        let pipes = [LogPipe::new()?, LogPipe::new()?];
        for (pipe, data) in pipes.iter().zip([source::STDOUT, source::STDERR]) {
            self.epoll
                .add(pipe.read.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, data))?;
        }
        self.stdio_inodes = [pipes[0].inode, pipes[1].inode];
        self.stdio = Some(pipes);
        Ok(())
    }

    fn start(&mut self, spec: &SandboxSpec) -> Result<(), String> {
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

    fn running(&mut self, since: Instant) {
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
    fn close_app_ends(&mut self) {
        let Some(pipes) = &mut self.stdio else { return };
        for pipe in pipes {
            if let Ok(null) = File::open("/dev/null") {
                pipe.write = null.into();
            }
        }
    }

    /// Ends whatever there is of an app that did not come to run.
    fn failed_to_run(&mut self, reason: String) {
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

    fn kill_app(&mut self) {
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
    fn wait_for_restore(&self) -> io::Result<Swrk> {
        let inherit: Vec<i32> = self.stdio.iter().flatten().map(LogPipe::write_number).collect();
        let place = Place {
            netns: &self.config.netns,
            cgroup: Some(&self.config.cgroup),
            inherit: &inherit,
        };
        Swrk::spawn(&self.config.criu, place)
    }

    fn begin_restore(&mut self, checkpoint: &Path) -> Result<(), String> {
        let since = Instant::now();
        self.phase = Phase::Starting;
        let words = |action: &str, error: &dyn std::fmt::Display| format!("{action}: {error}");
        let images = self.config.work.join(IMAGES_DIR);
        let _ = fs::remove_dir_all(&images);
        let now = read_clocks().map_err(|error| words("the clocks", &error))?;
        let prepared = restore::prepare(checkpoint, &images, &self.config.root, &now).map_err(|error| {
            self.permanent = error.is_permanent();
            error.to_string()
        })?;
        let pages = LocalPages::new(&self.config.pages).map_err(|error| error.to_string())?;
        self.pager = Some(Pager::new(pages, prepared.index.objects));

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
        self.criu_dirs = Some([images, work]);
        self.work = Work::Restore {
            swrk,
            spaces: prepared.index.spaces,
            since,
        };
        self.set_deadline(Some((Deadline::Restore, RESTORE_TIMEOUT)));
        Ok(())
    }

    // ---- CRIU ----

    fn criu_ready(&mut self) {
        let said = match &self.work {
            Work::Dump { swrk, .. } | Work::Restore { swrk, .. } => swrk.receive(),
            Work::None | Work::Filling { .. } => return,
        };
        let said = said.unwrap_or_else(|error| {
            Some(Response::Failed {
                message: error.to_string(),
            })
        });
        match (said, std::mem::replace(&mut self.work, Work::None)) {
            (Some(Response::Notify { script }), work) => {
                self.work = work;
                self.notified(&script);
            }
            (Some(Response::Done { pid }), Work::Restore { since, .. }) => {
                self.criu_dirs = None;
                self.set_deadline(None);
                self.pid = pid;
                self.running(since);
            }
            (Some(Response::Done { .. }), Work::Dump { .. }) => {
                self.dumped = true;
                self.finish_dump();
            }
            (Some(Response::Failed { message }), Work::Restore { .. }) => {
                let reason = swrk::failure(&self.config.work.join(RESTORE_LOG), &message);
                self.failed_to_run(format!("the app cannot be restored: {reason}"));
            }
            (None, Work::Restore { .. }) => {
                self.failed_to_run("CRIU died in the middle of a restore".to_owned());
            }
            (ended, Work::Dump { at, .. }) => {
                let message = match ended {
                    Some(Response::Failed { message }) => message,
                    _ => "CRIU died in the middle of a dump".to_owned(),
                };
                let reason = match self.refusal.take() {
                    Some(refusal) => refusal,
                    None => swrk::failure(&self.config.work.join(DUMP_LOG), &message),
                };
                self.dump_failed(reason, at);
            }
            (_, Work::None | Work::Filling { .. }) => {}
        }
    }

    fn notified(&mut self, script: &str) {
        let Work::Dump {
            checkpoint,
            generation,
            since,
            at,
            ..
        } = &mut self.work
        else {
            self.answer_criu(true);
            return;
        };
        if script != "post-dump" {
            self.answer_criu(true);
            return;
        }
        let (checkpoint, generation, since) = (checkpoint.clone(), *generation, *since);
        *at = DumpStep::Deciding;
        match self.assemble(&checkpoint, generation, since) {
            Ok(summary) if self.agent.is_some() => self.say(&Event::DumpReady(summary)),
            Ok(_) => {
                self.refusal = Some("the agent was gone when the dump was ready".into());
                self.decide(false);
            }
            Err(reason) => {
                self.refusal = Some(reason);
                self.decide(false);
            }
        }
    }

    fn answer_criu(&mut self, go_on: bool) {
        if let Work::Dump { swrk, .. } | Work::Restore { swrk, .. } = &self.work
            && let Err(error) = swrk.send(&rpc::notified(go_on))
        {
            eprintln!("CRIU does not listen: {error}");
        }
    }

    // ---- dumping ----

    /// Fills what forked children miss, then starts the dump.
    fn continue_filling(&mut self) {
        let Work::Filling {
            checkpoint,
            generation,
            since,
        } = &self.work
        else {
            return;
        };
        let (checkpoint, generation, since) = (checkpoint.clone(), *generation, *since);
        if let Some(pager) = &mut self.pager {
            match pager.fill_children() {
                Ok((complete, effects)) => {
                    self.effects(effects);
                    if !complete {
                        return;
                    }
                }
                Err(error) => {
                    self.end_app(error.to_string());
                    return;
                }
            }
        }
        if let Err(reason) = self.begin_dump(checkpoint, generation, since) {
            self.dump_failed(reason, DumpStep::Dumping);
        }
    }

    fn begin_dump(&mut self, checkpoint: PathBuf, generation: u64, since: Instant) -> Result<(), String> {
        let words = |action: &str, error: &dyn std::fmt::Display| format!("{action}: {error}");
        let Some(pid) = self.pid else {
            return Err("the app does not run".into());
        };
        let images = checkpoint.join(IMAGES_DIR);
        fs::create_dir_all(&images).map_err(|error| words("the checkpoint's directory", &error))?;
        fs::create_dir_all(&self.config.pages)
            .map_err(|error| words("the page objects' directory", &error))?;
        let place = Place {
            netns: &self.config.netns,
            cgroup: None,
            inherit: &[],
        };
        let swrk =
            Swrk::spawn(&self.config.criu, place).map_err(|error| words("CRIU cannot be started", &error))?;
        self.watch(swrk.socket(), source::CRIU)
            .map_err(|error| error.to_string())?;
        let (images, work) = (open_dir(&images)?, open_dir(&self.config.work)?);
        let common = Common {
            images: images.as_raw_fd(),
            work: work.as_raw_fd(),
            log: DUMP_LOG,
        };
        let root = self.config.root.mountpoint.to_string_lossy();
        swrk.send(&rpc::dump(&common, pid, &root))
            .map_err(|error| words("CRIU", &error))?;
        self.criu_dirs = Some([images, work]);
        self.work = Work::Dump {
            swrk,
            checkpoint,
            generation,
            since,
            at: DumpStep::Dumping,
        };
        Ok(())
    }

    fn assemble(
        &mut self,
        checkpoint: &Path,
        generation: u64,
        since: Instant,
    ) -> Result<DumpSummary, String> {
        let (remaining, objects) = match &self.pager {
            None => (Vec::new(), Vec::new()),
            Some(pager) => {
                let remaining = pager.remaining();
                let remaining = remaining.ok_or("the app forked while it was being dumped; try again")?;
                (remaining, pager.objects().to_vec())
            }
        };
        let clocks = read_clocks().map_err(|error| format!("the clocks: {error}"))?;
        let assembly = Assembly {
            checkpoint,
            pages: &self.config.pages,
            generation,
            remaining,
            objects: &objects,
            root: &self.config.root,
            stdio: self.stdio_inodes,
            clocks,
        };
        let made = assembly.assemble().map_err(|error| error.to_string())?;
        Ok(DumpSummary {
            stored_pages: made.stored_pages,
            carried_pages: made.carried_pages,
            image_bytes: made.image_bytes,
            frozen_us: micros(since.elapsed()),
        })
    }

    fn decide(&mut self, accept: bool) {
        let Work::Dump { at, .. } = &mut self.work else {
            return;
        };
        if *at != DumpStep::Deciding {
            return;
        }
        *at = if accept {
            DumpStep::Committed
        } else {
            DumpStep::Refused
        };
        if !accept && self.refusal.is_none() {
            self.refusal = Some("called off".into());
        }
        self.answer_criu(accept);
    }

    fn dump_failed(&mut self, reason: String, at: DumpStep) {
        self.work = Work::None;
        self.criu_dirs = None;
        if at == DumpStep::Committed && self.pid.is_none() {
            return;
        }
        self.phase = Phase::Running;
        self.say(&Event::Failed {
            reason,
            running: true,
            permanent: false,
        });
    }

    /// Both must have happened: CRIU is done, and the app's first process has been reaped.
    fn finish_dump(&mut self) {
        if self.dumped && self.pid.is_none() {
            self.drain_logs();
            self.phase = Phase::Ended;
            self.say(&Event::Dumped);
            self.done = true;
        }
    }

    // ---- memory ----

    fn accept_lazy(&mut self) -> Result<(), ShimError> {
        let Some(listener) = self.lazy_listener.take() else {
            return Ok(());
        };
        let connection = accept(listener.as_fd()).map_err(system("accept CRIU's lazy-pages connection"))?;
        self.watch(connection.as_fd(), source::LAZY)?;
        self.lazy = Some(connection);
        let _ = fs::remove_file(self.config.work.join("lazy-pages.socket"));
        Ok(())
    }

    /// One process of the restored app: its id, then its userfaultfd.
    fn lazy_ready(&mut self) {
        let Some(connection) = &self.lazy else { return };
        match receive_memory(connection.as_fd()) {
            Ok(Some(Lazy::Zombie)) => {}
            Ok(Some(Lazy::Memory(id, uffd))) => {
                let Work::Restore { spaces, .. } = &mut self.work else {
                    return;
                };
                let at = spaces.iter().position(|(known, _)| *known == id);
                let space = at.map(|at| spaces.swap_remove(at).1).unwrap_or_default();
                if let Some(pager) = &mut self.pager {
                    let token = pager.add(id, uffd, space);
                    self.effects(vec![Effect::Opened(token)]);
                }
            }
            Ok(Some(Lazy::Finished) | None) => self.lazy = None,
            // What is wrong shows in CRIU's answer.
            Err(_) => self.lazy = None,
        }
    }

    fn memory_ready(&mut self, token: Token) {
        let did = self.pager.as_mut().map(|pager| pager.ready(token));
        self.pager_did(did);
    }

    fn pager_did(&mut self, did: Option<Result<Vec<Effect>, crate::pager::PagerError>>) {
        match did {
            None => {}
            Some(Ok(effects)) => {
                self.effects(effects);
                self.continue_filling();
            }
            Some(Err(error)) => self.end_app(error.to_string()),
        }
    }

    fn effects(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Opened(token) => {
                    let Some(pager) = &self.pager else { return };
                    let Some(uffd) = pager.descriptor(token) else {
                        continue;
                    };
                    let kept = self.keeper.hold(token, uffd);
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, source::MEMORY + token.0);
                    let watched = self.epoll.add(uffd, event);
                    // A dead keeper is replaced, with every descriptor, when its socket says so.
                    if let Err(error) = watched.and(kept.or(Ok(()))) {
                        self.end_app(format!("a userfaultfd cannot be served: {error}"));
                    }
                }
                Effect::Closed(token) => {
                    let _ = self.keeper.release(token);
                }
                Effect::Need(object, block) => self.say(&Event::Need { object, block }),
            }
        }
        self.check_fault_deadline();
    }

    fn check_fault_deadline(&mut self) {
        let waiting = self.pager.as_ref().is_some_and(Pager::is_waiting);
        if waiting && self.agent.is_none() && self.deadline.is_none() {
            let patience = Duration::from_secs(self.config.fault_timeout_s);
            self.set_deadline(Some((Deadline::Fault, patience)));
        }
    }

    fn replace_keeper(&mut self) -> Result<(), ShimError> {
        self.keeper = Keeper::fork(&self.config.cgroup).map_err(system("fork the keeper"))?;
        self.watch(self.keeper.socket(), source::KEEPER)?;
        let Some(pager) = &self.pager else { return Ok(()) };
        for token in pager.tokens() {
            if let Some(uffd) = pager.descriptor(token) {
                self.keeper
                    .hold(token, uffd)
                    .map_err(system("hand the keeper a userfaultfd"))?;
            }
        }
        Ok(())
    }

    // ---- ends ----

    /// Ends the app because it cannot go on; how is reported when its first process is reaped.
    fn end_app(&mut self, reason: String) {
        eprintln!("{reason}");
        self.reason.get_or_insert(reason);
        if let Err(error) = self.config.cgroup.kill() {
            eprintln!("cannot end the app: {error}");
        }
    }

    fn reap(&mut self) -> Result<(), ShimError> {
        while self
            .signals
            .read_signal()
            .map_err(system("read SIGCHLD"))?
            .is_some()
        {}
        loop {
            let exit = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), Exit::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => return Err(system("reap")(error)),
            };
            if self.pid == Some(exit.0) {
                self.pid = None;
                self.app_ended(exit.1);
            } else if let Work::Restore { swrk, .. } = &self.work
                && exit.0 != swrk.pid()
                && exit.0 != self.keeper.pid().as_raw()
            {
                // CRIU would wait for it for ever.
                self.failed_to_run(format!(
                    "the app's first process died in the middle of a restore ({})",
                    exit.1
                ));
            }
        }
    }

    fn app_ended(&mut self, exit: Exit) {
        if matches!(
            self.work,
            Work::Dump {
                at: DumpStep::Committed,
                ..
            }
        ) || self.dumped
        {
            self.finish_dump();
            return;
        }
        // Members of the pid namespace end with its first process; the cgroup says when.
        self.kill_app();
        self.drain_logs();
        self.phase = Phase::Ended;
        let event = Event::Exited {
            exit,
            reason: self.reason.take(),
        };
        let record = serde_json::to_vec(&event).unwrap_or_default();
        if let Err(error) = fs::write(self.config.work.join(EXIT_FILE), record) {
            eprintln!("cannot record how the app ended: {error}");
        }
        self.say(&event);
        self.done = true;
    }

    fn set_deadline(&mut self, deadline: Option<(Deadline, Duration)>) {
        self.deadline = deadline.map(|(what, _)| what);
        let set = match deadline {
            None => self.timer.unset(),
            Some((_, after)) => self.timer.set(
                Expiration::OneShot(TimeSpec::from_duration(after)),
                TimerSetTimeFlags::empty(),
            ),
        };
        if let Err(error) = set {
            eprintln!("cannot set a timer: {error}");
        }
    }

    fn timer_expired(&mut self) {
        let _ = self.timer.wait();
        match self.deadline.take() {
            Some(Deadline::Restore) => self.failed_to_run(format!(
                "the restore did not finish within {} seconds (CRIU's log: {})",
                RESTORE_TIMEOUT.as_secs(),
                self.config.work.join(RESTORE_LOG).display()
            )),
            Some(Deadline::Fault) => self.end_app(format!(
                "memory was needed from the object store and no agent came within {} seconds",
                self.config.fault_timeout_s
            )),
            Some(Deadline::Stop) => {
                let _ = self.config.cgroup.kill();
            }
            None => {}
        }
    }

    // ---- logs ----

    fn drain_log(&mut self, which: usize) {
        let Some(pipes) = &self.stdio else { return };
        let mut buffer = [0; 65536];
        loop {
            match nix::unistd::read(pipes[which].read.as_fd(), &mut buffer) {
                Ok(0) => {
                    let _ = self.epoll.delete(pipes[which].read.as_fd());
                    return;
                }
                Ok(len) => {
                    if let Err(error) = self.logs[which].write(&buffer[..len]) {
                        eprintln!("cannot write a log: {error}");
                    }
                }
                Err(_) => return,
            }
        }
    }

    fn drain_logs(&mut self) {
        self.drain_log(0);
        self.drain_log(1);
    }
}

/// What CRIU says on the lazy-pages socket.
enum Lazy {
    Memory(u32, OwnedFd),
    Zombie,
    Finished,
}

/// Reads one message of CRIU's lazy-pages protocol; `None` at its end. CRIU sends the parts of one at once.
fn receive_memory(connection: BorrowedFd<'_>) -> io::Result<Option<Lazy>> {
    let mut id = [0; 4];
    match recv(connection.as_raw_fd(), &mut id, MsgFlags::MSG_WAITALL)? {
        4 => {}
        _ => return Ok(None),
    }
    if u32::from_le_bytes(id) == RESTORE_FINISHED {
        return Ok(Some(Lazy::Finished));
    }
    let Ok(id) = u32::try_from(i32::from_le_bytes(id)) else {
        return Ok(Some(Lazy::Zombie));
    };
    match receive_with_fd(connection, &mut [0])? {
        (_, Some(uffd)) => Ok(Some(Lazy::Memory(id, uffd))),
        (_, None) => Err(io::Error::other("CRIU sent no userfaultfd")),
    }
}

/// A mount namespace of the shim's own, in which `/run` is the tmpfs that CRIU keeps its kernel cache on, and `/tmp`
/// the working directory (a CRIU that is killed leaves directories there), unless CRIU itself lies there.
fn own_mounts(config: &ShimConfig) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    mount(Some(&config.kernel_cache), "/run", none, MsFlags::MS_BIND, none)?;
    let tmp = Path::new("/tmp");
    if config.work.starts_with(tmp) || config.criu.needs(tmp) {
        return Ok(());
    }
    mount(Some(&config.work), tmp, none, MsFlags::MS_BIND, none)
}

fn open_dir(path: &Path) -> Result<File, String> {
    File::open(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The host's clocks now.
pub fn read_clocks() -> io::Result<Clocks> {
    use nix::time::{ClockId, clock_gettime};
    let read = |clock| -> io::Result<u64> {
        let time = Duration::from(clock_gettime(clock)?);
        Ok(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
    };
    Ok(Clocks {
        realtime_ns: read(ClockId::CLOCK_REALTIME)?,
        monotonic_ns: read(ClockId::CLOCK_MONOTONIC)?,
        boottime_ns: read(ClockId::CLOCK_BOOTTIME)?,
        boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")?
            .trim()
            .to_owned(),
    })
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
