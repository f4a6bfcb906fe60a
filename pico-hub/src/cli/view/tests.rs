//! Every JSON shape against what is promised (`golden.jsonl`, one line each): a change there is a change of what
//! programs read.

use super::*;

const GOLDEN: &str = include_str!("golden.jsonl");

fn at(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp {
        seconds,
        nanos: 5_000,
    })
}

fn whole_app() -> v1::App {
    v1::App {
        id: "a1".into(),
        owner: "ann".into(),
        spec: Some(v1::AppSpec {
            name: "web".into(),
            root: "/srv/web".into(),
            command: vec!["nginx".into()],
            ports: vec!["80/tcp".into()],
            env: [("B".to_owned(), "2".to_owned()), ("A".to_owned(), "1".to_owned())].into(),
            memory_bytes: Some(256 << 20),
            cpus: Some(0.5),
            idle: Some(v1::Wait {
                kind: Some(v1::wait::Kind::After(prost_types::Duration {
                    seconds: 1,
                    nanos: 500_000_000,
                })),
            }),
            cold_after: Some(v1::Wait {
                kind: Some(v1::wait::Kind::Never(true)),
            }),
            restart: v1::Restart::OnFailure.into(),
            wake_on_dns: v1::WakeOnDns::Prefetch.into(),
            connections: v1::Connections::StayAwake.into(),
            prefetch: v1::PrefetchMode::PerPort.into(),
            wake: Some(v1::WakeRules {
                deny: vec!["192.0.2.0/24".into()],
                at: vec!["30 3 * * *".into()],
                ..v1::WakeRules::default()
            }),
            probes: vec![v1::Probe {
                from: "192.0.2.9/32".into(),
                http: 200,
                body: String::new(),
            }],
            sandbox: Some(v1::Sandbox {
                capabilities: vec!["CAP_NET_RAW".into()],
                ..v1::Sandbox::default()
            }),
            ..v1::AppSpec::default()
        }),
        resource_version: 3,
        state: v1::AppState::Cold.into(),
        reason: "idle for 1m".into(),
        since: at(1_800_000_000),
        desired: v1::Desired::Running.into(),
        dns_name: "web-ann.pico.example".into(),
        ipv4: "10.77.0.2".into(),
        ipv6: "fd77::2".into(),
        agent_id: "g1".into(),
        created: at(1_700_000_000),
        figures: Some(v1::AppFigures {
            wakes_cold: 1,
            last_wake: Some(v1::Wake {
                at: at(1_750_000_000),
                from: v1::AppState::Cold.into(),
                trigger: "80/tcp".into(),
                total_ms: 25.5,
                phases: vec![v1::Phase {
                    name: "fetch".into(),
                    ms: 10.0,
                }],
                fetched_bytes: 4096,
                s3_gets: 2,
            }),
            last_failure: Some(v1::Failure {
                at: None,
                during: "wake".into(),
                reason: "no store".into(),
            }),
            ..v1::AppFigures::default()
        }),
        agent_connected: true,
    }
}

fn documents() -> Vec<Value> {
    let token = v1::Token {
        id: "t1".into(),
        role: v1::Role::Owner.into(),
        owner: "ann".into(),
        created: at(1_700_000_000),
        ..v1::Token::default()
    };
    let agent = v1::Agent {
        id: "g1".into(),
        name: "host1".into(),
        host: Some(v1::HostFacts {
            kernel: "6.18".into(),
            cpus: 2,
            memory_bytes: 1 << 30,
            ..v1::HostFacts::default()
        }),
        connected: true,
        apps: 1,
        ..v1::Agent::default()
    };
    let failed = v1::Operation {
        id: "o1".into(),
        app_id: "a1".into(),
        verb: "wake".into(),
        done: true,
        error: Some(v1::OperationError {
            reason: "RESTORE_FAILED".into(),
            message: "no".into(),
            hint: "pico app logs web".into(),
            retryable: true,
        }),
        created: at(1_700_000_000),
        finished: at(1_700_000_001),
    };
    let event = v1::Event {
        number: 7,
        at: at(1_700_000_000),
        kind: "app.state".into(),
        app_id: "a1".into(),
        owner: "ann".into(),
        app_name: "web".into(),
        state: v1::AppState::Hot.into(),
        reason: "80/tcp".into(),
        ..v1::Event::default()
    };
    let explained = v1::ExplainAppResponse {
        app: None,
        next: "sleeps in 8s".into(),
        facts: vec![v1::Fact {
            subject: "last packet".into(),
            text: "2s ago".into(),
        }],
    };
    let line = v1::LogLine {
        at: at(1_700_000_000),
        stream: "stdout".into(),
        text: b"a\xff".to_vec(),
    };
    vec![
        app(&whole_app()).document,
        app(&v1::App::default()).document,
        apps(&[], false).document,
        explain(&explained).document,
        operation(&failed, "web").document,
        applied("web", "create", true).document,
        tokens(std::slice::from_ref(&token)).document,
        whoami(&token).document,
        new_token(&v1::CreateTokenResponse {
            token: Some(token.clone()),
            secret: "s".into(),
        })
        .document,
        agents(std::slice::from_ref(&agent)).document,
        self::agent(&agent).document,
        self::event(&event).document,
        log_line(&line),
        removed("token", "t1").document,
    ]
}

#[test]
fn every_document_has_the_shape_that_is_promised() {
    let documents = documents();
    let printed: String = documents.iter().map(|document| format!("{document}\n")).collect();
    for (line, (now, promised)) in printed.lines().zip(GOLDEN.lines()).enumerate() {
        assert_eq!(now, promised, "line {} of golden.jsonl", line + 1);
    }
    assert_eq!(printed.lines().count(), GOLDEN.lines().count(), "\n{printed}");
}

#[test]
fn people_read_the_same_in_words() {
    let web = whole_app();
    let list = apps(std::slice::from_ref(&web), true);
    let (header, row) = list.text.trim_end().split_once('\n').unwrap();
    assert!(header.starts_with("NAME") && header.contains("DNS"), "{header}");
    assert!(
        row.contains("10.77.0.2") && row.contains("web-ann.pico.example"),
        "{row}"
    );
    assert!(!apps(std::slice::from_ref(&web), false).text.contains("DNS"));
    let shown = app(&web).text;
    assert!(shown.contains("25.5 ms from cold by 80/tcp"), "{shown}");
    assert_eq!(status(&web).text, "web is cold: idle for 1m\n");
    assert_eq!(list.names, ["web"]);
}

#[test]
fn a_time_out_of_range_is_no_time() {
    let odd = prost_types::Timestamp {
        seconds: -1,
        nanos: -1,
    };
    assert_eq!(time_json(Some(&odd)), Value::Null);
}
