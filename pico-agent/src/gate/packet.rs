//! Reads the addresses, protocol and ports out of an IP packet. Pure, and never panics: the bytes come from
//! anyone who can reach a service address. Knows nothing of apps or of what happens to a packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the gate looks at in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The sender.
    pub source: IpAddr,
    /// The service address the packet is for.
    pub destination: IpAddr,
    /// What it carries.
    pub content: Content,
    /// From the transport header on; empty for later fragments and for what cannot be read.
    pub transport: &'a [u8],
}

/// A TCP segment, as far as the gate cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The sender's port.
    pub source: u16,
    /// The app's port.
    pub destination: u16,
    /// Sequence number of its first byte.
    pub seq: u32,
    /// What the sender has received, if ACK is set.
    pub ack: u32,
    /// The flag byte (RFC 9293, 3.1).
    pub flags: u8,
    /// Bytes of payload.
    pub payload: u32,
    /// The sender's timestamp (TSval), if it sends them.
    pub timestamp: Option<u32>,
}

/// The end of a connection.
pub const FIN: u8 = 0x01;
/// The begin of a connection.
pub const SYN: u8 = 0x02;
/// The death of a connection.
pub const RST: u8 = 0x04;
/// The acknowledgement number counts.
pub const ACK: u8 = 0x10;

impl Segment {
    /// Asks for a connection.
    pub fn opens(&self) -> bool {
        self.flags & (SYN | ACK | RST) == SYN
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sequence numbers it takes up: payload, SYN and FIN.
    pub fn length(&self) -> u32 {
        self.payload + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }
}

/// What a packet carries, as far as the gate cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A TCP segment.
    Tcp(Segment),
    /// A UDP datagram, or the first fragment of one.
    Udp {
        /// The sender's port.
        source: u16,
        /// The app's port.
        destination: u16,
    },
    /// A fragment after the first: its ports are not in it.
    Fragment,
    /// An echo request, ICMP or ICMPv6.
    Echo,
    /// An error about a packet that the app sent: unreachable, too big, time exceeded.
    Error,
    /// Another protocol (its number), or a header that is cut off.
    Other(u8),
}

/// IPv6 extension headers read before giving up; RFC 8200 allows each once, destination options twice.
const MAX_EXTENSIONS: usize = 8;

/// Reads a packet as the TUN gives it (no link header). `None` when it is not IP or its header is cut off.
pub fn parse(bytes: &[u8]) -> Option<Packet<'_>> {
    match bytes.first()? >> 4 {
        4 => parse_v4(bytes),
        6 => parse_v6(bytes),
        _ => None,
    }
}

fn parse_v4(bytes: &[u8]) -> Option<Packet<'_>> {
    let header: &[u8; 20] = bytes.first_chunk()?;
    let header_len = (usize::from(header[0] & 0x0f) * 4).max(20);
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // What follows the packet inside the frame is padding.
    let end = if total < header_len {
        bytes.len()
    } else {
        total.min(bytes.len())
    };
    let payload = bytes.get(header_len..end)?;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let first = fragment & 0x1fff == 0;
    Some(Packet {
        source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
        destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
        content: if first {
            content(header[9], payload)
        } else {
            Content::Fragment
        },
        transport: if first { payload } else { &[] },
    })
}

fn parse_v6(bytes: &[u8]) -> Option<Packet<'_>> {
    let (header, rest) = bytes.split_first_chunk::<40>()?;
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = *header.get(at..)?.first_chunk()?;
        Some(Ipv6Addr::from(octets).into())
    };
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let mut payload = match length {
        // A jumbogram, or whatever it is.
        0 => rest,
        length => rest.get(..length).unwrap_or(rest),
    };
    let (source, destination) = (address(8)?, address(24)?);
    let mut next = header[6];
    let packet = |content, transport| {
        Some(Packet {
            source,
            destination,
            content,
            transport,
        })
    };
    for _ in 0..MAX_EXTENSIONS {
        let length = match (next, payload) {
            // Hop-by-hop options, routing, destination options: length in units of eight bytes after the first.
            (0 | 43 | 60, [_, units, ..]) => (usize::from(*units) + 1) * 8,
            // Authentication: in units of four bytes, less two.
            (51, [_, units, ..]) => (usize::from(*units) + 2) * 4,
            (44, [_, _, high, low, ..]) => {
                if u16::from_be_bytes([*high, *low]) & 0xfff8 != 0 {
                    return packet(Content::Fragment, &[]);
                }
                8
            }
            _ => return packet(content(next, payload), payload),
        };
        let Some(rest) = payload.get(length..) else {
            return packet(Content::Other(next), &[]);
        };
        next = payload[0];
        payload = rest;
    }
    packet(Content::Other(next), &[])
}

fn content(protocol: u8, payload: &[u8]) -> Content {
    match (protocol, payload) {
        (6, _) => segment(payload).map_or(Content::Other(6), Content::Tcp),
        (17, [s0, s1, d0, d1, ..]) => Content::Udp {
            source: u16::from_be_bytes([*s0, *s1]),
            destination: u16::from_be_bytes([*d0, *d1]),
        },
        (1, [8, ..]) | (58, [128, ..]) => Content::Echo,
        // Destination unreachable, (IPv6: packet too big,) time exceeded, parameter problem.
        (1, [3 | 11 | 12, ..]) | (58, [1..=4, ..]) => Content::Error,
        _ => Content::Other(protocol),
    }
}

fn segment(bytes: &[u8]) -> Option<Segment> {
    let header: &[u8; 20] = bytes.first_chunk()?;
    let offset = usize::from(header[12] >> 4) * 4;
    let options = bytes.get(20..offset)?;
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    Some(Segment {
        source: u16::from_be_bytes([header[0], header[1]]),
        destination: u16::from_be_bytes([header[2], header[3]]),
        seq: number(4),
        ack: number(8),
        flags: header[13],
        payload: u32::try_from(bytes.len() - offset).ok()?,
        timestamp: timestamp(options),
    })
}

/// TSval of the timestamp option (RFC 7323).
fn timestamp(mut options: &[u8]) -> Option<u32> {
    loop {
        match options {
            [0, ..] | [] => return None,
            [1, rest @ ..] => options = rest,
            [8, 10, a, b, c, d, ..] => return Some(u32::from_be_bytes([*a, *b, *c, *d])),
            [_, length, ..] => options = options.get(usize::from(*length).max(2)..)?,
            [_] => return None,
        }
    }
}

/// Packets for the tests of this folder.
#[cfg(test)]
pub(super) mod samples {
    use super::*;

    /// An IPv4 packet with no options.
    pub fn v4(destination: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, 7];
        bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
        bytes.extend(destination.octets());
        bytes.extend(payload);
        bytes
    }

    /// An IPv6 packet whose first header after the fixed one is `next`.
    pub fn v6(destination: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        bytes.extend(Ipv6Addr::LOCALHOST.octets());
        bytes.extend(destination.octets());
        bytes.extend(payload);
        bytes
    }

    /// A TCP header.
    pub fn tcp(port: u16, flags: u8) -> Vec<u8> {
        let mut bytes = vec![0; 20];
        bytes[0..2].copy_from_slice(&40_000u16.to_be_bytes());
        bytes[2..4].copy_from_slice(&port.to_be_bytes());
        bytes[12] = 5 << 4;
        bytes[13] = flags;
        bytes
    }

    /// A TCP header with numbers, and payload.
    pub fn segment(port: u16, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = tcp(port, flags);
        bytes[4..8].copy_from_slice(&seq.to_be_bytes());
        bytes[8..12].copy_from_slice(&ack.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// A UDP datagram.
    pub fn udp(port: u16, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        bytes[0..2].copy_from_slice(&40_000u16.to_be_bytes());
        bytes[2..4].copy_from_slice(&port.to_be_bytes());
        bytes.extend(data);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::samples::{segment, tcp, udp, v4, v6};
    use super::*;

    const APP4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);
    const APP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0x7069, 0x636f, 0, 0, 0, 0, 5);

    fn content_of(bytes: &[u8]) -> Option<Content> {
        parse(bytes).map(|packet| packet.content)
    }

    #[test]
    fn addresses_and_ports_are_read_from_both_families() {
        let syn = Content::Tcp(Segment {
            source: 40_000,
            destination: 80,
            seq: 0,
            ack: 0,
            flags: SYN,
            payload: 0,
            timestamp: None,
        });
        let header = tcp(80, SYN);
        let expected = Packet {
            source: Ipv4Addr::new(192, 0, 2, 7).into(),
            destination: APP4.into(),
            content: syn,
            transport: &header,
        };
        assert_eq!(parse(&v4(APP4, 6, 0, &header)), Some(expected));
        let expected = Packet {
            source: Ipv6Addr::LOCALHOST.into(),
            destination: APP6.into(),
            ..expected
        };
        assert_eq!(parse(&v6(APP6, 6, &header)), Some(expected));
        let dns = Content::Udp {
            source: 40_000,
            destination: 53,
        };
        assert_eq!(content_of(&v4(APP4, 17, 0, &udp(53, b"?"))), Some(dns));
        assert_eq!(content_of(&v6(APP6, 17, &udp(53, b"?"))), Some(dns));
    }

    #[test]
    fn a_syn_ack_opens_nothing_and_a_reset_is_known() {
        let segment = |flags| match content_of(&v4(APP4, 6, 0, &tcp(80, flags))) {
            Some(Content::Tcp(segment)) => segment,
            other => panic!("{other:?}"),
        };
        assert!(segment(SYN).opens() && !segment(SYN | ACK).opens());
        assert!(segment(RST | ACK).has(RST));
        assert_eq!(segment(SYN | FIN).length(), 2);
    }

    #[test]
    fn numbers_payload_and_timestamp_of_a_segment_are_read() {
        let mut bytes = segment(80, ACK, 7, 9, &[]);
        bytes[12] = 8 << 4;
        // Two paddings, then the option.
        bytes.extend([1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 0, 0]);
        bytes.extend(b"hello");
        let mut packet = v4(APP4, 6, 0, &bytes);
        let length = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet.extend(b"padding");
        let Some(Content::Tcp(segment)) = content_of(&packet) else {
            panic!("no segment")
        };
        assert_eq!(
            (segment.seq, segment.ack, segment.payload, segment.timestamp),
            (7, 9, 5, Some(0x102))
        );
    }

    #[test]
    fn options_and_extension_headers_are_stepped_over() {
        let mut with_options = v4(APP4, 17, 0, &[]);
        with_options[0] = 0x47;
        with_options.extend([1; 8]);
        with_options.extend(udp(53, b""));
        assert!(matches!(
            content_of(&with_options),
            Some(Content::Udp { destination: 53, .. })
        ));
        let mut chain = vec![60, 0, 0, 0, 0, 0, 0, 0, 17, 1];
        chain.extend([0; 14]);
        chain.extend(udp(53, b""));
        assert!(matches!(
            content_of(&v6(APP6, 0, &chain)),
            Some(Content::Udp { destination: 53, .. })
        ));
    }

    #[test]
    fn fragments_after_the_first_have_no_ports() {
        assert_eq!(
            content_of(&v4(APP4, 17, 1, &udp(53, b""))),
            Some(Content::Fragment)
        );
        assert!(matches!(
            content_of(&v4(APP4, 17, 0x2000, &udp(53, b""))),
            Some(Content::Udp { .. })
        ));
        let later = [17, 0, 0, 8, 0, 0, 0, 1];
        assert_eq!(content_of(&v6(APP6, 44, &later)), Some(Content::Fragment));
        let mut first = vec![17, 0, 0, 1, 0, 0, 0, 1];
        first.extend(udp(53, b""));
        assert!(matches!(
            content_of(&v6(APP6, 44, &first)),
            Some(Content::Udp { .. })
        ));
    }

    #[test]
    fn echo_requests_are_known() {
        assert_eq!(content_of(&v4(APP4, 1, 0, &[8, 0])), Some(Content::Echo));
        assert_eq!(content_of(&v4(APP4, 1, 0, &[0, 0])), Some(Content::Other(1)));
        assert_eq!(content_of(&v6(APP6, 58, &[128, 0])), Some(Content::Echo));
    }

    #[test]
    fn what_is_cut_off_has_no_ports() {
        assert_eq!(
            content_of(&v4(APP4, 6, 0, &tcp(80, 2)[..19])),
            Some(Content::Other(6))
        );
        assert_eq!(parse(&v4(APP4, 6, 0, &[])[..19]), None);
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[0x15; 60]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 0..3usize) {
            if let (Some(first), Some(version)) = (bytes.first_mut(), [4u8, 6].get(version)) {
                *first = version << 4 | *first & 0x0f;
            }
            parse(&bytes);
        }

        #[test]
        fn no_chain_of_extension_headers_makes_it_panic(
            chain in proptest::collection::vec((prop_oneof![Just(0u8), Just(43), Just(44), Just(51), Just(60)], 0..4u8), 0..12),
            tail in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut payload = Vec::new();
            for (kind, units) in &chain {
                payload.extend([*kind, *units, 0, 0, 0, 0, 0, 0]);
                payload.extend(vec![0; usize::from(*units) * 8]);
            }
            payload.extend(tail);
            prop_assert!(parse(&v6(APP6, chain.first().map_or(17, |first| first.0), &payload)).is_some());
        }
    }
}
