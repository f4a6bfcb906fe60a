//! Reads what the writer wrote: the last lines, and then what comes, across rotations.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Stream;
use crate::units::{TIMESTAMP_LEN, Timestamp};

/// How much is read of a stream before its lines are handed on.
const CHUNK: u64 = 256 * 1024;

/// One line that an app printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Where it was printed.
    pub stream: Stream,
    /// When its first byte came; `None` for the rest of a line that was torn.
    pub time: Option<Timestamp>,
    /// Without its end of line; what is no UTF-8 is replaced.
    pub text: String,
}

impl Line {
    fn parse(stream: Stream, bytes: &[u8]) -> Line {
        let text = String::from_utf8_lossy(bytes);
        let time = text.get(..TIMESTAMP_LEN).and_then(|time| time.parse().ok());
        let rest = text.get(TIMESTAMP_LEN..).and_then(|rest| rest.strip_prefix(' '));
        match (time, rest) {
            (Some(time), Some(rest)) => Line {
                stream,
                time: Some(time),
                text: rest.to_owned(),
            },
            _ => Line {
                stream,
                time: None,
                text: text.into_owned(),
            },
        }
    }
}

/// The last lines of the streams in the order they were printed, with a line still open at the end.
///
/// # Errors
/// What the file system says; a missing directory has no lines.
pub fn tail(dir: &Path, streams: &[Stream], lines: usize) -> io::Result<Vec<Line>> {
    let (mut found, follower) = Follower::open(dir, streams, lines)?;
    let open = follower
        .cursors
        .iter()
        .filter(|cursor| !cursor.partial.is_empty());
    found.extend(open.map(|cursor| Line::parse(cursor.stream, &cursor.partial)));
    Ok(last_in_order(found, lines))
}

/// Hands on what is printed, line by line.
#[derive(Debug)]
pub struct Follower {
    cursors: Vec<Cursor>,
}

impl Follower {
    /// The last lines, and a follower that goes on exactly behind them.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(dir: &Path, streams: &[Stream], lines: usize) -> io::Result<(Vec<Line>, Follower)> {
        let mut cursors = Vec::new();
        let mut found = Vec::new();
        for stream in streams {
            let (last, cursor) = Cursor::open(dir, *stream, lines)?;
            found.extend(last);
            cursors.push(cursor);
        }
        Ok((last_in_order(found, lines), Follower { cursors }))
    }

    /// Complete lines that came since, a bounded number of them; none when there is nothing more by now.
    ///
    /// # Errors
    /// What the file system says.
    pub fn poll(&mut self) -> io::Result<Vec<Line>> {
        let mut lines = Vec::new();
        for cursor in &mut self.cursors {
            let before = lines.len();
            while cursor.poll(&mut lines)? && lines.len() == before {}
        }
        let count = lines.len();
        Ok(last_in_order(lines, count))
    }
}

/// Orders by time, each stream in its own order whatever the clock did, and keeps the last ones.
fn last_in_order(lines: Vec<Line>, keep: usize) -> Vec<Line> {
    let mut latest = [Timestamp::from_micros(0); 2];
    let mut keyed: Vec<(Timestamp, Line)> = lines
        .into_iter()
        .map(|line| {
            let latest = &mut latest[usize::from(line.stream == Stream::Stderr)];
            *latest = line.time.map_or(*latest, |time| time.max(*latest));
            (*latest, line)
        })
        .collect();
    keyed.sort_by_key(|(key, _)| *key);
    let surplus = keyed.len().saturating_sub(keep);
    keyed.into_iter().skip(surplus).map(|(_, line)| line).collect()
}

/// How far one stream was read.
#[derive(Debug)]
struct Cursor {
    dir: PathBuf,
    stream: Stream,
    /// The file being read; `None` until there is one.
    file: Option<File>,
    offset: u64,
    /// A line whose end has not come yet.
    partial: Vec<u8>,
}

impl Cursor {
    fn open(dir: &Path, stream: Stream, lines: usize) -> io::Result<(Vec<Line>, Cursor)> {
        let mut cursor = Cursor {
            dir: dir.to_owned(),
            stream,
            file: None,
            offset: 0,
            partial: Vec::new(),
        };
        // Newest first, as many older files as the lines need; then all of them from there on.
        let mut age = 0;
        let mut counted = 0;
        let mut first = None;
        while let Some(file) = open_if_there(&stream.file(dir, age))? {
            counted += count_lines(&file)?;
            first = Some(file);
            if counted >= lines {
                break;
            }
            age += 1;
        }
        cursor.file = first;
        let mut found = Vec::new();
        while cursor.poll(&mut found)? {
            let surplus = found.len().saturating_sub(lines);
            found.drain(..surplus);
        }
        Ok((found, cursor))
    }

    /// Reads on; returns whether there may be more at once.
    fn poll(&mut self, lines: &mut Vec<Line>) -> io::Result<bool> {
        let current = self.stream.file(&self.dir, 0);
        if self.file.is_none() {
            self.file = open_if_there(&current)?;
        }
        let Some(file) = &mut self.file else {
            return Ok(false);
        };
        // Looked at before the read: what is read after a rotation is all there will ever be in that file.
        let inode = file.metadata()?.ino();
        let rotated = fs::metadata(&current).map_or(true, |now| now.ino() != inode);
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(self.offset))?;
        let read = file.take(CHUNK).read_to_end(&mut bytes)? as u64;
        self.offset += read;
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(part);
            if let Some(line) = self.partial.strip_suffix(b"\n") {
                // The end that was put behind a line torn by a crash may stand alone.
                if !line.is_empty() {
                    lines.push(Line::parse(self.stream, line));
                }
                self.partial.clear();
            }
        }
        if read == CHUNK || !rotated {
            return Ok(read == CHUNK);
        }
        match self.next_file(inode)? {
            Some(next) => {
                (self.file, self.offset) = (Some(next), 0);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// The file that was begun after the one with this inode, which may have been rotated several times, or
    /// away; then the oldest one.
    fn next_file(&self, inode: u64) -> io::Result<Option<File>> {
        let mut newer = None;
        for age in 0.. {
            match open_if_there(&self.stream.file(&self.dir, age))? {
                Some(file) if file.metadata()?.ino() == inode => break,
                Some(file) => newer = Some(file),
                None => break,
            }
        }
        Ok(newer)
    }
}

fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn count_lines(mut file: &File) -> io::Result<usize> {
    let mut buffer = vec![0; 64 * 1024];
    let mut count = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(count),
            read => count += buffer[..read].iter().filter(|byte| **byte == b'\n').count(),
        }
    }
}
