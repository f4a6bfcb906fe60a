//! Tests of the client against wrong, late and missing answers. What a right server does is tested with
//! one, in the scenario tests.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use bytes::Bytes;
use tokio::net::TcpListener;

use super::client::{ETag, Precondition, Store};
use super::error::StoreError;
use super::test_server::{Answer, Server, config, error, hurried, ok, part, small_store};
use crate::checkpoint::hash::Digest;

#[tokio::test]
async fn a_range_is_asked_for_exactly_and_with_its_tag() {
    let server = Server::always(part("bytes 10-14/100", b"hello")).await;
    let tag = ETag("\"tag\"".into());
    let range = server
        .store
        .get_range("apps/web/1/pages-0", 10, 5, Some(&tag))
        .await
        .unwrap();
    assert_eq!(&range[..], b"hello");
    let asked = &server.asked()[0];
    assert_eq!(asked.headers["range"], "bytes=10-14");
    assert_eq!(asked.headers["if-match"], "\"tag\"");
    // Path style, and below the prefix.
    assert!(
        asked.target.starts_with("/bucket/pre/fix/apps/web/1/pages-0?"),
        "{}",
        asked.target
    );
    assert!(asked.headers["authorization"].starts_with("AWS4-HMAC-SHA256 Credential=id/"));
    let stats = server.store.stats();
    assert_eq!((stats.gets, stats.puts, stats.bytes_in), (1, 0, 5));
}

#[tokio::test]
async fn a_range_of_the_wrong_length_or_place_is_never_returned() {
    let tag = || ("etag", "\"tag\"".to_owned());
    let place = |range: &str| ("content-range", range.to_owned());
    for (what, answer) in [
        ("shorter", part("bytes 10-13/14", b"hell")),
        ("longer", part("bytes 10-15/100", b"hello!")),
        ("shorter than it says", part("bytes 10-14/100", b"hell")),
        ("longer than it says", part("bytes 10-14/100", b"hello!")),
        ("elsewhere", part("bytes 0-4/100", b"hello")),
        ("no range", ok(b"0123456789hello")),
        ("no range, of that length by chance", ok(b"hello")),
        (
            "cut",
            Answer::Cut(206, vec![tag(), place("bytes 10-14/100")], 5, b"he".to_vec()),
        ),
    ] {
        let server = Server::always(answer).await;
        let result = server.store.get_range("key", 10, 5, None).await;
        let refused = matches!(
            result,
            Err(StoreError::WrongAnswer { .. } | StoreError::TooLarge { .. })
        );
        assert!(refused, "{what}: {result:?}");
    }
    let server = Server::always(error(412, "PreconditionFailed")).await;
    let tag = ETag("\"old\"".into());
    let result = server.store.get_range("key", 0, 5, Some(&tag)).await;
    assert!(matches!(result, Err(StoreError::Changed { .. })), "{result:?}");
    assert_eq!(server.asked().len(), 1, "what is final is not repeated");
}

#[tokio::test]
async fn no_bytes_need_no_request() {
    let server = Server::always(Answer::Silence).await;
    assert!(
        server
            .store
            .get_range("key", 10, 0, None)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(server.asked().len(), 0);
}

#[tokio::test]
async fn a_content_that_was_cut_once_is_read_again() {
    let server = Server::start(|n, _| match n {
        0 => Answer::Cut(200, vec![("etag", "\"tag\"".into())], 7, b"con".to_vec()),
        1 => Answer::HangUp,
        _ => ok(b"content"),
    })
    .await;
    let (content, tag) = server.store.get("key", 100).await.unwrap();
    assert_eq!((&content[..], tag), (&b"content"[..], ETag("\"tag\"".into())));
    assert_eq!(server.store.stats().gets, 3);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let server = Server::start(|n, _| match n {
        0 => Answer::Cut(
            200,
            vec![("etag", "\"tag\"".into())],
            99,
            b"quite something else".to_vec(),
        ),
        _ => ok(b"content"),
    })
    .await;
    assert_eq!(
        server.store.get_file("key", &path, 100).await.unwrap(),
        Digest::of(b"content")
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"content");
}

#[tokio::test]
async fn an_object_over_the_limit_is_refused_before_it_is_read() {
    // The bytes never come: only the length that the head claims can end this in time.
    let server = Server::always(Answer::Stall(1 << 40, vec![])).await;
    let result = server.store.get("key", 1000).await;
    assert!(matches!(result, Err(StoreError::TooLarge { bytes, limit: 1000, .. }) if bytes == 1 << 40));
    // No length is claimed, and the content does not end.
    let chunks = vec![
        ("etag", "\"tag\"".to_owned()),
        ("transfer-encoding", "chunked".to_owned()),
    ];
    let body = [
        b"400\r\n",
        &vec![b'x'; 0x400][..],
        b"\r\n400\r\n",
        &vec![b'x'; 0x400],
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    let server = Server::start(move |_, _| Answer::Send(200, chunks.clone(), body.clone())).await;
    let result = server.store.get("key", 1500).await;
    assert!(
        matches!(
            result,
            Err(StoreError::TooLarge { limit: 1500, .. } | StoreError::Unreachable { .. })
        ),
        "{result:?}"
    );
    assert_eq!(
        server.asked().len(),
        if matches!(result, Err(StoreError::TooLarge { .. })) {
            1
        } else {
            3
        }
    );
}

#[tokio::test]
async fn silence_is_waited_for_only_so_long() {
    for answer in [Answer::Silence, Answer::Stall(7, b"con".to_vec())] {
        let server = Server::always(answer).await;
        let result = server.store.get("key", 100).await;
        assert!(
            matches!(&result, Err(e @ StoreError::Timeout { .. }) if e.is_transient()),
            "{result:?}"
        );
        assert_eq!(server.asked().len(), 3);
    }
}

#[tokio::test]
async fn a_busy_store_is_asked_again_but_not_for_ever() {
    let server = Server::start(|n, _| if n < 2 { error(503, "SlowDown") } else { ok(b"") }).await;
    server
        .store
        .put("key", Bytes::from_static(b"content"))
        .await
        .unwrap();
    assert_eq!(server.asked()[2].body, b"content");
    assert_eq!(server.store.stats().puts, 3);
    assert_eq!(server.store.stats().bytes_out, 7);

    let server = Server::always(error(503, "SlowDown")).await;
    let result = server.store.put("key", Bytes::from_static(b"content")).await;
    assert!(matches!(&result, Err(e @ StoreError::Refused { status: 503, .. }) if e.is_transient()));
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn a_file_is_sent_as_it_is_and_sent_again_if_need_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    std::fs::write(&path, &content).unwrap();
    let server = Server::start(|n, _| {
        if n == 0 {
            error(500, "InternalError")
        } else {
            ok(b"")
        }
    })
    .await;
    server.store.put_file("key", &path).await.unwrap();
    let asked = server.asked();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|asked| asked.body == content));
    let missing = server.store.put_file("key", Path::new("/nonexistent/file")).await;
    assert!(matches!(missing, Err(StoreError::File { .. })));
}

#[tokio::test]
async fn a_conditional_put_tells_losing_from_failing() {
    let put = async |server: &Server, condition| {
        server
            .store
            .put_if("key", Bytes::from_static(b"mine"), condition)
            .await
    };
    let server = Server::always(ok(b"")).await;
    put(&server, Precondition::Absent).await.unwrap();
    put(&server, Precondition::Matches(ETag("\"old\"".into())))
        .await
        .unwrap();
    assert_eq!(server.asked()[0].headers["if-none-match"], "*");
    assert_eq!(server.asked()[1].headers["if-match"], "\"old\"");

    let server = Server::always(error(412, "PreconditionFailed")).await;
    let result = put(&server, Precondition::Absent).await;
    assert!(matches!(result, Err(StoreError::Lost { .. })), "{result:?}");
    assert_eq!(server.asked().len(), 1);

    let server = Server::always(error(404, "NoSuchKey")).await;
    let result = put(&server, Precondition::Matches(ETag("\"old\"".into()))).await;
    assert!(matches!(result, Err(StoreError::Missing { .. })), "{result:?}");

    // A conflict is neither: it is tried again, and not for ever.
    let conflict = || error(409, "ConditionalRequestConflict");
    let server = Server::start(move |n, _| if n < 3 { conflict() } else { ok(b"") }).await;
    put(&server, Precondition::Absent).await.unwrap();
    let server = Server::always(conflict()).await;
    let result = put(&server, Precondition::Absent).await;
    assert!(matches!(&result, Err(e @ StoreError::Refused { status: 409, .. }) if e.is_transient()));
    assert_eq!(server.asked().len(), 5);
}

#[tokio::test]
async fn a_conditional_put_whose_answer_was_lost_still_knows_whether_it_won() {
    for (there, won) in [("mine", true), ("other's", false), ("longer than mine", false)] {
        let server = Server::start(move |n, asked| match (n, asked.method.as_str()) {
            (0, _) => Answer::HangUp,
            (_, "PUT") => error(412, "PreconditionFailed"),
            _ => ok(there.as_bytes()),
        })
        .await;
        let result = server
            .store
            .put_if("key", Bytes::from_static(b"mine"), Precondition::Absent)
            .await;
        match result {
            Ok(tag) => assert!(won && tag == ETag("\"tag\"".into()), "{there}"),
            Err(e) => assert!(!won && matches!(e, StoreError::Lost { .. }), "{there}: {e}"),
        }
    }
}

#[tokio::test]
async fn errors_say_what_is_wrong_and_what_to_do() {
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let store = Store::connect_tuned(&config(nobody.clone()), hurried()).unwrap();
    let error_text = store.check().await.unwrap_err().to_string();
    assert!(
        error_text.contains(&nobody) && error_text.contains("onnection refused"),
        "{error_text}"
    );

    for (answer, words) in [
        (
            error(403, "SignatureDoesNotMatch"),
            "refuses these credentials (SignatureDoesNotMatch): said the server",
        ),
        (
            error(403, "AccessDenied"),
            "refuses these credentials (AccessDenied)",
        ),
        (error(301, "PermanentRedirect"), "`region` in [store]"),
        (error(418, "Teapot"), "418 Teapot: said the server"),
        (
            Answer::Send(200, vec![], b"<html>Welcome to nginx".to_vec()),
            "not an S3 server's answer",
        ),
    ] {
        let server = Server::always(answer).await;
        let text = server.store.check().await.unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
    }

    let server = Server::always(error(404, "NoSuchBucket")).await;
    let mut config = config(format!("http://{}", server.address()));
    config.create_bucket = Some(false);
    let store = Store::connect_tuned(&config, hurried()).unwrap();
    let text = store.check().await.unwrap_err().to_string();
    assert!(
        text.contains("'bucket' does not exist") && text.contains("create_bucket = true"),
        "{text}"
    );
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_found_out() {
    let server = Server::start(small_store(true, true)).await;
    server.store.check().await.unwrap();
    assert_eq!(
        server.asked().last().unwrap().method,
        "DELETE",
        "the probe is cleaned up"
    );
    for (absent, matches, words) in [(false, true, "If-None-Match: *"), (true, false, "If-Match")] {
        let server = Server::start(small_store(absent, matches)).await;
        let result = server.store.check().await;
        assert!(
            matches!(&result, Err(StoreError::NoConditions { condition, .. }) if *condition == words),
            "{result:?}"
        );
        assert_eq!(
            server.asked().last().unwrap().method,
            "DELETE",
            "the probe is cleaned up"
        );
    }
}

#[tokio::test]
async fn a_warm_store_has_its_connections_and_keeps_them() {
    let server = Server::start(|_, asked| match asked.method.as_str() {
        "HEAD" => Answer::Send(200, vec![], vec![]),
        _ => ok(b"content"),
    })
    .await;
    server.store.warm(4).await.unwrap();
    let warm = server.log.lock().unwrap().connections;
    assert!((1..=4).contains(&warm), "{warm}");
    for _ in 0..20 {
        server.store.get("key", 100).await.unwrap();
    }
    assert_eq!(
        server.log.lock().unwrap().connections,
        warm,
        "no request opened another connection"
    );
}

#[tokio::test]
async fn keys_are_listed_and_deleted_without_the_prefix() {
    let server = Server::start(|n, asked| {
        let page = |key: &str, more: &str| {
            let key = format!("<Contents><Key>{key}</Key><Size>7</Size></Contents>");
            let xml = format!("<ListBucketResult>{key}{more}</ListBucketResult>");
            Answer::Send(200, vec![], xml.into_bytes())
        };
        match n {
            0 => page(
                "pre/fix/apps/web/1/index",
                "<IsTruncated>true</IsTruncated><NextContinuationToken>next</NextContinuationToken>",
            ),
            1 => {
                assert!(
                    asked.target.contains("continuation-token=next"),
                    "{}",
                    asked.target
                );
                page("pre/fix/apps/web/manifest.json", "")
            }
            2 => {
                let body = String::from_utf8_lossy(&asked.body).into_owned();
                assert!(
                    body.contains("<Key>pre/fix/a</Key>") && body.contains("<Key>pre/fix/b</Key>"),
                    "{body}"
                );
                Answer::Send(200, vec![], b"<DeleteResult></DeleteResult>".to_vec())
            }
            _ => {
                let denied = "<Error><Key>pre/fix/b</Key><Code>AccessDenied</Code></Error>";
                Answer::Send(
                    200,
                    vec![],
                    format!("<DeleteResult>{denied}</DeleteResult>").into_bytes(),
                )
            }
        }
    })
    .await;
    let listed = server.store.list("apps/web/").await.unwrap();
    let expected = [
        ("apps/web/1/index".to_owned(), 7),
        ("apps/web/manifest.json".to_owned(), 7),
    ];
    assert_eq!(listed, expected);
    assert!(
        server.asked()[0]
            .target
            .contains("prefix=pre%2Ffix%2Fapps%2Fweb%2F")
    );
    server.store.delete(&["a", "b"]).await.unwrap();
    let result = server.store.delete(&["a", "b"]).await;
    assert!(
        matches!(&result, Err(StoreError::Refused { code, .. }) if code == "AccessDenied"),
        "{result:?}"
    );
    server.store.delete::<&str>(&[]).await.unwrap();
    assert_eq!(server.asked().len(), 4);
}

#[test]
fn the_clients_work_can_move_between_threads() {
    fn sendable<T: Send>(_: &T) {}
    let store = Store::connect(&config("http://127.0.0.1:1".into())).unwrap();
    sendable(&store.get("k", 1));
    sendable(&store.get_file("k", Path::new("p"), 1));
    sendable(&store.get_range("k", 0, 1, None));
    sendable(&store.put("k", Bytes::new()));
    sendable(&store.put_file("k", Path::new("p")));
    sendable(&store.put_if("k", Bytes::new(), Precondition::Absent));
    sendable(&store.delete(&["k", "l"]));
    sendable(&store.list("k"));
    sendable(&store.check());
    sendable(&store.warm(1));
}
