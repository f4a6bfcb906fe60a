//! Owns the eBPF programs: loads and attaches them, reads their maps and events. What they see: last network
//! activity per app and local port, and the page faults of apps that are tracked.
//!
//! It must not know what an app's state is, nor decide anything: whether an app is idle, or what a fault
//! teaches, is for its callers. It knows apps only by addresses, cgroup ids and the number they are tracked by.
//!
//! Everything the kernel holds for it is bound to [`Probes`]: dropped, or with the process gone, programs
//! are detached and maps freed. So after a restart nothing is watched, and counting starts at nothing.
//! `kernel-notes/sockets.md` and `kernel-notes/page-faults.md` say what each mechanism does not see.

mod activity;
mod error;
mod faults;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{HashMap, Map, MapData, MapError};
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, Program, ProgramError, RawTracePoint};
use aya::{Ebpf, EbpfLoader};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use pico_ebpf::names;

pub use self::activity::PortActivity;
pub use self::error::ProbeError;
pub use pico_ebpf::PageFault;

use self::activity::ActivityMap;
use self::faults::FaultQueue;
use crate::port::Port;

/// The object `build.rs` embeds; empty if the agent was built without one.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pico-ebpf.o"));

/// What of the probes works here. The errors say what is missing and what to do about it.
#[derive(Debug)]
pub struct Capabilities {
    /// Last activity per app and port. Without it no app is seen to be idle.
    pub activity: Result<(), ProbeError>,
    /// Faults raised by an app's own instructions.
    pub user_faults: Result<(), ProbeError>,
    /// Faults raised inside system calls, on an app's behalf.
    pub kernel_faults: Result<(), ProbeError>,
}

impl Capabilities {
    /// Tries what [`Probes::load`] does, except for attaching to a cgroup, and leaves nothing behind.
    ///
    /// # Errors
    /// If not even the object can be loaded: nothing works.
    pub fn probe() -> Result<Self, ProbeError> {
        let mut programs = open()?;
        let activity = [names::INGRESS, names::EGRESS]
            .into_iter()
            .try_for_each(|name| load_cgroup_skb(&mut programs, name).map(drop));
        let (user_faults, kernel_faults) = attach_faults(&mut programs);
        Ok(Capabilities {
            activity,
            user_faults,
            kernel_faults,
        })
    }
}

/// Numbers about the probes themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProbeStats {
    /// Map entries of watched apps: published ports and "any other", times protocols and addresses.
    pub watched: usize,
    /// Cgroups whose page faults are reported.
    pub tracked: usize,
    /// Page faults handed out.
    pub faults_read: u64,
    /// Page faults that found the ring buffer full: nobody read in time.
    pub faults_lost: u64,
}

/// The loaded and attached programs. All methods take `&self` and may be called from any task; none but
/// [`Probes::next_faults`] waits, and each is a few system calls.
pub struct Probes {
    activity: ActivityMap,
    tracked: Mutex<HashMap<MapData, u64, u32>>,
    faults: FaultQueue,
    capabilities: Capabilities,
    /// Holds the links: dropped, everything is detached.
    programs: Ebpf,
}

impl Probes {
    /// Loads the programs, attaches one pair to `apps_cgroup` (all apps live under it) and one to the page
    /// fault tracepoints. Where those are missing activity works nevertheless: see
    /// [`Probes::capabilities`].
    ///
    /// # Errors
    /// If activity cannot be observed: without it no app would ever be seen to be idle.
    pub fn load(apps_cgroup: &Path) -> Result<Self, ProbeError> {
        let cgroup = open_cgroup(apps_cgroup)?;
        let mut programs = open()?;
        let activity = ActivityMap::new(take(&mut programs, names::ACTIVITY)?)?;
        let tracked = Mutex::new(take(&mut programs, names::TRACKED)?);
        let faults = FaultQueue::new(
            take(&mut programs, names::FAULTS)?,
            take(&mut programs, names::FAULTS_LOST)?,
        );
        for (name, attach_type) in [
            (names::INGRESS, CgroupSkbAttachType::Ingress),
            (names::EGRESS, CgroupSkbAttachType::Egress),
        ] {
            // "Single" is flags 0, which is what links must be made with; they never exclude each other.
            load_cgroup_skb(&mut programs, name)?
                .attach(&cgroup, attach_type, CgroupAttachMode::Single)
                .map_err(|source| ProbeError::AttachCgroup {
                    program: name,
                    path: apps_cgroup.to_owned(),
                    source: Box::new(source),
                })?;
        }
        let (user_faults, kernel_faults) = attach_faults(&mut programs);
        let capabilities = Capabilities {
            activity: Ok(()),
            user_faults,
            kernel_faults,
        };
        Ok(Probes {
            activity,
            tracked,
            faults,
            capabilities,
            programs,
        })
    }

    /// What of the probes works.
    pub fn capabilities(&self) -> &Capabilities {
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

    /// Reports page faults of the processes in one cgroup (not of those in cgroups below it) as those of
    /// `app`. `cgroup_id` is the inode number of its directory in the v2 hierarchy.
    ///
    /// # Errors
    /// If [`pico_ebpf::TRACKED_ENTRIES`] cgroups are tracked already, or the map cannot be written.
    pub fn track(&self, cgroup_id: u64, app: u32) -> Result<(), ProbeError> {
        self.tracked()
            .insert(cgroup_id, app, 0)
            .map_err(|source| tracked_error("add to", source))
    }

    /// Stops reporting page faults of a cgroup. One that is not tracked is fine.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn untrack(&self, cgroup_id: u64) -> Result<(), ProbeError> {
        match self.tracked().remove(&cgroup_id) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => {
                Ok(())
            }
            other => other.map_err(|source| tracked_error("remove from", source)),
        }
    }

    /// The page faults that wait to be read, in the order the kernel reported them; at most a few thousand
    /// at once, so an empty answer is the sign that there are no more.
    ///
    /// # Errors
    /// If the embedded object is of another version than the agent.
    pub fn faults(&self) -> Result<Vec<PageFault>, ProbeError> {
        self.faults.drain()
    }

    /// As [`Probes::faults`], but waits until there is at least one. May be cancelled at any time. Where
    /// the tracepoints are missing it waits for ever. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// As [`Probes::faults`], or if the ring buffer cannot be waited for.
    pub async fn next_faults(&self) -> Result<Vec<PageFault>, ProbeError> {
        self.faults.next().await
    }

    /// How many page faults found the ring buffer full since the probes were loaded.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn lost(&self) -> Result<u64, ProbeError> {
        self.faults.lost()
    }

    /// Numbers about the probes themselves.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn stats(&self) -> Result<ProbeStats, ProbeError> {
        let tracked = self.tracked().keys().filter(Result::is_ok).count();
        Ok(ProbeStats {
            watched: self.activity.entries(),
            tracked,
            faults_read: self.faults.read(),
            faults_lost: self.faults.lost()?,
        })
    }

    fn tracked(&self) -> MutexGuard<'_, HashMap<MapData, u64, u32>> {
        // The kernel's map is consistent whatever its holder did.
        self.tracked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probes")
            .field("programs", &self.programs)
            .finish_non_exhaustive()
    }
}

/// Creates the maps and relocates the programs; loads none of them.
fn open() -> Result<Ebpf, ProbeError> {
    if OBJECT.is_empty() {
        return Err(ProbeError::NotBuilt);
    }
    // No program needs the kernel's type information; reading it would cost 5 MB and several milliseconds.
    EbpfLoader::new()
        .btf(None)
        .load(OBJECT)
        .map_err(|error| ProbeError::unless_permission(error, |error| ProbeError::Object(Box::new(error))))
}

fn open_cgroup(path: &Path) -> Result<File, ProbeError> {
    let failed = |source| ProbeError::Cgroup {
        path: path.to_owned(),
        source,
    };
    let cgroup = File::open(path).map_err(failed)?;
    let kind = fstatfs(&cgroup).map_err(|errno| failed(errno.into()))?;
    if kind.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(ProbeError::NotCgroup2(path.to_owned()));
    }
    Ok(cgroup)
}

/// Takes a map out of the object, with its layout checked by its type.
fn take<M: TryFrom<Map, Error = MapError>>(programs: &mut Ebpf, name: &'static str) -> Result<M, ProbeError> {
    let map = programs
        .take_map(name)
        .ok_or(ProbeError::Stale("a map is missing"))?;
    M::try_from(map).map_err(|error| match error {
        MapError::InvalidKeySize { .. } | MapError::InvalidValueSize { .. } => {
            ProbeError::Stale("a map has another layout")
        }
        source => ProbeError::Map {
            map: name,
            action: "open",
            source: Box::new(source),
        },
    })
}

fn program<'a, P>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, ProbeError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = programs
        .program_mut(name)
        .ok_or(ProbeError::Stale("a program is missing"))?;
    program
        .try_into()
        .map_err(|_| ProbeError::Stale("a program has another type"))
}

fn refused(program: &'static str) -> impl FnOnce(ProgramError) -> ProbeError {
    move |error| {
        ProbeError::unless_permission(error, |error| ProbeError::Program {
            program,
            source: Box::new(error),
        })
    }
}

fn load_cgroup_skb<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSkb, ProbeError> {
    let program: &mut CgroupSkb = program(programs, name)?;
    program.load().map_err(refused(name))?;
    Ok(program)
}

/// Attaches to both tracepoints, each for itself: one without the other is still worth having.
fn attach_faults(programs: &mut Ebpf) -> (Result<(), ProbeError>, Result<(), ProbeError>) {
    let mut attach = |name, tracepoint| {
        let program: &mut RawTracePoint = program(programs, name)?;
        program.load().map_err(refused(name))?;
        match program.attach(tracepoint) {
            Ok(_link) => Ok(()),
            Err(source) => Err(ProbeError::AttachTracepoint {
                tracepoint,
                source: Box::new(source),
            }),
        }
    };
    (
        attach(names::FAULT_USER, "page_fault_user"),
        attach(names::FAULT_KERNEL, "page_fault_kernel"),
    )
}

fn tracked_error(action: &'static str, source: MapError) -> ProbeError {
    ProbeError::Map {
        map: names::TRACKED,
        action,
        source: Box::new(source),
    }
}
