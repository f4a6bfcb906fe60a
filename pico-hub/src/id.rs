//! Names that the hub gives: random 63-bit numbers, written with a prefix that says what they name
//! (`app-0123456789abcdef`). One is never given twice: the registry refuses a number it has.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::str::FromStr;

use crate::secret::random;

/// What an [`Id`] may name.
pub trait Kind {
    /// How its text begins, up to the hyphen.
    const PREFIX: &'static str;
}

macro_rules! kinds {
    ($($kind:ident, $id:ident, $prefix:literal, $doc:literal;)*) => {$(
        #[doc = $doc]
        #[derive(Debug)]
        pub enum $kind {}
        impl Kind for $kind {
            const PREFIX: &'static str = $prefix;
        }
        #[doc = concat!("The id of ", $doc)]
        pub type $id = Id<$kind>;
    )*};
}

kinds! {
    AppKind, AppId, "app", "an app.";
    AgentKind, AgentId, "agent", "an agent.";
    OperationKind, OperationId, "op", "an operation.";
    TokenKind, TokenId, "token", "a token.";
}

/// An id of one kind: a number from 1 to 2^63 - 1, so that any database can keep it.
pub struct Id<K> {
    number: i64,
    kind: PhantomData<fn() -> K>,
}

impl<K> Id<K> {
    /// A new one, at random.
    ///
    /// # Errors
    /// The system has no random numbers to give.
    pub fn random() -> std::io::Result<Self> {
        let bits = u64::from_le_bytes(random()?) >> 1;
        Ok(Id::from_number(i64::try_from(bits.max(1)).unwrap_or(i64::MAX)))
    }

    /// The id with this number, as the registry kept it.
    pub const fn from_number(number: i64) -> Self {
        Id {
            number,
            kind: PhantomData,
        }
    }

    /// What the registry keeps.
    pub const fn number(self) -> i64 {
        self.number
    }
}

impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Id<K> {}

impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl<K> Eq for Id<K> {}

impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.number.cmp(&other.number)
    }
}

impl<K> Hash for Id<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.number.hash(state);
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", K::PREFIX, self.number)
    }
}

impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not an [`Id`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not an id; ids here are written {0}-0123456789abcdef")]
pub struct IdError(&'static str);

impl<K: Kind> FromStr for Id<K> {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text
            .strip_prefix(K::PREFIX)
            .and_then(|rest| rest.strip_prefix('-'))
            .filter(|digits| {
                digits.len() == 16
                    && digits
                        .bytes()
                        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            });
        match digits.map(|digits| i64::from_str_radix(digits, 16)) {
            Some(Ok(number)) if number > 0 => Ok(Id::from_number(number)),
            _ => Err(IdError(K::PREFIX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_from_its_text_and_from_no_other() {
        let id = AppId::random().unwrap();
        assert_eq!(id.to_string().parse(), Ok(id));
        let text = id.to_string();
        for wrong in [
            "",
            "app-",
            "app-1",
            "op-0123456789abcdef",
            "app-0000000000000000",
            "app-ffffffffffffffff",
            "app-0123456789ABCDEF",
            "app-+123456789abcde",
            &text[1..],
            &format!("{text}0"),
        ] {
            assert!(wrong.parse::<AppId>().is_err(), "{wrong}");
        }
    }
}
