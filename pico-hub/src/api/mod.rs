//! The services of `pico.v1`: from messages to the rules of [`crate::hub`] and back. What may be called by whom is
//! checked before ([`crate::auth`]).

mod agents;
mod apps;
mod events;
mod operations;
mod tokens;

use std::sync::Arc;

use pico_proto::v1;
use tonic::service::Routes;
use tonic::{Extensions, Request, Response, Status};

use crate::auth::{Caller, guard};
use crate::hub::{Handle, Hub};
use crate::problem::Problem;

/// Largest message that a caller may send.
const MESSAGE_BYTES: usize = 1 << 20;
/// Largest message of an agent: a Hello of a thousand apps.
const AGENT_MESSAGE_BYTES: usize = 16 << 20;

/// One service, over the hub.
#[derive(Clone)]
struct Service(Arc<Hub>);

/// All services of the API, each call checked.
pub fn routes(hub: &Arc<Hub>) -> Routes {
    let service = Service(hub.clone());
    let routes = Routes::new(
        v1::app_service_server::AppServiceServer::new(service.clone())
            .max_decoding_message_size(MESSAGE_BYTES),
    )
    .add_service(
        v1::operation_service_server::OperationServiceServer::new(service.clone())
            .max_decoding_message_size(MESSAGE_BYTES),
    )
    .add_service(
        v1::event_service_server::EventServiceServer::new(service.clone())
            .max_decoding_message_size(MESSAGE_BYTES),
    )
    .add_service(
        v1::token_service_server::TokenServiceServer::new(service.clone())
            .max_decoding_message_size(MESSAGE_BYTES),
    )
    .add_service(
        v1::agent_service_server::AgentServiceServer::new(service)
            .max_decoding_message_size(AGENT_MESSAGE_BYTES),
    );
    let guard = axum::middleware::from_fn_with_state(hub.clone(), guard);
    routes.into_axum_router().layer(guard).into()
}

/// Who calls; the guard has put it there.
fn caller(extensions: &Extensions) -> Result<Caller, Status> {
    extensions
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| Status::unauthenticated("the call carries no token"))
}

/// The app that a request names.
fn handle(extensions: &Extensions, named: Option<v1::AppHandle>) -> Result<Handle, Status> {
    Ok(Handle::new(caller(extensions)?, named)?)
}

fn answer<T>(outcome: Result<T, Problem>) -> Result<Response<T>, Status> {
    outcome.map(Response::new).map_err(Status::from)
}

/// Request and caller, apart.
fn parts<T>(request: Request<T>) -> Result<(Caller, T), Status> {
    let caller = caller(request.extensions())?;
    Ok((caller, request.into_inner()))
}
