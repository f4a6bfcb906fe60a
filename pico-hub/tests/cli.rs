//! `pico` as a program: what it prints, where, and with which exit code. The hub is one in this test that speaks the API.
#![allow(clippy::unwrap_used, reason = "a test dies of what it could report")]

use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use pico_proto::v1;
use pico_proto::v1::app_service_server::{AppService, AppServiceServer};
use pico_proto::v1::operation_service_server::{OperationService, OperationServiceServer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

/// Knows the app `web`, which is hot, and `zzz`, which sleeps. Its operations are done when they are waited for; that
/// of `slow` never is, and that of `broken` fails.
#[derive(Clone, Default)]
struct Hub(Arc<Mutex<Vec<String>>>);

impl Hub {
    fn note(&self, call: impl Into<String>) {
        self.0.lock().unwrap().push(call.into());
    }

    fn app(&self, handle: Option<v1::AppHandle>) -> Result<v1::App, Status> {
        let name = handle.unwrap_or_default().name;
        let state = match name.as_str() {
            "web" => v1::AppState::Hot,
            "zzz" | "slow" | "broken" => v1::AppState::Warm,
            name => return Err(Status::not_found(format!("there is no app '{name}'"))),
        };
        Ok(v1::App {
            id: format!("id-{name}"),
            owner: "ann".into(),
            state: state.into(),
            reason: "because".into(),
            resource_version: 9,
            spec: Some(v1::AppSpec {
                root: "host".into(),
                command: vec!["true".into()],
                name,
                ..v1::AppSpec::default()
            }),
            ..v1::App::default()
        })
    }

    fn begin(&self, handle: Option<v1::AppHandle>, verb: &str) -> Answer<v1::Operation> {
        let app = self.app(handle)?;
        self.note(format!("{verb} {}", app.id));
        Ok(Response::new(v1::Operation {
            id: format!("op-{}", app.id),
            verb: verb.into(),
            ..v1::Operation::default()
        }))
    }
}

#[tonic::async_trait]
impl AppService for Hub {
    type ReadLogsStream = Answers<v1::LogLine>;
    type ExecStream = Answers<v1::ExecResponse>;

    async fn create_app(&self, request: Request<v1::CreateAppRequest>) -> Answer<v1::Operation> {
        let token = request.metadata().get("authorization").cloned();
        if token.is_none_or(|token| token != "Bearer good") {
            return Err(Status::unauthenticated("this token is not known"));
        }
        let request = request.into_inner();
        let spec = request.spec.unwrap();
        self.note(format!(
            "create {} {:?} {}",
            spec.name, spec.command, request.validate_only
        ));
        Ok(Response::new(v1::Operation {
            id: "op-new".into(),
            verb: "create".into(),
            done: true,
            ..v1::Operation::default()
        }))
    }
    async fn get_app(&self, request: Request<v1::GetAppRequest>) -> Answer<v1::App> {
        self.app(request.into_inner().app).map(Response::new)
    }
    async fn list_apps(&self, request: Request<v1::ListAppsRequest>) -> Answer<v1::ListAppsResponse> {
        // Two pages.
        let (name, next) = match request.get_ref().page_token.as_str() {
            "" => ("web", "2"),
            _ => ("zzz", ""),
        };
        let handle = v1::AppHandle {
            name: name.into(),
            ..v1::AppHandle::default()
        };
        Ok(Response::new(v1::ListAppsResponse {
            apps: vec![self.app(Some(handle))?],
            next_page_token: next.into(),
        }))
    }
    async fn update_app(&self, request: Request<v1::UpdateAppRequest>) -> Answer<v1::Operation> {
        let request = request.into_inner();
        let mask = request.update_mask.unwrap_or_default().paths;
        self.note(format!("update {mask:?} at {}", request.resource_version));
        self.begin(request.app, "update")
    }
    async fn delete_app(&self, request: Request<v1::DeleteAppRequest>) -> Answer<v1::Operation> {
        self.begin(request.into_inner().app, "delete")
    }
    async fn start_app(&self, request: Request<v1::StartAppRequest>) -> Answer<v1::Operation> {
        self.begin(request.into_inner().app, "start")
    }
    async fn stop_app(&self, request: Request<v1::StopAppRequest>) -> Answer<v1::Operation> {
        self.begin(request.into_inner().app, "stop")
    }
    async fn restart_app(&self, request: Request<v1::RestartAppRequest>) -> Answer<v1::Operation> {
        self.begin(request.into_inner().app, "restart")
    }
    async fn sleep_app(&self, request: Request<v1::SleepAppRequest>) -> Answer<v1::Operation> {
        let to = request.get_ref().to().as_str_name();
        self.note(to);
        self.begin(request.into_inner().app, "sleep")
    }
    async fn wake_app(&self, request: Request<v1::WakeAppRequest>) -> Answer<v1::Operation> {
        self.begin(request.into_inner().app, "wake")
    }
    async fn wait_app(&self, request: Request<v1::WaitAppRequest>) -> Answer<v1::App> {
        let app = self.app(request.into_inner().app)?;
        match app.id.as_str() {
            "id-slow" => std::future::pending().await,
            _ => Ok(Response::new(app)),
        }
    }
    async fn explain_app(&self, request: Request<v1::ExplainAppRequest>) -> Answer<v1::ExplainAppResponse> {
        Ok(Response::new(v1::ExplainAppResponse {
            app: Some(self.app(request.into_inner().app)?),
            next: "sleeps in 8s".into(),
            facts: Vec::new(),
        }))
    }
    async fn read_logs(&self, _: Request<v1::ReadLogsRequest>) -> Answer<Self::ReadLogsStream> {
        let line = |stream: &str, text: &[u8]| {
            Ok(v1::LogLine {
                at: None,
                stream: stream.into(),
                text: text.to_vec(),
            })
        };
        let lines = [line("stdout", b"out\xff"), line("stderr", b"err")];
        Ok(Response::new(Box::pin(tokio_stream::iter(lines))))
    }
    /// Gives its input back, and ends with the status that the command names.
    async fn exec(&self, request: Request<Streaming<v1::ExecRequest>>) -> Answer<Self::ExecStream> {
        use v1::exec_request::Kind;
        use v1::exec_response::Kind as Out;
        let mut input = request.into_inner();
        let Some(Kind::Start(start)) = input.message().await?.unwrap().kind else {
            return Err(Status::invalid_argument("no start"));
        };
        let status = start.command[0].parse().unwrap();
        let mut given = Vec::new();
        while let Some(message) = input.message().await? {
            match message.kind {
                Some(Kind::Stdin(bytes)) => given.extend(bytes),
                _ => break,
            }
        }
        let out = [
            Out::Stdout(given),
            Out::Stderr(b"!".to_vec()),
            Out::ExitStatus(status),
        ];
        let out = out.map(|kind| Ok(v1::ExecResponse { kind: Some(kind) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(out))))
    }
}

#[tonic::async_trait]
impl OperationService for Hub {
    async fn get_operation(&self, request: Request<v1::GetOperationRequest>) -> Answer<v1::Operation> {
        Ok(Response::new(v1::Operation {
            id: request.into_inner().id,
            verb: "wake".into(),
            ..v1::Operation::default()
        }))
    }
    async fn wait_operation(&self, request: Request<v1::WaitOperationRequest>) -> Answer<v1::Operation> {
        let id = request.into_inner().id;
        if id == "op-id-slow" {
            std::future::pending::<()>().await;
        }
        let error = (id == "op-id-broken").then(|| v1::OperationError {
            reason: "RESTORE_FAILED".into(),
            message: "CRIU could not".into(),
            hint: "pico app logs broken".into(),
            retryable: true,
        });
        Ok(Response::new(v1::Operation {
            id,
            verb: "wake".into(),
            done: true,
            error,
            ..v1::Operation::default()
        }))
    }
}

struct Running {
    hub: Hub,
    address: SocketAddr,
}

async fn start() -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (hub, address) = (Hub::default(), listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder()
        .add_service(AppServiceServer::new(hub.clone()))
        .add_service(OperationServiceServer::new(hub.clone()))
        .serve_with_incoming(TcpListenerStream::new(listener).map(|stream| stream));
    tokio::spawn(server);
    Running { hub, address }
}

impl Running {
    async fn pico(&self, line: &str) -> Output {
        self.pico_fed(line, b"").await
    }

    async fn pico_fed(&self, line: &str, input: &[u8]) -> Output {
        let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_pico"))
            .args(line.split_whitespace())
            .env_clear()
            .env("PICO_HUB", format!("http://{}", self.address))
            .env("PICO_TOKEN", "good")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that reads nothing may be gone already.
        let _ = stdin.write_all(input).await;
        drop(stdin);
        child.wait_with_output().await.unwrap()
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.hub.0.lock().unwrap())
    }
}

fn out(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_are_those_of_the_table() {
    let hub = start().await;
    for (line, code) in [
        ("app show web", 0),
        ("app status web", 0),
        ("app status zzz", 3),
        ("app show none", 4),
        ("app wake web", 0),
        ("app wake broken", 171),
        ("app wake slow --wait-timeout 200ms", 124),
        ("app wait slow --wait-timeout 200ms", 124),
        ("app wake slow --detach", 0),
        ("app sleep web --to dozing", 7),
        ("app sleep web --to nowhere", 2),
        ("app nonsense", 2),
        ("app show web db", 2),
        ("app delete web", 2),
        ("app delete web --yes", 0),
        ("app list --hub http://127.0.0.1:1", 6),
        ("app list --hub nonsense", 2),
        ("app create new --root host --token-file /dev/null -- true", 5),
        ("token whoami", 7),
        ("version", 0),
        ("config show --origin", 0),
        ("completion bash", 0),
        ("help app create", 0),
        ("app create --help", 0),
    ] {
        let (exit, stdout, stderr) = out(&hub.pico(line).await);
        assert_eq!(exit, code, "pico {line}\n{stdout}\n{stderr}");
        assert_eq!(
            stderr.starts_with("Error: ") || stderr.starts_with("error: "),
            code != 0 && code != 3,
            "pico {line}\n{stderr}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_one_line_for_people_and_one_document_for_programs() {
    let hub = start().await;
    let (_, stdout, stderr) = out(&hub.pico("app wake broken").await);
    assert_eq!(
        (stdout.as_str(), stderr.as_str()),
        ("", "Error: CRIU could not; try: pico app logs broken\n")
    );
    for (line, code) in [
        ("-j app wake broken", "RESTORE_FAILED"),
        ("-j app show none", "NOT_FOUND"),
        ("-j app nonsense", "USAGE"),
    ] {
        let (_, stdout, stderr) = out(&hub.pico(line).await);
        let document: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(
            (document["schema"].as_str(), document["error"]["code"].as_str()),
            (Some("pico.v1"), Some(code))
        );
        assert_eq!(stderr, "", "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_reaches_the_hub() {
    let hub = start().await;
    let create = "app create new --root host --port 80/tcp -- nginx -g x";
    assert_eq!(out(&hub.pico(create).await).0, 0);
    assert_eq!(hub.calls(), ["create new [\"nginx\", \"-g\", \"x\"] false"]);
    hub.pico("app update web --memory 64M --idle never").await;
    assert_eq!(
        hub.calls(),
        ["update [\"memory_bytes\", \"idle\"] at 0", "update id-web"]
    );
    hub.pico("app sleep web --to cold").await;
    assert_eq!(hub.calls(), ["APP_STATE_COLD", "sleep id-web"]);
    // Words by unique beginnings; ambiguous ones are refused.
    hub.pico("app rest web").await;
    assert_eq!(hub.calls(), ["restart id-web"]);
    assert_eq!(out(&hub.pico("app sta web").await).0, 2);
    assert_eq!(out(&hub.pico("-q app ls").await).1, "web\nzzz\n", "all pages");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_registers_changes_or_leaves_and_a_dry_run_tells_which() {
    let hub = start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("app.toml");
    for (name, root, dry, (exit, text), calls) in [
        (
            "new",
            "host",
            true,
            (1, "new: would create\n"),
            &["create new [\"true\"] true"][..],
        ),
        (
            "new",
            "host",
            false,
            (0, "new: create done\n"),
            &["create new [\"true\"] false"],
        ),
        ("web", "host", true, (0, "web: nothing changes\n"), &[]),
        (
            "web",
            "/srv",
            true,
            (1, "web: would update\n"),
            &["update [] at 9", "update id-web"],
        ),
    ] {
        std::fs::write(
            &file,
            format!("name = \"{name}\"\nroot = \"{root}\"\ncommand = [\"true\"]\n"),
        )
        .unwrap();
        let dry = if dry { "--dry-run" } else { "" };
        let (code, stdout, stderr) = out(&hub.pico(&format!("apply -f {} {dry}", file.display())).await);
        assert_eq!((code, stdout.as_str()), (exit, text), "{stderr}");
        assert_eq!(hub.calls(), calls);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_and_commands_keep_bytes_streams_and_status() {
    let hub = start().await;
    let output = hub.pico("app logs web").await;
    assert_eq!(
        (&output.stdout[..], &output.stderr[..]),
        (&b"out\xff\n"[..], &b"err\n"[..])
    );
    let (_, stdout, _) = out(&hub.pico("-j app logs web").await);
    let document: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(document["lines"][1]["text"], "err");
    let input = vec![0xfe; 200_000];
    let output = hub.pico_fed("app exec web -- 137", &input).await;
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(137), &b"!"[..]));
    assert_eq!(output.stdout, input);
}
