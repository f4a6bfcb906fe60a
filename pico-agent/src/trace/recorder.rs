//! Writes a trace as events come. What was written of a recording that is cut off can be read.

use std::io::{self, Write};

use super::event::{Event, Header, Mapping, What};
use super::file::{CHUNK_MAX, Chunk, EVENTS_MAX, MAGIC, VERSION, chunk, put_event, put_header, put_mapping};

/// Content of a chunk is written out beyond this: an event or a mapping more still fits.
const FULL: usize = CHUNK_MAX / 2;

/// A trace that is being written.
pub struct Recorder<W: Write> {
    out: W,
    events: Vec<u8>,
    before: u64,
    base_ns: u64,
    count: usize,
    /// Events that came after [`EVENTS_MAX`].
    surplus: u64,
}

impl<W: Write> Recorder<W> {
    /// Begins a trace.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(mut out: W, header: &Header) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        let mut content = Vec::new();
        put_header(&mut content, header);
        out.write_all(&chunk(Chunk::Header, &content))?;
        Ok(Recorder {
            out,
            events: Vec::new(),
            before: 0,
            base_ns: header.base_ns,
            count: 0,
            surplus: 0,
        })
    }

    /// Tells the mappings of address spaces as they are now.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn mappings<'a>(&mut self, mappings: impl IntoIterator<Item = &'a Mapping>) -> io::Result<()> {
        let mut content = Vec::new();
        for mapping in mappings {
            put_mapping(&mut content, mapping);
            if content.len() > FULL {
                self.out.write_all(&chunk(Chunk::Mappings, &content))?;
                content.clear();
            }
        }
        match content.is_empty() {
            true => Ok(()),
            false => self.out.write_all(&chunk(Chunk::Mappings, &content)),
        }
    }

    /// Tells what happened at a CLOCK_MONOTONIC time in nanoseconds.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn event(&mut self, monotonic_ns: u64, what: What) -> io::Result<()> {
        if self.count >= EVENTS_MAX - 1 {
            self.surplus += 1;
            return Ok(());
        }
        self.count += 1;
        self.put(monotonic_ns, what);
        if self.events.len() > FULL {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn put(&mut self, monotonic_ns: u64, what: What) {
        let time_ns = monotonic_ns.saturating_sub(self.base_ns);
        put_event(&mut self.events, &mut self.before, &Event { time_ns, what });
    }

    /// Writes out what came so far.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.events.is_empty() {
            self.out.write_all(&chunk(Chunk::Events, &self.events))?;
            self.events.clear();
            self.before = 0;
        }
        self.out.flush()
    }

    /// Ends the trace.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        if self.surplus > 0 {
            let (time, count) = (self.base_ns.saturating_add(self.before), self.surplus);
            self.put(time, What::Lost { count });
        }
        self.flush()?;
        self.out.write_all(&chunk(Chunk::End, &[]))?;
        self.out.flush()?;
        Ok(self.out)
    }
}
