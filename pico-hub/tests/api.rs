//! The API over a real connection: who may make which call, what owners can reach, what agents are told and believed.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

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

#[tokio::test]
async fn every_call_is_made_by_its_roles_and_by_nobody_else() {
    let world = World::new().await;
    let agent = world.agent("host1").await;
    let mut callers: Vec<(Option<Role>, Option<String>)> =
        vec![(None, None), (None, Some("pico_1_2".into()))];
    for role in [Role::Admin, Role::Owner, Role::Join] {
        let owner = if role == Role::Owner { "ann" } else { "" };
        callers.push((Some(role), Some(world.token(role.to_proto(), owner).await)));
    }
    callers.push((Some(Role::Agent), Some(agent.credential.clone())));
    for (path, roles) in CALLS {
        for (role, token) in &callers {
            let mut client = tonic::client::Grpc::new(world.channel.clone());
            client.ready().await.unwrap();
            let mut request = Request::new(tokio_stream::iter([()]));
            if let Some(token) = token {
                let value = format!("Bearer {token}").parse().unwrap();
                request.metadata_mut().insert("authorization", value);
            }
            let codec = tonic_prost::ProstCodec::<(), ()>::default();
            let path_of_call = path.parse().unwrap();
            let outcome = client.streaming(request, path_of_call, codec).await;
            let code = match outcome {
                Ok(mut stream) => {
                    // A stream that follows says nothing; what matters was said before.
                    let first =
                        tokio::time::timeout(Duration::from_millis(300), stream.get_mut().message()).await;
                    first.map_or(Code::Ok, |first| {
                        first.map_or_else(|status| status.code(), |_| Code::Ok)
                    })
                }
                Err(status) => status.code(),
            };
            let allowed = role.is_some_and(|role| roles.contains(&role));
            let expected = match role {
                None => Some(Code::Unauthenticated),
                Some(_) if !allowed => Some(Code::PermissionDenied),
                Some(_) => None,
            };
            match expected {
                Some(expected) => assert_eq!(code, expected, "{path} by {role:?}"),
                None => assert!(
                    ![Code::Unauthenticated, Code::PermissionDenied, Code::Unimplemented].contains(&code),
                    "{path} by {role:?}: {code:?}"
                ),
            }
        }
    }
}

#[tokio::test]
async fn an_owner_reaches_nothing_of_another_owner() {
    let world = World::new().await;
    let (ann, bob) = (
        world.token(v1::Role::Owner, "ann").await,
        world.token(v1::Role::Owner, "bob").await,
    );
    let operation = world
        .apps(&ann)
        .create_app(create("web", ""))
        .await
        .unwrap()
        .into_inner();
    let mut theirs = world.apps(&bob);
    let by_id = v1::AppHandle {
        id: operation.app_id.clone(),
        ..v1::AppHandle::default()
    };
    let by_owner = v1::AppHandle {
        owner: "ann".into(),
        name: "web".into(),
        ..v1::AppHandle::default()
    };
    for handle in [by_id, by_owner, named("web").unwrap()] {
        let app = Some(handle);
        let missing = |outcome: Result<(), Status>| assert_eq!(outcome.unwrap_err().code(), Code::NotFound);
        missing(
            theirs
                .get_app(v1::GetAppRequest { app: app.clone() })
                .await
                .map(drop),
        );
        missing(
            theirs
                .stop_app(v1::StopAppRequest { app: app.clone() })
                .await
                .map(drop),
        );
        missing(
            theirs
                .sleep_app(v1::SleepAppRequest {
                    app: app.clone(),
                    to: 0,
                })
                .await
                .map(drop),
        );
        missing(
            theirs
                .explain_app(v1::ExplainAppRequest { app: app.clone() })
                .await
                .map(drop),
        );
        let delete = v1::DeleteAppRequest {
            app: app.clone(),
            ..v1::DeleteAppRequest::default()
        };
        missing(theirs.delete_app(delete).await.map(drop));
        let update = v1::UpdateAppRequest {
            app: app.clone(),
            spec: Some(spec("web")),
            ..v1::UpdateAppRequest::default()
        };
        missing(theirs.update_app(update).await.map(drop));
        let logs = v1::ReadLogsRequest {
            app,
            ..v1::ReadLogsRequest::default()
        };
        missing(theirs.read_logs(logs).await.map(drop));
    }
    assert!(
        theirs
            .list_apps(v1::ListAppsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .apps
            .is_empty()
    );
    let get = v1::GetOperationRequest { id: operation.id };
    assert_eq!(
        world
            .operations(&bob)
            .get_operation(get)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    let mut events = EventServiceClient::with_interceptor(world.channel.clone(), bearer(&bob));
    let past = v1::WatchEventsRequest {
        since: Some(prost_types::Timestamp::default()),
        no_follow: true,
        ..v1::WatchEventsRequest::default()
    };
    let mut stream = events.watch_events(past).await.unwrap().into_inner();
    assert!(
        stream.message().await.unwrap().is_none(),
        "an event of somebody else"
    );
    assert_eq!(
        world
            .apps(&ann)
            .list_apps(v1::ListAppsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .apps
            .len(),
        1
    );
}

#[tokio::test]
async fn the_same_request_makes_one_app_and_another_under_its_id_is_refused() {
    let world = World::new().await;
    let ann = world.token(v1::Role::Owner, "ann").await;
    let mut apps = world.apps(&ann);
    let first = apps.create_app(create("web", "r1")).await.unwrap().into_inner();
    let again = apps.create_app(create("web", "r1")).await.unwrap().into_inner();
    assert_eq!((&first.id, &first.app_id), (&again.id, &again.app_id));
    let other = apps.create_app(create("web2", "r1")).await.unwrap_err();
    assert_eq!(reason(&other), "REQUEST_ID_REUSED");
    let taken = apps.create_app(create("web", "r2")).await.unwrap_err();
    assert_eq!(
        (taken.code(), reason(&taken).as_str()),
        (Code::AlreadyExists, "NAME_TAKEN")
    );
    let mut wrong = create("Web", "");
    wrong.spec.as_mut().unwrap().ports = vec!["eighty".into()];
    let refused = apps.create_app(wrong).await.unwrap_err();
    let fields = refused.get_details_bad_request().unwrap().field_violations;
    assert_eq!(
        fields
            .iter()
            .map(|field| field.field.as_str())
            .collect::<Vec<_>>(),
        ["spec.name", "spec.ports"]
    );
    let mut only_checked = create("web3", "r3");
    only_checked.validate_only = true;
    assert!(apps.create_app(only_checked).await.unwrap().into_inner().done);
    let all = apps
        .list_apps(v1::ListAppsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .apps;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].dns_name, "web-ann.pico.test");
}

#[tokio::test]
async fn an_app_goes_to_an_agent_is_reported_named_commanded_and_deleted() {
    let world = World::new().await;
    let ann = world.token(v1::Role::Owner, "ann").await;
    let mut apps = world.apps(&ann);
    // Before there is an agent it waits for one.
    let created = apps.create_app(create("web", "")).await.unwrap().into_inner();
    let mut agent = world.agent("host1").await;
    let assigned = agent.assignment().await.apps.remove(0);
    assert_eq!(
        (assigned.label.as_str(), &assigned.operation_id),
        ("web-ann", &created.id)
    );
    agent.report(report(&assigned, v1::AppState::Hot)).await;
    agent.done(&created.id, None).await;
    assert_eq!(finished(&world, &ann, &created.id).await.error, None);
    let wait = v1::WaitAppRequest {
        app: named("web"),
        condition: v1::wait_app_request::Condition::Hot.into(),
    };
    let app = tokio::time::timeout(SOON, apps.wait_app(wait))
        .await
        .unwrap()
        .unwrap()
        .into_inner();
    assert_eq!((app.ipv4.as_str(), app.agent_connected), ("10.77.0.2", true));
    let entry = world.hub.lookup("web-ann").unwrap();
    assert_eq!(entry.ipv4, Some([10, 77, 0, 2].into()));
    assert!(world.hub.prefetch(&entry, false));
    assert!(matches!(agent.next().await.unwrap(), Heard::Prefetch(_)));

    let slept = apps
        .sleep_app(v1::SleepAppRequest {
            app: named("web"),
            to: 0,
        })
        .await
        .unwrap()
        .into_inner();
    let command = agent.command().await;
    assert_eq!(
        (command.verb(), &command.operation_id),
        (v1::command::Verb::SleepWarm, &slept.id)
    );
    let busy = v1::OperationError {
        reason: "BUSY".into(),
        message: "it is asked".into(),
        ..v1::OperationError::default()
    };
    agent.done(&slept.id, Some(busy.clone())).await;
    assert_eq!(finished(&world, &ann, &slept.id).await.error, Some(busy));

    let update = v1::UpdateAppRequest {
        app: named("web"),
        spec: Some(v1::AppSpec {
            ports: vec!["8080/tcp".into()],
            ..v1::AppSpec::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["ports".into()],
        }),
        resource_version: app.resource_version,
        ..v1::UpdateAppRequest::default()
    };
    apps.update_app(update.clone()).await.unwrap();
    let changed = agent.app().await;
    assert_eq!(changed.spec.unwrap().ports, ["8080/tcp"]);
    assert_eq!(
        reason(&apps.update_app(update).await.unwrap_err()),
        "CHANGED_MEANWHILE"
    );

    let delete = v1::DeleteAppRequest {
        app: named("web"),
        request_id: "once".into(),
        ..v1::DeleteAppRequest::default()
    };
    let deleted = apps.delete_app(delete.clone()).await.unwrap().into_inner();
    assert_eq!(agent.app().await.desired(), v1::Desired::Deleted);
    agent.done(&deleted.id, None).await;
    // What it says of others' apps, and of none, changes nothing.
    agent
        .report(v1::AppReport {
            app_id: "app-0000000000000001".into(),
            deleted: true,
            ..v1::AppReport::default()
        })
        .await;
    agent
        .report(v1::AppReport {
            deleted: true,
            ..report(&assigned, v1::AppState::Deleting)
        })
        .await;
    assert_eq!(finished(&world, &ann, &deleted.id).await.error, None);
    assert!(world.hub.lookup("web-ann").is_none());
    assert!(
        apps.list_apps(v1::ListAppsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .apps
            .is_empty()
    );
    // Whoever did not hear the answer asks again, and does not delete what has the name now.
    apps.create_app(create("web", "")).await.unwrap();
    let again = apps.delete_app(delete.clone()).await.unwrap().into_inner();
    assert_eq!((&again.id, again.done), (&deleted.id, true));
    assert!(world.hub.lookup("web-ann").is_some());
    let other = v1::DeleteAppRequest {
        app: named("another"),
        ..delete
    };
    assert_eq!(
        reason(&apps.delete_app(other).await.unwrap_err()),
        "REQUEST_ID_REUSED"
    );
}

#[tokio::test]
async fn an_agent_that_was_cut_off_finds_everything_when_it_is_back() {
    let world = World::new().await;
    let ann = world.token(v1::Role::Owner, "ann").await;
    let mut agent = world.agent("host1").await;
    agent.assignment().await;
    let mut apps = world.apps(&ann);
    let created = apps.create_app(create("web", "")).await.unwrap().into_inner();
    let assigned = agent.app().await;
    agent.report(report(&assigned, v1::AppState::Hot)).await;
    agent.done(&created.id, None).await;
    finished(&world, &ann, &created.id).await;

    // A command that it never answers fails when it is gone; what lasts is said again.
    let woken = apps
        .wake_app(v1::WakeAppRequest { app: named("web") })
        .await
        .unwrap()
        .into_inner();
    agent.command().await;
    agent.hear = None;
    agent.say = mpsc::channel(1).0;
    let lost = finished(&world, &ann, &woken.id).await.error.unwrap();
    assert_eq!((lost.reason.as_str(), lost.retryable), ("AGENT_LOST", true));
    let refused = apps
        .wake_app(v1::WakeAppRequest { app: named("web") })
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::Unavailable, "AGENT_DISCONNECTED")
    );
    let stopped = apps
        .stop_app(v1::StopAppRequest { app: named("web") })
        .await
        .unwrap()
        .into_inner();
    let other = apps.create_app(create("second", "")).await.unwrap().into_inner();

    let world = world.restart().await;
    agent.channel = world.channel.clone();
    agent.attach(vec![report(&assigned, v1::AppState::Cold)]).await;
    let mut assigned = agent.assignment().await.apps;
    assigned.sort_by_key(|app| app.label.clone());
    assert_eq!(
        assigned.iter().map(|app| &*app.label).collect::<Vec<_>>(),
        ["second-ann", "web-ann"]
    );
    assert_eq!(assigned[0].operation_id, other.id);
    assert_eq!(assigned[1].desired(), v1::Desired::Stopped);
    let command = agent.command().await;
    assert_eq!(
        (command.verb(), &command.operation_id),
        (v1::command::Verb::Stop, &stopped.id)
    );
    agent.done(&stopped.id, None).await;
    assert_eq!(finished(&world, &ann, &stopped.id).await.error, None);

    // A newer stream of the same agent ends the older one.
    let mut older = agent.hear.take().unwrap();
    agent.attach(Vec::new()).await;
    let ended = tokio::time::timeout(SOON, async {
        while older.message().await?.is_some() {}
        Ok::<_, Status>(())
    })
    .await
    .unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::Aborted);
    agent.assignment().await;
    let mut agents = AgentServiceClient::with_interceptor(world.channel.clone(), bearer(&world.admin));
    let listed = agents
        .list_agents(v1::ListAgentsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .agents;
    assert_eq!((listed.len(), listed[0].apps, listed[0].connected), (1, 2, true));
    agents
        .remove_agent(v1::RemoveAgentRequest { id: agent.id.clone() })
        .await
        .unwrap();
    let app = world
        .apps(&ann)
        .get_app(v1::GetAppRequest { app: named("second") })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((app.state(), app.agent_id.as_str()), (v1::AppState::Pending, ""));
}

#[tokio::test]
async fn a_join_token_joins_once() {
    let world = World::new().await;
    let join = world.token(v1::Role::Join, "").await;
    let mut agents = AgentServiceClient::with_interceptor(world.channel.clone(), bearer(&join));
    let both = {
        let (mut one, mut two) = (agents.clone(), agents.clone());
        let request = |name: &str| v1::JoinRequest {
            name: name.into(),
            host: None,
        };
        tokio::join!(one.join(request("a")), two.join(request("b")))
    };
    assert_eq!(
        [both.0.is_ok(), both.1.is_ok()]
            .iter()
            .filter(|joined| **joined)
            .count(),
        1
    );
    let third = agents
        .join(v1::JoinRequest {
            name: "c".into(),
            host: None,
        })
        .await
        .unwrap_err();
    assert_eq!(third.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn events_go_on_where_their_reader_left_off_over_a_restart_too() {
    let world = World::new().await;
    let ann = world.token(v1::Role::Owner, "ann").await;
    world.apps(&ann).create_app(create("one", "r")).await.unwrap();
    let follow = |world: &World, after| {
        let mut events = EventServiceClient::with_interceptor(world.channel.clone(), bearer(&ann));
        let request = v1::WatchEventsRequest {
            after,
            since: Some(prost_types::Timestamp::default()),
            ..v1::WatchEventsRequest::default()
        };
        async move { events.watch_events(request).await.unwrap().into_inner() }
    };
    let mut stream = follow(&world, 0).await;
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(
        (
            first.kind.as_str(),
            first.app_name.as_str(),
            first.request_id.as_str()
        ),
        ("app.created", "one", "r")
    );
    drop(stream);
    let world = world.restart().await;
    let mut stream = follow(&world, first.number).await;
    world.apps(&ann).create_app(create("two", "")).await.unwrap();
    let next = tokio::time::timeout(SOON, stream.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(
        (next.kind.as_str(), next.app_name.as_str()),
        ("app.created", "two")
    );
    assert!(next.number > first.number);
}

#[tokio::test]
async fn the_administrators_token_is_in_a_file_for_its_owner_alone_and_a_revoked_one_is_no_good() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new().await;
    let path = world.dir.path().join("admin.token");
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let ann = world.token(v1::Role::Owner, "ann").await;
    let mut tokens = TokenServiceClient::with_interceptor(world.channel.clone(), bearer(&world.admin));
    let all = tokens
        .list_tokens(v1::ListTokensRequest::default())
        .await
        .unwrap()
        .into_inner()
        .tokens;
    let of_ann = all.iter().find(|token| token.owner == "ann").unwrap();
    tokens
        .revoke_token(v1::RevokeTokenRequest {
            id: of_ann.id.clone(),
        })
        .await
        .unwrap();
    let refused = world
        .apps(&ann)
        .list_apps(v1::ListAppsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::Unauthenticated, "TOKEN_REVOKED")
    );
    let mine = all.iter().find(|token| token.role() == v1::Role::Admin).unwrap();
    let own = tokens
        .revoke_token(v1::RevokeTokenRequest { id: mine.id.clone() })
        .await
        .unwrap_err();
    assert_eq!(reason(&own), "OWN_TOKEN");
    let world = world.restart().await;
    assert!(
        world
            .apps(&ann)
            .list_apps(v1::ListAppsRequest::default())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn an_agent_that_takes_over_its_own_stream_leaves_no_operation_open() {
    let world = World::new().await;
    let ann = world.token(v1::Role::Owner, "ann").await;
    let mut agent = world.agent("host1").await;
    agent.assignment().await;
    let mut apps = world.apps(&ann);
    let created = apps.create_app(create("web", "")).await.unwrap().into_inner();
    let assigned = agent.app().await;
    agent.report(report(&assigned, v1::AppState::Warm)).await;
    agent.done(&created.id, None).await;
    finished(&world, &ann, &created.id).await;
    let woken = apps
        .wake_app(v1::WakeAppRequest { app: named("web") })
        .await
        .unwrap()
        .into_inner();
    agent.command().await;
    agent.attach(Vec::new()).await;
    let lost = finished(&world, &ann, &woken.id).await.error.unwrap();
    assert_eq!(lost.reason, "AGENT_LOST");
    agent.assignment().await;
    let again = apps
        .wake_app(v1::WakeAppRequest { app: named("web") })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(agent.command().await.operation_id, again.id);
}

#[tokio::test]
async fn an_agent_that_takes_no_messages_is_cut_off_and_finds_them_all_when_it_is_back() {
    const APPS: usize = 5500;
    let world = World::new().await;
    let ann = world.token(v1::Role::Owner, "ann").await;
    let mut agent = world.agent("host1").await;
    agent.assignment().await;
    // It reads nothing from here on.
    let creating = (0..64).map(|client| {
        let mut apps = world.apps(&ann);
        async move {
            for number in (client..APPS).step_by(64) {
                let mut large = create(&format!("app{number}"), "");
                let spec = large.spec.as_mut().unwrap();
                spec.env.insert("PADDING".into(), "x".repeat(4096));
                apps.create_app(large).await.unwrap();
            }
        }
    });
    futures_util::future::join_all(creating).await;
    let woken = world
        .apps(&ann)
        .wake_app(v1::WakeAppRequest { app: named("app0") })
        .await;
    assert_eq!(reason(&woken.unwrap_err()), "AGENT_DISCONNECTED");
    let mut hear = agent.hear.take().unwrap();
    let ended = tokio::time::timeout(SOON, async { while let Ok(Some(_)) = hear.message().await {} });
    ended.await.expect("its stream goes on though it is cut off");
    agent.attach(Vec::new()).await;
    let mut told = 0;
    loop {
        let assignment = agent.assignment().await;
        told += assignment.apps.len();
        if !assignment.more {
            break;
        }
    }
    assert_eq!(told, APPS);
}
