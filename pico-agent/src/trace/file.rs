//! Traces as bytes. Any bytes may be read. The table stands in `kernel-notes/trace-format.md`.

use super::event::{Event, Fault, Header, Mapping, Trace, What};
use crate::activeset::PageId;
use crate::checkpoint::hash::{HASH_SIZE, Hash};
use crate::port::{Port, Proto};
use crate::units::Timestamp;
use crate::varint::{Reader, Short, put};

pub(super) const MAGIC: &[u8; 8] = b"PICOTRCE";
pub(super) const VERSION: u32 = 1;
/// Most bytes of one chunk's content.
pub(super) const CHUNK_MAX: usize = 1 << 20;
/// Most events and mappings that are read of one trace.
pub(super) const EVENTS_MAX: usize = 1 << 22;
const MAPPINGS_MAX: usize = 1 << 20;
/// Longest text: a path.
const TEXT_MAX: usize = 4096;

/// What a chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    Header,
    Mappings,
    Events,
    End,
}

impl Chunk {
    fn number(self) -> u8 {
        match self {
            Chunk::Header => 1,
            Chunk::Mappings => 2,
            Chunk::Events => 3,
            Chunk::End => 4,
        }
    }
}

/// Why bytes are no trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// Something else, or changed.
    #[error("the trace is damaged: {0}")]
    Damaged(&'static str),
    /// Another format.
    #[error("the trace has format version {0}, this program reads {VERSION}; use one that knows it")]
    Version(u32),
}

impl From<Short> for TraceError {
    fn from(_: Short) -> Self {
        TraceError::Damaged("a field is cut short")
    }
}

/// Frames the content of a chunk: length, kind, checksum, content.
pub(super) fn chunk(kind: Chunk, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 64);
    put(&mut out, content.len() as u64);
    out.push(kind.number());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&out).update(content);
    out.extend_from_slice(hasher.finalize().as_bytes());
    out.extend_from_slice(content);
    out
}

pub(super) fn put_header(out: &mut Vec<u8>, header: &Header) {
    put_text(out, &header.app);
    put(out, header.lineage);
    put(out, header.started.micros());
    put(out, header.base_ns);
    put_text(out, &header.kernel);
}

pub(super) fn put_mapping(out: &mut Vec<u8>, mapping: &Mapping) {
    for number in [
        u64::from(mapping.space),
        mapping.start,
        mapping.end.saturating_sub(mapping.start),
        mapping.offset,
    ] {
        put(out, number);
    }
    put_text(out, &mapping.name);
}

/// A text, cut to its greatest length, with nothing that would move a cursor.
fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = text.replace(char::is_control, "?");
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    put(out, end as u64);
    out.extend_from_slice(&text.as_bytes()[..end]);
}

fn put_port(out: &mut Vec<u8>, port: Option<Port>) {
    // TCP is by far the most frequent, and 0 is no port's number.
    let number = port.map_or(0, |port| {
        u64::from(port.number) << 1 | u64::from(port.proto == Proto::Udp)
    });
    put(out, number);
}

fn put_page(out: &mut Vec<u8>, page: PageId) {
    put(out, u64::from(page.space));
    put(out, page.page);
}

/// One event; `before` is the time of the one before it in the chunk.
pub(super) fn put_event(out: &mut Vec<u8>, before: &mut u64, event: &Event) {
    // CPUs write into the ring side by side: times go back by a little now and then.
    let later = event.time_ns >= *before;
    put(out, event.time_ns.abs_diff(*before) << 1 | u64::from(!later));
    *before = event.time_ns;
    match event.what {
        What::Fault(fault) => {
            out.push(1);
            put(out, u64::from(fault.space));
            put(out, fault.address);
            put(out, u64::from(fault.tid));
            put(out, fault.ip);
            out.push(u8::from(fault.write) | u8::from(fault.user) << 1);
            put_port(out, fault.port);
        }
        What::Accessed { at, write } => {
            out.push(if write { 3 } else { 2 });
            put_page(out, at);
        }
        What::Recv { port, tid, bytes } | What::Send { port, tid, bytes } => {
            out.push(if matches!(event.what, What::Recv { .. }) {
                4
            } else {
                5
            });
            put_port(out, Some(port));
            put(out, u64::from(tid));
            put(out, bytes);
        }
        What::Accept { port } => {
            out.push(6);
            put_port(out, Some(port));
        }
        What::Prefetched { at } => {
            out.push(7);
            put_page(out, at);
        }
        What::WakeStart { trigger, pages } => {
            out.push(8);
            put_port(out, trigger);
            put(out, pages);
        }
        What::HotStart => out.push(9),
        What::End { accessed } => out.push(if accessed { 11 } else { 10 }),
        What::Lost { count } => {
            out.push(12);
            put(out, count);
        }
    }
}

/// Reads a whole trace. One that was cut off between or inside chunks is read as far as it goes, and is not ended.
///
/// # Errors
/// [`TraceError`]
pub fn decode(bytes: &[u8]) -> Result<Trace, TraceError> {
    let mut file = Reader::new(bytes);
    if file.array()? != *MAGIC {
        return Err(TraceError::Damaged("it does not begin as a trace"));
    }
    let version = u32::from_le_bytes(file.array()?);
    if version != VERSION {
        return Err(TraceError::Version(version));
    }
    let Some((1, content)) = next_chunk(&mut file)? else {
        return Err(TraceError::Damaged("it has no header"));
    };
    let mut trace = Trace {
        header: take_header(content)?,
        mappings: Vec::new(),
        events: Vec::new(),
        ended: false,
    };
    while !trace.ended
        && let Some((kind, content)) = next_chunk(&mut file)?
    {
        match kind {
            2 => take_mappings(content, &mut trace.mappings)?,
            3 => take_events(content, &mut trace.events)?,
            4 if content.is_empty() => trace.ended = true,
            _ => return Err(TraceError::Damaged("a chunk is of an unknown kind")),
        }
    }
    if trace.ended && !file.is_empty() {
        return Err(TraceError::Damaged("it goes on after its end"));
    }
    Ok(trace)
}

/// The kind and content of the next chunk; `None` when the file ends before the chunk does.
fn next_chunk<'a>(file: &mut Reader<'a>) -> Result<Option<(u8, &'a [u8])>, TraceError> {
    let start = file.rest();
    let Ok(len) = file.number() else {
        return Ok(None);
    };
    if len > CHUNK_MAX as u64 {
        return Err(TraceError::Damaged("a chunk is larger than any"));
    }
    let len = usize::try_from(len).unwrap_or(CHUNK_MAX);
    let Ok(kind) = file.byte() else { return Ok(None) };
    let framing = &start[..start.len() - file.rest().len()];
    let Ok(sum) = file.array::<HASH_SIZE>() else {
        return Ok(None);
    };
    let Ok(content) = file.bytes(len) else {
        return Ok(None);
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(framing).update(content);
    match Hash(*hasher.finalize().as_bytes()) == Hash(sum) {
        true => Ok(Some((kind, content))),
        false => Err(TraceError::Damaged("the checksum of a chunk differs")),
    }
}

fn take_text(reader: &mut Reader<'_>) -> Result<String, TraceError> {
    let len: usize = reader.small()?;
    if len > TEXT_MAX {
        return Err(TraceError::Damaged("a text is too long"));
    }
    let text = str::from_utf8(reader.bytes(len)?).map_err(|_| TraceError::Damaged("a text is no UTF-8"))?;
    match text.chars().any(char::is_control) {
        true => Err(TraceError::Damaged("a text has control characters")),
        false => Ok(text.to_owned()),
    }
}

fn take_header(content: &[u8]) -> Result<Header, TraceError> {
    let mut reader = Reader::new(content);
    Ok(Header {
        app: take_text(&mut reader)?,
        lineage: reader.number()?,
        started: Timestamp::from_micros(reader.number()?),
        base_ns: reader.number()?,
        kernel: take_text(&mut reader)?,
    })
}

fn take_mappings(content: &[u8], mappings: &mut Vec<Mapping>) -> Result<(), TraceError> {
    let mut reader = Reader::new(content);
    while !reader.is_empty() {
        if mappings.len() >= MAPPINGS_MAX {
            return Err(TraceError::Damaged("too many mappings"));
        }
        let (space, start, pages) = (reader.small()?, reader.number()?, reader.number()?);
        let Some(end) = start.checked_add(pages) else {
            return Err(TraceError::Damaged("a mapping ends nowhere"));
        };
        mappings.push(Mapping {
            space,
            start,
            end,
            offset: reader.number()?,
            name: take_text(&mut reader)?,
        });
    }
    Ok(())
}

fn take_port(reader: &mut Reader<'_>) -> Result<Option<Port>, TraceError> {
    let number: u32 = reader.small()?;
    let proto = if number & 1 == 1 { Proto::Udp } else { Proto::Tcp };
    match u16::try_from(number >> 1) {
        Ok(0) if number == 0 => Ok(None),
        Ok(number @ 1..) => Ok(Some(Port { number, proto })),
        _ => Err(TraceError::Damaged("a port has an impossible number")),
    }
}

fn take_some_port(reader: &mut Reader<'_>) -> Result<Port, TraceError> {
    take_port(reader)?.ok_or(TraceError::Damaged("a port is missing"))
}

fn take_page(reader: &mut Reader<'_>) -> Result<PageId, TraceError> {
    Ok(PageId {
        space: reader.small()?,
        page: reader.number()?,
    })
}

fn take_events(content: &[u8], events: &mut Vec<Event>) -> Result<(), TraceError> {
    let mut reader = Reader::new(content);
    let mut before = 0u64;
    while !reader.is_empty() {
        if events.len() >= EVENTS_MAX {
            return Err(TraceError::Damaged("too many events"));
        }
        let step = reader.number()?;
        let time = match step & 1 {
            0 => before.checked_add(step >> 1),
            _ => before.checked_sub(step >> 1),
        };
        let time_ns = time.ok_or(TraceError::Damaged("an event has an impossible time"))?;
        before = time_ns;
        let what = take_what(&mut reader)?;
        events.push(Event { time_ns, what });
    }
    Ok(())
}

fn take_what(reader: &mut Reader<'_>) -> Result<What, TraceError> {
    let kind = reader.byte()?;
    Ok(match kind {
        1 => {
            let (space, address, tid, ip) = (
                reader.small()?,
                reader.number()?,
                reader.small()?,
                reader.number()?,
            );
            let flags = reader.byte()?;
            if flags > 3 {
                return Err(TraceError::Damaged("a fault has unknown flags"));
            }
            What::Fault(Fault {
                space,
                address,
                tid,
                ip,
                write: flags & 1 != 0,
                user: flags & 2 != 0,
                port: take_port(reader)?,
            })
        }
        2 | 3 => What::Accessed {
            at: take_page(reader)?,
            write: kind == 3,
        },
        4 | 5 => {
            let (port, tid, bytes) = (take_some_port(reader)?, reader.small()?, reader.number()?);
            match kind {
                4 => What::Recv { port, tid, bytes },
                _ => What::Send { port, tid, bytes },
            }
        }
        6 => What::Accept {
            port: take_some_port(reader)?,
        },
        7 => What::Prefetched {
            at: take_page(reader)?,
        },
        8 => What::WakeStart {
            trigger: take_port(reader)?,
            pages: reader.number()?,
        },
        9 => What::HotStart,
        10 | 11 => What::End { accessed: kind == 11 },
        12 => What::Lost {
            count: reader.number()?,
        },
        _ => return Err(TraceError::Damaged("an event is of an unknown kind")),
    })
}
