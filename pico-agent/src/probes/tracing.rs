//! Whose page faults and socket activity are told: attaching the programs while anybody is traced, and none
//! while nobody is, so that tracing costs a host nothing that does not use it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError};
use aya::programs::raw_trace_point::RawTracePointLinkId;
use pico_ebpf::{PortKey, Tracked, names, v4_mapped};

use super::ProbeError;
use super::object::{Programs, is_not_there, load_tracepoint, map_error, program, take};
use crate::port::Port;

/// What is traced.
#[derive(Debug, Clone)]
pub struct Target {
    /// The cgroup whose processes are traced (not those in cgroups below it): the inode number of its
    /// directory in the v2 hierarchy.
    pub cgroup: u64,
    /// The app's number, by which events name it.
    pub app: u32,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// Ports on which requests come in.
    pub ports: Vec<Port>,
}

/// An app that is traced; no more when this is dropped.
#[derive(Debug)]
pub struct Tracing {
    tracer: Arc<Tracer>,
    target: Target,
}

impl Drop for Tracing {
    fn drop(&mut self) {
        self.tracer.lock().end(&self.target);
    }
}

/// Where what threads receive and send is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortSource {
    /// Tracepoints of the socket layer (Linux 6.3).
    Sockets,
    /// The return of every system call.
    SystemCalls,
}

type TrackedValue = [u8; size_of::<Tracked>()];
type Port8 = [u8; size_of::<PortKey>()];

pub(super) struct Tracer {
    programs: Programs,
    ports: Option<PortSource>,
    inner: Mutex<Inner>,
}

struct Inner {
    programs: Programs,
    ports: Option<PortSource>,
    tracked: HashMap<MapData, u64, TrackedValue>,
    homes: HashMap<MapData, [u8; 16], TrackedValue>,
    published: HashMap<MapData, Port8, u32>,
    attached: Vec<(&'static str, RawTracePointLinkId)>,
    active: usize,
    runs: u32,
}

/// A program and the tracepoint it is for.
type Hook = (&'static str, &'static str);

const USER_FAULTS: Hook = (names::FAULT_USER, "page_fault_user");
const KERNEL_FAULTS: Hook = (names::FAULT_KERNEL, "page_fault_kernel");
/// Attached for whichever source of ports there is.
const REQUESTS: [Hook; 3] = [
    (names::CONNECTION, "inet_sock_set_state"),
    (names::FORKED, "sched_process_fork"),
    (names::WAKING, "sched_waking"),
];
const SOCKETS: [Hook; 2] = [
    (names::RECEIVED, "sock_recv_length"),
    (names::SENT, "sock_send_length"),
];
const SYSTEM_CALLS: [Hook; 1] = [(names::SYSCALL_DONE, "sys_exit")];

/// What of tracing works here.
#[derive(Debug)]
pub(super) struct Works {
    pub(super) user_faults: Result<(), ProbeError>,
    pub(super) kernel_faults: Result<(), ProbeError>,
    pub(super) ports: Result<PortSource, ProbeError>,
}

/// Loads the programs and tries to attach each; leaves none attached. `wanted`: the only source of ports that is
/// tried.
pub(super) fn try_all(
    programs: &mut Ebpf,
    types: Result<(), super::btf::BtfError>,
    wanted: Option<PortSource>,
) -> Works {
    let user_faults = attempt(programs, USER_FAULTS);
    let kernel_faults = attempt(programs, KERNEL_FAULTS);
    let mut ports_by = |source| {
        let hooks = REQUESTS.iter().chain(hooks_of(source));
        hooks
            .copied()
            .try_for_each(|hook| attempt(programs, hook))
            .map(|()| source)
    };
    let ports = match (types, wanted) {
        (Err(error), _) => Err(ProbeError::Types(error)),
        (Ok(()), Some(source)) => ports_by(source),
        (Ok(()), None) => ports_by(PortSource::Sockets).or_else(|_| ports_by(PortSource::SystemCalls)),
    };
    Works {
        user_faults,
        kernel_faults,
        ports,
    }
}

fn hooks_of(source: PortSource) -> &'static [Hook] {
    match source {
        PortSource::Sockets => &SOCKETS,
        PortSource::SystemCalls => &SYSTEM_CALLS,
    }
}

fn attempt(programs: &mut Ebpf, hook: Hook) -> Result<(), ProbeError> {
    let link = attach(programs, hook)?;
    detach(programs, hook.0, link);
    Ok(())
}

fn attach(programs: &mut Ebpf, (name, tracepoint): Hook) -> Result<RawTracePointLinkId, ProbeError> {
    load_tracepoint(programs, name)?
        .attach(tracepoint)
        .map_err(|source| ProbeError::AttachTracepoint {
            tracepoint,
            source: Box::new(source),
        })
}

fn detach(programs: &mut Ebpf, name: &'static str, link: RawTracePointLinkId) {
    // Fails only for what is not attached, and that is what is wanted.
    if let Ok(program) = program::<aya::programs::RawTracePoint>(programs, name) {
        let _ = program.detach(link);
    }
}

impl Tracer {
    /// Takes its maps out of the object.
    pub(super) fn new(
        object: &mut Ebpf,
        programs: Programs,
        ports: Option<PortSource>,
    ) -> Result<Arc<Self>, ProbeError> {
        let inner = Inner {
            programs: programs.clone(),
            ports,
            tracked: take(object, names::TRACKED)?,
            homes: take(object, names::HOMES)?,
            published: take(object, names::PORTS)?,
            attached: Vec::new(),
            active: 0,
            runs: 0,
        };
        Ok(Arc::new(Tracer {
            programs,
            ports,
            inner: Mutex::new(inner),
        }))
    }

    pub(super) fn trace(self: &Arc<Self>, target: Target) -> Result<Tracing, ProbeError> {
        self.lock().begin(&target)?;
        Ok(Tracing {
            tracer: self.clone(),
            target,
        })
    }

    /// Cgroups that are traced.
    pub(super) fn active(&self) -> usize {
        self.lock().active
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whoever panicked with the lock held left at worst entries that nobody's events match.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracer")
            .field("ports", &self.ports)
            .field("programs", &self.programs)
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn begin(&mut self, target: &Target) -> Result<(), ProbeError> {
        if self.active == 0 {
            self.attach_all();
        }
        self.active += 1;
        self.runs = self.runs.wrapping_add(1);
        let tracked = Tracked {
            app: target.app,
            run: self.runs,
        };
        let added = self.add(target, zerocopy::transmute!(tracked));
        if added.is_err() {
            self.end(target);
        }
        added
    }

    fn add(&mut self, target: &Target, tracked: TrackedValue) -> Result<(), ProbeError> {
        for port in &target.ports {
            self.published
                .insert(key(target, *port), 1, 0)
                .map_err(|source| map_error(names::PORTS, "add to", source))?;
        }
        for home in homes(target) {
            self.homes
                .insert(home, tracked, 0)
                .map_err(|source| map_error(names::HOMES, "add to", source))?;
        }
        // Last: from here on events come.
        self.tracked
            .insert(target.cgroup, tracked, 0)
            .map_err(|source| map_error(names::TRACKED, "add to", source))
    }

    fn end(&mut self, target: &Target) {
        let mut failed = Vec::new();
        let mut check = |map, result: Result<(), MapError>| match result {
            Err(error) if !is_not_there(&error) => failed.push((map, error)),
            _ => {}
        };
        check(names::TRACKED, self.tracked.remove(&target.cgroup));
        for home in homes(target) {
            check(names::HOMES, self.homes.remove(&home));
        }
        for port in &target.ports {
            check(names::PORTS, self.published.remove(&key(target, *port)));
        }
        for (map, error) in failed {
            tracing::warn!(map, %error, "an entry stays; it matches nothing any more");
        }
        self.active -= 1;
        if self.active == 0 {
            let mut programs = self.programs.lock();
            for (name, link) in self.attached.drain(..) {
                detach(&mut programs, name, link);
            }
        }
    }

    /// Attaches what there is; what is missing was found and told when the probes were loaded.
    fn attach_all(&mut self) {
        let hooks = [USER_FAULTS, KERNEL_FAULTS].into_iter();
        let requests = self
            .ports
            .iter()
            .flat_map(|source| REQUESTS.iter().chain(hooks_of(*source)));
        let mut programs = self.programs.lock();
        for hook in hooks.chain(requests.copied()) {
            match attach(&mut programs, hook) {
                Ok(link) => self.attached.push((hook.0, link)),
                Err(error) => tracing::debug!(program = hook.0, %error, "not attached"),
            }
        }
    }
}

fn key(target: &Target, port: Port) -> Port8 {
    zerocopy::transmute!(PortKey::new(target.app, port.number, port.proto.number()))
}

fn homes(target: &Target) -> [[u8; 16]; 2] {
    [v4_mapped(target.v4.octets()), target.v6.octets()]
}
