//! Bytes that nobody vouches for, arbitrary and real ones that were changed, are read in peace: no panic, and no memory
//! beyond a small multiple of what was given. The entry points are those of the fuzz targets in `pico-agent/fuzz`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "../fuzz/entries.rs"]
mod entries;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use pico_agent::checkpoint::index::{AddressSpace, Object, ObjectId, PageIndex, Run};
use pico_agent::checkpoint::manifest::{Limits, Manifest};
use pico_agent::checkpoint::{archive, bundle};
use pico_agent::criu::images;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// Counts what a thread has.
struct Counting;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
    static MOST: Cell<i64> = const { Cell::new(0) };
}

fn count(bytes: i64) {
    // A thread that ends has no counters any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

// SAFETY: every call goes on to the system's allocator with the arguments it came with; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: the caller keeps to what `GlobalAlloc` asks.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: the caller keeps to what `GlobalAlloc` asks.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Whatever the bytes say, no reader needs more than this beside a few times their length: buffers, paths, messages.
const FIXED: i64 = 1 << 20;
/// A parsed form may be larger than the bytes: a mapping of four bytes becomes two numbers of eight.
const TIMES: i64 = 64;

/// An entry point.
type Reader = fn(&[u8]);

/// Runs `read`, and fails if it took too much memory.
fn bounded(read: Reader, bytes: &[u8]) -> Result<(), TestCaseError> {
    let before = HELD.get();
    MOST.set(before);
    read(bytes);
    let (most, most_allowed) = (MOST.get() - before, FIXED + TIMES * signed(bytes.len()));
    prop_assert!(most <= most_allowed, "{most} bytes of memory for {}", bytes.len());
    Ok(())
}

/// A change that damage or malice might make.
#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    /// Numbers at the edge of what they can be are where arithmetic goes wrong.
    Number(Index, u64),
    Cut(Index),
    Repeat(Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    let number = prop_oneof![
        Just(u64::MAX),
        Just(1 << 63),
        Just(1 << 40),
        Just(u64::from(u32::MAX)),
        Just(0),
        any::<u64>()
    ];
    prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        3 => (any::<Index>(), number).prop_map(|(at, number)| Change::Number(at, number)),
        1 => any::<Index>().prop_map(Change::Cut),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Change::Repeat(from, to)),
    ]
}

fn changed(real: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = real.to_vec();
    for change in changes.iter().filter(|_| !real.is_empty()) {
        if bytes.is_empty() {
            break;
        }
        match change {
            Change::Set(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Change::Number(at, number) => {
                let at = at.index(bytes.len());
                let number = number.to_le_bytes();
                let len = number.len().min(bytes.len() - at);
                bytes[at..at + len].copy_from_slice(&number[..len]);
            }
            Change::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Change::Repeat(from, to) => {
                let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
                let piece = bytes[from.min(to)..from.max(to)].to_vec();
                let at = from.max(to);
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

/// CRIU's files of a real dump.
fn criu_files() -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/criu");
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .expect("the corpus")
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() > 5, "the corpus is incomplete");
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn real_index() -> Vec<u8> {
    let mut index = PageIndex::default();
    for (generation, id) in (1..6).zip(10..) {
        let id_ = ObjectId {
            generation,
            number: id,
        };
        let object = index.intern(Object { id: id_, pages: 100 }).unwrap();
        let mut space = AddressSpace::default();
        for page in 0..10 {
            space.insert(Run {
                page: page * 20,
                count: 5,
                object,
                offset: page * 7,
            });
        }
        index.spaces.push((id, space));
    }
    index.encode()
}

/// A directory of a few small files.
fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, len) in [("core-1.img", 600), ("empty", 0), ("pagemap-1.img", 90)] {
        std::fs::write(dir.path().join(name), vec![7; len]).unwrap();
    }
    dir
}

fn real_bundle() -> Vec<u8> {
    let mut bytes = Vec::new();
    bundle::pack(files().path(), &mut bytes).unwrap();
    bytes
}

fn real_archive() -> Vec<u8> {
    let mut bytes = Vec::new();
    archive::pack(files().path(), &mut bytes).unwrap();
    bytes
}

/// As a swap-out writes it.
const MANIFEST: &str = r#"{"schema":"pico.checkpoint/1","blake3":"","app":"web","generation":2,
"clocks":{"realtime_ns":1,"monotonic_ns":2,"boottime_ns":3,"boot_id":"b"},
"host":{"kernel":"6.1","arch":"x86_64"},
"bundle":{"key":"apps/web/2/bundle","bytes":1,"blake3":"HASH"},
"index":{"key":"apps/web/2/index","bytes":1,"blake3":"HASH"},
"files":{"key":"apps/web/2/files","bytes":1,"blake3":"HASH"},
"pages":[{"generation":1,"number":0,"key":"apps/web/1/pages-0","bytes":4096},
{"generation":2,"number":1,"key":"apps/web/2/pages-1","bytes":8192}],
"sums":{"key":"apps/web/2/sums","bytes":64,"blake3":"HASH"},
"root_files":[{"path":"/lib/x","inode":1,"size":2,"mtime_ns":3,"ctime_ns":4}]}"#;

fn real_manifest() -> Vec<u8> {
    MANIFEST.replace("HASH", &"a".repeat(64)).into_bytes()
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_read_in_peace(bytes in vec(any::<u8>(), 0..3000)) {
        let readers: [Reader; 5] =
            [entries::manifest, entries::index, entries::bundle, entries::archive, entries::criu];
        for read in readers {
            bounded(read, &bytes)?;
        }
    }

    #[test]
    fn real_bytes_that_were_changed_are_read_in_peace(
        changes in vec(change(), 0..6),
        file in any::<Index>(),
    ) {
        let criu = criu_files();
        let real: [(Reader, Vec<u8>); 5] = [
            (entries::manifest, real_manifest()),
            (entries::index, real_index()),
            (entries::bundle, real_bundle()),
            (entries::archive, real_archive()),
            (entries::criu, file.get(&criu).clone()),
        ];
        for (read, bytes) in real {
            bounded(read, &changed(&bytes, &changes))?;
        }
    }
}

#[test]
fn what_the_changes_begin_with_is_accepted() {
    // Otherwise the tests above would only ever see the first check fail.
    let mended = entries::mend_manifest(&real_manifest()).expect("JSON");
    assert!(Manifest::decode(&mended, &Limits::default()).is_ok());
    assert!(PageIndex::decode(&real_index()).is_ok());
    let dir = tempfile::tempdir().unwrap();
    assert!(bundle::unpack(&real_bundle()[..], dir.path()).is_ok());
    let files = criu_files();
    assert!(
        files
            .iter()
            .any(|file| images::split_pagemap(file, &[]).is_ok_and(|map| map.total > 0))
    );
    assert!(
        files
            .iter()
            .any(|file| images::anonymous(file).is_ok_and(|found| !found.lazy.is_empty()))
    );
    assert!(
        files
            .iter()
            .any(|file| images::process_ids(file).is_ok_and(|ids| ids == [1]))
    );
}
