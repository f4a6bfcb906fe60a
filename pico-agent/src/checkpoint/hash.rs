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

/// The hashes of the 64 KiB blocks of one page object (its `.sums` object): 32 bytes a block, nothing
/// else; the last block may be shorter. The sums object itself is covered by its hash in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSums {
    sums: Vec<Hash>,
    bytes: u64,
}

/// A block or a sums object that is not what the manifest says.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SumError {
    /// The sums object has the wrong length for its page object.
    #[error("a page object of {bytes} bytes needs {expected} bytes of block sums, {found} were found")]
    Length {
        /// Length of the page object.
        bytes: u64,
        /// Length its sums must have.
        expected: u64,
        /// Length they have.
        found: u64,
    },
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

impl BlockSums {
    /// The sums of everything `pages` yields, read to its end.
    pub fn of(mut pages: impl Read) -> io::Result<Self> {
        let (mut sums, mut total) = (Vec::new(), 0);
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
                sums.push(Hash::of(&block[..len]));
                total += len as u64;
            }
            if len < BLOCK_SIZE {
                return Ok(BlockSums { sums, bytes: total });
            }
        }
    }

    /// Reads a sums object that belongs to a page object of `bytes` bytes.
    pub fn decode(object: &[u8], bytes: u64) -> Result<Self, SumError> {
        let expected = block_count(bytes) * HASH_SIZE as u64;
        let found = object.len() as u64;
        if found != expected {
            return Err(SumError::Length {
                bytes,
                expected,
                found,
            });
        }
        let (sums, _) = object.as_chunks::<HASH_SIZE>();
        Ok(BlockSums {
            sums: sums.iter().map(|sum| Hash(*sum)).collect(),
            bytes,
        })
    }

    /// The sums object.
    pub fn encode(&self) -> Vec<u8> {
        self.sums.iter().flat_map(|sum| sum.0).collect()
    }

    /// Length of the page object these sums belong to.
    pub fn page_bytes(&self) -> u64 {
        self.bytes
    }

    /// Fails unless `data` is exactly block number `block`.
    pub fn verify(&self, block: u64, data: &[u8]) -> Result<(), SumError> {
        let sum = usize::try_from(block).ok().and_then(|i| self.sums.get(i));
        match sum {
            Some(sum) if block_len(self.bytes, block) == Some(data.len()) => {
                if *sum == Hash::of(data) {
                    Ok(())
                } else {
                    Err(SumError::Block { block })
                }
            }
            _ => Err(SumError::NoBlock {
                block,
                found: data.len(),
            }),
        }
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

    #[test]
    fn a_flipped_bit_in_any_block_is_found() {
        let mut pages = vec![7; 2 * BLOCK_SIZE + 4096];
        let sums = BlockSums::of(&pages[..]).unwrap();
        pages[BLOCK_SIZE + 9] ^= 1;
        let blocks: Vec<_> = pages.chunks(BLOCK_SIZE).collect();
        assert_eq!(sums.verify(0, blocks[0]), Ok(()));
        assert_eq!(sums.verify(1, blocks[1]), Err(SumError::Block { block: 1 }));
        assert_eq!(sums.verify(2, blocks[2]), Ok(()));
        assert_eq!(
            sums.verify(2, blocks[1]),
            Err(SumError::NoBlock {
                block: 2,
                found: BLOCK_SIZE
            })
        );
        assert!(sums.verify(3, blocks[2]).is_err());
        assert!(sums.verify(u64::MAX, blocks[2]).is_err());
    }

    proptest! {
        #[test]
        fn sums_read_back_as_written(len in 0usize..3 * BLOCK_SIZE) {
            let sums = BlockSums::of(&vec![3; len][..]).unwrap();
            let object = sums.encode();
            prop_assert_eq!(BlockSums::decode(&object, len as u64).unwrap(), sums);
            prop_assert!(BlockSums::decode(&object, (len + 2 * BLOCK_SIZE) as u64).is_err());
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
