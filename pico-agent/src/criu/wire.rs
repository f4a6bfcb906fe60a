//! Protocol buffer wire format, just enough to change single fields of CRIU's images and keep the rest.
//!
//! A typed decoder would drop every field it does not know, and CRIU's images differ between releases; this
//! walker passes unknown fields through untouched. Format: <https://protobuf.dev/programming-guides/encoding/>.
//! Knows nothing of CRIU. Every length is checked before it is believed.

/// Why bytes are not a protocol buffer message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// A varint or field runs past the end of the message.
    #[error("a field runs past the end of its message")]
    Truncated,
    /// A varint of more than 64 bits.
    #[error("a number has more than 64 bits")]
    Overflow,
    /// Field number 0 or a wire type that proto2 does not use.
    #[error("unknown wire type or field number in tag {0}")]
    BadTag(u64),
}

/// The value of one field as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1, as stored (little endian).
    Fixed64(u64),
    /// Wire type 2: string, bytes, message or packed array.
    Bytes(&'a [u8]),
    /// Wire type 5, as stored (little endian).
    Fixed32(u32),
}

impl<'a> Value<'a> {
    /// The number of a varint field.
    pub fn number(self) -> Option<u64> {
        match self {
            Value::Varint(n) => Some(n),
            _ => None,
        }
    }

    /// The content of a length-delimited field.
    pub fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// Walks the fields of one message in order.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

/// The fields of `message`, each as its number and value.
pub fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or(WireError::Truncated)?;
            self.rest = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(WireError::Overflow);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::Overflow)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], WireError> {
        let len = usize::try_from(len).map_err(|_| WireError::Truncated)?;
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn field(&mut self) -> Result<(u32, Value<'a>), WireError> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3)
            .ok()
            .filter(|&n| n != 0)
            .ok_or(WireError::BadTag(tag))?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(len)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(WireError::BadTag(tag)),
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// The last value of field `number` in `message`, as proto2 defines it for a repeated scalar read as one.
///
/// # Errors
/// When `message` is malformed.
pub fn get(message: &[u8], number: u32) -> Result<Option<Value<'_>>, WireError> {
    let mut found = None;
    for field in fields(message) {
        let (n, value) = field?;
        if n == number {
            found = Some(value);
        }
    }
    Ok(found)
}

/// A varint field of `message`, or 0 when it is absent.
///
/// # Errors
/// When `message` is malformed.
pub fn get_number(message: &[u8], number: u32) -> Result<u64, WireError> {
    Ok(get(message, number)?.and_then(Value::number).unwrap_or(0))
}

/// Appends a base-128 varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Appends one field.
pub fn put(out: &mut Vec<u8>, number: u32, value: Value<'_>) {
    let tag = u64::from(number) << 3;
    match value {
        Value::Varint(n) => {
            put_varint(out, tag);
            put_varint(out, n);
        }
        Value::Fixed64(n) => {
            put_varint(out, tag | 1);
            out.extend_from_slice(&n.to_le_bytes());
        }
        Value::Bytes(bytes) => {
            put_varint(out, tag | 2);
            put_varint(out, bytes.len() as u64);
            out.extend_from_slice(bytes);
        }
        Value::Fixed32(n) => {
            put_varint(out, tag | 5);
            out.extend_from_slice(&n.to_le_bytes());
        }
    }
}

/// Rewrites `message` field by field: `change` returns the new content of a length-delimited field, or `None`
/// to keep it as it is. Numbers pass through.
///
/// # Errors
/// When `message` is malformed, or `change` says so.
pub fn rewrite(
    message: &[u8],
    mut change: impl FnMut(u32, &[u8]) -> Result<Option<Vec<u8>>, WireError>,
) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::with_capacity(message.len() + 16);
    for field in fields(message) {
        let (number, value) = field?;
        match value
            .bytes()
            .map(|bytes| change(number, bytes))
            .transpose()?
            .flatten()
        {
            Some(new) => put(&mut out, number, Value::Bytes(&new)),
            None => put(&mut out, number, value),
        }
    }
    Ok(out)
}

/// Rewrites `message` with the given varint fields set; the others, and their order, stay.
///
/// # Errors
/// When `message` is malformed.
pub fn set_numbers(message: &[u8], new: &[(u32, u64)]) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::with_capacity(message.len() + 16);
    for field in fields(message) {
        let (number, value) = field?;
        if !new.iter().any(|&(n, _)| n == number) {
            put(&mut out, number, value);
        }
    }
    for &(number, value) in new {
        put(&mut out, number, Value::Varint(value));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unknown_fields_pass_through_a_rewrite() {
        let mut message = Vec::new();
        put(&mut message, 1, Value::Varint(300));
        put(&mut message, 99, Value::Bytes(b"later"));
        put(&mut message, 7, Value::Fixed32(5));
        put(&mut message, 8, Value::Fixed64(6));
        assert_eq!(rewrite(&message, |_, _| Ok(None)), Ok(message.clone()));
        let changed = set_numbers(&message, &[(1, 5)]).expect("well formed");
        assert_eq!(get_number(&changed, 1), Ok(5));
        assert_eq!(get(&changed, 99), Ok(Some(Value::Bytes(b"later"))));
    }

    proptest! {
        #[test]
        fn a_varint_reads_as_it_was_written(n: u64) {
            let mut message = Vec::new();
            put(&mut message, 3, Value::Varint(n));
            prop_assert_eq!(get_number(&message, 3), Ok(n));
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes: Vec<u8>) {
            for field in fields(&bytes) {
                let _ = field;
            }
        }
    }
}
