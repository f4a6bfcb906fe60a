//! What each row says, and that nothing is left behind.

use super::*;

#[test]
fn versions_are_compared_as_numbers() {
    assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
    assert_eq!(version("4.2.1"), Some((4, 2)));
    assert_eq!(version("5"), Some((5, 0)));
    assert_eq!(version("none"), None);
    assert_eq!(kernel_row("5.9.16").verdict, Verdict::Fail);
    assert_eq!(kernel_row("5.10.0-28-amd64").verdict, Verdict::Ok);
    assert_eq!(kernel_row("").verdict, Verdict::Fail);
}

#[test]
fn a_hybrid_host_is_fine_and_a_controller_less_one_is_warned_of() {
    let unified = tempfile::tempdir().unwrap();
    fs::write(unified.path().join("cgroup.controllers"), "pids\n").unwrap();
    let v2 = format!("none {} cgroup2 rw 0 0\n", unified.path().display());
    let v1 = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup /x cgroup rw,cpu,cpuacct 0 0\n";
    let hybrid = cgroup_row(&format!("{v1}{v2}"));
    assert_eq!(hybrid.verdict, Verdict::Ok, "{hybrid:?}");
    assert!(hybrid.value.contains("memory (v1), cpu (v1), pids"), "{hybrid:?}");
    let bare = cgroup_row(&v2);
    assert_eq!(bare.verdict, Verdict::Warn);
    assert!(bare.value.contains("without memory, cpu"), "{bare:?}");
    assert_eq!(cgroup_row(v1).verdict, Verdict::Fail);
}

#[test]
fn what_does_not_fare_well_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = Inputs {
        state_dir: dir.path().join("not/yet"),
        criu: vec![dir.path().join("no-criu")],
        shim: dir.path().join("no-shim"),
        preload: dir.path().join("no-library"),
    };
    let rows = examine(&inputs);
    for row in &rows {
        assert_eq!(row.verdict == Verdict::Ok, row.fix.is_empty(), "{row:?}");
        assert!(!row.value.is_empty(), "{row:?}");
    }
    for check in ["criu", "shim"] {
        let row = rows.iter().find(|row| row.check == check).unwrap();
        assert_eq!(row.verdict, Verdict::Fail, "{row:?}");
        assert!(row.value.contains(&dir.path().display().to_string()), "{row:?}");
    }
    assert_eq!(worst(&rows), Verdict::Fail);
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "nothing is left behind"
    );
}

#[test]
fn a_row_has_a_name_of_its_own() {
    let mut names: Vec<_> = examine(&Inputs::default()).iter().map(|row| row.check).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn an_overlay_can_be_mounted_where_this_test_runs_or_the_reason_is_told() {
    let dir = tempfile::tempdir().unwrap();
    if let Err(why) = probe::overlay(dir.path()) {
        assert!(!why.is_empty());
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
