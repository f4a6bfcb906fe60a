//! Owns how untrusted names become file names: object keys, and the small hex helpers around them.
//! Must not know what lies in the files or who asks for them.

use s3s::crypto::{Checksum as _, Sha256};

/// The longest key S3 allows, in bytes of UTF-8 (Amazon S3 user guide, "Object keys").
pub const MAX_KEY: usize = 1024;

/// An encoded key longer than this is cut and closed by its hash. Linux file names hold 255 bytes; 17 are
/// needed for the version.
const MAX_ENCODED: usize = 230;
/// How much of a cut key stays readable for a person who looks into the directory.
const READABLE: usize = 150;

/// The file name that holds version `version` of the object `key`.
///
/// Bytes other than ASCII letters, digits, `-`, `_` and inner dots are percent-encoded, so the name has no
/// slash, never starts with a dot and reads like the key. Two keys never share a name: `~`, which closes a
/// cut key before its SHA-256, never occurs in a key that was not cut.
pub fn object_file(key: &str, version: u64) -> String {
    let mut name = String::with_capacity(key.len() + 20);
    for (at, byte) in key.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            b'.' if at > 0 => name.push('.'),
            _ => {
                name.push('%');
                push_hex(&mut name, byte);
            }
        }
    }
    if name.len() > MAX_ENCODED {
        name.truncate(READABLE);
        name.push('~');
        name.push_str(&hex(Sha256::checksum(key.as_bytes()).as_ref()));
    }
    name.push('.');
    name.push_str(&hex(&version.to_be_bytes()));
    name
}

/// The version in a name made by [`object_file`]; `None` for any other file.
pub fn version_of(file_name: &str) -> Option<u64> {
    let (_, version) = file_name.rsplit_once('.')?;
    let bytes: [u8; 8] = unhex(version)?.try_into().ok()?;
    Some(u64::from_be_bytes(bytes))
}

/// Lower-case hex of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        push_hex(&mut text, *byte);
    }
    text
}

/// The bytes of a text made by [`hex`]; `None` if it is anything else.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?))
        .collect()
}

fn push_hex(text: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.push(char::from(DIGITS[usize::from(byte >> 4)]));
    text.push(char::from(DIGITS[usize::from(byte & 15)]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::{Component, Path};

    /// Keys made of what hurts: path tricks, escapes of our own encoding, any Unicode.
    fn key() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("..".to_owned()),
            Just("/".to_owned()),
            Just(".".to_owned()),
            Just("%2f".to_owned()),
            Just("~".to_owned()),
            Just("\0".to_owned()),
            ".{1,12}",
            "[a-z]{1,80}",
        ];
        proptest::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn every_key_becomes_one_plain_file_name(key in key(), version: u64) {
            let name = object_file(&key, version);
            prop_assert!(name.len() <= 255, "{} bytes", name.len());
            let parts: Vec<_> = Path::new(&name).components().collect();
            prop_assert!(matches!(parts[..], [Component::Normal(_)]), "{name}");
            prop_assert_eq!(version_of(&name), Some(version));
        }

        #[test]
        fn different_keys_have_different_names(a in key(), b in key()) {
            prop_assert_eq!(a == b, object_file(&a, 1) == object_file(&b, 1));
        }

        #[test]
        fn hex_is_read_back(bytes: Vec<u8>) {
            prop_assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        }
    }

    #[test]
    fn the_longest_keys_fit_and_differ_by_their_last_byte() {
        let long = "k".repeat(MAX_KEY - 1);
        let (a, b) = (
            object_file(&format!("{long}a"), 7),
            object_file(&format!("{long}b"), 7),
        );
        assert_ne!(a, b);
        assert!(a.len() <= 255);
    }

    #[test]
    fn names_stay_readable() {
        assert_eq!(
            object_file("apps/web/manifest.json", 1),
            "apps%2fweb%2fmanifest.json.0000000000000001"
        );
        assert_eq!(object_file("../x", 255), "%2e.%2fx.00000000000000ff");
    }
}
