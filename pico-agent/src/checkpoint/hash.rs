//! BLAKE3 checksums: of whole objects, of streams, and of the blocks of a page object.
//!
//! Owns the one hash type and its text form. Knows no format and no object's meaning.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::BLOCK_SIZE;

/// Bytes of a [`struct@Hash`].
pub const HASH_SIZE: usize = 32;

/// A BLAKE3 hash; its text form is 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hash(pub [u8; HASH_SIZE]);

impl Hash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Hash(*blake3::hash(bytes).as_bytes())
    }

    /// The hash and length of the file at `path`, read in pieces.
    pub fn of_file(path: &Path) -> io::Result<Digest> {
        let mut sink = Hashing::new(io::sink());
        io::copy(&mut File::open(path)?, &mut sink)?;
        Ok(sink.digest())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no [`struct@Hash`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a BLAKE3 hash: 64 lower-case hexadecimal digits are expected")]
pub struct HashTextError;

impl FromStr for Hash {
    type Err = HashTextError;

    fn from_str(text: &str) -> Result<Self, HashTextError> {
        // Only one text form per hash, so that a changed letter is always a changed hash.
        let digit = |c: u8| match c {
            b'0'..=b'9' => Ok(c - b'0'),
            b'a'..=b'f' => Ok(c - b'a' + 10),
            _ => Err(HashTextError),
        };
        let text = text.as_bytes();
        if text.len() != 2 * HASH_SIZE {
            return Err(HashTextError);
        }
        let mut hash = [0; HASH_SIZE];
        for (byte, pair) in hash.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Hash(hash))
    }
}

impl TryFrom<String> for Hash {
    type Error = HashTextError;

    fn try_from(text: String) -> Result<Self, HashTextError> {
        text.parse()
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> Self {
        hash.to_string()
    }
}

/// Length and hash of something that was read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of all of them.
    pub blake3: Hash,
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Digest {
            bytes: bytes.len() as u64,
            blake3: Hash::of(bytes),
        }
    }
}

/// A reader or writer that counts and hashes what passes through it.
pub struct Hashing<T> {
    inner: T,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<T> Hashing<T> {
    /// Starts at zero bytes.
    pub fn new(inner: T) -> Self {
        Hashing {
            inner,
            hasher: blake3::Hasher::new(),
            bytes: 0,
        }
    }

    /// Length and hash of what has passed so far.
    pub fn digest(&self) -> Digest {
        Digest {
            bytes: self.bytes,
            blake3: Hash(*self.hasher.finalize().as_bytes()),
        }
    }

    fn passed(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.passed(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.passed(&buf[..n]);
        Ok(n)
    }
}

/// A block that is not what its checksum says.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SumError {
    /// A block's content differs from its checksum.
    #[error("block {block} of the page object is damaged: its checksum differs")]
    Block {
        /// Number of the block.
        block: u64,
    },
    /// There is no such block, or it has another length.
    #[error("block {block} with {found} bytes does not exist in this page object")]
    NoBlock {
        /// Number of the block.
        block: u64,
        /// Length that was offered.
        found: usize,
    },
}

/// Number of blocks of a page object of `bytes` bytes.
pub fn block_count(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_SIZE as u64)
}

/// Length of block number `block` of a page object of `bytes` bytes; `None` beyond its end.
pub fn block_len(bytes: u64, block: u64) -> Option<usize> {
    let start = block.checked_mul(BLOCK_SIZE as u64)?;
    let rest = bytes.checked_sub(start).filter(|&rest| rest > 0)?;
    usize::try_from(rest.min(BLOCK_SIZE as u64)).ok()
}

/// Bytes that the block sums of a page object of `bytes` bytes take.
pub fn sums_len(bytes: u64) -> u64 {
    block_count(bytes) * HASH_SIZE as u64
}

/// Writes the block sums of everything that `pages` yields, read to its end; gives its length.
///
/// # Errors
/// When one cannot be read or the other not be written.
pub fn write_sums(mut pages: impl Read, mut sums: impl Write) -> io::Result<u64> {
    let mut total = 0;
    let mut block = vec![0; BLOCK_SIZE];
    loop {
        let mut len = 0;
        while len < BLOCK_SIZE {
            match pages.read(&mut block[len..]) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if len > 0 {
            sums.write_all(&Hash::of(&block[..len]).0)?;
            total += len as u64;
        }
        if len < BLOCK_SIZE {
            return Ok(total);
        }
    }
}

/// Fails unless `data` is exactly block number `block` of a page object of `bytes` bytes and has the sum `sum`.
///
/// # Errors
/// Which of the two it is not.
pub fn verify_block(bytes: u64, block: u64, data: &[u8], sum: Hash) -> Result<(), SumError> {
    if block_len(bytes, block) != Some(data.len()) {
        return Err(SumError::NoBlock {
            block,
            found: data.len(),
        });
    }
    if sum == Hash::of(data) {
        Ok(())
    } else {
        Err(SumError::Block { block })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_hash_has_one_text_form() {
        let hash = Hash::of(b"pico");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(
            hash.to_string().to_uppercase().parse::<Hash>(),
            Err(HashTextError)
        );
        assert_eq!("é".repeat(32).parse::<Hash>(), Err(HashTextError));
    }

    fn sum(sums: &[u8], block: usize) -> Hash {
        Hash(sums[block * HASH_SIZE..][..HASH_SIZE].try_into().unwrap())
    }

    #[test]
    fn a_flipped_bit_in_any_block_is_found() {
        let mut pages = vec![7; 2 * BLOCK_SIZE + 4096];
        let bytes = pages.len() as u64;
        let mut sums = Vec::new();
        assert_eq!(write_sums(&pages[..], &mut sums).unwrap(), bytes);
        pages[BLOCK_SIZE + 9] ^= 1;
        let blocks: Vec<_> = pages.chunks(BLOCK_SIZE).collect();
        let verify = |nth: u64, data| verify_block(bytes, nth, data, sum(&sums, nth.min(2) as usize));
        assert_eq!(verify(0, blocks[0]), Ok(()));
        assert_eq!(verify(1, blocks[1]), Err(SumError::Block { block: 1 }));
        assert_eq!(verify(2, blocks[2]), Ok(()));
        let found = BLOCK_SIZE;
        assert_eq!(verify(2, blocks[1]), Err(SumError::NoBlock { block: 2, found }));
        assert!(verify(3, blocks[2]).is_err());
        assert!(verify(u64::MAX, blocks[2]).is_err());
    }

    proptest! {
        #[test]
        fn every_block_has_its_sum(len in 0usize..3 * BLOCK_SIZE) {
            let pages: Vec<u8> = (0..len).map(|at| u8::try_from(at / 1000).unwrap()).collect();
            let mut sums = Vec::new();
            prop_assert_eq!(write_sums(&pages[..], &mut sums).unwrap(), len as u64);
            prop_assert_eq!(sums.len() as u64, sums_len(len as u64));
            for (nth, block) in pages.chunks(BLOCK_SIZE).enumerate() {
                prop_assert_eq!(verify_block(len as u64, nth as u64, block, sum(&sums, nth)), Ok(()));
            }
        }

        #[test]
        fn blocks_cover_the_object_exactly(bytes in 0u64..1 << 40) {
            let count = block_count(bytes);
            let last = count.checked_sub(1).and_then(|b| block_len(bytes, b)).unwrap_or(0) as u64;
            prop_assert_eq!(count.saturating_sub(1) * BLOCK_SIZE as u64 + last, bytes);
            prop_assert_eq!(block_len(bytes, count), None);
        }
    }
}
