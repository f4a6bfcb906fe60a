//! Memory comes on demand, whatever stands in the way of knowing which of it may.

use anyhow::{Result, ensure};
use pico_tests::harness::rig::Plan;

/// Bytes of the test app that no request but the last asks for.
const FILLED: u64 = 16 << 20;

/// CRIU then calls no page of the process lazy (kernel-notes/criu.md).
#[test]
fn a_stack_pointer_at_the_start_of_a_page_makes_nothing_eager() -> Result<()> {
    Plan::new("on-demand")?
        .test_app("a", |app| app.idle = "never".into())?
        .run(|rig| {
            let app = rig.ready("a")?;
            app.ask(&format!("fill {}", FILLED >> 20))?;
            ensure!(app.ask("wait-at-page-start")? == "ok");
            for swap in 1..=3 {
                rig.agent.sleep("a", "cold")?;
                ensure!(app.ask("ping")? == "pong");
                let wake = rig.agent.show("a")?.last_wake()?;
                ensure!(wake.tier == "cold", "{wake:?}");
                ensure!(
                    wake.fetched_bytes < FILLED / 2,
                    "swap {swap}: {} bytes fetched for one answer",
                    wake.fetched_bytes
                );
            }
            ensure!(app.ask("verify")? == format!("ok {}", FILLED / 4096));
            Ok(())
        })
}
