//! The connections of a sleeping app, as its checkpoint has them: enough to tell what a segment on one of them means,
//! and to answer a keepalive in the app's name. Pure.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::packet::{RST, SYN, Segment};
use super::reply::Acknowledgement;

/// Connections remembered of one app. Segments on those beyond wake it, as if they brought news.
pub const MAX_CONNECTIONS: usize = 1_000;

/// One established TCP connection of a sleeping app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The app's end: a service address and a port.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// Sequence number of the next byte the app will send.
    pub snd_nxt: u32,
    /// Sequence number of the next byte it expects.
    pub rcv_nxt: u32,
    /// How many bytes beyond it the peer may send.
    pub receive_window: u32,
    /// Shift of the window field in what the app sends.
    pub window_scale: u8,
    /// The timestamp (TSval) at which its clock will go on, where the connection has timestamps. Nothing sent in its
    /// name may bear a greater one: the peer would take what the woken app sends for old (RFC 7323, PAWS).
    pub timestamp: Option<u32>,
    /// Something it sent is not acknowledged, or not even sent: any segment of the peer is news.
    pub owes: bool,
}

/// What a segment on a known connection means for the sleeping app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// It has all of that: to be acknowledged in its name (a keepalive, a segment sent again).
    Old(Acknowledgement),
    /// A bare acknowledgement; nobody waits for an answer.
    Nothing,
    /// The connection is dead. Nobody waits for an answer, but the app must learn of it.
    Reset,
    /// Data, an end, or a new begin.
    News,
}

impl Connection {
    /// What a segment of its peer means.
    pub fn meaning(&self, segment: &Segment) -> Meaning {
        if segment.has(RST) {
            return Meaning::Reset;
        }
        if segment.has(SYN) || self.owes {
            return Meaning::News;
        }
        // Sequence numbers wrap: differences count, as signed numbers.
        let from_expected = |number: u32| number.wrapping_sub(self.rcv_nxt).cast_signed();
        let (begin, end) = (
            from_expected(segment.seq),
            from_expected(segment.seq.wrapping_add(segment.length())),
        );
        if end > 0 {
            // Beyond the window nobody who knows the connection sends.
            return match u32::try_from(begin) {
                Ok(ahead) if ahead > self.receive_window => Meaning::Nothing,
                _ => Meaning::News,
            };
        }
        if begin == 0 {
            return Meaning::Nothing;
        }
        Meaning::Old(self.acknowledgement())
    }

    /// Its own end, for what is sent in its name.
    pub fn acknowledgement(&self) -> Acknowledgement {
        let window = self
            .receive_window
            .checked_shr(self.window_scale.into())
            .unwrap_or(0);
        Acknowledgement {
            seq: self.snd_nxt,
            ack: self.rcv_nxt,
            window: u16::try_from(window).unwrap_or(u16::MAX),
            timestamp: self.timestamp,
        }
    }
}

/// A UDP socket of a sleeping app that is connected: what its peer sends is an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// The app's end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
}

/// All that a checkpoint says of an app's connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Connections {
    tcp: Vec<Connection>,
    udp: Vec<Conversation>,
    /// Some are missing in the lists.
    truncated: bool,
}

impl Connections {
    /// At most `MAX_CONNECTIONS` of each kind are kept.
    pub fn new(mut tcp: Vec<Connection>, mut udp: Vec<Conversation>) -> Self {
        let truncated = tcp.len().max(udp.len()) > MAX_CONNECTIONS;
        tcp.truncate(MAX_CONNECTIONS);
        udp.truncate(MAX_CONNECTIONS);
        tcp.sort_unstable_by_key(|connection| (connection.peer, connection.local));
        udp.sort_unstable_by_key(|conversation| (conversation.peer, conversation.local));
        Self { tcp, udp, truncated }
    }

    /// The TCP connections.
    pub fn tcp(&self) -> &[Connection] {
        &self.tcp
    }

    /// How many there are in the lists, TCP connections and UDP conversations.
    pub fn count(&self) -> usize {
        self.tcp.len() + self.udp.len()
    }

    /// Whether there may be connections that are not in the lists.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// The TCP connection with these ends.
    pub fn find(&self, local: SocketAddr, peer: SocketAddr) -> Option<&Connection> {
        let place = self
            .tcp
            .binary_search_by_key(&(peer, local), |connection| (connection.peer, connection.local));
        self.tcp.get(place.ok()?)
    }

    /// Whether a UDP socket of the app is connected to this peer.
    pub fn converses(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        let place = self.udp.binary_search_by_key(&(peer, local), |conversation| {
            (conversation.peer, conversation.local)
        });
        place.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{ACK, FIN};
    use super::*;

    fn connection() -> Connection {
        Connection {
            local: "10.77.0.5:80".parse().expect("an address"),
            peer: "192.0.2.7:40000".parse().expect("an address"),
            snd_nxt: 500,
            rcv_nxt: 10,
            receive_window: 65_536,
            window_scale: 7,
            timestamp: Some(9_000),
            owes: false,
        }
    }

    fn segment(flags: u8, seq: u32, payload: u32) -> Segment {
        Segment {
            source: 40_000,
            destination: 80,
            seq,
            ack: 500,
            flags,
            payload,
            timestamp: Some(1),
        }
    }

    #[test]
    fn keepalives_of_either_kind_and_old_data_are_acknowledged() {
        let expected = Meaning::Old(Acknowledgement {
            seq: 500,
            ack: 10,
            window: 512,
            timestamp: Some(9_000),
        });
        // Linux sends no byte, Windows one; and sequence numbers wrap just before 0.
        for (seq, payload) in [(9, 0), (9, 1), (0u32.wrapping_sub(20), 30), (4, 3)] {
            assert_eq!(
                connection().meaning(&segment(ACK, seq, payload)),
                expected,
                "{seq} {payload}"
            );
        }
    }

    #[test]
    fn data_and_ends_are_news_and_acknowledgements_are_not() {
        let meaning = |flags, seq, payload| connection().meaning(&segment(flags, seq, payload));
        assert_eq!(meaning(ACK, 10, 1), Meaning::News);
        assert_eq!(meaning(ACK, 5, 6), Meaning::News, "partly old");
        assert_eq!(meaning(ACK | FIN, 10, 0), Meaning::News);
        assert_eq!(meaning(SYN, 77, 0), Meaning::News, "a peer that has begun anew");
        assert_eq!(meaning(ACK, 10, 0), Meaning::Nothing);
        assert_eq!(meaning(ACK, 10 + 70_000, 5), Meaning::Nothing, "a guess");
        assert_eq!(meaning(RST, 10, 0), Meaning::Reset);
    }

    #[test]
    fn whoever_waits_for_the_app_wakes_it_by_any_segment() {
        let owes = Connection {
            owes: true,
            ..connection()
        };
        assert_eq!(owes.meaning(&segment(ACK, 10, 0)), Meaning::News);
    }

    #[test]
    fn connections_are_found_by_both_ends_and_bounded() {
        let other = Connection {
            peer: "[2001:db8::1]:40000".parse().expect("an address"),
            local: "[fd77::5]:80".parse().expect("an address"),
            ..connection()
        };
        let all = Connections::new(vec![other, connection()], Vec::new());
        assert_eq!(
            all.find(connection().local, connection().peer),
            Some(&connection())
        );
        assert_eq!(all.find(other.local, other.peer), Some(&other));
        assert_eq!(all.find(other.local, connection().peer), None);
        assert!(!all.truncated());
        let many = Connections::new(vec![connection(); MAX_CONNECTIONS + 1], Vec::new());
        assert!(many.truncated() && many.tcp().len() == MAX_CONNECTIONS);
    }
}
