//! AgentService.

use pico_proto::v1;
use pico_proto::v1::agent_service_server::AgentService;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Service, answer, parts};

#[tonic::async_trait]
impl AgentService for Service {
    type AttachStream = ReceiverStream<Result<v1::HubMessage, Status>>;

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let (caller, request) = parts(request)?;
        answer(self.0.join(caller, request).await)
    }

    async fn attach(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (caller, said) = parts(request)?;
        answer(self.0.attach(caller, said).await.map(ReceiverStream::new))
    }

    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        answer(self.0.list_agents(request.into_inner()).await)
    }

    async fn remove_agent(
        &self,
        request: Request<v1::RemoveAgentRequest>,
    ) -> Result<Response<v1::RemoveAgentResponse>, Status> {
        let id = request.into_inner().id;
        answer(self.0.remove_agent(id).await.map(|()| v1::RemoveAgentResponse {}))
    }
}
