//! The TCP and UDP sockets in CRIU's images: who the app is connected with, and where each stream stands.
//!
//! Field numbers are those of CRIU's `images/sk-inet.proto` and `images/tcp-stream.proto`. Pure, and everything is
//! checked: see [`super::images`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::images::{Image, ImageError};
use super::wire::{self, Value};

/// An inet socket that the app has open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InetSocket {
    /// Inode number: names the image of its stream.
    pub inode: u32,
    /// TCP rather than UDP.
    pub tcp: bool,
    /// `TCP_ESTABLISHED`: connected. So are UDP sockets with a peer.
    pub established: bool,
    /// `TCP_CLOSE_WAIT`: the peer has ended, the app has not.
    pub peer_ended: bool,
    /// The app's end.
    pub local: SocketAddr,
    /// The other end; unspecified where there is none.
    pub peer: SocketAddr,
}

/// Where a TCP stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// Next byte that the app sends.
    pub snd_nxt: u32,
    /// Next byte that it expects.
    pub rcv_nxt: u32,
    /// Bytes that the peer has not acknowledged, sent or not.
    pub unacknowledged: u32,
    /// Receive window in bytes.
    pub rcv_wnd: u32,
    /// Shift of the windows it announces.
    pub rcv_wscale: u8,
    /// Where its timestamps go on, if it has them.
    pub timestamp: Option<u32>,
}

/// Inet sockets among the app's open files (`files.img`).
///
/// # Errors
/// When the image is damaged.
pub fn inet_sockets(files: &[u8]) -> Result<Vec<InetSocket>, ImageError> {
    const INET: u32 = 4;
    let mut sockets = Vec::new();
    for entry in &Image::parse(files)?.entries {
        if let Some(Value::Bytes(socket)) = wire::get(entry, INET)? {
            sockets.extend(inet_socket(socket)?);
        }
    }
    Ok(sockets)
}

/// `None` for other protocols (raw sockets, ICMP).
fn inet_socket(entry: &[u8]) -> Result<Option<InetSocket>, ImageError> {
    const TCP_ESTABLISHED: u64 = 1;
    const TCP_CLOSE_WAIT: u64 = 8;
    let number = |field| wire::get_number(entry, field);
    let tcp = match i32::try_from(number(5)?) {
        Ok(libc::IPPROTO_TCP) => true,
        Ok(libc::IPPROTO_UDP) => false,
        _ => return Ok(None),
    };
    let state = number(6)?;
    Ok(Some(InetSocket {
        inode: narrow(number(2)?)?,
        tcp,
        established: state == TCP_ESTABLISHED,
        peer_ended: state == TCP_CLOSE_WAIT,
        local: endpoint(entry, 11, number(7)?)?,
        peer: endpoint(entry, 12, number(8)?)?,
    }))
}

/// An address is one or four words as they lie in memory, in network order.
fn endpoint(entry: &[u8], field: u32, port: u64) -> Result<SocketAddr, ImageError> {
    let mut octets = Vec::new();
    for item in wire::fields(entry) {
        match item? {
            (number, Value::Varint(word)) if number == field => {
                octets.extend(narrow(word)?.to_le_bytes());
            }
            _ => {}
        }
        if octets.len() > 16 {
            return Err(ImageError::Invalid("socket address"));
        }
    }
    let address: IpAddr = match <[u8; 4]>::try_from(octets.as_slice()) {
        Ok(four) => Ipv4Addr::from(four).into(),
        Err(_) => {
            let sixteen = <[u8; 16]>::try_from(octets.as_slice());
            Ipv6Addr::from(sixteen.map_err(|_| ImageError::Invalid("socket address"))?).to_canonical()
        }
    };
    let port = u16::try_from(port).map_err(|_| ImageError::Invalid("port"))?;
    Ok(SocketAddr::new(address, port))
}

/// Name of the image of a TCP socket's stream.
pub fn stream_image(inode: u32) -> String {
    format!("tcp-stream-{inode:x}.img")
}

/// Bytes at the begin of a stream's image that hold all but its data.
pub const STREAM_HEAD: u64 = 1024;

/// Reads the head of a stream's image; its data follow.
///
/// # Errors
/// When it is damaged.
pub fn stream(head: &[u8]) -> Result<Stream, ImageError> {
    /// `TCPI_OPT_TIMESTAMPS` (linux/tcp.h).
    const TIMESTAMPS: u64 = 1;
    let entry = Image::first_entry(head)?;
    let number = |field| narrow(wire::get_number(entry, field)?);
    let unsent = number(12)?;
    let has_timestamps = wire::get_number(entry, 5)? & TIMESTAMPS != 0;
    Ok(Stream {
        snd_nxt: number(4)?.wrapping_sub(unsent),
        rcv_nxt: number(2)?,
        unacknowledged: number(3)?,
        rcv_wnd: number(16)?,
        rcv_wscale: u8::try_from(number(8)?).unwrap_or(0).min(14),
        timestamp: if has_timestamps { Some(number(9)?) } else { None },
    })
}

/// Whether CRIU's reason for refusing a dump is a connection that the app has not accepted: it will be, and then the
/// app can be dumped.
pub fn is_unaccepted(reason: &str) -> bool {
    reason.contains("In-flight connection")
}

fn narrow(number: u64) -> Result<u32, ImageError> {
    u32::try_from(number).map_err(|_| ImageError::Invalid("number in a socket's image"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = [0x19, 0x43, 0x56, 0x54, 0, 0, 0, 0].to_vec();
        for entry in entries {
            bytes.extend(u32::try_from(entry.len()).expect("short").to_le_bytes());
            bytes.extend(entry);
        }
        bytes
    }

    fn message(fields: &[(u32, u64)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, value) in fields {
            wire::put(&mut out, *number, Value::Varint(*value));
        }
        out
    }

    fn word(octets: [u8; 4]) -> u64 {
        u32::from_le_bytes(octets).into()
    }

    #[test]
    fn ends_of_both_families_are_read_and_mapped_ones_unmapped() -> Result<(), ImageError> {
        let v4 = message(&[
            (2, 77),
            (3, 2),
            (5, 6),
            (6, 1),
            (7, 80),
            (8, 40_000),
            (11, word([10, 77, 0, 5])),
            (12, word([192, 0, 2, 7])),
        ]);
        let mapped = message(&[
            (2, 78),
            (3, 10),
            (5, 17),
            (6, 1),
            (7, 53),
            (8, 53),
            (11, 0),
            (11, 0),
            (11, word([0, 0, 255, 255])),
            (11, word([10, 77, 0, 5])),
            (12, word([0x20, 1, 0xd, 0xb8])),
            (12, 0),
            (12, 0),
            (12, word([0, 0, 0, 1])),
        ]);
        let nested = |inner: &[u8]| {
            let mut out = message(&[(1, 2)]);
            wire::put(&mut out, 4, Value::Bytes(inner));
            out
        };
        let sockets = inet_sockets(&image(&[nested(&v4), message(&[(1, 1)]), nested(&mapped)]))?;
        assert_eq!(sockets.len(), 2);
        assert_eq!(sockets[0].local, "10.77.0.5:80".parse().expect("an address"));
        assert_eq!(sockets[0].peer, "192.0.2.7:40000".parse().expect("an address"));
        assert!(sockets[0].tcp && sockets[0].established);
        assert_eq!(sockets[1].local, "10.77.0.5:53".parse().expect("an address"));
        assert_eq!(sockets[1].peer, "[2001:db8::1]:53".parse().expect("an address"));
        Ok(())
    }

    #[test]
    fn a_stream_stands_where_it_was_sent_to_not_where_it_was_written_to() -> Result<(), ImageError> {
        let entry = message(&[
            (1, 0),
            (2, 100),
            (3, 30),
            (4, 500),
            (5, 5),
            (8, 7),
            (9, 12_345),
            (12, 20),
            (16, 65_536),
        ]);
        let mut bytes = image(&[entry]);
        bytes.extend(b"data that is no entry");
        let stream = stream(&bytes)?;
        assert_eq!(
            (stream.snd_nxt, stream.rcv_nxt, stream.unacknowledged),
            (480, 100, 30)
        );
        assert_eq!(
            (stream.rcv_wnd, stream.rcv_wscale, stream.timestamp),
            (65_536, 7, Some(12_345))
        );
        assert_eq!(stream_image(0xab), "tcp-stream-ab.img");
        Ok(())
    }

    proptest! {
        #[test]
        fn any_bytes_are_sockets_or_errors(bytes: Vec<u8>, entry: Vec<u8>) {
            let _ = (inet_sockets(&bytes), stream(&bytes));
            let mut nested = Vec::new();
            wire::put(&mut nested, 4, Value::Bytes(&entry));
            let _ = (inet_sockets(&image(&[nested])), stream(&image(&[entry])));
        }
    }
}
