//! No byte of an app's memory is ever wrong: every kind of memory, changed at random between random swaps, compared
//! page by page with a model that the scenario keeps itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pico_tests::harness::apps::TestApp;
use pico_tests::harness::apps::testapp::Connection;
use pico_tests::harness::rig::Plan;
use pico_tests::harness::shaper::{Fault, Rule};
use pico_tests::harness::{Rig, soak, until};
use pico_tests::truth::{Random, Region, World, digest};

/// The app, and what it must hold.
struct Case {
    app: TestApp,
    world: World,
    random: Random,
    seed: u64,
}

impl Case {
    fn new(rig: &Rig, seed: u64) -> Result<Case> {
        eprintln!("seed {seed}: PICO_SEED={seed} repeats it");
        let app = rig.ready("a")?;
        expect(&app.ask("truth")?, "ok")?;
        let mut world = World::default();
        world.fill();
        let random = Random::new(seed);
        Ok(Case {
            app,
            world,
            random,
            seed,
        })
    }

    fn next(&mut self) -> u64 {
        self.seed += 1;
        self.seed
    }

    /// Changes what both have, about `steps` runs of pages.
    fn change(&mut self, connection: &mut Connection, steps: usize) -> Result<()> {
        let seed = self.next();
        self.world.change(seed, steps);
        expect(&connection.ask(&format!("truth-change {seed} {steps}"))?, "ok")
    }

    /// Compares about `percent` of all pages.
    fn check(&mut self, connection: &mut Connection, percent: usize) -> Result<()> {
        let seed = self.next();
        let answer = connection.ask(&format!("truth-check {seed} {percent}"))?;
        expect(&answer, &self.expected(seed, percent))
    }

    fn expected(&self, seed: u64, percent: usize) -> String {
        let private = |regions: &Vec<Region>| {
            let own = regions.iter().filter(|region| !region.kind.is_shared());
            digest(&own.cloned().collect::<Vec<_>>(), seed, percent).to_string()
        };
        let children = self.world.children.iter();
        let children = children.map(|child| child.as_ref().map_or("-".into(), private));
        let own = digest(&self.world.regions, seed, percent).to_string();
        format!("ok {own} {}", children.collect::<Vec<_>>().join(" "))
    }
}

fn expect(answer: &str, expected: &str) -> Result<()> {
    ensure!(answer == expected, "{answer}\nwhere the model says {expected}");
    Ok(())
}

fn seed() -> Result<u64> {
    match std::env::var("PICO_SEED") {
        Ok(seed) => seed.parse().context("PICO_SEED is no number"),
        Err(_) => Ok(u64::from(std::process::id())),
    }
}

fn plan(name: &str) -> Result<Plan> {
    Plan::new(name)?.shaped().test_app("a", |app| {
        app.idle = "never".into();
    })
}

#[test]
fn every_page_is_right_after_random_swaps_with_random_changes_between() -> Result<()> {
    let seed = seed()?;
    plan("truth")?.run(|rig| {
        let mut case = Case::new(rig, seed)?;
        for round in 0..soak(20, 200) {
            let tier = if case.random.below(3) == 0 { "cold" } else { "warm" };
            let swap = || format!("round {round}, {tier}, seed {seed}");
            {
                let mut connection = case.app.connect().with_context(swap)?;
                // Often only some pages are touched before the next swap-out: the rest stays where it lies.
                let (before, steps, after) = (
                    case.random.below(30),
                    case.random.below(40),
                    case.random.below(20),
                );
                case.check(&mut connection, before).with_context(swap)?;
                case.change(&mut connection, steps).with_context(swap)?;
                case.check(&mut connection, after).with_context(swap)?;
                if round % 8 == 7 {
                    case.check(&mut connection, 100).with_context(swap)?;
                }
            }
            rig.agent.sleep("a", tier).with_context(swap)?;
        }
        let mut connection = case.app.connect()?;
        case.check(&mut connection, 100).context("at the end")
    })
}

/// Each kind of object of a checkpoint, as part of its key.
const OBJECTS: [&str; 5] = ["/bundle", "/index", "/files", "/pages-", "/sums"];

#[test]
fn no_fault_of_the_store_in_any_object_puts_a_wrong_byte_into_memory() -> Result<()> {
    let seed = seed()?;
    let faults = [
        Fault::Status(500),
        Fault::Truncate(700),
        Fault::FlipBit(0),
        Fault::FlipBit(999),
        Fault::Reset,
        Fault::Hang,
    ];
    let cases = OBJECTS
        .iter()
        .flat_map(|object| faults.map(|fault| (object, fault)));
    // All of them take minutes; every fifth is each fault and each object at least once.
    let cases = cases.step_by(soak(5, 1));
    plan("truth-faults")?.run(|rig| {
        let mut case = Case::new(rig, seed)?;
        for (object, fault) in cases {
            let what = || format!("{fault:?} of {object}, seed {seed}");
            {
                let mut connection = case.app.connect().with_context(what)?;
                case.change(&mut connection, 5).with_context(what)?;
            }
            rig.agent.sleep("a", "cold").with_context(what)?;
            let log_before = log_len(rig)?;
            // For good: what the store says is never right until it is mended.
            rig.shaper()?.inject(Rule::new("GET", object, fault));
            let hangs = matches!(fault, Fault::Hang);
            let woken = hangs || rig.agent.try_cli(&["app", "wake", "a"])?.status.success();
            let check_seed = case.next();
            let check = format!("truth-check {check_seed} 30");
            let asked = woken.then(|| case.app.ask_within(&check, Duration::from_secs(2)));
            match asked {
                // Short objects have no byte there; then the answer must be right.
                Some(Ok(answer)) => expect(&answer, &case.expected(check_seed, 30)).with_context(what)?,
                // Nothing has failed yet.
                Some(Err(_)) if hangs => {}
                Some(Err(_)) | None => named(rig, log_before, object).with_context(what)?,
            }
            rig.shaper()?.clear();
            settled(rig).with_context(what)?;
            let struck = rig
                .shaper()?
                .take_requests()
                .iter()
                .any(|request| request.fault.is_some());
            ensure!(struck, "{}: nothing asked for it", what());
            let mut connection = case.app.connect().with_context(what)?;
            case.check(&mut connection, 30).with_context(what)?;
        }
        let mut connection = case.app.connect()?;
        case.check(&mut connection, 100).context("at the end")
    })
}

fn log_len(rig: &Rig) -> Result<usize> {
    Ok(usize::try_from(rig.agent.log().metadata()?.len())?)
}

/// What the agent has said since says which object failed.
fn named(rig: &Rig, log_before: usize, object: &str) -> Result<()> {
    let log = std::fs::read(rig.agent.log())?;
    let said = String::from_utf8_lossy(&log[log_before..]);
    let names = |line: &str| (line.contains("WARN") || line.contains("ERROR")) && line.contains(object);
    ensure!(said.lines().any(names), "no failure of {object} is named: {said}");
    Ok(())
}

/// The app runs again, from its checkpoint if it had to be ended.
fn settled(rig: &Rig) -> Result<()> {
    until("the app to run", Duration::from_secs(30), || {
        let woken = rig.agent.try_cli(&["app", "wake", "a"])?;
        let hot = rig.agent.show("a")?.state() == "hot";
        Ok((woken.status.success() && hot).then_some(()))
    })
}
