//! An app's root file system: an overlay of a writable layer over a directory or the host's own root.
//!
//! Owns the mount, its options, and the first content of a writable layer. Nothing in the tree is a
//! tmpfs: CRIU packs and unpacks each one with a child process (5 ms a piece). Must not know what the
//! layers are archived into.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};

use super::mask::attributes;
use super::{Mask, SandboxError};

/// What overlayfs is told besides the layers.
/// `index`, `nfs_export`: file handles, without which CRIU cannot save an inotify watch.
/// `redirect_dir`, `metacopy`: off, or the writable layer would be incomplete without this very lower one.
const OPTIONS: &str = "index=on,nfs_export=on,redirect_dir=nofollow,metacopy=off";
/// Which lower file an upper one came from; binds a writable layer to the identity of its lower one.
const ORIGIN: &str = "trusted.overlay.origin";

/// The layers of one app's root, and where they are mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootSpec {
    /// Read-only directories, uppermost first. None may lie inside another.
    pub lower: Vec<PathBuf>,
    /// What the lower ones must not show.
    pub mask: Mask,
    /// The writable layer, on a file system that takes `trusted.` attributes (ext4, xfs, btrfs).
    pub upper: PathBuf,
    /// Overlayfs's own directory, on the same file system as `upper`, and kept with it.
    pub work: PathBuf,
    /// Where the root is mounted, in whatever mount namespace the caller is in.
    pub mountpoint: PathBuf,
}

impl RootSpec {
    /// Makes the directories that a mount needs, the writable layer with the rights that `/` has.
    fn make_dirs(&self) -> Result<(), SandboxError> {
        for lower in &self.lower {
            if !lower.is_dir() {
                return Err(SandboxError::NoRoot(lower.clone()));
            }
        }
        for dir in [&self.upper, &self.work, &self.mountpoint] {
            if !dir.is_dir() {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(dir)
                    .map_err(SandboxError::file("create", dir))?;
                fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
                    .map_err(SandboxError::file("chmod", dir))?;
            }
        }
        Ok(())
    }
}

/// Mounts the root in the caller's mount namespace, its mask put on. Directories are made as needed.
///
/// The kernel keeps a writable layer from being mounted twice, so whoever wants to start or restore an
/// app again should keep this mount ([`SandboxError::RootBusy`]).
pub fn mount_root(root: &RootSpec) -> Result<(), SandboxError> {
    root.make_dirs()?;
    root.mask.put_on(&root.lower, &root.upper)?;
    // Colons, commas and backslashes separate and escape in the options, differently from version to
    // version. A path with one of them is given as that of a descriptor.
    let mut open = Vec::new();
    let mut name = |path: &Path| -> Result<String, SandboxError> {
        match path.to_str() {
            Some(text) if path.is_absolute() && !text.contains([':', ',', '\\']) => Ok(text.to_owned()),
            _ => {
                let file = fs::OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_PATH)
                    .open(path);
                let file = file.map_err(SandboxError::file("open", path))?;
                let text = format!("/proc/self/fd/{}", file.as_raw_fd());
                open.push(file);
                Ok(text)
            }
        }
    };
    let lower: Vec<String> = root.lower.iter().map(|p| name(p)).collect::<Result<_, _>>()?;
    let (upper, work) = (name(&root.upper)?, name(&root.work)?);
    let options = format!(
        "lowerdir={},upperdir={upper},workdir={work},{OPTIONS}",
        lower.join(":")
    );
    mount(
        Some("overlay"),
        &root.mountpoint,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .map_err(|e| match e {
        nix::errno::Errno::ESTALE => {
            SandboxError::RootReplaced(root.lower.first().cloned().unwrap_or_default())
        }
        nix::errno::Errno::EBUSY => SandboxError::RootBusy(root.upper.clone()),
        e => SandboxError::file("mount an overlay at", &root.mountpoint)(e),
    })
}

/// Takes the mount away again; nothing happens if there is none. Fails while anybody has a file of it open: the layers
/// may be used again.
pub fn unmount_root(root: &RootSpec) -> Result<(), SandboxError> {
    match umount2(&root.mountpoint, MntFlags::empty()) {
        // EINVAL: not a mount point.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(e) => Err(SandboxError::file("unmount", &root.mountpoint)(e)),
    }
}

/// Takes the mount away for good: its layers are about to be removed. Who still has a file of it open (a shell that
/// stands in it, a backup) keeps what they have, and keeps nothing of ours: the mount goes with them.
pub fn abandon_root(root: &RootSpec) -> Result<(), SandboxError> {
    match umount2(&root.mountpoint, MntFlags::empty()) {
        Err(nix::errno::Errno::EBUSY) => umount2(&root.mountpoint, MntFlags::MNT_DETACH)
            .map_err(SandboxError::file("detach", &root.mountpoint)),
        _ => unmount_root(root),
    }
}

/// Makes the writable layer forget which lower files its own came from, so that it can lie over
/// directories that were replaced ([`SandboxError::RootReplaced`]). Only while it is not mounted.
pub fn forget_lower(root: &RootSpec) -> Result<(), SandboxError> {
    fn forget(path: &Path) -> Result<(), SandboxError> {
        match xattr::remove(path, ORIGIN) {
            Err(e) if e.raw_os_error() != Some(libc::ENODATA) => {
                return Err(SandboxError::file("remove the origin of", path)(e));
            }
            _ => {}
        }
        if fs::symlink_metadata(path).is_ok_and(|m| m.is_dir()) {
            for entry in list(path)? {
                forget(&entry.path())?;
            }
        }
        Ok(())
    }
    forget(&root.upper)?;
    match fs::remove_dir_all(&root.work) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(SandboxError::file("remove", &root.work)(e)),
        _ => Ok(()),
    }
}

fn list(dir: &Path) -> Result<Vec<fs::DirEntry>, SandboxError> {
    fs::read_dir(dir)
        .and_then(Iterator::collect)
        .map_err(SandboxError::file("list", dir))
}

/// Copies what is in `dir` into a new writable layer: owner, mode, time of change, symbolic links.
/// Directories that the root has already keep their own owner and mode. To be done before the first mount.
pub fn seed(root: &RootSpec, dir: &Path) -> Result<(), SandboxError> {
    root.make_dirs()?;
    if !dir.is_dir() {
        return Err(SandboxError::Seed {
            path: dir.to_owned(),
            why: "it is not a directory; correct `seed` of the app",
        });
    }
    seed_dir(root, dir, Path::new(""))
}

fn seed_dir(root: &RootSpec, dir: &Path, below: &Path) -> Result<(), SandboxError> {
    for entry in list(&dir.join(below))? {
        let path = below.join(entry.file_name());
        let from = entry.path();
        let to = root.upper.join(&path);
        let copy = |e: io::Error| SandboxError::file("copy the seed's", &from)(e);
        let meta = entry.metadata().map_err(copy)?;
        let kind = meta.file_type();
        let (mut mode, mut uid, mut gid) = (meta.mode() & 0o7777, meta.uid(), meta.gid());
        let below = root
            .lower
            .iter()
            .find_map(|layer| fs::symlink_metadata(layer.join(&path)).ok());
        if kind.is_dir() {
            if below.is_some_and(|m| m.is_symlink()) {
                let why = "the root has a symbolic link there; put the files where it leads";
                return Err(SandboxError::Seed { path, why });
            }
            (mode, uid, gid) = attributes(&root.lower, &path).unwrap_or((mode, uid, gid));
            match fs::create_dir(&to) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(copy(e)),
                _ => {}
            }
            seed_dir(root, dir, &path)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&from).map_err(copy)?;
            symlink(target, &to).map_err(copy)?;
        } else if kind.is_file() {
            fs::copy(&from, &to).map_err(copy)?;
        } else {
            return Err(SandboxError::Seed {
                path,
                why: "it is no file, directory or symbolic link; leave it out",
            });
        }
        lchown(&to, Some(uid), Some(gid)).map_err(copy)?;
        if !kind.is_symlink() {
            // After the change of owner, which clears bits.
            fs::set_permissions(&to, fs::Permissions::from_mode(mode)).map_err(copy)?;
        }
        if kind.is_file() {
            let times = fs::FileTimes::new().set_modified(meta.modified().map_err(copy)?);
            fs::File::options()
                .write(true)
                .open(&to)
                .and_then(|f| f.set_times(times))
                .map_err(copy)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
