//! Owners and operators are told why an app is awake or asleep, and asking does not wake it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pico_tests::harness::apps::{Nginx, RealApp as _};
use pico_tests::harness::owner::Owner;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::{AppConfig, until};
use serde_json::Value;

const APP: &str = "nginx-ann";

/// What an owner is told of one subject.
fn told(owner: &Owner, subject: &str) -> Result<Vec<String>> {
    let document: Value = serde_json::from_str(&owner.pico(&["-j", "app", "explain", "nginx"])?)?;
    let facts = document["facts"].as_array().context("no facts")?;
    let about = facts.iter().filter(|fact| fact["subject"] == subject);
    Ok(about
        .filter_map(|fact| fact["text"].as_str().map(str::to_owned))
        .collect())
}

fn first(owner: &Owner, subject: &str) -> Result<String> {
    let told = told(owner, subject)?;
    told.into_iter()
        .next()
        .with_context(|| format!("nothing of its {subject}"))
}

#[test]
fn an_app_is_explained_asleep_and_awake_and_sleeps_through_it() -> Result<()> {
    let plan = Plan::new("explain")?.hub();
    let config = AppConfig {
        idle: "never".into(),
        ..Nginx.config(plan.dir())?
    };
    plan.run(|rig| {
        let owner = rig.hub.as_ref().context("no hub")?.owner("ann")?;
        owner.create(&config)?;
        let show = rig.agent.show(APP)?;
        let address = show.text("/addresses/v4").parse()?;
        until("nginx to answer", Duration::from_secs(20), || {
            Ok(Nginx.ready(address).ok())
        })?;
        ensure!(first(&owner, "last packet")?.starts_with("at 80/tcp, "));

        rig.agent.sleep(APP, "cold")?;
        ensure!(told(&owner, "last wake")?.is_empty());
        let words = owner.pico(&["app", "explain", "nginx"])?;
        ensure!(
            words.contains("cold: ") && words.contains("last packet"),
            "{words}"
        );
        ensure!(rig.agent.show(APP)?.state() == "cold", "to ask has woken it");

        Nginx.check(address)?;
        let wake = first(&owner, "last wake")?;
        ensure!(
            wake.contains("from cold, by 80/tcp: ") && wake.contains(" GETs"),
            "{wake}"
        );
        let phases = told(&owner, "last wake took")?;
        ensure!(
            phases.iter().any(|phase| phase.ends_with(" ms for restore")),
            "{phases:?}"
        );
        ensure!(
            phases.iter().all(|phase| phase.contains(" ms for ")),
            "{phases:?}"
        );
        let gate = first(&owner, "gate")?;
        ensure!(
            !gate.contains("; no packet held") && gate.contains(" held so far"),
            "{gate}"
        );

        // What was needed is known when it sleeps again.
        rig.agent.sleep(APP, "warm")?;
        let ahead = first(&owner, "brought ahead")?;
        ensure!(
            ahead.starts_with("for 80/tcp: ") && ahead.contains("of what 1 wake needed"),
            "{ahead}"
        );

        let words = rig.agent.cli(&["app", "explain", APP])?;
        ensure!(
            words.contains("by 80/tcp") && words.contains("last wake took"),
            "{words}"
        );
        let unknown = owner.try_pico(&["app", "explain", "nothing"])?;
        ensure!(!unknown.status.success());
        Ok(())
    })
}
