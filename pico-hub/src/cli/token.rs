//! `pico token ...`

use pico_proto::units::Wait;
use pico_proto::v1;
use pico_proto::v1::token_service_client::TokenServiceClient;

use super::app::PAGE;
use super::args::TokenCommand;
use super::exit::Exit;
use super::failure::{Failure, Result};
use super::{Context, call, confirm, view};

pub(super) async fn run(context: &Context, command: TokenCommand) -> Result<Exit> {
    let mut client = TokenServiceClient::new(context.hub.clone());
    match command {
        TokenCommand::Create {
            admin,
            lifetime,
            note,
        } => {
            let owner = context.owner.clone().unwrap_or_default();
            let role = match (admin, owner.is_empty()) {
                (true, true) => v1::Role::Admin,
                (false, false) => v1::Role::Owner,
                (true, false) => {
                    return Err(
                        Failure::usage("a token is for one owner or for everything, not for both")
                            .hint("--owner OWNER, or --admin"),
                    );
                }
                (false, true) => {
                    return Err(Failure::usage("whose token is it?").hint("--owner OWNER, or --admin"));
                }
            };
            create(context, role, owner, lifetime, note).await
        }
        TokenCommand::List => {
            let mut tokens = Vec::new();
            let mut page_token = String::new();
            loop {
                let request = v1::ListTokensRequest {
                    page_size: PAGE,
                    page_token,
                };
                let page = client.list_tokens(call(request)).await?.into_inner();
                tokens.extend(page.tokens);
                if page.next_page_token.is_empty() {
                    break;
                }
                page_token = page.next_page_token;
            }
            context.print(&view::tokens(&tokens))
        }
        TokenCommand::Revoke { id, yes } => {
            confirm(&format!("revoke token {id}"), yes)?;
            client
                .revoke_token(call(v1::RevokeTokenRequest { id: id.clone() }))
                .await?;
            context.print(&view::removed("token", &id))
        }
        TokenCommand::Whoami => {
            let token = client.who_am_i(call(v1::WhoAmIRequest {})).await?;
            context.print(&view::whoami(token.get_ref()))
        }
    }
}

/// Makes a token and prints its secret.
pub(super) async fn create(
    context: &Context,
    role: v1::Role,
    owner: String,
    lifetime: Option<Wait>,
    note: String,
) -> Result<Exit> {
    let lifetime =
        match lifetime {
            None | Some(Wait::Never) => None,
            Some(Wait::After(after)) => Some(prost_types::Duration::try_from(after).map_err(|_| {
                Failure::usage("--lifetime is longer than can be said").hint("--lifetime never")
            })?),
        };
    let request = v1::CreateTokenRequest {
        role: role.into(),
        owner,
        note,
        lifetime,
    };
    let mut client = TokenServiceClient::new(context.hub.clone());
    let made = client.create_token(call(request)).await?;
    context.print(&view::new_token(made.get_ref()))
}
