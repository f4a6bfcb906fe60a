//! Owns the eBPF programs: loads and attaches them, reads their maps and events. What they see: last network
//! activity per app and local port; the page faults of apps that are traced, each with the port whose request
//! caused it; what those receive and send; and which pages of a process were accessed.
//!
//! It must not know what an app's state is, nor decide anything: whether an app is idle, or what a fault
//! teaches, is for its callers. It knows apps only by addresses, cgroup ids and the number they are traced by.
//!
//! Everything the kernel holds for it is bound to [`Probes`]: dropped, or with the process gone, programs
//! are detached and maps freed. So after a restart nothing is watched, and counting starts at nothing.
//! `kernel-notes/sockets.md` and `kernel-notes/page-faults.md` say what each mechanism does not see.

mod accessed;
mod activity;
mod btf;
mod error;
mod events;
mod object;
#[cfg(test)]
mod tests;
mod tracing;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use aya::programs::{CgroupAttachMode, CgroupSkbAttachType};
use pico_ebpf::names;

pub use self::accessed::{PresentPage, anonymous_pages, reset_accessed};
pub use self::activity::PortActivity;
pub use self::btf::BtfError;
pub use self::error::ProbeError;
pub use self::events::TraceEvent;
pub use self::tracing::{PortSource, Target, Tracing};
pub use pico_ebpf::{EventKind, PageFault, SocketEvent};

use self::accessed::AccessedPages;
use self::activity::ActivityMap;
use self::events::EventQueue;
use self::object::{Programs, load_cgroup_skb, open, open_cgroup, take};
use self::tracing::Tracer;
use crate::port::Port;

/// What of the probes works here. The errors say what is missing and what to do about it.
#[derive(Debug)]
pub struct Capabilities {
    /// Last activity per app and port. Without it no app is seen to be idle.
    pub activity: Result<(), ProbeError>,
    /// Faults raised by an app's own instructions.
    pub user_faults: Result<(), ProbeError>,
    /// Faults raised inside system calls, on an app's behalf.
    pub kernel_faults: Result<(), ProbeError>,
    /// Whose request a thread serves, and by what that is seen. Without it faults have no port.
    pub ports: Result<PortSource, ProbeError>,
    /// Which pages were accessed. Without it only faults tell.
    pub accessed: Result<(), ProbeError>,
}

impl Capabilities {
    /// Tries everything, except for attaching to a cgroup, and leaves nothing behind.
    ///
    /// # Errors
    /// If not even the object can be loaded: nothing works.
    pub fn probe() -> Result<Self, ProbeError> {
        let (mut object, types) = open()?;
        let activity = [names::INGRESS, names::EGRESS]
            .into_iter()
            .try_for_each(|name| load_cgroup_skb(&mut object, name).map(drop));
        let works = tracing::try_all(&mut object, types, None);
        let programs = Programs::new(object);
        let accessed = AccessedPages::new(&mut programs.lock(), programs.clone());
        Ok(Capabilities {
            activity,
            user_faults: works.user_faults,
            kernel_faults: works.kernel_faults,
            ports: works.ports,
            accessed: accessed.and_then(|pages| pages.probe()),
        })
    }
}

/// Numbers about the probes themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProbeStats {
    /// Map entries of watched apps: published ports and "any other", times protocols and addresses.
    pub watched: usize,
    /// Cgroups that are traced.
    pub traced: usize,
    /// Events handed out.
    pub events_read: u64,
    /// Events that found the ring buffer full: nobody read in time.
    pub events_lost: u64,
}

/// The loaded and attached programs. All methods take `&self` and may be called from any task; none but
/// [`Probes::wait_for_events`] waits, and each is a few system calls.
pub struct Probes {
    activity: ActivityMap,
    tracer: Arc<Tracer>,
    events: EventQueue,
    accessed: AccessedPages,
    capabilities: ProbesCapabilities,
    /// Holds the links: dropped, everything is detached.
    programs: Programs,
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probes")
            .field("programs", &self.programs)
            .finish_non_exhaustive()
    }
}

/// [`Capabilities`] that are known without trying anything.
#[derive(Debug)]
pub struct ProbesCapabilities {
    /// As there.
    pub user_faults: Result<(), ProbeError>,
    /// As there.
    pub kernel_faults: Result<(), ProbeError>,
    /// As there.
    pub ports: Result<PortSource, ProbeError>,
}

impl Probes {
    /// Loads the programs and attaches one pair to `apps_cgroup` (all apps live under it). Tracing is attached
    /// while an app is traced, and what of it is missing here does not hinder activity: see
    /// [`Probes::capabilities`].
    ///
    /// # Errors
    /// If activity cannot be observed: without it no app would ever be seen to be idle.
    pub fn load(apps_cgroup: &Path) -> Result<Self, ProbeError> {
        Probes::load_with(apps_cgroup, None)
    }

    /// As [`Probes::load`], with ports from `source` or not at all.
    fn load_with(apps_cgroup: &Path, source: Option<PortSource>) -> Result<Self, ProbeError> {
        let cgroup = open_cgroup(apps_cgroup)?;
        let (mut object, types) = open()?;
        let activity = ActivityMap::new(take(&mut object, names::ACTIVITY)?)?;
        let events = EventQueue::new(
            take(&mut object, names::EVENTS)?,
            take(&mut object, names::EVENTS_LOST)?,
        );
        for (name, attach_type) in [
            (names::INGRESS, CgroupSkbAttachType::Ingress),
            (names::EGRESS, CgroupSkbAttachType::Egress),
        ] {
            // "Single" is flags 0, which is what links must be made with; they never exclude each other.
            load_cgroup_skb(&mut object, name)?
                .attach(&cgroup, attach_type, CgroupAttachMode::Single)
                .map_err(|source| ProbeError::AttachCgroup {
                    program: name,
                    path: apps_cgroup.to_owned(),
                    source: Box::new(source),
                })?;
        }
        let works = tracing::try_all(&mut object, types, source);
        let ports = works.ports.as_ref().ok().copied();
        let programs = Programs::new(object);
        let (tracer, accessed) = {
            let mut object = programs.lock();
            (
                Tracer::new(&mut object, programs.clone(), ports)?,
                AccessedPages::new(&mut object, programs.clone())?,
            )
        };
        Ok(Probes {
            activity,
            tracer,
            events,
            accessed,
            capabilities: ProbesCapabilities {
                user_faults: works.user_faults,
                kernel_faults: works.kernel_faults,
                ports: works.ports,
            },
            programs,
        })
    }

    /// What of tracing works.
    pub fn capabilities(&self) -> &ProbesCapabilities {
        &self.capabilities
    }

    /// Starts counting for the app with these addresses: each of `ports` by itself, and all others together.
    /// Called again, it changes the ports and keeps what was counted on those that stay.
    ///
    /// # Errors
    /// If the map is full ([`pico_ebpf::ACTIVITY_ENTRIES`]) or cannot be written.
    pub fn watch(&self, v4: Ipv4Addr, v6: Ipv6Addr, ports: &[Port]) -> Result<(), ProbeError> {
        self.activity.watch(v4, v6, ports)
    }

    /// What was seen of a watched app, one row for each port, protocol and address that was active. Pure
    /// acknowledgements and keepalives are no activity. Empty if there was none, or the app is not watched.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn activity(&self, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<Vec<PortActivity>, ProbeError> {
        self.activity.read(v4, v6)
    }

    /// Stops counting for an app, and drops what was counted.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn forget(&self, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<(), ProbeError> {
        self.activity.forget(v4, v6)
    }

    /// Tells page faults and socket activity of an app from now on, until what is returned is dropped. The first
    /// app that is traced makes the kernel attach programs, which takes some milliseconds.
    ///
    /// # Errors
    /// If [`pico_ebpf::TRACKED_ENTRIES`] cgroups are traced already, or a map cannot be written.
    pub fn trace(&self, target: Target) -> Result<Tracing, ProbeError> {
        self.tracer.trace(target)
    }

    /// The events that wait to be read, in the order the kernel reported them; at most a few thousand at once,
    /// so an empty answer is the sign that there are no more.
    ///
    /// # Errors
    /// If the embedded object is of another version than the agent.
    pub fn events(&self) -> Result<Vec<TraceEvent>, ProbeError> {
        self.events.drain()
    }

    /// Waits until there may be events to be read. May be cancelled at any time. Where the tracepoints are missing it
    /// waits for ever. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the ring buffer cannot be waited for.
    pub async fn wait_for_events(&self) -> Result<(), ProbeError> {
        self.events.wait().await
    }

    /// As [`Probes::events`], but waits until there is at least one.
    #[cfg(test)]
    async fn next_events(&self) -> Result<Vec<TraceEvent>, ProbeError> {
        self.events.next().await
    }

    /// Whether [`Probes::present_pages`] works here; tries it.
    ///
    /// # Errors
    /// As there.
    pub fn accessed(&self) -> Result<(), ProbeError> {
        self.accessed.probe()
    }

    /// How many events found the ring buffer full since the probes were loaded.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn lost(&self) -> Result<u64, ProbeError> {
        self.events.lost()
    }

    /// The present pages of process `pid` within `ranges` of page numbers, in their order, and which of them were
    /// accessed since [`reset_accessed`]. The first call takes some tens of milliseconds, later ones a fraction
    /// of one for each 64 MiB.
    ///
    /// # Errors
    /// If the kernel refuses the iterator, its memory's place is not found, or the process is gone.
    pub fn present_pages(&self, pid: u32, ranges: &[Range<u64>]) -> Result<Vec<PresentPage>, ProbeError> {
        self.accessed.scan(pid, ranges)
    }

    /// Numbers about the probes themselves.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn stats(&self) -> Result<ProbeStats, ProbeError> {
        Ok(ProbeStats {
            watched: self.activity.entries(),
            traced: self.tracer.active(),
            events_read: self.events.read(),
            events_lost: self.events.lost()?,
        })
    }
}
