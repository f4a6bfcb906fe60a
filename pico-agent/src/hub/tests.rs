//! The link against a hub of the test's own, over a real socket, with apps that only remember what was asked of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pico_proto::v1;
use pico_proto::v1::agent_message::Kind as Said;
use pico_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use pico_proto::v1::hub_message::Kind as Heard;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

use super::link::{HostFacts, LinkConfig, keep};
use super::*;
use crate::address::Addresses;
use crate::control::protocol::{AgentStatus, AppSummary, ErrorCode, Explanation, Fact, Policy};
use crate::lifecycle::record::Counters;
use crate::lifecycle::registration::VERSION;
use crate::lifecycle::state::Tier;
use crate::units::{Timestamp, Wait};

const PATIENCE: Duration = Duration::from_secs(20);

/// Apps that do nothing but remember.
#[derive(Default)]
struct Fake {
    apps: Mutex<BTreeMap<String, Registration>>,
    asked: Mutex<Vec<String>>,
    changes: Arc<Changes>,
    logs: PathBuf,
}

impl Fake {
    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn did(&self, what: &str, name: &str) -> Result<AppSummary, Failure> {
        self.note(format!("{what} {name}"));
        match what {
            "wake" => Err(Failure::new(ErrorCode::RestoreFailed, "no").hint("look")),
            _ => Ok(detail(name).summary),
        }
    }
}

fn detail(name: &str) -> AppDetail {
    let at = Timestamp::from_micros(1);
    AppDetail {
        summary: AppSummary {
            name: name.to_owned(),
            state: "hot".to_owned(),
            since: at,
            reason: "started".to_owned(),
            addresses: Addresses {
                v4: [10, 77, 0, 2].into(),
                v6: "fd77::2".parse().unwrap(),
            },
            ports: Vec::new(),
            pid: None,
            memory_bytes: None,
            checkpoint: None,
        },
        next: String::new(),
        policy: Policy {
            idle: Wait::Never,
            cold_after: Wait::Never,
            restart: crate::config::Restart::Never,
            after_crash: crate::config::AfterCrash::Fresh,
        },
        command: Vec::new(),
        counters: Counters::default(),
        last_wake: None,
        page_faults: 0,
        active_sets: Vec::new(),
        last_failure: None,
        last_exit: None,
        created: at,
    }
}

impl Handler for Fake {
    async fn list(&self) -> Vec<AppSummary> {
        Vec::new()
    }
    async fn show(&self, name: &str) -> Result<AppDetail, Failure> {
        Ok(detail(name))
    }
    async fn explain(&self, name: &str) -> Result<Explanation, Failure> {
        if name.starts_with("no-such") {
            return Err(Failure::no_such_app(name, []));
        }
        Ok(Explanation {
            app: self.show(name).await?.summary,
            next: "sleeps soon".to_owned(),
            facts: vec![Fact {
                subject: "last packet".to_owned(),
                text: "none".to_owned(),
            }],
        })
    }
    async fn start(&self, name: &str) -> Result<AppSummary, Failure> {
        self.did("start", name)
    }
    async fn stop(&self, name: &str) -> Result<AppSummary, Failure> {
        self.did("stop", name)
    }
    async fn restart(&self, name: &str) -> Result<AppSummary, Failure> {
        self.did("restart", name)
    }
    async fn sleep(&self, name: &str, to: Tier, _wait: bool) -> Result<AppSummary, Failure> {
        // As long as a real one: the answer comes later than what follows it.
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.did(&format!("sleep-{to}"), name)
    }
    async fn wake(&self, name: &str) -> Result<AppSummary, Failure> {
        self.did("wake", name)
    }
    async fn log_dir(&self, _name: &str) -> Result<PathBuf, Failure> {
        Ok(self.logs.clone())
    }
    async fn status(&self) -> AgentStatus {
        AgentStatus {
            version: String::new(),
            protocol: 1,
            pid: 0,
            since: Timestamp::from_micros(1),
            state_dir: String::new(),
            memory_bytes: None,
            apps: BTreeMap::new(),
        }
    }
}

impl Apps for Fake {
    fn name_of(&self, id: &str) -> Option<String> {
        let apps = self.apps.lock().unwrap();
        apps.values()
            .find(|app| app.id == id)
            .map(|app| app.config.name.clone())
    }
    fn registered(&self) -> Vec<String> {
        self.apps.lock().unwrap().keys().cloned().collect()
    }
    fn look_up(&self, name: &str) -> Option<Registered> {
        let registration = self.apps.lock().unwrap().get(name)?.clone();
        Some(Registered {
            registration,
            detail: detail(name),
        })
    }
    async fn register(&self, wanted: Wanted) -> Result<Applying, Failure> {
        let name = wanted.config.name.clone();
        self.note(format!("{:?} {name} {}", wanted.desired, wanted.resource_version));
        let mut apps = self.apps.lock().unwrap();
        if wanted.desired == Desired::Deleted {
            apps.remove(&name);
        } else {
            let registration = Registration {
                version: VERSION,
                id: wanted.id,
                owner: wanted.owner,
                resource_version: wanted.resource_version,
                applied: wanted.resource_version,
                desired: wanted.desired,
                due: None,
                config: wanted.config,
            };
            apps.insert(name.clone(), registration);
        }
        self.changes.mark(&name);
        Ok(Box::pin(async { Ok(()) }))
    }
    fn prefetch(&self, name: &str, wake: bool) {
        self.note(format!("prefetch {name} {wake}"));
    }
    async fn exec(&self, name: &str, exec: Exec) -> Result<Running, Failure> {
        self.note(format!("exec {name} as {:?} in {:?}", exec.user, exec.workdir));
        let mut program = tokio::process::Command::new(&exec.command[0]);
        Ok(Running::spawn(program.args(&exec.command[1..]).envs(exec.env)).unwrap())
    }
    fn changes(&self) -> Arc<Changes> {
        self.changes.clone()
    }
}

/// One stream as the hub has it.
struct Stream1 {
    token: String,
    say: mpsc::Sender<Result<v1::HubMessage, Status>>,
    heard: Streaming<v1::AgentMessage>,
}

impl Stream1 {
    async fn say(&self, kind: Heard) {
        let _ = self.say.send(Ok(v1::HubMessage { kind: Some(kind) })).await;
    }

    async fn assign(&self, apps: Vec<v1::AssignedApp>) {
        self.say(Heard::Assignment(v1::Assignment {
            more: false,
            apps,
            heartbeat_seconds: 1,
        }))
        .await;
    }

    /// The next message that `wanted` takes something from; others are passed over.
    async fn next<T>(&mut self, wanted: impl Fn(Said) -> Option<T>) -> T {
        let find = async {
            loop {
                let message = self.heard.message().await.unwrap().expect("the stream ended");
                if let Some(found) = message.kind.and_then(&wanted) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, find)
            .await
            .expect("it was not said")
    }

    async fn outcome(&mut self) -> v1::Outcome {
        self.next(|said| match said {
            Said::Outcome(outcome) => Some(outcome),
            _ => None,
        })
        .await
    }
}

struct Hub {
    streams: mpsc::Sender<Stream1>,
}

#[tonic::async_trait]
impl AgentService for Hub {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        match request.metadata().get("authorization") {
            Some(token) if token == "Bearer once" => Ok(Response::new(v1::JoinResponse {
                agent_id: "agent-1".to_owned(),
                credential: "secret".to_owned(),
            })),
            _ => Err(Status::unauthenticated("who is this?")),
        }
    }

    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::HubMessage, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let token = request
            .metadata()
            .get("authorization")
            .and_then(|token| token.to_str().ok());
        let (say, said) = mpsc::channel(16);
        let stream = Stream1 {
            token: token.unwrap_or_default().to_owned(),
            say,
            heard: request.into_inner(),
        };
        let _ = self.streams.send(stream).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(said))))
    }

    async fn list_agents(
        &self,
        _: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn remove_agent(
        &self,
        _: Request<v1::RemoveAgentRequest>,
    ) -> Result<Response<v1::RemoveAgentResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// A hub, a link to it, and the apps behind the link.
struct World {
    dir: tempfile::TempDir,
    streams: mpsc::Receiver<Stream1>,
    apps: Arc<Fake>,
    _stop: DropGuard,
}

impl World {
    async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let (sender, streams) = mpsc::channel(4);
        let listener = UnixListener::bind(dir.path().join("hub.sock")).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(AgentServiceServer::new(Hub { streams: sender }))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(server);
        std::fs::write(dir.path().join("token"), "once\n").unwrap();
        let apps = Arc::new(Fake {
            logs: dir.path().to_owned(),
            ..Fake::default()
        });
        let stop = CancellationToken::new();
        tokio::spawn(keep(config(dir.path()), apps.clone(), stop.clone()));
        World {
            dir,
            streams,
            apps,
            _stop: stop.drop_guard(),
        }
    }

    /// The next stream, and what was said first on it.
    async fn stream(&mut self) -> (Stream1, v1::Hello) {
        let next = tokio::time::timeout(PATIENCE, self.streams.recv()).await;
        let mut stream = next.expect("it does not connect").unwrap();
        let hello = stream
            .next(|said| match said {
                Said::Hello(hello) => Some(hello),
                _ => None,
            })
            .await;
        (stream, hello)
    }
}

fn config(dir: &Path) -> LinkConfig {
    let hub = format!(
        "address = 'unix:{0}/hub.sock'\njoin_token_file = '{0}/token'\nroots = ['host']",
        dir.display()
    );
    LinkConfig {
        hub: toml::from_str(&hub).unwrap(),
        state_dir: dir.to_owned(),
        has_store: true,
        facts: HostFacts {
            criu: "4.2".to_owned(),
            subnets: ("10.77.0.0/16".to_owned(), "fd77::/64".to_owned()),
        },
    }
}

fn app(name: &str, resource_version: u64) -> v1::AssignedApp {
    v1::AssignedApp {
        id: format!("id-{name}"),
        label: format!("{name}-ann"),
        owner: "ann".to_owned(),
        spec: Some(v1::AppSpec {
            name: name.to_owned(),
            root: "host".to_owned(),
            command: vec!["/bin/sh".to_owned()],
            ..v1::AppSpec::default()
        }),
        resource_version,
        desired: v1::Desired::Running.into(),
        operation_id: format!("op-{name}-{resource_version}"),
    }
}

fn command(operation: &str, app: &str, verb: v1::command::Verb) -> Heard {
    Heard::Command(v1::Command {
        operation_id: operation.to_owned(),
        app_id: format!("id-{app}"),
        verb: verb.into(),
    })
}

#[tokio::test]
async fn why_an_app_is_as_it_is_is_told_to_the_hub() {
    let mut world = World::new().await;
    let (mut stream, _) = world.stream().await;
    stream.assign(vec![app("web", 1)]).await;
    stream.outcome().await;
    stream
        .say(command("why", "web", v1::command::Verb::Explain))
        .await;
    let told = stream.outcome().await;
    assert_eq!((told.operation_id.as_str(), &told.error), ("why", &None));
    let explained = told.explained.unwrap();
    assert_eq!(explained.next, "sleeps soon");
    assert_eq!(explained.facts[0].subject, "last packet");
    stream
        .say(command("lost", "no-such", v1::command::Verb::Explain))
        .await;
    let told = stream.outcome().await;
    assert_eq!(
        (told.error.unwrap().reason.as_str(), told.explained),
        ("NOT_FOUND", None)
    );
}

#[tokio::test]
async fn it_joins_once_and_then_comes_by_its_own_credential_again_and_again() {
    let mut world = World::new().await;
    for _ in 0..3 {
        let (stream, hello) = world.stream().await;
        assert_eq!(stream.token, "Bearer secret");
        assert_eq!(hello.host.unwrap().criu, "4.2");
        stream.assign(vec![]).await;
        // The token is good for one join: a second one would fail.
        std::fs::write(world.dir.path().join("token"), "spent").unwrap();
    }
}

#[tokio::test]
async fn what_the_hub_assigns_is_registered_reported_and_answered_and_known_after_a_break() {
    let mut world = World::new().await;
    let (mut stream, hello) = world.stream().await;
    assert!(hello.apps.is_empty());
    stream.assign(vec![app("web", 1)]).await;
    let report = stream
        .next(|said| match said {
            Said::Report(report) => Some(report),
            _ => None,
        })
        .await;
    assert_eq!((report.app_id.as_str(), report.resource_version), ("id-web", 1));
    assert_eq!(report.state(), v1::AppState::Hot);
    let outcome = stream.outcome().await;
    assert_eq!((outcome.operation_id.as_str(), outcome.error), ("op-web-1", None));

    drop(stream);
    let (mut stream, hello) = world.stream().await;
    assert_eq!(hello.apps.len(), 1);
    // Not among the assigned ones: without a tombstone nothing happens to it.
    stream.assign(vec![]).await;
    stream.say(command("op-2", "web", v1::command::Verb::Stop)).await;
    assert_eq!(stream.outcome().await.error, None);
    assert_eq!(world.apps.asked(), ["Running web-ann 1", "stop web-ann"]);
}

#[tokio::test]
async fn a_tombstone_is_answered_by_gone_whether_the_app_was_here_or_not() {
    let mut world = World::new().await;
    let (mut stream, _) = world.stream().await;
    stream.assign(vec![app("web", 1)]).await;
    stream.outcome().await;
    for name in ["web", "never-here"] {
        let tombstone = v1::AssignedApp {
            desired: v1::Desired::Deleted.into(),
            // The files that it ran from may be gone.
            spec: None,
            ..app(name, 2)
        };
        stream.say(Heard::App(tombstone)).await;
        let gone = stream
            .next(|said| match said {
                Said::Report(report) if report.deleted => Some(report.app_id),
                _ => None,
            })
            .await;
        assert_eq!(gone, format!("id-{name}"));
        assert_eq!(stream.outcome().await.error, None);
    }
    assert!(world.apps.registered().is_empty());
}

#[tokio::test]
async fn commands_reach_an_app_in_order_and_each_is_answered_with_what_became_of_it() {
    let mut world = World::new().await;
    let (mut stream, _) = world.stream().await;
    stream.assign(vec![app("web", 1)]).await;
    stream.outcome().await;
    stream
        .say(command("slow", "web", v1::command::Verb::SleepCold))
        .await;
    stream.say(command("bad", "web", v1::command::Verb::Wake)).await;
    stream
        .say(command("lost", "no-such", v1::command::Verb::Wake))
        .await;
    let mut outcomes = BTreeMap::new();
    for _ in 0..3 {
        let outcome = stream.outcome().await;
        outcomes.insert(outcome.operation_id.clone(), outcome.error);
    }
    assert_eq!(outcomes["slow"], None);
    let bad = outcomes["bad"].clone().unwrap();
    assert_eq!(
        (bad.reason.as_str(), bad.hint.as_str()),
        ("RESTORE_FAILED", "look")
    );
    assert_eq!(outcomes["lost"].clone().unwrap().reason, "NOT_FOUND");
    stream
        .say(Heard::Prefetch(v1::Prefetch {
            app_id: "id-web".to_owned(),
            wake: true,
        }))
        .await;
    stream.say(command("last", "web", v1::command::Verb::Start)).await;
    stream.outcome().await;
    let asked = world.apps.asked();
    assert!(asked.contains(&"prefetch web-ann true".to_owned()), "{asked:?}");
}

#[tokio::test]
async fn what_no_hub_should_send_changes_nothing_and_is_answered() {
    let mut world = World::new().await;
    let (mut stream, _) = world.stream().await;
    stream.assign(vec![]).await;
    let spec = |change: fn(&mut v1::AppSpec)| {
        let mut bad = app("web", 1);
        change(bad.spec.as_mut().unwrap());
        bad
    };
    let mut long_id = app("web", 1);
    long_id.id = "x".repeat(10_000);
    let mut path = app("web", 1);
    path.label = "../../etc".to_owned();
    for (bad, reason) in [
        (spec(|spec| spec.root = "/etc".to_owned()), "CONFIG"),
        (spec(|spec| spec.command.clear()), "CONFIG"),
        (
            spec(|spec| spec.command = vec!["/bin/sh".to_owned(); 100_000]),
            "CONFIG",
        ),
        (long_id, "USAGE"),
        (path, "CONFIG"),
    ] {
        stream.say(Heard::App(bad)).await;
        let error = stream.outcome().await.error.unwrap();
        assert_eq!(error.reason, reason, "{error:?}");
    }
    stream.say(Heard::Stream(v1::StreamData::default())).await;
    stream.say(command("", "web", v1::command::Verb::Wake)).await;
    stream.say(Heard::App(app("web", 1))).await;
    assert_eq!(stream.outcome().await.error, None);
    assert_eq!(world.apps.asked(), ["Running web-ann 1"]);
}

#[tokio::test]
async fn logs_come_as_they_are_written_until_the_hub_has_seen_enough() {
    let mut world = World::new().await;
    let (mut stream, _) = world.stream().await;
    stream.assign(vec![app("web", 1)]).await;
    stream.outcome().await;
    let log = world.dir.path().join("stdout.log");
    std::fs::write(&log, "2026-01-01T00:00:00.000000Z one\n").unwrap();
    let request = v1::ReadLogsRequest {
        follow: true,
        ..v1::ReadLogsRequest::default()
    };
    let open = |stream_id, app: &str| {
        Heard::Open(v1::OpenStream {
            stream_id,
            app_id: format!("id-{app}"),
            kind: Some(v1::open_stream::Kind::Logs(request.clone())),
        })
    };
    let data = |said| match said {
        Said::Stream(data) => Some(data),
        _ => None,
    };
    let line = |data: v1::StreamData| match data.kind {
        Some(v1::stream_data::Kind::Line(line)) => String::from_utf8(line.text).unwrap(),
        other => panic!("{other:?}"),
    };
    stream.say(open(7, "web")).await;
    assert_eq!(line(stream.next(data).await), "one");
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::write(&log, format!("{text}2026-01-01T00:00:01.000000Z two\n")).unwrap();
    assert_eq!(line(stream.next(data).await), "two");
    stream.say(open(8, "no-such")).await;
    let end = stream.next(data).await;
    assert_eq!(end.stream_id, 8);
    assert!(matches!(
        end.kind,
        Some(v1::stream_data::Kind::End(v1::StreamEnd { error: Some(_) }))
    ));
    stream
        .say(Heard::Stream(v1::StreamData {
            stream_id: 7,
            kind: Some(v1::stream_data::Kind::End(v1::StreamEnd { error: None })),
        }))
        .await;
}

#[tokio::test]
async fn a_command_reads_and_prints_through_the_hub_no_faster_than_both_ends_take() {
    use v1::exec_request::Kind as Input;
    use v1::exec_response::Kind as Output;
    use v1::stream_data::Kind as Data;
    let mut world = World::new().await;
    let (mut stream, _) = world.stream().await;
    stream.assign(vec![app("web", 1)]).await;
    stream.outcome().await;
    let say = |kind| {
        Heard::Stream(v1::StreamData {
            stream_id: 3,
            kind: Some(kind),
        })
    };
    let start = v1::exec_request::Start {
        command: ["sh", "-c", "echo $A >&2; cat; exit 7"]
            .map(str::to_owned)
            .to_vec(),
        env: [("A".to_owned(), "b c".to_owned())].into(),
        user: "33".to_owned(),
        ..Default::default()
    };
    stream
        .say(Heard::Open(v1::OpenStream {
            stream_id: 3,
            app_id: "id-web".to_owned(),
            kind: Some(v1::open_stream::Kind::Exec(start)),
        }))
        .await;
    let input = |kind| say(Data::ExecInput(v1::ExecRequest { kind: Some(kind) }));
    // More pieces than the window holds: each is sent when an earlier one was taken.
    let pieces = 3 * pico_proto::STREAM_WINDOW;
    let (mut room, mut sent) = (pico_proto::STREAM_WINDOW, 0);
    let (mut out, mut err, mut status) = (Vec::new(), Vec::new(), None);
    loop {
        while room > 0 && sent <= pieces {
            let piece = match sent {
                last if last == pieces => Input::StdinClosed(true),
                _ => Input::Stdin(vec![b'x'; 1000]),
            };
            stream.say(input(piece)).await;
            (room, sent) = (room - 1, sent + 1);
        }
        let heard = stream.next(|said| match said {
            Said::Stream(data) => data.kind,
            _ => None,
        });
        let output = match heard.await {
            Data::Taken(count) => {
                room += count as usize;
                continue;
            }
            Data::ExecOutput(output) => output.kind.unwrap(),
            Data::End(end) => {
                assert_eq!(end.error, None);
                break;
            }
            other => panic!("{other:?}"),
        };
        stream.say(say(Data::Taken(1))).await;
        match output {
            Output::Stdout(bytes) => out.extend(bytes),
            Output::Stderr(bytes) => err.extend(bytes),
            Output::ExitStatus(code) => status = Some(code),
        }
    }
    assert_eq!(
        (out.len(), err.as_slice(), status),
        (pieces * 1000, &b"b c\n"[..], Some(7))
    );
    assert!(
        world
            .apps
            .asked()
            .contains(&"exec web-ann as Some(\"33\") in None".to_owned())
    );
}

#[tokio::test]
async fn output_that_the_hub_does_not_take_stays_with_the_command() {
    use v1::stream_data::Kind as Data;
    let mut world = World::new().await;
    let (mut stream, _) = world.stream().await;
    stream.assign(vec![app("web", 1)]).await;
    stream.outcome().await;
    let start = v1::exec_request::Start {
        command: vec!["yes".to_owned()],
        ..Default::default()
    };
    stream
        .say(Heard::Open(v1::OpenStream {
            stream_id: 4,
            app_id: "id-web".to_owned(),
            kind: Some(v1::open_stream::Kind::Exec(start)),
        }))
        .await;
    for _ in 0..pico_proto::STREAM_WINDOW {
        stream
            .next(|said| match said {
                Said::Stream(data) => data.kind.filter(|kind| matches!(kind, Data::ExecOutput(_))),
                _ => None,
            })
            .await;
    }
    // What comes next is a heartbeat and no output.
    let next = stream.next(|said| match said {
        Said::Stream(_) => Some("output"),
        Said::Heartbeat(_) => Some("heartbeat"),
        _ => None,
    });
    assert_eq!(next.await, "heartbeat");
}
