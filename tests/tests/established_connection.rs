//! A TCP connection that says nothing survives sleeps of the app at its other end.

use std::time::Duration;

use anyhow::{Result, ensure};
use pico_tests::harness::rig::Plan;

#[test]
fn a_silent_connection_survives_warm_and_cold_sleeps() -> Result<()> {
    Plan::new("established")?
        .test_app("a", |app| app.idle = "never".into())?
        .run(|rig| {
            let mut connection = rig.ready("a")?.connect()?;
            ensure!(connection.ask("count")? == "1");
            for (tier, expected) in [("warm", "2"), ("warm", "3"), ("cold", "4"), ("cold", "5")] {
                rig.agent.sleep("a", tier)?;
                std::thread::sleep(Duration::from_millis(300));
                let answer = connection.ask("count")?;
                ensure!(answer == expected, "{answer} after {tier}");
            }
            Ok(())
        })
}

#[test]
fn a_silent_connection_does_not_keep_its_app_awake() -> Result<()> {
    Plan::new("silent")?.test_app("a", |_| ())?.run(|rig| {
        let mut connection = rig.ready("a")?.connect()?;
        ensure!(connection.ask("count")? == "1");
        rig.agent.wait_state("a", "warm")?;
        ensure!(connection.ask("count")? == "2");
        Ok(())
    })
}
