//! The archive: an app's writable layer (the upper directory of its overlay) as one object.
//!
//! Owns the format below, written by [`pack()`] and read by [`unpack()`]. Knows nothing of overlay mounts
//! or objects: a folder in, a stream out, and back. A folder is walked in order of names, so the same
//! content gives the same bytes. All numbers are little-endian.
//!
//! | record | tag | what follows |
//! |---|---|---|
//! | (start) | | `PICOARCH`, version (4) |
//! | enter folder | 1 | name, attributes; the first has the empty name and is the layer itself |
//! | leave folder | 2 | |
//! | regular file | 3 | name, attributes, size (8), then runs of data: length (4), offset (8), bytes; length 0 ends |
//! | symbolic link | 4 | name, attributes, target |
//! | hard link | 5 | name, path from the layer's root of a file that came before |
//! | device | 6 | name, attributes, 0 for character or 1 for block (1), major (4), minor (4) |
//! | fifo | 7 | name, attributes |
//! | end | 0 | BLAKE3 of everything before it (32) |
//!
//! A name, target or path is its length (2) and its bytes. Attributes are mode (4, without the type),
//! uid (4), gid (4), modification time (8, signed seconds; 4, nanoseconds), number of extended
//! attributes (2), each a name and a value (length (4) and bytes). Sockets are left out: what listens
//! on them makes them anew. Of a sparse file only the data travels.

mod pack;
#[cfg(test)]
mod tests;
mod unpack;

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub use pack::pack;
pub use unpack::unpack;

use super::hash::Digest;

const MAGIC: &[u8; 8] = b"PICOARCH";
const VERSION: u32 = 1;

const END: u8 = 0;
const ENTER: u8 = 1;
const LEAVE: u8 = 2;
const FILE: u8 = 3;
const SYMLINK: u8 = 4;
const HARDLINK: u8 = 5;
const DEVICE: u8 = 6;
const FIFO: u8 = 7;

const CHARACTER: u8 = 0;
const BLOCK: u8 = 1;

/// Longest run of data in one piece.
const RUN_MAX: usize = 256 * 1024;
/// NAME_MAX of Linux.
const NAME_MAX: usize = 255;
/// PATH_MAX of Linux, also the longest target of a symbolic link.
const PATH_MAX: usize = 4096;
/// XATTR_SIZE_MAX of Linux.
const XATTR_MAX: usize = 65_536;
/// XATTR_LIST_MAX of Linux over the shortest name that it can list.
const XATTRS_MAX: usize = 65_536 / 7;
/// Folders within folders. Each level costs a file descriptor while it is walked.
const DEPTH_MAX: usize = 256;

/// What [`unpack()`] accepts at most.
#[derive(Debug, Clone)]
pub struct Budget {
    /// Bytes of file content and of extended attributes.
    pub bytes: u64,
    /// Files, folders and links.
    pub entries: u64,
}

/// What went through [`pack()`] or [`unpack()`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Length and hash of the whole archive.
    pub digest: Digest,
    /// Files, folders and links, the layer's root included.
    pub entries: u64,
    /// Bytes of file content (holes are none) and of extended attributes.
    pub content: u64,
}

/// Why an archive is not written or not read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream is no archive, or not all of one, or one that was damaged.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// Written by a later version.
    #[error("the archive has format version {0}, this agent reads {VERSION}: use an agent that knows it")]
    Version(u32),
    /// The archive holds more than the budget allows.
    #[error("the archive holds more {what} than the {limit} that are allowed")]
    Budget {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Something in the layer that cannot travel.
    #[error("{path} cannot be archived: {why}", path = .0.display(), why = .1)]
    Unfit(PathBuf, String),
    /// A file could not be read or made.
    #[error("{path}: {why}", path = .0.display(), why = .1)]
    File(PathBuf, #[source] io::Error),
    /// The archive itself could not be read or written.
    #[error("reading or writing the archive: {0}")]
    Io(#[from] io::Error),
}

type Result<T, E = ArchiveError> = std::result::Result<T, E>;

fn damaged<T>(what: impl fmt::Display) -> Result<T> {
    Err(ArchiveError::Damaged(what.to_string()))
}

/// A name within a folder: one path component, neither `.` nor `..`.
fn is_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.contains(&b'/')
        && !name.contains(&0)
}

/// Extended attributes that travel. Of overlayfs's own, those that say what the layer means; the others
/// (origin, impure, nlink, upper, uuid) refer to inodes of the host that the layer was made on.
fn xattr_travels(name: &[u8]) -> bool {
    const OVERLAY: &[u8] = b"trusted.overlay.";
    const OVERLAY_KEPT: [&[u8]; 6] = [
        b"opaque",
        b"redirect",
        b"metacopy",
        b"whiteout",
        b"whiteouts",
        b"protattr",
    ];
    const SYSTEM: [&[u8]; 3] = [
        b"security.capability",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    ];
    match name.strip_prefix(OVERLAY) {
        Some(rest) => OVERLAY_KEPT.contains(&rest),
        None => {
            let spaced = |prefix: &[u8]| name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty());
            name.len() <= NAME_MAX
                && !name.contains(&0)
                && (SYSTEM.contains(&name) || spaced(b"user.") || spaced(b"trusted."))
        }
    }
}

/// Device nodes that travel: whiteouts, and those that every sandbox has and that lead nowhere. Any
/// other would let whoever can write to the bucket reach the host's hardware.
fn device_travels(kind: u8, major: u32, minor: u32) -> bool {
    const WHITEOUT: (u32, u32) = (0, 0);
    let memory = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)]; // null, zero, full, random, urandom
    let terminal = [(5, 0), (5, 2)]; // tty, ptmx: the opener's own
    let device = (major, minor);
    kind == CHARACTER && (device == WHITEOUT || memory.contains(&device) || terminal.contains(&device))
}

/// A path that leads to `name` in the open folder `dir`, whatever was renamed above it. The calls for
/// extended attributes know no folder descriptor before Linux 6.13.
fn through(dir: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name)
}

/// For messages: the path within the layer.
fn show(folders: &[u8], name: &[u8]) -> PathBuf {
    Path::new(OsStr::from_bytes(folders)).join(OsStr::from_bytes(name))
}
