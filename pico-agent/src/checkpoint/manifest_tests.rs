//! Tests of the manifest: what is written reads back, what is damaged or absurd is refused.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::*;

prop_compose! {
    fn any_hash()(bytes in any::<[u8; HASH_SIZE]>()) -> Hash { Hash(bytes) }
}

prop_compose! {
    fn root_file()(
        path in "(/[a-z \"\\\\é]{1,8}){1,4}",
        inode in any::<u64>(), size in any::<u64>(), mtime_ns in any::<i64>(), ctime_ns in any::<i64>(),
        blake3 in proptest::option::of(any_hash()),
    ) -> RootFile {
        RootFile { path: PathBuf::from(path), inode, size, mtime_ns, ctime_ns, blake3 }
    }
}

prop_compose! {
    fn manifest()(
        app in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        generation in 1..u64::MAX,
        places in btree_set((any::<u64>(), any::<u32>(), 1..1000u64), 0..6),
        (bundle, index, files) in ((0..OBJECT_MAX, any_hash()), (0..1u64 << 30, any_hash()),
            proptest::option::of((0..OBJECT_MAX, any_hash()))),
        (realtime_ns, monotonic_ns, boottime_ns) in any::<(u64, u64, u64)>(),
        (boot_id, kernel, arch) in any::<(String, String, String)>(),
        sum in any_hash(),
        root_files in vec(root_file(), 0..4),
    ) -> Manifest {
        let object = |key: String, (bytes, blake3)| Object { key, bytes, blake3, unpacked: None };
        let mut places: Vec<_> =
            places.into_iter().map(|(g, n, pages)| ((g % generation + 1, n), pages)).collect();
        places.sort();
        places.dedup_by_key(|(place, _)| *place);
        let pages: Vec<_> = places.into_iter().map(|((generation, number), pages)| {
            let key = keys::pages(&app, generation, number);
            PageObject { generation, number, key, bytes: pages * PAGE_SIZE }
        }).collect();
        let all_sums = pages.iter().map(|page| sums_len(page.bytes)).sum();
        Manifest {
            schema: SCHEMA.into(),
            blake3: Hash([0; HASH_SIZE]),
            requires: vec![],
            generation,
            clocks: Clocks { realtime_ns, monotonic_ns, boottime_ns, boot_id },
            host: Host { kernel, arch },
            bundle: object(keys::bundle(&app, generation), bundle),
            index: object(keys::index(&app, generation), index),
            files: files.map(|f| object(keys::files(&app, generation), f)),
            pages,
            sums: object(keys::sums(&app, generation), (all_sums, sum)),
            root_files,
            app,
        }
    }
}

fn simple() -> Manifest {
    let object = |key| Object {
        key,
        bytes: 1,
        blake3: Hash::of(b"x"),
        unpacked: None,
    };
    Manifest {
        schema: SCHEMA.into(),
        blake3: Hash([0; HASH_SIZE]),
        requires: vec![],
        app: "web".into(),
        generation: 2,
        clocks: Clocks {
            realtime_ns: 1,
            monotonic_ns: 2,
            boottime_ns: 3,
            boot_id: "b".into(),
        },
        host: Host {
            kernel: "6.1".into(),
            arch: "x86_64".into(),
        },
        bundle: object(keys::bundle("web", 2)),
        index: object(keys::index("web", 2)),
        files: None,
        pages: vec![PageObject {
            generation: 1,
            number: 0,
            key: keys::pages("web", 1, 0),
            bytes: 4096,
        }],
        sums: Object {
            bytes: 32,
            ..object(keys::sums("web", 2))
        },
        root_files: vec![],
    }
}

fn decode(document: &[u8]) -> Result<Manifest, ManifestError> {
    Manifest::decode(document, &Limits::default())
}

proptest! {
    #[test]
    fn what_is_written_reads_back(manifest in manifest()) {
        let document = manifest.encode().unwrap();
        let back = decode(&document).unwrap();
        prop_assert_eq!(&back.encode().unwrap(), &document);
        prop_assert_eq!(Manifest { blake3: manifest.blake3, ..back }, manifest);
    }

    #[test]
    fn a_flipped_bit_is_always_found(manifest in manifest(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut document = manifest.encode().unwrap();
        let at = at.index(document.len());
        document[at] ^= 1 << bit;
        prop_assert!(decode(&document).is_err());
    }

    #[test]
    fn any_bytes_are_refused_in_peace(bytes in vec(any::<u8>(), 0..2000)) {
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn a_truncated_document_is_refused(manifest in manifest(), at in any::<prop::sample::Index>()) {
        let document = manifest.encode().unwrap();
        prop_assert!(decode(&document[..at.index(document.len())]).is_err());
    }
}

#[test]
fn another_version_or_an_unknown_requirement_is_refused_by_name() {
    let message = decode(br#"{"schema":"pico.checkpoint/2","pages":"packed"}"#)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("pico.checkpoint/2") && message.contains(SCHEMA),
        "{message}"
    );
    let message = decode(br#"{"schema":"pico.checkpoint/1","requires":["aead"]}"#)
        .unwrap_err()
        .to_string();
    assert!(message.contains("'aead'"), "{message}");
}

#[test]
fn only_bundle_and_files_are_compressed_and_only_where_that_is_required() {
    let mut manifest = simple();
    manifest.bundle.unpacked = Some(100);
    assert!(manifest.encode().is_err());
    manifest.requires = vec![COMPRESSION.into()];
    let document = manifest.encode().unwrap();
    assert_eq!(decode(&document).unwrap().bundle.unpacked, Some(100));
    let change = |change: fn(&mut Manifest)| {
        let mut changed = manifest.clone();
        change(&mut changed);
        changed.encode().unwrap_err().to_string()
    };
    let message = change(|manifest| manifest.index.unpacked = Some(1));
    assert!(
        message.contains("index") && message.contains("compressed"),
        "{message}"
    );
    let message = change(|manifest| manifest.bundle.unpacked = Some(OBJECT_MAX + 1));
    assert!(message.contains("at most"), "{message}");
}

#[test]
fn what_may_be_overlooked_is_overlooked() {
    let zero = Hash([0; HASH_SIZE]);
    let mut document: serde_json::Value = serde_json::from_slice(&simple().encode().unwrap()).unwrap();
    document["packs"] = serde_json::json!([{ "port": "80/tcp" }]);
    document["blake3"] = zero.to_string().into();
    let hash = Hash::of(&serde_json::to_vec(&document).unwrap());
    document["blake3"] = hash.to_string().into();
    assert_eq!(
        decode(&serde_json::to_vec(&document).unwrap()).unwrap().app,
        "web"
    );
}

#[test]
fn what_cannot_be_is_refused() {
    type Change = fn(&mut Manifest);
    let changes: [(&str, Change); 14] = [
        ("app name", |m| m.app = "../web".into()),
        ("app name with capitals", |m| m.app = "Web".into()),
        ("generation 0", |m| m.generation = 0),
        ("another app's object", |m| {
            m.bundle.key = "apps/mail/2/bundle".into()
        }),
        ("a key with ..", |m| {
            m.bundle.key = "apps/web/../mail/2/bundle".into()
        }),
        ("an absolute key", |m| m.index.key = "/apps/web/2/index".into()),
        ("an empty key part", |m| m.index.key = "apps/web//index".into()),
        ("an impossible size", |m| m.index.bytes = u64::MAX),
        ("half a page", |m| m.pages[0].bytes = 4097),
        ("sums that do not fit", |m| m.sums.bytes = 64),
        ("pages of a later generation", |m| m.pages[0].generation = 3),
        ("the same page object twice", |m| m.pages.push(m.pages[0].clone())),
        ("a relative root file", |m| {
            m.root_files.push(RootFile {
                path: "lib/libc.so".into(),
                inode: 0,
                size: 0,
                mtime_ns: 0,
                ctime_ns: 0,
                blake3: None,
            })
        }),
        ("a root file with ..", |m| {
            m.root_files.push(RootFile {
                path: "/lib/../etc/shadow".into(),
                inode: 0,
                size: 0,
                mtime_ns: 0,
                ctime_ns: 0,
                blake3: None,
            })
        }),
    ];
    simple().encode().unwrap();
    for (what, change) in changes {
        let mut manifest = simple();
        change(&mut manifest);
        assert!(manifest.encode().is_err(), "{what}");
        // A hand-made document with a right checksum is refused as well.
        let hash = Hash::of(&serde_json::to_vec(&manifest).unwrap());
        let document = serde_json::to_vec(&Manifest {
            blake3: hash,
            ..manifest
        })
        .unwrap();
        assert!(
            matches!(decode(&document), Err(ManifestError::Wrong(_))),
            "{what}"
        );
    }
}

#[test]
fn a_document_over_the_limit_is_not_even_parsed() {
    let limits = Limits {
        document: 10,
        ..Limits::default()
    };
    let result = Manifest::decode(&simple().encode().unwrap(), &limits);
    assert!(matches!(result, Err(ManifestError::TooLarge { limit: 10, .. })));
}
