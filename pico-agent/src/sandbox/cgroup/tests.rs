//! Run as root: they make groups of their own, named after the test, and remove them.

use std::process::{Child, Command};

use super::*;

/// A tree that is killed and removed with the test.
struct Tree(CgroupTree);

impl Tree {
    fn new(test: &str) -> Tree {
        Tree(CgroupTree::open(&format!("t{}-{test}", std::process::id())).unwrap())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.0.remove_all().unwrap();
        assert!(
            self.0.root.dirs().all(|d| !d.exists()),
            "something is left of {}",
            self.0.root.path.display()
        );
    }
}

/// A shell in `group`.
fn spawn(group: &Cgroup, script: &str) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("read x; {script}")]);
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    group.add(i32::try_from(child.id()).unwrap()).unwrap();
    drop(child.stdin.take());
    child
}

#[test]
fn names_cannot_leave_the_tree() {
    for bad in ["", ".", "..", "a/b", "A", "-a", "a b", &"x".repeat(64)] {
        assert!(valid(bad).is_err(), "{bad}");
    }
    assert!(CgroupTree::open("../x").is_err());
}

#[test]
fn everything_may_be_made_and_removed_twice() {
    let tree = Tree::new("twice");
    for _ in 0..2 {
        tree.0.app("web", &Limits::default()).unwrap();
        let run = tree.0.run("web", 1).unwrap();
        run.create().unwrap();
        run.create().unwrap();
        assert!(run.path().starts_with(tree.0.apps_path()) && run.id().unwrap() > 0);
        assert_eq!((run.procs().unwrap(), run.populated().unwrap()), (vec![], false));
        run.remove().unwrap();
        run.remove().unwrap();
        run.kill().unwrap();
        run.wait_empty(Duration::ZERO).unwrap();
        assert_eq!(run.procs().unwrap(), Vec::<i32>::new());
    }
    // A second agent, or the same one started again, finds what is there.
    let shim = tree.0.shim("web").unwrap();
    shim.create().unwrap();
    let child = spawn(&shim, "sleep 1000");
    let again = CgroupTree::open(&format!("t{}-twice", std::process::id())).unwrap();
    assert!(
        again
            .shim("web")
            .unwrap()
            .procs()
            .unwrap()
            .contains(&i32::try_from(child.id()).unwrap())
    );
    shim.kill().unwrap();
    { child }.wait().unwrap();
}

#[test]
fn a_group_survives_being_written_down() {
    let tree = Tree::new("serde");
    let run = tree.0.run("web", 7).unwrap();
    let text = serde_json::to_string(&run).unwrap();
    assert_eq!(serde_json::from_str::<Cgroup>(&text).unwrap(), run);
}

#[test]
fn limits_are_set_changed_and_taken_away() {
    let tree = Tree::new("limits");
    let limits = Limits {
        memory_bytes: Some(64 << 20),
        cpus: Some(1.5),
        pids: Some(100),
    };
    let read = |app: &Cgroup, controller: &str, v2: &str, v1: &str| {
        let file = app
            .holding(controller)
            .map_or_else(|| app.path.join(v2), |d| d.join(v1));
        fs::read_to_string(file).unwrap().trim().to_owned()
    };
    let app = tree.0.app("web", &limits).unwrap();
    assert_eq!(
        read(&app, "memory", "memory.max", "memory.limit_in_bytes"),
        (64 << 20).to_string()
    );
    assert!(["150000 100000", "150000"].contains(&read(&app, "cpu", "cpu.max", "cpu.cfs_quota_us").as_str()));
    assert_eq!(read(&app, "pids", "pids.max", "pids.max"), "100");
    tree.0.app("web", &Limits::default()).unwrap();
    assert!(["max 100000", "-1"].contains(&read(&app, "cpu", "cpu.max", "cpu.cfs_quota_us").as_str()));
    assert_eq!(read(&app, "pids", "pids.max", "pids.max"), "max");
}

#[test]
fn on_a_pure_v2_host_limits_go_to_v2_and_missing_controllers_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let group = Cgroup {
        path: dir.path().to_owned(),
        v1: Vec::new(),
    };
    let limits = Limits {
        memory_bytes: Some(4096),
        cpus: Some(0.25),
        pids: None,
    };
    let error = group.set_limits(&limits).unwrap_err();
    assert!(matches!(error, CgroupError::NoController("memory")), "{error}");
    group.set_limits(&Limits::default()).unwrap();
    for file in ["memory.max", "cpu.max", "pids.max"] {
        fs::write(dir.path().join(file), "").unwrap();
    }
    group.set_limits(&limits).unwrap();
    for (file, text) in [
        ("memory.max", "4096"),
        ("cpu.max", "25000 100000"),
        ("pids.max", "max"),
    ] {
        assert_eq!(fs::read_to_string(dir.path().join(file)).unwrap(), text);
    }
}

#[test]
fn the_memory_limit_is_enforced_and_the_kill_is_counted() {
    let tree = Tree::new("oom");
    tree.0
        .app(
            "web",
            &Limits {
                memory_bytes: Some(32 << 20),
                ..Limits::default()
            },
        )
        .unwrap();
    let run = tree.0.run("web", 1).unwrap();
    run.create().unwrap();
    assert_eq!(run.oom_kills(), 0);
    // It keeps the line it reads, which never ends.
    let status = spawn(&run, "exec tail -n1 /dev/zero").wait().unwrap();
    assert!(!status.success());
    assert_eq!(run.oom_kills(), 1);
    assert!(run.memory_current().is_some());
}

#[test]
fn the_process_limit_is_enforced() {
    let tree = Tree::new("pids");
    tree.0
        .app(
            "web",
            &Limits {
                pids: Some(2),
                ..Limits::default()
            },
        )
        .unwrap();
    let run = tree.0.run("web", 1).unwrap();
    run.create().unwrap();
    let status = spawn(&run, "sleep 1000 & sleep 1000 & true").wait().unwrap();
    assert!(!status.success(), "the second child is one too many");
}

#[test]
fn kill_leaves_nothing_whatever_is_forked_meanwhile() {
    for one_by_one in [false, true] {
        let tree = Tree::new(if one_by_one { "kill-old" } else { "kill" });
        tree.0
            .app(
                "web",
                &Limits {
                    pids: Some(200),
                    ..Limits::default()
                },
            )
            .unwrap();
        let run = tree.0.run("web", 1).unwrap();
        run.create().unwrap();
        let mut child = spawn(&run, "f() { sleep 0.01 & f & }; while :; do f 2>/dev/null; done");
        // Some generations later.
        std::iter::repeat_with(|| run.procs().unwrap().len())
            .find(|n| *n > 20)
            .unwrap();
        if one_by_one {
            run.kill_one_by_one()
        } else {
            run.kill()
        }
        .unwrap();
        assert_eq!((run.procs().unwrap(), run.populated().unwrap()), (vec![], false));
        run.remove().unwrap();
        assert!(!child.wait().unwrap().success());
    }
}

#[test]
fn waiting_ends_when_the_last_process_ends_and_names_who_is_left_before() {
    let tree = Tree::new("wait");
    let run = tree.0.run("web", 1).unwrap();
    run.create().unwrap();
    let mut child = spawn(&run, "exec sleep 1000");
    let error = run.wait_empty(Duration::from_millis(30)).unwrap_err();
    let CgroupError::StillPopulated { pids, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(pids, [i32::try_from(child.id()).unwrap()]);
    let waiter = {
        let run = run.clone();
        std::thread::spawn(move || run.wait_empty(Duration::from_secs(60)))
    };
    child.kill().unwrap();
    waiter.join().unwrap().unwrap();
    child.wait().unwrap();
}

#[test]
fn processor_time_is_counted_without_any_controller() {
    let tree = Tree::new("cpu");
    let run = tree.0.run("web", 1).unwrap();
    run.create().unwrap();
    spawn(&run, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
        .wait()
        .unwrap();
    assert!(run.cpu_usage().unwrap() > Duration::ZERO);
}
