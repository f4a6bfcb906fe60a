//! The `pico-hub store` program: how it starts, refuses, stops, and what it keeps when it is killed.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use aws_sdk_s3::Client;
use common::{BUCKET, noise};
use pico_hub::s3::Credentials;

fn hub(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pico-hub"));
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn output(args: &[&str]) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = hub(args).output().unwrap();
    (
        status.code(),
        String::from_utf8([stdout, stderr].concat()).unwrap(),
    )
}

/// A server process, killed when dropped.
struct Process {
    child: Child,
    /// Kept open, for the server goes on writing to it.
    _log: BufReader<ChildStderr>,
}

impl Process {
    fn start(dir: &Path) -> Process {
        let mut command = hub(&["store", "--listen", "127.0.0.1:0", "--dir"]);
        let mut child = command.arg(dir).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("serving") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "it ended before it served");
        }
        Process { child, _log: log }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn client(dir: &Path) -> Client {
    let file = std::fs::read(dir.join("credentials.json")).unwrap();
    common::client(&serde_json::from_slice::<Credentials>(&file).unwrap())
}

#[test]
fn help_shows_examples_and_wrong_usage_exits_with_2() {
    let (code, text) = output(&["store", "--help"]);
    assert_eq!(code, Some(0));
    assert!(
        text.contains("pico-hub store --dir /var/lib/pico-store") && text.contains("Exit codes"),
        "{text}"
    );
    assert_eq!(output(&["store"]).0, Some(2));
    assert_eq!(
        output(&["store", "--dir", "x", "--listen", "nonsense"]).0,
        Some(2)
    );
    assert_eq!(output(&[]).0, Some(2));
}

#[test]
fn what_keeps_it_from_starting_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let running = Process::start(&store);
    let store = store.to_str().unwrap();
    let (code, text) = output(&["store", "--listen", "127.0.0.1:0", "--dir", store]);
    assert_eq!(code, Some(1));
    assert!(
        text.contains("Error:") && text.contains("in use by another server"),
        "{text}"
    );
    drop(running);

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let (code, text) = output(&["store", "--dir", store, "--listen", &addr]);
    assert_eq!(code, Some(1));
    assert!(
        text.contains(&addr) && text.contains("choose another port"),
        "{text}"
    );

    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (code, text) = output(&[
        "store",
        "--listen",
        "127.0.0.1:0",
        "--dir",
        file.to_str().unwrap(),
    ]);
    assert_eq!(code, Some(1));
    assert!(text.contains("cannot create the store directory"), "{text}");
}

#[test]
fn it_warns_beyond_loopback() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = hub(&["store", "--listen", "0.0.0.0:0", "--dir"]);
    let mut child = command.arg(dir.path()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        line.contains("WARN") && line.contains("beyond this host"),
        "{line}"
    );
}

#[test]
fn it_stops_cleanly_on_a_signal_and_says_where_it_listens() {
    let dir = tempfile::tempdir().unwrap();
    for signal in ["-TERM", "-INT"] {
        let port_file = dir.path().join("port");
        let mut command = hub(&["store", "--listen", "127.0.0.1:0", "--port-file"]);
        command.arg(&port_file).arg("--dir").arg(dir.path().join("store"));
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let port: u16 = std::fs::read_to_string(&port_file)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let credentials = dir.path().join("store/credentials.json");
        let text = std::fs::read_to_string(&credentials).unwrap();
        assert!(text.contains(&format!("http://127.0.0.1:{port}\"")), "{text}");
        assert_eq!(
            std::fs::metadata(&credentials).unwrap().permissions().mode() & 0o777,
            0o600
        );
        std::fs::remove_file(&port_file).unwrap();
        let _idle = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(
            Command::new("kill")
                .args([signal, &child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

/// Bytes that only this key has, of a length only this key has: half an object or a mixed one shows.
fn content(key: &str) -> Vec<u8> {
    let number: usize = key.rsplit('-').next().unwrap().parse().unwrap();
    let mut bytes = noise(number * 7919 % 300_000);
    bytes.extend_from_slice(key.as_bytes());
    bytes
}

/// Killed with SIGKILL while clients write: what was acknowledged is there, what is there is whole, and
/// nothing else is left.
#[test]
fn a_kill_loses_nothing_acknowledged_and_shows_nothing_half() {
    let dir = tempfile::tempdir().unwrap();
    let acknowledged = Mutex::new(Vec::new());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let counter = AtomicUsize::new(1);
    for round in 1..=4 {
        let mut process = Process::start(dir.path());
        let s3 = client(dir.path());
        if round == 1 {
            runtime
                .block_on(s3.create_bucket().bucket(BUCKET).send())
                .unwrap();
        }
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let key = format!("k-{}", counter.fetch_add(1, Ordering::Relaxed));
                        let put = s3.put_object().bucket(BUCKET).key(&key).if_none_match("*");
                        match runtime.block_on(put.body(content(&key).into()).send()) {
                            Ok(_) => acknowledged.lock().unwrap().push(key),
                            Err(_) => break,
                        }
                    }
                });
            }
            while acknowledged.lock().unwrap().len() < 25 * round {
                thread::yield_now();
            }
            process.child.kill().unwrap();
            process.child.wait().unwrap();
        });
    }
    let _process = Process::start(dir.path());
    let s3 = client(dir.path());
    runtime.block_on(async {
        for key in acknowledged.into_inner().unwrap() {
            s3.head_object().bucket(BUCKET).key(key).send().await.unwrap();
        }
        let mut pages = s3.list_objects_v2().bucket(BUCKET).into_paginator().send();
        while let Some(page) = pages.next().await {
            for object in page.unwrap().contents() {
                let key = object.key().unwrap();
                let get = s3.get_object().bucket(BUCKET).key(key).send().await.unwrap();
                assert!(
                    get.body.collect().await.unwrap().to_vec() == content(key),
                    "{key}"
                );
            }
        }
    });
    assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}
