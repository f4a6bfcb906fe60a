//! The page fault ring buffer: draining it, and waiting for it without polling.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use aya::maps::{MapData, PerCpuArray, RingBuf};
use pico_ebpf::{PageFault, names};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::FromBytes;

use super::ProbeError;

/// Faults handed out at once at most: an app that faults as fast as they are read must not keep a reader
/// from what else it has to do.
const BATCH: usize = 4096;

pub(super) struct FaultQueue {
    ring: Mutex<RingBuf<MapData>>,
    /// A duplicate of the ring's descriptor, registered with tokio when someone first waits: reading
    /// without waiting needs no runtime.
    readiness: OnceLock<AsyncFd<OwnedFd>>,
    lost: PerCpuArray<MapData, u64>,
    read: AtomicU64,
}

impl FaultQueue {
    pub(super) fn new(ring: RingBuf<MapData>, lost: PerCpuArray<MapData, u64>) -> Self {
        FaultQueue {
            ring: Mutex::new(ring),
            readiness: OnceLock::new(),
            lost,
            read: AtomicU64::new(0),
        }
    }

    /// What is there now, oldest first, at most [`BATCH`].
    pub(super) fn drain(&self) -> Result<Vec<PageFault>, ProbeError> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let mut faults = Vec::new();
        while faults.len() < BATCH
            && let Some(record) = ring.next()
        {
            let fault = PageFault::read_from_bytes(&record);
            faults.push(fault.map_err(|_| ProbeError::Stale("page fault events have another size"))?);
        }
        self.read.fetch_add(faults.len() as u64, Ordering::Relaxed);
        Ok(faults)
    }

    /// As [`FaultQueue::drain`], but waits until there is at least one. Nothing is lost if it is cancelled.
    pub(super) async fn next(&self) -> Result<Vec<PageFault>, ProbeError> {
        loop {
            let faults = self.drain()?;
            if !faults.is_empty() {
                return Ok(faults);
            }
            // Readiness is cleared before the ring is looked at again: a fault that comes in between sets
            // it anew.
            self.readiness()?
                .readable()
                .await
                .map_err(ProbeError::Wait)?
                .clear_ready();
        }
    }

    /// Faults that found the ring full, all CPUs together.
    pub(super) fn lost(&self) -> Result<u64, ProbeError> {
        match self.lost.get(&0, 0) {
            Ok(counts) => Ok(counts.iter().sum()),
            Err(source) => Err(ProbeError::Map {
                map: names::FAULTS_LOST,
                action: "read",
                source: Box::new(source),
            }),
        }
    }

    /// Faults handed out so far.
    pub(super) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    fn readiness(&self) -> Result<&AsyncFd<OwnedFd>, ProbeError> {
        if let Some(readiness) = self.readiness.get() {
            return Ok(readiness);
        }
        let register = || -> io::Result<_> {
            let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            let descriptor = ring.as_fd().try_clone_to_owned()?;
            // SAFETY: the `AsyncFd` owns the descriptor, which nothing closes or replaces while it does.
            let readiness = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
            readiness.map_err(io::Error::from)
        };
        let new = register().map_err(ProbeError::Wait)?;
        // Should two tasks come here at once, the second registration is dropped again.
        Ok(self.readiness.get_or_init(|| new))
    }
}
