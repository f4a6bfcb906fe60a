//! The app of the scenarios notices what it is there to notice, and CRIU can dump it unless it holds an
//! io_uring. No agent is involved.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pico_tests::bench::criu::Criu;
use pico_tests::bench::sandbox::{Restore, Sandbox};
use pico_tests::harness::apps::TestApp;
use pico_tests::harness::process::Daemon;
use pico_tests::harness::{AppConfig, bin, net, rig, until, within};

#[test]
fn it_knows_its_memory_its_timers_and_its_files() -> Result<()> {
    net::enter_own_namespace()?;
    let dir = rig::scratch("testapp")?;
    let mut command = Command::new(bin::find("pico-testapp")?);
    let ready = |line: &str| line.contains("listening").then_some(());
    let (_daemon, ()) = Daemon::start(
        &mut command,
        &dir.path().join("log"),
        Duration::from_secs(10),
        ready,
    )?;
    let app = TestApp::at(IpAddr::V4(Ipv4Addr::LOCALHOST));
    ensure!(TestApp::at("::1".parse()?).ask_udp("echo over IPv6")? == "over IPv6");
    ensure!(app.ask("fill 4")? == "ok 1024");
    ensure!(app.ask("change 100")? == "ok 100" && app.ask("discard 5")? == "ok");
    ensure!(app.ask("verify")? == "ok 1024" && app.ask("fork")? == "ok");
    app.ask("patrol 2")?;
    until("the patrol", Duration::from_secs(10), || {
        Ok((app.ask("patrolled")? == "2048 0").then_some(()))
    })?;
    app.ask("timers 200")?;
    ensure!(app.ask("fired")? == "timerfd=0 posix=0 itimer=0");
    let start = Instant::now();
    until("the timers", Duration::from_secs(10), || {
        Ok((!app.ask("fired")?.contains("=0")).then_some(()))
    })?;
    ensure!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    ensure!(app.ask("nonsense")?.starts_with("error: unknown command"));
    Ok(())
}

#[test]
fn criu_dumps_it_unless_it_holds_an_io_uring() -> Result<()> {
    net::enter_own_namespace()?;
    let dir = rig::scratch("testapp-criu")?;
    let config = AppConfig {
        name: "testapp".into(),
        command: vec![bin::find("pico-testapp")?.display().to_string()],
        ..AppConfig::default()
    };
    let criu = Criu::find()?;
    let mut sandbox = Sandbox::start(&config, dir.path(), 1)?;
    let app = TestApp::at(sandbox.address());
    within(Duration::from_secs(10), || app.ask("ping")).with_context(|| sandbox.log())?;
    app.ask("fill 8")?;
    ensure!(app.ask("ring")? == "ok");
    let refused = sandbox.dump(&criu).err().context("an io_uring was dumped")?;
    ensure!(format!("{refused:#}").contains("ring"), "{refused:#}");
    ensure!(app.ask("unring")? == "ok");
    app.ask("timers 60000")?;
    for how in [Restore::Full, Restore::Lazy] {
        sandbox.dump(&criu)?;
        sandbox.restore(&criu, how)?;
        let verified = app.ask("verify")?;
        ensure!(verified == "ok 2048", "{how:?}: {verified}");
        ensure!(app.ask("fork")? == "ok", "{how:?}");
    }
    Ok(())
}
