//! The shim is killed, alone or together with the agent, at several moments: no page is ever read that was
//! not served, nothing hangs, and the last checkpoint still wakes the app.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use pico_tests::harness::apps::TestApp;
use pico_tests::harness::process::pid;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::{Rig, procs, until};

fn kill_now(process: u32) -> Result<()> {
    kill(pid(process), Signal::SIGKILL).with_context(|| format!("cannot kill {process}"))
}

fn plan(name: &str) -> Result<Plan> {
    Plan::new(name)?.test_app("a", |app| app.idle = "never".into())
}

/// Memory of known content, in a checkpoint.
fn filled_and_asleep(rig: &Rig, tier: &str) -> Result<TestApp> {
    let app = rig.ready("a")?;
    app.ask("fill 32")?;
    app.ask("count")?;
    rig.agent.sleep("a", tier)?;
    Ok(app)
}

/// The app answers again, from its process or its checkpoint, and never saw a wrong page.
fn recovers(rig: &Rig, app: TestApp) -> Result<()> {
    until("the app to settle", Duration::from_secs(30), || {
        let state = rig.agent.show("a")?;
        match state.state() {
            "hot" | "warm" | "cold" => Ok(Some(())),
            "failed" => {
                ensure!(!state.reason().is_empty(), "failed without a reason");
                rig.agent.cli(&["app", "wake", "a"])?;
                Ok(None)
            }
            _ => Ok(None),
        }
    })?;
    let verified = app.ask("verify")?;
    ensure!(verified == "ok 8192", "{verified}");
    let count: u64 = app.ask("count")?.parse()?;
    ensure!(
        count >= 2,
        "the counter is at {count}: the checkpoint was not used"
    );
    let logs = rig.agent.cli(&["app", "logs", "a"])?;
    ensure!(!logs.contains("WRONG"), "{logs}");
    Ok(())
}

/// Which processes die.
#[derive(Clone, Copy)]
enum Victims {
    Shim,
    ShimThenAgent,
    AgentThenShim,
}

fn strike(rig: &mut Rig, shim: u32, victims: Victims) -> Result<()> {
    match victims {
        Victims::Shim => kill_now(shim),
        Victims::ShimThenAgent => {
            kill_now(shim)?;
            rig.agent.kill()?;
            rig.restart_agent()
        }
        Victims::AgentThenShim => {
            rig.agent.kill()?;
            kill_now(shim)?;
            rig.restart_agent()
        }
    }
}

fn while_pages_are_missing(name: &str, tier: &str, victims: Victims) -> Result<()> {
    plan(name)?.run(|rig| {
        let app = filled_and_asleep(rig, tier)?;
        // A thread reads all memory in an unforeseeable order: it waits for a page most of the time.
        app.ask("patrol 1000")?;
        let shim = rig.shim_of("a")?;
        strike(rig, shim, victims)?;
        recovers(rig, app)
    })
}

#[test]
fn alone_while_pages_of_a_warm_wake_are_missing() -> Result<()> {
    while_pages_are_missing("shim-warm", "warm", Victims::Shim)
}

#[test]
fn alone_while_pages_of_a_cold_wake_are_missing() -> Result<()> {
    while_pages_are_missing("shim-cold", "cold", Victims::Shim)
}

#[test]
fn before_the_agent_while_pages_are_missing() -> Result<()> {
    while_pages_are_missing("shim-agent", "cold", Victims::ShimThenAgent)
}

#[test]
fn after_the_agent_while_pages_are_missing() -> Result<()> {
    while_pages_are_missing("agent-shim", "cold", Victims::AgentThenShim)
}

/// The shim of an app that has none yet, as soon as it is there. Several processes may be in its cgroup (the
/// keeper): the one that started first is the shim.
fn coming_shim(rig: &Rig) -> Result<u32> {
    let cgroup = rig.agent.shim_cgroup("a");
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        for dir in procs::cgroup_dirs(&cgroup)? {
            let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            if let Some(first) = text.lines().filter_map(|line| line.parse().ok()).min() {
                return Ok(first);
            }
        }
    }
    bail!("no shim came")
}

#[test]
fn at_several_moments_of_a_wake() -> Result<()> {
    plan("shim-waking")?.run(|rig| {
        let app = filled_and_asleep(rig, "warm")?;
        for pause in [0, 3, 8, 15, 30] {
            let client = std::thread::spawn(move || app.ask("count"));
            let shim = coming_shim(rig)?;
            std::thread::sleep(Duration::from_millis(pause));
            kill_now(shim)?;
            // Answered by another try of the agent, or not at all; never wrongly, never for ever.
            let _ = client
                .join()
                .map_err(|_| anyhow::anyhow!("the client panicked"))?;
            recovers(rig, app)?;
            rig.agent.sleep("a", "warm")?;
        }
        Ok(())
    })
}

#[test]
fn at_several_moments_of_a_swap_out() -> Result<()> {
    plan("shim-dumping")?.run(|rig| {
        let app = filled_and_asleep(rig, "warm")?;
        app.ask("count")?;
        for pause in [0, 20, 60, 120] {
            let shim = rig.shim_of("a")?;
            std::thread::scope(|scope| {
                // It fails, or succeeded just before.
                let sleep = scope.spawn(|| rig.agent.try_cli(&["app", "sleep", "a"]));
                std::thread::sleep(Duration::from_millis(pause));
                // The swap-out may be done, and the shim gone.
                let _ = kill_now(shim);
                sleep.join().map_err(|_| anyhow::anyhow!("panicked"))?.map(drop)
            })?;
            recovers(rig, app)?;
        }
        Ok(())
    })
}
