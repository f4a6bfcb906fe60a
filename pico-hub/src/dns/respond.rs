//! One message in, one message out: what is answered at all, header, EDNS, size. Knows no socket and no clock.
//! hickory-server reads and writes the messages; it gives back the question byte for byte, letters in the case they
//! were asked in.

use std::net::SocketAddr;
use std::sync::Arc;

use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{Edns, Metadata, ResponseCode};
use hickory_server::proto::rr::{DNSClass, Record};
use hickory_server::proto::serialize::binary::BinEncoder;
use hickory_server::server::Request;
use hickory_server::zone_handler::MessageResponseBuilder;

use super::zone::{Found, Zone};
use super::{Names, Soon};

/// RFC 1035 section 4.1.1.
const HEADER_BYTES: usize = 12;
/// What a datagram may have without EDNS: RFC 1035 section 4.2.1.
const PLAIN_BYTES: u16 = 512;
/// What a datagram has at most, with EDNS: passes every path unfragmented (RFC 9715).
const DATAGRAM_BYTES: u16 = 1_232;

/// How a message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// What is sent back.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) bytes: Vec<u8>,
    pub(super) code: ResponseCode,
    /// The app whose agent is to be told.
    pub(super) soon: Option<(Arc<str>, Soon)>,
}

/// Answers a message; `None` for what is left without an answer: replies, and less than a header.
pub(super) fn reply(
    zone: &Zone,
    names: &dyn Names,
    message: &[u8],
    client: SocketAddr,
    transport: Transport,
) -> Option<Reply> {
    let request = match read(message, client, transport)? {
        Ok(request) => request,
        Err(code) => return Some(bare(message, code)),
    };
    let query = request.queries.queries().first()?;
    let found = if request.version() > 0 {
        Found {
            code: ResponseCode::BADVERS,
            ..nothing()
        }
    } else if query.query_class() != DNSClass::IN {
        nothing()
    } else {
        zone.find(query.name(), query.original().name(), query.query_type(), names)
    };
    let (code, soon) = (found.code, found.soon.clone());
    let bytes = write(&request, &found, limit(&request, transport))?;
    Some(Reply { bytes, code, soon })
}

/// Answers with nothing but "ask by TCP".
pub(super) fn truncated(message: &[u8], client: SocketAddr) -> Option<Reply> {
    let code = ResponseCode::NoError;
    let bytes = match read(message, client, Transport::Udp)? {
        Ok(request) => write_truncated(&request, code)?,
        Err(code) => return Some(bare(message, code)),
    };
    Some(Reply {
        bytes,
        code,
        soon: None,
    })
}

/// REFUSED, without data.
fn nothing() -> Found {
    Found {
        code: ResponseCode::Refused,
        authoritative: false,
        answers: Vec::new(),
        soa: None,
        additionals: Vec::new(),
        soon: None,
    }
}

/// Reads a query; `None` for what must not be answered.
fn read(message: &[u8], client: SocketAddr, transport: Transport) -> Option<Result<Request, ResponseCode>> {
    let header: &[u8; HEADER_BYTES] = message.first_chunk()?;
    // A reply is never answered: two servers would go on forever.
    if header[2] & 0x80 != 0 {
        return None;
    }
    if header[2] >> 3 != 0 {
        return Some(Err(ResponseCode::NotImp));
    }
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    // One question (RFC 9619), no answers; IXFR has one authority record; OPT and TSIG are additional. Checked
    // before anything is read, so that counts cannot ask for memory.
    if count(4) != 1 || count(6) != 0 || count(8) > 1 || count(10) > 2 {
        return Some(Err(ResponseCode::FormErr));
    }
    let protocol = match transport {
        Transport::Udp => Protocol::Udp,
        Transport::Tcp => Protocol::Tcp,
    };
    Some(Request::from_bytes(message.to_vec(), client, protocol).map_err(|_| ResponseCode::FormErr))
}

/// How long the answer may be.
fn limit(request: &Request, transport: Transport) -> u16 {
    match (transport, request.edns.is_some()) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, false) => PLAIN_BYTES,
        (Transport::Udp, true) => request.max_payload().min(DATAGRAM_BYTES),
    }
}

/// A header alone, for what could not be read any further.
fn bare(message: &[u8], code: ResponseCode) -> Reply {
    let mut bytes = vec![0; HEADER_BYTES];
    let known = message.len().min(HEADER_BYTES).min(3);
    bytes[..known].copy_from_slice(&message[..known]);
    // Response; the operation and "recursion desired" as they came.
    bytes[2] = 0x80 | (bytes[2] & 0x79);
    bytes[3] = code.low();
    Reply {
        bytes,
        code,
        soon: None,
    }
}

fn metadata(request: &Request, code: ResponseCode) -> Metadata {
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.response_code = code;
    // RFC 4035 section 3.1.6.
    metadata.checking_disabled = false;
    metadata
}

/// RFC 6891 section 6.1.1: an OPT record if, and only if, the question had one.
fn edns(request: &Request) -> Option<Edns> {
    let asked = request.edns.as_ref()?;
    let mut edns = Edns::new();
    edns.set_max_payload(DATAGRAM_BYTES);
    // RFC 3225 section 3: as it came.
    edns.set_dnssec_ok(asked.flags().dnssec_ok);
    Some(edns)
}

/// Writes an answer: whole, or without what could be asked for next, or with nothing but the word that it was cut.
/// A part of a record set is never sent (RFC 2181 section 9).
fn write(request: &Request, found: &Found, limit: u16) -> Option<Vec<u8>> {
    let mut metadata = metadata(request, found.code);
    metadata.authoritative = found.authoritative;
    let edns = edns(request);
    let additionals: [&[Record]; 2] = [&found.additionals, &[]];
    for additional in &additionals[usize::from(found.additionals.is_empty())..] {
        let mut bytes = Vec::with_capacity(usize::from(PLAIN_BYTES));
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(limit);
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(metadata, &found.answers, [], found.soa.as_ref(), *additional);
        if response
            .destructive_emit(&mut encoder)
            .is_ok_and(|written| !written.truncation)
        {
            return Some(bytes);
        }
    }
    write_truncated(request, found.code)
}

fn write_truncated(request: &Request, code: ResponseCode) -> Option<Vec<u8>> {
    let mut metadata = metadata(request, code);
    metadata.truncation = true;
    let edns = edns(request);
    let mut builder = MessageResponseBuilder::from_message_request(request);
    if let Some(edns) = &edns {
        builder.edns(edns);
    }
    let mut bytes = Vec::with_capacity(usize::from(PLAIN_BYTES));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(PLAIN_BYTES);
    let written = builder.build_no_records(metadata).destructive_emit(&mut encoder);
    written.is_ok().then_some(bytes)
}
