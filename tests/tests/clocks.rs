//! CLOCK_MONOTONIC goes on while an app sleeps, and its timers with it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use pico_tests::harness::apps::TestApp;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::{Rig, until};

/// Timers fire this long after they were armed.
const TIMER: Duration = Duration::from_secs(6);
/// A wake, and a loaded machine.
const TOLERANCE: Duration = Duration::from_millis(700);

fn wall() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

/// The app's CLOCK_MONOTONIC and CLOCK_BOOTTIME, and its wall clock at that moment.
fn clocks(app: TestApp) -> Result<[Duration; 3]> {
    let answer = app.ask("clock")?;
    let times = answer
        .split(' ')
        .map(|time| Ok(Duration::from_nanos(time.parse()?)));
    let times: Vec<_> = times.collect::<Result<_>>().with_context(|| answer.clone())?;
    times
        .try_into()
        .map_err(|_| anyhow::anyhow!("three clocks expected: {answer}"))
}

/// When each timer fired, by the wall clock; nothing for one that has not.
fn fired(app: TestApp) -> Result<Vec<(String, Option<Duration>)>> {
    let parse = |word: &str| {
        let (name, time) = word.split_once('=').context("NAME=TIME")?;
        let time = Duration::from_nanos(time.parse()?);
        Ok((name.to_owned(), (!time.is_zero()).then_some(time)))
    };
    app.ask("fired")?.split(' ').map(parse).collect()
}

fn slept(rig: &Rig, tier: &str, time: Duration) -> Result<()> {
    rig.agent.sleep("a", tier)?;
    std::thread::sleep(time);
    Ok(())
}

fn clocks_go_on(name: &str, tier: &str) -> Result<()> {
    Plan::new(name)?
        .test_app("a", |app| app.idle = "never".into())?
        .run(|rig| {
            let app = rig.ready("a")?;
            // Twice: what is advanced must be advanced from where the last wake left it.
            for _ in 0..2 {
                let before = clocks(app)?;
                slept(rig, tier, Duration::from_secs(2))?;
                let after = clocks(app)?;
                let passed: Vec<_> = before
                    .iter()
                    .zip(&after)
                    .map(|(before, after)| *after - *before)
                    .collect();
                for (clock, passed_here) in ["CLOCK_MONOTONIC", "CLOCK_BOOTTIME"].iter().zip(&passed) {
                    let off = passed_here.abs_diff(passed[2]);
                    ensure!(
                        off < Duration::from_millis(50),
                        "{clock} went on by {passed_here:?} in {:?}",
                        passed[2]
                    );
                }
            }
            Ok(())
        })
}

#[test]
fn clocks_go_on_while_an_app_is_warm() -> Result<()> {
    clocks_go_on("clock-warm", "warm")
}

#[test]
fn clocks_go_on_while_an_app_is_cold() -> Result<()> {
    clocks_go_on("clock-cold", "cold")
}

fn all_fire_on_time(app: TestApp, due: Duration) -> Result<()> {
    let times = until("all timers", Duration::from_secs(15), || {
        let times = fired(app)?;
        Ok(times.iter().all(|(_, time)| time.is_some()).then_some(times))
    })?;
    for (name, time) in times {
        let time = time.context("not fired")?;
        let off = time.abs_diff(due);
        ensure!(off < TOLERANCE, "{name} fired {off:?} from when it was due");
    }
    Ok(())
}

#[test]
fn timers_fire_on_time_though_the_app_slept_meanwhile() -> Result<()> {
    Plan::new("timers")?
        .test_app("a", |app| app.idle = "never".into())?
        .run(|rig| {
            let app = rig.ready("a")?;
            let due = wall()? + TIMER;
            app.ask(&format!("timers {}", TIMER.as_millis()))?;
            slept(rig, "warm", Duration::from_secs(2))?;
            ensure!(
                fired(app)?.iter().all(|(_, time)| time.is_none()),
                "a timer fired too early"
            );
            all_fire_on_time(app, due)
        })
}

#[test]
fn timers_that_were_due_during_a_sleep_fire_at_the_wake() -> Result<()> {
    Plan::new("timers-due")?
        .test_app("a", |app| app.idle = "never".into())?
        .run(|rig| {
            let app = rig.ready("a")?;
            app.ask("timers 1500")?;
            slept(rig, "warm", Duration::from_secs(3))?;
            let wake = wall()?;
            all_fire_on_time(app, wake)
        })
}
