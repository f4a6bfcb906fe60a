//! Decides what becomes of each packet and keeps those that wait, in order and within bounds. Pure: no device,
//! no routes, no clock but what it is given. Knows apps by name and address only.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Addresses;
use super::connections::{Connections, Meaning};
use super::limit::{Bucket, Rate, Sources};
use super::packet::{self, Content, Packet, RST, Segment};
use super::policy::{Admission, Rule, WakePolicy};
use super::probe::Responder;
use super::reply;
use crate::port::{Port, Proto};

/// Refusals sent for one app: a scan learns what it wants to know, and nobody is flooded in our name.
const REFUSALS: Rate = Rate {
    times: 200,
    per: Duration::from_secs(1),
};

/// What is to be done with a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Kept for an app that is not hot, or dropped and counted.
    Kept,
    /// Like [`Verdict::Kept`], and the app is called for: the first such packet since it began to hold.
    Wake(Arc<str>, Caller),
    /// The app is hot: to be written back so that the kernel delivers it.
    Forward,
    /// Answered in the app's name: to be written.
    Answer(Vec<Vec<u8>>),
}

/// The packet that wakes an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The app's port it is for.
    pub port: Port,
    /// Its sender.
    pub source: IpAddr,
}

/// Counts of one app's packets since it was registered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HoldCounts {
    /// Packets kept until a release.
    pub held: u64,
    /// Packets that met a full queue and were dropped.
    pub overflowed: u64,
    /// Packets that raced a route change and were passed on while the app was hot.
    pub forwarded: u64,
    /// Held packets given up because the app could not be woken.
    pub refused: u64,
    /// Packets that woke nothing, by the reason in words.
    pub filtered: BTreeMap<String, u64>,
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

/// How an app stands to its packets.
#[derive(Debug)]
enum Posture {
    /// Hot: nothing of it should come here.
    Open,
    /// Between hot and asleep, either way: whatever may be for it is kept.
    Holding {
        /// A packet that calls for the app is among those kept.
        called: bool,
    },
    /// No process: what can be answered without one is.
    Asleep {
        connections: Connections,
        /// Nothing wakes it just now: callers are refused.
        refusing: bool,
    },
}

/// What one packet comes to.
enum Fate {
    /// Kept; the app is to be called by it.
    Calls(Caller),
    /// Kept until the app runs for another reason.
    Waits,
    /// Not kept.
    Ends(Rule, Vec<Vec<u8>>),
}

#[derive(Debug)]
struct App {
    name: Arc<str>,
    addresses: Addresses,
    ports: Vec<Port>,
    policy: Arc<WakePolicy>,
    posture: Posture,
    queue: VecDeque<Box<[u8]>>,
    first_at: Option<Instant>,
    refusals: Option<Bucket>,
    sources: Sources,
    /// By the place of the probe in the policy.
    responders: BTreeMap<usize, Responder>,
    filtered: BTreeMap<Rule, u64>,
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
    /// Apps with probers that are being talked to.
    probed: BTreeSet<Arc<str>>,
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
            probed: BTreeSet::new(),
        }
    }

    /// Makes an app known, holding. One that is known already keeps its posture, counts and packets, and takes the
    /// new ports, addresses and policy.
    pub fn register(&mut self, name: &str, addresses: Addresses, ports: &[Port], policy: WakePolicy) {
        let name: Arc<str> = name.into();
        let policy = Arc::new(policy);
        if let Some(app) = self.apps.get_mut(&name) {
            for address in app.addresses.both() {
                if self.names.get(&address) == Some(&name) {
                    self.names.remove(&address);
                }
            }
            app.addresses = addresses;
            app.ports = ports.to_vec();
            app.policy = policy;
            app.responders.clear();
        } else {
            let app = App {
                name: name.clone(),
                addresses,
                ports: ports.to_vec(),
                policy,
                posture: Posture::Holding { called: false },
                queue: VecDeque::new(),
                first_at: None,
                refusals: None,
                sources: Sources::default(),
                responders: BTreeMap::new(),
                filtered: BTreeMap::new(),
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
        let Some(mut app) = self.apps.remove(name) else {
            return false;
        };
        self.held_bytes -= app.take().iter().map(|packet| packet.len()).sum::<usize>();
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

    /// From now on packets are kept; the next one that calls for the app is told of.
    pub fn hold(&mut self, name: &str) {
        if let Some(app) = self.apps.get_mut(name) {
            app.posture = Posture::Holding { called: false };
        }
    }

    /// The app, which must hold, has no process from now on; one that is hot stays so. What can be answered without
    /// it is; `connections` are those it will have when it wakes. With `refusing` nothing wakes it until this is
    /// called again without. What is held is judged anew; the verdicts that want something done come back in the
    /// order of the packets.
    pub fn asleep(
        &mut self,
        name: &str,
        connections: Connections,
        refusing: bool,
        now: Instant,
    ) -> Vec<Verdict> {
        let holds = |app: &&mut App| !matches!(app.posture, Posture::Open);
        let Some(app) = self.apps.get_mut(name).filter(holds) else {
            return Vec::new();
        };
        app.posture = Posture::Asleep {
            connections,
            refusing,
        };
        let held = app.take();
        self.held_bytes -= held.iter().map(|packet| packet.len()).sum::<usize>();
        app.counts.held -= held.len() as u64;
        if refusing {
            app.counts.refused += held.len() as u64;
        }
        let verdicts = held.iter().map(|packet| self.offer(packet, now));
        verdicts.filter(|verdict| *verdict != Verdict::Kept).collect()
    }

    /// From now on packets are passed on; those kept so far are handed out.
    pub fn release(&mut self, name: &str, now: Instant) -> Taken {
        let Some(app) = self.apps.get_mut(name) else {
            return Taken::default();
        };
        app.posture = Posture::Open;
        app.responders.clear();
        let waited = app.first_at.map(|first| now.saturating_duration_since(first));
        let packets = app.take();
        self.held_bytes -= packets.iter().map(|packet| packet.len()).sum::<usize>();
        Taken { packets, waited }
    }

    /// How many packets are held for an app.
    pub fn held(&self, name: &str) -> usize {
        self.apps.get(name).map_or(0, |app| app.queue.len())
    }

    /// Whether a packet that calls for the app has come since it began to hold.
    pub fn called(&self, name: &str) -> bool {
        self.apps
            .get(name)
            .is_some_and(|app| matches!(app.posture, Posture::Holding { called: true }))
    }

    /// An app's counts.
    pub fn counts(&self, name: &str) -> Option<HoldCounts> {
        let app = self.apps.get(name)?;
        let filtered = app
            .filtered
            .iter()
            .map(|(rule, count)| (rule.words(&app.policy), *count));
        Some(HoldCounts {
            filtered: filtered.collect(),
            ..app.counts.clone()
        })
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
        let caller = match app.fate(&packet, bytes, now) {
            None => {
                app.counts.forwarded += 1;
                return Verdict::Forward;
            }
            Some(Fate::Ends(rule, answers)) => {
                *app.filtered.entry(rule).or_default() += 1;
                if matches!(rule, Rule::Probe(_)) && !app.responders.is_empty() {
                    self.probed.insert(app.name.clone());
                }
                return if answers.is_empty() {
                    Verdict::Kept
                } else {
                    Verdict::Answer(answers)
                };
            }
            Some(Fate::Waits) => None,
            Some(Fate::Calls(caller)) => Some(caller),
        };
        let name = app.name.clone();
        // Also when the packet itself finds no room: its sender will try again.
        let calls = caller.filter(|_| app.call());
        self.keep(&name, bytes, now);
        match calls {
            Some(caller) => Verdict::Wake(name, caller),
            None => Verdict::Kept,
        }
    }

    /// Keeps a packet for an app, behind those that are kept, if there is room.
    pub fn keep(&mut self, name: &str, bytes: &[u8], now: Instant) {
        let Some(app) = self.apps.get_mut(name) else {
            return;
        };
        if app.queue.len() < self.max_packets && self.held_bytes + bytes.len() <= self.max_bytes {
            app.queue.push_back(bytes.into());
            app.first_at.get_or_insert(now);
            app.counts.held += 1;
            self.held_bytes += bytes.len();
        } else {
            app.counts.overflowed += 1;
        }
    }

    /// Whether any prober is being talked to.
    pub fn probed(&self) -> bool {
        !self.probed.is_empty()
    }

    /// What probers are due to be told without having said anything: something that was lost.
    pub fn overdue(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut due = Vec::new();
        let apps = &mut self.apps;
        self.probed.retain(|name| {
            let responders = apps.get_mut(name).map(|app| &mut app.responders);
            let mut busy = false;
            for responder in responders.into_iter().flat_map(BTreeMap::values_mut) {
                due.extend(responder.poll(now));
                busy |= !responder.idle();
            }
            busy
        });
        due
    }
}

impl App {
    fn take(&mut self) -> Vec<Box<[u8]>> {
        self.first_at = None;
        self.queue.drain(..).collect()
    }

    /// Notes a call. True for the first one since the app began to hold.
    fn call(&mut self) -> bool {
        let first = !matches!(self.posture, Posture::Holding { called: true });
        self.posture = Posture::Holding { called: true };
        first
    }

    fn published(&self, number: u16, proto: Proto) -> Option<Port> {
        let port = Port { number, proto };
        self.ports.contains(&port).then_some(port)
    }

    /// `None` when the app is hot.
    fn fate(&mut self, packet: &Packet<'_>, bytes: &[u8], now: Instant) -> Option<Fate> {
        let asleep = match &self.posture {
            Posture::Open => return None,
            Posture::Holding { .. } => false,
            Posture::Asleep { .. } => true,
        };
        Some(match packet.content {
            Content::Echo => Fate::Ends(Rule::Ping, reply::echo(packet).into_iter().collect()),
            Content::Tcp(segment) if asleep => self.segment_asleep(packet, &segment, bytes, now),
            Content::Tcp(segment) => self.segment_held(packet, &segment, now),
            Content::Udp { source, destination } if asleep => {
                self.datagram_asleep(packet, source, destination, bytes, now)
            }
            // An answer to what the app has asked goes to a port that it does not publish.
            Content::Udp { destination, .. } => Fate::Calls(caller(packet, destination, Proto::Udp)),
            // The first fragment told whether the port is published; without it there is nothing to complete.
            Content::Fragment if asleep => Fate::Ends(Rule::Protocol, Vec::new()),
            // Errors are about what the app has sent; it hears of them when it runs.
            Content::Fragment | Content::Error => Fate::Waits,
            Content::Other(_) => Fate::Ends(Rule::Protocol, Vec::new()),
        })
    }

    /// Between hot and asleep nobody knows the app's connections: all segments are kept but those that ask for one
    /// where nobody is asked.
    fn segment_held(&mut self, packet: &Packet<'_>, segment: &Segment, now: Instant) -> Fate {
        let published = self.published(segment.destination, Proto::Tcp).is_some();
        if segment.opens() && !published {
            return self.refuse(packet, segment, Rule::Unpublished, now);
        }
        // Whoever may not wake the app does not keep it awake either; if it runs on it gets this.
        let admitted = !segment.opens() || self.policy.admission(packet.source) == Admission::Wakes;
        if segment.has(RST) || segment.length() == 0 || !admitted {
            return Fate::Waits;
        }
        Fate::Calls(caller(packet, segment.destination, Proto::Tcp))
    }

    fn segment_asleep(&mut self, packet: &Packet<'_>, segment: &Segment, bytes: &[u8], now: Instant) -> Fate {
        let Posture::Asleep {
            connections,
            refusing,
        } = &self.posture
        else {
            return Fate::Waits;
        };
        let refusing = *refusing;
        let local = SocketAddr::new(packet.destination, segment.destination);
        let peer = SocketAddr::new(packet.source, segment.source);
        let calls = Fate::Calls(caller(packet, segment.destination, Proto::Tcp));
        if let Some(connection) = connections.find(local, peer) {
            return match connection.meaning(segment) {
                Meaning::Old(own) => {
                    let answer = reply::acknowledge(packet, segment, &own);
                    Fate::Ends(Rule::Keepalive, answer.into_iter().collect())
                }
                Meaning::Nothing => Fate::Ends(Rule::Acknowledgement, Vec::new()),
                Meaning::Reset => Fate::Waits,
                // It sends again, and by then the app may be there: the connection is worth more than an answer.
                Meaning::News if refusing => Fate::Ends(Rule::Unavailable, Vec::new()),
                Meaning::News => calls,
            };
        }
        if !refusing
            && self.published(segment.destination, Proto::Tcp).is_some()
            && let Admission::Probe(place) = self.policy.admission(packet.source)
            && let Some(probe) = self.policy.probes.get(place)
        {
            let addresses = self.addresses;
            let responders = self.responders.entry(place);
            let responder = responders.or_insert_with(|| Responder::new(addresses, now));
            let answers = responder.answer(bytes, segment.destination, &probe.reply, now);
            return Fate::Ends(Rule::Probe(place), answers);
        }
        if segment.has(RST) {
            return Fate::Ends(Rule::Acknowledgement, Vec::new());
        }
        if !segment.opens() {
            return match connections.truncated() && !refusing {
                true => calls,
                false => self.refuse(packet, segment, Rule::Unpublished, now),
            };
        }
        if self.published(segment.destination, Proto::Tcp).is_none() {
            return self.refuse(packet, segment, Rule::Unpublished, now);
        }
        if refusing {
            return self.refuse(packet, segment, Rule::Unavailable, now);
        }
        match self.barred(packet.source, now) {
            Some(rule) => self.refuse(packet, segment, rule, now),
            None => calls,
        }
    }

    fn datagram_asleep(
        &mut self,
        packet: &Packet<'_>,
        source: u16,
        destination: u16,
        bytes: &[u8],
        now: Instant,
    ) -> Fate {
        let Posture::Asleep {
            connections,
            refusing,
        } = &self.posture
        else {
            return Fate::Waits;
        };
        let refusing = *refusing;
        let (local, peer) = (
            SocketAddr::new(packet.destination, destination),
            SocketAddr::new(packet.source, source),
        );
        let answers_it = connections.converses(local, peer);
        let rule = if answers_it && !refusing {
            None
        } else if self.published(destination, Proto::Udp).is_none() {
            Some(Rule::Unpublished)
        } else if refusing {
            Some(Rule::Unavailable)
        } else {
            self.barred(packet.source, now)
        };
        match rule {
            None => Fate::Calls(caller(packet, destination, Proto::Udp)),
            Some(rule) => {
                let answer = self
                    .may_refuse(now)
                    .then(|| reply::port_unreachable(packet, bytes));
                Fate::Ends(rule, answer.flatten().into_iter().collect())
            }
        }
    }

    /// The rule by which this source does not wake the app now, if there is one.
    fn barred(&mut self, source: IpAddr, now: Instant) -> Option<Rule> {
        match self.policy.admission(source) {
            Admission::Denied(place) => Some(Rule::Deny(place)),
            Admission::NotAllowed => Some(Rule::NotAllowed),
            Admission::Probe(place) => Some(Rule::Probe(place)),
            Admission::Wakes => match self.policy.rate {
                Some(rate) if !self.sources.take(source, rate, now) => Some(Rule::Rate),
                _ => None,
            },
        }
    }

    fn refuse(&mut self, packet: &Packet<'_>, segment: &Segment, rule: Rule, now: Instant) -> Fate {
        let answer = self.may_refuse(now).then(|| reply::reset(packet, segment));
        Fate::Ends(rule, answer.flatten().into_iter().collect())
    }

    fn may_refuse(&mut self, now: Instant) -> bool {
        let bucket = self.refusals.get_or_insert_with(|| Bucket::new(REFUSALS, now));
        bucket.take(REFUSALS, now)
    }
}

fn caller(packet: &Packet<'_>, number: u16, proto: Proto) -> Caller {
    Caller {
        port: Port { number, proto },
        source: packet.source,
    }
}

#[cfg(test)]
#[path = "hold_tests.rs"]
mod tests;
