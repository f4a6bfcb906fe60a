//! The command line as a user or a script has it: output, errors and exit codes of the built program.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use pico_agent::address::Addresses;
use pico_agent::control::protocol::{
    self, AgentStatus, AppDetail, AppSummary, ErrorCode, Explanation, Fact, Failure, Policy,
};
use pico_agent::control::server::{Handler, Limits, Server};
use pico_agent::lifecycle::record::Counters;
use pico_agent::lifecycle::state::Tier;
use pico_agent::logs::{LogWriter, Stream};
use pico_agent::units::{Timestamp, Wait};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pico-agent"));
    command
        .args(arguments)
        .env_remove("PICO_AGENT_SOCKET")
        .env_remove("PICO_AGENT_CONFIG");
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The one JSON document on standard output.
fn document(output: &Output) -> Value {
    let document: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    assert_eq!(document["schema"], "pico.v1");
    document
}

fn file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn help_is_an_answer_at_every_depth() {
    for arguments in [
        &["--help"][..],
        &["help"],
        &["app", "--help"],
        &["app", "help", "sleep"],
        &["app", "sleep", "-h"],
    ] {
        let output = run(arguments);
        assert_eq!(code(&output), 0, "{arguments:?}");
        assert!(
            stdout(&output).contains("Examples:") && stdout(&output).contains("Exit codes:"),
            "{arguments:?}"
        );
    }
    assert_eq!(code(&run(&["--version"])), 0);
}

#[test]
fn what_is_not_understood_is_a_usage_error() {
    for arguments in [
        &[][..],
        &["app"],
        &["app", "show"],
        &["aap", "list"],
        &["app", "sleep", "web", "--to", "lukewarm"],
        &["app", "list", "--timeout", "soon"],
        &["app", "st", "web"],
    ] {
        let output = run(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        assert!(
            !stderr(&output).is_empty() && output.stdout.is_empty(),
            "{arguments:?}"
        );
    }
    let near = stderr(&run(&["app", "lst"]));
    assert!(near.contains("'list'"), "{near}");
    let json = run(&["-j", "app", "lst"]);
    assert_eq!(
        (code(&json), document(&json)["error"]["code"].as_str()),
        (2, Some("USAGE"))
    );
}

#[test]
fn an_agent_that_does_not_run_is_unreachable() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let socket = socket.to_str().unwrap();
    let output = run(&["app", "list", "--socket", socket]);
    assert_eq!(code(&output), 6);
    let error = stderr(&output);
    assert!(
        error.starts_with(&format!("Error: cannot reach the agent at {socket} (")),
        "{error}"
    );
    assert!(error.contains("; try: is pico-agent running?"), "{error}");
    let json = run(&["-j", "app", "wake", "web", "--socket", socket]);
    let document = document(&json);
    assert_eq!(
        (code(&json), document["error"]["code"].as_str()),
        (6, Some("UNREACHABLE"))
    );
    assert_eq!(document["error"]["retryable"], true);
    assert!(json.stderr.is_empty());
}

#[test]
fn the_socket_is_found_by_flag_environment_and_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let config = file(
        dir.path(),
        "agent.toml",
        &format!("state_dir = \"{}/state\"", dir.path().display()),
    );
    let by_config = stderr(&run(&["app", "list", "--config", &config]));
    assert!(by_config.contains("/state/agent.sock"), "{by_config}");
    let by_env = command(&["app", "list", "--config", &config])
        .env("PICO_AGENT_SOCKET", "/nowhere/a")
        .output();
    assert!(stderr(&by_env.unwrap()).contains("/nowhere/a "));
    let by_flag = command(&["app", "--socket", "/nowhere/b", "list"])
        .env("PICO_AGENT_SOCKET", "/nowhere/a")
        .output();
    assert!(stderr(&by_flag.unwrap()).contains("/nowhere/b "));
}

#[test]
fn a_configuration_is_checked_and_every_problem_told() {
    let dir = tempfile::tempdir().unwrap();
    let good = file(
        dir.path(),
        "good.toml",
        "[[app]]\nname = \"web\"\nroot = \"host\"\ncommand = [\"/bin/sh\"]\nports = [\"80/tcp\"]\n",
    );
    let output = run(&["config", "check", &good]);
    assert_eq!(
        (code(&output), stdout(&output)),
        (0, format!("{good} is fine: 1 app(s)\n"))
    );
    assert_eq!(
        document(&run(&["-j", "config", "check", &good]))["apps"][0],
        "web"
    );

    let bad = file(
        dir.path(),
        "bad.toml",
        "[[app]]\nname = \"Web\"\nroot = \"host\"\ncommand = [\"/bin/sh\"]\nports = [\"80/tcp\", \"80/tcp\"]\n\
         [[app]]\nname = \"db\"\nidel = \"5s\"\n",
    );
    for arguments in [
        &["config", "check", &bad][..],
        &["run", "--config", &bad],
        &["doctor", "--config", &bad],
    ] {
        let output = run(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        for expected in [
            "has 3 problems",
            "'Web' is not a DNS label",
            "80/tcp is published twice",
            "did you mean 'idle'?",
        ] {
            assert!(
                stderr(&output).contains(expected),
                "{expected} in {}",
                stderr(&output)
            );
        }
    }
    let missing = run(&["config", "check", "/no/such/agent.toml"]);
    assert_eq!(code(&missing), 2);
    assert!(stderr(&missing).contains("cannot read /no/such/agent.toml"));
}

#[test]
fn doctor_answers_with_a_row_for_each_need_and_a_remedy_for_each_lack() {
    let output = run(&["-j", "doctor"]);
    let document = document(&output);
    let rows = document["rows"].as_array().unwrap();
    for check in [
        "kernel",
        "btf",
        "cgroup-v2",
        "userfaultfd",
        "tun",
        "overlayfs",
        "criu",
        "cap-sys-resource",
        "tracepoints",
        "request-ports",
        "accessed-pages",
        "ebpf-cgroup-skb",
        "ip-forward",
        "state-dir",
        "free-space",
        "shim",
    ] {
        assert!(rows.iter().any(|row| row["check"] == check), "{check}");
    }
    let expected = match document["verdict"].as_str() {
        Some("fail") => 7,
        _ => 0,
    };
    assert_eq!(code(&output), expected);
    for row in rows {
        assert_eq!(row["verdict"] == "ok", row["fix"] == "", "{row}");
    }
    assert!(stdout(&run(&["doctor"])).starts_with("CHECK "));
}

#[test]
fn version_tells_what_runs_here() {
    let document = document(&run(&["-j", "version"]));
    assert_eq!(document["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(document["protocol"], protocol::VERSION);
    assert!(document["kernel"].as_str().unwrap().contains('.'));
}

/// An agent with one app, `web`, that does as it is told.
struct Toy {
    logs: PathBuf,
}

fn web(state: &str) -> AppSummary {
    AppSummary {
        name: "web".to_owned(),
        state: state.to_owned(),
        since: Timestamp::now(),
        reason: "as told".to_owned(),
        addresses: Addresses {
            v4: [10, 77, 0, 5].into(),
            v6: "fd77::5".parse().unwrap(),
        },
        ports: vec!["80/tcp".parse().unwrap()],
        pid: Some(42),
        memory_bytes: Some(1 << 20),
        checkpoint: None,
    }
}

fn only_web(name: &str, state: &str) -> Result<AppSummary, Failure> {
    match name {
        "web" => Ok(web(state)),
        "denied" => Err(Failure::new(ErrorCode::Denied, "not you")),
        "running" => Err(Failure::new(ErrorCode::WrongState, "it is hot")),
        "broken" => Err(
            Failure::new(ErrorCode::RestoreFailed, "cannot wake broken (files changed)").hint("restart it"),
        ),
        "crashing" => Err(Failure::new(ErrorCode::StartFailed, "it exited with status 1")),
        _ => Err(Failure::no_such_app(name, ["web".to_owned()])),
    }
}

impl Handler for Toy {
    async fn list(&self) -> Vec<AppSummary> {
        vec![web("hot")]
    }
    async fn show(&self, name: &str) -> Result<AppDetail, Failure> {
        Ok(AppDetail {
            summary: only_web(name, "hot")?,
            next: "sleeps in 8s".to_owned(),
            policy: Policy {
                idle: Wait::secs(10),
                cold_after: Wait::Never,
                restart: Default::default(),
                after_crash: Default::default(),
            },
            command: vec!["nginx".to_owned()],
            counters: Counters::default(),
            page_faults: 0,
            active_sets: Vec::new(),
            last_wake: None,
            last_failure: None,
            last_exit: None,
            created: Timestamp::now(),
        })
    }
    async fn explain(&self, name: &str) -> Result<Explanation, Failure> {
        Ok(Explanation {
            app: only_web(name, "hot")?,
            next: "sleeps in 8s".to_owned(),
            facts: vec![Fact {
                subject: "last packet".to_owned(),
                text: "at 80/tcp, 2s ago".to_owned(),
            }],
        })
    }
    async fn start(&self, name: &str) -> Result<AppSummary, Failure> {
        only_web(name, "hot")
    }
    async fn stop(&self, name: &str) -> Result<AppSummary, Failure> {
        only_web(name, "stopped")
    }
    async fn restart(&self, name: &str) -> Result<AppSummary, Failure> {
        only_web(name, "hot")
    }
    async fn sleep(&self, name: &str, to: Tier, wait: bool) -> Result<AppSummary, Failure> {
        only_web(
            name,
            if wait {
                if to == Tier::Cold { "cold" } else { "warm" }
            } else {
                "swapping-out"
            },
        )
    }
    async fn wake(&self, name: &str) -> Result<AppSummary, Failure> {
        if name == "slow" {
            std::future::pending::<()>().await;
        }
        only_web(name, "hot")
    }
    async fn log_dir(&self, name: &str) -> Result<PathBuf, Failure> {
        only_web(name, "hot").map(|_| self.logs.clone())
    }
    async fn status(&self) -> AgentStatus {
        AgentStatus {
            version: "1.2.3".to_owned(),
            protocol: protocol::VERSION,
            pid: 7,
            since: Timestamp::now(),
            state_dir: "/state".to_owned(),
            memory_bytes: None,
            apps: [("hot".to_owned(), 1), ("cold".to_owned(), 2)].into(),
        }
    }
}

struct Agent {
    dir: tempfile::TempDir,
    socket: String,
    stop: CancellationToken,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Agent {
    fn new() -> Agent {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        std::fs::create_dir(&logs).unwrap();
        let socket = dir.path().join("agent.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let stop = CancellationToken::new();
        let server = runtime
            .block_on(async { Server::bind(&socket, Limits::default()) })
            .unwrap();
        runtime.spawn(server.serve(Arc::new(Toy { logs }), stop.clone()));
        Agent {
            socket: socket.to_str().unwrap().to_owned(),
            dir,
            stop,
            runtime: Some(runtime),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command.env("PICO_AGENT_SOCKET", &self.socket);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn log(&self, stream: Stream) -> LogWriter {
        LogWriter::open(&self.dir.path().join("logs"), stream, 1 << 20, 1).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(std::time::Duration::from_secs(5));
        }
    }
}

#[test]
fn apps_are_listed_shown_and_steered() {
    let agent = Agent::new();
    let list = stdout(&agent.run(&["app", "ls"]));
    assert!(list.starts_with("NAME  STATE  SINCE  ADDRESS"), "{list}");
    assert!(stdout(&agent.run(&["app", "show", "web"])).contains("pid:          42\n"));
    assert!(stdout(&agent.run(&["status"])).contains("apps:         2 cold, 1 hot\n"));
    for (arguments, state) in [
        (&["app", "start", "web"][..], "hot"),
        (&["app", "stop", "web"], "stopped"),
        (&["app", "restart", "web"], "hot"),
        (&["app", "sleep", "web"], "warm"),
        (&["app", "sleep", "web", "--to", "cold"], "cold"),
        (&["app", "sleep", "web", "--detach"], "swapping-out"),
        (&["app", "wake", "web"], "hot"),
    ] {
        let output = agent.run(arguments);
        assert_eq!(
            (code(&output), stdout(&output)),
            (0, format!("web is {state}: as told\n")),
            "{arguments:?}"
        );
    }
}

#[test]
fn json_is_one_document_with_the_schema() {
    let agent = Agent::new();
    let list = document(&agent.run(&["-j", "app", "list"]));
    assert_eq!(
        (
            list["apps"][0]["name"].as_str(),
            list["apps"][0]["memory_bytes"].as_u64()
        ),
        (Some("web"), Some(1 << 20))
    );
    let show = document(&agent.run(&["app", "show", "web", "-j"]));
    assert_eq!(
        (
            show["app"]["state"].as_str(),
            show["app"]["policy"]["idle"].as_str()
        ),
        (Some("hot"), Some("10s"))
    );
    assert_eq!(
        document(&agent.run(&["-j", "app", "wake", "web"]))["app"]["state"],
        "hot"
    );
    assert_eq!(
        document(&agent.run(&["-j", "status"]))["agent"]["apps"]["cold"],
        2
    );
}

#[test]
fn failures_have_the_exit_codes_of_the_table() {
    let agent = Agent::new();
    for (name, exit, expected) in [
        (
            "wev",
            4,
            "Error: there is no app 'wev'; try: did you mean 'web'?\n",
        ),
        ("denied", 5, "Error: not you\n"),
        ("running", 3, "Error: it is hot\n"),
        ("crashing", 170, "Error: it exited with status 1\n"),
        (
            "broken",
            171,
            "Error: cannot wake broken (files changed); try: restart it\n",
        ),
    ] {
        let output = agent.run(&["app", "wake", name]);
        assert_eq!((code(&output), stderr(&output).as_str()), (exit, expected));
    }
    let slow = agent.run(&["app", "wake", "slow", "--timeout", "100ms"]);
    assert_eq!(code(&slow), 124);
    assert!(stderr(&slow).contains("longer --timeout"));
}

#[test]
fn logs_are_printed_as_the_app_printed_them() {
    let agent = Agent::new();
    agent.log(Stream::Stdout).write(b"out\n").unwrap();
    agent.log(Stream::Stderr).write(b"err\n").unwrap();
    assert_eq!(stdout(&agent.run(&["app", "logs", "web"])), "out\nerr\n");
    assert_eq!(stdout(&agent.run(&["app", "logs", "web", "-n", "1"])), "err\n");
    assert_eq!(
        stdout(&agent.run(&["app", "logs", "web", "--stream", "stdout"])),
        "out\n"
    );
    let timed = stdout(&agent.run(&["app", "logs", "web", "-t", "-n", "1"]));
    assert!(timed.ends_with("Z stderr err\n"), "{timed}");
    let json = document(&agent.run(&["-j", "app", "logs", "web"]));
    assert_eq!(
        (
            json["lines"][1]["text"].as_str(),
            json["lines"][1]["stream"].as_str()
        ),
        (Some("err"), Some("stderr"))
    );
    assert_eq!(code(&agent.run(&["app", "logs", "wev"])), 4);
}

#[test]
fn followed_logs_come_as_they_are_printed() {
    use std::io::{BufRead, BufReader};
    let agent = Agent::new();
    let mut log = agent.log(Stream::Stdout);
    log.write(b"first\n").unwrap();
    let mut child = agent
        .command(&["-j", "app", "logs", "web", "--follow"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["schema"], "pico.v1");
        line["line"]["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(next(), "first");
    log.write(b"second\n").unwrap();
    assert_eq!(next(), "second");
    // The agent ends: so does the command, and well.
    agent.stop.cancel();
    assert!(child.wait().unwrap().success());
}
