//! The rules of tokens.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use pico_proto::v1;
use tonic::Code;

use super::{Hub, HubError, convert, now, page};
use crate::auth::Caller;
use crate::id::TokenId;
use crate::problem::Problem;
use crate::registry::{NewEvent, RegistryError, Role, Token};
use crate::secret::Secret;
use crate::spec;

/// The file of the first administrator's token, in the state directory.
const ADMIN_FILE: &str = "admin.token";
/// A join token lives no longer, in seconds.
const JOIN_SECONDS: i64 = 3600;
const NOTE_BYTES: usize = 256;

pub(super) fn new_token(secret: &Secret, role: Role, owner: &str, note: &str) -> Token {
    Token {
        id: secret.id(),
        hash: *secret.hash().as_bytes(),
        role,
        owner: owner.to_owned(),
        agent: None,
        note: note.to_owned(),
        created: now(),
        expires: None,
        revoked: None,
        last_used: None,
    }
}

pub(super) fn random_secret() -> Result<Secret, Problem> {
    Secret::random().map_err(|error| RegistryError::Database(error.to_string()).into())
}

impl Hub {
    pub(super) async fn load_tokens(&self) -> Result<(), RegistryError> {
        let mut after = None;
        loop {
            let page = self.database.read(move |rows| rows.tokens(after, 1000)).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id);
            page.into_iter().for_each(|token| self.tokens.put(token));
        }
    }

    /// The first start: an administrator's token, in a file of its own before the hub knows it, so that a crash between
    /// the two leaves a file that is written anew and never a token that nobody holds.
    pub(super) async fn first_token(self: &Arc<Self>, state_dir: &Path) -> Result<(), HubError> {
        let none = self
            .database
            .read(|rows| Ok::<_, RegistryError>(rows.tokens(None, 1)?.is_empty()))
            .await?;
        if !none {
            return Ok(());
        }
        let secret = Secret::random()?;
        let path = state_dir.join(ADMIN_FILE);
        let written = (|| {
            let _ = std::fs::remove_file(&path);
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&path)?;
            writeln!(file, "{}", secret.reveal())?;
            file.sync_all()?;
            std::fs::File::open(state_dir)?.sync_all()
        })();
        written.map_err(|source| HubError::File {
            path: path.clone(),
            source,
        })?;
        let token = new_token(&secret, Role::Admin, "", "made at the hub's first start");
        self.database
            .change(
                {
                    let token = token.clone();
                    move |rows| rows.put_token(&token)
                },
                |()| (),
            )
            .await?;
        self.tokens.put(token);
        tracing::info!(path = %path.display(), "the administrator's token is here");
        Ok(())
    }

    /// Remembers when a token was last used.
    pub(super) fn note_use(self: &Arc<Self>, id: TokenId, at: i64) {
        let hub = self.clone();
        tokio::spawn(async move {
            let noted = hub
                .change(move |rows, effects| {
                    if let Some(mut token) = rows.token(id)? {
                        token.last_used = Some(at);
                        effects.put_token(rows, &token)?;
                    }
                    Ok(())
                })
                .await;
            if let Err(problem) = noted {
                tracing::warn!(%problem, "the use of a token is not noted");
            }
        });
    }

    /// Makes a token; its secret is shown this once.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub async fn create_token(
        self: &Arc<Self>,
        request: v1::CreateTokenRequest,
    ) -> Result<v1::CreateTokenResponse, Problem> {
        let role = match Role::from_proto(request.role) {
            Some(Role::Agent) => {
                return Err(Problem::field(
                    "role",
                    "an agent's token is made when it joins; make a join token",
                ));
            }
            Some(role) => role,
            None => return Err(Problem::field("role", "say for whom: admin, owner or join")),
        };
        match role {
            Role::Owner if !spec::is_owner(&request.owner) => {
                let what = "an owner's name has lower-case letters and digits, at most 63";
                return Err(Problem::field("owner", what));
            }
            Role::Owner => {}
            _ if request.owner.is_empty() => {}
            _ => return Err(Problem::field("owner", "only an owner's token has one")),
        }
        if request.note.len() > NOTE_BYTES {
            return Err(Problem::field("note", format!("at most {NOTE_BYTES} bytes")));
        }
        let asked = request.lifetime.map(|lifetime| lifetime.seconds);
        if asked.is_some_and(|seconds| seconds <= 0) {
            return Err(Problem::field("lifetime", "it lies in the past"));
        }
        let seconds = match role {
            Role::Join => Some(asked.map_or(JOIN_SECONDS, |seconds| seconds.min(JOIN_SECONDS))),
            _ => asked,
        };
        let secret = random_secret()?;
        let mut token = new_token(&secret, role, &request.owner, &request.note);
        token.expires =
            seconds.map(|seconds| token.created.saturating_add(seconds.saturating_mul(1_000_000)));
        let shown = convert::token(&token);
        self.change(move |rows, effects| {
            effects.put_token(rows, &token)?;
            let reason = format!("{} {:?} {}", token.id, token.role, token.owner);
            Ok(rows.add_event(now(), &admin_event("token.created", &reason))?)
        })
        .await?;
        Ok(v1::CreateTokenResponse {
            token: Some(shown),
            secret: secret.reveal(),
        })
    }

    /// A page of tokens, oldest first.
    ///
    /// # Errors
    /// A page token that is none.
    pub async fn list_tokens(
        &self,
        request: v1::ListTokensRequest,
    ) -> Result<v1::ListTokensResponse, Problem> {
        let size = page::size(request.page_size)?;
        let after = match page::read::<1>(&request.page_token)? {
            Some([id]) => Some(
                id.parse()
                    .map_err(|_| Problem::field("page_token", "it is none of this hub's"))?,
            ),
            None => None,
        };
        let mut tokens = self.read(move |rows| Ok(rows.tokens(after, size + 1)?)).await?;
        let more = tokens.len() > size;
        tokens.truncate(size);
        let next_page_token = match tokens.last() {
            Some(last) if more => page::write(&[&last.id.to_string()]),
            _ => String::new(),
        };
        Ok(v1::ListTokensResponse {
            tokens: tokens.iter().map(convert::token).collect(),
            next_page_token,
        })
    }

    /// Takes a token back. The caller's own last administrator's token stays, or nobody could make another.
    ///
    /// # Errors
    /// There is none, or it is the caller's own.
    pub async fn revoke_token(self: &Arc<Self>, caller: Caller, id: String) -> Result<(), Problem> {
        self.change(move |rows, effects| {
            let unknown = || Problem::not_found("token", &id);
            let found = match id.parse() {
                Ok(id) => rows.token(id)?,
                Err(_) => None,
            };
            let mut token = found.ok_or_else(unknown)?;
            if token.id == caller.token {
                let message = "a token does not revoke itself";
                return Err(Problem::new(Code::FailedPrecondition, "OWN_TOKEN", message)
                    .hint("use another administrator's token"));
            }
            if token.revoked.is_none() {
                token.revoked = Some(now());
                effects.put_token(rows, &token)?;
                if let Some(agent) = token.agent {
                    effects.end(agent);
                }
                rows.add_event(now(), &admin_event("token.revoked", &token.id.to_string()))?;
            }
            Ok(())
        })
        .await
    }

    /// The token that the caller holds.
    ///
    /// # Errors
    /// The database failed.
    pub async fn whoami(&self, caller: Caller) -> Result<v1::Token, Problem> {
        let id = caller.token;
        let token = self.read(move |rows| Ok(rows.token(id)?)).await?;
        token
            .map(|token| convert::token(&token))
            .ok_or_else(|| Problem::not_found("token", id))
    }
}

/// Of what administrators alone see.
pub(super) fn admin_event(kind: &'static str, reason: &str) -> NewEvent {
    NewEvent {
        kind,
        reason: reason.to_owned(),
        ..NewEvent::default()
    }
}
