//! Decides what becomes of each packet and keeps those that wait, in order and within bounds. Pure: no device,
//! no routes, no clock but what it is given. Knows apps by name and address only.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Addresses;
use super::packet::{self, Content};
use crate::port::{Port, Proto};

/// What is to be done with a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Kept for a holding app, or dropped and counted.
    Kept,
    /// Like [`Verdict::Kept`], and the app is to be woken: the first packet since it began to hold.
    Wake(Arc<str>, Port),
    /// The app is hot: to be written back so that the kernel delivers it.
    Forward,
}

/// Counts of one app's packets since it was registered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HoldCounts {
    /// Packets kept until a release.
    pub held: u64,
    /// Packets that met a full queue and were dropped.
    pub overflowed: u64,
    /// Packets dropped because the app publishes no such port, or that carry neither TCP nor UDP.
    pub not_published: u64,
    /// Echo requests dropped while the app was not hot.
    pub pings: u64,
    /// Packets that raced a route change and were passed on while the app was hot.
    pub forwarded: u64,
    /// Held packets given up by a discard.
    pub discarded: u64,
}

/// Counts of packets that belong to no app.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StrayCounts {
    /// For an address that no app has.
    pub unknown: u64,
    /// For a group: what this host itself announces on every device.
    pub multicast: u64,
    /// Not IP, or cut off.
    pub malformed: u64,
}

/// Packets of one app, taken out to be released.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// In the order in which they arrived.
    pub packets: Vec<Box<[u8]>>,
    /// How long the first of them has waited.
    pub waited: Option<Duration>,
}

#[derive(Debug)]
struct App {
    name: Arc<str>,
    addresses: Addresses,
    ports: Vec<Port>,
    holding: bool,
    woken: bool,
    queue: VecDeque<Box<[u8]>>,
    first_at: Option<Instant>,
    counts: HoldCounts,
}

/// All apps the gate knows, and the packets held for them.
#[derive(Debug)]
pub struct HoldTable {
    apps: HashMap<Arc<str>, App>,
    names: HashMap<IpAddr, Arc<str>>,
    held_bytes: usize,
    max_packets: usize,
    max_bytes: usize,
    strays: StrayCounts,
}

impl HoldTable {
    /// `max_packets` per app, `max_bytes` in all.
    pub fn new(max_packets: usize, max_bytes: usize) -> Self {
        Self {
            apps: HashMap::new(),
            names: HashMap::new(),
            held_bytes: 0,
            max_packets,
            max_bytes,
            strays: StrayCounts::default(),
        }
    }

    /// Makes an app known, holding. One that is known already keeps its state, counts and packets, and takes the
    /// new ports and addresses.
    pub fn register(&mut self, name: &str, addresses: Addresses, ports: &[Port]) {
        let name: Arc<str> = name.into();
        if let Some(app) = self.apps.get_mut(&name) {
            for address in app.addresses.both() {
                if self.names.get(&address) == Some(&name) {
                    self.names.remove(&address);
                }
            }
            app.addresses = addresses;
            app.ports = ports.to_vec();
        } else {
            let app = App {
                name: name.clone(),
                addresses,
                ports: ports.to_vec(),
                holding: true,
                woken: false,
                queue: VecDeque::new(),
                first_at: None,
                counts: HoldCounts::default(),
            };
            self.apps.insert(name.clone(), app);
        }
        for address in addresses.both() {
            if let Some(other) = self.names.insert(address, name.clone())
                && other != name
            {
                tracing::warn!(%address, app = %name, %other, "two apps have one service address; the later gets it");
            }
        }
    }

    /// Forgets an app and its packets. False when it was not known.
    pub fn unregister(&mut self, name: &str) -> bool {
        self.discard(name);
        let Some(app) = self.apps.remove(name) else {
            return false;
        };
        for address in app.addresses.both() {
            if self.names.get(&address) == Some(&app.name) {
                self.names.remove(&address);
            }
        }
        true
    }

    /// The service addresses of an app.
    pub fn addresses(&self, name: &str) -> Option<Addresses> {
        self.apps.get(name).map(|app| app.addresses)
    }

    /// From now on packets are kept; the next one for a published port wakes the app.
    pub fn hold(&mut self, name: &str) {
        if let Some(app) = self.apps.get_mut(name) {
            app.holding = true;
            app.woken = false;
        }
    }

    /// From now on packets are passed on; those kept so far are handed out.
    pub fn release(&mut self, name: &str, now: Instant) -> Taken {
        let Some(app) = self.apps.get_mut(name) else {
            return Taken::default();
        };
        app.holding = false;
        let packets: Vec<_> = app.queue.drain(..).collect();
        self.held_bytes -= packets.iter().map(|packet| packet.len()).sum::<usize>();
        let waited = app
            .first_at
            .take()
            .map(|first| now.saturating_duration_since(first));
        Taken { packets, waited }
    }

    /// Drops what is held for an app and lets its next packet wake it again. Returns how many were dropped.
    pub fn discard(&mut self, name: &str) -> usize {
        let Some(app) = self.apps.get_mut(name) else {
            return 0;
        };
        let dropped = app.queue.len();
        self.held_bytes -= app.queue.drain(..).map(|packet| packet.len()).sum::<usize>();
        app.first_at = None;
        app.woken = false;
        app.counts.discarded += dropped as u64;
        dropped
    }

    /// How many packets are held for an app.
    pub fn held(&self, name: &str) -> usize {
        self.apps.get(name).map_or(0, |app| app.queue.len())
    }

    /// An app's counts.
    pub fn counts(&self, name: &str) -> Option<HoldCounts> {
        self.apps.get(name).map(|app| app.counts)
    }

    /// Counts of packets for no app.
    pub fn strays(&self) -> StrayCounts {
        self.strays
    }

    /// Takes one packet read from the TUN.
    pub fn offer(&mut self, bytes: &[u8], now: Instant) -> Verdict {
        let Some(packet) = packet::parse(bytes) else {
            self.strays.malformed += 1;
            return Verdict::Kept;
        };
        let Some(app) = self
            .names
            .get(&packet.destination)
            .and_then(|name| self.apps.get_mut(name))
        else {
            let stray = if packet.destination.is_multicast() {
                &mut self.strays.multicast
            } else {
                &mut self.strays.unknown
            };
            *stray += 1;
            return Verdict::Kept;
        };
        if !app.holding {
            app.counts.forwarded += 1;
            return Verdict::Forward;
        }
        let published = |number, proto| {
            app.ports
                .iter()
                .copied()
                .find(|port| *port == Port { number, proto })
        };
        let wakes = match packet.content {
            Content::Tcp { destination, rst, .. } => match published(destination, Proto::Tcp) {
                // A reset wants no answer, but the app must see it once it wakes for something else.
                Some(_) if rst => None,
                Some(port) => Some(port),
                None => return app.drop_unpublished(),
            },
            Content::Udp { destination, .. } => match published(destination, Proto::Udp) {
                Some(port) => Some(port),
                None => return app.drop_unpublished(),
            },
            // The first fragment told whether the port is published; without it there is nothing to complete.
            Content::Fragment if app.woken => None,
            Content::Echo => {
                app.counts.pings += 1;
                return Verdict::Kept;
            }
            Content::Fragment | Content::Other(_) => return app.drop_unpublished(),
        };
        if app.queue.len() < self.max_packets && self.held_bytes + bytes.len() <= self.max_bytes {
            app.queue.push_back(bytes.into());
            app.first_at.get_or_insert(now);
            app.counts.held += 1;
            self.held_bytes += bytes.len();
        } else {
            app.counts.overflowed += 1;
        }
        match wakes {
            // Also when the packet itself found no room: its sender will try again.
            Some(port) if !app.woken => {
                app.woken = true;
                Verdict::Wake(app.name.clone(), port)
            }
            _ => Verdict::Kept,
        }
    }
}

impl App {
    fn drop_unpublished(&mut self) -> Verdict {
        self.counts.not_published += 1;
        Verdict::Kept
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::super::packet::samples::{tcp, udp, v4, v6};
    use super::*;

    const HTTP: Port = Port {
        number: 80,
        proto: Proto::Tcp,
    };
    const DNS: Port = Port {
        number: 53,
        proto: Proto::Udp,
    };

    fn app(last: u8) -> Addresses {
        Addresses {
            v4: Ipv4Addr::new(10, 77, 0, last),
            v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(last)),
        }
    }

    fn table() -> HoldTable {
        let mut table = HoldTable::new(4, 1 << 20);
        table.register("web", app(5), &[HTTP, DNS]);
        table
    }

    fn syn(port: u16) -> Vec<u8> {
        v4(app(5).v4, 6, 0, &tcp(port, 2))
    }

    fn offer(table: &mut HoldTable, bytes: &[u8]) -> Verdict {
        table.offer(bytes, Instant::now())
    }

    #[test]
    fn the_first_packet_wakes_once_and_all_come_out_in_order() {
        let mut table = table();
        let packets: Vec<_> = (0..3).map(|n| v6(app(5).v6, 17, &udp(53, &[n]))).collect();
        assert_eq!(offer(&mut table, &packets[0]), Verdict::Wake("web".into(), DNS));
        assert_eq!(offer(&mut table, &packets[1]), Verdict::Kept);
        assert_eq!(offer(&mut table, &packets[2]), Verdict::Kept);
        assert_eq!(table.held("web"), 3);
        let taken: Vec<Vec<u8>> = table
            .release("web", Instant::now())
            .packets
            .into_iter()
            .map(Into::into)
            .collect();
        assert_eq!(taken, packets);
        assert_eq!(offer(&mut table, &packets[0]), Verdict::Forward);
        assert_eq!((table.held("web"), table.held_bytes), (0, 0));
    }

    #[test]
    fn holding_again_or_discarding_lets_the_next_packet_wake_again() {
        let mut table = table();
        let wake = Verdict::Wake("web".into(), HTTP);
        assert_eq!(offer(&mut table, &syn(80)), wake);
        table.hold("web");
        assert_eq!(offer(&mut table, &syn(80)), wake);
        assert_eq!(table.discard("web"), 2);
        assert_eq!(offer(&mut table, &syn(80)), wake);
        assert_eq!(
            table.counts("web").map(|counts| (counts.held, counts.discarded)),
            Some((3, 2))
        );
    }

    #[test]
    fn unpublished_ports_pings_and_unknown_addresses_are_counted_and_wake_nothing() {
        let mut table = table();
        for bytes in [
            syn(81),
            v4(app(5).v4, 17, 0, &udp(80, b"")),
            v4(app(5).v4, 1, 0, &[8, 0]),
            v4(app(5).v4, 132, 0, &[0; 12]),
            v4(app(5).v4, 17, 1, &[0; 12]),
            v4(app(6).v4, 6, 0, &tcp(80, 2)),
            v4(Ipv4Addr::new(224, 0, 0, 22), 2, 0, &[0; 8]),
            vec![0; 30],
        ] {
            assert_eq!(offer(&mut table, &bytes), Verdict::Kept);
        }
        assert_eq!(
            table.counts("web"),
            Some(HoldCounts {
                not_published: 4,
                pings: 1,
                ..HoldCounts::default()
            })
        );
        assert_eq!(
            table.strays(),
            StrayCounts {
                unknown: 1,
                multicast: 1,
                malformed: 1
            }
        );
        assert_eq!(table.held("web"), 0);
    }

    #[test]
    fn a_reset_is_kept_but_wakes_nothing() {
        let mut table = table();
        assert_eq!(
            offer(&mut table, &v4(app(5).v4, 6, 0, &tcp(80, 4))),
            Verdict::Kept
        );
        assert_eq!(table.held("web"), 1);
        assert_eq!(offer(&mut table, &syn(80)), Verdict::Wake("web".into(), HTTP));
    }

    #[test]
    fn later_fragments_follow_the_first_one() {
        let mut table = table();
        offer(&mut table, &v4(app(5).v4, 17, 0x2000, &udp(53, b"a")));
        offer(&mut table, &v4(app(5).v4, 17, 1, b"b"));
        assert_eq!(table.held("web"), 2);
    }

    #[test]
    fn a_full_queue_drops_counts_and_still_wakes() {
        let mut table = HoldTable::new(0, 1 << 20);
        table.register("web", app(5), &[HTTP]);
        assert_eq!(offer(&mut table, &syn(80)), Verdict::Wake("web".into(), HTTP));
        assert_eq!(offer(&mut table, &syn(80)), Verdict::Kept);
        assert_eq!(
            table.counts("web").map(|counts| (counts.held, counts.overflowed)),
            Some((0, 2))
        );
    }

    #[test]
    fn registering_again_keeps_what_is_held() {
        let mut table = table();
        offer(&mut table, &syn(80));
        table.register("web", app(9), &[DNS]);
        assert_eq!(table.held("web"), 1);
        assert_eq!(offer(&mut table, &syn(80)), Verdict::Kept);
        assert_eq!(table.strays().unknown, 1);
        assert!(table.unregister("web"));
        assert!(!table.unregister("web"));
        assert_eq!((table.held_bytes, table.names.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn bounds_hold_and_no_byte_is_lost_count_of(
            steps in proptest::collection::vec((0..3u8, 0..6u8, 0..300usize), 0..200),
        ) {
            let mut table = HoldTable::new(5, 1500);
            let names = ["a", "b", "c"];
            for (n, name) in (1..).zip(names) {
                table.register(name, app(n), &[DNS]);
            }
            for (which, action, size) in steps {
                let name = names[usize::from(which)];
                match action {
                    0 => table.hold(name),
                    1 => { table.release(name, Instant::now()); }
                    2 => { table.discard(name); }
                    _ => { offer(&mut table, &v4(app(which + 1).v4, 17, 0, &udp(53, &vec![0; size]))); }
                }
                let held: usize = table.apps.values().flat_map(|app| &app.queue).map(|packet| packet.len()).sum();
                prop_assert_eq!(table.held_bytes, held);
                prop_assert!(held <= 1500);
                prop_assert!(names.iter().all(|name| table.held(name) <= 5));
            }
        }
    }
}
