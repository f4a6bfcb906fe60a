//! The baselines that `bench wake` compares with bring back real apps by CRIU's own means.

use std::time::Duration;

use anyhow::{Context, Result};
use pico_tests::bench::criu::Criu;
use pico_tests::bench::sandbox::{Restore, Sandbox};
use pico_tests::harness::apps::{Bind, Nginx, RealApp, Redis};
use pico_tests::harness::{net, rig, within};

fn comes_back(mut app: impl RealApp) -> Result<()> {
    net::enter_own_namespace()?;
    let dir = rig::scratch("baseline")?;
    let criu = Criu::find()?;
    let mut sandbox = Sandbox::start(&app.config(dir.path())?, dir.path(), 1)?;
    let at = sandbox.address();
    within(Duration::from_secs(20), || app.ready(at)).with_context(|| sandbox.log())?;
    app.fill(at)?;
    for how in [Restore::Full, Restore::Lazy] {
        sandbox.dump(&criu)?;
        sandbox.drop_images()?;
        sandbox.restore(&criu, how)?;
        app.request(at, app.protocols()[0])
            .with_context(|| format!("{how:?}: {}", sandbox.log()))?;
        app.check(at)?;
    }
    Ok(())
}

#[test]
fn nginx_comes_back_with_workers_of_another_user() -> Result<()> {
    comes_back(Nginx)
}

#[test]
fn redis_comes_back_with_all_keys() -> Result<()> {
    comes_back(Redis::with_keys(5_000))
}

#[test]
fn bind_comes_back_with_its_zone() -> Result<()> {
    comes_back(Bind)
}
