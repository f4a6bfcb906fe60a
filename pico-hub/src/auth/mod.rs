//! Who calls, and what they may: every call carries a token, and one table ([`policy`]) says which roles may make
//! which call. What an owner may see of apps is decided where apps are looked up ([`Caller::owner_filter`]).

mod layer;
pub mod policy;

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use tonic::Code;

pub use self::layer::guard;
use crate::id::{AgentId, TokenId};
use crate::problem::Problem;
use crate::registry::{Role, Token};
use crate::secret::Secret;

/// Who made a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// With which token.
    pub token: TokenId,
    /// As what.
    pub role: Role,
    /// Of [`Role::Owner`]: who.
    pub owner: String,
    /// Of [`Role::Agent`]: which.
    pub agent: Option<AgentId>,
}

impl Caller {
    /// Whose things the caller may see: one owner's, or everybody's.
    pub fn owner_filter(&self) -> Option<&str> {
        (self.role != Role::Admin).then_some(&*self.owner)
    }

    /// Whose app a call is about that names `asked` as owner (empty: the caller's own).
    ///
    /// # Errors
    /// An owner names another one, or an administrator none.
    pub fn owner<'a>(&'a self, asked: &'a str) -> Result<&'a str, Problem> {
        match (self.role, asked) {
            (Role::Admin, "") => Err(Problem::field("owner", "an administrator names the owner")),
            (Role::Admin, asked) => Ok(asked),
            (_, asked) if asked.is_empty() || asked == self.owner => Ok(&self.owner),
            (_, asked) => Err(Problem::not_found("owner", asked)),
        }
    }
}

/// All tokens, in memory: a call is checked without asking the database.
#[derive(Debug, Default)]
pub struct Tokens {
    known: RwLock<HashMap<TokenId, Token>>,
}

impl Tokens {
    /// Knows this token from now on as it is here.
    pub fn put(&self, token: Token) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(token.id, token);
    }

    /// Who holds `text`, at the time `now`; and whether the use should be noted.
    ///
    /// # Errors
    /// It is no token, an unknown, an expired or a revoked one.
    pub fn caller(&self, text: &str, now: i64) -> Result<(Caller, bool), Problem> {
        let refused = |reason, message: &str| Problem::new(Code::Unauthenticated, reason, message);
        let unknown = || {
            refused("TOKEN_UNKNOWN", "the hub knows no such token").hint(
                "use the text that `pico token create` printed, or ask the hub's administrator for a token",
            )
        };
        let secret = Secret::parse(text).ok_or_else(unknown)?;
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let token = known.get(&secret.id()).ok_or_else(unknown)?;
        // `blake3::Hash` compares in constant time.
        if blake3::Hash::from_bytes(token.hash) != secret.hash() {
            return Err(unknown());
        }
        if token.revoked.is_some() {
            return Err(refused("TOKEN_REVOKED", "this token was revoked or used up"));
        }
        if token.expires.is_some_and(|expires| expires <= now) {
            return Err(refused("TOKEN_EXPIRED", "this token has expired"));
        }
        let stale = token.last_used.is_none_or(|used| now - used >= 60_000_000);
        let caller = Caller {
            token: token.id,
            role: token.role,
            owner: token.owner.clone(),
            agent: token.agent,
        };
        Ok((caller, stale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(secret: &Secret) -> Token {
        Token {
            id: secret.id(),
            hash: *secret.hash().as_bytes(),
            role: Role::Owner,
            owner: "ann".into(),
            agent: None,
            note: String::new(),
            created: 0,
            expires: Some(100),
            revoked: None,
            last_used: None,
        }
    }

    #[test]
    fn only_the_right_secret_of_a_token_that_is_good_names_its_holder() {
        let tokens = Tokens::default();
        let (mine, other) = (Secret::random().unwrap(), Secret::random().unwrap());
        tokens.put(token(&mine));
        let reason = |text: &str, now| tokens.caller(text, now).unwrap_err().reason();
        let (caller, stale) = tokens.caller(&mine.reveal(), 99).unwrap();
        assert_eq!((caller.owner.as_str(), stale), ("ann", true));
        assert_eq!(reason(&mine.reveal(), 100), "TOKEN_EXPIRED");
        assert_eq!(reason(&other.reveal(), 0), "TOKEN_UNKNOWN");
        assert_eq!(reason("", 0), "TOKEN_UNKNOWN");
        // The id of one and the secret of another.
        let (head, _) = mine
            .reveal()
            .rsplit_once('_')
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .unwrap();
        let (_, tail) = other
            .reveal()
            .rsplit_once('_')
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .unwrap();
        assert_eq!(reason(&format!("{head}_{tail}"), 0), "TOKEN_UNKNOWN");
        tokens.put(Token {
            revoked: Some(5),
            ..token(&mine)
        });
        assert_eq!(reason(&mine.reveal(), 6), "TOKEN_REVOKED");
    }

    #[test]
    fn an_owner_acts_for_nobody_else() {
        let caller = |role, owner: &str| Caller {
            token: TokenId::from_number(1),
            role,
            owner: owner.into(),
            agent: None,
        };
        let ann = caller(Role::Owner, "ann");
        assert_eq!(ann.owner("").unwrap(), "ann");
        assert_eq!(ann.owner("ann").unwrap(), "ann");
        assert!(ann.owner("bob").is_err());
        let admin = caller(Role::Admin, "");
        assert_eq!(admin.owner("bob").unwrap(), "bob");
        assert!(admin.owner("").is_err());
        assert_eq!((admin.owner_filter(), ann.owner_filter()), (None, Some("ann")));
    }
}
