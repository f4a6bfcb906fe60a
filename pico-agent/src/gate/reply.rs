//! Makes the few packets that the gate sends itself: what an app's kernel would answer while the app sleeps. Pure.
//! Each is an answer to one packet that came, so it goes to that one's sender.

use std::net::IpAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv6DstUnreachable, Icmpv6Message, Icmpv6Packet,
    IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
    TcpTimestampRepr,
};

use super::packet::{ACK, Content, FIN, Packet, SYN, Segment};

/// Hop limit of what the gate sends: that of Linux.
const HOP_LIMIT: u8 = 64;
/// Bytes of a packet that an error quotes: an IPv6 error has to fit into 1,280 (RFC 4443).
const QUOTED: usize = 512;

/// What a sleeping connection says of itself in an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The next byte the app will send.
    pub seq: u32,
    /// The next byte the app expects.
    pub ack: u32,
    /// The window field, already scaled.
    pub window: u16,
    /// TSval, where the connection has timestamps.
    pub timestamp: Option<u32>,
}

/// The answer to an echo request. `None` when the packet is none.
pub fn echo(request: &Packet<'_>) -> Option<Vec<u8>> {
    if request.content != Content::Echo {
        return None;
    }
    let mut message = request.transport.to_vec();
    match (request.destination, request.source) {
        (IpAddr::V4(_), _) => {
            let mut icmp = Icmpv4Packet::new_checked(&mut message).ok()?;
            icmp.set_msg_type(Icmpv4Message::EchoReply);
            icmp.fill_checksum();
            emit(request, IpProtocol::Icmp, &message)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut icmp = Icmpv6Packet::new_checked(&mut message).ok()?;
            icmp.set_msg_type(Icmpv6Message::EchoReply);
            icmp.fill_checksum(&from, &to);
            emit(request, IpProtocol::Icmpv6, &message)
        }
        (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// "No such connection", as RFC 9293 (3.10.7.1) has it. `None` when the segment is a reset itself.
pub fn reset(packet: &Packet<'_>, segment: &Segment) -> Option<Vec<u8>> {
    if segment.has(super::packet::RST) {
        return None;
    }
    let (seq, ack) = if segment.has(ACK) {
        (segment.ack, None)
    } else {
        (0, Some(segment.seq.wrapping_add(segment.length())))
    };
    tcp(packet, segment, TcpControl::Rst, seq, ack, 0, None)
}

/// The end of a connection, said to its other end in the app's name: `packet` came on it.
pub fn acknowledge(packet: &Packet<'_>, segment: &Segment, own: &Acknowledgement) -> Option<Vec<u8>> {
    let timestamp = own.timestamp.zip(segment.timestamp);
    tcp(
        packet,
        segment,
        TcpControl::None,
        own.seq,
        Some(own.ack),
        own.window,
        timestamp,
    )
}

/// "Nobody listens there", the answer to a datagram. `None` when the original cannot be quoted.
pub fn port_unreachable(packet: &Packet<'_>, original: &[u8]) -> Option<Vec<u8>> {
    // Never an answer to what went to many (RFC 1122, 3.2.2).
    if packet.source.is_unspecified() || packet.source.is_multicast() || packet.destination.is_multicast() {
        return None;
    }
    let quoted = original.get(..original.len().min(QUOTED))?;
    let mut message = vec![0; 8];
    message.extend(quoted);
    match (packet.destination, packet.source) {
        (IpAddr::V4(_), _) => {
            let mut icmp = Icmpv4Packet::new_unchecked(&mut message);
            icmp.set_msg_type(Icmpv4Message::DstUnreachable);
            icmp.set_msg_code(Icmpv4DstUnreachable::PortUnreachable.into());
            icmp.fill_checksum();
            emit(packet, IpProtocol::Icmp, &message)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut icmp = Icmpv6Packet::new_unchecked(&mut message);
            icmp.set_msg_type(Icmpv6Message::DstUnreachable);
            icmp.set_msg_code(Icmpv6DstUnreachable::PortUnreachable.into());
            icmp.fill_checksum(&from, &to);
            emit(packet, IpProtocol::Icmpv6, &message)
        }
        (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

fn tcp(
    packet: &Packet<'_>,
    segment: &Segment,
    control: TcpControl,
    seq: u32,
    ack: Option<u32>,
    window: u16,
    timestamp: Option<(u32, u32)>,
) -> Option<Vec<u8>> {
    let number = |value: u32| TcpSeqNumber(value.cast_signed());
    let repr = TcpRepr {
        src_port: segment.destination,
        dst_port: segment.source,
        control,
        seq_number: number(seq),
        ack_number: ack.map(number),
        window_len: window,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: timestamp.map(|(tsval, tsecr)| TcpTimestampRepr::new(tsval, tsecr)),
        payload: &[],
    };
    let mut message = vec![0; repr.buffer_len()];
    repr.emit(
        &mut TcpPacket::new_unchecked(&mut message),
        &packet.destination.into(),
        &packet.source.into(),
        &ChecksumCapabilities::default(),
    );
    emit(packet, IpProtocol::Tcp, &message)
}

/// An IP packet from where `to` was sent, to its sender.
fn emit(to: &Packet<'_>, protocol: IpProtocol, message: &[u8]) -> Option<Vec<u8>> {
    if to.source.is_ipv4() != to.destination.is_ipv4() {
        return None;
    }
    let header = IpRepr::new(
        to.destination.into(),
        to.source.into(),
        protocol,
        message.len(),
        HOP_LIMIT,
    );
    let mut bytes = vec![0; header.header_len()];
    match &header {
        IpRepr::Ipv4(repr) => repr.emit(
            &mut Ipv4Packet::new_unchecked(&mut bytes),
            &ChecksumCapabilities::default(),
        ),
        IpRepr::Ipv6(repr) => repr.emit(&mut Ipv6Packet::new_unchecked(&mut bytes)),
    }
    bytes.extend(message);
    Some(bytes)
}

/// Both ends of a connection are told that it is over: the peer in the app's name, and the app, once it runs again, in
/// the peer's.
pub fn resets(app: (IpAddr, u16), peer: (IpAddr, u16), own: &Acknowledgement) -> Option<(Vec<u8>, Vec<u8>)> {
    let both = |from: (IpAddr, u16), to: (IpAddr, u16), seq: u32| {
        let packet = Packet {
            source: to.0,
            destination: from.0,
            content: Content::Other(0),
            transport: &[],
        };
        let segment = Segment {
            source: to.1,
            destination: from.1,
            seq: 0,
            ack: seq,
            flags: ACK | SYN | FIN,
            payload: 0,
            timestamp: None,
        };
        reset(&packet, &segment)
    };
    Some((both(app, peer, own.seq)?, both(peer, app, own.ack)?))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::super::packet::samples::{segment, udp, v4, v6};
    use super::super::packet::{RST, parse};
    use super::*;

    const APP4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);
    const APP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 5);

    /// Both families' packets with this content.
    fn packets(v4_protocol: u8, v6_protocol: u8, payload: &[u8]) -> [Vec<u8>; 2] {
        [v4(APP4, v4_protocol, 0, payload), v6(APP6, v6_protocol, payload)]
    }

    fn segment_of<'a>(bytes: &'a [u8]) -> (Packet<'a>, Segment) {
        let packet = parse(bytes).expect("a packet");
        let Content::Tcp(segment) = packet.content else {
            panic!("{packet:?}")
        };
        (packet, segment)
    }

    #[test]
    fn a_reset_answers_an_opening_and_anything_else_as_the_standard_says() {
        for bytes in packets(6, 6, &segment(80, SYN, 100, 0, b"")) {
            let (packet, asked) = segment_of(&bytes);
            let answer = reset(&packet, &asked).expect("an answer");
            let (back, answer) = segment_of(&answer);
            assert_eq!(
                (back.source, back.destination),
                (packet.destination, packet.source)
            );
            assert_eq!((answer.source, answer.destination), (80, 40_000));
            assert_eq!((answer.flags, answer.seq, answer.ack), (RST | ACK, 0, 101));
        }
        for bytes in packets(6, 6, &segment(80, ACK | FIN, 100, 7, b"abc")) {
            let (packet, asked) = segment_of(&bytes);
            let answer = reset(&packet, &asked).expect("an answer");
            let (_, answer) = segment_of(&answer);
            assert_eq!((answer.flags, answer.seq), (RST, 7));
        }
        for bytes in packets(6, 6, &segment(80, RST, 100, 7, b"")) {
            let (packet, asked) = segment_of(&bytes);
            assert_eq!(reset(&packet, &asked), None);
        }
    }

    #[test]
    fn checksums_are_those_the_kernel_expects() {
        let own = Acknowledgement {
            seq: 5,
            ack: 6,
            window: 7,
            timestamp: None,
        };
        for bytes in packets(6, 6, &segment(80, ACK, 100, 7, b"")) {
            let (packet, asked) = segment_of(&bytes);
            let answer = acknowledge(&packet, &asked, &own).expect("an answer");
            let back = parse(&answer).expect("a packet");
            let tcp = TcpPacket::new_checked(back.transport).expect("a segment");
            assert!(tcp.verify_checksum(&back.source.into(), &back.destination.into()));
            assert_eq!(
                (tcp.seq_number(), tcp.ack_number(), tcp.window_len()),
                (TcpSeqNumber(5), TcpSeqNumber(6), 7)
            );
        }
    }

    #[test]
    fn a_ping_is_answered_with_what_it_carried() {
        for (bytes, reply) in packets(1, 58, &[0; 0]).iter().zip([0, 129]) {
            let kind = if reply == 0 { 8 } else { 128 };
            let mut bytes = bytes.clone();
            bytes.extend([kind, 0, 0, 0, 1, 2, 3, 4, b'd', b'a', b't', b'a']);
            let request = parse(&bytes).expect("a packet");
            let answer = echo(&request).expect("an answer");
            let answer = parse(&answer).expect("a packet");
            assert_eq!(
                (answer.source, answer.destination),
                (request.destination, request.source)
            );
            assert_eq!(answer.transport[0], reply);
            assert_eq!(answer.transport[4..], request.transport[4..]);
            if reply == 0 {
                assert!(
                    Icmpv4Packet::new_checked(answer.transport)
                        .expect("icmp")
                        .verify_checksum()
                );
            }
        }
    }

    #[test]
    fn an_unreachable_port_quotes_the_datagram() {
        for bytes in packets(17, 17, &udp(9, b"?")) {
            let packet = parse(&bytes).expect("a packet");
            let answer = port_unreachable(&packet, &bytes).expect("an answer");
            let answer = parse(&answer).expect("a packet");
            assert_eq!(answer.content, Content::Error);
            assert_eq!(answer.transport[8..], bytes);
        }
    }

    #[test]
    fn both_ends_of_a_closed_connection_are_told_in_the_others_name() {
        let own = Acknowledgement {
            seq: 5,
            ack: 6,
            window: 7,
            timestamp: Some(1),
        };
        let (to_peer, to_app) = resets(
            (APP4.into(), 80),
            (Ipv4Addr::new(192, 0, 2, 7).into(), 40_000),
            &own,
        )
        .expect("two packets");
        let (packet, segment) = segment_of(&to_peer);
        assert_eq!((packet.source, segment.source, segment.seq), (APP4.into(), 80, 5));
        let (packet, segment) = segment_of(&to_app);
        assert_eq!(
            (packet.destination, segment.destination, segment.seq),
            (APP4.into(), 80, 6)
        );
        assert_eq!(segment.flags, RST);
    }
}
