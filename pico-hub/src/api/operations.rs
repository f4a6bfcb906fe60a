//! OperationService.

use pico_proto::v1;
use pico_proto::v1::operation_service_server::OperationService;
use tonic::{Request, Response, Status};

use super::{Service, answer, parts};

#[tonic::async_trait]
impl OperationService for Service {
    async fn get_operation(
        &self,
        request: Request<v1::GetOperationRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let (caller, request) = parts(request)?;
        answer(self.0.operation(caller, request.id).await)
    }

    async fn wait_operation(
        &self,
        request: Request<v1::WaitOperationRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let (caller, request) = parts(request)?;
        answer(self.0.wait_operation(caller, request.id).await)
    }
}
