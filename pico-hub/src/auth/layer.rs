//! The check in front of every call, where HTTP is still visible: the token in, the [`Caller`] out.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;
use tonic::{Code, Status};

use super::{Caller, policy};
use crate::hub::Hub;
use crate::problem::Problem;

/// Lets a call pass with its [`Caller`] in its extensions, or answers why not. For `axum::middleware::from_fn_with_state`.
pub async fn guard(State(hub): State<Arc<Hub>>, mut request: Request, next: Next) -> Response {
    match caller(&hub, &request) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => {
            tracing::info!(path = request.uri().path(), reason = problem.reason(), "refused");
            Status::from(problem).into_http()
        }
    }
}

fn caller(hub: &Arc<Hub>, request: &Request) -> Result<Caller, Problem> {
    let missing = || {
        Problem::new(
            Code::Unauthenticated,
            "TOKEN_MISSING",
            "the call carries no token",
        )
        .hint("send `authorization: Bearer TOKEN`; pico takes it from PICO_TOKEN or a token file")
    };
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(missing());
    };
    let text = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
    let caller = hub.authenticate(text.ok_or_else(missing)?)?;
    if policy::roles(request.uri().path()).contains(&caller.role) {
        return Ok(caller);
    }
    let message = format!("a token of the role {:?} may not make this call", caller.role).to_lowercase();
    Err(Problem::new(Code::PermissionDenied, "ROLE_NOT_ALLOWED", message))
}
