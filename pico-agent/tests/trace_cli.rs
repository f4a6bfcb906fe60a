//! `pico-trace` as a user or a script has it: on saved traces and sets, with its errors and exit codes. The JSON shapes
//! are promises.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::process::{Command, Output};

use pico_agent::activeset::{ActiveSets, PageId};
use pico_agent::port::Port;
use pico_agent::trace::{Fault, Header, Mapping, Recorder, What, decode, windows};
use pico_agent::units::Timestamp;
use serde_json::{Value, json};

fn run(dir: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pico-trace"));
    command
        .args(line.split_whitespace())
        .current_dir(dir)
        .env_remove("PICO_AGENT_SOCKET");
    command.output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// The one JSON document on standard output of a command that succeeds.
fn document(dir: &Path, line: &str) -> Value {
    let output = run(dir, line);
    assert_eq!(code(&output), 0, "{line}: {output:?}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["schema"], "pico.v1");
    document
}

fn port(text: &str) -> Port {
    text.parse().unwrap()
}

fn fault(page: u64, write: bool, port: Option<Port>) -> What {
    What::Fault(Fault {
        space: 1,
        address: page * 4096,
        tid: 7,
        ip: 0x40_1000,
        write,
        user: true,
        port,
    })
}

/// Three wakes on each of two ports that share page 0x100 and have one of their own, and one page that no port needs.
fn events() -> Vec<What> {
    let mut events = Vec::new();
    for _ in 0..3 {
        for (by, own) in [(port("80/tcp"), 0x180), (port("53/udp"), 0x190)] {
            events.push(What::WakeStart {
                trigger: Some(by),
                pages: 500,
            });
            events.push(fault(0x110, false, None));
            events.push(What::Recv {
                port: by,
                tid: 7,
                bytes: 10,
            });
            events.push(fault(0x100, true, Some(by)));
            events.push(fault(own, false, Some(by)));
            events.push(What::Send {
                port: by,
                tid: 7,
                bytes: 20,
            });
            events.push(What::End { accessed: false });
        }
    }
    events
}

/// A directory with `web.trace`, `web.sets` and `cut.trace`.
fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let header = Header {
        app: "web".to_owned(),
        lineage: 5,
        started: Timestamp::from_micros(0),
        base_ns: 0,
        kernel: "6.1".to_owned(),
    };
    let mut recorder = Recorder::new(Vec::new(), &header).unwrap();
    let mapping = Mapping {
        space: 1,
        start: 0x100,
        end: 0x120,
        offset: 0,
        name: "/usr/bin/web".to_owned(),
    };
    recorder.mappings([&mapping]).unwrap();
    for (what, time) in events().into_iter().zip(0..) {
        recorder.event(time * 1_000_000, what).unwrap();
    }
    let trace = recorder.finish().unwrap();
    let mut sets = ActiveSets::new(5);
    for window in windows(&decode(&trace).unwrap().events) {
        sets.learn(&window);
    }
    std::fs::write(dir.path().join("cut.trace"), &trace[..trace.len() - 10]).unwrap();
    std::fs::write(dir.path().join("web.trace"), trace).unwrap();
    std::fs::write(dir.path().join("web.sets"), sets.encode()).unwrap();
    dir
}

#[test]
fn help_is_an_answer_at_every_depth() {
    let dir = files();
    for line in [
        "help",
        "--help",
        "set help",
        "help set show",
        "set show help",
        "fault top --help",
        "pred ev help",
    ] {
        let output = run(dir.path(), line);
        assert_eq!(code(&output), 0, "{line}");
        assert!(stdout(&output).contains("Usage:"), "{line}: {output:?}");
    }
}

#[test]
fn what_is_not_understood_is_a_usage_error_with_a_hint() {
    let dir = files();
    for (line, expected) in [
        ("", "Usage:"),
        ("frobnicate", "unrecognized subcommand"),
        (
            "fault list fiel x",
            "Error: what is 'fiel'?; try: did you mean 'file'?",
        ),
        (
            "fault list",
            "Error: whose? name one; try: app NAME, or file FILE",
        ),
        ("fault list file web.trace port 80", "'80' is not a port"),
        (
            "event tracelog file web.trace type zzz",
            "'zzz' is no type of event",
        ),
        (
            "set diff file web.sets",
            "'with' and what comes after it are missing",
        ),
        ("predict eval file web.trace tier hot", "a tier is warm or cold"),
    ] {
        let output = run(dir.path(), line);
        assert_eq!(code(&output), 2, "{line}: {output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(expected), "{line}: {text}");
    }
    let output = run(dir.path(), "-j fault list");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["error"]["code"], "USAGE");
}

#[test]
fn what_is_not_there_or_damaged_or_unreachable_has_its_own_exit_code() {
    let dir = files();
    std::fs::write(dir.path().join("bad.sets"), b"PICOSETS and more").unwrap();
    std::fs::write(dir.path().join("bad.trace"), b"hello").unwrap();
    for (line, exit) in [
        ("set list file nowhere", 4),
        ("set show file web.sets port 99/tcp", 4),
        ("set list file bad.sets", 1),
        ("fault list file bad.trace", 1),
        ("set list file .", 2),
        ("set list app web --socket nowhere.sock", 6),
    ] {
        let output = run(dir.path(), line);
        assert_eq!(code(&output), exit, "{line}: {output:?}");
        assert!(output.stderr.starts_with(b"Error: "), "{line}: {output:?}");
    }
}

#[test]
fn faults_are_listed_counted_and_dumped_with_the_mapping_they_are_in() {
    let dir = files();
    let list = document(dir.path(), "-j fault list file web.trace port 53/udp");
    assert_eq!(list["faults"].as_array().unwrap().len(), 6);
    assert_eq!(
        list["faults"][0],
        json!({
            "time_ns": 10_000_000, "space": 1, "address": "0x100000", "write": true, "user": true,
            "port": "53/udp", "tid": 7, "ip": "0x401000", "mapping": "/usr/bin/web",
        })
    );
    assert_eq!(
        list["trace"],
        json!({
            "app": "web", "lineage": 5, "started": "1970-01-01T00:00:00.000000Z", "kernel": "6.1",
            "events": 42, "lost": 0, "ended": true, "complete": true,
        })
    );
    let top = document(dir.path(), "-j fault top file web.trace");
    assert_eq!(
        top["top"][0],
        json!({ "page": "1:0x100", "mapping": "/usr/bin/web", "faults": 6, "ports": ["53/udp", "80/tcp"] })
    );
    let top = document(dir.path(), "-j fault top file web.trace vma");
    assert_eq!(
        top["top"],
        json!([
            { "mapping": "/usr/bin/web", "faults": 12, "ports": ["-", "53/udp", "80/tcp"] },
            { "mapping": "?", "faults": 6, "ports": ["53/udp", "80/tcp"] },
        ])
    );
    let dump = stdout(&run(dir.path(), "fault dump file web.trace port none since 7ms"));
    assert_eq!(dump.lines().count(), 5);
    assert!(
        dump.lines().all(|line| line.contains("address=0x110000")),
        "{dump}"
    );
    let text = stdout(&run(dir.path(), "fau l file web.trace"));
    assert!(
        text.starts_with("TIME      SPACE  ADDRESS   ACCESS  PORT    MAPPING"),
        "{text}"
    );
}

#[test]
fn events_are_json_lines_and_a_trace_that_was_cut_off_is_marked() {
    let dir = files();
    let output = run(
        dir.path(),
        "-j event tracelog file web.trace type recv port 80/tcp",
    );
    let lines: Vec<Value> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(
        lines[0],
        json!({
            "schema": "pico.v1",
            "event": { "time_ns": 2_000_000, "type": "recv", "port": "80/tcp", "tid": 7, "bytes": 10 },
        })
    );
    let cut = run(dir.path(), "fault list file cut.trace");
    assert!(stdout(&cut).ends_with("incomplete: the recording was cut off\n"));
    let cut = document(dir.path(), "-j fault list file cut.trace");
    assert_eq!(cut["trace"]["complete"], false);
}

#[test]
fn sets_are_listed_and_shown_and_drawn() {
    let dir = files();
    let list = document(dir.path(), "-j set list file web.sets");
    let row = |port: Value, windows: u32, pages: u32| {
        json!({
            "port": port, "windows": windows, "pages": pages, "bytes": pages * 4096, "pages_seen": pages,
            "relearning": false, "wakes": 0, "recall": null, "precision": null, "last_wake": null,
        })
    };
    let rows = [
        row(Value::Null, 6, 1),
        row(json!("53/udp"), 3, 2),
        row(json!("80/tcp"), 3, 2),
    ];
    assert_eq!(list["sets"], json!(rows));
    let show = document(
        dir.path(),
        "-j set show file web.sets port 80/tcp trace web.trace",
    );
    let range = &show["sets"][0]["ranges"][0];
    let names: Vec<&str> = range.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "chance",
            "first_touch",
            "hits",
            "last_hit",
            "mapping",
            "pages",
            "space",
            "start",
            "write"
        ]
    );
    assert_eq!(
        (&range["start"], &range["hits"], &range["write"]),
        (&json!(0x100_000), &json!(3), &json!(true))
    );
    assert_eq!(
        (&range["mapping"], &range["last_hit"]),
        (&json!("/usr/bin/web"), &json!(1))
    );
    let text = stdout(&run(dir.path(), "set show file web.sets port 80/tcp"));
    assert!(
        text.contains("2 likely pages, 8.0K, of 2 seen, after 3 windows"),
        "{text}"
    );
    let drawn = stdout(&run(
        dir.path(),
        "set show file web.sets -o heatmap --svg web.svg",
    ));
    assert!(
        drawn.contains("# base") && drawn.contains("53/udp") && !drawn.contains('\x1b'),
        "{drawn}"
    );
    let svg = std::fs::read_to_string(dir.path().join("web.svg")).unwrap();
    assert!(svg.contains("80/tcp") && svg.ends_with("</svg>\n"));
}

#[test]
fn sets_are_compared_copied_merged_imported_and_forgotten() {
    let dir = files();
    let same = run(dir.path(), "set diff file web.sets with file web.sets");
    assert_eq!((code(&same), stdout(&same).as_str()), (0, ""));
    let output = run(
        dir.path(),
        "-j set diff file web.sets port 80/tcp with port 53/udp",
    );
    assert_eq!(code(&output), 1);
    let diff: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        diff,
        json!({
            "schema": "pico.v1", "same": false, "common": 1,
            "only_first": [{ "space": 1, "page": 0x180 }], "only_second": [{ "space": 1, "page": 0x190 }],
        })
    );
    let ok = |line: &str| assert_eq!(code(&run(dir.path(), line)), 0, "{line}");
    ok("set export file web.sets to copy.sets");
    ok("set reset file copy.sets port 80/tcp");
    assert_eq!(code(&run(dir.path(), "set show file copy.sets port 80/tcp")), 4);
    ok("set merge file copy.sets with file web.sets to both.sets");
    ok("set show file both.sets port 80/tcp");
    ok("set reset file copy.sets");
    ok("set import file copy.sets from web.sets");
    assert_eq!(
        std::fs::read(dir.path().join("copy.sets")).unwrap(),
        std::fs::read(dir.path().join("web.sets")).unwrap()
    );
    let mut foreign = ActiveSets::new(6);
    foreign.retain(|page: PageId| page.space == 1);
    std::fs::write(dir.path().join("foreign.sets"), foreign.encode()).unwrap();
    for line in [
        "set import file copy.sets from foreign.sets",
        "set merge file web.sets with file foreign.sets to x.sets",
    ] {
        let output = run(dir.path(), line);
        assert_eq!(code(&output), 1, "{line}");
        assert!(
            String::from_utf8(output.stderr)
                .unwrap()
                .contains("another start of the app"),
            "{line}"
        );
    }
    assert!(!dir.path().join("x.sets").exists());
}

#[test]
fn a_trace_is_replayed_through_every_predictor() {
    let dir = files();
    let eval = document(dir.path(), "-j predict eval file web.trace warmup 4 tier warm");
    let scores = eval["scores"].as_array().unwrap();
    let names: Vec<&str> = scores
        .iter()
        .map(|score| score["predictor"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["none", "full", "last-window", "global", "per-port", "logistic"]
    );
    assert_eq!(
        scores[4],
        json!({
            "predictor": "per-port", "wakes": 2, "needed": 6, "brought": 6, "used": 6, "recall": 1.0,
            "precision": 1.0, "wasted": 0, "mean_ms": 0.0045,
        })
    );
    assert_eq!(scores[1]["brought"], 1000);
    assert_eq!(eval["windows"], 6);
    let text = stdout(&run(dir.path(), "predict eval file web.trace port 80/tcp"));
    assert!(
        text.starts_with("PREDICTOR    WAKES  NEEDED  BROUGHT  RECALL  PRECISION  WASTED  EST. MS\n"),
        "{text}"
    );
}

#[test]
fn the_kernel_is_asked_for_programs_maps_and_features() {
    let dir = files();
    let features = document(dir.path(), "-p feature probe");
    assert!(features["features"].as_array().unwrap().len() > 8);
    assert!(features["features"][0]["available"].is_boolean());
    for line in ["-j prog list", "-j map show"] {
        let output = run(dir.path(), line);
        // Root is told; others are refused, and told so.
        assert!([0, 5].contains(&code(&output)), "{line}: {output:?}");
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["schema"], "pico.v1");
    }
}
