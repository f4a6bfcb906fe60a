//! Tests of the local copies: against a model, across processes' views, and after crashes.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicBool, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::tempdir;

use super::*;

/// What block `block` is full of in the object that all tests use: no two are the same, none is zero.
fn fill(block: u64) -> u8 {
    u8::try_from(block % 255).unwrap() + 1
}

/// That block.
fn block(bytes: u64, block: u64) -> Vec<u8> {
    vec![fill(block); block_len(bytes, block).unwrap()]
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64),
    Read { offset: u64, len: u64 },
    ReopenWriter,
    ReopenReader,
    Complete,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => any::<u64>().prop_map(Step::Write),
        5 => (any::<u64>(), 1..40u64).prop_map(|(offset, len)| Step::Read { offset, len }),
        1 => Just(Step::ReopenWriter),
        1 => Just(Step::ReopenReader),
        1 => Just(Step::Complete),
    ];
    vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn readers_see_exactly_what_was_written(pages in 1..100u64, steps in steps()) {
        let bytes = pages * PAGE_SIZE;
        let blocks = block_count(bytes);
        let dir = tempdir().unwrap();
        let cache = PageCache::open(dir.path().join("pages")).unwrap();
        let mut writer = cache.writer(3, 1, bytes).unwrap();
        let mut reader = cache.reader(3, 1).unwrap().unwrap();
        let mut model = vec![false; usize::try_from(blocks).unwrap()];
        for step in steps {
            match step {
                Step::Write(n) => {
                    let n = n % blocks;
                    writer.write_block(n, &block(bytes, n)).unwrap();
                    model[usize::try_from(n).unwrap()] = true;
                }
                Step::Read { offset, len } => {
                    let first = offset % pages;
                    let (offset, end) = (first * PAGE_SIZE, (first + len).min(pages) * PAGE_SIZE);
                    let mut buffer = vec![0; usize::try_from(end - offset).unwrap()];
                    let there = (offset..end).all(|at| model[usize::try_from(at / BLOCK).unwrap()]);
                    prop_assert_eq!(reader.read(offset, &mut buffer).unwrap(), there);
                    if there {
                        for (at, &byte) in (offset..).zip(&buffer) {
                            prop_assert_eq!(byte, fill(at / BLOCK));
                        }
                    }
                    let page = reader.read_page(offset).unwrap();
                    prop_assert_eq!(page.is_some(), model[usize::try_from(offset / BLOCK).unwrap()]);
                }
                Step::ReopenWriter => {
                    drop(writer);
                    writer = cache.writer(3, 1, bytes).unwrap();
                }
                Step::ReopenReader => reader = cache.reader(3, 1).unwrap().unwrap(),
                Step::Complete => {
                    let done = model.iter().all(|&there| there);
                    prop_assert_eq!(writer.complete().is_ok(), done);
                    prop_assert_eq!(cache.complete_path(3, 1).exists(), done);
                }
            }
            for n in 0..blocks {
                prop_assert_eq!(writer.present(n), model[usize::try_from(n).unwrap()]);
                prop_assert_eq!(reader.present(n).unwrap(), model[usize::try_from(n).unwrap()]);
            }
            prop_assert_eq!(writer.missing(), model.iter().filter(|&&there| !there).count() as u64);
        }
        prop_assert!(!reader.present(blocks).unwrap() && !writer.present(blocks));
    }
}

#[test]
fn a_copy_of_another_boot_is_believed_no_more_but_may_be_looked_at() {
    let dir = tempdir().unwrap();
    let cache = PageCache::open(dir.path()).unwrap();
    let bytes = 3 * BLOCK;
    let writer = cache.writer(1, 0, bytes).unwrap();
    writer.write_block(1, &block(bytes, 1)).unwrap();
    drop(writer);
    let bitmap = OpenOptions::new()
        .write(true)
        .open(dir.path().join("1-0.present"))
        .unwrap();
    bitmap.write_all_at(b"00000000-dead-beef", 24).unwrap();

    assert!(
        cache.reader(1, 0).unwrap().is_none(),
        "the shim does not trust it"
    );
    let writer = cache.writer(1, 0, bytes).unwrap();
    assert_eq!(writer.missing(), 3);
    let reader = cache.reader(1, 0).unwrap().unwrap();
    assert_eq!(reader.read_page(BLOCK).unwrap(), None);
    assert_eq!(writer.kept(0), None, "nothing was ever there");
    assert_eq!(writer.kept(1), Some(block(bytes, 1)));
}

#[test]
fn a_damaged_or_cut_bitmap_means_that_nothing_is_there() {
    let dir = tempdir().unwrap();
    let cache = PageCache::open(dir.path()).unwrap();
    let bytes = 3 * BLOCK;
    let (part, present) = (dir.path().join("1-0.part"), dir.path().join("1-0.present"));
    let damages: [&dyn Fn(); 5] = [
        &|| {
            OpenOptions::new()
                .write(true)
                .open(&present)
                .unwrap()
                .set_len(20)
                .unwrap()
        },
        &|| {
            OpenOptions::new()
                .write(true)
                .open(&present)
                .unwrap()
                .set_len(HEADER_SIZE as u64)
                .unwrap()
        },
        &|| fs::remove_file(&part).unwrap(),
        &|| fs::remove_file(&present).unwrap(),
        &|| {
            OpenOptions::new()
                .write(true)
                .open(&part)
                .unwrap()
                .set_len(BLOCK)
                .unwrap()
        },
    ];
    for damage in damages {
        let writer = cache.writer(1, 0, bytes).unwrap();
        writer.write_block(1, &block(bytes, 1)).unwrap();
        drop(writer);
        damage();
        assert_eq!(cache.writer(1, 0, bytes).unwrap().missing(), 3);
    }
}

#[test]
fn a_complete_copy_survives_and_an_adopted_one_is_complete() {
    let dir = tempdir().unwrap();
    let cache = PageCache::open(dir.path()).unwrap();
    let bytes = BLOCK + PAGE_SIZE;
    assert!(cache.reader(1, 0).unwrap().is_none());
    let mut writer = cache.writer(1, 0, bytes).unwrap();
    assert!(matches!(writer.complete(), Err(CacheError::Incomplete(_, 2))));
    for n in 0..2 {
        writer.write_block(n, &block(bytes, n)).unwrap();
    }
    writer.complete().unwrap();
    let names: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["1-0.pages"]);

    let dump = dir.path().join("dump");
    fs::write(&dump, vec![9; PAGE_BYTES]).unwrap();
    cache.adopt(2, 0, &dump).unwrap();
    assert!(cache.writer(2, 0, PAGE_SIZE).unwrap().is_complete());
    assert_eq!(
        cache.reader(2, 0).unwrap().unwrap().read_page(0).unwrap(),
        Some([9; PAGE_BYTES])
    );
    assert!(matches!(
        cache.writer(2, 0, 2 * PAGE_SIZE),
        Err(CacheError::Differs { .. })
    ));
    cache.remove(2, 0).unwrap();
    assert!(cache.reader(2, 0).unwrap().is_none());
    cache.remove(2, 0).unwrap();
}

#[test]
fn what_is_no_block_is_refused() {
    let dir = tempdir().unwrap();
    let cache = PageCache::open(dir.path()).unwrap();
    let bytes = BLOCK + PAGE_SIZE;
    let writer = cache.writer(1, 0, bytes).unwrap();
    for (n, len) in [
        (0, PAGE_BYTES),
        (1, BLOCK_SIZE),
        (2, PAGE_BYTES),
        (u64::MAX, PAGE_BYTES),
        (0, 0),
    ] {
        let result = writer.write_block(n, &vec![1; len]);
        assert!(matches!(result, Err(CacheError::NoBlock { .. })), "{n} {len}");
    }
    assert_eq!(writer.missing(), 2);
    let reader = cache.reader(1, 0).unwrap().unwrap();
    assert!(matches!(reader.read_page(bytes), Err(CacheError::Beyond { .. })));
    assert!(matches!(
        reader.read_page(u64::MAX),
        Err(CacheError::Beyond { .. })
    ));
    for bytes in [0, 1, PAGE_SIZE + 1, OBJECT_MAX + PAGE_SIZE, u64::MAX] {
        assert!(
            matches!(cache.writer(9, 0, bytes), Err(CacheError::Length(..))),
            "{bytes}"
        );
    }
}

#[test]
fn a_copy_has_one_writer() {
    let dir = tempdir().unwrap();
    let cache = PageCache::open(dir.path()).unwrap();
    let writer = cache.writer(1, 0, PAGE_SIZE).unwrap();
    assert!(matches!(cache.writer(1, 0, PAGE_SIZE), Err(CacheError::Busy(_))));
    drop(writer);
    cache.writer(1, 0, PAGE_SIZE).unwrap();
}

#[test]
fn readers_never_see_a_block_before_its_data_while_threads_write() {
    let dir = tempdir().unwrap();
    let cache = PageCache::open(dir.path()).unwrap();
    let bytes = 64 * BLOCK;
    let writer = cache.writer(1, 0, bytes).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let reader = cache.reader(1, 0).unwrap().unwrap();
                let done = &done;
                scope.spawn(move || {
                    loop {
                        let last_round = done.load(Ordering::Acquire);
                        for n in 0..64 {
                            match reader.read_page(n * BLOCK + 5 * PAGE_SIZE).unwrap() {
                                Some(page) => assert_eq!(page, [fill(n); PAGE_BYTES]),
                                None => assert!(!last_round, "block {n} was lost"),
                            }
                        }
                        if last_round {
                            break;
                        }
                    }
                })
            })
            .collect();
        // Neighbouring bits are set by different threads: none may undo another's.
        let writers: Vec<_> = (0..4)
            .map(|thread| {
                let writer = &writer;
                scope.spawn(move || {
                    for n in (0..64).filter(|n| n % 4 == thread) {
                        writer.write_block(n, &block(bytes, n)).unwrap();
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|thread| thread.join().unwrap());
        done.store(true, Ordering::Release);
        readers.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(writer.missing(), 0);
}
