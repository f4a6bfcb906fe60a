//! An app that is put to sleep by its owner the moment it has answered is asked again the moment it sleeps: the client
//! before is just closing its connection, and the next one gets its answer all the same.

use std::time::Duration;

use anyhow::{Context, Result};
use pico_tests::harness::apps::{Bind, Nginx, RealApp, Redis};
use pico_tests::harness::rig::Plan;
use pico_tests::harness::soak::soak;
use pico_tests::harness::within;

fn no_request_is_lost(mut app: impl RealApp) -> Result<()> {
    let name = app.name();
    let plan = Plan::new("command")?.real_app(&app, |config| config.idle = "never".into())?;
    plan.run(|rig| {
        let at = rig.v4(name)?;
        rig.agent.wait_state(name, "hot")?;
        within(Duration::from_secs(20), || app.ready(at))?;
        app.fill(at)?;
        for round in 0..soak(5, 300) {
            for tier in ["warm", "cold"] {
                for &protocol in app.protocols() {
                    rig.agent.sleep(name, tier)?;
                    app.request(at, protocol).with_context(|| {
                        let printed = rig.agent.cli(&["app", "logs", name]).unwrap_or_default();
                        format!("round {round}, {tier}, {protocol}; it printed:\n{printed}")
                    })?;
                }
            }
        }
        app.check(at)
    })
}

#[test]
fn nginx_answers_right_after_it_was_put_to_sleep() -> Result<()> {
    no_request_is_lost(Nginx)
}

#[test]
fn redis_answers_right_after_it_was_put_to_sleep() -> Result<()> {
    no_request_is_lost(Redis::default())
}

#[test]
fn bind_answers_right_after_it_was_put_to_sleep() -> Result<()> {
    no_request_is_lost(Bind)
}
