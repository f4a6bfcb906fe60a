//! Holds packets for apps that are not hot, and lets them go in order when they are.
//!
//! Owns the TUN device that the service subnets are routed to, the routes and the rule that send an app's packets
//! to the TUN or to the app, the queues of held packets, and what is answered in a sleeping app's name. Knows nothing
//! of processes, checkpoints, namespaces or why an app is hot. How the order is kept, and which kernel behaviour that leans on:
//! kernel-notes/gate.md.
//!
//! Whoever changes routes holds the lock of `Routes`, whoever reads or writes the TUN that of `Pump`; both are
//! taken in this order. A change of routes runs on a blocking thread once it has begun: a future that is dropped
//! half-way leaves no half-flipped route.

mod connections;
mod forwarding;
mod hold;
mod limit;
mod packet;
mod policy;
mod probe;
mod reply;
mod routes;
#[cfg(test)]
mod tests;
mod tun;
mod urgent;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinError, JoinHandle};

pub use self::connections::{Connection, Connections, Conversation};
pub use self::hold::{Caller, HoldCounts, StrayCounts};
use self::hold::{HoldTable, Verdict};
pub use self::limit::Rate;
pub use self::policy::{Probe, ProbeReply, WakePolicy};
pub use self::probe::MAX_REPLY;
use self::routes::{Routes, Subnet};
use self::tun::Tun;
use self::urgent::Urgent;
pub use crate::address::Addresses;
pub use crate::netlink::NetlinkError;
use crate::port::Port;
use crate::sysctl;
pub use crate::sysctl::SysctlError;

/// The largest IP packet.
const MAX_PACKET: usize = 65_535;

/// Packets the reader takes before it lets others have the lock.
const BATCH: usize = 256;

/// Packets a release passes on before it flips the main route although more keep coming. Above what the TUN's
/// queue holds, so only a sender that is as fast as we are gets there, and it would keep us here for ever.
const MAX_DRAIN: usize = 65_536;

/// How often probers that were told something are looked after, in case it was lost.
const OVERDUE: Duration = Duration::from_millis(500);

/// Where the gate stands and how much it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateConfig {
    /// Name of the TUN device, at most 15 bytes.
    pub tun: String,
    /// IPv4 service subnet: an address in it and its prefix length, at most 30. The second address is the gate's.
    pub v4: (Ipv4Addr, u8),
    /// IPv6 service subnet, prefix length at most 126. The second address is the gate's.
    pub v6: (Ipv6Addr, u8),
    /// Routing table for what comes in by the TUN.
    pub table: u32,
    /// Priority of the rule that says so: after `local` (0), before `main` (32766).
    pub rule_priority: u32,
    /// Packets held for one app.
    pub max_held_per_app: usize,
    /// Bytes held for all apps.
    pub max_held_bytes: usize,
    /// Where the host's forwarding switches are remembered as they were. Forwarding is the whole host's, so
    /// agents that share a network namespace must share this file: [`GateConfig::STATE_FILE`].
    pub state_file: PathBuf,
}

impl GateConfig {
    /// Where [`GateConfig::state_file`] belongs on a host.
    pub const STATE_FILE: &'static str = "/run/pico-gate.json";

    /// The gate's own address, which this host's clients are seen under; no app can have it.
    pub fn own_v4(&self) -> Option<Ipv4Addr> {
        match Subnet::v4(self.v4)?.own {
            IpAddr::V4(own) => Some(own),
            IpAddr::V6(_) => None,
        }
    }

    /// The same for IPv6.
    pub fn own_v6(&self) -> Option<Ipv6Addr> {
        match Subnet::v6(self.v6)?.own {
            IpAddr::V6(own) => Some(own),
            IpAddr::V4(_) => None,
        }
    }

    fn subnets(&self) -> Vec<Subnet> {
        Subnet::v4(self.v4)
            .into_iter()
            .chain(Subnet::v6(self.v6))
            .collect()
    }

    /// Without IPv6 where the kernel has none.
    fn usable_subnets(&self) -> Vec<Subnet> {
        let mut subnets = self.subnets();
        subnets.retain(|subnet| subnet.own.is_ipv4() || sysctl::has_ipv6());
        subnets
    }

    fn check(&self) -> Result<(), GateError> {
        if Subnet::v4(self.v4).is_none() {
            return Err(GateError::NoSubnet(format!("{}/{}", self.v4.0, self.v4.1)));
        }
        if Subnet::v6(self.v6).is_none() {
            return Err(GateError::NoSubnet(format!("{}/{}", self.v6.0, self.v6.1)));
        }
        Ok(())
    }
}

/// A packet calls for an app that is not hot: the first one since [`Gate::register`], [`Gate::hold`] or
/// [`Gate::asleep`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateEvent {
    /// The app.
    pub app: Arc<str>,
    /// What the packet is for, and who sent it.
    pub caller: Caller,
}

/// What a release did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Released {
    /// Held packets written to the app, in the order in which they had come.
    pub held: usize,
    /// Packets that came meanwhile and followed them.
    pub drained: usize,
    /// Packets the kernel would not take back.
    pub refused: usize,
    /// How long the first held packet had waited when the release began.
    pub waited: Option<Duration>,
    /// From the first held packet written to the main route flipped and the TUN empty.
    pub took: Duration,
}

/// Why the gate could not do something.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The TUN could not be made or attached.
    #[error("cannot attach TUN device {tun}: {source}{}", hint(.source))]
    Tun {
        /// Its name.
        tun: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A routing request failed.
    #[error(transparent)]
    Route(#[from] NetlinkError),
    /// A kernel setting could not be made.
    #[error("kernel setting: {0}")]
    Sysctl(#[from] SysctlError),
    /// The service subnet is somebody else's.
    #[error("{subnet} is routed elsewhere on this host already; choose another subnet in [network]")]
    SubnetTaken {
        /// As address/length.
        subnet: String,
    },
    /// The service subnet has no room for apps.
    #[error("{0} cannot be a service subnet; give one with room for apps, such as 10.77.0.0/16")]
    NoSubnet(String),
    /// Nobody registered this app.
    #[error("the gate knows no app '{0}'")]
    UnknownApp(String),
    /// [`Gate::close`] was called, or the TUN was deleted by somebody else.
    #[error("the gate is closed; restart the agent if nobody closed it")]
    Closed,
    /// The blocking task failed.
    #[error("gate task: {0}")]
    Task(#[from] JoinError),
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => " (another process holds it: is another agent running?)",
        Some(libc::EINVAL) => " (another kind of device has this name)",
        Some(libc::ENOENT) => " (no /dev/net/tun: modprobe tun)",
        Some(libc::EPERM | libc::EACCES) => " (CAP_NET_ADMIN is needed)",
        _ => "",
    }
}

/// The one owner of the TUN: reads it and does with each packet what the table says. Whoever has it decides the
/// order of packets.
struct Pump {
    tun: Arc<Tun>,
    table: Arc<Mutex<HoldTable>>,
    events: mpsc::UnboundedSender<GateEvent>,
    calls: Arc<Notify>,
    buffer: Box<[u8]>,
}

/// `None` once closed.
type SharedPump = Arc<tokio::sync::Mutex<Option<Pump>>>;

/// The gate. Clones are the same gate; when the last one goes the TUN is let go of, and device, routes and rule
/// stay for the next [`Gate::open`].
#[derive(Clone)]
pub struct Gate {
    shared: Arc<Shared>,
}

struct Shared {
    routes: Arc<tokio::sync::Mutex<Routes>>,
    pump: SharedPump,
    table: Arc<Mutex<HoldTable>>,
    /// Told of every call, of whatever app.
    calls: Arc<Notify>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
    fn stop_reader(&self) -> Option<JoinHandle<()>> {
        let reader = lock(&self.reader).take()?;
        reader.abort();
        Some(reader)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop_reader();
    }
}

impl Gate {
    /// Makes the TUN with its addresses, subnet routes and rule, or re-attaches to them, and starts to read it.
    /// The routes of apps that are hot are left as they are. The stream ends if the TUN is lost.
    pub async fn open(config: GateConfig) -> Result<(Self, mpsc::UnboundedReceiver<GateEvent>), GateError> {
        config.check()?;
        let table = Arc::new(Mutex::new(HoldTable::new(
            config.max_held_per_app,
            config.max_held_bytes,
        )));
        let (events, receiver) = mpsc::unbounded_channel();
        let (tun, routes) = tokio::task::spawn_blocking(move || attach(&config)).await??;
        let tun = Arc::new(tun);
        let calls = Arc::new(Notify::new());
        let pump: SharedPump = Arc::new(tokio::sync::Mutex::new(Some(Pump {
            tun: tun.clone(),
            table: table.clone(),
            events,
            calls: calls.clone(),
            buffer: vec![0; MAX_PACKET].into_boxed_slice(),
        })));
        let shared = Shared {
            routes: Arc::new(tokio::sync::Mutex::new(routes)),
            reader: Mutex::new(Some(tokio::spawn(read_on(tun, pump.clone(), table.clone())))),
            pump,
            table,
            calls,
        };
        Ok((
            Self {
                shared: Arc::new(shared),
            },
            receiver,
        ))
    }

    /// Makes an app known; it holds from now on. The routes are not touched: where an agent before this one may
    /// have left the app hot, follow with [`Gate::adopt`] or [`Gate::hold`]. Registering again replaces addresses
    /// and ports and keeps everything else.
    pub fn register(&self, app: &str, addresses: Addresses, ports: &[Port], policy: WakePolicy) {
        self.table().register(app, addresses, ports, policy);
    }

    /// Forgets an app and what is held for it. [`Gate::hold`] it first if it is hot: its routes stay.
    pub fn unregister(&self, app: &str) {
        self.table().unregister(app);
    }

    /// From now on the app's packets are held, and the next one for a published port raises a [`GateEvent`].
    /// When this returns, what was sent before has reached the app's device and what is sent now comes here.
    pub async fn hold(&self, app: &str) -> Result<(), GateError> {
        let addresses = self.addresses(app)?;
        let (app, table) = (app.to_owned(), self.shared.table.clone());
        self.with_routes(move |routes, pump| {
            // First, so that what comes to the TUN from here on is kept; and when the pump is not at work, so that
            // nothing is on its way to the app any more.
            let pump = pump.blocking_lock();
            pump.as_ref().ok_or(GateError::Closed)?;
            lock(&table).hold(&app);
            drop(pump);
            Ok(routes.close_main(addresses)?)
        })
        .await
    }

    /// The app is ready behind the device `link`: gives it what was held, then what came since, then the road.
    /// When this fails before anything was written, the app holds as before.
    pub async fn release(&self, app: &str, link: &str) -> Result<Released, GateError> {
        let addresses = self.addresses(app)?;
        let (app, link) = (app.to_owned(), link.to_owned());
        self.with_routes(move |routes, pump| {
            let link = routes.link(&link)?;
            routes.open_table(addresses, link)?;
            let mut pump = pump.blocking_lock();
            let pump = pump.as_mut().ok_or(GateError::Closed)?;
            release(routes, pump, &app, addresses, link)
        })
        .await
    }

    /// The agent was restarted and the app is hot behind `link`: makes the routes say so.
    pub async fn adopt(&self, app: &str, link: &str) -> Result<(), GateError> {
        self.release(app, link).await.map(drop)
    }

    /// The app has no process from now on, and these connections in its checkpoint: what can be answered without it
    /// is, and the next packet that calls for it raises a [`GateEvent`]. Held packets are judged anew.
    pub async fn asleep(&self, app: &str, connections: Connections) {
        self.settle(app, connections, false).await;
    }

    /// The app has no process and cannot get one now: whoever calls is refused, those who wait already among them.
    /// Until [`Gate::asleep`] or [`Gate::hold`].
    pub async fn refuse(&self, app: &str, connections: Connections) {
        self.settle(app, connections, true).await;
    }

    async fn settle(&self, app: &str, connections: Connections, refusing: bool) {
        let mut guard = self.shared.pump.lock().await;
        let verdicts = self.table().asleep(app, connections, refusing, Instant::now());
        // A gate that is closed has no device to answer by.
        let Some(pump) = guard.as_mut() else { return };
        for verdict in verdicts {
            pump.carry_out(verdict);
        }
    }

    /// Ends a connection of an app that does not run, for both ends: its peer is told now, the app when it runs again,
    /// by a packet that is held for it and wakes nothing.
    pub async fn reset(&self, app: &str, connection: &Connection) {
        let ends = (
            (connection.local.ip(), connection.local.port()),
            (connection.peer.ip(), connection.peer.port()),
        );
        let Some((to_peer, to_app)) = reply::resets(ends.0, ends.1, &connection.acknowledgement()) else {
            return;
        };
        let mut guard = self.shared.pump.lock().await;
        let Some(pump) = guard.as_mut() else { return };
        pump.answer(&[to_peer]);
        self.table().keep(app, &to_app, Instant::now());
    }

    /// How many packets are held for an app.
    pub fn held(&self, app: &str) -> usize {
        self.table().held(app)
    }

    /// Whether a packet that calls for the app has come since [`Gate::hold`].
    pub fn called(&self, app: &str) -> bool {
        self.table().called(app)
    }

    /// Waits until [`Gate::called`].
    pub async fn call(&self, app: &str) {
        loop {
            let next = self.shared.calls.notified();
            tokio::pin!(next);
            // Before looking, so that a call between the two is not missed.
            next.as_mut().enable();
            if self.called(app) {
                return;
            }
            next.await;
        }
    }

    /// Counts of an app's packets since it was registered.
    pub fn counts(&self, app: &str) -> Option<HoldCounts> {
        self.table().counts(app)
    }

    /// Counts of packets that were for no app.
    pub fn strays(&self) -> StrayCounts {
        self.table().strays()
    }

    /// Lets go of the TUN now, for all clones. Device, routes and rule stay.
    pub async fn close(&self) {
        let reader = self.shared.stop_reader();
        drop(self.shared.pump.lock().await.take());
        if let Some(reader) = reader {
            // Ends as cancelled; what counts is that it has let go of the descriptor.
            let _ = reader.await;
        }
    }

    /// Takes everything away: the TUN, rules, routes, and the kernel settings unless another gate needs them.
    /// Also after a crash, and also when there is nothing. No gate may be open on this TUN.
    pub async fn remove(config: &GateConfig) -> Result<(), GateError> {
        let config = config.clone();
        tokio::task::spawn_blocking(move || {
            routes::remove(&config)?;
            Ok(forwarding::restore(&config.state_file, &config.tun)?)
        })
        .await?
    }

    fn table(&self) -> MutexGuard<'_, HoldTable> {
        lock(&self.shared.table)
    }

    fn addresses(&self, app: &str) -> Result<Addresses, GateError> {
        let addresses = self.table().addresses(app);
        addresses.ok_or_else(|| GateError::UnknownApp(app.to_owned()))
    }

    /// Runs a change of routes, one at a time, on a blocking thread.
    async fn with_routes<T: Send + 'static>(
        &self,
        step: impl FnOnce(&mut Routes, &SharedPump) -> Result<T, GateError> + Send + 'static,
    ) -> Result<T, GateError> {
        let mut routes = self.shared.routes.clone().lock_owned().await;
        let pump = self.shared.pump.clone();
        tokio::task::spawn_blocking(move || step(&mut routes, &pump)).await?
    }
}

/// A panic elsewhere leaves what is guarded as good as it was: every change to it is complete.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one round of reading came to.
#[derive(Debug, Default)]
struct Pumped {
    read: usize,
    refused: usize,
    /// Nothing is left to read.
    empty: bool,
}

fn attach(config: &GateConfig) -> Result<(Tun, Routes), GateError> {
    let tun = Tun::attach(&config.tun).map_err(|source| GateError::Tun {
        tun: config.tun.clone(),
        source,
    })?;
    forwarding::enable(&config.state_file, &config.tun)?;
    Ok((tun, Routes::establish(config)?))
}

/// The order matters, and is argued in kernel-notes/gate.md. The rule's table leads to the app already.
fn release(
    routes: &mut Routes,
    pump: &mut Pump,
    app: &str,
    addresses: Addresses,
    link: u32,
) -> Result<Released, GateError> {
    let start = Instant::now();
    let taken = lock(&pump.table).release(app, start);
    let mut released = Released {
        held: taken.packets.len(),
        waited: taken.waited,
        ..Released::default()
    };
    for packet in &taken.packets {
        released.refused += usize::from(!pump.write_back(packet));
    }
    // What comes to the TUN between its being empty and the flip is overtaken by what follows it on the open
    // road, unless it is passed on at once: this is no time to be put off the processor.
    let urgent = Urgent::begin();
    pump.drain(&mut released)?;
    for address in addresses.both() {
        routes.open_main(address, link)?;
        pump.drain(&mut released)?;
    }
    drop(urgent);
    released.took = start.elapsed();
    Ok(released)
}

impl Pump {
    fn drain(&mut self, released: &mut Released) -> Result<(), GateError> {
        let pumped = self.run(MAX_DRAIN).map_err(|error| {
            tracing::error!(%error, "the TUN cannot be read");
            GateError::Closed
        })?;
        released.drained += pumped.read;
        released.refused += pumped.refused;
        Ok(())
    }

    /// Reads up to `limit` packets and does with each what the table says.
    fn run(&mut self, limit: usize) -> io::Result<Pumped> {
        let mut pumped = Pumped::default();
        while pumped.read < limit {
            let Some(length) = self.tun.read(&mut self.buffer)? else {
                pumped.empty = true;
                break;
            };
            pumped.read += 1;
            let packet = &self.buffer[..length];
            let verdict = lock(&self.table).offer(packet, Instant::now());
            match verdict {
                Verdict::Forward => pumped.refused += usize::from(!self.write_back(packet)),
                other => self.carry_out(other),
            }
        }
        Ok(pumped)
    }

    fn carry_out(&self, verdict: Verdict) {
        match verdict {
            Verdict::Kept | Verdict::Forward => {}
            Verdict::Answer(packets) => self.answer(&packets),
            Verdict::Wake(app, caller) => {
                self.calls.notify_waiters();
                // Nobody listens any more when the agent is going down.
                let _ = self.events.send(GateEvent { app, caller });
            }
        }
    }

    /// Sends what is said in an app's name. What finds no way is lost, as it would be for the app.
    fn answer(&self, packets: &[Vec<u8>]) {
        for packet in packets {
            if let Err(error) = self.tun.write(packet) {
                tracing::debug!(%error, "the kernel does not take an answer");
            }
        }
    }

    fn write_back(&self, packet: &[u8]) -> bool {
        let result = self.tun.write(packet);
        if let Err(error) = &result {
            tracing::warn!(%error, bytes = packet.len(), "the kernel does not take a held packet back");
        }
        result.is_ok()
    }
}

/// Reads the TUN until it is lost or the gate is closed.
async fn read_on(tun: Arc<Tun>, pump: SharedPump, table: Arc<Mutex<HoldTable>>) {
    let mut overdue = tokio::time::interval(OVERDUE);
    overdue.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let probed = lock(&table).probed();
        let ready = tokio::select! {
            ready = tun.readable() => ready,
            _ = overdue.tick(), if probed => {
                if let Some(open) = pump.lock().await.as_mut() {
                    let packets = lock(&open.table).overdue(Instant::now());
                    open.answer(&packets);
                }
                continue;
            }
        };
        let mut ready = match ready {
            Ok(ready) => ready,
            Err(error) => return tracing::error!(%error, "the TUN cannot be watched"),
        };
        let mut guard = pump.lock().await;
        let Some(open) = guard.as_mut() else { return };
        match open.run(BATCH) {
            Ok(pumped) if pumped.empty => ready.clear_ready(),
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "the TUN cannot be read: was it deleted? the gate is closed");
                *guard = None;
                return;
            }
        }
        drop(guard);
        tokio::task::yield_now().await;
    }
}
