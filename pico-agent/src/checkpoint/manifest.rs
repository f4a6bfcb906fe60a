//! The manifest: the one object that says which others make up an app's current checkpoint.
//!
//! Owns its JSON form, its version and its limits. Knows nothing of what the named objects contain.
//! The document carries its own checksum, and everything that it says is checked in [`Manifest::decode`],
//! so that the rest of the agent can rely on it.

use serde::{Deserialize, Serialize};

use super::compressed::Compressed;
use super::hash::{Digest, HASH_SIZE, Hash, sums_len};
use super::index::{ObjectId, PAGE_SIZE};
use super::{OBJECT_MAX, keys, root_file::RootFile};

/// What [`Manifest::schema`] says for the version written here, and the only one that is read.
pub const SCHEMA: &str = "pico.checkpoint/1";
/// In [`Manifest::requires`]: some objects are compressed ([`Object::unpacked`]).
pub const COMPRESSION: &str = "zstd";

/// Everything a checkpoint consists of. `decode(encode(m)) == m` for every valid `m`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format and version, [`SCHEMA`]. A reader refuses all others.
    pub schema: String,
    /// BLAKE3 of this very document with this field's digits all `0`; set by [`Manifest::encode`].
    pub blake3: Hash,
    /// Features a reader must know, or it must refuse the checkpoint (encryption, for one). Fields that
    /// a reader may safely overlook are simply added to the document.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// The app's name, a DNS label.
    pub app: String,
    /// Counts the app's checkpoints from 1; never goes back.
    pub generation: u64,
    /// The clocks when the app was stopped for this checkpoint; also the time it was made.
    pub clocks: Clocks,
    /// Where it was made.
    pub host: Host,
    /// CRIU's files and other small ones ([`super::bundle`]).
    pub bundle: Object,
    /// The page index.
    pub index: Object,
    /// The app's writable layer ([`super::archive`]); absent while the checkpoint is only local.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Object>,
    /// Every page object that the index refers to, oldest generation first.
    pub pages: Vec<PageObject>,
    /// The object with their block sums ([`super::hash::write_sums`]), in the order of `pages`: one read, however many
    /// generations the pages are of.
    pub sums: Object,
    /// Files of the app's root file system that its processes have mapped or open.
    pub root_files: Vec<RootFile>,
}

/// The host's clocks at one moment, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// CLOCK_REALTIME: since 1970-01-01 UTC.
    pub realtime_ns: u64,
    /// CLOCK_MONOTONIC as the app saw it (its time namespace's offset included).
    pub monotonic_ns: u64,
    /// CLOCK_BOOTTIME as the app saw it (its time namespace's offset included).
    pub boottime_ns: u64,
    /// /proc/sys/kernel/random/boot_id: monotonic clocks of one boot can be compared.
    pub boot_id: String,
}

/// The host a checkpoint was made on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Kernel release, as `uname -r` prints it.
    pub kernel: String,
    /// Machine, as `uname -m` prints it. A checkpoint is restored only on the same.
    pub arch: String,
}

/// One object of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its key below the store's prefix.
    pub key: String,
    /// Its exact length.
    pub bytes: u64,
    /// Its BLAKE3.
    pub blake3: Hash,
    /// What it unpacks to, in bytes, if it is compressed ([`super::compressed`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpacked: Option<u64>,
}

impl Object {
    /// Names a compressed object.
    pub fn compressed(key: impl Into<String>, of: Compressed) -> Self {
        Object {
            unpacked: Some(of.unpacked),
            ..Object::new(key, of.digest)
        }
    }

    /// Names an object of known digest.
    pub fn new(key: impl Into<String>, digest: Digest) -> Self {
        Object {
            key: key.into(),
            bytes: digest.bytes,
            blake3: digest.blake3,
            unpacked: None,
        }
    }

    /// What the object's bytes must have.
    pub fn digest(&self) -> Digest {
        Digest {
            bytes: self.bytes,
            blake3: self.blake3,
        }
    }
}

/// A page object: memory pages one behind the other. It is read in blocks, each checked against [`Manifest::sums`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageObject {
    /// The checkpoint that wrote it (at most the manifest's own generation).
    pub generation: u64,
    /// Its number within that generation, from 0.
    pub number: u32,
    /// Its key below the store's prefix.
    pub key: String,
    /// Its exact length, a multiple of the page size.
    pub bytes: u64,
}

impl PageObject {
    /// Its name.
    pub fn id(&self) -> ObjectId {
        ObjectId {
            generation: self.generation,
            number: self.number,
        }
    }
}

/// What [`Manifest::decode`] accepts at most.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of the document.
    pub document: u64,
    /// Bytes of the bundle.
    pub bundle: u64,
    /// Bytes of the page index.
    pub index: u64,
    /// Number of page objects.
    pub pages: usize,
    /// Number of root files.
    pub root_files: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            document: 16 << 20,
            bundle: OBJECT_MAX,
            index: 1 << 30,
            pages: 16_384,
            root_files: 65_536,
        }
    }
}

/// Why a manifest is not used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The document is larger than any manifest.
    #[error("the manifest has {bytes} bytes, more than the {limit} that are accepted")]
    TooLarge {
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The document is no JSON of the expected form.
    #[error("the manifest cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// Another format version.
    #[error(
        "the checkpoint has the format '{found}', this agent reads '{SCHEMA}': use an agent that knows \
         that format, or start the app afresh"
    )]
    Schema {
        /// What the document says, shortened.
        found: String,
    },
    /// A feature that this agent lacks.
    #[error("the checkpoint requires '{feature}', which this agent lacks: use a newer agent")]
    Requires {
        /// The unknown feature.
        feature: String,
    },
    /// The document was changed or damaged since it was written.
    #[error("the manifest is damaged: its checksum differs")]
    Checksum,
    /// The document says something that cannot be.
    #[error("the manifest is wrong: {0}")]
    Wrong(String),
}

fn wrong<T>(what: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError::Wrong(what.into()))
}

impl Manifest {
    /// Every object that it names, but for the page objects.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        [&self.bundle, &self.index, &self.sums]
            .into_iter()
            .chain(&self.files)
    }

    /// The document, with its checksum filled in. Refuses what [`Manifest::decode`] would refuse.
    pub fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        let mut manifest = Manifest {
            blake3: Hash([0; HASH_SIZE]),
            ..self.clone()
        };
        manifest.check(&Limits::default())?;
        manifest.blake3 = Hash::of(&serde_json::to_vec(&manifest)?);
        Ok(serde_json::to_vec(&manifest)?)
    }

    /// Reads and checks a document. Any bytes at all may be given.
    pub fn decode(document: &[u8], limits: &Limits) -> Result<Self, ManifestError> {
        let bytes = document.len() as u64;
        if bytes > limits.document {
            return Err(ManifestError::TooLarge {
                bytes,
                limit: limits.document,
            });
        }
        // Version and requirements first: what follows may mean something else in another version.
        #[derive(Deserialize)]
        struct Head {
            schema: String,
            #[serde(default)]
            requires: Vec<String>,
        }
        let head: Head = serde_json::from_slice(document)?;
        if head.schema != SCHEMA {
            return Err(ManifestError::Schema {
                found: head.schema.chars().take(64).collect(),
            });
        }
        if let Some(feature) = head.requires.into_iter().find(|name| name != COMPRESSION) {
            return Err(ManifestError::Requires {
                feature: feature.chars().take(64).collect(),
            });
        }
        let manifest: Manifest = serde_json::from_slice(document)?;
        if Hash::of(&with_zero_checksum(document, manifest.blake3)) != manifest.blake3 {
            return Err(ManifestError::Checksum);
        }
        manifest.check(limits)?;
        Ok(manifest)
    }

    fn check(&self, limits: &Limits) -> Result<(), ManifestError> {
        if self.schema != SCHEMA {
            return Err(ManifestError::Schema {
                found: self.schema.clone(),
            });
        }
        if !is_label(&self.app) {
            return wrong(format!("'{}' is no app name", self.app));
        }
        if self.generation == 0 {
            return wrong("generation 0 does not exist");
        }
        self.check_object(&self.bundle, limits.bundle)?;
        self.check_object(&self.index, limits.index)?;
        if let Some(files) = &self.files {
            self.check_object(files, OBJECT_MAX)?;
        }
        if self.pages.len() > limits.pages {
            return wrong(format!(
                "{} page objects, at most {}",
                self.pages.len(),
                limits.pages
            ));
        }
        let mut before = None;
        for page in &self.pages {
            let place = (page.generation, page.number);
            if before >= Some(place) {
                return wrong(format!("page object {} is out of order", page.key));
            }
            before = Some(place);
            if page.generation == 0 || page.generation > self.generation {
                return wrong(format!(
                    "page object {} is of generation {}, the manifest of {}",
                    page.key, page.generation, self.generation
                ));
            }
            self.check_key(&page.key)?;
            if page.bytes == 0 || page.bytes > OBJECT_MAX || page.bytes % PAGE_SIZE != 0 {
                return wrong(format!(
                    "page object {} has an impossible length {}",
                    page.key, page.bytes
                ));
            }
        }
        self.check_object(&self.sums, OBJECT_MAX)?;
        self.check_compression()?;
        if self.sums.bytes != self.pages.iter().map(|page| sums_len(page.bytes)).sum::<u64>() {
            return wrong("the block sums have the wrong length");
        }
        if self.root_files.len() > limits.root_files {
            return wrong(format!(
                "{} root files, at most {}",
                self.root_files.len(),
                limits.root_files
            ));
        }
        for file in &self.root_files {
            if !file.path_is_plain() {
                return wrong(format!("root file {:?} is no plain absolute path", file.path));
            }
        }
        Ok(())
    }

    fn check_object(&self, object: &Object, limit: u64) -> Result<(), ManifestError> {
        self.check_key(&object.key)?;
        let bytes = object.bytes.max(object.unpacked.unwrap_or(0));
        if bytes > limit {
            return wrong(format!("{} has {bytes} bytes, at most {limit}", object.key));
        }
        Ok(())
    }

    /// Only what is read as a whole is compressed, and a reader that cannot decompress it must refuse it.
    fn check_compression(&self) -> Result<(), ManifestError> {
        if let Some(plain) = [&self.index, &self.sums]
            .iter()
            .find(|object| object.unpacked.is_some())
        {
            return wrong(format!("{} is compressed", plain.key));
        }
        let compressed = self.objects().any(|object| object.unpacked.is_some());
        if compressed && !self.requires.iter().any(|name| name == COMPRESSION) {
            return wrong("something is compressed that is said not to be");
        }
        Ok(())
    }

    /// A manifest names objects of its own app only, by keys that are safe as file names too.
    fn check_key(&self, key: &str) -> Result<(), ManifestError> {
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part
                    .bytes()
                    .all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
        };
        match key.strip_prefix(&keys::app_prefix(&self.app)) {
            Some(rest) if key.len() <= 512 && rest.split('/').all(plain) => Ok(()),
            _ => wrong(format!("'{}' is no object of this app", key.escape_debug())),
        }
    }
}

/// RFC 1123: what can be one label of a host name, in lower case.
fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// The document with the digits of its checksum (their first appearance) all `0`.
fn with_zero_checksum(document: &[u8], checksum: Hash) -> Vec<u8> {
    let digits = checksum.to_string().into_bytes();
    let mut document = document.to_vec();
    if let Some(at) = document.windows(digits.len()).position(|w| w == digits) {
        document[at..at + digits.len()].fill(b'0');
    }
    document
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
