//! An app whose owner says when it is needed, or that has long timers of its own, wakes by itself at that time, does what is
//! due, and sleeps again.

use std::time::Duration;

use anyhow::{Result, ensure};
use pico_tests::harness::apps::TestApp;
use pico_tests::harness::config::WakeConfig;
use pico_tests::harness::rig::{Plan, Rig};
use pico_tests::harness::until;

/// A minute may come while an app that is to go cold is still warm; then it is the next one that finds it cold.
const LIMIT: Duration = Duration::from_secs(150);

#[test]
fn an_app_wakes_at_its_time_and_sleeps_again_from_every_tier() -> Result<()> {
    let every_minute = |app: &mut pico_tests::harness::AppConfig| {
        app.idle = "2s".into();
        app.wake = Some(WakeConfig {
            at: vec!["* * * * *".into()],
            ..WakeConfig::default()
        });
    };
    Plan::new("clock")?
        .test_app("warm", every_minute)?
        .test_app("cold", |app| {
            every_minute(app);
            app.cold_after = "100ms".into();
        })?
        .test_app("other", |app| app.idle = "2s".into())?
        .run(|rig| {
            for tier in ["warm", "cold"] {
                until("its next time to be shown", LIMIT, || {
                    let shown = rig.agent.show(tier)?;
                    let next = shown.text("/next");
                    Ok((next.contains("wakes at ") && next.contains("* * * * *")).then_some(()))
                })?;
            }
            for tier in ["warm", "cold"] {
                until("a wake by the clock", LIMIT, || {
                    let wake = rig.agent.show(tier)?.last_wake().ok();
                    Ok(wake.filter(|wake| wake.trigger == "timer" && wake.tier == tier))
                })?;
                rig.agent.wait_state(tier, tier)?;
            }
            ensure!(
                rig.agent.wait_state("other", "warm")?.last_wake().is_err(),
                "nothing was due for it"
            );
            Ok(())
        })
}

/// When all of the app's timers fire first, and how often after that: long.
const ARMED: &str = "timers 6000 600000";
/// What fires sooner is over before anybody could have been woken for it twice.
const TICKS: &str = "timers 6000 1000";

fn told(rig: &Rig, app: &str, what: &str) -> Result<()> {
    let explained = rig.agent.cli(&["app", "explain", app])?;
    ensure!(explained.contains(what), "not '{what}' in:\n{explained}");
    Ok(())
}

#[test]
fn long_timers_of_its_own_wake_an_app_and_ticks_only_at_its_owners_wish() -> Result<()> {
    let sleepy = |app: &mut pico_tests::harness::AppConfig| app.idle = "1s".into();
    Plan::new("own-timers")?
        .test_app("long", |app| {
            sleepy(app);
            app.cold_after = "100ms".into();
        })?
        .test_app("ticks", sleepy)?
        .test_app("all", |app| {
            sleepy(app);
            app.timers = Some("all".into());
        })?
        .test_app("none", |app| {
            sleepy(app);
            app.timers = Some("none".into());
        })?
        .run(|rig| {
            for (app, timers) in [("long", ARMED), ("ticks", TICKS), ("all", TICKS), ("none", ARMED)] {
                ensure!(rig.ready(app)?.ask(timers)? == "ok");
            }
            for app in ["ticks", "none"] {
                rig.agent.wait_state(app, "warm")?;
                told(rig, app, "ignored: 3 of its own")?;
            }
            rig.agent.wait_state("long", "cold")?;
            told(rig, "long", "kept: 3 of its own")?;
            for app in ["long", "all"] {
                until("a wake by a timer", LIMIT, || {
                    let wake = rig.agent.show(app)?.last_wake().ok();
                    Ok(wake.filter(|wake| wake.trigger == "timer"))
                })?;
            }
            // It does what was due, and sleeps again: what is long is due in ten minutes.
            rig.agent.wait_state("long", "cold")?;
            ensure!(rig.agent.show("long")?.wakes() == 1);
            let fired = TestApp::at(rig.v6("long")?).ask("fired")?;
            ensure!(!fired.contains("=0"), "{fired}");
            // Theirs were due long ago.
            for app in ["ticks", "none"] {
                ensure!(rig.agent.show(app)?.wakes() == 0, "a timer woke '{app}'");
                let fired = TestApp::at(rig.v6(app)?).ask("fired")?;
                ensure!(!fired.contains("=0"), "'{app}', at its next wake: {fired}");
            }
            Ok(())
        })
}
