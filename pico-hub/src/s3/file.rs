//! Owns the file format of one object, and temporary files on their way to becoming one.
//! Must not know buckets, versions or conditions.
//!
//! An object is one file: its bytes from offset 0 (so a range is one `pread`), then its metadata as JSON,
//! then 16 bytes that say how long the JSON is. Bytes and metadata therefore appear and vanish together.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use s3s::crypto::{Checksum as _, Md5};
use serde::{Deserialize, Serialize};

use super::names;

/// Closes every object file; the digit is the version of the format.
const MAGIC: &[u8; 8] = b"PICOOBJ1";
/// Length of the JSON as little-endian u64, then [`MAGIC`].
const TAIL: usize = 16;
/// Metadata is bounded when it is written (request headers) and before it is believed when read.
const MAX_META: u64 = 64 * 1024;

/// What a client wants kept beside the bytes of an object. Opaque to the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Header name (lower case) to value: content type and the like, and `x-amz-meta-*`.
    pub headers: BTreeMap<String, String>,
    /// Checksum algorithm (`crc32`, ...) to base64 digest of all the bytes, each verified on arrival.
    pub checksums: BTreeMap<String, String>,
}

/// Everything known of an object but its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The key as the client gave it (the file name may be a shortened form).
    pub key: String,
    /// Entity tag without quotes: MD5 in hex, or `MD5-PARTS` for what was uploaded in parts.
    pub etag: String,
    /// Length of the object in bytes.
    pub size: u64,
    /// When it was written, in milliseconds since the Unix epoch.
    pub modified_ms: u64,
    /// What the client wants kept.
    #[serde(flatten)]
    pub attributes: Attributes,
}

/// A temporary file that takes the bytes of an object; removed when dropped unless it was renamed.
#[derive(Debug)]
pub struct Draft {
    file: File,
    temp: Temp,
    size: u64,
    md5: Md5Writer,
    digest: Option<[u8; 16]>,
}

/// A draft whose bytes and metadata are on the disk and that only lacks its name.
#[derive(Debug)]
pub struct Sealed {
    /// What the file says of itself.
    pub meta: Meta,
    temp: Temp,
}

#[derive(Debug)]
struct Temp {
    path: PathBuf,
    renamed: bool,
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.renamed {
            // A leftover costs room only, and the next start removes it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[derive(Default)]
struct Md5Writer(Md5);

impl std::fmt::Debug for Md5Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Md5Writer")
    }
}

impl Draft {
    /// Creates the file, which must not exist, readable by the owner only.
    pub fn create(path: PathBuf) -> io::Result<Draft> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let temp = Temp { path, renamed: false };
        Ok(Draft {
            file,
            temp,
            size: 0,
            md5: Md5Writer::default(),
            digest: None,
        })
    }

    /// Where the file is, for messages.
    pub fn path(&self) -> &Path {
        &self.temp.path
    }

    /// Appends bytes and hashes them for the entity tag.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.md5.0.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Appends the first `length` bytes of `source` inside the kernel, unhashed: the caller knows the tag.
    pub fn append(&mut self, source: &File, length: u64) -> io::Result<()> {
        let copied = io::copy(&mut source.take(length), &mut self.file)?;
        if copied != length {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the source is shorter than its metadata says",
            ));
        }
        self.size += length;
        Ok(())
    }

    /// MD5 of all that was given to [`Draft::write`]; to be asked when nothing more will be.
    pub fn md5(&mut self) -> [u8; 16] {
        *self
            .digest
            .get_or_insert_with(|| std::mem::take(&mut self.md5.0).finalize())
    }

    /// Adds the metadata and brings the whole file to the disk. Without `etag` it is the MD5 of what was
    /// written.
    pub fn seal(mut self, key: &str, attributes: Attributes, etag: Option<String>) -> io::Result<Sealed> {
        let etag = etag.unwrap_or_else(|| names::hex(&self.md5()));
        let meta = Meta {
            key: key.to_owned(),
            etag,
            size: self.size,
            modified_ms: now_ms(),
            attributes,
        };
        let mut end = serde_json::to_vec(&meta)?;
        let length = end.len() as u64;
        if length > MAX_META {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "metadata too large"));
        }
        end.extend_from_slice(&length.to_le_bytes());
        end.extend_from_slice(MAGIC);
        self.file.write_all(&end)?;
        self.file.sync_all()?;
        Ok(Sealed {
            meta,
            temp: self.temp,
        })
    }
}

impl Sealed {
    /// Gives the file its name, replacing what stands there. Durable once the directory is synced.
    pub fn rename_to(mut self, path: &Path) -> io::Result<Meta> {
        std::fs::rename(&self.temp.path, path)?;
        self.temp.renamed = true;
        Ok(self.meta)
    }
}

/// Reads the metadata of an object file; `InvalidData` if it is not one, whole.
pub fn read_meta(file: &File) -> io::Result<Meta> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let total = file.metadata()?.len();
    let tail_at = total
        .checked_sub(TAIL as u64)
        .ok_or_else(|| bad("too short for an object file"))?;
    let mut tail = [0; TAIL];
    file.read_exact_at(&mut tail, tail_at)?;
    let (&[length, magic], []) = tail.as_chunks::<8>() else {
        return Err(bad("impossible tail"));
    };
    let length = u64::from_le_bytes(length);
    if &magic != MAGIC || length > MAX_META || length > tail_at {
        return Err(bad("not closed as an object file"));
    }
    let size = tail_at - length;
    let mut json = vec![0; usize::try_from(length).map_err(|_| bad("metadata too long"))?];
    file.read_exact_at(&mut json, size)?;
    let meta: Meta = serde_json::from_slice(&json).map_err(|error| bad(&error.to_string()))?;
    if meta.size != size {
        return Err(bad("its length is not what its metadata says"));
    }
    Ok(meta)
}

/// Makes the names in `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Milliseconds since the Unix epoch, now.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(dir: &Path, bytes: &[u8]) -> PathBuf {
        let mut draft = Draft::create(dir.join("draft")).unwrap();
        draft.write(bytes).unwrap();
        let path = dir.join("object");
        draft
            .seal("a/b", Attributes::default(), None)
            .unwrap()
            .rename_to(&path)
            .unwrap();
        path
    }

    #[test]
    fn a_sealed_file_tells_its_metadata() {
        let dir = tempfile::tempdir().unwrap();
        let meta = read_meta(&File::open(sealed(dir.path(), b"hello")).unwrap()).unwrap();
        assert_eq!((meta.key.as_str(), meta.size), ("a/b", 5));
        assert_eq!(meta.etag, "5d41402abc4b2a76b9719d911017c592");
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = sealed(dir.path(), b"hello");
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(read_meta(&File::open(&path).unwrap()).is_err(), "cut to {length}");
            std::fs::write(&path, &whole[whole.len() - length..]).unwrap();
            assert!(
                read_meta(&File::open(&path).unwrap()).is_err(),
                "only the last {length}"
            );
        }
    }

    #[test]
    fn a_dropped_draft_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(Draft::create(dir.path().join("draft")).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
