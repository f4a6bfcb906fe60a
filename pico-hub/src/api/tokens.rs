//! TokenService.

use pico_proto::v1;
use pico_proto::v1::token_service_server::TokenService;
use tonic::{Request, Response, Status};

use super::{Service, answer, caller, parts};

#[tonic::async_trait]
impl TokenService for Service {
    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        answer(self.0.create_token(request.into_inner()).await)
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        answer(self.0.list_tokens(request.into_inner()).await)
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let (caller, request) = parts(request)?;
        answer(
            self.0
                .revoke_token(caller, request.id)
                .await
                .map(|()| v1::RevokeTokenResponse {}),
        )
    }

    async fn who_am_i(&self, request: Request<v1::WhoAmIRequest>) -> Result<Response<v1::Token>, Status> {
        answer(self.0.whoami(caller(request.extensions())?).await)
    }
}
