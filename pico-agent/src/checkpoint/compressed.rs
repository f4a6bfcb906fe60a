//! Objects that are read as a whole travel compressed: bundle and writable layer, as one zstd frame each.
//!
//! Both are small files full of zeros: a fifth of the bytes is left, and unpacking takes a millisecond for 2 MB
//! (the figures: kernel-notes/checkpoint-format.md). Checksums are those of the compressed bytes, so that nothing reaches
//! the decoder that was not stored by us. Pages are not compressed: they are read in blocks, by place.

use std::io::{self, BufReader, Read, Write};

use super::hash::{Digest, Hashing};

/// zstd's own default: what is better takes longer than it saves.
const LEVEL: i32 = 3;
/// Largest window that is decoded, as a power of two: 8 MiB of memory. What [`LEVEL`] writes needs a quarter of it.
const WINDOW_LOG_MAX: u32 = 23;

/// A compressed object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compressed {
    /// Of its bytes.
    pub digest: Digest,
    /// How many bytes it unpacks to.
    pub unpacked: u64,
}

/// Compresses what is written to it.
pub struct Compress<W: Write> {
    encoder: zstd::Encoder<'static, Hashing<W>>,
    unpacked: u64,
}

impl<W: Write> Compress<W> {
    /// Writes the object to `output`.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(output: W) -> io::Result<Self> {
        Ok(Compress {
            encoder: zstd::Encoder::new(Hashing::new(output), LEVEL)?,
            unpacked: 0,
        })
    }

    /// Ends the object.
    ///
    /// # Errors
    /// When its end cannot be written.
    pub fn finish(self) -> io::Result<Compressed> {
        let mut output = self.encoder.finish()?;
        output.flush()?;
        Ok(Compressed {
            digest: output.digest(),
            unpacked: self.unpacked,
        })
    }
}

impl<W: Write> Write for Compress<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.encoder.write(bytes)?;
        self.unpacked += taken as u64;
        Ok(taken)
    }

    /// Flushing would cost compression; [`Compress::finish`] does it.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `input` unpacks to, but no more than `unpacked` bytes; bytes as they are where that is unknown.
///
/// # Errors
/// When there is no memory for it.
pub fn decompress<'a>(input: impl Read + 'a, unpacked: Option<u64>) -> io::Result<Box<dyn Read + 'a>> {
    let input = BufReader::new(input);
    let Some(unpacked) = unpacked else {
        return Ok(Box::new(input));
    };
    let mut decoder = zstd::Decoder::with_buffer(input)?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    Ok(Box::new(BufReader::new(decoder.take(unpacked))))
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn compressed(content: &[u8]) -> (Vec<u8>, Compressed) {
        let mut bytes = Vec::new();
        let mut out = Compress::new(&mut bytes).expect("memory");
        out.write_all(content).expect("written");
        let of = out.finish().expect("finished");
        (bytes, of)
    }

    fn read(bytes: &[u8], unpacked: Option<u64>) -> io::Result<Vec<u8>> {
        let mut found = Vec::new();
        decompress(bytes, unpacked)?.read_to_end(&mut found)?;
        Ok(found)
    }

    proptest! {
        #[test]
        fn what_is_compressed_comes_back(content: Vec<u8>, times in 1..200usize) {
            let content = content.repeat(times);
            let (bytes, of) = compressed(&content);
            prop_assert_eq!(of.digest, Digest::of(&bytes));
            prop_assert_eq!(of.unpacked, content.len() as u64);
            prop_assert_eq!(read(&bytes, Some(of.unpacked)).expect("read"), content);
        }

        #[test]
        fn any_bytes_are_content_or_an_error_and_no_longer_than_said(bytes: Vec<u8>, unpacked in 0..100u64) {
            if let Ok(found) = read(&bytes, Some(unpacked)) {
                prop_assert!(found.len() as u64 <= unpacked);
            }
            prop_assert_eq!(read(&bytes, None).expect("as it is"), bytes);
        }
    }

    #[test]
    fn a_bomb_goes_off_no_further_than_was_said() {
        let (bytes, of) = compressed(&vec![0; 64 << 20]);
        assert!(bytes.len() < 16 << 10 && of.unpacked == 64 << 20, "{of:?}");
        assert_eq!(read(&bytes, Some(1000)).expect("read"), vec![0; 1000]);
    }

    #[test]
    fn a_window_that_takes_much_memory_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("memory");
        encoder.window_log(WINDOW_LOG_MAX + 1).expect("a window");
        encoder.write_all(&vec![7; 20 << 20]).expect("written");
        let bytes = encoder.finish().expect("finished");
        assert!(read(&bytes, Some(20 << 20)).is_err());
    }
}
