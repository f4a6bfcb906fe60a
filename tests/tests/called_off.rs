//! A swap-out is called off by whatever would be lost or kept waiting by it, at any moment, and the app serves it at
//! once.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pico_tests::harness::apps::testapp::{PORT, TestApp};
use pico_tests::harness::rig::Plan;
use pico_tests::harness::soak::soak;
use pico_tests::harness::{AppConfig, Rig, until};

fn awake(app: &mut AppConfig) {
    app.idle = "never".into();
}

/// Numbers that look random, from a seed that a failure names.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_micros());
        Dice(u64::try_from(seed).unwrap_or(1))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % bound
    }
}

/// Asks for the next number by one of the ways a client can.
fn count(rig: &Rig, kept: &mut pico_tests::harness::apps::testapp::Connection, way: usize) -> Result<u64> {
    let answer = match way % 4 {
        0 => TestApp::at(rig.v4("a")?).ask("count")?,
        1 => TestApp::at(rig.v4("a")?).ask_udp("count")?,
        2 => kept.ask("count")?,
        _ => TestApp::at(rig.v6("a")?).ask("count")?,
    };
    answer.parse().with_context(|| format!("not a number: {answer}"))
}

#[test]
fn a_request_at_any_moment_of_a_swap_out_is_answered_once() -> Result<()> {
    Plan::new("any-moment")?.test_app("a", awake)?.run(|rig| {
        let mut kept = rig.ready("a")?.connect()?;
        let mut dice = Dice::new();
        let seed = dice.0;
        let (mut expected, mut called_off, mut slept) = (0, 0, 0);
        // How long a swap-out takes here, so that requests fall into all of it.
        let begun = Instant::now();
        rig.agent.sleep("a", "warm")?;
        let whole = u64::try_from(begun.elapsed().as_micros())?.max(1_000);
        for round in 0..soak(20, 200) {
            // Hot again, whatever became of the last swap-out.
            expected += 1;
            ensure!(count(rig, &mut kept, 2)? == expected, "seed {seed}");
            let offset = Duration::from_micros(dice.below(whole * 5 / 4));
            let outcome = std::thread::scope(|scope| -> Result<bool> {
                let agent = &rig.agent;
                let sleeping = scope.spawn(move || agent.try_cli(&["app", "sleep", "a"]));
                std::thread::sleep(offset);
                expected += 1;
                let answer = count(rig, &mut kept, round)?;
                ensure!(
                    answer == expected,
                    "round {round}, {offset:?} into a swap-out: {answer} for {expected} (seed {seed})"
                );
                let output = sleeping
                    .join()
                    .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
                Ok(output.status.success())
            })?;
            *(if outcome { &mut slept } else { &mut called_off }) += 1;
        }
        // Both must occur, or the offsets test nothing.
        ensure!(
            called_off > 0 && slept > 0,
            "{called_off} called off, {slept} not"
        );
        let show = rig.agent.show("a")?;
        ensure!(
            show.number("/counters/failed_sleeps") == Some(0),
            "{}",
            show.last_failure()
        );
        Ok(())
    })
}

#[test]
fn a_request_in_the_middle_of_a_long_dump_does_not_wait_for_its_end() -> Result<()> {
    Plan::new("long-dump")?.test_app("a", awake)?.run(|rig| {
        let app = rig.ready("a")?;
        let mut kept = app.connect()?;
        kept.ask("fill 192")?;
        let begun = Instant::now();
        rig.agent.sleep("a", "warm")?;
        let whole = begun.elapsed();
        // All of it is dumped again.
        ensure!(kept.ask("change 49152")?.starts_with("ok"));
        let mut waits = Vec::new();
        for _ in 0..3 {
            let sleeping = std::thread::scope(|scope| -> Result<_> {
                let agent = &rig.agent;
                let sleeping = scope.spawn(move || agent.try_cli(&["app", "sleep", "a"]));
                // The app's actor answers nobody meanwhile; what the swap-out makes can be seen.
                until("the dump", Duration::from_secs(5), || {
                    Ok(dumping(rig)?.then_some(()))
                })?;
                std::thread::sleep(whole / 8);
                let asked = Instant::now();
                ensure!(kept.ask("ping")? == "pong");
                waits.push(asked.elapsed());
                sleeping
                    .join()
                    .map_err(|_| anyhow::anyhow!("a thread panicked"))?
            })?;
            ensure!(!sleeping.status.success(), "it slept");
        }
        waits.sort();
        ensure!(
            waits[1] < whole / 2,
            "waited {waits:?} where a swap-out takes {whole:?}"
        );
        ensure!(kept.ask("verify")?.starts_with("ok"));
        rig.agent.sleep("a", "warm")?;
        ensure!(kept.ask("verify")?.starts_with("ok"));
        Ok(())
    })
}

#[test]
fn an_unread_datagram_calls_a_swap_out_off_and_is_answered() -> Result<()> {
    Plan::new("unread")?.test_app("a", awake)?.run(|rig| {
        let app = rig.ready("a")?;
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((rig.v4("a")?, PORT))?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut kept = app.connect()?;
        ensure!(kept.ask("deaf")? == "ok");
        // The call that waits already takes this one.
        ensure!(app.ask_udp("ping")? == "pong");
        socket.send(b"echo late")?;
        let refused = rig.agent.try_cli(&["app", "sleep", "a"])?;
        let message = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(message.contains("unread datagram"), "{message}");
        ensure!(kept.ask("hear")? == "ok");
        let mut answer = [0; 16];
        let length = socket.recv(&mut answer)?;
        ensure!(&answer[..length] == b"late");
        slept_at_last(rig)
    })
}

#[test]
fn a_connection_not_yet_accepted_calls_a_swap_out_off_and_is_served() -> Result<()> {
    Plan::new("unaccepted")?.test_app("a", awake)?.run(|rig| {
        let app = rig.ready("a")?;
        let mut kept = app.connect()?;
        ensure!(kept.ask("deaf")? == "ok");
        ensure!(app.ask("ping")? == "pong");
        let mut waiting = app.connect()?;
        let refused = rig.agent.try_cli(&["app", "sleep", "a"])?;
        let message = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(message.contains("not yet accepted"), "{message}");
        ensure!(kept.ask("hear")? == "ok");
        ensure!(waiting.ask("ping")? == "pong");
        slept_at_last(rig)
    })
}

/// Whether a checkpoint is being made.
fn dumping(rig: &Rig) -> Result<bool> {
    for dir in std::fs::read_dir(rig.app_dir("a").join("ckpt"))? {
        if dir?
            .path()
            .extension()
            .is_some_and(|extension| extension == "tmp")
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What was called off counts as no failure, and does not stand in the way of the next try.
fn slept_at_last(rig: &Rig) -> Result<()> {
    rig.agent.sleep("a", "warm")?;
    let show = rig.agent.show("a")?;
    ensure!(
        show.number("/counters/failed_sleeps") == Some(0),
        "{}",
        show.last_failure()
    );
    Ok(())
}
