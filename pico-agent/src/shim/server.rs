//! The shim's event loop: one thread, one epoll, one app.
//!
//! Here: what a shim is made of, and which event is whose. `agents`: who may ask; `running`: starts and restores;
//! `dumping`: dumps; `criu`: what CRIU says; `memory`: faults; `ends`: how it ends; `logs`: the app's output.

mod agents;
mod criu;
mod dumping;
mod ends;
mod logs;
mod memory;
mod running;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::SockType;
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

use self::ends::Deadline;
use super::keeper::Keeper;
use super::locked::Locked;
use super::pages::LocalPages;
use super::protocol::{MAX_PACKET, Phase, ShimConfig};
use super::socket::{listen_at, receive_packet};
use super::stdio::LogPipe;
use super::swrk::Swrk;
use crate::checkpoint::index::AddressSpace;
use crate::checkpoint::local::Clocks;
use crate::logs::{LogWriter, Stream};
use crate::pager::{Pager, Token};

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

/// A dump that was asked for.
#[derive(Clone)]
struct Asked {
    /// Directory of the checkpoint.
    checkpoint: PathBuf,
    generation: u64,
    /// When all of the file system was last made durable.
    synced: Option<Clocks>,
    since: Instant,
}

/// What CRIU is doing for us.
enum Work {
    None,
    /// What forked children and locked memory miss is being filled before a dump.
    Filling {
        asked: Asked,
        locked: Vec<Locked>,
    },
    Dump {
        swrk: Swrk,
        asked: Asked,
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
    /// When the restore began of an app that runs since a moment, and nobody was told yet.
    restored: Option<Instant>,
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
            restored: None,
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
            let timeout = if self.has_idle_work() {
                EpollTimeout::ZERO
            } else {
                EpollTimeout::NONE
            };
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(0) => {
                    self.fill_ahead();
                    continue;
                }
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

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
