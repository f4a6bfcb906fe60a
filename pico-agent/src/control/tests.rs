//! The control socket between a client and a server with a handler of its own.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::client::{Client, ClientError};
use super::lock::{AgentLock, LockError};
use super::protocol::*;
use super::server::{Handler, Limits, Server};
use crate::addresses::Addresses;
use crate::lifecycle::state::Tier;
use crate::logs::{LogWriter, Stream};
use crate::units::Timestamp;

struct OneApp {
    logs: PathBuf,
}

fn web(state: &str) -> AppSummary {
    AppSummary {
        name: "web".to_owned(),
        state: state.to_owned(),
        since: Timestamp::from_micros(1),
        reason: "test".to_owned(),
        addresses: Addresses {
            v4: [10, 77, 0, 5].into(),
            v6: "fd77::5".parse().unwrap(),
        },
        ports: vec!["80/tcp".parse().unwrap()],
        pid: None,
        memory_bytes: None,
        checkpoint: None,
    }
}

fn only_web(name: &str, state: &str) -> Result<AppSummary, Failure> {
    if name == "web" {
        Ok(web(state))
    } else {
        Err(Failure::no_such_app(name, ["web".to_owned()]))
    }
}

impl Handler for OneApp {
    async fn list(&self) -> Vec<AppSummary> {
        vec![web("hot")]
    }
    async fn show(&self, name: &str) -> Result<AppDetail, Failure> {
        Err(Failure::new(ErrorCode::Failed, format!("no details of {name}")))
    }
    async fn explain(&self, name: &str) -> Result<Explanation, Failure> {
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
        only_web(name, "starting")
    }
    async fn stop(&self, name: &str) -> Result<AppSummary, Failure> {
        only_web(name, "stopped")
    }
    async fn restart(&self, name: &str) -> Result<AppSummary, Failure> {
        only_web(name, "hot")
    }
    async fn sleep(&self, name: &str, to: Tier, wait: bool) -> Result<AppSummary, Failure> {
        if !wait {
            return only_web(name, "swapping-out");
        }
        if to == Tier::Cold {
            std::future::pending::<()>().await;
        }
        only_web(name, "warm")
    }
    async fn wake(&self, name: &str) -> Result<AppSummary, Failure> {
        only_web(name, "hot")
    }
    async fn log_dir(&self, name: &str) -> Result<PathBuf, Failure> {
        only_web(name, "hot").map(|_| self.logs.clone())
    }
    async fn status(&self) -> AgentStatus {
        AgentStatus {
            version: "0".to_owned(),
            protocol: VERSION,
            pid: 1,
            since: Timestamp::from_micros(1),
            state_dir: String::new(),
            memory_bytes: None,
            apps: [("hot".to_owned(), 1)].into(),
        }
    }
}

/// A running server, stopped when dropped.
struct Fixture {
    dir: tempfile::TempDir,
    socket: PathBuf,
    stop: CancellationToken,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Fixture {
    fn new(limits: Limits) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let logs = dir.path().join("logs");
        std::fs::create_dir(&logs).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let stop = CancellationToken::new();
        let server = runtime.block_on(async { Server::bind(&socket, limits) }).unwrap();
        runtime.spawn(server.serve(Arc::new(OneApp { logs }), stop.clone()));
        Fixture {
            dir,
            socket,
            stop,
            runtime: Some(runtime),
        }
    }

    fn client(&self) -> Client {
        Client::new(&self.socket, Some(Duration::from_secs(10)))
    }

    fn call(&self, request: &Request) -> Result<Response, Failure> {
        self.client().call(request).map_err(Failure::from)
    }

    fn log(&self) -> LogWriter {
        LogWriter::open(&self.dir.path().join("logs"), Stream::Stdout, 1 << 20, 1).unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

fn name() -> String {
    "web".to_owned()
}

fn logs(lines: usize, follow: bool) -> Request {
    Request::Logs {
        name: name(),
        lines,
        follow,
        stream: None,
    }
}

#[test]
fn every_request_reaches_its_method() {
    let agent = Fixture::new(Limits::default());
    assert_eq!(
        agent.call(&Request::List),
        Ok(Response::Apps {
            apps: vec![web("hot")]
        })
    );
    assert!(matches!(agent.call(&Request::Status), Ok(Response::Status(_))));
    for (request, state) in [
        (Request::Start { name: name() }, "starting"),
        (Request::Stop { name: name() }, "stopped"),
        (Request::Restart { name: name() }, "hot"),
        (Request::Wake { name: name() }, "hot"),
        (
            Request::Sleep {
                name: name(),
                to: Tier::Warm,
                wait: true,
            },
            "warm",
        ),
        (
            Request::Sleep {
                name: name(),
                to: Tier::Warm,
                wait: false,
            },
            "swapping-out",
        ),
    ] {
        assert_eq!(
            agent.call(&request),
            Ok(Response::App { app: web(state) }),
            "{request:?}"
        );
    }
    assert_eq!(
        agent.call(&Request::Show { name: name() }).unwrap_err().message,
        "no details of web"
    );
    let unknown = agent
        .call(&Request::Wake {
            name: "wev".to_owned(),
        })
        .unwrap_err();
    assert_eq!(
        (unknown.code, unknown.hint.as_str()),
        (ErrorCode::NotFound, "did you mean 'web'?")
    );
}

#[test]
fn the_socket_is_the_owners_alone_and_goes_with_the_server() {
    let agent = Fixture::new(Limits::default());
    let mode = std::fs::metadata(&agent.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let socket = agent.socket.clone();
    drop(agent);
    assert!(!socket.exists());
}

#[test]
fn a_socket_left_by_a_crash_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime
        .block_on(async { Server::bind(&socket, Limits::default()) })
        .unwrap();
}

#[test]
fn an_absent_agent_is_unreachable_and_a_silent_one_times_out() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let absent = Client::new(&socket, None).call(&Request::List);
    assert!(matches!(absent, Err(ClientError::Unreachable { .. })));
    assert!(
        Failure::from(absent.unwrap_err())
            .hint
            .contains("is pico-agent running?")
    );

    let agent = Fixture::new(Limits::default());
    let hurried = Client::new(&agent.socket, Some(Duration::from_millis(50)));
    let silent = hurried.call(&Request::Sleep {
        name: name(),
        to: Tier::Cold,
        wait: true,
    });
    assert!(matches!(silent, Err(ClientError::Timeout { .. })));
}

fn answer_to(socket: &Path, bytes: &[u8]) -> Failure {
    let mut stream = UnixStream::connect(socket).unwrap();
    // The server may answer and close before all is written.
    let _ = stream.write_all(bytes);
    let reply: Reply = serde_json::Deserializer::from_reader(&stream)
        .into_iter()
        .next()
        .unwrap()
        .unwrap();
    match reply {
        Reply::Error(failure) => failure,
        Reply::Ok(response) => panic!("{response:?}"),
    }
}

#[test]
fn what_is_no_request_is_refused_with_a_reason() {
    let agent = Fixture::new(Limits {
        request_time: Duration::from_millis(200),
        ..Limits::default()
    });
    assert_eq!(answer_to(&agent.socket, b"hello\n").code, ErrorCode::Usage);
    assert_eq!(
        answer_to(&agent.socket, b"{\"request\":\"fly\"}\n").code,
        ErrorCode::Usage
    );
    assert_eq!(answer_to(&agent.socket, b"\xff\xfe\n").code, ErrorCode::Usage);
    assert!(
        answer_to(&agent.socket, &vec![b'a'; 65 * 1024])
            .message
            .contains("longer than")
    );
    assert_eq!(
        answer_to(&agent.socket, b"{\"request\":").code,
        ErrorCode::Timeout
    );
    assert!(agent.call(&Request::List).is_ok(), "it still answers");
}

#[test]
fn connections_beyond_the_bound_are_told_so() {
    let agent = Fixture::new(Limits {
        connections: 1,
        ..Limits::default()
    });
    let mut first = UnixStream::connect(&agent.socket).unwrap();
    let busy = agent.call(&Request::List).unwrap_err();
    assert_eq!((busy.code, busy.retryable), (ErrorCode::Busy, true));
    // The first one is served all the same.
    first.write_all(b"{\"request\":\"list\"}\n").unwrap();
    let mut reply = String::new();
    std::io::Read::read_to_string(&mut first, &mut reply).unwrap();
    assert!(reply.starts_with("{\"ok\":{\"kind\":\"apps\""), "{reply}");
}

#[test]
fn logs_come_line_by_line_and_end() {
    let agent = Fixture::new(Limits::default());
    let mut log = agent.log();
    for number in 0..5000 {
        log.write(format!("line {number}\n").as_bytes()).unwrap();
    }
    let mut texts = Vec::new();
    agent
        .client()
        .logs(&logs(3000, false), |line| {
            texts.push(line.text);
            Ok(())
        })
        .unwrap();
    assert_eq!((texts.len(), texts[0].as_str()), (3000, "line 2000"));
}

#[test]
fn followed_logs_go_on_until_the_server_stops() {
    let agent = Fixture::new(Limits::default());
    let mut log = agent.log();
    log.write(b"old\n").unwrap();
    let (stop, mut texts) = (agent.stop.clone(), Vec::new());
    agent
        .client()
        .logs(&logs(10, true), |line| {
            match line.text.as_str() {
                "old" => log.write(b"new\n")?,
                _ => stop.cancel(),
            }
            texts.push(line.text);
            Ok(())
        })
        .unwrap();
    assert_eq!(texts, ["old", "new"]);
}

#[test]
fn a_follower_that_goes_away_frees_its_connection() {
    let agent = Fixture::new(Limits {
        connections: 1,
        ..Limits::default()
    });
    agent.log().write(b"old\n").unwrap();
    let gone = agent
        .client()
        .logs(&logs(1, true), |_| Err(std::io::ErrorKind::BrokenPipe.into()));
    assert!(matches!(gone, Err(ClientError::Output(_))));
    // The server sees the end of the connection in its own time.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while agent.call(&Request::List).is_err() {
        assert!(
            std::time::Instant::now() < deadline,
            "the connection is still held"
        );
    }
}

#[test]
fn one_agent_per_state_directory() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let lock = AgentLock::acquire(&state).unwrap();
    let held = AgentLock::acquire(&state).unwrap_err();
    assert!(
        matches!(&held, LockError::Held { pid, .. } if *pid == std::process::id().to_string()),
        "{held}"
    );
    drop(lock);
    AgentLock::acquire(&state).unwrap();
}

#[test]
fn an_error_code_of_a_newer_agent_is_still_a_failure() {
    let reply: Reply = serde_json::from_str("{\"error\":{\"code\":\"NEW_CODE\",\"message\":\"m\"}}").unwrap();
    assert_eq!(reply, Reply::Error(Failure::new(ErrorCode::Failed, "m")));
}
