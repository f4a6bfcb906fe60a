//! Sessions that are open and silent, with TCP keepalives every second, live through many swaps of their server. Only
//! what is said on them wakes it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pico_tests::harness::apps::mosquitto::Client;
use pico_tests::harness::apps::sshd::Session;
use pico_tests::harness::apps::{mosquitto, sshd};
use pico_tests::harness::rig::Plan;
use pico_tests::harness::{Rig, TIERS, soak, within};

const START: Duration = Duration::from_secs(20);
/// Longer than it takes keepalives without an answer to end a connection.
const SILENCE: Duration = Duration::from_secs(5);

/// Puts the app to sleep over and over, each time silent for a while now and then, and lets `say` wake it.
fn swaps(rig: &Rig, app: &str, mut say: impl FnMut(usize) -> Result<()>) -> Result<()> {
    let before = rig.agent.show(app)?.wakes();
    let swaps = soak(6, 20);
    for swap in 0..swaps {
        let tier = TIERS[swap % TIERS.len()];
        let of = || format!("{app}, swap {swap}, {tier}");
        rig.agent.sleep(app, tier).with_context(of)?;
        if swap < TIERS.len() {
            std::thread::sleep(SILENCE);
        }
        let show = rig.agent.show(app)?;
        ensure!(
            show.state() == tier,
            "{}: {} ({})",
            of(),
            show.state(),
            show.reason()
        );
        say(swap).with_context(of)?;
    }
    let wakes = rig.agent.show(app)?.wakes() - before;
    ensure!(wakes == swaps as u64, "{wakes} wakes by {swaps} messages");
    Ok(())
}

#[test]
fn an_mqtt_subscriber_gets_what_is_published_after_each_sleep() -> Result<()> {
    let plan = Plan::new("mqtt")?;
    let mut app = mosquitto::config(plan.dir())?;
    app.idle = "never".into();
    plan.app(app).run(|rig| {
        let at = rig.v4("mosquitto")?;
        rig.agent.wait_state("mosquitto", "hot")?;
        let mut subscriber = within(START, || Client::connect(at, "subscriber"))?;
        subscriber.subscribe("news")?;
        let mut publisher = Client::connect(at, "publisher")?;
        swaps(rig, "mosquitto", |swap| {
            let text = format!("number {swap}");
            // By a connection that slept too, and by a new one.
            if swap % 2 == 0 {
                publisher.publish("news", &text)?;
            } else {
                Client::connect(at, "another")?.publish("news", &text)?;
            }
            ensure!(subscriber.receive_text()? == text);
            Ok(())
        })
    })
}

#[test]
fn an_ssh_session_goes_on_after_each_sleep() -> Result<()> {
    let plan = Plan::new("ssh")?;
    let mut app = sshd::config(plan.dir())?;
    app.idle = "never".into();
    plan.app(app).run(|rig| {
        // The client takes the intervals of its network namespace.
        for (name, value) in [("time", "1"), ("intvl", "1"), ("probes", "3")] {
            std::fs::write(format!("/proc/sys/net/ipv4/tcp_keepalive_{name}"), value)?;
        }
        let at = rig.v4("sshd")?;
        rig.agent.wait_state("sshd", "hot")?;
        let mut session = within(START, || {
            let mut session = Session::open(rig.dir(), at)?;
            session.echo("hello").map(|()| session)
        })?;
        swaps(rig, "sshd", |swap| session.echo(&format!("line {swap}")))
    })
}
