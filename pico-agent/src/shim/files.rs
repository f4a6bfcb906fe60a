//! What can be wrong with a file of a checkpoint, on the way into one and out of one.

use std::io;
use std::path::{Path, PathBuf};

use crate::criu::images::ImageError;

/// A file of a checkpoint that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is an image that is damaged, or not as CRIU writes it.
    #[error("{path}: {source}")]
    Image {
        /// Which.
        path: PathBuf,
        /// Why.
        source: ImageError,
    },
}

/// Names the file that an operation failed on.
pub fn at(path: &Path) -> impl FnOnce(io::Error) -> FileError + '_ {
    move |source| FileError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Names the image that is not as it must be.
pub fn image_at(path: &Path) -> impl FnOnce(ImageError) -> FileError + '_ {
    move |source| FileError::Image {
        path: path.to_owned(),
        source,
    }
}
