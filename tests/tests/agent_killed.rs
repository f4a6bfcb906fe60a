//! The agent is killed: apps go on, and the next agent takes them up, page service included.

use std::time::Duration;

use anyhow::{Result, ensure};
use pico_tests::harness::rig::Plan;
use pico_tests::harness::{procs, until};

#[test]
fn hot_apps_answer_without_an_agent_and_are_taken_up_by_the_next() -> Result<()> {
    Plan::new("agent-hot")?.test_app("a", |_| ())?.run(|rig| {
        let app = rig.ready("a")?;
        let mut connection = app.connect()?;
        ensure!(connection.ask("count")? == "1");
        let pid = rig.agent.show("a")?.pid()?;
        let shim = rig.shim_of("a")?;
        rig.agent.kill()?;
        ensure!(connection.ask("count")? == "2");
        ensure!(app.ask("count")? == "3");
        // One that is told of the agent's end again and again would always be running.
        until("the shim to rest", Duration::from_secs(20), || {
            let state = || procs::state(shim);
            Ok((0..20).all(|_| state() == Some('S')).then_some(()))
        })?;
        rig.restart_agent()?;
        let show = rig.agent.wait_state("a", "hot")?;
        ensure!(show.pid()? == pid, "the app was started again");
        ensure!(app.ask("count")? == "4");
        // It sleeps and wakes under the new agent.
        rig.agent.wait_state("a", "warm")?;
        ensure!(app.ask("count")? == "5");
        Ok(())
    })
}

#[test]
fn a_sleeping_app_wakes_under_the_next_agent() -> Result<()> {
    let plan = Plan::new("agent-asleep")?.test_app("warm", |_| ())?;
    plan.test_app("cold", |app| app.cold_after = "100ms".into())?
        .run(|rig| {
            let (warm, cold) = (rig.ready("warm")?, rig.ready("cold")?);
            warm.ask("count")?;
            cold.ask("count")?;
            rig.agent.wait_state("warm", "warm")?;
            rig.agent.wait_state("cold", "cold")?;
            rig.agent.kill()?;
            rig.restart_agent()?;
            ensure!(warm.ask("count")? == "2" && cold.ask("count")? == "2");
            Ok(())
        })
}

#[test]
fn a_client_is_answered_though_the_agent_dies_while_its_app_wakes() -> Result<()> {
    for pause in [0, 20, 60] {
        let plan = Plan::new("agent-waking")?
            .shaped()
            .test_app("a", |app| app.idle = "never".into())?;
        plan.run(|rig| {
            let app = rig.ready("a")?;
            app.ask("fill 16")?;
            app.ask("count")?;
            rig.agent.sleep("a", "cold")?;
            rig.shaper()?.set_delay(Duration::from_millis(100));
            let client = std::thread::spawn(move || app.ask("count"));
            until("a fetch", Duration::from_secs(10), || {
                Ok((rig.shaper()?.in_flight() > 0).then_some(()))
            })?;
            std::thread::sleep(Duration::from_millis(pause));
            rig.agent.kill()?;
            rig.restart_agent()?;
            let answer = client
                .join()
                .map_err(|_| anyhow::anyhow!("the client panicked"))??;
            ensure!(answer == "2", "{answer}");
            rig.shaper()?.set_delay(Duration::ZERO);
            ensure!(app.ask("verify")? == "ok 4096");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn pages_that_no_agent_serves_are_served_by_the_next() -> Result<()> {
    Plan::new("agent-pages")?
        .shaped()
        .test_app("a", |app| app.idle = "never".into())?
        .run(|rig| {
            let app = rig.ready("a")?;
            app.ask("fill 32")?;
            rig.agent.sleep("a", "cold")?;
            ensure!(app.ask("ping")? == "pong");
            let pid = rig.agent.show("a")?.pid()?;
            rig.agent.kill()?;
            // Most of its memory lies in the store only, and nobody is there to fetch it.
            let client = std::thread::spawn(move || app.ask("verify"));
            std::thread::sleep(Duration::from_millis(500));
            ensure!(!client.is_finished(), "32 MiB were served by nobody");
            rig.restart_agent()?;
            let answer = client
                .join()
                .map_err(|_| anyhow::anyhow!("the client panicked"))??;
            ensure!(answer == "ok 8192", "{answer}");
            ensure!(rig.agent.show("a")?.pid()? == pid, "the app was started again");
            Ok(())
        })
}
