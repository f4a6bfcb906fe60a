//! What waits in the sockets of a sandbox: requests that the app has not taken up yet, and answers that have not arrived.
//! Asked of the kernel by sock_diag(7), from inside the network namespace. Knows nothing of why it is asked.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use bytes::BytesMut;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rtnetlink::sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_SOCK_DIAG};

/// `SOCK_DIAG_BY_FAMILY` (linux/sock_diag.h).
const BY_FAMILY: u16 = 20;
/// `NLMSG_DONE`, `NLMSG_ERROR` and `NLM_F_REQUEST | NLM_F_DUMP` (linux/netlink.h).
const DONE: u16 = 3;
const ERROR: u16 = 2;
const DUMP: u16 = 0x301;
/// Lengths of `nlmsghdr`, `inet_diag_req_v2` and `inet_diag_msg` (linux/inet_diag.h).
const HEADER: usize = 16;
const REQUEST: usize = 56;
const MESSAGE: usize = 72;
/// The kernel answers at once, or never will.
const PATIENCE_SECONDS: i64 = 5;

/// States of TCP sockets (net/tcp_states.h) that are asked about here.
const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const SYN_RECV: u8 = 3;
const FIN_WAIT1: u8 = 4;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const CLOSING: u8 = 11;

/// A socket as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sock {
    /// TCP rather than UDP.
    pub tcp: bool,
    state: u8,
    /// The app's end.
    pub local: SocketAddr,
    /// The other end; unspecified where there is none.
    pub peer: SocketAddr,
    /// Bytes that the app has not read; of a listening socket, connections not accepted.
    unread: u32,
    /// Bytes that the peer has not acknowledged.
    unsent: u32,
}

/// Something on its way between an app and a client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Pending {
    /// A datagram that the app has not read.
    Datagram(SocketAddr),
    /// A connection that is being opened by a client.
    Handshake(SocketAddr),
    /// A connection that the app has not accepted.
    Accept(SocketAddr),
    /// A connection that the app is opening.
    Connect(SocketAddr),
    /// Data of a client that the app has not read: local end, client, bytes.
    Unread(SocketAddr, SocketAddr, u32),
    /// Data of the app that a client has not acknowledged: local end, client, bytes.
    Unsent(SocketAddr, SocketAddr, u32),
}

impl Pending {
    /// Whether a checkpoint lacks it: CRIU drops it, or refuses to dump because of it.
    pub fn is_lost_by_a_dump(&self) -> bool {
        !matches!(self, Pending::Unread(..) | Pending::Unsent(..))
    }
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pending::Datagram(local) => write!(f, "an unread datagram at {local}"),
            Pending::Handshake(local) => write!(f, "a connection being opened to {local}"),
            Pending::Accept(local) => write!(f, "a connection to {local} not yet accepted"),
            Pending::Connect(peer) => write!(f, "a connection being opened to {peer}"),
            Pending::Unread(local, peer, bytes) => write!(f, "{bytes} unread bytes from {peer} at {local}"),
            Pending::Unsent(local, peer, bytes) => {
                write!(f, "{bytes} bytes from {local} not yet acknowledged by {peer}")
            }
        }
    }
}

impl Sock {
    /// What of it is on its way.
    pub fn pending(&self) -> Option<Pending> {
        if !self.tcp {
            return (self.unread > 0).then_some(Pending::Datagram(self.local));
        }
        match self.state {
            LISTEN if self.unread > 0 => Some(Pending::Accept(self.local)),
            SYN_RECV => Some(Pending::Handshake(self.local)),
            SYN_SENT => Some(Pending::Connect(self.peer)),
            // An end that a client has sent counts as a byte until it is read.
            ESTABLISHED | CLOSE_WAIT if self.unread > 0 => {
                Some(Pending::Unread(self.local, self.peer, self.unread))
            }
            ESTABLISHED | CLOSE_WAIT | FIN_WAIT1 | LAST_ACK | CLOSING if self.unsent > 0 => {
                Some(Pending::Unsent(self.local, self.peer, self.unsent))
            }
            _ => None,
        }
    }

    /// An open TCP connection with somebody outside of the sandbox.
    pub fn is_connection(&self) -> bool {
        self.tcp
            && self.state == ESTABLISHED
            && !self.peer.ip().is_loopback()
            && self.peer.ip() != self.local.ip()
    }
}

/// Every TCP and UDP socket in a network namespace. Takes about 0.2 ms.
///
/// # Errors
/// When the namespace cannot be entered or the kernel does not answer.
pub fn list(netns: &Path) -> io::Result<Vec<Sock>> {
    let work = || {
        setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
        let mut socks = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
                query(family, protocol, &mut socks)?;
            }
        }
        Ok(socks)
    };
    // On a thread of its own: entering a namespace is for good.
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|_| Err(io::Error::other("the thread that asked is gone")))
}

fn query(family: i32, protocol: i32, into: &mut Vec<Sock>) -> io::Result<()> {
    let narrow = |number: i32| u8::try_from(number).map_err(io::Error::other);
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    setsockopt(
        &socket,
        sockopt::ReceiveTimeout,
        &TimeVal::new(PATIENCE_SECONDS, 0),
    )?;
    socket.bind_auto()?;
    let mut request = vec![0; HEADER + REQUEST];
    request[..4].copy_from_slice(&72u32.to_ne_bytes());
    request[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    request[HEADER] = narrow(family)?;
    request[HEADER + 1] = narrow(protocol)?;
    // Of all states, those asked about; `idiag_states` is a mask. UDP sockets are in ESTABLISHED or CLOSE (7).
    request[HEADER + 4..HEADER + 8].copy_from_slice(&u32::MAX.to_ne_bytes());
    socket.send_to(&request, &NetlinkAddress::new(0, 0), 0)?;
    loop {
        let mut datagram = BytesMut::with_capacity(64 * 1024);
        socket.recv(&mut datagram, 0)?;
        if !parse(&datagram, protocol == libc::IPPROTO_TCP, into)? {
            return Ok(());
        }
    }
}

/// Reads one datagram of an answer. False when it is the last one.
fn parse(mut datagram: &[u8], tcp: bool, into: &mut Vec<Sock>) -> io::Result<bool> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "an answer of sock_diag is cut off");
    while !datagram.is_empty() {
        let header: &[u8; HEADER] = datagram.first_chunk().ok_or_else(cut)?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = datagram.get(HEADER..length).ok_or_else(cut)?;
        match u16::from_ne_bytes([header[4], header[5]]) {
            DONE => return Ok(false),
            ERROR => {
                let code: &[u8; 4] = body.first_chunk().ok_or_else(cut)?;
                return Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(*code)));
            }
            BY_FAMILY => into.push(sock(body.first_chunk().ok_or_else(cut)?, tcp)),
            _ => {}
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// Reads an `inet_diag_msg`.
fn sock(message: &[u8; MESSAGE], tcp: bool) -> Sock {
    let short = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    let long =
        |at: usize| u32::from_ne_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
    let address = |at: usize| -> IpAddr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&message[at..at + 16]);
        if i32::from(message[0]) == libc::AF_INET {
            Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()
        } else {
            Ipv6Addr::from(octets).to_canonical()
        }
    };
    Sock {
        tcp,
        state: message[1],
        local: SocketAddr::new(address(8), short(4)),
        peer: SocketAddr::new(address(24), short(6)),
        unread: long(56),
        unsent: long(60),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use anyhow::Result;

    use super::*;
    use crate::nettest::{World, in_netns, inside, joined};
    use crate::sandbox::net;

    #[test]
    fn what_is_on_its_way_is_found_and_what_has_arrived_is_not() -> Result<()> {
        in_netns(|| async {
            let world = World::new()?;
            let spec = world.app(5);
            net::create(&spec).await?;
            let pending = || -> Result<Vec<Pending>> {
                Ok(list(&spec.netns)?.iter().filter_map(Sock::pending).collect())
            };
            for address in spec.addrs.both() {
                let made = inside(&spec.netns, move || {
                    let listener = TcpListener::bind((address, 80))?;
                    let datagrams = UdpSocket::bind((address, 53))?;
                    Ok((listener, datagrams))
                });
                let (listener, datagrams) = joined(made).await?;
                assert_eq!(pending()?, []);

                let (http, dns) = (SocketAddr::new(address, 80), SocketAddr::new(address, 53));
                let client = joined(inside(&spec.netns, move || Ok(TcpStream::connect(http)?))).await?;
                assert_eq!(pending()?, [Pending::Accept(http)]);
                let (mut server, peer) = listener.accept()?;
                assert_eq!(pending()?, []);

                (&client).write_all(b"question")?;
                let unread = Pending::Unread(http, peer, 8);
                assert_eq!(pending()?, std::slice::from_ref(&unread));
                assert!(!unread.is_lost_by_a_dump());
                server.read_exact(&mut [0; 8])?;
                assert_eq!(pending()?, []);

                let send = inside(&spec.netns, move || {
                    UdpSocket::bind((address, 0))?.send_to(b"?", dns)?;
                    Ok(())
                });
                joined(send).await?;
                assert_eq!(pending()?, [Pending::Datagram(dns)]);
                datagrams.recv(&mut [0; 8])?;
                assert_eq!(pending()?, []);
                drop(client);
                assert_eq!(server.read(&mut [0; 8])?, 0);
            }
            Ok(())
        })
    }

    #[test]
    fn what_nobody_acknowledges_is_found() -> Result<()> {
        in_netns(|| async {
            let world = World::new()?;
            let spec = world.app(5);
            net::create(&spec).await?;
            // The host has no route back, so what the app sends arrives and no answer does.
            let nowhere: SocketAddr = "192.0.2.1:9".parse()?;
            let connecting = inside(&spec.netns, move || {
                let _ = TcpStream::connect_timeout(&nowhere, std::time::Duration::from_millis(300));
                Ok(())
            });
            let seen = loop {
                let found: Vec<_> = list(&spec.netns)?.iter().filter_map(Sock::pending).collect();
                if !found.is_empty() || connecting.is_finished() {
                    break found;
                }
            };
            assert_eq!(seen, [Pending::Connect(nowhere)]);
            joined(connecting).await
        })
    }

    #[test]
    fn answers_that_are_cut_off_are_errors() {
        let mut message = vec![0; HEADER + MESSAGE];
        message[..4].copy_from_slice(&88u32.to_ne_bytes());
        message[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        assert!(parse(&message, true, &mut Vec::new()).is_ok_and(|more| more));
        for length in 1..message.len() {
            assert!(
                parse(&message[..length], true, &mut Vec::new()).is_err(),
                "{length}"
            );
        }
    }
}
