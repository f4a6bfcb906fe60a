//! The store is slow, broken or lies: no app ever gets a wrong byte, and what fails says so.

use std::time::Duration;

use anyhow::{Result, ensure};
use pico_tests::harness::apps::TestApp;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::shaper::{Fault, Rule};
use pico_tests::harness::{Rig, until};

fn plan(name: &str) -> Result<Plan> {
    Plan::new(name)?
        .shaped()
        .test_app("a", |app| app.idle = "never".into())
}

fn filled_and_cold(rig: &Rig) -> Result<TestApp> {
    let app = rig.ready("a")?;
    app.ask("fill 16")?;
    app.ask("count")?;
    rig.agent.sleep("a", "cold")?;
    rig.shaper()?.take_requests();
    Ok(app)
}

/// After what happened, the app answers from its checkpoint once the store is well again.
fn recovers(rig: &Rig, app: TestApp) -> Result<()> {
    rig.shaper()?.clear();
    until("the app to settle", Duration::from_secs(30), || {
        let show = rig.agent.show("a")?;
        match show.state() {
            "hot" | "warm" | "cold" => Ok(Some(())),
            "failed" => {
                rig.agent.cli(&["app", "wake", "a"])?;
                Ok(None)
            }
            _ => Ok(None),
        }
    })?;
    let verified = app.ask("verify")?;
    ensure!(verified == "ok 4096", "{verified}");
    ensure!(app.ask("count")? == "2");
    ensure!(!rig.agent.cli(&["app", "logs", "a"])?.contains("WRONG"));
    Ok(())
}

#[test]
fn a_single_fault_of_any_kind_goes_unnoticed() -> Result<()> {
    let faults = [
        Fault::Status(500),
        Fault::Status(503),
        Fault::Reset,
        Fault::Truncate(1000),
        Fault::FlipBit(500),
    ];
    plan("faults-once")?.run(|rig| {
        let app = rig.ready("a")?;
        app.ask("fill 16")?;
        for (round, fault) in (1..).zip(faults) {
            rig.agent.sleep("a", "cold")?;
            // One in the metadata that come first, one in the pages that come later.
            rig.shaper()?.inject(Rule::new("GET", "/", fault).times(1));
            rig.shaper()?
                .inject(Rule::new("GET", "/", fault).after(4).times(1));
            let count = app.ask("count")?;
            ensure!(count == round.to_string(), "{fault:?}: {count}");
            let verified = app.ask("verify")?;
            ensure!(verified == "ok 4096", "{fault:?}: {verified}");
            rig.shaper()?.clear();
        }
        Ok(())
    })
}

#[test]
fn a_store_that_always_flips_bits_never_reaches_the_app() -> Result<()> {
    for offset in [0, 3_000, 40_000] {
        plan("faults-flip")?.run(|rig| {
            let app = filled_and_cold(rig)?;
            rig.shaper()?
                .inject(Rule::new("GET", "/", Fault::FlipBit(offset)));
            // Not answered, or rightly: objects shorter than the offset are intact.
            let answer = app.ask_within("verify", Duration::from_secs(8));
            ensure!(
                !answer.as_ref().is_ok_and(|answer| answer.contains("WRONG")),
                "{answer:?}"
            );
            if answer.is_err() {
                let show = rig.agent.show("a")?;
                ensure!(
                    !show.last_failure().is_empty() || show.state() == "hot",
                    "{}",
                    show.0
                );
            }
            recovers(rig, app)
        })?;
    }
    Ok(())
}

#[test]
fn a_store_that_is_down_fails_the_wake_with_a_reason_and_loses_nothing() -> Result<()> {
    plan("faults-down")?.run(|rig| {
        let app = filled_and_cold(rig)?;
        rig.shaper()?.inject(Rule::new("GET", "/", Fault::Status(500)));
        let refused = rig.agent.try_cli(&["app", "wake", "a"])?;
        ensure!(!refused.status.success(), "woken without a store");
        let show = rig.agent.show("a")?;
        ensure!(show.last_failure().starts_with("wake: "), "{}", show.0);
        ensure!(rig.processes("a")?.is_empty());
        recovers(rig, app)
    })
}

#[test]
fn a_slow_store_delays_a_wake_by_few_round_trips() -> Result<()> {
    plan("faults-slow")?.run(|rig| {
        let app = filled_and_cold(rig)?;
        rig.shaper()?.set_delay(Duration::from_millis(50));
        let start = std::time::Instant::now();
        ensure!(app.ask("count")? == "2");
        // The app itself asks for pages one fault after another; the wake before it is one wave.
        ensure!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        let requests = rig.shaper()?.take_requests();
        ensure!(
            requests.iter().all(|request| request.method == "GET"),
            "{requests:?}"
        );
        rig.shaper()?.set_delay(Duration::ZERO);
        ensure!(app.ask("verify")? == "ok 4096");
        Ok(())
    })
}

#[test]
fn an_upload_that_was_stored_but_never_answered_is_known_as_ones_own() -> Result<()> {
    plan("faults-unanswered")?.run(|rig| {
        let app = rig.ready("a")?;
        app.ask("fill 16")?;
        ensure!(app.ask("count")? == "1");
        let shaper = rig.shaper()?;
        shaper.inject(Rule::new("PUT", "manifest.json", Fault::Unanswered).times(1));
        rig.agent.sleep("a", "warm")?;
        until("the manifest to be in the store", Duration::from_secs(20), || {
            let stored = rig
                .store
                .objects()?
                .keys()
                .any(|key| key.ends_with("manifest.json"));
            Ok(stored.then_some(()))
        })?;
        // The wake and the next sleep call the upload off while its answer is still awaited.
        ensure!(app.ask("count")? == "2");
        rig.agent.sleep("a", "cold")?;
        shaper.clear();
        ensure!(app.ask("count")? == "3");
        ensure!(app.ask("verify")? == "ok 4096");
        Ok(())
    })
}
