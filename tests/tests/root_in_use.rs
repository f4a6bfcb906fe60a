//! Somebody of the host who stands in an app's root keeps it from nothing: neither from going cold nor from waking.

use std::fs::File;
use std::time::Duration;

use anyhow::{Result, ensure};
use pico_tests::harness::rig::Plan;
use pico_tests::harness::until;

#[test]
fn an_app_whose_root_somebody_holds_open_goes_cold_and_wakes_again() -> Result<()> {
    Plan::new("root-in-use")?
        .test_app("a", |app| app.idle = "never".into())?
        .run(|rig| {
            let app = rig.ready("a")?;
            app.ask("fill 4")?;
            let root = rig.app_dir("a").join("root");
            for round in 0..2 {
                let held = File::open(&root)?;
                rig.agent.sleep("a", "cold")?;
                ensure!(app.ask("verify")?.starts_with("ok"), "round {round}");
                drop(held);
            }
            // What was held has gone with its holder.
            rig.agent.sleep("a", "cold")?;
            until("the root unmounted", Duration::from_secs(5), || {
                let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
                Ok((!mounts.contains(&*root.to_string_lossy())).then_some(()))
            })
        })
}
