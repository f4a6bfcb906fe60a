//! The app's output, from its pipes to its logs.
use std::os::fd::AsFd;

use super::Shim;

impl Shim {
    pub(super) fn drain_log(&mut self, which: usize) {
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

    pub(super) fn drain_logs(&mut self) {
        self.drain_log(0);
        self.drain_log(1);
    }
}
