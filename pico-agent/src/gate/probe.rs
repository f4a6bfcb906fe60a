//! Answers probes in a sleeping app's name, by a TCP stack in user space: it takes connections and says a fixed word, so
//! that whoever only asks whether the app is there does not wake it. Pure: packets in, packets out, told the time.

use std::collections::VecDeque;
use std::time::Instant;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant as StackInstant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, Ipv4Address, Ipv6Address};

use super::policy::ProbeReply;
use crate::address::Addresses;

/// Probes of one app that are answered at once; further ones get no answer and try again.
const MAX_CONNECTIONS: usize = 16;
/// Bytes of a request that are read.
const REQUEST_BYTES: usize = 4_096;
/// Bytes of an answer: no longer one can be configured.
pub const MAX_REPLY: usize = 4_096;
/// A prober that says nothing for so long is forgotten.
const PATIENCE: Duration = Duration::from_secs(30);
/// What every link carries.
const MTU: usize = 1_280;
/// The stack's side of the link; packets go by what the kernel routes.
const GATEWAYS: (Ipv4Address, Ipv6Address) = (
    Ipv4Address::new(169, 254, 1, 1),
    Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
);

/// Who answers one kind of probes of one app.
pub struct Responder {
    interface: Interface,
    sockets: SocketSet<'static>,
    link: Link,
    open: Vec<Open>,
    began: Instant,
}

struct Open {
    socket: SocketHandle,
    /// What is still to be said; `None` for a mere connection.
    answer: Option<Vec<u8>>,
    request: Vec<u8>,
}

impl std::fmt::Debug for Responder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Responder")
            .field("connections", &self.open.len())
            .finish_non_exhaustive()
    }
}

impl Responder {
    /// For an app with these addresses.
    pub fn new(addresses: Addresses, now: Instant) -> Self {
        let mut link = Link::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed();
        let mut interface = Interface::new(config, &mut link, StackInstant::ZERO);
        interface.update_ip_addrs(|own| {
            // There is room for two.
            let _ = own.push(IpCidr::new(IpAddress::Ipv4(addresses.v4), 32));
            let _ = own.push(IpCidr::new(IpAddress::Ipv6(addresses.v6), 128));
        });
        let _ = interface.routes_mut().add_default_ipv4_route(GATEWAYS.0);
        let _ = interface.routes_mut().add_default_ipv6_route(GATEWAYS.1);
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            link,
            open: Vec::new(),
            began: now,
        }
    }

    /// Whether it has nobody to talk to.
    pub fn idle(&self) -> bool {
        let listens =
            |open: &Open| self.sockets.get::<tcp::Socket<'_>>(open.socket).state() == tcp::State::Listen;
        self.open.iter().all(listens)
    }

    /// Takes a packet of a prober for `port`, and says what is to be sent.
    pub fn answer(&mut self, packet: &[u8], port: u16, reply: &ProbeReply, now: Instant) -> Vec<Vec<u8>> {
        self.listen(port, reply);
        self.link.received.push_back(packet.to_vec());
        self.poll(now)
    }

    /// Says what is due: an answer, or one again that was lost.
    pub fn poll(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let micros = now.saturating_duration_since(self.began).as_micros();
        let time = StackInstant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX));
        loop {
            self.interface.poll(time, &mut self.link, &mut self.sockets);
            if !self.converse() {
                break;
            }
        }
        std::mem::take(&mut self.link.sent)
    }

    /// One socket listens on the port, if there is room.
    fn listen(&mut self, port: u16, reply: &ProbeReply) {
        let listens = |open: &Open| {
            let socket = self.sockets.get::<tcp::Socket<'_>>(open.socket);
            socket.state() == tcp::State::Listen && socket.listen_endpoint().port == port
        };
        if self.open.len() >= MAX_CONNECTIONS || self.open.iter().any(listens) {
            return;
        }
        let buffer = |bytes: usize| tcp::SocketBuffer::new(vec![0; bytes]);
        let mut socket = tcp::Socket::new(buffer(REQUEST_BYTES), buffer(MAX_REPLY + 512));
        socket.set_timeout(Some(PATIENCE));
        if socket.listen(port).is_err() {
            return;
        }
        let answer = match reply {
            ProbeReply::Connect => None,
            ProbeReply::Http { status, body } => Some(http(*status, body)),
        };
        self.open.push(Open {
            socket: self.sockets.add(socket),
            answer,
            request: Vec::new(),
        });
    }

    /// Reads what was asked and says what is to be said. True when that leaves something to be sent.
    fn converse(&mut self) -> bool {
        let mut changed = false;
        let Self { sockets, open, .. } = self;
        open.retain_mut(|open| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(open.socket);
            let (request, room) = (&mut open.request, REQUEST_BYTES);
            while socket.can_recv() {
                let read = socket.recv(|bytes| {
                    request.extend(bytes.iter().take(room.saturating_sub(request.len())));
                    (bytes.len(), bytes.len())
                });
                if !matches!(read, Ok(1..)) {
                    break;
                }
                changed = true;
            }
            let asked = request.windows(4).any(|end| end == b"\r\n\r\n") || request.len() >= room;
            let peer_ended =
                !socket.may_recv() && socket.may_send() && socket.state() != tcp::State::SynReceived;
            match &open.answer {
                Some(answer) if asked && socket.can_send() => {
                    // The buffer holds the longest one.
                    let _ = socket.send_slice(answer);
                    open.answer = None;
                    socket.close();
                    changed = true;
                }
                _ if peer_ended => {
                    socket.close();
                    changed = true;
                }
                _ => {}
            }
            let over = matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait);
            if over {
                sockets.remove(open.socket);
            }
            !over
        });
        changed
    }
}

fn http(status: u16, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        if status < 400 { "OK" } else { "Unavailable" },
        body.len()
    )
    .into_bytes()
}

/// Something a stranger cannot guess, for sequence numbers and such.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// The stack's link: two lists of packets.
#[derive(Debug, Default)]
struct Link {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);
struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = vec![0; length];
        let result = write(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Received, Sending<'_>)> {
        let packet = self.received.pop_front()?;
        Some((Received(packet), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}
