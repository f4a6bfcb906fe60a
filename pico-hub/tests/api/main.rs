//! The API over a real connection: who may make which call, what owners can reach, what agents are told and believed.
//! Here: a hub, callers and an agent for each test.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod agents;
mod apps;
mod roles;

use std::sync::Arc;
use std::time::Duration;

use pico_hub::api::routes;
use pico_hub::auth::policy::CALLS;
use pico_hub::directory::Directory as _;
use pico_hub::hub::Hub;
use pico_hub::registry::Role;
use pico_proto::v1;
use pico_proto::v1::agent_message::Kind as Said;
use pico_proto::v1::agent_service_client::AgentServiceClient;
use pico_proto::v1::app_service_client::AppServiceClient;
use pico_proto::v1::event_service_client::EventServiceClient;
use pico_proto::v1::hub_message::Kind as Heard;
use pico_proto::v1::operation_service_client::OperationServiceClient;
use pico_proto::v1::token_service_client::TokenServiceClient;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

/// Bounds what should come at once.
const SOON: Duration = Duration::from_secs(20);

struct World {
    dir: tempfile::TempDir,
    hub: Arc<Hub>,
    channel: Channel,
    admin: String,
    server: tokio::task::JoinHandle<()>,
}

async fn serve(hub: &Arc<Hub>) -> (Channel, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Server::builder().add_routes(routes(hub));
    let server = tokio::spawn(async move {
        router
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
            .unwrap();
    });
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    (channel.connect().await.unwrap(), server)
}

impl World {
    async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::open(dir.path(), Some("pico.test".into())).await.unwrap();
        let (channel, server) = serve(&hub).await;
        let admin = std::fs::read_to_string(dir.path().join("admin.token"))
            .unwrap()
            .trim()
            .to_owned();
        World {
            dir,
            hub,
            channel,
            admin,
            server,
        }
    }

    /// The same state directory, under a new hub.
    async fn restart(self) -> World {
        self.server.abort();
        let _ = self.server.await;
        let World {
            dir,
            hub,
            channel,
            admin,
            ..
        } = self;
        drop((channel, hub));
        let hub = Hub::open(dir.path(), Some("pico.test".into())).await.unwrap();
        let (channel, server) = serve(&hub).await;
        World {
            dir,
            hub,
            channel,
            admin,
            server,
        }
    }

    async fn token(&self, role: v1::Role, owner: &str) -> String {
        let request = v1::CreateTokenRequest {
            role: role.into(),
            owner: owner.into(),
            ..v1::CreateTokenRequest::default()
        };
        let mut tokens = TokenServiceClient::with_interceptor(self.channel.clone(), bearer(&self.admin));
        tokens.create_token(request).await.unwrap().into_inner().secret
    }

    fn apps(&self, token: &str) -> AppServiceClient<Authorized> {
        AppServiceClient::with_interceptor(self.channel.clone(), bearer(token))
    }

    fn operations(&self, token: &str) -> OperationServiceClient<Authorized> {
        OperationServiceClient::with_interceptor(self.channel.clone(), bearer(token))
    }

    async fn agent(&self, name: &str) -> Agent {
        let join = self.token(v1::Role::Join, "").await;
        let mut agents = AgentServiceClient::with_interceptor(self.channel.clone(), bearer(&join));
        let request = v1::JoinRequest {
            name: name.into(),
            host: None,
        };
        let joined = agents.join(request).await.unwrap().into_inner();
        let mut agent = Agent {
            channel: self.channel.clone(),
            credential: joined.credential,
            id: joined.agent_id,
            say: mpsc::channel(1).0,
            hear: None,
        };
        agent.attach(Vec::new()).await;
        agent
    }
}

/// Puts a token into every call.
#[derive(Clone)]
struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Authorized = InterceptedService<Channel, Bearer>;

fn bearer(token: &str) -> Bearer {
    Bearer(format!("Bearer {token}").parse().unwrap())
}

/// An agent that speaks the protocol and has no apps but in its memory.
struct Agent {
    channel: Channel,
    credential: String,
    id: String,
    say: mpsc::Sender<v1::AgentMessage>,
    hear: Option<tonic::Streaming<v1::HubMessage>>,
}

impl Agent {
    async fn attach(&mut self, apps: Vec<v1::AppReport>) {
        let (say, said) = mpsc::channel(16);
        let hello = v1::Hello {
            apps,
            ..v1::Hello::default()
        };
        say.send(message(Said::Hello(hello))).await.unwrap();
        let mut agents = AgentServiceClient::with_interceptor(self.channel.clone(), bearer(&self.credential));
        self.hear = Some(
            agents
                .attach(ReceiverStream::new(said))
                .await
                .unwrap()
                .into_inner(),
        );
        self.say = say;
    }

    async fn next(&mut self) -> Result<Heard, Status> {
        let hear = self.hear.as_mut().unwrap();
        let message = tokio::time::timeout(SOON, hear.message())
            .await
            .expect("the hub says nothing")?;
        Ok(message
            .and_then(|message| message.kind)
            .expect("the stream has ended"))
    }

    async fn assignment(&mut self) -> v1::Assignment {
        match self.next().await.unwrap() {
            Heard::Assignment(assignment) => assignment,
            other => panic!("{other:?}"),
        }
    }

    async fn app(&mut self) -> v1::AssignedApp {
        match self.next().await.unwrap() {
            Heard::App(app) => app,
            other => panic!("{other:?}"),
        }
    }

    async fn command(&mut self) -> v1::Command {
        match self.next().await.unwrap() {
            Heard::Command(command) => command,
            other => panic!("{other:?}"),
        }
    }

    async fn report(&self, report: v1::AppReport) {
        self.say.send(message(Said::Report(report))).await.unwrap();
    }

    async fn done(&self, operation_id: &str, error: Option<v1::OperationError>) {
        let outcome = v1::Outcome {
            operation_id: operation_id.into(),
            error,
            explained: None,
        };
        self.say.send(message(Said::Outcome(outcome))).await.unwrap();
    }
}

fn message(kind: Said) -> v1::AgentMessage {
    v1::AgentMessage { kind: Some(kind) }
}

fn spec(name: &str) -> v1::AppSpec {
    v1::AppSpec {
        name: name.into(),
        root: "host".into(),
        command: vec!["/usr/sbin/nginx".into()],
        ports: vec!["80/tcp".into()],
        ..v1::AppSpec::default()
    }
}

fn create(name: &str, request_id: &str) -> v1::CreateAppRequest {
    v1::CreateAppRequest {
        request_id: request_id.into(),
        spec: Some(spec(name)),
        ..v1::CreateAppRequest::default()
    }
}

fn named(name: &str) -> Option<v1::AppHandle> {
    Some(v1::AppHandle {
        name: name.into(),
        ..v1::AppHandle::default()
    })
}

fn report(app: &v1::AssignedApp, state: v1::AppState) -> v1::AppReport {
    v1::AppReport {
        app_id: app.id.clone(),
        resource_version: app.resource_version,
        state: state.into(),
        reason: "as asked".into(),
        ipv4: "10.77.0.2".into(),
        ..v1::AppReport::default()
    }
}

fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .unwrap_or_default()
}

/// Waits for an operation.
async fn finished(world: &World, token: &str, id: &str) -> v1::Operation {
    let request = v1::WaitOperationRequest { id: id.into() };
    let mut operations = world.operations(token);
    let waited = tokio::time::timeout(SOON, operations.wait_operation(request)).await;
    waited.expect("the operation does not end").unwrap().into_inner()
}
