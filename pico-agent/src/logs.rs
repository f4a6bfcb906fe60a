//! What apps print: kept in files, bounded, readable while the app sleeps. The writing half is for the shim
//! (no runtime, no locks), the reading half for the agent; both know only the directory and this format:
//! `stdout.log` and `stderr.log`, each line with its time in front, older files as `.1`, `.2`, ...

pub mod lines;
pub mod read;
pub mod watch;

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::units::Timestamp;

/// Size at which a file is rotated.
pub const MAX_BYTES: u64 = 8 << 20;
/// How many rotated files of a stream are kept.
pub const KEEP: u32 = 3;
/// A line longer than this goes on in a line of its own, so that no app can make a file grow without end.
pub const MAX_LINE: usize = 16 * 1024;

/// One of the two streams of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

impl Stream {
    /// Both.
    pub const ALL: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    /// The file that is written now (0), or the one rotated that many times.
    pub fn file(self, dir: &Path, rotated: u32) -> PathBuf {
        match rotated {
            0 => dir.join(format!("{self}.log")),
            n => dir.join(format!("{self}.log.{n}")),
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        })
    }
}

/// Appends one stream of an app to its file and rotates it. At most `(keep + 1)` files of at most `max_bytes`
/// and one line each.
#[derive(Debug)]
pub struct LogWriter {
    dir: PathBuf,
    stream: Stream,
    max_bytes: u64,
    keep: u32,
    file: File,
    len: u64,
    /// Bytes of the line being written; 0 at the start of a line.
    column: usize,
    /// The last write failed, perhaps in the middle of a line.
    torn: bool,
}

impl LogWriter {
    /// Opens the file of a stream, with its directory, to append to what earlier runs of the app wrote.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(dir: &Path, stream: Stream, max_bytes: u64, keep: u32) -> io::Result<LogWriter> {
        fs::create_dir_all(dir)?;
        let (file, len, torn) = open_append(&stream.file(dir, 0))?;
        Ok(LogWriter {
            dir: dir.to_owned(),
            stream,
            max_bytes,
            keep,
            file,
            len,
            column: 0,
            torn,
        })
    }

    /// Appends what the app printed. Lines get the time at which their first byte came.
    ///
    /// # Errors
    /// What the file system says (a full disk). What was not written is lost; the caller goes on reading from
    /// the app, because a pipe that nobody reads would stop it, and later writes may succeed again.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_at(bytes, Timestamp::now())
    }

    fn write_at(&mut self, bytes: &[u8], now: Timestamp) -> io::Result<()> {
        let mut out = Vec::with_capacity(bytes.len() + 64);
        if self.torn {
            out.push(b'\n');
            (self.torn, self.column) = (false, 0);
        }
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            let mut rest = text;
            loop {
                if self.column == 0 {
                    if self.len + out.len() as u64 >= self.max_bytes {
                        self.append(&out)?;
                        out.clear();
                        self.rotate()?;
                    }
                    out.extend_from_slice(format!("{now} ").as_bytes());
                }
                let (piece, more) = rest.split_at(rest.len().min(MAX_LINE - self.column));
                out.extend_from_slice(piece);
                self.column += piece.len();
                rest = more;
                if rest.is_empty() {
                    break;
                }
                out.push(b'\n');
                self.column = 0;
            }
            if ended {
                out.push(b'\n');
                self.column = 0;
            }
        }
        self.append(&out)
    }

    fn append(&mut self, out: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(out);
        match &written {
            Ok(()) => self.len += out.len() as u64,
            Err(_) => {
                self.torn = true;
                self.len = self.file.metadata().map_or(self.len, |metadata| metadata.len());
            }
        }
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        for age in (0..self.keep).rev() {
            let from = self.stream.file(&self.dir, age);
            match fs::rename(from, self.stream.file(&self.dir, age + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let path = self.stream.file(&self.dir, 0);
        if self.keep == 0 {
            fs::remove_file(&path)?;
        }
        (self.file, self.len, _) = open_append(&path)?;
        Ok(())
    }
}

/// The file, its length, and whether its last line is open.
fn open_append(path: &Path) -> io::Result<(File, u64, bool)> {
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(path)?;
    let len = file.metadata()?.len();
    let mut last = [b'\n'];
    if len > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    Ok((file, len, last != [b'\n']))
}

#[cfg(test)]
mod tests;
