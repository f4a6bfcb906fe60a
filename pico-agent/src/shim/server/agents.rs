//! Agents: who is connected, what it is told, what it asks.
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ends::Deadline;
use super::{Asked, DumpStep, Shim, ShimError, Work, source, system};
use crate::pager::Pager;
use crate::shim::protocol::{Event, MAX_PACKET, Phase, Request, VERSION};
use crate::shim::socket::{accept, receive_packet, send_packet};

impl Shim {
    pub(super) fn accept_agent(&mut self) -> Result<(), ShimError> {
        match accept(self.listener.as_fd()) {
            Ok(agent) => self.adopt(agent),
            Err(_) => Ok(()),
        }
    }

    /// Takes a new agent; the one before is gone or about to be.
    pub(super) fn adopt(&mut self, agent: OwnedFd) -> Result<(), ShimError> {
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

    pub(super) fn agent_lost(&mut self) {
        let Some(agent) = self.agent.take() else { return };
        // Another descriptor may hold the same socket open, and its end would be reported for ever.
        let _ = self.epoll.delete(agent.as_fd());
        drop(agent);
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

    pub(super) fn say(&mut self, event: &Event) {
        // Serialising plain data does not fail.
        let Ok(bytes) = serde_json::to_vec(event) else {
            return;
        };
        self.outbox.push_back(bytes);
        self.flush();
    }

    pub(super) fn flush(&mut self) {
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

    pub(super) fn agent_ready(&mut self, events: EpollFlags) {
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

    pub(super) fn request(&mut self, request: Request) {
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
            Request::Restore { checkpoint, ahead } => {
                if let Err(reason) = self.begin_restore(&checkpoint, ahead.as_deref()) {
                    self.failed_to_run(reason);
                }
            }
            Request::Dump {
                checkpoint,
                generation,
                synced,
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
                self.prepare_dump(Asked {
                    checkpoint,
                    generation,
                    synced,
                    since: Instant::now(),
                });
            }
            Request::Commit { accept } => self.decide(accept),
            Request::CallOff => self.call_off(),
            Request::Block { object, block } => {
                let arrived = self.pager.as_mut().map(|pager| pager.arrived(object, block));
                self.pager_did(arrived);
            }
            Request::Lost {
                object,
                block,
                reason,
            } => match self.pager.as_mut().map(|pager| pager.lost(object, block)) {
                // Nobody waits for it: it was predicted.
                Some(Some(effects)) => self.effects(effects),
                _ => self.end_app(format!(
                    "block {block} of page object {object} could not be had: {reason}"
                )),
            },
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
}
