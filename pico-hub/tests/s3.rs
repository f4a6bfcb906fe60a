//! The embedded store as its clients meet it: every operation through the AWS SDK, over a real socket.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, Delete, EncodingType};
use aws_sdk_s3::types::{MetadataDirective, ObjectIdentifier};
use common::{BUCKET, Running, client_with, code, noise, status};

#[tokio::test(flavor = "multi_thread")]
async fn buckets_are_made_listed_and_deleted() {
    let server = Running::start().await;
    let s3 = server.client();
    let again = s3.create_bucket().bucket(BUCKET).send().await;
    assert_eq!(code(&again), "BucketAlreadyOwnedByYou");
    s3.create_bucket().bucket("another").send().await.unwrap();
    let names = async || {
        let list = s3.list_buckets().send().await.unwrap();
        list.buckets()
            .iter()
            .map(|bucket| bucket.name().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names().await, ["another", BUCKET]);
    s3.head_bucket().bucket("another").send().await.unwrap();
    assert_eq!(status(&s3.head_bucket().bucket("missing").send().await), 404);
    assert_eq!(
        code(&s3.create_bucket().bucket("UPPER").send().await),
        "InvalidBucketName"
    );
    s3.get_bucket_location().bucket("another").send().await.unwrap();

    s3.put_object().bucket("another").key("k").send().await.unwrap();
    assert_eq!(
        code(&s3.delete_bucket().bucket("another").send().await),
        "BucketNotEmpty"
    );
    s3.delete_object()
        .bucket("another")
        .key("k")
        .send()
        .await
        .unwrap();
    s3.delete_bucket().bucket("another").send().await.unwrap();
    assert_eq!(names().await, [BUCKET]);
    assert_eq!(
        code(&s3.put_object().bucket("another").key("k").send().await),
        "NoSuchBucket"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_comes_back_with_all_that_was_said_of_it() {
    let server = Running::start().await;
    let s3 = server.client();
    let put = s3
        .put_object()
        .bucket(BUCKET)
        .key("a/b c+ü")
        .body(ByteStream::from_static(b"hello"));
    let put = put
        .content_type("text/x-test")
        .cache_control("no-store")
        .metadata("owner", "web")
        .send()
        .await
        .unwrap();
    assert_eq!(put.e_tag(), Some("\"5d41402abc4b2a76b9719d911017c592\""));
    assert!(
        put.checksum_crc32().is_some(),
        "the SDK sends it, we verify and echo it"
    );

    let head = s3
        .head_object()
        .bucket(BUCKET)
        .key("a/b c+ü")
        .send()
        .await
        .unwrap();
    assert_eq!((head.content_length(), head.e_tag()), (Some(5), put.e_tag()));
    let get = s3
        .get_object()
        .bucket(BUCKET)
        .key("a/b c+ü")
        .send()
        .await
        .unwrap();
    assert_eq!(
        (get.content_type(), get.cache_control()),
        (Some("text/x-test"), Some("no-store"))
    );
    assert_eq!(get.metadata().unwrap()["owner"], "web");
    assert!(get.last_modified().is_some() && get.content_range().is_none());
    assert_eq!(get.checksum_crc32(), put.checksum_crc32());
    assert_eq!(get.body.collect().await.unwrap().to_vec(), b"hello");
    let get = s3
        .get_object()
        .bucket(BUCKET)
        .key("a/b c+ü")
        .response_content_type("a/b")
        .send()
        .await
        .unwrap();
    assert_eq!(get.content_type(), Some("a/b"));

    assert_eq!(
        code(&s3.get_object().bucket(BUCKET).key("missing").send().await),
        "NoSuchKey"
    );
    assert_eq!(
        status(&s3.head_object().bucket(BUCKET).key("missing").send().await),
        404
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_taken_as_they_are() {
    let server = Running::start().await;
    let s3 = server.client();
    let long = "x/".repeat(512);
    let keys = [
        "..",
        "../up",
        "/lead",
        "a//b",
        "a/./b",
        "a/../b",
        "%2e%2e/x",
        "sp ace",
        "q?&=#",
        "ü€𐍈",
        "~",
        &long,
    ];
    for key in keys {
        let body = ByteStream::from(key.as_bytes().to_vec());
        s3.put_object()
            .bucket(BUCKET)
            .key(key)
            .body(body)
            .if_none_match("*")
            .send()
            .await
            .unwrap();
    }
    for key in keys {
        let get = s3.get_object().bucket(BUCKET).key(key).send().await.unwrap();
        assert_eq!(get.body.collect().await.unwrap().to_vec(), key.as_bytes());
    }
    let list = s3.list_objects_v2().bucket(BUCKET).send().await.unwrap();
    let mut sorted = keys.to_vec();
    sorted.sort_unstable();
    assert_eq!(
        list.contents()
            .iter()
            .map(|object| object.key().unwrap())
            .collect::<Vec<_>>(),
        sorted
    );
    let list = s3
        .list_objects_v2()
        .bucket(BUCKET)
        .encoding_type(EncodingType::Url)
        .prefix("q")
        .send()
        .await
        .unwrap();
    assert_eq!(list.contents()[0].key(), Some("q%3F%26%3D%23"));
    let long = "k".repeat(1025);
    assert_eq!(
        code(&s3.put_object().bucket(BUCKET).key(long).send().await),
        "KeyTooLongError"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_give_exactly_their_bytes() {
    let server = Running::start().await;
    let s3 = server.client();
    let bytes = noise(3 << 20);
    s3.put_object()
        .bucket(BUCKET)
        .key("k")
        .body(bytes.clone().into())
        .send()
        .await
        .unwrap();
    let size = bytes.len();
    for (header, first, end) in [
        ("bytes=0-0", 0, 1),
        ("bytes=65536-131071", 65536, 131_072),
        ("bytes=100-2500000", 100, 2_500_001),
        ("bytes=3145000-", 3_145_000, size),
        ("bytes=3145000-99999999", 3_145_000, size),
        ("bytes=-7", size - 7, size),
        ("bytes=-99999999", 0, size),
    ] {
        let get = s3
            .get_object()
            .bucket(BUCKET)
            .key("k")
            .range(header)
            .send()
            .await
            .unwrap();
        assert_eq!(
            get.content_range(),
            Some(&*format!("bytes {first}-{}/{size}", end - 1)),
            "{header}"
        );
        assert_eq!(get.content_length(), Some(i64::try_from(end - first).unwrap()));
        assert!(
            get.body.collect().await.unwrap().to_vec() == bytes[first..end],
            "{header}"
        );
    }
    for header in [format!("bytes={size}-"), "bytes=-0".to_owned()] {
        let get = s3
            .get_object()
            .bucket(BUCKET)
            .key("k")
            .range(&header)
            .send()
            .await;
        assert_eq!(
            (status(&get), code(&get)),
            (416, "InvalidRange".to_owned()),
            "{header}"
        );
    }
    s3.put_object().bucket(BUCKET).key("empty").send().await.unwrap();
    assert_eq!(
        status(
            &s3.get_object()
                .bucket(BUCKET)
                .key("empty")
                .range("bytes=-1")
                .send()
                .await
        ),
        416
    );
    let get = s3.get_object().bucket(BUCKET).key("empty").send().await.unwrap();
    assert_eq!(get.body.collect().await.unwrap().to_vec(), b"");
    let head = s3
        .head_object()
        .bucket(BUCKET)
        .key("k")
        .range("bytes=0-9")
        .send()
        .await
        .unwrap();
    assert_eq!(head.content_length(), Some(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_keep_their_conditions() {
    let server = Running::start().await;
    let s3 = server.client();
    let put = s3
        .put_object()
        .bucket(BUCKET)
        .key("k")
        .body(ByteStream::from_static(b"1"))
        .send()
        .await
        .unwrap();
    let tag = put.e_tag().unwrap();
    let get = || s3.get_object().bucket(BUCKET).key("k");
    get().if_match(tag).send().await.unwrap();
    assert_eq!(status(&get().if_match("\"other\"").send().await), 412);
    get().if_none_match("\"other\"").send().await.unwrap();
    assert_eq!(status(&get().if_none_match(tag).send().await), 304);
    let head = || s3.head_object().bucket(BUCKET).key("k");
    assert_eq!(status(&head().if_match("\"other\"").send().await), 412);
    assert_eq!(status(&head().if_none_match(tag).send().await), 304);
    let modified = *head().send().await.unwrap().last_modified().unwrap();
    assert_eq!(status(&get().if_modified_since(modified).send().await), 304);
    get().if_unmodified_since(modified).send().await.unwrap();
    let before = aws_sdk_s3::primitives::DateTime::from_secs(modified.secs() - 10);
    assert_eq!(status(&get().if_unmodified_since(before).send().await), 412);
    get().if_modified_since(before).send().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_keep_their_conditions() {
    let server = Running::start().await;
    let s3 = server.client();
    let put = |body: &'static [u8]| {
        s3.put_object()
            .bucket(BUCKET)
            .key("k")
            .body(ByteStream::from_static(body))
    };
    let missing = put(b"0").if_match("\"tag\"").send().await;
    assert_eq!((status(&missing), code(&missing)), (404, "NoSuchKey".to_owned()));
    let first = put(b"1").if_none_match("*").send().await.unwrap();
    let twice = put(b"2").if_none_match("*").send().await;
    assert_eq!(
        (status(&twice), code(&twice)),
        (412, "PreconditionFailed".to_owned())
    );
    let second = put(b"2").if_match(first.e_tag().unwrap()).send().await.unwrap();
    assert_eq!(
        status(&put(b"3").if_match(first.e_tag().unwrap()).send().await),
        412
    );
    assert_eq!(
        code(&put(b"3").if_none_match("\"tag\"").send().await),
        "NotImplemented"
    );
    let get = s3.get_object().bucket(BUCKET).key("k").send().await.unwrap();
    assert_eq!(get.body.collect().await.unwrap().to_vec(), b"2");
    let delete = || s3.delete_object().bucket(BUCKET).key("k");
    assert_eq!(
        status(&delete().if_match(first.e_tag().unwrap()).send().await),
        412
    );
    delete().if_match(second.e_tag().unwrap()).send().await.unwrap();
    delete().send().await.unwrap();
}

/// Eight clients, each with its own connections, race forty rounds of creating one key, then forty of
/// swapping one.
#[tokio::test(flavor = "multi_thread")]
async fn every_race_has_exactly_one_winner() {
    let server = Running::start().await;
    let clients: Vec<_> = (0..8).map(|_| server.client()).collect();
    for round in 0..40 {
        let mut tag: Option<String> = None;
        for swap in [false, true] {
            let racers = clients.iter().enumerate().map(|(me, s3)| {
                let put = s3.put_object().bucket(BUCKET).key(format!("round-{round}"));
                let put = put.body(format!("{swap} {me}").into_bytes().into());
                let put = match &tag {
                    Some(tag) => put.if_match(tag),
                    None => put.if_none_match("*"),
                };
                tokio::spawn(put.send())
            });
            let racers: Vec<_> = racers.collect();
            let mut winners = Vec::new();
            for racer in racers {
                match racer.await.unwrap() {
                    Ok(put) => winners.push(put.e_tag().unwrap().to_owned()),
                    lost => assert_eq!(status(&lost), 412),
                }
            }
            assert_eq!(winners.len(), 1, "round {round}, swap {swap}");
            tag = winners.pop();
        }
        let head = clients[0]
            .head_object()
            .bucket(BUCKET)
            .key(format!("round-{round}"))
            .send()
            .await
            .unwrap();
        assert_eq!(head.e_tag(), tag.as_deref());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_objects_are_deleted_at_once() {
    let server = Running::start().await;
    let s3 = server.client();
    for key in ["a", "b", "c"] {
        s3.put_object().bucket(BUCKET).key(key).send().await.unwrap();
    }
    let ids = ["a", "c", "missing"].map(|key| ObjectIdentifier::builder().key(key).build().unwrap());
    let delete = Delete::builder().set_objects(Some(ids.to_vec())).build().unwrap();
    let out = s3
        .delete_objects()
        .bucket(BUCKET)
        .delete(delete)
        .send()
        .await
        .unwrap();
    assert_eq!((out.deleted().len(), out.errors().len()), (3, 0));
    let list = s3.list_objects_v2().bucket(BUCKET).send().await.unwrap();
    assert_eq!(
        list.contents()
            .iter()
            .map(|object| object.key().unwrap())
            .collect::<Vec<_>>(),
        ["b"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_have_prefix_delimiter_pages_and_a_start() {
    let server = Running::start().await;
    let s3 = server.client();
    for key in ["apps/a/1", "apps/a/2", "apps/b/1", "apps/c", "other"] {
        s3.put_object()
            .bucket(BUCKET)
            .key(key)
            .body(ByteStream::from_static(b"12"))
            .send()
            .await
            .unwrap();
    }
    let list = || s3.list_objects_v2().bucket(BUCKET);
    let out = list().prefix("apps/").delimiter("/").send().await.unwrap();
    assert_eq!(
        out.contents()
            .iter()
            .map(|object| object.key().unwrap())
            .collect::<Vec<_>>(),
        ["apps/c"]
    );
    let groups: Vec<_> = out
        .common_prefixes()
        .iter()
        .map(|group| group.prefix().unwrap())
        .collect();
    assert_eq!(groups, ["apps/a/", "apps/b/"]);
    assert_eq!((out.key_count(), out.is_truncated()), (Some(3), Some(false)));
    assert_eq!(out.contents()[0].size(), Some(2));

    let mut pages = list().max_keys(2).into_paginator().send();
    let mut seen = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.unwrap();
        assert!(page.contents().len() <= 2);
        seen.extend(
            page.contents()
                .iter()
                .map(|object| object.key().unwrap().to_owned()),
        );
    }
    assert_eq!(seen, ["apps/a/1", "apps/a/2", "apps/b/1", "apps/c", "other"]);
    let out = list().start_after("apps/b/1").send().await.unwrap();
    assert_eq!(out.contents().len(), 2);
    assert_eq!(
        code(&list().continuation_token("nonsense").send().await),
        "InvalidArgument"
    );
    assert_eq!(code(&list().bucket("missing").send().await), "NoSuchBucket");
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_copied_with_or_without_their_metadata() {
    let server = Running::start().await;
    let s3 = server.client();
    let bytes = noise(100_000);
    let put = s3
        .put_object()
        .bucket(BUCKET)
        .key("from /x")
        .metadata("a", "1")
        .body(bytes.clone().into());
    let tag = put.send().await.unwrap().e_tag.unwrap();
    let copy = |to: &str| {
        s3.copy_object()
            .bucket(BUCKET)
            .key(to)
            .copy_source(format!("{BUCKET}/from%20/x"))
    };
    copy("kept").copy_source_if_match(&tag).send().await.unwrap();
    copy("new")
        .metadata_directive(MetadataDirective::Replace)
        .metadata("b", "2")
        .send()
        .await
        .unwrap();
    for (key, name) in [("kept", "a"), ("new", "b")] {
        let get = s3.get_object().bucket(BUCKET).key(key).send().await.unwrap();
        assert_eq!(get.metadata().unwrap().keys().collect::<Vec<_>>(), [name]);
        assert_eq!(get.e_tag(), Some(tag.as_str()));
        assert!(get.body.collect().await.unwrap().to_vec() == bytes);
    }
    assert_eq!(
        status(&copy("no").copy_source_if_match("\"other\"").send().await),
        412
    );
    let missing = s3
        .copy_object()
        .bucket(BUCKET)
        .key("no")
        .copy_source(format!("{BUCKET}/missing"))
        .send()
        .await;
    assert_eq!(code(&missing), "NoSuchKey");
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_in_parts_are_completed_listed_and_aborted() {
    let server = Running::start().await;
    let s3 = server.client();
    let create = || {
        s3.create_multipart_upload()
            .bucket(BUCKET)
            .key("big")
            .metadata("m", "1")
    };
    let id = create().send().await.unwrap().upload_id.unwrap();
    let bytes = noise((5 << 20) + 1000);
    let (one, two) = bytes.split_at(5 << 20);
    let mut parts = Vec::new();
    for (number, bytes) in [(1, one), (2, two)] {
        let part = s3
            .upload_part()
            .bucket(BUCKET)
            .key("big")
            .upload_id(&id)
            .part_number(number);
        let part = part.body(bytes.to_vec().into()).send().await.unwrap();
        parts.push(
            CompletedPart::builder()
                .part_number(number)
                .e_tag(part.e_tag.unwrap())
                .build(),
        );
    }
    let listed = s3
        .list_parts()
        .bucket(BUCKET)
        .key("big")
        .upload_id(&id)
        .max_parts(1)
        .send()
        .await
        .unwrap();
    assert_eq!((listed.parts().len(), listed.is_truncated()), (1, Some(true)));
    let uploads = s3.list_multipart_uploads().bucket(BUCKET).send().await.unwrap();
    assert_eq!(uploads.uploads()[0].upload_id(), Some(id.as_str()));

    let chosen = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    let complete = |id: &str| {
        let complete = s3
            .complete_multipart_upload()
            .bucket(BUCKET)
            .key("big")
            .upload_id(id);
        complete.multipart_upload(chosen.clone())
    };
    assert_eq!(status(&complete(&id).if_match("\"x\"").send().await), 404);
    let done = complete(&id).if_none_match("*").send().await.unwrap();
    assert!(done.e_tag().unwrap().ends_with("-2\""));
    let get = s3.get_object().bucket(BUCKET).key("big").send().await.unwrap();
    assert_eq!(get.metadata().unwrap()["m"], "1");
    assert!(get.body.collect().await.unwrap().to_vec() == bytes);
    assert_eq!(code(&complete(&id).send().await), "NoSuchUpload");

    let id = create().send().await.unwrap().upload_id.unwrap();
    s3.abort_multipart_upload()
        .bucket(BUCKET)
        .key("big")
        .upload_id(&id)
        .send()
        .await
        .unwrap();
    let part = s3
        .upload_part()
        .bucket(BUCKET)
        .key("big")
        .upload_id(&id)
        .part_number(1);
    assert_eq!(
        code(&part.body(ByteStream::from_static(b"x")).send().await),
        "NoSuchUpload"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_checksums_are_refused_and_right_ones_of_every_kind_taken() {
    let server = Running::start().await;
    let s3 = server.client();
    let put = |key: &str| {
        s3.put_object()
            .bucket(BUCKET)
            .key(key)
            .body(ByteStream::from_static(b"hello"))
    };
    assert_eq!(
        code(&put("bad").checksum_crc32("AAAAAA==").send().await),
        "BadDigest"
    );
    assert_eq!(
        code(&put("bad").content_md5("AAAAAAAAAAAAAAAAAAAAAA==").send().await),
        "BadDigest"
    );
    assert_eq!(
        status(&s3.head_object().bucket(BUCKET).key("bad").send().await),
        404
    );
    put("md5")
        .content_md5("XUFAKrxLKna5cZ2REBfFkg==")
        .send()
        .await
        .unwrap();
    for algorithm in [
        ChecksumAlgorithm::Crc32,
        ChecksumAlgorithm::Crc32C,
        ChecksumAlgorithm::Crc64Nvme,
        ChecksumAlgorithm::Sha1,
        ChecksumAlgorithm::Sha256,
    ] {
        put("good").checksum_algorithm(algorithm).send().await.unwrap();
        let get = s3.get_object().bucket(BUCKET).key("good").send().await.unwrap();
        assert_eq!(
            get.body.collect().await.unwrap().to_vec(),
            b"hello",
            "verified by the SDK as well"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_right_signature_is_served() {
    let server = Running::start().await;
    let (endpoint, id) = (
        server.credentials.endpoint.clone(),
        server.credentials.access_key_id.clone(),
    );
    let wrong = client_with(&endpoint, &id, "wrong");
    let put = wrong
        .put_object()
        .bucket(BUCKET)
        .key("k")
        .body(ByteStream::from_static(b"x"))
        .send()
        .await;
    assert_eq!(
        (status(&put), code(&put)),
        (403, "SignatureDoesNotMatch".to_owned())
    );
    let unknown = client_with(&endpoint, "nobody", &server.credentials.secret_access_key);
    assert_eq!(code(&unknown.list_buckets().send().await), "InvalidAccessKeyId");
    assert_eq!(
        status(&wrong.get_object().bucket(BUCKET).key("k").send().await),
        403
    );
    let answer = server
        .exchange(&format!(
            "GET /{BUCKET}/k HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        ))
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 403") && answer.contains("AccessDenied"),
        "{answer}"
    );
    assert_eq!(
        status(&server.client().head_object().bucket(BUCKET).key("k").send().await),
        404
    );
}

/// Not a bench: bounds wide enough for a busy machine, that a lost TCP_NODELAY or a whole-object read breaks.
#[tokio::test(flavor = "multi_thread")]
async fn large_objects_stream_and_small_ranges_are_quick() {
    let server = Running::start().await;
    let s3 = server.client();
    let bytes = noise(60 << 20);
    let begin = Instant::now();
    s3.put_object()
        .bucket(BUCKET)
        .key("big")
        .body(bytes.clone().into())
        .send()
        .await
        .unwrap();
    let put = begin.elapsed();
    let begin = Instant::now();
    let get = s3.get_object().bucket(BUCKET).key("big").send().await.unwrap();
    assert!(get.body.collect().await.unwrap().to_vec() == bytes);
    let whole = begin.elapsed();
    let mut times = Vec::new();
    for at in 0..200_usize {
        let first = at * 65536 * 4;
        let begin = Instant::now();
        let range = format!("bytes={first}-{}", first + 65535);
        let get = s3
            .get_object()
            .bucket(BUCKET)
            .key("big")
            .range(range)
            .send()
            .await
            .unwrap();
        let body = get.body.collect().await.unwrap().to_vec();
        times.push(begin.elapsed());
        assert!(body == bytes[first..first + 65536]);
    }
    times.sort_unstable();
    eprintln!(
        "put 60 MiB {put:?}, get 60 MiB {whole:?}, 64 KiB ranges median {:?}, worst {:?}",
        times[100], times[199]
    );
    assert!(times[100] < Duration::from_millis(20), "median {:?}", times[100]);
}
