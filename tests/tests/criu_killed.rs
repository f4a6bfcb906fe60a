//! CRIU is killed in the middle of a restore: nothing of the half-made app is left, and its checkpoint still
//! wakes it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use pico_tests::harness::process::pid;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::{Rig, procs, until};

/// Kills the CRIU of this agent as soon as one is there. The tasks it makes look like it until they are
/// restored: the first of all is CRIU.
fn kill_criu(rig: &Rig) -> Result<()> {
    let root = rig.agent.cgroup();
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        let processes = procs::in_tree(&root)?.into_iter();
        let criu = processes
            .filter(|process| process.names("swrk"))
            .map(|process| process.pid)
            .min();
        if criu.is_some_and(|criu| kill(pid(criu), Signal::SIGKILL).is_ok()) {
            return Ok(());
        }
    }
    bail!("no CRIU came")
}

/// Directories that CRIU leaves when it dies between making and using them.
fn remains() -> Result<usize> {
    let entries = std::fs::read_dir("/tmp")?;
    Ok(entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(".criu."))
        .count())
}

#[test]
fn a_restore_whose_criu_dies_leaves_nothing_and_the_checkpoint_wakes_the_app() -> Result<()> {
    Plan::new("criu-killed")?
        .test_app("a", |app| app.idle = "never".into())?
        .run(|rig| {
            let app = rig.ready("a")?;
            app.ask("fill 8")?;
            let before = remains()?;
            for pause in [0, 2, 5, 10] {
                rig.agent.sleep("a", "warm")?;
                let count: u64 = 0;
                let client = std::thread::spawn(move || app.ask_within("count", Duration::from_secs(10)));
                std::thread::sleep(Duration::from_millis(pause));
                // Too late when the app is awake already: that is no failure.
                let killed = kill_criu(rig).is_ok();
                let _ = client
                    .join()
                    .map_err(|_| anyhow::anyhow!("the client panicked"))?;
                until("the app to settle", Duration::from_secs(20), || {
                    let state = rig.agent.show("a")?;
                    Ok(["hot", "warm", "failed"].contains(&state.state()).then_some(()))
                })?;
                let show = rig.agent.show("a")?;
                if show.state() != "hot" {
                    ensure!(killed && !show.last_failure().is_empty(), "{}", show.0);
                    let left = rig.processes("a")?;
                    ensure!(left.is_empty(), "{} of the half-made app is left", left[0]);
                    rig.agent.cli(&["app", "wake", "a"])?;
                }
                ensure!(app.ask("verify")? == "ok 2048");
                ensure!(app.ask("count")?.parse::<u64>()? > count);
            }
            // Other agents run in parallel on this host; theirs go away by themselves.
            until("CRIU's directories to go", Duration::from_secs(10), || {
                Ok((remains()? <= before).then_some(()))
            })
        })
}

#[test]
fn a_criu_that_dies_while_it_stands_by_costs_no_request() -> Result<()> {
    Plan::new("criu-standby")?
        .test_app("a", |app| app.idle = "never".into())?
        .run(|rig| {
            let app = rig.ready("a")?;
            for round in 1..=3 {
                ensure!(app.ask("count")? == round.to_string());
                rig.agent.sleep("a", "warm")?;
                until("a CRIU to stand by", Duration::from_secs(10), || {
                    Ok(kill_criu(rig).ok())
                })?;
                until("the loss to be noticed", Duration::from_secs(10), || {
                    let noticed = std::fs::read_to_string(rig.agent.log())?
                        .matches("stood by has ended")
                        .count();
                    Ok((noticed >= round).then_some(()))
                })?;
            }
            ensure!(app.ask("count")? == "4");
            Ok(())
        })
}
