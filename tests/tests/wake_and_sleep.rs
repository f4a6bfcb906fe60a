//! An idle app sleeps and costs nothing; its first packet wakes it, whatever protocol brings it, and no
//! request is lost on the way.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pico_tests::harness::apps::TestApp;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::{Rig, until};

fn count(answer: &str) -> Result<u64> {
    answer.parse().with_context(|| format!("not a count: {answer}"))
}

/// Waits until idleness has put the app to sleep.
fn asleep(rig: &Rig, app: &str) -> Result<()> {
    rig.agent.wait_state(app, "warm")?;
    ensure!(rig.processes(app)?.is_empty(), "{app} sleeps and has processes");
    Ok(())
}

#[test]
fn a_tcp_connection_wakes_an_idle_app_with_its_memory_and_files() -> Result<()> {
    Plan::new("wake-tcp")?.test_app("a", |_| ())?.run(|rig| {
        let app = rig.ready("a")?;
        app.ask("fill 16")?;
        app.ask("write /srv/note kept")?;
        ensure!(app.ask("count")? == "1");
        asleep(rig, "a")?;
        ensure!(app.ask("count")? == "2");
        ensure!(rig.agent.show("a")?.state() == "hot");
        ensure!(rig.agent.show("a")?.last_wake()?.tier == "warm");
        ensure!(app.ask("verify")? == "ok 4096");
        ensure!(app.ask("read /srv/note")? == "kept");
        // Pages the app has discarded must not come back from the older checkpoint.
        app.ask("discard 3")?;
        app.ask("change 100")?;
        asleep(rig, "a")?;
        ensure!(app.ask("verify")? == "ok 4096");
        ensure!(app.ask("fork")? == "ok");
        Ok(())
    })
}

#[test]
fn the_first_datagram_wakes_an_idle_app_and_is_not_lost() -> Result<()> {
    Plan::new("wake-udp")?.test_app("a", |_| ())?.run(|rig| {
        let app = rig.ready("a")?;
        for round in 1..=3 {
            asleep(rig, "a")?;
            ensure!(app.ask_udp("count")? == round.to_string());
        }
        Ok(())
    })
}

#[test]
fn ipv6_wakes_an_app_over_tcp_and_udp() -> Result<()> {
    Plan::new("wake-v6")?.test_app("a", |_| ())?.run(|rig| {
        rig.ready("a")?;
        let app = TestApp::at(rig.v6("a")?);
        asleep(rig, "a")?;
        ensure!(app.ask("count")? == "1");
        asleep(rig, "a")?;
        ensure!(app.ask_udp("count")? == "2");
        Ok(())
    })
}

#[test]
fn a_cold_app_has_nothing_on_the_host_and_comes_back_whole() -> Result<()> {
    Plan::new("wake-cold")?
        .test_app("a", |app| app.cold_after = "100ms".into())?
        .run(|rig| {
            let app = rig.ready("a")?;
            app.ask("fill 16")?;
            app.ask("write /srv/note kept")?;
            app.ask("count")?;
            rig.agent.wait_state("a", "cold")?;
            for what in ["ckpt", "pages", "upper"] {
                let dir = rig.app_dir("a").join(what);
                let left = dir.is_dir() && std::fs::read_dir(&dir)?.next().is_some();
                ensure!(!left, "{} is left of a cold app", dir.display());
            }
            ensure!(app.ask("count")? == "2");
            let wake = rig.agent.show("a")?.last_wake()?;
            ensure!(wake.tier == "cold" && wake.fetched_bytes > 0, "{wake:?}");
            // 16 MiB were filled: only what was touched may have come.
            ensure!(
                wake.fetched_bytes < 8 << 20,
                "{} bytes fetched for one answer",
                wake.fetched_bytes
            );
            ensure!(app.ask("verify")? == "ok 4096");
            ensure!(app.ask("read /srv/note")? == "kept");
            Ok(())
        })
}

#[test]
fn many_clients_of_a_sleeping_app_are_all_answered() -> Result<()> {
    Plan::new("wake-many")?.test_app("a", |_| ())?.run(|rig| {
        let app = rig.ready("a")?;
        asleep(rig, "a")?;
        let clients: Vec<_> = (0..100)
            .map(|_| std::thread::spawn(move || app.ask("count")))
            .collect();
        let mut counts = Vec::new();
        for client in clients {
            let answer = client
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))??;
            counts.push(count(&answer)?);
        }
        counts.sort_unstable();
        ensure!(counts == (1..=100).collect::<Vec<_>>(), "{counts:?}");
        Ok(())
    })
}

#[test]
fn requests_during_swap_outs_are_all_answered_once() -> Result<()> {
    Plan::new("wake-busy")?
        .test_app("a", |app| app.idle = "never".into())?
        .run(|rig| {
            let app = rig.ready("a")?;
            let client = std::thread::spawn(move || -> Result<u64> {
                for round in 1..=200 {
                    let answer = count(&app.ask("count")?)?;
                    ensure!(answer == round, "request {round} was answered {answer}");
                    std::thread::sleep(Duration::from_millis(15));
                }
                Ok(200)
            });
            while !client.is_finished() {
                // It may be refused, because a packet came: then the app simply goes on.
                rig.agent.try_cli(&["app", "sleep", "a"])?;
            }
            client
                .join()
                .map_err(|_| anyhow::anyhow!("the client panicked"))??;
            Ok(())
        })
}

#[test]
fn what_an_app_printed_is_readable_while_it_sleeps() -> Result<()> {
    Plan::new("logs")?.test_app("a", |_| ())?.run(|rig| {
        let app = rig.ready("a")?;
        app.ask("say before the sleep")?;
        app.ask("complain on stderr")?;
        asleep(rig, "a")?;
        let logs = rig.agent.cli(&["app", "logs", "a"])?;
        ensure!(
            logs.contains("before the sleep") && logs.contains("on stderr"),
            "{logs}"
        );
        app.ask("say after the sleep")?;
        until("the new line", Duration::from_secs(5), || {
            let logs = rig.agent.cli(&["app", "logs", "a"])?;
            Ok((logs.contains("before the sleep") && logs.contains("after the sleep")).then_some(()))
        })
    })
}

#[test]
fn an_app_that_ends_shows_its_exit_status_and_stays_ended() -> Result<()> {
    Plan::new("exit")?
        .test_app("a", |app| app.restart = Some("never".into()))?
        .run(|rig| {
            let app = rig.ready("a")?;
            // The answer never comes; the connection ends with the app.
            let _ = app.ask("exit 3");
            let show = until("the exit", Duration::from_secs(10), || {
                let show = rig.agent.show("a")?;
                Ok(show.number("/last_exit/status/code").is_some().then_some(show))
            })?;
            ensure!(show.number("/last_exit/status/code") == Some(3), "{}", show.0);
            ensure!(["stopped", "failed"].contains(&show.state()), "{}", show.state());
            ensure!(rig.processes("a")?.is_empty());
            Ok(())
        })
}

#[test]
fn a_crashed_app_is_started_again_with_growing_pauses() -> Result<()> {
    let plan = Plan::new("restart")?
        .test_app("once", |_| ())?
        .test_app("always", |app| {
            app.command
                .extend(["--exit-after-ms", "10", "1"].map(str::to_owned))
        })?;
    plan.run(|rig| {
        let app = rig.ready("once")?;
        ensure!(app.ask("count")? == "1");
        let _ = app.ask("abort");
        until("the restart", Duration::from_secs(10), || {
            Ok(app.ask("count").ok().filter(|count| count == "1"))
        })?;
        let show = rig.agent.show("once")?;
        ensure!(show.number("/last_exit/status/signal").is_some(), "{}", show.0);
        std::thread::sleep(Duration::from_secs(2));
        let starts = rig.agent.show("always")?.number("/counters/starts").unwrap_or(0);
        ensure!(
            (2..=4).contains(&starts),
            "started {starts} times in a few seconds"
        );
        Ok(())
    })
}
