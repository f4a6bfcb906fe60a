//! From a local checkpoint to the images CRIU restores.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::checkpoint::index::PageIndex;
use crate::checkpoint::local::{Clocks, DUMP_FILE, Dump, IMAGES_DIR, INDEX_FILE, SCHEMA, time_between};
use crate::criu::images::ImageError;
use crate::criu::timers;
use crate::sandbox::rootfs::RootSpec;

use super::dump::root_file;
use super::files::{FileError, at, image_at};

/// Why a checkpoint cannot be restored. It is kept.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A file cannot be read or written, or is damaged.
    #[error(transparent)]
    File(#[from] FileError),
    /// `dump.json` is damaged or of another release.
    #[error("{path}: {reason}")]
    Dump {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The page index is damaged.
    #[error("{path}: {source}")]
    Index {
        /// Which.
        path: PathBuf,
        /// Why.
        source: crate::checkpoint::index::IndexError,
    },
    /// A file below the writable layer is not what the app had mapped or open.
    #[error(
        "{} has changed since the app went to sleep (a package upgrade?); its memory cannot be put onto \
         another file; try: pico-agent app restart NAME, which starts it afresh",
        path.display()
    )]
    RootFileChanged {
        /// Path inside the root.
        path: PathBuf,
    },
}

impl RestoreError {
    /// Whether trying again cannot help until the owner does something.
    pub fn is_permanent(&self) -> bool {
        matches!(self, RestoreError::RootFileChanged { .. })
    }
}

/// A checkpoint that is ready to be restored.
#[derive(Debug)]
pub struct Prepared {
    /// Its description.
    pub dump: Dump,
    /// Its pages.
    pub index: PageIndex,
    /// How long the app slept.
    pub slept: Duration,
}

/// Reads the checkpoint in `checkpoint` and lays its images out in `images`, clocks and timers advanced.
///
/// # Errors
/// When the checkpoint is damaged, or the app's root has changed under it.
pub fn prepare(
    checkpoint: &Path,
    images_dir: &Path,
    root: &RootSpec,
    now: &Clocks,
) -> Result<Prepared, RestoreError> {
    let path = checkpoint.join(DUMP_FILE);
    let bytes = fs::read(&path).map_err(at(&path))?;
    let damaged = |reason: String| RestoreError::Dump {
        path: path.clone(),
        reason,
    };
    let dump: Dump = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if dump.schema != SCHEMA {
        return Err(damaged(format!(
            "written as {}, this release reads {SCHEMA}",
            dump.schema
        )));
    }
    let path = checkpoint.join(INDEX_FILE);
    let bytes = fs::read(&path).map_err(at(&path))?;
    let index = PageIndex::decode(&bytes).map_err(|source| RestoreError::Index { path, source })?;
    for file in &dump.root_files {
        if root_file(root, &file.path).as_ref() != Some(file) {
            return Err(RestoreError::RootFileChanged {
                path: file.path.clone(),
            });
        }
    }
    let slept = time_between(&dump.clocks, now);
    let same_boot = dump.clocks.boot_id == now.boot_id;
    fs::create_dir_all(images_dir).map_err(at(images_dir))?;
    let source = checkpoint.join(IMAGES_DIR);
    for entry in fs::read_dir(&source).map_err(at(&source))? {
        let entry = entry.map_err(at(&source))?;
        lay_out(
            &entry.path(),
            &images_dir.join(entry.file_name()),
            slept,
            same_boot,
        )?;
    }
    Ok(Prepared { dump, index, slept })
}

/// Links one image, or writes it anew with clocks and timers advanced by the time asleep.
fn lay_out(from: &Path, to: &Path, slept: Duration, same_boot: bool) -> Result<(), RestoreError> {
    type Change = fn(&[u8], Duration) -> Result<Vec<u8>, ImageError>;
    let name = from.file_name().unwrap_or_default().to_string_lossy();
    let change: Change = match name.as_ref() {
        // The app was in the host's time namespace, whose clocks have gone on by themselves.
        "timens-0.img" if same_boot => return Ok(()),
        "files.img" => timers::advance_timerfds,
        name if name.starts_with("timens-") => timers::advance_time_namespace,
        name if name.starts_with("core-") => timers::advance_task_timers,
        _ => return Ok(fs::hard_link(from, to).map_err(at(to))?),
    };
    let bytes = fs::read(from).map_err(at(from))?;
    let changed = change(&bytes, slept).map_err(image_at(from))?;
    Ok(fs::write(to, changed).map_err(at(to))?)
}
