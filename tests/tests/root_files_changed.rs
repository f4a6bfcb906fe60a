//! Files that a sleeping process has mapped or open were changed since: it is never restored onto them.

use std::time::Duration;

use anyhow::{Result, ensure};
use pico_tests::harness::rig::Plan;

#[test]
fn a_replaced_binary_is_a_named_failure_that_restart_mends() -> Result<()> {
    Plan::new("upgrade")?
        .test_app("a", |app| app.idle = "never".into())?
        .run(|rig| {
            let app = rig.ready("a")?;
            app.ask("count")?;
            rig.agent.sleep("a", "warm")?;
            // As a package upgrade does: a new file in the place of the old one.
            let binary = rig.dir().join("testapp-root/bin/pico-testapp");
            let new = binary.with_extension("new");
            std::fs::copy(&binary, &new)?;
            std::fs::OpenOptions::new()
                .append(true)
                .open(&new)?
                .set_len(binary.metadata()?.len() + 4096)?;
            std::fs::rename(&new, &binary)?;

            ensure!(
                app.ask_within("count", Duration::from_secs(3)).is_err(),
                "restored onto a new binary"
            );
            let refused = rig.agent.try_cli(&["app", "wake", "a"])?;
            let message = String::from_utf8_lossy(&refused.stderr).into_owned();
            ensure!(!refused.status.success(), "restored onto a new binary");
            ensure!(
                message.contains("/bin/pico-testapp") && message.contains("restart"),
                "{message}"
            );
            let show = rig.agent.show("a")?;
            ensure!(show.last_failure().contains("/bin/pico-testapp"), "{}", show.0);
            ensure!(rig.processes("a")?.is_empty());

            rig.agent.cli(&["app", "restart", "a"])?;
            ensure!(rig.ready("a")?.ask("count")? == "1");
            Ok(())
        })
}

#[test]
fn a_replaced_library_is_noticed_too_when_the_app_is_cold() -> Result<()> {
    Plan::new("upgrade-lib")?
        .test_app("a", |app| app.idle = "never".into())?
        .run(|rig| {
            rig.ready("a")?;
            rig.agent.sleep("a", "cold")?;
            let root = rig.dir().join("testapp-root");
            let libraries = pico_tests::harness::pagecache::files(&root)?;
            let libc = libraries.iter().find(|path| path.ends_with("libc.so.6"));
            let libc = libc.ok_or_else(|| anyhow::anyhow!("no libc in {}", root.display()))?;
            // The same size, one byte other: what a rebuilt library may look like.
            let new = libc.with_extension("new");
            std::fs::copy(libc, &new)?;
            let mut bytes = std::fs::read(&new)?;
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
            std::fs::write(&new, bytes)?;
            std::fs::rename(&new, libc)?;
            let refused = rig.agent.try_cli(&["app", "wake", "a"])?;
            let message = String::from_utf8_lossy(&refused.stderr).into_owned();
            ensure!(
                !refused.status.success() && message.contains("libc.so.6"),
                "{message}"
            );
            rig.agent.cli(&["app", "restart", "a"])?;
            rig.ready("a")?.ask("ping")?;
            Ok(())
        })
}
