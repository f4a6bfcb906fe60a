//! What is sent to a sleeping app waits for it, however much it is: nothing of it is lost, doubled or out of order, and
//! apps that are awake do not notice.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use pico_tests::harness::apps::testapp::{PORT, TestApp};
use pico_tests::harness::rig::Plan;
use pico_tests::harness::{AppConfig, TIERS};

fn awake(app: &mut AppConfig) {
    app.idle = "never".into();
}

#[test]
fn a_thousand_clients_of_a_waking_app_are_each_answered_once() -> Result<()> {
    const CLIENTS: usize = 1000;
    Plan::new("thousand")?.test_app("a", awake)?.run(|rig| {
        let app = rig.ready("a")?;
        let mut expected = 0;
        for tier in TIERS {
            rig.agent.sleep("a", tier)?;
            // All are there before the first is answered: the app is woken by one of them.
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| std::thread::spawn(move || app.ask("count")))
                .collect();
            let mut counts = Vec::new();
            for client in clients {
                let answer = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
                counts.push(answer.with_context(|| format!("from {tier}"))?.parse::<usize>()?);
            }
            counts.sort_unstable();
            ensure!(
                counts == (expected + 1..=expected + CLIENTS).collect::<Vec<_>>(),
                "from {tier} they were answered {counts:?} after {expected}"
            );
            expected += CLIENTS;
        }
        let wakes = rig.agent.show("a")?.wakes();
        ensure!(wakes == TIERS.len() as u64, "{wakes} wakes");
        Ok(())
    })
}

#[test]
fn fifty_datagrams_in_a_burst_come_in_order_each_once() -> Result<()> {
    const BURST: usize = 50;
    Plan::new("burst")?.test_app("a", awake)?.run(|rig| {
        rig.ready("a")?;
        let addresses: [IpAddr; 2] = [rig.v4("a")?, rig.v6("a")?];
        for (tier, address) in TIERS.iter().flat_map(|tier| addresses.map(|at| (*tier, at))) {
            rig.agent.sleep("a", tier)?;
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let client = UdpSocket::bind(any)?;
            client.connect((address, PORT))?;
            client.set_read_timeout(Some(Duration::from_secs(20)))?;
            for number in 0..BURST {
                client.send(format!("echo {number}").as_bytes())?;
            }
            let mut answers = Vec::new();
            let mut buffer = [0; 64];
            for _ in 0..BURST {
                let length = client
                    .recv(&mut buffer)
                    .with_context(|| format!("{tier}, {address}: only {answers:?}"))?;
                answers.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
            let expected: Vec<_> = (0..BURST).map(|number| number.to_string()).collect();
            ensure!(answers == expected, "{tier}, {address}: {answers:?}");
            // One more answer would be that of a datagram delivered twice.
            ensure!(TestApp::at(address).ask("ping")? == "pong");
            client.set_nonblocking(true)?;
            let more = client.recv(&mut buffer);
            ensure!(
                more.as_ref()
                    .is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
                "{tier}, {address}: {more:?} after all"
            );
        }
        Ok(())
    })
}

#[test]
fn a_flood_of_calls_for_a_cold_app_costs_a_hot_one_no_packet() -> Result<()> {
    const CALLS: usize = 15_000;
    const CALLS_A_SECOND: f64 = 5_000.0;
    let plan = Plan::new("flood")?.shaped();
    plan.test_app("a", awake)?.test_app("b", awake)?.run(|rig| {
        let (cold, hot) = (rig.ready("a")?, rig.ready("b")?);
        ensure!(cold.ask("count")? == "1");
        rig.agent.sleep("a", "cold")?;
        // It is waking for as long as the flood lasts.
        rig.shaper()?.set_delay(Duration::from_secs(1));
        let address = SocketAddr::new(rig.v4("a")?, PORT);
        let ends = AtomicBool::new(false);
        let answered = std::thread::scope(|scope| -> Result<usize> {
            let flood = scope.spawn(|| {
                let outcome = flood(address, CALLS, CALLS_A_SECOND);
                ends.store(true, Ordering::SeqCst);
                outcome
            });
            let mut answered = 0;
            while !ends.load(Ordering::SeqCst) {
                // One datagram each, never sent again: one that is lost is a failure.
                let answer = hot
                    .ask_udp("ping")
                    .with_context(|| format!("datagram {answered}"))?;
                ensure!(answer == "pong" && hot.ask("ping")? == "pong");
                answered += 1;
            }
            flood
                .join()
                .map_err(|_| anyhow::anyhow!("the flood panicked"))??;
            Ok(answered)
        })?;
        ensure!(answered > 100, "the hot app was asked {answered} times only");
        rig.shaper()?.set_delay(Duration::ZERO);
        ensure!(cold.ask("count")? == "2");
        ensure!(rig.agent.show("b")?.wakes() == 0, "the hot app slept");
        Ok(())
    })
}

/// Sends so many SYNs, each from another port, and goes on with none of them.
fn flood(to: SocketAddr, calls: usize, a_second: f64) -> Result<()> {
    let begun = Instant::now();
    for call in 0..calls {
        let client = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        match connect(client.as_raw_fd(), &SockaddrStorage::from(to)) {
            Err(Errno::EINPROGRESS) | Ok(()) => {}
            Err(error) => return Err(error).with_context(|| format!("call {call}")),
        }
        drop(client);
        let due = Duration::from_secs_f64(call as f64 / a_second);
        if let Some(early) = due.checked_sub(begun.elapsed()) {
            std::thread::sleep(early);
        }
    }
    Ok(())
}
