//! The host goes down, in order or not: afterwards every app answers again as its policy says.

use anyhow::{Result, ensure};
use pico_tests::harness::procs;
use pico_tests::harness::rig::Plan;

#[test]
fn an_agent_told_to_end_swaps_all_apps_out_and_the_next_wakes_them() -> Result<()> {
    let plan = Plan::new("down")?.test_app("a", |app| app.idle = "never".into())?;
    plan.test_app("b", |app| app.idle = "never".into())?.run(|rig| {
        let (a, b) = (rig.ready("a")?, rig.ready("b")?);
        a.ask("fill 8")?;
        for app in [a, b] {
            app.ask("count")?;
        }
        rig.agent.stop()?;
        let left = procs::in_cgroup(&rig.agent.cgroup())?;
        ensure!(left.is_empty(), "{} is left", left[0]);
        rig.restart_agent()?;
        for name in ["a", "b"] {
            let state = rig.agent.show(name)?;
            ensure!(
                ["warm", "cold"].contains(&state.state()),
                "{name} is {}",
                state.state()
            );
        }
        ensure!(a.ask("count")? == "2" && b.ask("count")? == "2");
        ensure!(a.ask("verify")? == "ok 2048");
        Ok(())
    })
}

#[test]
fn after_a_crash_apps_go_on_from_their_checkpoint_or_anew_as_they_say() -> Result<()> {
    let plan = Plan::new("crash")?.test_app("back", |app| {
        app.idle = "never".into();
        app.after_crash = Some("checkpoint".into());
    })?;
    let plan = plan.test_app("anew", |app| {
        app.idle = "never".into();
        app.after_crash = Some("fresh".into());
    })?;
    // Asleep when the host crashes, and never slept before it.
    let plan = plan.test_app("warm", |app| app.idle = "never".into())?;
    plan.test_app("young", |app| app.idle = "never".into())?
        .run(|rig| {
            let [back, anew, warm, young] = ["back", "anew", "warm", "young"].map(|name| rig.ready(name));
            let (back, anew, warm, young) = (back?, anew?, warm?, young?);
            back.ask("fill 4")?;
            for (name, app) in [("back", back), ("anew", anew), ("warm", warm)] {
                app.ask("count")?;
                app.ask("write /srv/note kept")?;
                rig.agent.sleep(name, "warm")?;
            }
            young.ask("count")?;
            // Hot again: what they do from here on is lost.
            for app in [back, anew] {
                ensure!(app.ask("count")? == "2" && app.ask("count")? == "3");
            }
            rig.crash_host()?;
            rig.restart_agent()?;
            ensure!(back.ask("count")? == "2", "not from its checkpoint");
            ensure!(back.ask("verify")? == "ok 1024");
            ensure!(warm.ask("count")? == "2", "a sleeping app lost its state");
            for app in [anew, young] {
                ensure!(app.ask("count")? == "1", "not started fresh");
            }
            ensure!(
                anew.ask("read /srv/note")? == "kept",
                "a fresh start keeps the files"
            );
            Ok(())
        })
}
