//! Reads an archive into a folder. The archive is not trusted: whatever it says, nothing outside the
//! folder is read, written or followed, and nothing is larger than the budget.
//!
//! That is so by construction. A record names one path component, and it is made in a folder that this
//! very run made and holds open, so there is no path to resolve and nothing to be led astray by. The one
//! path there is, of a hard link, is resolved by openat2 beneath the root and through no symbolic link.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use libc::makedev;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};

use super::*;
use crate::checkpoint::hash::{HASH_SIZE, Hash, Hashing};

/// Reads `input` to its end into the folder `dir`, which exists and is empty, and gives it the attributes
/// of the archived one. After an error the folder may hold a part: the caller throws it away, which is
/// why the closing checksum may come after the files that it covers. The caller compares the digest with
/// the manifest's.
///
/// Must run as root of the initial user namespace (owners, devices and `trusted.` attributes).
pub fn unpack(input: impl Read, dir: &Path, budget: &Budget) -> Result<Summary> {
    let failed = |e: Errno| ArchiveError::File(dir.to_owned(), e.into());
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open(dir, flags, Mode::empty()).map_err(failed)?;
    let mut list = nix::dir::Dir::openat(&root, ".", flags, Mode::empty()).map_err(failed)?;
    if list
        .iter()
        .any(|e| e.is_ok_and(|e| !matches!(e.file_name().to_bytes(), b"." | b"..")))
    {
        return Err(failed(Errno::ENOTEMPTY));
    }
    let mut unpacker = Unpacker {
        input: Hashing::new(BufReader::with_capacity(RUN_MAX, input)),
        root,
        folders: Vec::new(),
        path: Vec::new(),
        budget,
        entries: 0,
        content: 0,
    };
    if unpacker.array()? != *MAGIC {
        return damaged("it does not begin as an archive");
    }
    match unpacker.u32()? {
        VERSION => {}
        other => return Err(ArchiveError::Version(other)),
    }
    unpacker.records()?;
    let sum = unpacker.input.digest().blake3;
    if Hash(unpacker.array::<HASH_SIZE>()?) != sum {
        return damaged("its checksum differs");
    }
    let digest = unpacker.input.digest();
    if unpacker.input.read(&mut [0])? != 0 {
        return damaged("it goes on after its end");
    }
    Ok(Summary {
        digest,
        entries: unpacker.entries,
        content: unpacker.content,
    })
}

/// A folder that was entered and not yet left: its attributes are set when it is left, since what is
/// made in it changes its time, and might inherit from its access lists.
struct Folder {
    fd: OwnedFd,
    attributes: Attributes,
    /// Length of [`Unpacker::path`] outside it.
    outer: usize,
}

struct Attributes {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    mtime: TimeSpec,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

struct Unpacker<'a, R: Read> {
    input: Hashing<BufReader<R>>,
    root: OwnedFd,
    folders: Vec<Folder>,
    /// The innermost folder, for messages.
    path: Vec<u8>,
    budget: &'a Budget,
    entries: u64,
    content: u64,
}

impl<R: Read> Unpacker<'_, R> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.input.read_exact(buffer).or_else(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => damaged("it is cut short"),
            _ => Err(e.into()),
        })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        self.fill(&mut array)?;
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn blob(&mut self, len: usize, most: usize) -> Result<Vec<u8>> {
        if len > most {
            return damaged(format!(
                "something in {} is too long",
                show(&self.path, b"").display()
            ));
        }
        let mut blob = vec![0; len];
        self.fill(&mut blob)?;
        Ok(blob)
    }

    fn text(&mut self, most: usize) -> Result<Vec<u8>> {
        let len = usize::from(self.u16()?);
        self.blob(len, most)
    }

    fn spend_content(&mut self, bytes: usize) -> Result<()> {
        self.content += bytes as u64;
        if self.content > self.budget.bytes {
            return Err(ArchiveError::Budget {
                what: "bytes",
                limit: self.budget.bytes,
            });
        }
        Ok(())
    }

    fn spend_entry(&mut self) -> Result<()> {
        self.entries += 1;
        if self.entries > self.budget.entries {
            return Err(ArchiveError::Budget {
                what: "files",
                limit: self.budget.entries,
            });
        }
        Ok(())
    }

    fn failed(&self, name: &[u8], error: impl Into<io::Error>) -> ArchiveError {
        ArchiveError::File(show(&self.path, name), error.into())
    }

    fn name(&mut self) -> Result<Vec<u8>> {
        self.spend_entry()?;
        let name = self.text(NAME_MAX)?;
        if is_name(&name) {
            Ok(name)
        } else {
            damaged("it holds a name that is no name")
        }
    }

    fn attributes(&mut self) -> Result<Attributes> {
        let mode = self.u32()?;
        let Some(mode) = Mode::from_bits(mode).filter(|_| mode <= 0o7777) else {
            return damaged(format!("the mode {mode:o} does not exist"));
        };
        let (uid, gid) = (self.u32()?, self.u32()?);
        if uid == u32::MAX || gid == u32::MAX {
            // To the kernel that means "leave as it is".
            return damaged("the owner -1 does not exist");
        }
        let seconds = i64::from_le_bytes(self.array()?);
        let nanoseconds = self.u32()?;
        if nanoseconds >= 1_000_000_000 {
            return damaged("a time has too many nanoseconds");
        }
        let count = usize::from(self.u16()?);
        if count > XATTRS_MAX {
            return damaged("a file has too many attributes");
        }
        let mut xattrs = Vec::new();
        for _ in 0..count {
            let name = self.text(NAME_MAX)?;
            if !xattr_travels(&name) {
                return damaged(format!("the attribute {} does not travel", name.escape_ascii()));
            }
            let len = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
            self.spend_content(len)?;
            xattrs.push((name, self.blob(len, XATTR_MAX)?));
        }
        Ok(Attributes {
            mode,
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            mtime: TimeSpec::new(seconds, i64::from(nanoseconds)),
            xattrs,
        })
    }

    /// Everything up to and including the end record.
    fn records(&mut self) -> Result<()> {
        if self.u8()? != ENTER || !self.text(NAME_MAX)?.is_empty() {
            return damaged("it does not begin with the layer's root");
        }
        self.spend_entry()?;
        let attributes = self.attributes()?;
        let fd = self.root.try_clone()?;
        self.folders.push(Folder {
            fd,
            attributes,
            outer: 0,
        });
        loop {
            let tag = self.u8()?;
            if tag == LEAVE {
                self.leave()?;
                continue;
            }
            // The folder is taken out of the stack for the time it is worked in.
            match (tag, self.folders.pop()) {
                (END, None) => return Ok(()),
                (END, Some(_)) => return damaged("it ends within a folder"),
                (_, None) => return damaged("it goes on outside the layer's root"),
                (tag, Some(folder)) => {
                    let entered = self.node(tag, folder.fd.as_fd())?;
                    self.folders.push(folder);
                    self.folders.extend(entered);
                }
            }
        }
    }

    fn leave(&mut self) -> Result<()> {
        let Some(Folder {
            fd,
            attributes,
            outer,
        }) = self.folders.pop()
        else {
            return damaged("it leaves a folder that it never entered");
        };
        self.set_attributes(fd.as_fd(), b".", SFlag::S_IFDIR, &attributes)?;
        self.path.truncate(outer);
        Ok(())
    }

    /// Makes one thing in `dir`; a folder is returned for what goes into it.
    fn node(&mut self, tag: u8, dir: BorrowedFd<'_>) -> Result<Option<Folder>> {
        let name = self.name()?;
        let name = &name[..];
        match tag {
            ENTER => {
                // The folder that is being worked in is not on the stack.
                if self.folders.len() + 1 >= DEPTH_MAX {
                    return damaged("its folders are nested too deeply");
                }
                let attributes = self.attributes()?;
                mkdirat(dir, name, Mode::S_IRWXU).map_err(|e| self.failed(name, e))?;
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let fd = openat(dir, name, flags, Mode::empty()).map_err(|e| self.failed(name, e))?;
                let outer = self.path.len();
                self.path = show(&self.path, name).into_os_string().into_encoded_bytes();
                return Ok(Some(Folder {
                    fd,
                    attributes,
                    outer,
                }));
            }
            FILE => self.file(dir, name)?,
            SYMLINK => {
                let attributes = self.attributes()?;
                let target = self.text(PATH_MAX)?;
                if target.is_empty() || target.contains(&0) {
                    return damaged("a symbolic link leads nowhere");
                }
                symlinkat(&target[..], dir, name).map_err(|e| self.failed(name, e))?;
                self.set_attributes(dir, name, SFlag::S_IFLNK, &attributes)?;
            }
            HARDLINK => {
                let path = self.text(PATH_MAX)?;
                self.hardlink(dir, name, &path)?;
            }
            DEVICE => {
                let attributes = self.attributes()?;
                let (kind, major, minor) = (self.u8()?, self.u32()?, self.u32()?);
                if !device_travels(kind, major, minor) {
                    return damaged(format!("device nodes like {major}:{minor} do not travel"));
                }
                self.special(dir, name, SFlag::S_IFCHR, makedev(major, minor), &attributes)?;
            }
            FIFO => {
                let attributes = self.attributes()?;
                self.special(dir, name, SFlag::S_IFIFO, 0, &attributes)?;
            }
            other => return damaged(format!("the record type {other} does not exist")),
        }
        Ok(None)
    }

    fn file(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let attributes = self.attributes()?;
        let size = self.u64()?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let file = File::from(file.map_err(|e| self.failed(name, e))?);
        let mut end = 0;
        loop {
            let len = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
            if len == 0 {
                break;
            }
            let at = self.u64()?;
            let new_end = at.checked_add(len as u64);
            match new_end {
                Some(new_end) if len <= RUN_MAX && at >= end && new_end <= size => end = new_end,
                _ => {
                    return damaged(format!(
                        "{} has impossible data",
                        show(&self.path, name).display()
                    ));
                }
            }
            self.spend_content(len)?;
            let data = self.blob(len, RUN_MAX)?;
            file.write_all_at(&data, at).map_err(|e| self.failed(name, e))?;
        }
        file.set_len(size).map_err(|e| self.failed(name, e))?;
        self.set_attributes(dir, name, SFlag::S_IFREG, &attributes)
    }

    fn hardlink(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
        let (folders, last) = match path.iter().rposition(|&c| c == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b"."[..], path),
        };
        let plain = folders == b"." || folders.split(|&c| c == b'/').all(is_name);
        if !plain || !is_name(last) {
            return damaged("a hard link leads nowhere");
        }
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let folder = openat2(&self.root, folders, how).map_err(|e| self.failed(name, e))?;
        // Without AT_SYMLINK_FOLLOW the last component is not followed either.
        linkat(&folder, last, dir, name, AtFlags::empty()).map_err(|e| self.failed(name, e))
    }

    fn special(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        kind: SFlag,
        device: u64,
        attributes: &Attributes,
    ) -> Result<()> {
        mknodat(dir, name, kind, Mode::S_IRUSR | Mode::S_IWUSR, device).map_err(|e| self.failed(name, e))?;
        self.set_attributes(dir, name, kind, attributes)
    }

    /// For something that this run has just made: `name` is no link to anything but itself. The order
    /// matters: a new owner takes away setuid bits and capabilities.
    fn set_attributes(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        kind: SFlag,
        attributes: &Attributes,
    ) -> Result<()> {
        let Attributes {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        } = attributes;
        let failed = |e: Errno| self.failed(name, e);
        fchownat(dir, name, Some(*uid), Some(*gid), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
        if kind != SFlag::S_IFLNK {
            fchmodat(dir, name, *mode, FchmodatFlags::FollowSymlink).map_err(failed)?;
        }
        let path = through(dir, OsStr::from_bytes(name));
        for (xattr, value) in xattrs {
            xattr::set(&path, OsStr::from_bytes(xattr), value).map_err(|e| self.failed(name, e))?;
        }
        utimensat(
            dir,
            name,
            &TimeSpec::UTIME_OMIT,
            mtime,
            UtimensatFlags::NoFollowSymlink,
        )
        .map_err(failed)
    }
}
