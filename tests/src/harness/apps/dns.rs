//! As much of DNS as a client of one authoritative server needs (RFC 1035): a question, and its answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{LIMIT, Proto};

/// Record types, as the protocol numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// IPv4 address.
    A = 1,
    /// Text.
    Txt = 16,
}

/// A query for one name.
pub fn question(id: u16, name: &str, kind: Type) -> Vec<u8> {
    let mut packet = Vec::with_capacity(64);
    packet.extend(id.to_be_bytes());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).unwrap_or(63));
        packet.extend(label.bytes());
    }
    packet.extend([0, 0, kind as u8, 0, 1]);
    packet
}

/// The data of all answers of type `kind` in the reply to question `id`.
///
/// # Errors
/// When it is not such a reply, is cut short, or carries an error code.
pub fn answers(packet: &[u8], id: u16, kind: Type) -> Result<Vec<Vec<u8>>> {
    ensure!(word(packet, 0)? == id, "the answer is to another question");
    let flags = word(packet, 2)?;
    ensure!(flags & 0x8000 != 0, "not an answer");
    ensure!(flags & 0x0200 == 0, "the answer is truncated");
    ensure!(flags & 0x000f == 0, "response code {}", flags & 0x000f);
    let (questions, count) = (word(packet, 4)?, word(packet, 6)?);
    let mut at = 12;
    for _ in 0..questions {
        at = after_name(packet, at)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..count {
        at = after_name(packet, at)?;
        let length = usize::from(word(packet, at + 8)?);
        let data = packet
            .get(at + 10..at + 10 + length)
            .context("a record is cut short")?;
        if word(packet, at)? == kind as u16 {
            found.push(data.to_vec());
        }
        at += 10 + length;
    }
    Ok(found)
}

/// One question; its answers, and the time it took. A lost datagram is not sent again: the gate must not
/// lose it.
///
/// # Errors
/// When there is no answer within [`LIMIT`], or it carries an error code.
pub fn ask(at: SocketAddr, proto: Proto, name: &str, kind: Type) -> Result<(Vec<Vec<u8>>, Duration)> {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let question = question(id, name, kind);
    let start = Instant::now();
    let packet = match proto {
        Proto::Udp => over_udp(at, &question),
        Proto::Tcp => over_tcp(at, &question),
    };
    let packet = packet.with_context(|| format!("{name} asked of {at} over {proto}"))?;
    let time = start.elapsed();
    Ok((answers(&packet, id, kind)?, time))
}

fn over_udp(at: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
    let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(at)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.send(question)?;
    let mut packet = vec![0; 4096];
    let length = socket.recv(&mut packet)?;
    packet.truncate(length);
    Ok(packet)
}

fn over_tcp(at: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&at, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let length = u16::try_from(question.len())?.to_be_bytes();
    stream.write_all(&[&length, question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut packet = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut packet)?;
    Ok(packet)
}

fn word(packet: &[u8], at: usize) -> Result<u16> {
    let bytes = packet.get(at..at + 2).context("the packet is cut short")?;
    Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// Where what follows a name starts. A compressed name ends with its pointer.
fn after_name(packet: &[u8], mut at: usize) -> Result<usize> {
    loop {
        match *packet.get(at).context("a name is cut short")? {
            0 => return Ok(at + 1),
            length if length & 0xc0 == 0xc0 => return Ok(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> Vec<u8> {
        let mut packet = question(7, "www.pico.test", Type::A);
        packet[2] = 0x84;
        packet[7] = 2;
        // A compressed and a plain name; the second record is of another type.
        packet.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 80]);
        packet.extend([1, b'x', 0, 0, 16, 0, 1, 0, 0, 0, 60, 0, 3, 2, b'h', b'i']);
        packet
    }

    #[test]
    fn answers_of_the_type_asked_for_are_found() -> Result<()> {
        assert_eq!(answers(&reply(), 7, Type::A)?, [vec![192, 0, 2, 80]]);
        assert_eq!(answers(&reply(), 7, Type::Txt)?, [vec![2, b'h', b'i']]);
        Ok(())
    }

    #[test]
    fn a_reply_that_is_foreign_cut_or_an_error_is_refused() {
        assert!(answers(&reply(), 8, Type::A).is_err());
        let whole = reply();
        for length in 0..whole.len() {
            assert!(
                answers(&whole[..length], 7, Type::A).is_err(),
                "{length} bytes were enough"
            );
        }
        let mut refused = reply();
        refused[3] = 5;
        assert!(answers(&refused, 7, Type::A).is_err());
    }
}
