//! Identity of the files of an app's root file system that its processes have mapped or open.
//!
//! Owns the decision "may a checkpoint be restored onto these files"; knows nothing of who asks. An app
//! restored onto a library that a package upgrade has replaced would run old data on new code.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::hash::Hash;

/// What one file was when the checkpoint was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFile {
    /// Absolute path as the app sees it.
    pub path: PathBuf,
    /// Inode number: a file that was written beside and renamed over, within one tick of the clock, has
    /// the old one's times but not its number.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// Time of the last change of content, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Time of the last change of the inode, nanoseconds since 1970: cannot be set by anyone.
    pub ctime_ns: i64,
    /// BLAKE3 of the content: decides when the size is the same and the rest is not (another host, a reinstalled package).
    /// Without it, a changed time or inode counts as a changed file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<Hash>,
}

/// How a root file differs from what it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootChange {
    /// There is no such file any more.
    #[error("{} is gone", .0.display())]
    Gone(PathBuf),
    /// There is something else of that name.
    #[error("{} is no regular file any more", .0.display())]
    NoFile(PathBuf),
    /// The content differs.
    #[error("{} has changed since the checkpoint was made", .0.display())]
    Content(PathBuf),
}

fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

impl RootFile {
    /// Describes `file` as the app's `path`; taken of the file that [`RootFile::changed`]'s `resolve`
    /// will find, not through an overlay (which shows other inode numbers). The caller gives the hash where it knows it or wants it.
    pub fn new(path: PathBuf, file: &Metadata, blake3: Option<Hash>) -> Self {
        RootFile {
            path,
            inode: file.ino(),
            size: file.size(),
            mtime_ns: nanoseconds(file.mtime(), file.mtime_nsec()),
            ctime_ns: nanoseconds(file.ctime(), file.ctime_nsec()),
            blake3,
        }
    }

    /// Compares with the file that `resolve` finds for the path (`None`: there is none, for instance
    /// since a layer hides it). Reads the content only where something differs but the size does not.
    pub fn changed(&self, resolve: &dyn Fn(&Path) -> Option<PathBuf>) -> io::Result<Option<RootChange>> {
        let Some(host_path) = resolve(&self.path) else {
            return Ok(Some(RootChange::Gone(self.path.clone())));
        };
        let file = match std::fs::symlink_metadata(&host_path) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(Some(RootChange::Gone(self.path.clone())));
            }
            Err(e) => return Err(e),
        };
        if !file.is_file() {
            return Ok(Some(RootChange::NoFile(self.path.clone())));
        }
        let now = RootFile::new(self.path.clone(), &file, self.blake3);
        if now == *self {
            return Ok(None);
        }
        let same = match self.blake3 {
            Some(hash) if now.size == self.size => Hash::of_file(&host_path)?.blake3 == hash,
            _ => false,
        };
        Ok((!same).then(|| RootChange::Content(self.path.clone())))
    }

    /// True for an absolute path without `.`, `..` or anything that could hide from a log.
    pub(super) fn path_is_plain(&self) -> bool {
        let mut components = self.path.components();
        components.next() == Some(Component::RootDir)
            && components.all(|c| matches!(c, Component::Normal(_)))
            && self
                .path
                .to_str()
                .is_some_and(|p| p.len() < 4096 && !p.contains('\0'))
    }
}

/// All of `files` that are not what they were, at most `most` of them (one is enough to refuse; a few
/// more make a better message).
pub fn changed_files(
    files: &[RootFile],
    most: usize,
    resolve: &dyn Fn(&Path) -> Option<PathBuf>,
) -> io::Result<Vec<RootChange>> {
    let changes = files.iter().filter_map(|file| file.changed(resolve).transpose());
    changes.take(most).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::fs;
    use std::time::{Duration, SystemTime};

    fn describe(path: &Path, hashed: bool) -> RootFile {
        let hash = hashed.then(|| Hash::of_file(path).unwrap().blake3);
        RootFile::new(path.to_owned(), &fs::metadata(path).unwrap(), hash)
    }

    #[test]
    fn a_replaced_library_is_found_and_an_untouched_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let here = |p: &Path| Some(p.to_owned());
        let path = dir.path().join("libc.so.6");
        fs::write(&path, "old code").unwrap();
        let known = [describe(&path, true)];
        assert_eq!(changed_files(&known, 9, &here).unwrap(), []);

        // A package upgrade writes a new file beside the old one and renames it, often with the
        // old file's modification time and sometimes of the same size.
        let new = dir.path().join("libc.so.6.dpkg-new");
        fs::write(&new, "new code").unwrap();
        let mtime = fs::metadata(&path).unwrap().modified().unwrap();
        fs::File::options()
            .write(true)
            .open(&new)
            .unwrap()
            .set_modified(mtime)
            .unwrap();
        fs::rename(&new, &path).unwrap();
        assert_eq!(
            changed_files(&known, 9, &here).unwrap(),
            [RootChange::Content(path.clone())]
        );

        fs::remove_file(&path).unwrap();
        assert_eq!(
            changed_files(&known, 9, &here).unwrap(),
            [RootChange::Gone(path.clone())]
        );
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert_eq!(
            changed_files(&known, 9, &here).unwrap(),
            [RootChange::NoFile(path.clone())]
        );
        assert_eq!(
            changed_files(&known, 9, &|_| None).unwrap(),
            [RootChange::Gone(path)]
        );
    }

    #[test]
    fn the_same_content_with_other_times_is_the_same_file_only_if_its_hash_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let here = |p: &Path| Some(p.to_owned());
        let path = dir.path().join("nginx");
        fs::write(&path, "code").unwrap();
        let (hashed, unhashed) = (describe(&path, true), describe(&path, false));
        let later = SystemTime::now() + Duration::from_secs(60);
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(later)
            .unwrap();
        assert_eq!(hashed.changed(&here).unwrap(), None);
        assert_eq!(unhashed.changed(&here).unwrap(), Some(RootChange::Content(path)));
    }
}
