//! What of a root directory an app does not see: the host's secrets and state, its devices, its mounts.
//!
//! Owns the list and how it is put on: as whiteouts and opaque directories of overlayfs, written into
//! the app's own writable layer before each mount. They are not a lower layer of their own that all
//! apps share: inside `/` it would lie within another lower layer, which the kernel refuses ("overlapping
//! lowerdir path"), and on a tmpfs its files would have another identity after each boot, which
//! `index=on` refuses. Must not follow a symbolic link of the writable layer: the app made them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstatat, makedev, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, fchown, symlinkat};
use serde::{Deserialize, Serialize};
use xattr::FileExt;

use super::SandboxError;

/// The mark of overlayfs by which a directory hides what lies below it.
const OPAQUE: &str = "trusted.overlay.opaque";

/// Files and directories of a host that hold what only its administrator may know, or that mean
/// nothing to an app. Where an app needs one of them, its owner puts it into the app's seed.
const HOST_SECRETS: &[&str] = &[
    "/boot",
    "/lost+found",
    "/etc/ssh",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/security/opasswd",
    "/etc/krb5.keytab",
    "/etc/ssl/private",
    "/etc/letsencrypt",
    "/etc/wireguard",
    "/etc/NetworkManager/system-connections",
    "/var/spool/cron",
];
/// In `/etc`: these, and what tools leave beside them (`shadow-`, `shadow+`, `shadow.lock`, ...).
const SHADOW: [&str; 2] = ["shadow", "gshadow"];
const DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// What an app's root must not show, and must show instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mask {
    /// The root is the host's own: hide the host's secrets, homes, run-time and temporary files, and
    /// these absolute paths (the agent's configuration and state).
    Host {
        /// What to hide besides.
        hidden: Vec<PathBuf>,
    },
    /// The root is a directory made for the app: give it `/dev`, `/proc`, `/run`, `/tmp`.
    Directory,
}

/// What stands at a path of the writable layer.
enum What {
    /// Nothing is to be seen.
    Hidden,
    /// A directory that shows nothing of the lower ones.
    Empty(u32),
    /// A directory of whatever content.
    Present(u32),
    Device(u64, u64),
    Link(&'static str),
}

impl Mask {
    fn entries(&self) -> Vec<(PathBuf, What)> {
        let mut list: Vec<(PathBuf, What)> = vec![
            ("/dev".into(), What::Empty(0o755)),
            ("/dev/pts".into(), What::Present(0o755)),
            ("/dev/shm".into(), What::Present(0o1777)),
            ("/dev/mqueue".into(), What::Present(0o1777)),
            ("/proc".into(), What::Empty(0o555)),
            ("/sys".into(), What::Empty(0o555)),
        ];
        let dev = Path::new("/dev");
        list.extend(
            DEVICES
                .iter()
                .map(|(name, major, minor)| (dev.join(name), What::Device(*major, *minor))),
        );
        list.extend(
            DEVICE_LINKS
                .iter()
                .map(|(name, target)| (dev.join(name), What::Link(target))),
        );
        let Mask::Host { hidden } = self else {
            list.push(("/run".into(), What::Present(0o755)));
            list.push(("/tmp".into(), What::Present(0o1777)));
            return list;
        };
        for (path, mode) in [
            ("/root", 0o700),
            ("/home", 0o755),
            ("/run", 0o755),
            ("/tmp", 0o1777),
            ("/var/tmp", 0o1777),
        ] {
            list.push((path.into(), What::Empty(mode)));
        }
        list.push(("/run/lock".into(), What::Present(0o1777)));
        let mut hide: Vec<PathBuf> = HOST_SECRETS
            .iter()
            .map(PathBuf::from)
            .chain(hidden.iter().cloned())
            .collect();
        for entry in fs::read_dir("/etc").into_iter().flatten().flatten() {
            if SHADOW
                .iter()
                .any(|s| entry.file_name().to_string_lossy().starts_with(s))
            {
                hide.push(entry.path());
            }
        }
        hide.extend(SHADOW.iter().map(|s| Path::new("/etc").join(s)));
        list.extend(hide.iter().flat_map(|p| real_paths(p)).map(|p| (p, What::Hidden)));
        list
    }

    /// Writes the mask into the writable layer `upper` that will lie over `lower`. What the app itself
    /// has put at one of the paths stays, and hides what is below as well.
    pub(super) fn put_on(&self, lower: &[PathBuf], upper: &Path) -> Result<(), SandboxError> {
        let top = fs::File::open(upper).map_err(SandboxError::file("open", upper))?;
        for (path, what) in self.entries() {
            put(lower, top.as_fd(), &path, &what).map_err(SandboxError::file(
                "mask",
                upper.join(path.strip_prefix("/").unwrap_or(&path)),
            ))?;
        }
        Ok(())
    }
}

/// Where a path of the host really is: a whiteout must stand at the place that symbolic links lead to.
fn real_paths(path: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::canonicalize(path).into_iter().collect();
    if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
        let itself = fs::canonicalize(parent)
            .unwrap_or_else(|_| parent.to_owned())
            .join(name);
        if !all.contains(&itself) {
            all.push(itself);
        }
    }
    all
}

fn open_dir(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    openat(
        dir,
        name,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

fn is_opaque(dir: &fs::File) -> bool {
    dir.get_xattr(OPAQUE)
        .is_ok_and(|value| value.as_deref() == Some(b"y"))
}

fn put(lower: &[PathBuf], top: BorrowedFd<'_>, path: &Path, what: &What) -> std::io::Result<()> {
    let parts: Vec<OsString> = path
        .components()
        .filter_map(|c| {
            if let Component::Normal(part) = c {
                Some(part.to_owned())
            } else {
                None
            }
        })
        .collect();
    let Some((name, parents)) = parts.split_last() else {
        return Ok(());
    };
    let mut dir = fs::File::from(top.try_clone_to_owned()?);
    let mut so_far = PathBuf::new();
    for part in parents {
        if matches!(what, What::Hidden) && is_opaque(&dir) {
            return Ok(());
        }
        so_far.push(part);
        dir = match open_dir(dir.as_fd(), part) {
            Ok(next) => next.into(),
            Err(Errno::ENOENT) => {
                let below = attributes(lower, &so_far);
                if below.is_none() && matches!(what, What::Hidden) {
                    return Ok(());
                }
                make_dir(dir.as_fd(), part, below.unwrap_or((0o755, 0, 0)))?
            }
            // The app has put something else in its place: that hides all below.
            Err(Errno::ENOTDIR | Errno::ELOOP) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
    }
    let exists = match fstatat(&dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Some(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR),
        Err(Errno::ENOENT) => None,
        Err(e) => return Err(e.into()),
    };
    match (what, exists) {
        (What::Hidden | What::Empty(_), Some(true)) => make_opaque(&open_dir(dir.as_fd(), name)?.into())?,
        (_, Some(_)) => {}
        (What::Hidden, None) => {
            if !is_opaque(&dir) {
                mknodat(
                    &dir,
                    name.as_os_str(),
                    SFlag::S_IFCHR,
                    Mode::empty(),
                    makedev(0, 0),
                )?;
            }
        }
        (What::Empty(mode), None) => make_opaque(&make_dir(dir.as_fd(), name, (*mode, 0, 0))?)?,
        (What::Present(mode), None) => {
            so_far.push(name);
            if is_opaque(&dir) || attributes(lower, &so_far).is_none() {
                make_dir(dir.as_fd(), name, (*mode, 0, 0))?;
            }
        }
        (What::Device(major, minor), None) => {
            mknodat(
                &dir,
                name.as_os_str(),
                SFlag::S_IFCHR,
                Mode::empty(),
                makedev(*major, *minor),
            )?;
            fchmodat(
                &dir,
                name.as_os_str(),
                Mode::from_bits_truncate(0o666),
                FchmodatFlags::FollowSymlink,
            )?;
        }
        (What::Link(target), None) => symlinkat(*target, &dir, name.as_os_str())?,
    }
    Ok(())
}

/// Mode, user and group of a directory of the lower layers, of the uppermost one that has it; `None` if
/// none has, or has something else there.
pub(super) fn attributes(lower: &[PathBuf], path: &Path) -> Option<(u32, u32, u32)> {
    let meta = lower
        .iter()
        .find_map(|layer| fs::symlink_metadata(layer.join(path)).ok())?;
    let is_whiteout = meta.file_type().is_char_device() && meta.rdev() == 0;
    (meta.is_dir() && !is_whiteout).then(|| (meta.mode() & 0o7777, meta.uid(), meta.gid()))
}

fn make_dir(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    (mode, uid, gid): (u32, u32, u32),
) -> std::io::Result<fs::File> {
    mkdirat(dir, name, Mode::S_IRWXU)?;
    let made = open_dir(dir, name)?;
    fchown(&made, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    // After the change of owner, which clears bits, and whatever the umask is.
    fchmod(&made, Mode::from_bits_truncate(mode))?;
    Ok(made.into())
}

fn make_opaque(dir: &fs::File) -> std::io::Result<()> {
    if is_opaque(dir) {
        Ok(())
    } else {
        dir.set_xattr(OPAQUE, b"y")
    }
}
