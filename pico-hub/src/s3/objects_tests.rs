//! What must hold of the storage, whatever the threads, the keys and the crashes.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::Barrier;
use std::sync::atomic::AtomicUsize;
use std::thread;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::s3::list::After;
use crate::s3::names;

const BUCKET: &str = "bucket";

fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.create_bucket(BUCKET).unwrap();
    (dir, store)
}

fn reopened(dir: &TempDir, store: Store) -> Store {
    drop(store);
    Store::open(dir.path()).unwrap()
}

fn draft(store: &Store, bytes: &[u8]) -> Draft {
    let mut draft = store.draft().unwrap();
    draft.write(bytes).unwrap();
    draft
}

fn put(store: &Store, key: &str, bytes: &[u8], condition: &Condition) -> Result<Arc<Meta>> {
    store.put(
        BUCKET,
        key,
        draft(store, bytes),
        Attributes::default(),
        None,
        condition,
    )
}

fn get(store: &Store, key: &str) -> Option<Vec<u8>> {
    let (meta, file) = match store.open_object(BUCKET, key) {
        Ok(found) => found,
        Err(StoreError::NoSuchKey(_)) => return None,
        Err(error) => panic!("{error}"),
    };
    let mut bytes = Vec::new();
    file.take(meta.size).read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

fn keys(store: &Store) -> Vec<String> {
    let page = store
        .list(
            BUCKET,
            &Query {
                limit: 1000,
                ..Query::default()
            },
        )
        .unwrap();
    page.entries.iter().map(|meta| meta.key.clone()).collect()
}

/// Every file below `dir`, as paths relative to it.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in read_dir(dir).unwrap() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

#[test]
fn of_many_creators_one_wins() {
    let (_dir, store) = store();
    let barrier = Barrier::new(8);
    let wins: Vec<AtomicUsize> = (0..40).map(|_| AtomicUsize::new(0)).collect();
    thread::scope(|scope| {
        for me in 0..8 {
            let (store, barrier, wins) = (&store, &barrier, &wins);
            scope.spawn(move || {
                for (round, wins) in wins.iter().enumerate() {
                    let draft = draft(store, format!("{me}").as_bytes());
                    barrier.wait();
                    let key = format!("round-{round}");
                    match store.put(
                        BUCKET,
                        &key,
                        draft,
                        Attributes::default(),
                        None,
                        &Condition::Absent,
                    ) {
                        Ok(_) => drop(wins.fetch_add(1, Ordering::Relaxed)),
                        Err(StoreError::PreconditionFailed(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    assert!(
        wins.iter().all(|wins| wins.load(Ordering::Relaxed) == 1),
        "{wins:?}"
    );
}

#[test]
fn of_many_writers_that_saw_the_same_tag_one_wins() {
    let (_dir, store) = store();
    put(&store, "lease", b"start", &Condition::None).unwrap();
    let barrier = Barrier::new(8);
    let wins: Vec<AtomicUsize> = (0..40).map(|_| AtomicUsize::new(0)).collect();
    thread::scope(|scope| {
        for me in 0..8 {
            let (store, barrier, wins) = (&store, &barrier, &wins);
            scope.spawn(move || {
                for (round, wins) in wins.iter().enumerate() {
                    let seen = store.head(BUCKET, "lease").unwrap().etag.clone();
                    barrier.wait();
                    match put(
                        store,
                        "lease",
                        format!("{round} {me}").as_bytes(),
                        &Condition::Matches(seen),
                    ) {
                        Ok(_) => drop(wins.fetch_add(1, Ordering::Relaxed)),
                        Err(StoreError::PreconditionFailed(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                    barrier.wait();
                }
            });
        }
    });
    assert!(
        wins.iter().all(|wins| wins.load(Ordering::Relaxed) == 1),
        "{wins:?}"
    );
}

#[test]
fn a_reader_sees_one_version_whole() {
    let (_dir, store) = store();
    put(&store, "key", &[0; 10_000], &Condition::None).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let bytes = get(&store, "key").unwrap();
                    assert_eq!(bytes.len(), 10_000 + usize::from(bytes[0]));
                    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
                }
            });
        }
        for byte in 1..100_u8 {
            put(
                &store,
                "key",
                &vec![byte; 10_000 + usize::from(byte)],
                &Condition::None,
            )
            .unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn an_acknowledged_object_is_never_in_a_deleted_bucket() {
    let (_dir, store) = store();
    for round in 0..20 {
        thread::scope(|scope| {
            let writer = scope.spawn(|| put(&store, "key", b"x", &Condition::None));
            let deleted = store.delete_bucket(BUCKET);
            let written = writer.join().unwrap();
            assert_ne!(
                written.is_ok(),
                deleted.is_ok(),
                "round {round}: {written:?} {deleted:?}"
            );
        });
        if store.check_bucket(BUCKET).is_ok() {
            store.delete(BUCKET, "key", &Condition::None).unwrap();
        } else {
            store.create_bucket(BUCKET).unwrap();
        }
    }
}

#[test]
fn conditions_tell_a_missing_key_from_a_wrong_tag() {
    let (_dir, store) = store();
    let wrong = Condition::Matches("wrong".to_owned());
    assert!(matches!(
        put(&store, "key", b"1", &wrong),
        Err(StoreError::NoSuchKey(_))
    ));
    assert!(matches!(
        put(&store, "key", b"1", &Condition::Exists),
        Err(StoreError::NoSuchKey(_))
    ));
    let meta = put(&store, "key", b"1", &Condition::Absent).unwrap();
    assert!(matches!(
        put(&store, "key", b"2", &wrong),
        Err(StoreError::PreconditionFailed(_))
    ));
    assert!(matches!(
        store.delete(BUCKET, "key", &wrong),
        Err(StoreError::PreconditionFailed(_))
    ));
    assert_eq!(get(&store, "key").unwrap(), b"1");
    put(&store, "key", b"2", &Condition::Exists).unwrap();
    assert!(put(&store, "key", b"3", &Condition::Matches(meta.etag.clone())).is_err());
}

#[test]
fn what_a_crash_leaves_is_cleared_or_not_shown() {
    let (dir, store) = store();
    put(&store, "key", b"old", &Condition::None).unwrap();
    let objects = dir.path().join("buckets/bucket/objects");
    let old = objects.join(names::object_file("key", 1));
    let kept = fs::read(&old).unwrap();
    put(&store, "key", b"new", &Condition::None).unwrap();
    drop(store);
    // Killed before the old version was unlinked; while writing a draft; while making a bucket.
    fs::write(&old, &kept).unwrap();
    fs::write(dir.path().join("tmp/7"), b"half").unwrap();
    fs::create_dir_all(dir.path().join("tmp/8/objects")).unwrap();
    // Never ours to see, but a disk may do it: half an object under a proper name, and a wrong name.
    let half = objects.join(names::object_file("half", 9));
    fs::write(&half, &kept[..kept.len() / 2]).unwrap();
    fs::write(objects.join(names::object_file("stranger", 10)), &kept).unwrap();

    let store = Store::open(dir.path()).unwrap();
    assert_eq!(get(&store, "key").unwrap(), b"new");
    assert_eq!(keys(&store), ["key"]);
    assert!(!old.exists());
    assert!(half.exists(), "damaged files are evidence");
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    put(&store, "half", b"whole", &Condition::Absent).unwrap();
    let store = reopened(&dir, store);
    assert_eq!(get(&store, "half").unwrap(), b"whole");
}

#[test]
fn a_second_store_on_the_same_directory_is_refused() {
    let (dir, store) = store();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::InUse(_))));
    reopened(&dir, store);
}

#[test]
fn hostile_keys_stay_inside_and_come_back() {
    let (dir, store) = store();
    let long = "../".repeat(341);
    let hostile = [
        "..",
        ".",
        "/",
        "../../../../etc/passwd",
        "/abs",
        "a//b",
        "a/../b",
        "\0",
        "%2e%2e",
        "~",
        &long,
        "ü/\u{10ffff}",
    ];
    for key in hostile {
        put(&store, key, key.as_bytes(), &Condition::Absent).unwrap();
    }
    assert!(matches!(
        put(&store, "", b"", &Condition::None),
        Err(StoreError::BadKeyLength(0))
    ));
    assert!(put(&store, &"k".repeat(1025), b"", &Condition::None).is_err());
    let store = reopened(&dir, store);
    let mut sorted = hostile.to_vec();
    sorted.sort_unstable();
    assert_eq!(keys(&store), sorted);
    for key in hostile {
        assert_eq!(get(&store, key).unwrap(), key.as_bytes());
    }
    let objects = dir.path().join("buckets/bucket/objects");
    assert_eq!(
        files(dir.path())
            .iter()
            .filter(|path| path.parent() == Some(&objects))
            .count(),
        hostile.len()
    );
    assert_eq!(
        files(dir.path()).len(),
        hostile.len() + 2,
        "besides: lock, created"
    );
    for name in ["..", "a", "x/y", "../x", "UPPER", ""] {
        assert!(
            matches!(store.create_bucket(name), Err(StoreError::BadBucketName(_))),
            "{name}"
        );
    }
}

#[test]
fn parts_become_one_object_and_survive_a_restart() {
    let (dir, store) = store();
    let mib5 = vec![b'a'; 5 << 20];
    let mut attributes = Attributes::default();
    attributes
        .headers
        .insert("x-amz-meta-a".to_owned(), "b".to_owned());
    store
        .create_upload(BUCKET, "id", "big", attributes.clone())
        .unwrap();
    let part = |store: &Store, number, bytes: &[u8]| {
        let draft = draft(store, bytes);
        let meta = store
            .put_part(BUCKET, "big", "id", number, draft, Attributes::default())
            .unwrap();
        (number, meta.etag.clone())
    };
    part(&store, 1, b"replaced");
    let (one, three) = (part(&store, 1, &mib5), part(&store, 3, b"end"));
    let store = reopened(&dir, store);
    assert_eq!(store.uploads(BUCKET).unwrap().len(), 1);
    assert_eq!(store.parts(BUCKET, "big", "id").unwrap().len(), 2);

    let complete =
        |chosen: &[(u16, String)], condition| store.complete_upload(BUCKET, "big", "id", chosen, &condition);
    let order = complete(&[three.clone(), one.clone()], Condition::None);
    assert!(matches!(order, Err(StoreError::InvalidPartOrder)));
    let unknown = complete(&[one.clone(), (2, one.1.clone())], Condition::None);
    assert!(matches!(unknown, Err(StoreError::InvalidPart(2))));
    let small = part(&store, 2, b"small");
    let small = complete(&[one.clone(), small, three.clone()], Condition::None);
    assert!(matches!(small, Err(StoreError::PartTooSmall(2))));
    let failed = complete(&[one.clone(), three.clone()], Condition::Exists);
    assert!(
        matches!(failed, Err(StoreError::NoSuchKey(_))),
        "and the upload stays"
    );
    let other = store.complete_upload(
        BUCKET,
        "other",
        "id",
        std::slice::from_ref(&one),
        &Condition::None,
    );
    assert!(matches!(other, Err(StoreError::NoSuchUpload(_))));

    let meta = complete(&[one.clone(), three.clone()], Condition::Absent).unwrap();
    assert!(meta.etag.ends_with("-2"));
    assert_eq!(meta.attributes, attributes);
    assert_eq!(get(&store, "big").unwrap(), [mib5.as_slice(), b"end"].concat());
    assert!(matches!(
        complete(&[one], Condition::None),
        Err(StoreError::NoSuchUpload(_))
    ));
    assert_eq!(
        fs::read_dir(dir.path().join("buckets/bucket/uploads"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn forgotten_uploads_are_removed_at_start() {
    let (dir, store) = store();
    for id in ["old", "young"] {
        store
            .create_upload(BUCKET, id, "key", Attributes::default())
            .unwrap();
    }
    let path = dir.path().join("buckets/bucket/uploads/old/upload.json");
    let mut plan: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    plan["started_ms"] = 0.into();
    fs::write(&path, plan.to_string()).unwrap();
    let store = reopened(&dir, store);
    assert_eq!(store.uploads(BUCKET).unwrap()[0].0, "young");
    store.abort_upload(BUCKET, "key", "young").unwrap();
    assert!(store.abort_upload(BUCKET, "key", "young").is_err());
    assert!(files(&dir.path().join("buckets/bucket/uploads")).is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Put(String, Vec<u8>),
    Create(String, Vec<u8>),
    Swap(String, Vec<u8>),
    Delete(String),
    Copy(String, String),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || "[ab/.]{1,3}";
    let bytes = || proptest::collection::vec(any::<u8>(), 0..20);
    prop_oneof![
        3 => (key(), bytes()).prop_map(|(key, bytes)| Step::Put(key, bytes)),
        3 => (key(), bytes()).prop_map(|(key, bytes)| Step::Create(key, bytes)),
        3 => (key(), bytes()).prop_map(|(key, bytes)| Step::Swap(key, bytes)),
        3 => key().prop_map(Step::Delete),
        1 => (key(), key()).prop_map(|(from, to)| Step::Copy(from, to)),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn it_behaves_like_a_map_and_remembers(steps in proptest::collection::vec(step(), 1..40)) {
        let (dir, mut store) = store();
        let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Put(key, bytes) => {
                    put(&store, &key, &bytes, &Condition::None).unwrap();
                    model.insert(key, bytes);
                }
                Step::Create(key, bytes) => {
                    let won = put(&store, &key, &bytes, &Condition::Absent).is_ok();
                    prop_assert_eq!(won, !model.contains_key(&key));
                    model.entry(key).or_insert(bytes);
                }
                Step::Swap(key, bytes) => {
                    let tag = store.head(BUCKET, &key).map_or("none".to_owned(), |meta| meta.etag.clone());
                    let won = put(&store, &key, &bytes, &Condition::Matches(tag)).is_ok();
                    prop_assert_eq!(won, model.contains_key(&key));
                    model.entry(key).and_modify(|old| *old = bytes);
                }
                Step::Delete(key) => {
                    store.delete(BUCKET, &key, &Condition::None).unwrap();
                    model.remove(&key);
                }
                Step::Copy(from, to) => if let Ok(source) = store.open_object(BUCKET, &from) {
                    store.copy(&source, BUCKET, &to, None, &Condition::None).unwrap();
                    model.insert(to, model[&from].clone());
                },
                Step::Reopen => store = reopened(&dir, store),
            }
        }
        for _ in 0..2 {
            prop_assert_eq!(keys(&store), model.keys().cloned().collect::<Vec<_>>());
            for (key, bytes) in &model {
                prop_assert_eq!(get(&store, key), Some(bytes.clone()));
            }
            store = reopened(&dir, store);
        }
        let files = fs::read_dir(dir.path().join("buckets/bucket/objects")).unwrap().count();
        prop_assert_eq!(files, model.len(), "one file for each object");
    }
}

#[test]
fn a_listing_goes_on_where_the_page_ended_though_keys_come_and_go() {
    let (_dir, store) = store();
    for key in ["a", "b", "c", "d"] {
        put(&store, key, b"", &Condition::None).unwrap();
    }
    let mut query = Query {
        limit: 2,
        ..Query::default()
    };
    let page = store.list(BUCKET, &query).unwrap();
    query.after = page.next;
    assert_eq!(query.after, Some(After::Key("b".to_owned())));
    store
        .delete_many(BUCKET, &["b".to_owned(), "c".to_owned(), "never".to_owned()])
        .unwrap();
    put(&store, "aa", b"", &Condition::None).unwrap();
    let page = store.list(BUCKET, &query).unwrap();
    assert_eq!(
        page.entries
            .iter()
            .map(|meta| meta.key.as_str())
            .collect::<Vec<_>>(),
        ["d"]
    );
    assert_eq!(page.next, None);
}
