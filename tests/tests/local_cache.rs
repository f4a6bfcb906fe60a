//! What sleeping apps keep on the host's disk: it spares the store, is checked like what comes from there, stays within its
//! budget, and is never the only copy that gives way.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pico_tests::harness::process::output;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::shaper::{Fault, Request, Rule};
use pico_tests::harness::{Rig, until};

const PAGES: usize = 4096;

fn plan(name: &str, cache: &str, apps: &[&str]) -> Result<Plan> {
    let mut plan = Plan::new(name)?.shaped().cache(cache);
    for app in apps {
        plan = plan.test_app(app, |app| app.idle = "never".into())?;
    }
    Ok(plan)
}

/// Has 16 MiB, and is nothing but a checkpoint in the store, and what is kept of it.
fn fill_and_cool(rig: &Rig, name: &str) -> Result<()> {
    let app = rig.ready(name)?;
    app.ask("fill 16")?;
    rig.agent.sleep(name, "cold")
}

/// Wakes it, compares all of its memory, and says what was asked of the store for that.
fn wake_and_verify(rig: &Rig, name: &str) -> Result<Vec<Request>> {
    rig.shaper()?.take_requests();
    let verified = rig.test_app(name)?.ask("verify")?;
    ensure!(verified == format!("ok {PAGES}"), "{name}: {verified}");
    let mut requests = rig.shaper()?.take_requests();
    requests.retain(|request| request.method == "GET");
    Ok(requests)
}

/// Bytes that the apps' kept copies take on the disk.
fn kept(rig: &Rig, names: &[&str]) -> Result<u64> {
    let mut blocks = 0;
    for name in names {
        for dir in ["pages", "transfer", "ckpt"] {
            for file in files(&rig.app_dir(name).join(dir))? {
                // What gives way meanwhile counts nothing.
                blocks += file.metadata().map_or(0, |found| found.blocks());
            }
        }
    }
    Ok(blocks * 512)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Ok(files);
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(self::files(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

#[test]
fn what_is_kept_of_a_cold_app_spares_the_store_and_survives_its_agent() -> Result<()> {
    plan("kept", "1G", &["a"])?.run(|rig| {
        fill_and_cool(rig, "a")?;
        ensure!(rig.processes("a")?.is_empty());
        let asked = wake_and_verify(rig, "a")?;
        ensure!(asked.is_empty(), "it asked the store: {asked:#?}");
        // Blocks of two generations, after the agent was killed.
        rig.test_app("a")?.ask("change 500")?;
        rig.agent.sleep("a", "cold")?;
        rig.agent.kill()?;
        rig.restart_agent()?;
        let asked = wake_and_verify(rig, "a")?;
        ensure!(
            asked.is_empty(),
            "it asked the store after the agent was killed: {asked:#?}"
        );
        Ok(())
    })
}

#[test]
fn what_was_kept_and_is_damaged_comes_from_the_store() -> Result<()> {
    plan("kept-damaged", "1G", &["a"])?.run(|rig| {
        let app = rig.ready("a")?;
        app.ask("fill 16")?;
        for round in 0..3 {
            app.ask(&format!("change {}", 100 + round))?;
            rig.agent.sleep("a", "cold")?;
            let mut damaged = 0;
            for file in files(&rig.app_dir("a"))? {
                let text = file.display().to_string();
                let (pages, objects) = (text.contains("/pages/"), text.contains("/transfer/"));
                if !pages && !objects {
                    continue;
                }
                let open = std::fs::File::options().read(true).write(true).open(&file)?;
                let length = open.metadata()?.len();
                // A bit each 100 KB: not every block is wrong.
                for at in (0..length).step_by(100_000) {
                    let mut byte = [0];
                    open.read_exact_at(&mut byte, at)?;
                    open.write_all_at(&[byte[0] ^ 1], at)?;
                    damaged += 1;
                }
            }
            ensure!(damaged > 50, "only {damaged} bytes were there to damage");
            let asked = wake_and_verify(rig, "a")?.len();
            ensure!(asked > 20, "{damaged} damages were mended by {asked} requests");
            ensure!(!rig.agent.cli(&["app", "logs", "a"])?.contains("WRONG"));
        }
        Ok(())
    })
}

#[test]
fn the_least_recently_used_gives_way_when_the_budget_is_reached() -> Result<()> {
    let names = ["a", "b", "c"];
    // Each keeps some 17 MiB.
    plan("kept-budget", "45M", &names)?.run(|rig| {
        for name in names {
            fill_and_cool(rig, name)?;
        }
        until("the first one to give way", Duration::from_secs(10), || {
            Ok((kept(rig, &["a"])? == 0).then_some(()))
        })?;
        let bytes = kept(rig, &names)?;
        ensure!((30 << 20..45 << 20).contains(&bytes), "{bytes} bytes are kept");
        ensure!(
            !wake_and_verify(rig, "a")?.is_empty(),
            "it is kept nowhere but in the store"
        );
        let asked = wake_and_verify(rig, "c")?;
        ensure!(asked.is_empty(), "the newest gave way: {asked:#?}");
        Ok(())
    })
}

#[test]
fn what_the_store_does_not_have_never_gives_way() -> Result<()> {
    plan("kept-only", "1M", &["a", "b"])?.run(|rig| {
        rig.shaper()?.inject(Rule::new("PUT", "/", Fault::Status(500)));
        for name in ["a", "b"] {
            rig.ready(name)?.ask("fill 16")?;
            rig.agent.sleep(name, "warm")?;
        }
        ensure!(kept(rig, &["a"])? > 16 << 20 && kept(rig, &["b"])? > 16 << 20);
        // Once it is there, it is too much for this host.
        rig.shaper()?.clear();
        for name in ["a", "b"] {
            rig.agent.wait(name, &["cold"], Duration::from_secs(40))?;
        }
        until("nothing to be kept", Duration::from_secs(10), || {
            Ok((kept(rig, &["a", "b"])? == 0).then_some(()))
        })?;
        for name in ["a", "b"] {
            ensure!(!wake_and_verify(rig, name)?.is_empty());
        }
        Ok(())
    })
}

#[test]
fn a_full_disk_makes_a_swap_out_fail_and_the_app_runs_on() -> Result<()> {
    plan("full", "0", &["a"])?.state_disk("64M").run(|rig| {
        let app = rig.ready("a")?;
        app.ask("fill 16")?;
        let mut connection = app.connect()?;
        let filler = rig.dir().join("state/filler");
        output(
            Command::new("dd")
                .args(["if=/dev/zero", "bs=1M", "count=56"])
                .arg(format!("of={}", filler.display())),
        )?;
        let refused = rig.agent.try_cli(&["app", "sleep", "a"])?;
        ensure!(!refused.status.success(), "it sleeps on a full disk");
        let show = rig.agent.show("a")?;
        ensure!(show.state() == "hot", "{}", show.0);
        ensure!(show.last_failure().starts_with("swap-out: "), "{}", show.0);
        // The same process, and what it is connected with.
        let verified = connection.ask("verify")?;
        ensure!(verified == format!("ok {PAGES}"), "{verified}");
        drop(connection);
        let left = kept(rig, &["a"])?;
        ensure!(left < 1 << 20, "{left} bytes are left of the try");
        std::fs::remove_file(&filler).context("the filler")?;
        rig.agent.sleep("a", "warm")?;
        let verified = app.ask("verify")?;
        ensure!(verified == format!("ok {PAGES}"), "{verified}");
        Ok(())
    })
}
