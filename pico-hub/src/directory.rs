//! The names of apps as DNS needs them: what a label stands for, and how its agent hears that a client is likely
//! to come. Knows neither DNS nor the registry: [`Names`] is told of each change.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{PoisonError, RwLock};

use pico_proto::v1::{AppState, WakeOnDns};
use tokio::sync::watch;

use crate::id::{AgentId, AppId};
use pico_proto::port::Port;

/// What DNS asks of the hub. None of it waits.
pub trait Directory: Send + Sync + 'static {
    /// What the label `NAME-OWNER`, in lower case, stands for.
    fn lookup(&self, label: &str) -> Option<Entry>;

    /// The ports that the app with this label publishes; empty where there is no such app.
    fn ports(&self, label: &str) -> Vec<Port>;

    /// The serial number of all names together, for SOA: it grows (RFC 1982) with each change of a name, of an
    /// address or of a port, and never falls back, not even over a restart of the hub.
    fn serial(&self) -> watch::Receiver<u32>;

    /// Tells the agent that has this app that a client is likely to come; with `wake`, to wake it at once. Says
    /// whether the message is on its way: not where the agent is not connected, or has more than it can take.
    fn prefetch(&self, entry: &Entry, wake: bool) -> bool;
}

/// What a label stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The app.
    pub app: AppId,
    /// The agent that has it.
    pub agent: Option<AgentId>,
    /// Its service address; none until an agent has it.
    pub ipv4: Option<Ipv4Addr>,
    /// Its service address; none until an agent has it.
    pub ipv6: Option<Ipv6Addr>,
    /// As last heard.
    pub state: AppState,
    /// What a query does besides being answered; never `Unspecified`.
    pub wake_on_dns: WakeOnDns,
}

/// The names of all apps, in memory. Written at each change, read by each query.
#[derive(Debug)]
pub struct Names {
    labels: RwLock<HashMap<Box<str>, Slot>>,
    serial: watch::Sender<u32>,
}

#[derive(Debug)]
struct Slot {
    entry: Entry,
    ports: Box<[Port]>,
}

impl Names {
    /// No names yet. `serial` is at least every serial of the past.
    pub fn new(serial: u32) -> Self {
        Names {
            labels: RwLock::default(),
            serial: watch::Sender::new(serial),
        }
    }

    /// See [`Directory::lookup`].
    pub fn lookup(&self, label: &str) -> Option<Entry> {
        let labels = self.labels.read().unwrap_or_else(PoisonError::into_inner);
        labels.get(label).map(|slot| slot.entry)
    }

    /// See [`Directory::ports`].
    pub fn ports(&self, label: &str) -> Vec<Port> {
        let labels = self.labels.read().unwrap_or_else(PoisonError::into_inner);
        labels
            .get(label)
            .map(|slot| slot.ports.to_vec())
            .unwrap_or_default()
    }

    /// See [`Directory::serial`].
    pub fn serial(&self) -> watch::Receiver<u32> {
        self.serial.subscribe()
    }

    /// The label stands for this from now on. `serial` grows with each call.
    pub fn set(&self, label: &str, entry: Entry, ports: &[Port], serial: u32) {
        let mut labels = self.labels.write().unwrap_or_else(PoisonError::into_inner);
        let seen = |entry: &Entry| (entry.app, entry.ipv4, entry.ipv6);
        let changed = match labels.get_mut(label) {
            Some(slot) => {
                let ports_changed = *slot.ports != *ports;
                if ports_changed {
                    slot.ports = ports.into();
                }
                let old = std::mem::replace(&mut slot.entry, entry);
                ports_changed || seen(&old) != seen(&entry)
            }
            None => {
                let ports = ports.into();
                labels.insert(label.into(), Slot { entry, ports });
                true
            }
        };
        drop(labels);
        if changed {
            self.serial.send_replace(serial);
        }
    }

    /// The label stands for nothing from now on.
    pub fn remove(&self, label: &str, serial: u32) {
        let removed = {
            let mut labels = self.labels.write().unwrap_or_else(PoisonError::into_inner);
            labels.remove(label)
        };
        if removed.is_some() {
            self.serial.send_replace(serial);
        }
    }

    /// How many apps are in each state, as last heard.
    pub fn states(&self) -> HashMap<AppState, u64> {
        let labels = self.labels.read().unwrap_or_else(PoisonError::into_inner);
        let mut states = HashMap::new();
        for slot in labels.values() {
            *states.entry(slot.entry.state).or_default() += 1;
        }
        states
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.labels.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pico_proto::port::Proto;

    #[test]
    fn the_serial_changes_with_what_a_client_can_see_and_with_nothing_else() {
        let names = Names::new(7);
        let mut serial = names.serial();
        let mut entry = Entry {
            app: AppId::from_number(1),
            agent: None,
            ipv4: None,
            ipv6: None,
            state: AppState::Pending,
            wake_on_dns: WakeOnDns::Prefetch,
        };
        let port = Port {
            number: 80,
            proto: Proto::Tcp,
        };
        let mut set = |entry: &Entry, ports: &[Port], number| {
            names.set("web-ann", *entry, ports, number);
            let changed = serial.has_changed().unwrap();
            (changed, *serial.borrow_and_update())
        };
        assert_eq!(set(&entry, &[], 8), (true, 8));
        entry.state = AppState::Hot;
        entry.agent = Some(AgentId::from_number(9));
        assert_eq!(set(&entry, &[], 9), (false, 8));
        assert_eq!(names.lookup("web-ann"), Some(entry));
        assert_eq!(set(&entry, &[port], 10), (true, 10));
        entry.ipv4 = Some(Ipv4Addr::new(10, 77, 0, 2));
        assert_eq!(set(&entry, &[port], 11), (true, 11));
        assert_eq!(names.ports("web-ann"), [port]);
        names.remove("web-ann", 12);
        names.remove("web-ann", 13);
        assert_eq!(*serial.borrow_and_update(), 12);
        assert!(names.lookup("web-ann").is_none() && names.is_empty());
    }
}
