//! The bundle: many small named files (CRIU's images of one checkpoint) as one object, so that a wake
//! reads them with one GET.
//!
//! Owns the format below; knows nothing of what the files are. All numbers are little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `PICOBNDL` |
//! | 4 | version, 1 |
//! | 4 | number of files |
//! | 4 | length of the table |
//! | 32 | BLAKE3 of the table |
//! | ... | table, by ascending name: name length (2), name, offset (8), length (8), BLAKE3 (32) |
//! | ... | the files, in the table's order, without gaps |

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::OBJECT_MAX;
use super::hash::{Digest, HASH_SIZE, Hash, Hashing};

const MAGIC: &[u8; 8] = b"PICOBNDL";
const VERSION: u32 = 1;
const HEADER_SIZE: usize = 8 + 4 + 4 + 4 + HASH_SIZE;
const NAME_MAX: usize = 255;

/// Most files one bundle holds.
pub const FILES_MAX: u32 = 65_536;
/// Enough for names of 78 bytes on average; CRIU's have 10 to 20.
const TABLE_MAX: u32 = FILES_MAX * 128;

/// Why a bundle is not written or not read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The bytes are no bundle, or not all of one, or one that was damaged.
    #[error("the bundle is damaged: {0}")]
    Damaged(String),
    /// Written by a later version.
    #[error("the bundle has format version {0}, this agent reads {VERSION}: use an agent that knows it")]
    Version(u32),
    /// More or larger files than a bundle can hold.
    #[error("{path} cannot be bundled: {why}", path = .0.display(), why = .1)]
    Unfit(PathBuf, String),
    /// A file could not be read or written.
    #[error("{path}: {why}", path = .0.display(), why = .1)]
    File(PathBuf, #[source] io::Error),
    /// The bundle itself could not be read or written.
    #[error("reading or writing the bundle: {0}")]
    Io(#[from] io::Error),
}

fn damaged<T>(what: impl Into<String>) -> Result<T, BundleError> {
    Err(BundleError::Damaged(what.into()))
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    name: String,
    len: u64,
    blake3: Hash,
}

/// A name that is one plain component of a path and can be shown in a message.
fn is_safe_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.chars().any(|c| c == '/' || c.is_control())
}

/// Header and table for `rows`, which are sorted.
fn encode_head(rows: &[Row]) -> Result<Vec<u8>, BundleError> {
    let mut table = Vec::new();
    let mut offset = 0u64;
    for row in rows {
        let unfit = |why: &str| Err(BundleError::Unfit(row.name.clone().into(), why.into()));
        let Some(name_len) = u16::try_from(row.name.len())
            .ok()
            .filter(|_| is_safe_name(&row.name))
        else {
            return unfit("its name is not a plain file name");
        };
        table.extend_from_slice(&name_len.to_le_bytes());
        table.extend_from_slice(row.name.as_bytes());
        table.extend_from_slice(&offset.to_le_bytes());
        table.extend_from_slice(&row.len.to_le_bytes());
        table.extend_from_slice(&row.blake3.0);
        offset = match offset.checked_add(row.len) {
            Some(end) if end <= OBJECT_MAX => end,
            _ => return unfit("the bundle would be too large"),
        };
    }
    let count = u32::try_from(rows.len()).ok().filter(|&n| n <= FILES_MAX);
    let table_len = u32::try_from(table.len()).ok().filter(|&n| n <= TABLE_MAX);
    let (Some(count), Some(table_len)) = (count, table_len) else {
        return Err(BundleError::Unfit(
            "the folder".into(),
            "it has too many files".into(),
        ));
    };
    let mut head = Vec::with_capacity(HEADER_SIZE + table.len());
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&count.to_le_bytes());
    head.extend_from_slice(&table_len.to_le_bytes());
    head.extend_from_slice(&Hash::of(&table).0);
    head.extend_from_slice(&table);
    Ok(head)
}

/// Takes `N` bytes off the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], BundleError> {
    match bytes.split_first_chunk() {
        Some((head, rest)) => {
            *bytes = rest;
            Ok(*head)
        }
        None => damaged("its table ends too early"),
    }
}

/// Reads header and table, and leaves `input` at the first file's first byte.
fn read_head(input: &mut impl Read) -> Result<Vec<Row>, BundleError> {
    let mut header = [0; HEADER_SIZE];
    input.read_exact(&mut header).or_else(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it is shorter than its header"),
        _ => Err(e.into()),
    })?;
    let mut header = &header[..];
    if take(&mut header)? != *MAGIC {
        return damaged("it does not begin as a bundle");
    }
    let version = u32::from_le_bytes(take(&mut header)?);
    if version != VERSION {
        return Err(BundleError::Version(version));
    }
    let count = u32::from_le_bytes(take(&mut header)?);
    let table_len = u32::from_le_bytes(take(&mut header)?);
    let table_hash = Hash(take(&mut header)?);
    if count > FILES_MAX || table_len > TABLE_MAX {
        return damaged("its table is larger than any table");
    }
    // `take` bounds the memory by what is really there, whatever the length claims.
    let mut table = Vec::new();
    input.take(u64::from(table_len)).read_to_end(&mut table)?;
    if table.len() as u64 != u64::from(table_len) || Hash::of(&table) != table_hash {
        return damaged("the checksum of its table differs");
    }
    let mut table = &table[..];
    let mut rows: Vec<Row> = Vec::new();
    let mut end = 0u64;
    for _ in 0..count {
        let name_len = usize::from(u16::from_le_bytes(take(&mut table)?));
        let Some((name, rest)) = table.split_at_checked(name_len) else {
            return damaged("its table ends too early");
        };
        table = rest;
        let name = match std::str::from_utf8(name) {
            Ok(name) if is_safe_name(name) => name.to_owned(),
            _ => return damaged("it names a file that is no plain file name"),
        };
        if rows.last().is_some_and(|before| before.name >= name) {
            return damaged(format!("the name {name} is out of order"));
        }
        let offset = u64::from_le_bytes(take(&mut table)?);
        let len = u64::from_le_bytes(take(&mut table)?);
        let blake3 = Hash(take(&mut table)?);
        end = match end.checked_add(len) {
            Some(new_end) if offset == end && new_end <= OBJECT_MAX => new_end,
            _ => return damaged(format!("{name} lies where it cannot be")),
        };
        rows.push(Row { name, len, blake3 });
    }
    if !table.is_empty() {
        return damaged("its table is longer than its files need");
    }
    Ok(rows)
}

/// Makes a bundle of files that are in memory. Names must be plain and unique.
pub fn encode(files: &[(String, Vec<u8>)]) -> Result<Vec<u8>, BundleError> {
    let mut files: Vec<_> = files.iter().collect();
    files.sort();
    if let Some(pair) = files.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(BundleError::Unfit(
            pair[0].0.clone().into(),
            "it is there twice".into(),
        ));
    }
    let row = |(name, data): &&(String, Vec<u8>)| Row {
        name: name.clone(),
        len: data.len() as u64,
        blake3: Hash::of(data),
    };
    let mut bundle = encode_head(&files.iter().map(row).collect::<Vec<_>>())?;
    for (_, data) in files {
        bundle.extend_from_slice(data);
    }
    Ok(bundle)
}

/// One file of a decoded bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleFile<'a> {
    /// Its name: one plain path component.
    pub name: String,
    /// Its content, compared with its checksum.
    pub data: &'a [u8],
}

/// Reads a whole bundle in memory. Any bytes at all may be given.
pub fn decode(bundle: &[u8]) -> Result<Vec<BundleFile<'_>>, BundleError> {
    let mut rest = bundle;
    let rows = read_head(&mut rest)?;
    let mut files = Vec::with_capacity(rows.len());
    for Row { name, len, blake3 } in rows {
        let Some((data, after)) = usize::try_from(len)
            .ok()
            .and_then(|len| rest.split_at_checked(len))
        else {
            return damaged(format!("{name} is cut short"));
        };
        rest = after;
        if Hash::of(data) != blake3 {
            return damaged(format!("the checksum of {name} differs"));
        }
        files.push(BundleFile { name, data });
    }
    if !rest.is_empty() {
        return damaged("it is longer than its files");
    }
    Ok(files)
}

/// Writes a bundle of all files of the folder `dir`, which must hold nothing but regular files with
/// plain names and must not change meanwhile. Memory does not grow with the files. The digest is that
/// of the whole bundle.
pub fn pack(dir: &Path, output: impl Write) -> Result<Digest, BundleError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |e| BundleError::File(path, e)
    };
    let mut rows = Vec::new();
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let entry = entry.map_err(at(dir))?;
        let path = entry.path();
        if !entry.file_type().map_err(at(&path))?.is_file() {
            return Err(BundleError::Unfit(path, "it is no regular file".into()));
        }
        let Ok(name) = entry.file_name().into_string() else {
            return Err(BundleError::Unfit(path, "its name is no UTF-8".into()));
        };
        let Digest { bytes, blake3 } = Hash::of_file(&path).map_err(at(&path))?;
        rows.push(Row {
            name,
            len: bytes,
            blake3,
        });
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));

    let mut output = Hashing::new(output);
    output.write_all(&encode_head(&rows)?)?;
    for Row { name, len, .. } in &rows {
        let path = dir.join(name);
        let mut file = File::open(&path).map_err(at(&path))?;
        if io::copy(&mut (&mut file).take(*len), &mut output)? != *len {
            return Err(BundleError::Unfit(path, "it changed while it was read".into()));
        }
    }
    output.flush()?;
    Ok(output.digest())
}

/// Writes the files of the bundle `input` into the existing folder `dir`, readable by their owner only,
/// each compared with its checksum. A name that exists already is an error. After any error the folder
/// may hold some of the files: the caller throws it away.
pub fn unpack(mut input: impl Read, dir: &Path) -> Result<(), BundleError> {
    for Row { name, len, blake3 } in read_head(&mut input)? {
        let path = dir.join(&name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| BundleError::File(path.clone(), e))?;
        let mut file = Hashing::new(file);
        let copied = io::copy(&mut (&mut input).take(len), &mut file)
            .map_err(|e| BundleError::File(path.clone(), e))?;
        if copied != len {
            return damaged(format!("{name} is cut short"));
        }
        if file.digest().blake3 != blake3 {
            return damaged(format!("the checksum of {name} differs"));
        }
    }
    if input.read(&mut [0])? != 0 {
        return damaged("it is longer than its files");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    fn files() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
        let name = "[a-zA-Z0-9_é-][a-zA-Z0-9._é-]{0,20}";
        btree_map(name, vec(any::<u8>(), 0..300), 0..6).prop_map(|files| files.into_iter().collect())
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(files in files()) {
            let bundle = encode(&files).unwrap();
            let back: Vec<_> =
                decode(&bundle).unwrap().into_iter().map(|f| (f.name, f.data.to_vec())).collect();
            prop_assert_eq!(&back, &files);

            let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            for (name, data) in &files {
                fs::write(from.path().join(name), data).unwrap();
            }
            let mut packed = Vec::new();
            prop_assert_eq!(pack(from.path(), &mut packed).unwrap(), Digest::of(&bundle));
            prop_assert_eq!(&packed, &bundle);
            unpack(&bundle[..], to.path()).unwrap();
            prop_assert_eq!(fs::read_dir(to.path()).unwrap().count(), files.len());
            for (name, data) in &files {
                prop_assert_eq!(&fs::read(to.path().join(name)).unwrap(), data);
            }
        }

        #[test]
        fn a_flipped_bit_a_cut_or_a_tail_is_always_found(
            files in files(), at in any::<prop::sample::Index>(), bit in 0..8u8,
        ) {
            let bundle = encode(&files).unwrap();
            let at = at.index(bundle.len());
            let mut flipped = bundle.clone();
            flipped[at] ^= 1 << bit;
            let mut longer = bundle.clone();
            longer.push(0);
            for wrong in [&flipped[..], &bundle[..at], &longer[..]] {
                prop_assert!(decode(wrong).is_err());
                let dir = tempfile::tempdir().unwrap();
                prop_assert!(unpack(wrong, dir.path()).is_err());
            }
        }

        #[test]
        fn any_bytes_are_refused_in_peace(bytes in vec(any::<u8>(), 0..500)) {
            prop_assert!(decode(&bytes).is_err());
            let made_up = [&MAGIC[..], &VERSION.to_le_bytes(), &bytes].concat();
            prop_assert!(decode(&made_up).is_err());
        }
    }

    /// A bundle with right checksums and one file of that name, whatever the name.
    fn forged(name: &str) -> Vec<u8> {
        let mut table = u16::try_from(name.len()).unwrap().to_le_bytes().to_vec();
        table.extend_from_slice(name.as_bytes());
        table.extend_from_slice(&[0; 16]);
        table.extend_from_slice(&Hash::of(b"").0);
        let mut bundle = MAGIC.to_vec();
        for number in [VERSION, 1, u32::try_from(table.len()).unwrap()] {
            bundle.extend_from_slice(&number.to_le_bytes());
        }
        bundle.extend_from_slice(&Hash::of(&table).0);
        bundle.extend_from_slice(&table);
        bundle
    }

    #[test]
    fn a_name_never_leads_out_of_the_folder() {
        assert!(decode(&forged("core-1.img")).is_ok());
        for name in [
            "",
            ".",
            "..",
            "../x",
            "/etc/passwd",
            "a/b",
            "a\0b",
            "a\nb",
            &"x".repeat(256),
        ] {
            assert!(
                matches!(decode(&forged(name)), Err(BundleError::Damaged(_))),
                "{name:?}"
            );
            assert!(encode(&[(name.to_owned(), vec![])]).is_err(), "{name:?}");
        }
    }

    #[test]
    fn an_existing_file_or_symlink_is_never_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::write(&target, "precious").unwrap();
        let into = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(&target, into.path().join("a")).unwrap();
        let bundle = encode(&[("a".into(), b"evil".to_vec())]).unwrap();
        assert!(matches!(
            unpack(&bundle[..], into.path()),
            Err(BundleError::File(..))
        ));
        assert_eq!(fs::read(&target).unwrap(), b"precious");
    }

    #[test]
    fn a_later_version_is_refused_by_number() {
        let mut bundle = encode(&[]).unwrap();
        bundle[8] = 2;
        assert!(matches!(decode(&bundle), Err(BundleError::Version(2))));
    }
}
