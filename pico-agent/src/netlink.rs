//! Talks to the kernel's routing socket, one blocking exchange at a time: the requests that the gate and the
//! sandbox network share, and the transport below them.
//!
//! Blocking on purpose. The kernel has carried out a routing request when `send` returns and its answer is then
//! already queued, so there is nothing to await; and the gate flips a route in the middle of a sequence that no
//! other task may enter and that must not stop half-way when a future is dropped. Callers run on a blocking
//! thread. Knows nothing of apps, TUNs or namespaces.

use std::io;
use std::net::IpAddr;

use bytes::BytesMut;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkLayerType, LinkMessage, State,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The routing protocol number written on every route and rule of ours, so that they can be told from others'
/// (`ip route show proto 119`). Unassigned in the kernel's and iproute2's lists.
pub const PROTOCOL: RouteProtocol = RouteProtocol::Other(119);

/// A routing request that the kernel refused, or an exchange that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel's answer to one request.
    #[error("the kernel refused to {what}: {source}")]
    Refused {
        /// What was asked for, as a verb phrase.
        what: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The socket itself failed.
    #[error("routing socket: {0}")]
    Socket(#[from] io::Error),
    /// There is no such network device.
    #[error("there is no network device '{0}'")]
    NoDevice(String),
    /// Something the kernel does on its own time did not happen.
    #[error("waited in vain for {0}; the kernel's log may say why")]
    NotReady(String),
}

/// One change asked of the kernel.
pub struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
    forgiven: &'static [i32],
    what: String,
}

impl Request {
    /// Make something; replaces what is there already.
    pub fn put(message: RouteNetlinkMessage, what: impl Into<String>) -> Self {
        Self {
            message,
            flags: NLM_F_CREATE | NLM_F_REPLACE,
            forgiven: &[],
            what: what.into(),
        }
    }

    /// Make something that must not be there yet.
    pub fn add(message: RouteNetlinkMessage, what: impl Into<String>) -> Self {
        Self {
            message,
            flags: NLM_F_CREATE | NLM_F_EXCL,
            forgiven: &[],
            what: what.into(),
        }
    }

    /// Change or take away something.
    pub fn change(message: RouteNetlinkMessage, what: impl Into<String>) -> Self {
        Self {
            message,
            flags: 0,
            forgiven: &[],
            what: what.into(),
        }
    }

    /// Errors that mean it is already as asked.
    pub fn forgive(mut self, errors: &'static [i32]) -> Self {
        self.forgiven = errors;
        self
    }

    /// [`Self::change`] for a removal: what is gone already is no error.
    pub fn take_away(message: RouteNetlinkMessage, what: impl Into<String>) -> Self {
        Self::change(message, what).forgive(&[
            libc::ESRCH,
            libc::ENOENT,
            libc::ENODEV,
            libc::EADDRNOTAVAIL,
            libc::EAFNOSUPPORT,
        ])
    }
}

/// A routing socket in the network namespace of the thread that opened it, for good.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    /// A message that answers nothing came while an answer was awaited.
    disturbed: bool,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            disturbed: false,
        })
    }

    /// Sends all requests in one message; the kernel carries them out in this order, the later ones also when an
    /// earlier one fails. The first error that its request does not forgive is returned.
    pub fn run(&mut self, requests: Vec<Request>) -> Result<(), NetlinkError> {
        let first = self.sequence.wrapping_add(1);
        let mut wire = Vec::new();
        for request in &requests {
            self.sequence = self.sequence.wrapping_add(1);
            append(
                &mut wire,
                request.message.clone(),
                NLM_F_REQUEST | NLM_F_ACK | request.flags,
                self.sequence,
            );
        }
        if requests.is_empty() {
            return Ok(());
        }
        self.socket.send(&wire, 0)?;
        let mut answered = 0;
        let mut failed = None;
        while answered < requests.len() {
            for (header, payload) in self.receive()? {
                let index = header.sequence_number.wrapping_sub(first) as usize;
                let (Some(request), NetlinkPayload::Error(answer)) = (requests.get(index), payload) else {
                    continue;
                };
                answered += 1;
                let code = answer.code.map_or(0, |code| -code.get());
                if code != 0 && !request.forgiven.contains(&code) && failed.is_none() {
                    let source = io::Error::from_raw_os_error(code);
                    failed = Some(NetlinkError::Refused {
                        what: request.what.clone(),
                        source,
                    });
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Everything the kernel lists for a "get" message. Entries that the parser does not know are left out.
    pub fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.query(message, NLM_F_REQUEST | NLM_F_DUMP)
    }

    fn query(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut wire = Vec::new();
        append(&mut wire, message, flags, self.sequence);
        self.socket.send(&wire, 0)?;
        let mut found = Vec::new();
        loop {
            for (header, payload) in self.receive()? {
                if header.sequence_number != self.sequence {
                    self.disturbed = true;
                    continue;
                }
                match payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(answer) => match answer.code {
                        None => return Ok(found),
                        Some(code) => return Err(io::Error::from_raw_os_error(-code.get()).into()),
                    },
                    _ => {}
                }
            }
        }
    }

    /// The index of a device of this namespace, or none.
    pub fn index_of(&mut self, name: &str) -> Result<Option<u32>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.query(RouteNetlinkMessage::GetLink(message), NLM_F_REQUEST | NLM_F_ACK) {
            Ok(found) => Ok(found.into_iter().find_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Some(link.header.index),
                _ => None,
            })),
            Err(NetlinkError::Socket(error)) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The index of a device that must exist.
    pub fn require(&mut self, name: &str) -> Result<u32, NetlinkError> {
        self.index_of(name)?
            .ok_or_else(|| NetlinkError::NoDevice(name.to_owned()))
    }

    /// Receives one datagram of answers.
    fn receive(&mut self) -> Result<Vec<(NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>)>, NetlinkError> {
        // The kernel fills at most 32 KiB of a dump into one datagram.
        let mut buffer = BytesMut::with_capacity(64 * 1024);
        loop {
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut rest = &buffer[..];
        let mut messages = Vec::new();
        while let Ok(view) = NetlinkBuffer::new_checked(rest) {
            let length = view.length() as usize;
            match NetlinkMessage::deserialize(&rest[..length]) {
                Ok(message) => messages.push(message.into_parts()),
                Err(error) => tracing::debug!(%error, "a routing message of the kernel is not understood"),
            }
            // Messages are aligned to four bytes.
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}

/// Waits for what the kernel finishes on its own time, in one network namespace. To be opened before it is asked
/// for: what happens after that is not missed.
pub struct Watch {
    netlink: Netlink,
}

/// RTNLGRP_LINK and RTNLGRP_IPV6_ROUTE of `linux/rtnetlink.h`.
const GROUPS: [u32; 2] = [1, 11];

/// How long anything may take; the kernel does its part at once or, when others keep it busy, soon.
const PATIENCE: TimeVal = TimeVal::new(5, 0);

impl Watch {
    /// Watches the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let netlink = Netlink::open()?;
        for group in GROUPS {
            netlink.socket.add_membership(group)?;
        }
        setsockopt(&netlink.socket, sockopt::ReceiveTimeout, &PATIENCE).map_err(io::Error::from)?;
        Ok(Self { netlink })
    }

    /// Waits until a device that was brought up really sends. Of a veth pair the end that is brought up first has
    /// no carrier yet; the kernel turns its queue on some time after the carrier comes (`linkwatch`), and until
    /// then drops what is sent by it without a word. The same for a TUN that is attached again.
    pub fn until_running(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.until(RouteNetlinkMessage::GetLink(message), is_running, || {
            format!("device {index} to run")
        })
    }

    /// Waits until packets for an address are taken in. An IPv6 address gets its route from a work queue, also
    /// when nothing is to be detected first; an IPv4 address at once.
    pub fn until_local(&mut self, address: IpAddr) -> Result<(), NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(address);
        message.header.destination_prefix_length = host_prefix(address);
        message
            .attributes
            .push(RouteAttribute::Destination(address.into()));
        let is_local = |message: &RouteNetlinkMessage| matches!(message, RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Local);
        self.until(RouteNetlinkMessage::GetRoute(message), is_local, || {
            format!("address {address} to be usable")
        })
    }

    fn until(
        &mut self,
        question: RouteNetlinkMessage,
        holds: impl Fn(&RouteNetlinkMessage) -> bool,
        what: impl Fn() -> String,
    ) -> Result<(), NetlinkError> {
        loop {
            self.netlink.disturbed = false;
            // A refusal is an answer too: there is no route yet.
            match self.netlink.query(question.clone(), NLM_F_REQUEST | NLM_F_ACK) {
                Ok(found) if found.iter().any(&holds) => return Ok(()),
                Ok(_) => {}
                Err(NetlinkError::Socket(error)) if error.raw_os_error() == Some(libc::ENETUNREACH) => {}
                Err(error) => return Err(error),
            }
            if self.netlink.disturbed {
                // It may have happened between the kernel's looking and its answering.
                continue;
            }
            // Whatever it tells, look again.
            match self.netlink.receive() {
                Err(NetlinkError::Socket(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(NetlinkError::NotReady(what()));
                }
                other => other?,
            };
        }
    }
}

fn is_running(message: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewLink(link) = message else {
        return false;
    };
    let tun = link.header.link_layer_type == LinkLayerType::None;
    link.header.flags.contains(LinkFlags::LowerUp)
        && link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::OperState(State::Up) => true,
            // A TUN that has had its carrier since before it came up; a veth pair never has.
            LinkAttribute::OperState(State::Unknown) => tun,
            _ => false,
        })
}

fn append(wire: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let start = wire.len();
    wire.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut wire[start..start + message.buffer_len()]);
}

/// The address family of an address.
pub fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// How long the prefix of a single address is: 32 or 128.
pub fn host_prefix(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// A unicast route of ours to `destination/prefix` in `table`, yet without a device.
pub fn route(destination: IpAddr, prefix: u8, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = prefix;
    message.header.protocol = PROTOCOL;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    match u8::try_from(table) {
        Ok(table) => message.header.table = table,
        Err(_) => message.attributes.push(RouteAttribute::Table(table)),
    }
    message
        .attributes
        .push(RouteAttribute::Destination(destination.into()));
    message
}

/// The table a listed route stands in.
pub fn table_of(route: &RouteMessage) -> u32 {
    let long = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    long.unwrap_or(u32::from(route.header.table))
}

/// The main table's number.
pub const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// Default route by `gateway` on a device, the gateway taken to be on the link.
pub fn default_route(gateway: IpAddr, index: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = PROTOCOL;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.header.flags = RouteFlags::Onlink;
    message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

/// A single address on a device, with no subnet. IPv6 without duplicate address detection: nobody else can have it, and detection
/// would keep it unusable for two seconds.
pub fn address(index: u32, address: IpAddr, scope: AddressScope) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = host_prefix(address);
    message.header.index = index;
    message.header.scope = scope;
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    RouteNetlinkMessage::NewAddress(message)
}

/// A neighbour whose link address is known for good, so that nothing is ever asked on the link.
pub fn neighbour(index: u32, address: IpAddr, link_address: [u8; 6]) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::Destination(match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        }));
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(link_address.to_vec()));
    RouteNetlinkMessage::NewNeighbour(message)
}

/// Brings a device up, with more attributes to set if there are any.
pub fn link_up(index: u32, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = attributes;
    RouteNetlinkMessage::NewLink(message)
}

/// Keeps a device from giving itself an IPv6 link-local address: with one come duplicate address detection,
/// router solicitations and multicast reports, which nobody at the other end of our devices answers. To be asked
/// before [`link_up`].
pub fn no_link_local(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![mode]));
    RouteNetlinkMessage::SetLink(message)
}

/// Takes a device away.
pub fn link_delete(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    Request::take_away(
        RouteNetlinkMessage::DelLink(message),
        format!("delete device {name}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_name_and_a_missing_one_is_none() -> Result<(), NetlinkError> {
        let mut netlink = Netlink::open()?;
        assert_eq!(netlink.index_of("lo")?, Some(1));
        assert_eq!(netlink.index_of("no-such-dev")?, None);
        assert!(matches!(
            netlink.require("no-such-dev"),
            Err(NetlinkError::NoDevice(_))
        ));
        Ok(())
    }

    #[test]
    fn a_refused_request_names_what_was_asked_and_what_is_forgiven_is_no_error() -> Result<(), NetlinkError> {
        let mut netlink = Netlink::open()?;
        let missing = || {
            RouteNetlinkMessage::DelLink({
                let mut message = LinkMessage::default();
                message
                    .attributes
                    .push(LinkAttribute::IfName("no-such-dev".to_owned()));
                message
            })
        };
        let error = netlink
            .run(vec![Request::change(missing(), "delete it")])
            .err()
            .map(|e| e.to_string());
        assert!(error.is_some_and(|text| text.contains("refused to delete it")));
        netlink.run(vec![
            link_delete("no-such-dev"),
            Request::take_away(missing(), "again"),
        ])
    }
}
