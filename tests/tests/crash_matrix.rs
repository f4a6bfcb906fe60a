//! Agent, shim, CRIU or store is killed at every step of a swap: afterwards the app runs or can be woken, its state is
//! that of before or of the new checkpoint and no mix of both, and nothing is left behind.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use pico_tests::harness::apps::TestApp;
use pico_tests::harness::process::pid;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::{Rig, procs, soak, until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Agent,
    Shim,
    Criu,
    Store,
}
use Victim::{Agent, Criu, Shim, Store};

/// The moments of a swap-out to cold in their order, and who is there to be killed.
const SWAP_OUT: [(&str, &[Victim]); 13] = [
    ("agent.held", &[Agent, Shim]),
    ("shim.filled", &[Shim, Agent]),
    ("shim.dumping", &[Criu, Shim, Agent]),
    ("shim.frozen", &[Agent, Criu, Shim]),
    ("shim.assembled", &[Shim, Agent, Criu]),
    ("agent.dumped", &[Criu, Agent, Shim]),
    ("agent.named", &[Agent, Shim, Criu]),
    ("shim.committed", &[Agent, Shim, Criu]),
    ("shim.dumped", &[Agent, Shim]),
    ("agent.slept", &[Agent]),
    ("agent.uploaded", &[Agent, Store]),
    ("agent.published", &[Agent, Store]),
    ("agent.cold", &[Agent, Store]),
];

/// The same of a wake from cold.
const SWAP_IN: [(&str, &[Victim]); 8] = [
    ("agent.laid-out", &[Agent, Store]),
    ("agent.prepared", &[Shim, Agent, Criu, Store]),
    ("shim.restoring", &[Agent, Criu, Shim]),
    ("shim.told", &[Criu, Shim, Agent]),
    ("shim.memory", &[Shim, Agent, Criu]),
    ("shim.restored", &[Agent, Shim]),
    ("agent.restored", &[Store, Agent, Shim]),
    ("agent.released", &[Shim, Agent, Store]),
];

/// All cases with `--soak`; otherwise each moment with the victim that is named first.
fn cases(moments: &[(&'static str, &'static [Victim])]) -> Vec<(&'static str, Victim)> {
    let count = soak(1, usize::MAX);
    let of_moment = |(moment, victims): &(&'static str, &'static [Victim])| {
        let moment = *moment;
        victims.iter().take(count).map(move |victim| (moment, *victim))
    };
    moments.iter().flat_map(of_moment).collect()
}

fn plan(name: &str) -> Result<Plan> {
    Plan::new(name)?
        .fail_points()?
        .test_app("a", |app| app.idle = "never".into())
}

/// Kills the victim while the process that came to the moment stands still there, and lets that one go on.
fn strike(rig: &mut Rig, moment: &str, victim: Victim) -> Result<()> {
    let stopped = rig.reached(moment)?;
    match victim {
        Agent => rig.agent.kill()?,
        Shim => {
            let shims = procs::in_cgroup(&rig.agent.shim_cgroup("a"))?;
            let shim = shims.iter().find(|process| process.comm == "pico-shim");
            kill_now(shim.context("no shim")?.pid)?;
        }
        Criu => kill_now(until("CRIU", Duration::from_secs(5), || {
            // Tasks that it makes look like it until they are restored: the first of all is CRIU.
            let processes = procs::in_tree(&rig.agent.cgroup())?.into_iter();
            // It calls itself `dump --rpc ...` once it was told what to do.
            let criu = processes.filter(|process| process.names("swrk") || process.names("--rpc"));
            Ok(criu.map(|criu| criu.pid).min())
        })?)?,
        Store => rig.store.crash_and_restart()?,
    }
    // Where it was the victim there is nobody to go on.
    let _ = kill(pid(stopped), Signal::SIGCONT);
    if victim == Agent {
        rig.restart_agent()?;
    }
    Ok(())
}

fn kill_now(process: u32) -> Result<()> {
    kill(pid(process), Signal::SIGKILL).with_context(|| format!("cannot kill {process}"))
}

fn number(answer: &str) -> Result<u64> {
    answer.parse().with_context(|| format!("{answer} is no number"))
}

/// What the app has counted, once it answers; all of its memory is right.
fn settled(rig: &Rig, app: TestApp) -> Result<u64> {
    let counted = until("the app to answer", Duration::from_secs(40), || {
        if rig.agent.show("a")?.state() == "failed" {
            rig.agent.cli(&["app", "wake", "a"])?;
        }
        Ok(app.ask_within("counted", Duration::from_secs(5)).ok())
    })?;
    let verified = app.ask("verify")?;
    ensure!(verified == "ok 2048", "{verified}");
    // Whoever was killed, the app can be put to sleep and woken again.
    rig.agent.sleep("a", "warm")?;
    ensure!(app.ask("counted")? == counted, "it woke as another");
    number(&counted)
}

#[test]
fn a_swap_out_ends_in_the_old_or_the_new_state_whoever_dies_at_whichever_step() -> Result<()> {
    plan("crash-out")?.run(|rig| {
        let app = rig.ready("a")?;
        app.ask("fill 8")?;
        for (moment, victim) in cases(&SWAP_OUT) {
            let case = || format!("{victim:?} killed at {moment}");
            rig.agent.sleep("a", "warm").with_context(case)?;
            let old = number(&app.ask("counted")?)?;
            let new = number(&app.ask("count")?)?;
            app.ask("change 64")?;
            let mut connection = app.connect()?;
            connection.ask("ping")?;
            rig.arm(moment)?;
            let mut sleep = rig.agent.command(&["app", "sleep", "a", "--to", "cold"])?;
            let mut sleep = sleep.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            strike(rig, moment, victim).with_context(case)?;
            sleep.wait()?;
            let now = settled(rig, app).with_context(case)?;
            match victim {
                Shim => ensure!(now == new || now == old, "{}: {now}, not {old} or {new}", case()),
                // The app was not ended, or from a whole checkpoint.
                Agent | Criu | Store => ensure!(now == new, "{}: {now}, not {new}", case()),
            }
            if matches!(victim, Agent | Store) {
                let answer = connection.ask("counted").with_context(case)?;
                ensure!(
                    answer == new.to_string(),
                    "{}: {answer} on the old connection",
                    case()
                );
            }
        }
        Ok(())
    })
}

#[test]
fn a_wake_ends_in_the_state_that_was_stored_whoever_dies_at_whichever_step() -> Result<()> {
    plan("crash-in")?.run(|rig| {
        let app = rig.ready("a")?;
        app.ask("fill 8")?;
        for (moment, victim) in cases(&SWAP_IN) {
            let case = || format!("{victim:?} killed at {moment}");
            let stored = app.ask("count").with_context(case)?;
            app.ask("change 64")?;
            rig.agent.sleep("a", "cold").with_context(case)?;
            rig.arm(moment)?;
            let client = std::thread::spawn(move || app.ask_within("counted", Duration::from_secs(30)));
            strike(rig, moment, victim).with_context(case)?;
            let Ok(answer) = client.join() else {
                bail!("the client panicked")
            };
            match victim {
                // The connection that woke it may end with the app.
                Shim | Criu => {}
                Agent | Store => {
                    let answer = answer.with_context(case)?;
                    ensure!(answer == stored, "{}: {answer}, not {stored}", case());
                }
            }
            let now = settled(rig, app).with_context(case)?;
            ensure!(now == number(&stored)?, "{}: {now}, not {stored}", case());
        }
        Ok(())
    })
}
