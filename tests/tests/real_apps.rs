//! Real programs keep all of their state over many swaps, warm and cold, and it is checked after each.

use std::time::Duration;

use anyhow::{Context, Result};
use pico_tests::harness::apps::counter::Language;
use pico_tests::harness::apps::{Bind, Counter, Nginx, Postgres, RealApp, Redis};
use pico_tests::harness::rig::Plan;
use pico_tests::harness::{soak, within};

/// How long a Java virtual machine may take to start on a busy host.
const START: Duration = Duration::from_secs(40);

fn swaps(mut app: impl RealApp) -> Result<()> {
    let name = app.name();
    let plan = Plan::new(name)?.real_app(&app, |config| config.idle = "never".into())?;
    plan.run(|rig| {
        let at = rig.v4(name)?;
        rig.agent.wait_state(name, "hot")?;
        within(START, || app.ready(at))?;
        app.fill(at)?;
        for swap in 0..soak(5, 50) {
            let tier = if swap % 2 == 0 { "warm" } else { "cold" };
            let of = || format!("{name}, swap {swap}, {tier}");
            rig.agent.sleep(name, tier).with_context(of)?;
            app.request(at, app.protocols()[0]).with_context(of)?;
            app.check(at).with_context(of)?;
        }
        Ok(())
    })
}

#[test]
fn redis_keeps_every_key() -> Result<()> {
    swaps(Redis::with_keys(20_000))
}

#[test]
fn postgres_under_pgbench_loses_no_transaction() -> Result<()> {
    swaps(Postgres::default())
}

#[test]
fn nginx_with_workers_keeps_serving_its_site() -> Result<()> {
    swaps(Nginx)
}

#[test]
fn bind_keeps_answering() -> Result<()> {
    swaps(Bind)
}

#[test]
fn python_keeps_its_objects_and_numpy_its_arrays() -> Result<()> {
    swaps(Counter::new(Language::Python))
}

#[test]
fn node_keeps_its_heap() -> Result<()> {
    swaps(Counter::new(Language::Node))
}

#[test]
fn a_java_virtual_machine_keeps_its_heap() -> Result<()> {
    swaps(Counter::new(Language::Java))
}
