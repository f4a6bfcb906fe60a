//! A swap-out that fails loses nothing: the app goes on running, and `show` says why.

use std::time::Duration;

use anyhow::{Result, ensure};
use pico_tests::harness::config::SandboxConfig;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::shaper::{Fault, Rule};
use pico_tests::harness::{AppConfig, until};

/// The default system call filter refuses an io_uring for this very reason.
fn unfiltered(app: &mut AppConfig) {
    app.sandbox = Some(SandboxConfig {
        seccomp: Some(false),
        ..SandboxConfig::default()
    });
}

#[test]
fn an_app_that_cannot_be_dumped_goes_on_running_and_says_why() -> Result<()> {
    Plan::new("no-dump")?
        .test_app("a", |app| {
            unfiltered(app);
            app.idle = "never".into();
        })?
        .run(|rig| {
            let app = rig.ready("a")?;
            let mut connection = app.connect()?;
            ensure!(connection.ask("count")? == "1");
            // CRIU refuses an io_uring.
            ensure!(app.ask("ring")? == "ok");
            let pid = rig.agent.show("a")?.pid()?;
            let refused = rig.agent.try_cli(&["app", "sleep", "a"])?;
            ensure!(!refused.status.success(), "an app with an io_uring was dumped");
            let message = String::from_utf8_lossy(&refused.stderr).into_owned();
            ensure!(
                message.contains("an io_uring") && message.contains("seccomp = true"),
                "{message}"
            );
            let show = rig.agent.wait_state("a", "hot")?;
            ensure!(
                show.pid()? == pid && show.last_failure().starts_with("swap-out: "),
                "{}",
                show.0
            );
            ensure!(connection.ask("count")? == "2" && app.ask("count")? == "3");
            ensure!(app.ask("unring")? == "ok");
            rig.agent.sleep("a", "warm")?;
            ensure!(connection.ask("count")? == "4");
            Ok(())
        })
}

#[test]
fn what_no_checkpoint_can_hold_is_said_before_anybody_tries() -> Result<()> {
    let plan = Plan::new("stays-hot")?.test_app("a", |app| {
        unfiltered(app);
        app.idle = "1h".into();
    })?;
    plan.run(|rig| {
        let app = rig.ready("a")?;
        ensure!(app.ask("ring")? == "ok");
        // An agent looks when it first meets an app, and then once a minute.
        rig.agent.kill()?;
        rig.restart_agent()?;
        let show = rig.agent.wait_state("a", "hot")?;
        let next = show.text("/next").to_owned();
        ensure!(
            next.contains("stays hot") && next.contains("an io_uring"),
            "{next}"
        );
        ensure!(show.number("/counters/failed_sleeps") == Some(0), "{}", show.0);
        Ok(())
    })
}

#[test]
fn idleness_that_cannot_swap_out_leaves_the_app_running() -> Result<()> {
    Plan::new("no-idle-dump")?.test_app("a", unfiltered)?.run(|rig| {
        let app = rig.ready("a")?;
        ensure!(app.ask("ring")? == "ok");
        until("a failed swap-out", Duration::from_secs(15), || {
            Ok(rig
                .agent
                .show("a")?
                .last_failure()
                .starts_with("swap-out: ")
                .then_some(()))
        })?;
        ensure!(app.ask("count")? == "1");
        Ok(())
    })
}

#[test]
fn an_app_whose_checkpoint_cannot_be_stored_stays_warm_and_wakes() -> Result<()> {
    Plan::new("no-upload")?
        .shaped()
        .test_app("a", |app| app.idle = "never".into())?
        .run(|rig| {
            let app = rig.ready("a")?;
            app.ask("fill 4")?;
            app.ask("count")?;
            rig.shaper()?.inject(Rule::new("PUT", "/", Fault::Status(500)));
            let refused = rig.agent.try_cli(&["app", "sleep", "a", "--to", "cold"])?;
            ensure!(!refused.status.success(), "it went cold without a store");
            ensure!(["warm", "hot"].contains(&rig.agent.show("a")?.state()));
            ensure!(app.ask("count")? == "2");
            rig.shaper()?.clear();
            rig.agent.sleep("a", "cold")?;
            ensure!(app.ask("count")? == "3" && app.ask("verify")? == "ok 1024");
            Ok(())
        })
}
