//! An app that is put to sleep while its threads wait for pages keeps those pages: one that arrives when the dump has
//! looked at its place already is in no dump, and must not be lost.

use std::time::Duration;

use anyhow::{Result, ensure};
use pico_tests::harness::rig::Plan;
use pico_tests::harness::soak::soak;

#[test]
fn a_page_that_arrives_in_the_middle_of_a_dump_is_not_lost() -> Result<()> {
    let plan = Plan::new("faulting")?.shaped();
    plan.test_app("a", |app| app.idle = "never".into())?.run(|rig| {
        let app = rig.ready("a")?;
        app.ask("fill 16")?;
        for round in 0..soak(10, 200) {
            rig.shaper()?.set_delay(Duration::ZERO);
            rig.agent.sleep("a", "cold")?;
            // A block takes about as long as a dump: one is on its way at any time.
            rig.shaper()?
                .set_delay(Duration::from_millis(20 + 3 * (round as u64 % 10)));
            app.ask("patrol 1000")?;
            rig.agent.sleep("a", "warm")?;
            rig.shaper()?.set_delay(Duration::ZERO);
            let verified = app.ask("verify")?;
            ensure!(verified == "ok 4096", "round {round}: {verified}");
        }
        Ok(())
    })
}
