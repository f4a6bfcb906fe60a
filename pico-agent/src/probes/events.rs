//! The ring buffer of what tracing sees: draining it, and waiting for it without polling.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use aya::maps::{MapData, PerCpuArray, RingBuf};
use pico_ebpf::{EventKind, PageFault, SocketEvent, names};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::FromBytes;

use super::ProbeError;

/// Events handed out at once at most: an app that faults as fast as they are read must not keep a reader
/// from what else it has to do.
const BATCH: usize = 4096;

/// Something that a traced app did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceEvent {
    /// It touched a page that was not there, or not to be written.
    Fault(PageFault),
    /// It received or sent, or a connection of its changed state.
    Socket(SocketEvent),
}

impl TraceEvent {
    /// The app's number.
    pub fn app(&self) -> u32 {
        match self {
            TraceEvent::Fault(fault) => fault.app,
            TraceEvent::Socket(event) => event.app,
        }
    }

    fn read(record: &[u8]) -> Option<Self> {
        let fault = PageFault::read_from_bytes(record).ok()?;
        match EventKind::from_number(fault.kind)? {
            EventKind::Fault => Some(TraceEvent::Fault(fault)),
            EventKind::Received | EventKind::Sent | EventKind::Connection => {
                SocketEvent::read_from_bytes(record).ok().map(TraceEvent::Socket)
            }
        }
    }
}

pub(super) struct EventQueue {
    ring: Mutex<RingBuf<MapData>>,
    /// A duplicate of the ring's descriptor, registered with tokio when someone first waits: reading
    /// without waiting needs no runtime.
    readiness: OnceLock<AsyncFd<OwnedFd>>,
    lost: PerCpuArray<MapData, u64>,
    read: AtomicU64,
}

impl EventQueue {
    pub(super) fn new(ring: RingBuf<MapData>, lost: PerCpuArray<MapData, u64>) -> Self {
        EventQueue {
            ring: Mutex::new(ring),
            readiness: OnceLock::new(),
            lost,
            read: AtomicU64::new(0),
        }
    }

    /// What is there now, oldest first, at most [`BATCH`].
    pub(super) fn drain(&self) -> Result<Vec<TraceEvent>, ProbeError> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events = Vec::new();
        while events.len() < BATCH
            && let Some(record) = ring.next()
        {
            let event = TraceEvent::read(&record);
            events.push(event.ok_or(ProbeError::Stale("events have another layout"))?);
        }
        self.read.fetch_add(events.len() as u64, Ordering::Relaxed);
        Ok(events)
    }

    /// As [`EventQueue::drain`], but waits until there is at least one. Nothing is lost if it is cancelled.
    #[cfg(test)]
    pub(super) async fn next(&self) -> Result<Vec<TraceEvent>, ProbeError> {
        loop {
            let events = self.drain()?;
            if !events.is_empty() {
                return Ok(events);
            }
            self.wait().await?;
        }
    }

    /// Waits until an event has come since this was last called.
    pub(super) async fn wait(&self) -> Result<(), ProbeError> {
        // Readiness is cleared before the ring is looked at again: an event that comes in between sets it anew.
        let mut ready = self.readiness()?.readable().await.map_err(ProbeError::Wait)?;
        ready.clear_ready();
        Ok(())
    }

    /// Events that found the ring full, all CPUs together.
    pub(super) fn lost(&self) -> Result<u64, ProbeError> {
        match self.lost.get(&0, 0) {
            Ok(counts) => Ok(counts.iter().sum()),
            Err(source) => Err(ProbeError::Map {
                map: names::EVENTS_LOST,
                action: "read",
                source: Box::new(source),
            }),
        }
    }

    /// Events handed out so far.
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
