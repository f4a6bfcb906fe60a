//! What the requests of each port need is learned, from faults and from accessed pages, and brought ahead of the next
//! wake by that port: nothing else, and nothing that is wrong.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use pico_tests::harness::Rig;
use pico_tests::harness::agent::Prefetch;
use pico_tests::harness::apps::TestApp;
use pico_tests::harness::rig::Plan;

/// Its ports beside the one that the tests talk to it on.
const PORTS: [u16; 3] = [7001, 7002, 7003];
/// Pages of a request that nobody can know of: 10 % of what it reads of the app's memory.
const FRESH: u64 = 60;

/// Places in the app's memory, which are scattered ([`TestApp`]'s `touch`): what all ports need, what one needs, and
/// what no request has read before.
#[derive(Default)]
struct Requests {
    fresh: u64,
}

impl Requests {
    fn own(port: u16) -> String {
        format!("{}+400", 600 * u64::from(port - 7000))
    }

    /// A request that reads what ports share, `own`, and fresh pages.
    fn next(&mut self, own: &str) -> String {
        let fresh = 4096 + FRESH * self.fresh;
        self.fresh += 1;
        format!("touch 0+200 {own} {fresh}+{FRESH}")
    }
}

fn app(name: &str, change: impl FnOnce(&mut pico_tests::harness::AppConfig)) -> Result<Plan> {
    Plan::new(name)?.test_app("a", |app| {
        app.idle = "never".into();
        for port in PORTS {
            app.ports.push(format!("{port}/tcp"));
            app.command.extend(["--also".into(), port.to_string()]);
        }
        change(app);
    })
}

fn start(rig: &Rig) -> Result<TestApp> {
    let app = rig.ready("a")?;
    ensure!(app.ask("fill 32")? == "ok 8192");
    Ok(app)
}

fn asked(app: TestApp, port: u16, command: &str) -> Result<()> {
    let answer = app.on(port).ask(command)?;
    ensure!(answer.starts_with("ok"), "{command:?} on {port}: {answer}");
    Ok(())
}

/// Wakes it by `requests`, the first of which wakes it, and puts it to sleep again; how what was brought turned out.
fn wake(rig: &Rig, app: TestApp, tier: &str, requests: &[(u16, &str)]) -> Result<Prefetch> {
    for (port, command) in requests {
        asked(app, *port, command)?;
    }
    rig.agent.sleep("a", tier)?;
    rig.agent.wait_state("a", tier)?;
    let report = rig.agent.show("a")?.prefetch()?;
    let port = format!("{}/tcp", requests.first().context("no request")?.0);
    ensure!(report.port.as_deref() == Some(&port), "not of {port}: {report:?}");
    Ok(report)
}

/// Two wakes by each port, each with a request that reads what that port needs.
fn learn(rig: &Rig, app: TestApp, requests: &mut Requests) -> Result<()> {
    rig.agent.sleep("a", "warm")?;
    for port in PORTS.iter().chain(&PORTS) {
        let command = requests.next(&Requests::own(*port));
        wake(rig, app, "warm", &[(*port, &command)])?;
    }
    Ok(())
}

/// What several wakes come to, each by a request with fresh pages.
#[derive(Default)]
struct Total {
    wakes: u64,
    all: Prefetch,
}

impl Total {
    fn add(&mut self, report: &Prefetch) {
        self.wakes += 1;
        for (sum, pages) in [
            (&mut self.all.prefetched, report.prefetched),
            (&mut self.all.used, report.used),
            (&mut self.all.late, report.late),
            (&mut self.all.wasted, report.wasted),
            (&mut self.all.faulted, report.faulted),
        ] {
            *sum += pages;
        }
    }

    fn check(&self) -> Result<()> {
        let fresh = self.wakes * FRESH;
        let (recall, precision) = (self.all.recall(fresh), self.all.precision());
        ensure!(recall >= 0.99, "recall {recall}: {:?}", self.all);
        ensure!(precision >= 0.95, "precision {precision}: {:?}", self.all);
        Ok(())
    }
}

/// One wake: a stack that lies elsewhere, or a page that came up by chance, is more of it than of all.
fn is_known(report: &Prefetch, fresh: u64) -> Result<()> {
    ensure!(
        report.recall(fresh) >= 0.95,
        "recall {}: {report:?}",
        report.recall(fresh)
    );
    ensure!(
        report.precision() >= 0.9,
        "precision {}: {report:?}",
        report.precision()
    );
    // At least what the port's requests read of the app's memory, fresh pages excepted.
    ensure!(report.used + report.late >= 600, "{report:?}");
    Ok(())
}

#[test]
fn after_two_requests_on_each_port_a_wake_brings_what_it_needs_and_no_more() -> Result<()> {
    app("learned-ports", |_| ())?.run(|rig| {
        let app = start(rig)?;
        let mut requests = Requests::default();
        learn(rig, app, &mut requests)?;
        let mut total = Total::default();
        for tier in ["warm", "cold", "warm"] {
            for port in PORTS {
                let command = requests.next(&Requests::own(port));
                let report = wake(rig, app, tier, &[(port, &command)])?;
                is_known(&report, FRESH).with_context(|| format!("by {port}, then to {tier}"))?;
                total.add(&report);
            }
        }
        total.check()?;
        let sets = rig.agent.show("a")?;
        for port in PORTS {
            let port = format!("{port}/tcp");
            let sets = sets.0["active_sets"].as_array().context("no active_sets")?;
            let set = sets.iter().find(|set| set["port"] == port.as_str());
            let set = set.with_context(|| format!("nothing of {port} in {sets:?}"))?;
            ensure!(
                set["wakes"].as_u64() >= Some(4) && set["recall"].as_f64().is_some(),
                "{set}"
            );
        }
        ensure!(app.ask("verify")? == "ok 8192");
        Ok(())
    })
}

#[test]
fn what_other_ports_are_asked_while_it_is_hot_counts_for_them() -> Result<()> {
    app("learned-hot", |_| ())?.run(|rig| {
        let app = start(rig)?;
        let mut requests = Requests::default();
        learn(rig, app, &mut requests)?;
        // Two more things that the second port needs from now on, first seen in a wake by the first one.
        let [first, second, third] = PORTS;
        let more = format!("{} 3000+300", Requests::own(second));
        for _ in 0..3 {
            let commands = [
                (first, requests.next(&Requests::own(first))),
                (second, requests.next(&more)),
                (third, requests.next(&Requests::own(third))),
            ];
            let requests: Vec<_> = commands
                .iter()
                .map(|(port, command)| (*port, command.as_str()))
                .collect();
            wake(rig, app, "warm", &requests)?;
        }
        let command = requests.next(&more);
        let report = wake(rig, app, "warm", &[(second, &command)])?;
        is_known(&report, FRESH).context("what it was asked while hot is brought")?;
        let command = requests.next(&Requests::own(first));
        let report = wake(rig, app, "warm", &[(first, &command)])?;
        ensure!(
            report.precision() >= 0.9,
            "it is not for the port that woke it: {report:?}"
        );
        let command = requests.next(&Requests::own(first));
        let report = wake(rig, app, "warm", &[(first, &command)])?;
        is_known(&report, FRESH).context("which is known as before")
    })
}

#[test]
fn requests_on_two_ports_at_once_are_told_apart() -> Result<()> {
    app("learned-apart", |_| ())?.run(|rig| {
        let app = start(rig)?;
        let mut requests = Requests::default();
        rig.agent.sleep("a", "warm")?;
        let [first, second, _] = PORTS;
        for _ in 0..3 {
            let commands = [first, second].map(|port| (port, requests.next(&Requests::own(port))));
            std::thread::scope(|scope| {
                let asking = commands
                    .each_ref()
                    .map(|(port, command)| scope.spawn(move || asked(app, *port, command)));
                asking
                    .into_iter()
                    .try_for_each(|asking| asking.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
            })?;
            rig.agent.sleep("a", "warm")?;
        }
        // Who needs what the other one read first shows when each is asked alone.
        for port in [first, second, first, second, first, second] {
            let command = requests.next(&Requests::own(port));
            wake(rig, app, "warm", &[(port, &command)])?;
        }
        for port in [first, second] {
            let command = requests.next(&Requests::own(port));
            let report = wake(rig, app, "warm", &[(port, &command)])?;
            // Most of what it needs, and little of what only the other one does: 400 pages.
            let (recall, precision) = (report.recall(FRESH), report.precision());
            ensure!(
                recall >= 0.85 && precision >= 0.85,
                "by {port}: {recall}, {precision}: {report:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn another_behaviour_is_learned_within_three_wakes_and_one_huge_request_changes_nothing() -> Result<()> {
    app("learned-anew", |_| ())?.run(|rig| {
        let app = start(rig)?;
        let mut requests = Requests::default();
        learn(rig, app, &mut requests)?;
        let port = PORTS[0];
        let other = "3400+400";
        for _ in 0..3 {
            let command = requests.next(other);
            wake(rig, app, "warm", &[(port, &command)])?;
        }
        let command = requests.next(other);
        let report = wake(rig, app, "warm", &[(port, &command)])?;
        is_known(&report, FRESH).context("the new behaviour")?;

        wake(rig, app, "warm", &[(port, "verify")])?;
        let command = requests.next(other);
        let report = wake(rig, app, "warm", &[(port, &command)])?;
        is_known(&report, FRESH).context("after a request that read everything")
    })
}

#[test]
fn a_damaged_file_of_what_is_known_is_told_and_the_app_wakes() -> Result<()> {
    app("learned-damaged", |_| ())?.run(|rig| {
        let app = start(rig)?;
        let mut requests = Requests::default();
        learn(rig, app, &mut requests)?;
        let sets = rig.app_dir("a").join("activesets");
        for damage in [flip as fn(&Path) -> Result<()>, cut, |path| {
            Ok(std::fs::write(path, b"sets")?)
        }] {
            rig.agent.sleep("a", "cold")?;
            damage(&sets)?;
            ensure!(app.ask("verify")? == "ok 8192");
            let shown = rig.agent.show("a")?;
            ensure!(
                shown.last_failure().contains("learned anew"),
                "{}",
                shown.last_failure()
            );
        }
        // It learns again.
        learn(rig, app, &mut requests)?;
        let command = requests.next(&Requests::own(PORTS[0]));
        is_known(&wake(rig, app, "warm", &[(PORTS[0], &command)])?, FRESH)
    })
}

#[test]
fn what_was_learned_travels_with_the_checkpoint() -> Result<()> {
    app("learned-travels", |_| ())?.run(|rig| {
        let app = start(rig)?;
        let mut requests = Requests::default();
        learn(rig, app, &mut requests)?;
        for port in PORTS {
            rig.agent.sleep("a", "cold")?;
            // As on a host that has never seen it.
            std::fs::remove_file(rig.app_dir("a").join("activesets"))?;
            let command = requests.next(&Requests::own(port));
            is_known(&wake(rig, app, "cold", &[(port, &command)])?, FRESH)?;
        }
        Ok(())
    })
}

fn flip(path: &Path) -> Result<()> {
    let mut bytes = std::fs::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Ok(std::fs::write(path, bytes)?)
}

fn cut(path: &Path) -> Result<()> {
    let bytes = std::fs::read(path)?;
    Ok(std::fs::write(path, &bytes[..bytes.len() / 2])?)
}

#[test]
fn without_prefetch_nothing_is_brought_and_all_of_it_is_where_it_is_wanted() -> Result<()> {
    for (how, least, most) in [("none", 0, 0), ("full", 8192, u64::MAX)] {
        app("learned-how", |app| app.prefetch = Some(how.into()))?.run(|rig| {
            let app = start(rig)?;
            let mut requests = Requests::default();
            rig.agent.sleep("a", "warm")?;
            for _ in 0..2 {
                let command = requests.next(&Requests::own(PORTS[0]));
                let report = wake(rig, app, "warm", &[(PORTS[0], &command)])?;
                ensure!((least..=most).contains(&report.prefetched), "{how}: {report:?}");
            }
            ensure!(app.ask("verify")? == "ok 8192");
            Ok(())
        })?;
    }
    Ok(())
}
