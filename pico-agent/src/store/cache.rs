//! Local copies of page objects: complete ones, and ones of which some blocks have arrived.
//!
//! Owns the files `GEN-N.pages` (complete), or `GEN-N.part` (sparse) and `GEN-N.present` (which of its
//! blocks are there). The agent writes ([`PageFile`]), the shim of the app reads ([`PageReader`]), each in
//! a process of its own; they share nothing but these files. Knows no checksums: only checked blocks
//! are written.
//!
//! # What can go wrong, and why a reader still never sees a byte that was not written
//! * The agent dies between data and bit: the block counts as absent and is fetched again.
//! * The host crashes: neither data nor bits need have reached the disk, in any order. The bitmap names
//!   the boot it was made under, and one of another boot is thrown away. A complete copy is on disk before
//!   it gets its name.
//!
//! Data without a bit, of another boot or of an app that went cold, is nobody's: whoever writes may look at it
//! ([`PageFile::kept`]), compare it with its checksum, and write it as if it had come from the store.
//!
//! `.present` is the magic `PICOPRES`, the version (4), zeros (4), the object's length (8), the boot id
//! (36 characters, zero-filled to 40), then one bit per 64 KiB block, lowest first. Little-endian.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::checkpoint::hash::{block_count, block_len};
use crate::checkpoint::index::{PAGE_BYTES, PAGE_SIZE};
use crate::checkpoint::{BLOCK_SIZE, OBJECT_MAX};

const MAGIC: &[u8; 8] = b"PICOPRES";
const VERSION: u32 = 1;
const HEADER_SIZE: usize = 64;
const BLOCK: u64 = BLOCK_SIZE as u64;

/// Why a local copy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A file of the cache could not be read or written.
    #[error("{path}: {why}", path = .0.display(), why = .1)]
    File(PathBuf, #[source] io::Error),
    /// No page object has this length.
    #[error("{path}: a page object cannot have {bytes} bytes", path = .0.display(), bytes = .1)]
    Length(PathBuf, u64),
    /// The complete copy has another length than the manifest says.
    #[error("{}: has {found} bytes where the checkpoint says {expected}", path.display())]
    Differs {
        /// The copy.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// What the checkpoint says.
        expected: u64,
    },
    /// This is no block of the object, or no whole one.
    #[error("{}: {found} bytes are not block {block} of it", path.display())]
    NoBlock {
        /// The copy.
        path: PathBuf,
        /// Number of the block.
        block: u64,
        /// Length of what was to be written.
        found: usize,
    },
    /// Something beyond the end of the object was asked for.
    #[error("{}: bytes {offset} to {end} are not all within it", path.display())]
    Beyond {
        /// The copy.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// The byte after the last one.
        end: u64,
    },
    /// A complete copy was asked for, and blocks are missing.
    #[error("{path}: {missing} blocks are still missing", path = .0.display(), missing = .1)]
    Incomplete(PathBuf, u64),
    /// Another process writes this copy.
    #[error("{path}: another process is writing it", path = .0.display())]
    Busy(PathBuf),
    /// The kernel does not say which boot this is.
    #[error("{path}: holds no boot id", path = .0.display())]
    NoBootId(PathBuf),
}

type Result<T, E = CacheError> = std::result::Result<T, E>;

fn at(path: &Path) -> impl FnOnce(io::Error) -> CacheError + use<> {
    let path = path.to_owned();
    move |e| CacheError::File(path, e)
}

fn missing_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// This boot's /proc/sys/kernel/random/boot_id (36 characters).
fn boot_id() -> Result<[u8; 36]> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read(path).map_err(at(path))?;
    text.first_chunk()
        .copied()
        .ok_or_else(|| CacheError::NoBootId(path.to_owned()))
}

/// The local copies of one app's page objects.
#[derive(Debug, Clone)]
pub struct PageCache {
    dir: PathBuf,
}

/// The files of one copy.
#[derive(Debug, Clone)]
struct Paths {
    complete: PathBuf,
    part: PathBuf,
    present: PathBuf,
}

impl PageCache {
    /// The cache in the folder `dir` (`STATE/apps/NAME/pages`), made if it does not exist.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        Ok(PageCache { dir })
    }

    /// Where the complete copy of a page object lies, or will lie. A dump writes its pages elsewhere and
    /// hands them in with [`PageCache::adopt`].
    pub fn complete_path(&self, generation: u64, number: u32) -> PathBuf {
        self.paths(generation, number).complete
    }

    fn paths(&self, generation: u64, number: u32) -> Paths {
        let path = |end: &str| self.dir.join(format!("{generation}-{number}.{end}"));
        Paths {
            complete: path("pages"),
            part: path("part"),
            present: path("present"),
        }
    }

    /// Makes `file`, a whole page object on the same file system, the complete copy. It is on disk before
    /// it gets its name.
    pub fn adopt(&self, generation: u64, number: u32, file: &Path) -> Result<()> {
        let paths = self.paths(generation, number);
        File::open(file)
            .and_then(|file| file.sync_all())
            .map_err(at(file))?;
        fs::rename(file, &paths.complete).map_err(at(&paths.complete))?;
        self.sync()
    }

    /// Opens the copy of a page object of `bytes` bytes for writing; made with no block if there is none.
    pub fn writer(&self, generation: u64, number: u32, bytes: u64) -> Result<PageFile> {
        PageFile::open(self.paths(generation, number), bytes)
    }

    /// Opens the copy for reading. `None`: there is none (yet), or none of this boot.
    pub fn reader(&self, generation: u64, number: u32) -> Result<Option<PageReader>> {
        PageReader::open(&self.paths(generation, number))
    }

    /// From here on no copy is believed: their data stay, as what may be right. No writer may be open, and readers are
    /// none of ours.
    pub fn distrust(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).map_err(at(&self.dir))? {
            let path = entry.map_err(at(&self.dir))?.path();
            match path.extension().and_then(|end| end.to_str()) {
                Some("pages") => fs::rename(&path, path.with_extension("part")).map_err(at(&path))?,
                Some("present") => missing_is_none(fs::remove_file(&path))
                    .map(drop)
                    .map_err(at(&path))?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether anything of a page object is here, be it right or not.
    pub fn has_some_of(&self, generation: u64, number: u32) -> bool {
        let Paths { complete, part, .. } = self.paths(generation, number);
        complete.exists() || part.exists()
    }

    /// Removes the copy of one page object, whatever there is of it. Readers that have it open can go on.
    pub fn remove(&self, generation: u64, number: u32) -> Result<()> {
        let Paths {
            complete,
            part,
            present,
        } = self.paths(generation, number);
        // The bitmap first: without it, the rest is nothing.
        for path in [present, part, complete] {
            missing_is_none(fs::remove_file(&path)).map_err(at(&path))?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(at(&self.dir))
    }
}

/// The header that a bitmap made now has.
fn header(bytes: u64) -> Result<[u8; HEADER_SIZE]> {
    let mut header = [0; HEADER_SIZE];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&bytes.to_le_bytes());
    header[24..60].copy_from_slice(&boot_id()?);
    Ok(header)
}

fn byte_and_bit(block: u64) -> (u64, u8) {
    (block / 8, 1 << (block % 8))
}

/// The writing end of a copy: there is one at a time, in the agent. Blocks may be written from several
/// threads.
#[derive(Debug)]
pub struct PageFile {
    paths: Paths,
    bytes: u64,
    /// `None`: the copy is complete.
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    data: File,
    /// Locked for as long as this is open.
    bitmap: File,
    /// The bitmap's bits as the file has them. Held while a byte of it is written, as neighbours share one.
    bits: Mutex<Vec<u8>>,
}

impl PageFile {
    fn open(paths: Paths, bytes: u64) -> Result<Self> {
        if bytes == 0 || bytes > OBJECT_MAX || !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(CacheError::Length(paths.complete, bytes));
        }
        let complete = missing_is_none(fs::metadata(&paths.complete)).map_err(at(&paths.complete))?;
        if let Some(found) = complete.map(|m| m.len()) {
            return if found == bytes {
                // Left by a run that died while it renamed.
                missing_is_none(fs::remove_file(&paths.present)).map_err(at(&paths.present))?;
                Ok(PageFile {
                    paths,
                    bytes,
                    partial: None,
                })
            } else {
                Err(CacheError::Differs {
                    path: paths.complete,
                    found,
                    expected: bytes,
                })
            };
        }
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let bitmap = options.open(&paths.present).map_err(at(&paths.present))?;
        bitmap.try_lock().map_err(|e| match e {
            fs::TryLockError::WouldBlock => CacheError::Busy(paths.present.clone()),
            fs::TryLockError::Error(e) => CacheError::File(paths.present.clone(), e),
        })?;
        let data = options.open(&paths.part).map_err(at(&paths.part))?;

        let expected = header(bytes)?;
        let mut bits = vec![0; usize::try_from(block_count(bytes).div_ceil(8)).unwrap_or(0)];
        let usable = data.metadata().map_err(at(&paths.part))?.len() == bytes && {
            let mut found = [0; HEADER_SIZE];
            bitmap.read_exact_at(&mut found, 0).is_ok()
                && found == expected
                && bitmap.read_exact_at(&mut bits, HEADER_SIZE as u64).is_ok()
        };
        if !usable {
            // A file cut to nothing has no bits, and without the header no reader trusts it. Data of the right length
            // stay: they may be what was stored.
            bitmap.set_len(0).map_err(at(&paths.present))?;
            if data.metadata().map_err(at(&paths.part))?.len() != bytes {
                data.set_len(0)
                    .and_then(|()| data.set_len(bytes))
                    .map_err(at(&paths.part))?;
            }
            bits.fill(0);
            bitmap
                .write_all_at(&bits, HEADER_SIZE as u64)
                .map_err(at(&paths.present))?;
            bitmap.write_all_at(&expected, 0).map_err(at(&paths.present))?;
        }
        Ok(PageFile {
            paths,
            bytes,
            partial: Some(Partial {
                data,
                bitmap,
                bits: Mutex::new(bits),
            }),
        })
    }

    /// Length of the page object.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True if block number `block` is there.
    pub fn present(&self, block: u64) -> bool {
        let Some(partial) = &self.partial else {
            return block < block_count(self.bytes);
        };
        let (byte, bit) = byte_and_bit(block);
        let bits = partial
            .bits
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        usize::try_from(byte)
            .ok()
            .and_then(|byte| bits.get(byte))
            .is_some_and(|byte| byte & bit != 0)
    }

    /// What lies where a block that is not there belongs, right or wrong. `None`: nothing does, or it cannot be read.
    pub fn kept(&self, block: u64) -> Option<Vec<u8>> {
        let partial = self.partial.as_ref().filter(|_| !self.present(block))?;
        let mut data = vec![0; block_len(self.bytes, block)?];
        partial.data.read_exact_at(&mut data, block * BLOCK).ok()?;
        data.iter().any(|byte| *byte != 0).then_some(data)
    }

    /// How many blocks are not there.
    pub fn missing(&self) -> u64 {
        let Some(partial) = &self.partial else { return 0 };
        let bits = partial
            .bits
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        block_count(self.bytes) - bits.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>()
    }

    /// Puts a whole, checked block in place; readers see it from then on. A block that is there already is
    /// left alone.
    pub fn write_block(&self, block: u64, data: &[u8]) -> Result<()> {
        if block_len(self.bytes, block) != Some(data.len()) {
            return Err(CacheError::NoBlock {
                path: self.paths.part.clone(),
                block,
                found: data.len(),
            });
        }
        let Some(partial) = self.partial.as_ref().filter(|_| !self.present(block)) else {
            return Ok(());
        };
        partial
            .data
            .write_all_at(data, block * BLOCK)
            .map_err(at(&self.paths.part))?;
        let (byte, bit) = byte_and_bit(block);
        let mut bits = partial
            .bits
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(slot) = usize::try_from(byte).ok().and_then(|byte| bits.get_mut(byte)) else {
            return Ok(());
        };
        let new = *slot | bit;
        let place = HEADER_SIZE as u64 + byte;
        partial
            .bitmap
            .write_all_at(&[new], place)
            .map_err(at(&self.paths.present))?;
        *slot = new;
        Ok(())
    }

    /// Declares the copy complete: it is brought to disk, gets its final name, and survives a crash of the
    /// host. Fails while blocks are missing. Blocks until the disk has it.
    pub fn complete(&mut self) -> Result<()> {
        let missing = self.missing();
        if missing > 0 {
            return Err(CacheError::Incomplete(self.paths.part.clone(), missing));
        }
        let Some(partial) = &self.partial else {
            return Ok(());
        };
        let Paths {
            complete,
            part,
            present,
        } = &self.paths;
        partial.data.sync_all().map_err(at(part))?;
        fs::rename(part, complete).map_err(at(complete))?;
        missing_is_none(fs::remove_file(present)).map_err(at(present))?;
        self.partial = None;
        Ok(())
    }

    /// True once [`PageFile::complete`] has succeeded, in this run or an earlier one.
    pub fn is_complete(&self) -> bool {
        self.partial.is_none()
    }
}

/// The reading end of a copy, in any process. It sees blocks as they arrive, and goes on working when
/// the copy is completed or removed meanwhile.
#[derive(Debug)]
pub struct PageReader {
    path: PathBuf,
    data: File,
    bytes: u64,
    /// `None`: everything is there.
    bitmap: Option<File>,
}

impl PageReader {
    fn open(paths: &Paths) -> Result<Option<Self>> {
        // The copy may be completed between two of these steps: part and bitmap go, then the complete one
        // is there, so looking for it a second time is enough.
        for _ in 0..2 {
            let path = &paths.complete;
            if let Some(data) = missing_is_none(File::open(path)).map_err(at(path))? {
                let bytes = data.metadata().map_err(at(path))?.len();
                return Ok(Some(PageReader {
                    path: path.clone(),
                    data,
                    bytes,
                    bitmap: None,
                }));
            }
            let part = missing_is_none(File::open(&paths.part)).map_err(at(&paths.part))?;
            let present = missing_is_none(File::open(&paths.present)).map_err(at(&paths.present))?;
            if let (Some(data), Some(bitmap)) = (part, present) {
                let bytes = data.metadata().map_err(at(&paths.part))?.len();
                let mut found = [0; HEADER_SIZE];
                // Of another boot, damaged, or being made at this moment: its writer makes it right.
                if bitmap.read_exact_at(&mut found, 0).is_err() || found != header(bytes)? {
                    return Ok(None);
                }
                let path = paths.part.clone();
                return Ok(Some(PageReader {
                    path,
                    data,
                    bytes,
                    bitmap: Some(bitmap),
                }));
            }
        }
        Ok(None)
    }

    /// Length of the page object.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True if block number `block` is there.
    pub fn present(&self, block: u64) -> Result<bool> {
        if block >= block_count(self.bytes) {
            return Ok(false);
        }
        let Some(bitmap) = &self.bitmap else {
            return Ok(true);
        };
        let (byte, bit) = byte_and_bit(block);
        let mut found = [0];
        bitmap
            .read_exact_at(&mut found, HEADER_SIZE as u64 + byte)
            .map_err(at(&self.path))?;
        Ok(found[0] & bit != 0)
    }

    /// The page at `offset` (a multiple of the page size). `None`: its block has not arrived.
    pub fn read_page(&self, offset: u64) -> Result<Option<[u8; PAGE_BYTES]>> {
        let mut page = [0; PAGE_BYTES];
        Ok(self.read(offset, &mut page)?.then_some(page))
    }

    /// Fills `buffer` with the bytes at `offset`, which may span blocks. `false`: one of them has not
    /// arrived, and the buffer's content means nothing.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool> {
        let end = offset.saturating_add(buffer.len() as u64);
        if end > self.bytes || buffer.is_empty() {
            return Err(CacheError::Beyond {
                path: self.path.clone(),
                offset,
                end,
            });
        }
        for block in offset / BLOCK..end.div_ceil(BLOCK) {
            if !self.present(block)? {
                return Ok(false);
            }
        }
        self.data.read_exact_at(buffer, offset).map_err(at(&self.path))?;
        Ok(true)
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
