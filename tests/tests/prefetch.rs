//! A query for the name of a cold app fetches what the app needs first, before its client comes, and starts nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pico_tests::harness::apps::TestApp;
use pico_tests::harness::owner::Owner;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::shaper::{Fault, Rule};
use pico_tests::harness::{AppConfig, Rig, until};

const APP: &str = "web-ann";
const LIMIT: Duration = Duration::from_secs(20);

/// A cold app of ann's, behind a hub and a shaped store.
fn cold(name: &str, body: impl FnOnce(&mut Rig, &Owner, &TestApp) -> Result<()>) -> Result<()> {
    let plan = Plan::new(name)?.shaped().hub();
    let config = AppConfig {
        idle: "never".into(),
        cold_after: "1s".into(),
        ..TestApp::config("web", plan.dir())?
    };
    plan.run(|rig| {
        let owner = rig.hub.as_ref().context("no hub")?.owner("ann")?;
        owner.create(&config)?;
        let app = TestApp::at(rig.agent.show(APP)?.text("/addresses/v4").parse()?);
        until("the app to listen", LIMIT, || Ok(app.ask("fill 8").ok()))?;
        owner.pico(&["app", "sleep", "web", "--to", "cold"])?;
        rig.shaper()?.take_requests();
        body(rig, &owner, &app)
    })
}

fn ask_for_its_name(rig: &Rig) -> Result<()> {
    let hub = rig.hub.as_ref().context("no hub")?;
    hub.resolve(APP).map(drop)
}

#[test]
fn a_query_for_its_name_brings_a_cold_app_to_the_disk_and_no_further() -> Result<()> {
    cold("prefetch", |rig, _, app| {
        ask_for_its_name(rig)?;
        let show = rig.agent.wait_state(APP, "warm")?;
        ensure!(show.reason() == "its name was asked for", "{}", show.reason());
        ensure!(rig.processes(APP)?.is_empty() && show.pid().is_err());
        ensure!(!rig.shaper()?.take_requests().is_empty());
        // Not by `cold_after`: whoever asked for the name is still to come.
        ensure!(
            show.text("/next").contains("cold after 1m"),
            "{}",
            show.text("/next")
        );

        ensure!(app.ask("verify")?.starts_with("ok"));
        let late = rig.shaper()?.take_requests();
        let metadata = late.iter().filter(|request| !request.path.contains("/pages-"));
        ensure!(metadata.count() == 0, "{late:?}");
        ensure!(rig.agent.show(APP)?.last_wake()?.tier == "warm");
        Ok(())
    })
}

#[test]
fn a_client_that_comes_while_it_is_fetched_waits_for_nothing_twice() -> Result<()> {
    cold("prefetch-met", |rig, _, app| {
        let shaper = rig.shaper()?;
        shaper.set_delay(Duration::from_millis(500));
        ask_for_its_name(rig)?;
        until("the first request", LIMIT, || {
            Ok((shaper.in_flight() > 0).then_some(()))
        })?;
        ensure!(app.ask("ping")? == "pong");
        let mut asked: Vec<_> = shaper.take_requests();
        asked.sort_by(|one, other| (&one.path, &one.range).cmp(&(&other.path, &other.range)));
        for pair in asked.windows(2) {
            let same = pair[0].path == pair[1].path && pair[0].range == pair[1].range;
            ensure!(!same, "asked for twice: {:?}", pair[0]);
        }
        ensure!(rig.agent.show(APP)?.last_wake()?.tier == "cold");
        Ok(())
    })
}

#[test]
fn what_cannot_be_fetched_ahead_is_fetched_by_the_wake() -> Result<()> {
    cold("prefetch-fails", |rig, _, app| {
        let shaper = rig.shaper()?;
        shaper.inject(Rule::new("GET", "/index", Fault::Status(403)));
        ask_for_its_name(rig)?;
        let failed = until("the prefetch to fail", LIMIT, || {
            let failure = rig.agent.show(APP)?.last_failure();
            Ok(failure.contains("prefetch").then_some(failure))
        })?;
        ensure!(rig.agent.show(APP)?.state() == "cold", "{failed}");
        shaper.clear();
        ensure!(app.ask("verify")?.starts_with("ok"));
        Ok(())
    })
}

#[test]
fn a_name_may_wake_its_app_where_the_owner_wants_it() -> Result<()> {
    cold("prefetch-wakes", |rig, owner, app| {
        owner.pico(&["app", "update", "web", "--wake-on-dns", "wake"])?;
        ask_for_its_name(rig)?;
        let show = rig.agent.wait_state(APP, "hot")?;
        ensure!(show.last_wake()?.trigger == "dns");
        ensure!(app.ask("verify")?.starts_with("ok"));
        Ok(())
    })
}
