//! Owns the ways the storage can fail. Must not know what is done about it.

use std::io;
use std::path::{Path, PathBuf};

use super::names;

/// Why the storage did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process serves this directory.
    #[error("{} is in use by another server; stop that one, or give this one a directory of its own", .0.display())]
    InUse(PathBuf),
    /// Not a bucket name (3 to 63 of a-z, 0-9, dots and dashes).
    #[error("'{0}' is not a valid bucket name")]
    BadBucketName(String),
    /// No such bucket.
    #[error("bucket '{0}' does not exist")]
    NoSuchBucket(String),
    /// The bucket is there already.
    #[error("bucket '{0}' exists already")]
    BucketExists(String),
    /// Only an empty bucket can be deleted.
    #[error("bucket '{0}' is not empty")]
    BucketNotEmpty(String),
    /// No such object.
    #[error("object '{0}' does not exist")]
    NoSuchKey(String),
    /// Longer than S3 allows, or empty.
    #[error("keys have 1 to {max} bytes, not {0}", max = names::MAX_KEY)]
    BadKeyLength(usize),
    /// The condition of a write does not hold; nothing was changed.
    #[error("the condition does not hold for '{0}'")]
    PreconditionFailed(String),
    /// No such upload, or it was completed or aborted meanwhile.
    #[error("upload '{0}' does not exist")]
    NoSuchUpload(String),
    /// A part to be completed is missing or has another entity tag.
    #[error("part {0} is missing or is not the one that was uploaded")]
    InvalidPart(u16),
    /// The parts to be completed are not in ascending order.
    #[error("parts are not in ascending order")]
    InvalidPartOrder,
    /// A part other than the last is smaller than S3 allows.
    #[error("part {0} is smaller than 5 MiB and not the last")]
    PartTooSmall(u16),
}

/// Result with [`StoreError`].
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Adds action and path to an I/O error.
pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}
