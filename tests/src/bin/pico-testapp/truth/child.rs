//! A forked child that stays: it changes and checks its own copy of the memory when the app tells it to.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail, ensure};
use pico_tests::truth::{Region, Step};

use super::place::Place;

/// Bytes of an answer; shorter ones are filled with spaces.
const ANSWER: usize = 256;

/// A child, as its parent has it.
pub struct Child {
    pid: i32,
    socket: UnixStream,
}

/// What a child is told.
#[derive(Clone, Copy)]
enum Order {
    Do(Step),
    Check { seed: u64, percent: usize },
}

impl Child {
    /// Forks a child whose memory must hold what `regions` say.
    pub fn fork(mut regions: Vec<Region>, places: &mut [Place]) -> Result<Child> {
        let (socket, theirs) = UnixStream::pair()?;
        // SAFETY: the child goes on in `serve` alone. It allocates, which glibc allows after a fork, and takes no
        // lock that another thread of the parent could have held.
        match unsafe { libc::fork() } {
            -1 => Err(std::io::Error::last_os_error()).context("fork"),
            0 => {
                close_others(&theirs);
                let served = serve(theirs, &mut regions, places);
                // SAFETY: ends the child without running anything of the parent's.
                unsafe { libc::_exit(i32::from(served.is_err())) }
            }
            pid => {
                drop(theirs);
                Ok(Child { pid, socket })
            }
        }
    }

    /// Carries out one operation on the child's memory.
    pub fn carry_out(&mut self, step: Step) -> Result<()> {
        self.order(Order::Do(step)).map(drop)
    }

    /// What the child reads of its private pages.
    pub fn check(&mut self, seed: u64, percent: usize) -> Result<String> {
        self.order(Order::Check { seed, percent })
    }

    fn order(&mut self, order: Order) -> Result<String> {
        let order = std::ptr::from_ref(&order).cast::<u8>();
        // SAFETY: the bytes of a value of this program, read by its fork: the same program.
        let order = unsafe { std::slice::from_raw_parts(order, size_of::<Order>()) };
        self.socket.write_all(order)?;
        let mut answer = [0; ANSWER];
        self.socket.read_exact(&mut answer).context("the child is gone")?;
        let answer = String::from_utf8_lossy(&answer).trim_end().to_owned();
        ensure!(!answer.starts_with("error"), "child {}: {answer}", self.pid);
        Ok(answer)
    }

    /// Ends it.
    pub fn end(self) -> Result<()> {
        drop(self.socket);
        let mut status = 0;
        // SAFETY: waits for a child of ours and writes one integer of ours.
        ensure!(unsafe { libc::waitpid(self.pid, &raw mut status, 0) } == self.pid);
        ensure!(status == 0, "a child ended with status {status:#x}");
        Ok(())
    }
}

/// Connections of the parent must not stay open because a child has them too.
fn close_others(kept: &UnixStream) {
    let kept = kept.as_raw_fd().cast_unsigned();
    // SAFETY: the child of a fork uses no other descriptor.
    unsafe {
        if kept > 3 {
            libc::close_range(3, kept - 1, 0);
        }
        libc::close_range(kept + 1, u32::MAX, 0);
    }
}

fn serve(socket: UnixStream, regions: &mut [Region], places: &mut [Place]) -> Result<()> {
    let mut socket = UnixStream::from(OwnedFd::from(socket));
    let mut order = [0; size_of::<Order>()];
    while socket.read_exact(&mut order).is_ok() {
        // SAFETY: the bytes of an `Order` that the parent, the same program, had as one.
        let order: Order = unsafe { order.as_ptr().cast::<Order>().read_unaligned() };
        let mut answer = match obey(order, regions, places) {
            Ok(answer) => answer,
            Err(error) => format!("error {error:#}"),
        }
        .into_bytes();
        answer.resize(ANSWER, b' ');
        socket.write_all(&answer)?;
    }
    Ok(())
}

fn obey(order: Order, regions: &mut [Region], places: &mut [Place]) -> Result<String> {
    match order {
        Order::Do(Step::Do {
            region,
            first,
            count,
            op,
            ..
        }) => {
            places[region].carry_out(first, count, op, &regions[region].guarded)?;
            regions[region].apply(first, count, op);
            Ok("done".into())
        }
        Order::Do(Step::Fork(_)) => bail!("children do not fork"),
        Order::Check { seed, percent } => {
            let own = |region: &usize| !regions[*region].kind.is_shared();
            let own: Vec<usize> = (0..regions.len()).filter(own).collect();
            let of = own.iter().map(|at| regions[*at].clone()).collect::<Vec<_>>();
            let at: Vec<&Place> = own.iter().map(|at| &places[*at]).collect();
            Ok(super::compare(&of, &at, seed, percent)?.to_string())
        }
    }
}
