//! Writes an archive of a folder.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use libc::{major, minor};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{Whence, lseek};

use super::*;
use crate::checkpoint::hash::Hashing;

/// Writes everything below the folder `dir` to `output`, and flushes it. The folder must not change
/// meanwhile: the app is asleep. Memory grows with the number of hard links only.
///
/// Must run as root of the initial user namespace: others see neither `trusted.` attributes nor all files.
pub fn pack(dir: &Path, output: impl Write) -> Result<Summary> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open(dir, flags, Mode::empty())
        .map_err(|e| ArchiveError::File(dir.to_owned(), e.into()))?;
    let mut packer = Packer {
        output: Hashing::new(BufWriter::with_capacity(RUN_MAX, output)),
        path: Vec::new(),
        links: HashMap::new(),
        entries: 0,
        content: 0,
    };
    packer.bytes(MAGIC)?;
    packer.u32(VERSION)?;
    let stat = fstat(&root).map_err(|e| ArchiveError::File(dir.to_owned(), e.into()))?;
    packer.entry(ENTER, b"")?;
    packer.attributes(&root, b".", &stat)?;
    packer.folder(&root, 1)?;
    packer.bytes(&[END])?;
    let sum = packer.output.digest().blake3;
    packer.bytes(&sum.0)?;
    packer.output.flush()?;
    let Packer {
        output,
        entries,
        content,
        ..
    } = packer;
    Ok(Summary {
        digest: output.digest(),
        entries,
        content,
    })
}

struct Packer<W: Write> {
    output: Hashing<BufWriter<W>>,
    /// The folder that is being walked, from the layer's root: for messages and for hard links.
    path: Vec<u8>,
    /// Inodes with several names, and the first name of each.
    links: HashMap<(u64, u64), Vec<u8>>,
    entries: u64,
    content: u64,
}

impl<W: Write> Packer<W> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.output.write_all(bytes)?)
    }

    fn u32(&mut self, number: u32) -> Result<()> {
        self.bytes(&number.to_le_bytes())
    }

    fn u64(&mut self, number: u64) -> Result<()> {
        self.bytes(&number.to_le_bytes())
    }

    /// A name, target or path: `most` is what the reader accepts.
    fn text(&mut self, text: &[u8], most: usize) -> Result<()> {
        match u16::try_from(text.len()) {
            Ok(len) if text.len() <= most => {
                self.bytes(&len.to_le_bytes())?;
                self.bytes(text)
            }
            _ => Err(self.unfit(text, "its name or target is too long")),
        }
    }

    fn unfit(&self, name: &[u8], why: &str) -> ArchiveError {
        ArchiveError::Unfit(show(&self.path, name), why.into())
    }

    fn failed(&self, name: &[u8], error: impl Into<io::Error>) -> ArchiveError {
        ArchiveError::File(show(&self.path, name), error.into())
    }

    fn entry(&mut self, tag: u8, name: &[u8]) -> Result<()> {
        self.entries += 1;
        self.bytes(&[tag])?;
        self.text(name, NAME_MAX)
    }

    /// What is in the open folder `dir`, and the record that leaves it.
    fn folder(&mut self, dir: &OwnedFd, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(self.unfit(b"", "its folders are nested too deeply"));
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let list = |e: Errno| ArchiveError::File(show(&self.path, b""), e.into());
        let mut names = Vec::new();
        for entry in Dir::openat(dir, ".", flags, Mode::empty()).map_err(list)?.iter() {
            let name = entry.map_err(list)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort();
        for name in names {
            self.node(dir, &name, depth)?;
        }
        self.bytes(&[LEAVE])
    }

    fn node(&mut self, dir: &OwnedFd, name: &[u8], depth: usize) -> Result<()> {
        let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|e| self.failed(name, e))?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        if kind == SFlag::S_IFSOCK {
            return Ok(());
        }
        if kind != SFlag::S_IFDIR && stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode).cloned() {
                self.entry(HARDLINK, name)?;
                return self.text(&first, PATH_MAX);
            }
            let path = show(&self.path, name).into_os_string().into_vec();
            self.links.insert(inode, path);
        }
        match kind {
            SFlag::S_IFDIR => {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let inner = openat(dir, name, flags, Mode::empty()).map_err(|e| self.failed(name, e))?;
                self.entry(ENTER, name)?;
                self.attributes(dir, name, &stat)?;
                let outer = self.path.len();
                self.path = show(&self.path, name).into_os_string().into_vec();
                self.folder(&inner, depth + 1)?;
                self.path.truncate(outer);
                Ok(())
            }
            SFlag::S_IFREG => self.file(dir, name, &stat),
            SFlag::S_IFLNK => {
                let target = readlinkat(dir, name).map_err(|e| self.failed(name, e))?;
                self.entry(SYMLINK, name)?;
                self.attributes(dir, name, &stat)?;
                self.text(target.as_bytes(), PATH_MAX)
            }
            SFlag::S_IFCHR | SFlag::S_IFBLK => {
                let kind = if kind == SFlag::S_IFCHR { CHARACTER } else { BLOCK };
                let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
                if !device_travels(kind, major, minor) {
                    return Err(self.unfit(
                        name,
                        &format!("device nodes like {major}:{minor} do not travel; remove it"),
                    ));
                }
                self.entry(DEVICE, name)?;
                self.attributes(dir, name, &stat)?;
                self.bytes(&[kind])?;
                self.u32(major)?;
                self.u32(minor)
            }
            SFlag::S_IFIFO => {
                self.entry(FIFO, name)?;
                self.attributes(dir, name, &stat)
            }
            _ => Err(self.unfit(name, "it is of an unknown type")),
        }
    }

    fn attributes(&mut self, dir: &OwnedFd, name: &[u8], stat: &FileStat) -> Result<()> {
        self.u32(stat.st_mode & 0o7777)?;
        self.u32(stat.st_uid)?;
        self.u32(stat.st_gid)?;
        self.bytes(&stat.st_mtime.to_le_bytes())?;
        self.u32(u32::try_from(stat.st_mtime_nsec).unwrap_or(0))?;

        let path = through(dir.as_fd(), OsStr::from_bytes(name));
        let mut xattrs = Vec::new();
        let listed = match xattr::list(&path) {
            Ok(names) => names.collect(),
            // A file system without extended attributes.
            Err(e) if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => vec![],
            Err(e) => return Err(self.failed(name, e)),
        };
        for xattr in listed.into_iter().filter(|xattr| xattr_travels(xattr.as_bytes())) {
            if let Some(value) = xattr::get(&path, &xattr).map_err(|e| self.failed(name, e))? {
                xattrs.push((xattr, value));
            }
        }
        xattrs.sort();
        let count = u16::try_from(xattrs.len())
            .ok()
            .filter(|_| xattrs.len() <= XATTRS_MAX);
        self.bytes(
            &count
                .ok_or_else(|| self.unfit(name, "too many attributes"))?
                .to_le_bytes(),
        )?;
        for (xattr, value) in xattrs {
            self.text(xattr.as_bytes(), NAME_MAX)?;
            let len = u32::try_from(value.len()).map_err(|_| self.unfit(name, "a huge attribute"))?;
            self.u32(len)?;
            self.bytes(&value)?;
            self.content += u64::from(len);
        }
        Ok(())
    }

    fn file(&mut self, dir: &OwnedFd, name: &[u8], stat: &FileStat) -> Result<()> {
        // O_NONBLOCK: should the name be a fifo by now, the open must not wait for a writer.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(openat(dir, name, flags, Mode::empty()).map_err(|e| self.failed(name, e))?);
        let open = file.metadata().map_err(|e| self.failed(name, e))?;
        if (open.dev(), open.ino()) != (stat.st_dev, stat.st_ino) || !open.is_file() {
            return Err(self.unfit(name, "it was replaced while it was read"));
        }
        let size = open.size();
        self.entry(FILE, name)?;
        self.attributes(dir, name, stat)?;
        self.u64(size)?;
        let mut buffer = vec![0; RUN_MAX.min(usize::try_from(size).unwrap_or(RUN_MAX))];
        let mut at = 0;
        while let Some((start, end)) = next_data(&file, at, size).map_err(|e| self.failed(name, e))? {
            at = start;
            while at < end {
                let len = usize::try_from(end - at).unwrap_or(RUN_MAX).min(RUN_MAX);
                file.read_exact_at(&mut buffer[..len], at)
                    .map_err(|e| match e.kind() {
                        io::ErrorKind::UnexpectedEof => self.unfit(name, "it shrank while it was read"),
                        _ => self.failed(name, e),
                    })?;
                self.u32(u32::try_from(len).unwrap_or(0))?;
                self.u64(at)?;
                self.bytes(&buffer[..len])?;
                at += len as u64;
                self.content += len as u64;
            }
        }
        self.u32(0)
    }
}

/// The next run of data of `file` at or after `at`, within its `size`: start and end.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |at: u64, whence| {
        let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
        lseek(file, at, whence).map(i64::cast_unsigned)
    };
    if at >= size {
        return Ok(None);
    }
    match seek(at, Whence::SeekData) {
        Ok(start) if start < size => Ok(Some((start, seek(start, Whence::SeekHole)?.min(size)))),
        // ENXIO: nothing but a hole up to the end.
        Ok(_) | Err(Errno::ENXIO) => Ok(None),
        // A file system that knows no holes.
        Err(Errno::EINVAL) => Ok(Some((at, size))),
        Err(e) => Err(e.into()),
    }
}
