//! The app's memory: userfaultfds from CRIU to pager and keeper, and what the pager wants done.
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{MsgFlags, recv};

use super::ends::Deadline;
use super::{Shim, ShimError, Work, source, system};
use crate::failpoint;
use crate::pager::{Effect, Pager, PagerError, Token};
use crate::shim::keeper::Keeper;
use crate::shim::protocol::Event;
use crate::shim::socket::{accept, receive_with_fd};

/// `LAZY_PAGES_RESTORE_FINISHED` of CRIU's lazy-pages protocol.
const RESTORE_FINISHED: u32 = 0x5253_5446;

impl Shim {
    pub(super) fn accept_lazy(&mut self) -> Result<(), ShimError> {
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
    pub(super) fn lazy_ready(&mut self) {
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
                    failpoint::reach("shim.memory");
                    self.effects(vec![Effect::Opened(token)]);
                }
            }
            Ok(Some(Lazy::Finished)) => {
                self.lazy = None;
                if let Some(pager) = &mut self.pager {
                    pager.restored();
                }
            }
            Ok(None) => self.lazy = None,
            // What is wrong shows in CRIU's answer.
            Err(_) => self.lazy = None,
        }
    }

    pub(super) fn memory_ready(&mut self, token: Token) {
        let did = self.pager.as_mut().map(|pager| pager.ready(token));
        self.pager_did(did);
    }

    /// Whether there is anything to do while nobody wants anything.
    pub(super) fn has_idle_work(&self) -> bool {
        self.restored.is_some() || self.pager.as_ref().is_some_and(Pager::has_ahead)
    }

    /// Fills some of what is predicted; called when no fault waits. Once that is done, an app that was restored is said to
    /// run.
    pub(super) fn fill_ahead(&mut self) {
        if let Some(pager) = self.pager.as_mut().filter(|pager| pager.has_ahead()) {
            let did = pager.fill_ahead();
            self.pager_did(Some(did));
        } else if let Some(since) = self.restored.take() {
            self.running(since);
        }
    }

    pub(super) fn pager_did(&mut self, did: Option<Result<Vec<Effect>, PagerError>>) {
        match did {
            None => {}
            Some(Ok(effects)) => {
                self.effects(effects);
                self.continue_filling();
            }
            Some(Err(error)) => self.end_app(error.to_string()),
        }
    }

    pub(super) fn effects(&mut self, effects: Vec<Effect>) {
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

    pub(super) fn check_fault_deadline(&mut self) {
        let waiting = self.pager.as_ref().is_some_and(Pager::is_waiting);
        if waiting && self.agent.is_none() && self.deadline.is_none() {
            let patience = Duration::from_secs(self.config.fault_timeout_s);
            self.set_deadline(Some((Deadline::Fault, patience)));
        }
    }

    pub(super) fn replace_keeper(&mut self) -> Result<(), ShimError> {
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
