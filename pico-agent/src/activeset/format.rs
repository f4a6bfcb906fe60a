//! Sets as bytes, so that they survive the agent and travel with the checkpoint. Any bytes may be read.
//!
//! Numbers are LEB128 unless a width is given; widths are little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `PICOSETS` |
//! | 4 | version, 1 |
//! | 8 | lineage |
//! | ... | windows learned |
//! | ... | the app's counts |
//! | ... | number of ports, then each by ascending key: port number (0: no port's work), protocol number, windows, relearning (0, 1), counts, wakes, their sum, the last one, number of pages, pages |
//! | ... | number of pages of the last window, then each: space, page |
//! | 32 | BLAKE3 of all before |
//!
//! A wake: pages prefetched, used, late, wasted, unknown, faulted; bytes.
//!
//! Counts: how many classes, then each class by ascending number: class, pages judged (f32, 4), used (f32, 4). A page:
//! space, page (both as the difference to the one before, the page in full where the space is another), history bits,
//! history length, rank, hits, windows since the last hit, written (0, 1).

use super::calibration::Counts;
use super::history::History;
use super::model::{ActiveSets, Entry, PAGES_MAX, PORTS_MAX, PortSet};
use super::observe::PageId;
use super::report::{Tally, WakeReport};
use crate::checkpoint::hash::{HASH_SIZE, Hash};
use crate::port::{Port, Proto};
use crate::varint::{Reader, Short, put};

const MAGIC: &[u8; 8] = b"PICOSETS";
const VERSION: u32 = 1;
/// No address space has more pages: numbers above are damage.
const PAGE_MAX: u64 = 1 << 52;
/// Most bytes of a file of sets.
pub const FILE_MAX: usize = 64 << 20;

/// Why bytes are no sets. The app wakes all the same, with nothing predicted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetsError {
    /// Something else, or not all of it, or changed.
    #[error("the ActiveSets are damaged: {0}; they are learned anew")]
    Damaged(String),
    /// Another format.
    #[error("the ActiveSets have format version {0}, this agent reads {VERSION}; they are learned anew")]
    Version(u32),
    /// Of another life of the app, or of another app.
    #[error(
        "the ActiveSets are of another start of the app ({found}, it is {expected}); they are learned anew"
    )]
    Foreign {
        /// The lineage in the file.
        found: u64,
        /// That of the app.
        expected: u64,
    },
}

fn damaged<T>(what: &str) -> Result<T, SetsError> {
    Err(SetsError::Damaged(what.to_owned()))
}

impl From<Short> for SetsError {
    fn from(short: Short) -> Self {
        SetsError::Damaged(short.to_string())
    }
}

impl ActiveSets {
    /// The sets as a file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.lineage.to_le_bytes());
        put(&mut out, self.windows);
        put_counts(&mut out, &self.counts);
        put(&mut out, self.ports.len() as u64);
        for (key, set) in &self.ports {
            put(&mut out, key.map_or(0, |port| u64::from(port.number)));
            put(&mut out, key.map_or(0, |port| u64::from(port.proto.number())));
            put(&mut out, u64::from(set.windows));
            put(&mut out, u64::from(set.relearning));
            put_counts(&mut out, &set.counts);
            put(&mut out, set.tally.wakes);
            put_report(&mut out, &set.tally.total);
            put_report(&mut out, &set.tally.last);
            put(&mut out, set.pages.len() as u64);
            let mut before = PageId { space: 0, page: 0 };
            for (page, entry) in &set.pages {
                put_page(&mut out, &mut before, *page);
                let (bits, len) = entry.history.parts();
                put(&mut out, u64::from(bits));
                put(&mut out, u64::from(len));
                put(&mut out, u64::from(entry.rank));
                put(&mut out, u64::from(entry.hits));
                put(&mut out, self.windows - entry.last);
                put(&mut out, u64::from(entry.write));
            }
        }
        put(&mut out, self.last.len() as u64);
        for page in &self.last {
            put(&mut out, u64::from(page.space));
            put(&mut out, page.page);
        }
        let hash = Hash::of(&out);
        out.extend_from_slice(&hash.0);
        out
    }

    /// Reads a file of sets that must be of the life `lineage` of the app.
    ///
    /// # Errors
    /// [`SetsError`]
    pub fn decode_for(bytes: &[u8], lineage: u64) -> Result<Self, SetsError> {
        let sets = ActiveSets::decode(bytes)?;
        match sets.lineage == lineage {
            true => Ok(sets),
            false => Err(SetsError::Foreign {
                found: sets.lineage,
                expected: lineage,
            }),
        }
    }

    /// Reads a file of sets, of whatever app.
    ///
    /// # Errors
    /// [`SetsError::Damaged`] and [`SetsError::Version`]
    pub fn decode(bytes: &[u8]) -> Result<Self, SetsError> {
        if bytes.len() > FILE_MAX {
            return damaged("they are larger than any");
        }
        let mut head = Reader::new(bytes);
        if head.array()? != *MAGIC {
            return damaged("they do not begin as sets");
        }
        let version = u32::from_le_bytes(head.array()?);
        if version != VERSION {
            return Err(SetsError::Version(version));
        }
        let Some((body, hash)) = head.rest().split_last_chunk::<HASH_SIZE>() else {
            return damaged("they end too early");
        };
        if Hash::of(&bytes[..bytes.len() - HASH_SIZE]) != Hash(*hash) {
            return damaged("their checksum differs");
        }
        let mut body = Reader::new(body);
        let sets = take_sets(&mut body)?;
        match body.is_empty() {
            true => Ok(sets),
            false => damaged("they are longer than they say"),
        }
    }
}

fn take_sets(body: &mut Reader<'_>) -> Result<ActiveSets, SetsError> {
    let mut sets = ActiveSets::new(u64::from_le_bytes(body.array()?));
    sets.windows = body.number()?;
    sets.counts = take_counts(body)?;
    let ports: usize = body.small()?;
    if ports > PORTS_MAX {
        return damaged("too many ports");
    }
    for _ in 0..ports {
        let key = take_key(body)?;
        if sets
            .ports
            .last_key_value()
            .is_some_and(|(before, _)| *before >= key)
        {
            return damaged("a port is out of order");
        }
        let set = take_port(body, key, sets.windows)?;
        sets.ports.insert(key, set);
    }
    let last: usize = body.small()?;
    if last > PAGES_MAX {
        return damaged("too many pages");
    }
    for _ in 0..last {
        let page = PageId {
            space: body.small()?,
            page: body.number()?,
        };
        if page.page >= PAGE_MAX {
            return damaged("a page has an impossible number");
        }
        sets.last.push(page);
    }
    Ok(sets)
}

fn take_key(body: &mut Reader<'_>) -> Result<Option<Port>, SetsError> {
    let number: u16 = body.small()?;
    let proto = match (number, body.number()?) {
        (0, 0) => return Ok(None),
        (1.., 6) => Proto::Tcp,
        (1.., 17) => Proto::Udp,
        _ => return damaged("a port has an impossible number"),
    };
    Ok(Some(Port { number, proto }))
}

fn take_port(body: &mut Reader<'_>, key: Option<Port>, windows: u64) -> Result<PortSet, SetsError> {
    let mut set = PortSet {
        windows: body.small()?,
        relearning: take_flag(body)?,
        counts: take_counts(body)?,
        tally: Tally {
            wakes: body.number()?,
            total: take_report(body, key)?,
            last: take_report(body, key)?,
        },
        ..PortSet::default()
    };
    if set.tally.wakes == 0 {
        // A port that never woke the app has no report, not an empty one of its own.
        set.tally = Tally::default();
    }
    let pages: usize = body.small()?;
    if pages > PAGES_MAX {
        return damaged("too many pages");
    }
    let mut before = PageId { space: 0, page: 0 };
    for nth in 0..pages {
        let page = take_page(body, &mut before, nth == 0)?;
        let (bits, len) = (body.small()?, body.small()?);
        let Some(history) = History::from_parts(bits, len) else {
            return damaged("a history has impossible numbers");
        };
        let (rank, hits) = (body.small()?, body.small()?);
        let Some(last) = windows.checked_sub(body.number()?) else {
            return damaged("a page was used before the first window");
        };
        let write = take_flag(body)?;
        set.pages.insert(
            page,
            Entry {
                history,
                rank,
                write,
                hits,
                last,
            },
        );
    }
    Ok(set)
}

fn put_report(out: &mut Vec<u8>, report: &WakeReport) {
    for number in [
        report.prefetched,
        report.used,
        report.late,
        report.wasted,
        report.unknown,
        report.faulted,
        report.bytes,
    ] {
        put(out, number);
    }
}

fn take_report(body: &mut Reader<'_>, port: Option<Port>) -> Result<WakeReport, SetsError> {
    Ok(WakeReport {
        port,
        prefetched: body.number()?,
        used: body.number()?,
        late: body.number()?,
        wasted: body.number()?,
        unknown: body.number()?,
        faulted: body.number()?,
        bytes: body.number()?,
    })
}

fn take_flag(body: &mut Reader<'_>) -> Result<bool, SetsError> {
    match body.byte()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => damaged("a flag is neither set nor clear"),
    }
}

fn put_page(out: &mut Vec<u8>, before: &mut PageId, page: PageId) {
    let same = page.space == before.space;
    put(out, u64::from(page.space - before.space));
    put(out, if same { page.page - before.page } else { page.page });
    *before = page;
}

fn take_page(body: &mut Reader<'_>, before: &mut PageId, first: bool) -> Result<PageId, SetsError> {
    let space: u32 = body.small()?;
    let number = body.number()?;
    let base = if space == 0 { before.page } else { 0 };
    let (Some(space_id), Some(page)) = (before.space.checked_add(space), base.checked_add(number)) else {
        return damaged("a page has an impossible number");
    };
    if page >= PAGE_MAX || (space == 0 && number == 0 && !first) {
        return damaged("a page is out of order or has an impossible number");
    }
    *before = PageId {
        space: space_id,
        page,
    };
    Ok(*before)
}

fn put_counts(out: &mut Vec<u8>, counts: &Counts) {
    put(out, counts.entries().count() as u64);
    for (class, pages, used) in counts.entries() {
        put(out, class as u64);
        out.extend_from_slice(&pages.to_le_bytes());
        out.extend_from_slice(&used.to_le_bytes());
    }
}

fn take_counts(body: &mut Reader<'_>) -> Result<Counts, SetsError> {
    let mut counts = Counts::default();
    let classes: usize = body.small()?;
    let mut before = None;
    for _ in 0..classes {
        let class: usize = body.small()?;
        let pages = f32::from_le_bytes(body.array()?);
        let used = f32::from_le_bytes(body.array()?);
        if before >= Some(class) || !counts.set(class, pages, used) {
            return damaged("a count is none");
        }
        before = Some(class);
    }
    Ok(counts)
}
