//! The map of last activity: which addresses and ports are counted, and what was counted.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{MapData, MapError, PerCpuHashMap, PerCpuValues};
use aya::sys::SyscallError;
use pico_ebpf::{Activity, ActivityKey, OTHER_PORTS, names, v4_mapped};

use super::ProbeError;
use crate::port::{Port, Proto};

/// What was seen on one local port of an app since it is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortActivity {
    /// The app's own port; 0 for all ports together that were not given to `watch` (unpublished ones, and
    /// those of connections the app itself opens).
    pub port: u16,
    /// TCP or UDP.
    pub proto: Proto,
    /// Seen on the app's IPv6 address rather than its IPv4 address.
    pub local_v6: bool,
    /// When the last packet passed: CLOCK_MONOTONIC, nanoseconds.
    pub last_ns: u64,
    /// Packets in both directions, as the socket layer sees them (offloaded segments count once).
    pub packets: u64,
    /// Their bytes from the IP header on.
    pub bytes: u64,
}

type Key = [u8; size_of::<ActivityKey>()];
type Value = [u8; size_of::<Activity>()];

/// `bpf_map_update_elem` flag: make the entry, or fail if it is there (`BPF_NOEXIST`, linux/bpf.h).
const BPF_NOEXIST: u64 = 1;

pub(super) struct ActivityMap(Mutex<Inner>);

struct Inner {
    map: PerCpuHashMap<MapData, Key, Value>,
    watched: HashMap<(Ipv4Addr, Ipv6Addr), Vec<ActivityKey>>,
    cpus: usize,
}

impl ActivityMap {
    pub(super) fn new(map: PerCpuHashMap<MapData, Key, Value>) -> Result<Self, ProbeError> {
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| {
            failed(
                "read",
                MapError::from(SyscallError {
                    call: "nr_cpus",
                    io_error: source,
                }),
            )
        })?;
        Ok(ActivityMap(Mutex::new(Inner {
            map,
            watched: HashMap::new(),
            cpus,
        })))
    }

    pub(super) fn watch(&self, v4: Ipv4Addr, v6: Ipv6Addr, ports: &[Port]) -> Result<(), ProbeError> {
        let mut inner = self.lock();
        let wanted = keys(v4, v6, ports);
        // Noted before the entries are made, so that `forget` takes away a half-made set, too.
        let old = inner.watched.insert((v4, v6), wanted.clone()).unwrap_or_default();
        for key in old.iter().filter(|key| !wanted.contains(key)) {
            inner.remove(key)?;
        }
        wanted.iter().try_for_each(|key| inner.add(key))
    }

    pub(super) fn forget(&self, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<(), ProbeError> {
        let mut inner = self.lock();
        let keys = inner.watched.remove(&(v4, v6)).unwrap_or_default();
        keys.iter().try_for_each(|key| inner.remove(key))
    }

    pub(super) fn read(&self, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<Vec<PortActivity>, ProbeError> {
        let inner = self.lock();
        let keys = inner
            .watched
            .get(&(v4, v6))
            .map(Vec::as_slice)
            .unwrap_or_default();
        let mut seen = Vec::new();
        for key in keys {
            let total = inner.total(key)?;
            if total.packets > 0 {
                seen.push(PortActivity {
                    port: key.port,
                    proto: if key.proto == Proto::Tcp.number() {
                        Proto::Tcp
                    } else {
                        Proto::Udp
                    },
                    local_v6: key.address == v6.octets(),
                    last_ns: total.last_ns,
                    packets: total.packets,
                    bytes: total.bytes,
                });
            }
        }
        Ok(seen)
    }

    /// How many entries the map holds for watched apps.
    pub(super) fn entries(&self) -> usize {
        self.lock().watched.values().map(Vec::len).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whoever panicked with the lock held left at worst entries that `watch` or `forget` mends.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Makes an entry with nothing counted; leaves one that is there as it is.
    fn add(&mut self, key: &ActivityKey) -> Result<(), ProbeError> {
        let zeros = vec![Value::default(); self.cpus];
        let zeros = PerCpuValues::try_from(zeros).map_err(|source| failed("add to", source.into()))?;
        let key: Key = zerocopy::transmute!(*key);
        match self.map.insert(key, zeros, BPF_NOEXIST) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => {
                Ok(())
            }
            other => other.map_err(|source| failed("add to", source)),
        }
    }

    fn remove(&mut self, key: &ActivityKey) -> Result<(), ProbeError> {
        match self.map.remove(&zerocopy::transmute!(*key)) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| failed("remove from", source)),
        }
    }

    /// What all CPUs together counted.
    fn total(&self, key: &ActivityKey) -> Result<Activity, ProbeError> {
        let values = match self.map.get(&zerocopy::transmute!(*key), 0) {
            Err(MapError::KeyNotFound) => return Ok(Activity::default()),
            other => other.map_err(|source| failed("read", source))?,
        };
        Ok(values.iter().fold(Activity::default(), |sum, value| {
            let cpu: Activity = zerocopy::transmute!(*value);
            Activity {
                last_ns: sum.last_ns.max(cpu.last_ns),
                packets: sum.packets + cpu.packets,
                bytes: sum.bytes + cpu.bytes,
            }
        }))
    }
}

/// Every entry an app has: its published ports and "any other port", on both addresses.
fn keys(v4: Ipv4Addr, v6: Ipv6Addr, ports: &[Port]) -> Vec<ActivityKey> {
    let others = [Proto::Tcp, Proto::Udp].map(|proto| Port {
        number: OTHER_PORTS,
        proto,
    });
    [v4_mapped(v4.octets()), v6.octets()]
        .into_iter()
        .flat_map(|address| {
            let ports = ports.iter().chain(&others);
            ports
                .map(move |port| ActivityKey::new(address, port.number, port.proto.number()))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn failed(action: &'static str, source: MapError) -> ProbeError {
    ProbeError::Map {
        map: names::ACTIVITY,
        action,
        source: Box::new(source),
    }
}
