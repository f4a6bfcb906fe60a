//! What is written is read: bounded, in order, across rotations.

use std::time::Duration;

use proptest::prelude::*;

use super::read::{Follower, Line, tail};
use super::watch::Watcher;
use super::*;

fn writer(dir: &Path, stream: Stream) -> LogWriter {
    LogWriter::open(dir, stream, MAX_BYTES, KEEP).unwrap()
}

fn texts(lines: &[Line]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

fn at(second: u64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000)
}

#[test]
fn both_streams_are_read_in_the_order_they_were_printed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut out, mut err) = (
        writer(dir.path(), Stream::Stdout),
        writer(dir.path(), Stream::Stderr),
    );
    out.write_at(b"one\n", at(1)).unwrap();
    err.write_at(b"two\n", at(2)).unwrap();
    out.write_at(b"three\nfo", at(3)).unwrap();
    out.write_at(b"ur", at(4)).unwrap();
    let all = tail(dir.path(), &Stream::ALL, 100).unwrap();
    assert_eq!(texts(&all), ["one", "two", "three", "four"]);
    assert_eq!(all[1].stream, Stream::Stderr);
    assert_eq!(all[3].time, Some(at(3)), "a line has the time of its first byte");
    assert_eq!(
        texts(&tail(dir.path(), &Stream::ALL, 2).unwrap()),
        ["three", "four"]
    );
    assert_eq!(texts(&tail(dir.path(), &[Stream::Stderr], 5).unwrap()), ["two"]);
}

#[test]
fn an_app_that_never_printed_has_no_lines() {
    let dir = tempfile::tempdir().unwrap();
    assert!(
        tail(&dir.path().join("absent"), &Stream::ALL, 10)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn a_new_run_appends_and_does_not_go_on_in_a_torn_line() {
    let dir = tempfile::tempdir().unwrap();
    writer(dir.path(), Stream::Stdout).write(b"cut sho").unwrap();
    writer(dir.path(), Stream::Stdout).write(b"next run\n").unwrap();
    assert_eq!(
        texts(&tail(dir.path(), &Stream::ALL, 10).unwrap()),
        ["cut sho", "next run"]
    );
}

#[test]
fn files_stay_within_their_bounds_even_without_an_end_of_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogWriter::open(dir.path(), Stream::Stdout, 64 * 1024, 2).unwrap();
    for _ in 0..100 {
        log.write(&vec![b'x'; 10_000]).unwrap();
    }
    let mut files = 0;
    for entry in fs::read_dir(dir.path()).unwrap() {
        files += 1;
        let len = entry.unwrap().metadata().unwrap().len();
        assert!(len <= 64 * 1024 + MAX_LINE as u64 + 64, "{len}");
    }
    assert_eq!(files, 3);
}

#[test]
fn a_follower_misses_nothing_across_rotations() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogWriter::open(dir.path(), Stream::Stdout, 500, 20).unwrap();
    log.write(b"before\n").unwrap();
    let (first, mut follower) = Follower::open(dir.path(), &[Stream::Stdout], 10).unwrap();
    assert_eq!(texts(&first), ["before"]);
    let mut seen = Vec::new();
    for number in 0..200 {
        log.write(format!("line {number}\n").as_bytes()).unwrap();
        // Not after every line: several rotations may lie between two polls.
        if number % 37 == 0 {
            while let Some(lines) = Some(follower.poll().unwrap()).filter(|lines| !lines.is_empty()) {
                seen.extend(lines);
            }
        }
    }
    while let Some(lines) = Some(follower.poll().unwrap()).filter(|lines| !lines.is_empty()) {
        seen.extend(lines);
    }
    let expected: Vec<String> = (0..200).map(|number| format!("line {number}")).collect();
    assert_eq!(texts(&seen), expected);
}

#[tokio::test]
async fn a_watcher_wakes_for_a_line_and_for_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let watcher = Watcher::new(dir.path()).unwrap();
    let mut log = LogWriter::open(dir.path(), Stream::Stderr, 40, 1).unwrap();
    let (_, mut follower) = Follower::open(dir.path(), &Stream::ALL, 0).unwrap();
    for text in ["a\n", "b\n", "c\n"] {
        log.write(text.as_bytes()).unwrap();
        let mut lines = Vec::new();
        while lines.is_empty() {
            tokio::time::timeout(Duration::from_secs(10), watcher.changed())
                .await
                .unwrap()
                .unwrap();
            lines = follower.poll().unwrap();
        }
        assert_eq!(texts(&lines), [text.trim_end()]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However an app's output is cut into writes, its lines come back as they were.
    #[test]
    fn lines_come_back_however_they_were_written(
        lines in proptest::collection::vec("[a-z ]{1,40}", 1..40),
        cuts in proptest::collection::vec(1usize..60, 1..40),
        max in 50u64..2000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path(), Stream::Stdout, max, 1000).unwrap();
        let bytes: Vec<u8> = lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect();
        let mut rest = bytes.as_slice();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break; }
            let (piece, more) = rest.split_at((*cut).min(rest.len()));
            log.write(piece).unwrap();
            rest = more;
        }
        let read = tail(dir.path(), &Stream::ALL, 1000).unwrap();
        prop_assert_eq!(texts(&read), lines);
    }
}
