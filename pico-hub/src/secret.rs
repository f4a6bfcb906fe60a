//! Random bytes, and the text of tokens: what a caller holds (`pico_ID_SECRET`), and what the hub keeps of it, which
//! is a hash. The id is no secret: with it the hub finds what to compare with, in constant time.

use std::fmt;
use std::io::{self, Read as _};

use crate::id::TokenId;

/// How a token's text begins, so that scanners for leaked secrets can tell it.
const PREFIX: &str = "pico_";

/// Random bytes from the system.
///
/// # Errors
/// The system has none to give.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// What a caller proves with: a token's id and 256 random bits. Its `Debug` shows the id alone.
#[derive(Clone)]
pub struct Secret {
    id: TokenId,
    bits: blake3::Hash,
}

impl Secret {
    /// A new one, at random, for a new token.
    ///
    /// # Errors
    /// The system has no random numbers to give.
    pub fn random() -> io::Result<Self> {
        Ok(Secret {
            id: TokenId::random()?,
            bits: blake3::Hash::from_bytes(random()?),
        })
    }

    /// The token it belongs to.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// What the hub keeps. A plain hash is enough: nobody guesses 256 random bits. Comparing two of them takes the
    /// same time wherever they differ (`blake3::Hash`).
    pub fn hash(&self) -> blake3::Hash {
        blake3::hash(self.bits.as_bytes())
    }

    /// Reads what a caller sent. `None` for what no token looks like.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, bits) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let id = i64::from_str_radix(id, 16)
            .ok()
            .filter(|id| *id > 0)
            .map(TokenId::from_number)?;
        let bits = blake3::Hash::from_hex(bits).ok()?;
        let secret = Secret { id, bits };
        // One spelling only: capitals and signs are no token of ours.
        (secret.reveal() == text).then_some(secret)
    }

    /// The text for its holder. Shown once, never logged.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{:016x}_{}", self.id.number(), self.bits.to_hex())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_reads_back_from_its_text_and_from_no_other() {
        let secret = Secret::random().unwrap();
        let text = secret.reveal();
        let again = Secret::parse(&text).unwrap();
        assert_eq!((again.id(), again.hash()), (secret.id(), secret.hash()));
        let cut = &text[..text.len() - 1];
        for wrong in [
            "",
            "pico_",
            "pico_1_2",
            cut,
            &text.to_uppercase(),
            &format!("{text}0"),
            &text[1..],
        ] {
            assert!(Secret::parse(wrong).is_none(), "{wrong}");
        }
        assert!(!format!("{secret:?}").contains(&text[30..]));
    }

    #[test]
    fn no_two_secrets_are_the_same() {
        let (one, two) = (Secret::random().unwrap(), Secret::random().unwrap());
        assert_ne!(one.hash(), two.hash());
        assert_ne!(one.id(), two.id());
    }
}
